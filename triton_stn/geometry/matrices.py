"""θ built, composed and inverted; pixel matrices; where the output lies in the input."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import chain
from typing import Any, get_args

import torch

from triton_stn import checks
from triton_stn.backends import is_plain
from triton_stn.backends.numbers import vector
from triton_stn.geometry.frames import (
    as_matrix,
    centre,
    check_sizes,
    half_extent,
    in_pixels,
    outline,
    resolve_for,
)
from triton_stn.transforms import Transform, resolve
from triton_stn.types import Direction, Size, TransformName

Number = float | torch.Tensor
Pair = Sequence[Number] | torch.Tensor
DIRECTIONS = get_args(Direction)


def affine(
    image_size: Size,
    output_size: Size | None = None,
    *,
    scale: Number | Pair = 1.0,
    rotation: Number = 0.0,
    shear: Pair = (0.0, 0.0),
    translation: Pair = (0.0, 0.0),
    align_corners: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """θ ``(..., 2, 3)`` of the window of the input that the output shows.

    Starting at the input's centre, with one input pixel to an output pixel, the window is scaled,
    then sheared, then turned, all in pixels, then moved. A rotation stays a rotation whatever the
    shapes of the two images. ``invert`` the result to move the picture instead of the window.

    Args:
        image_size: the input's ``(H, W)``, or an int.
        output_size: the output's; None: the input's. Left out for an output of another size, that
            output shows the same window, resized.
        scale: input pixels to an output pixel, so 0.5 enlarges; a number, or a pair ``(x, y)``. A
            tensor is a pair ``(..., 2)``, or ``(..., 1)`` or ``()``, the same for both.
        rotation: in radians, positive from x to y: the window turns clockwise on the screen, and
            the picture in it counter-clockwise.
        shear: factors ``(k_x, k_y)``: x gains k_x·y and y gains k_y·x.
        translation: ``(t_x, t_y)``, normalised: 1 is half the input's width or height. These are
            θ's last column.
        align_corners: as it will be in sampling.
        dtype, device: for numbers alone; None: those of the tensors, or PyTorch's default.

    Every other number may be a tensor ``(...)``, and shear and translation ``(..., 2)``. For a
    square image ``affine(scale=s, rotation=a, translation=t)`` is the matrix of ``Similarity``.

    Raises:
        TypeError: a tensor that is not floating, or sizes that are not ints.
        ValueError: a size or a pair of the wrong length.

    Example:
        >>> triton_stn.geometry.affine((480, 640), output_size=240)  # the middle 240 x 240
        tensor([[0.3750, 0.0000, 0.0000],
                [0.0000, 0.5000, 0.0000]])
        >>> triton_stn.geometry.affine(64, scale=0.5, translation=(0.5, 0.0))  # enlarged
        tensor([[0.5000, 0.0000, 0.5000],
                [0.0000, 0.5000, 0.0000]])
    """
    sizes = check_sizes(image_size, output_size, 2, "image_size")
    inner, outer = (half_extent(size, align_corners) for size in sizes)
    pairs = (_scale(scale), _pair("shear", shear), _pair("translation", translation))
    s_x, s_y, k_x, k_y, t_x, t_y, angle = _broadcast((*chain(*pairs), rotation), dtype, device)
    cos, sin = angle.cos(), angle.sin()
    ratio = [[o / i if i else 0.0 for o in outer] for i in inner]  # from pixels to normalised
    rows = (
        (cos - sin * k_y) * s_x * ratio[0][0],
        (cos * k_x - sin) * s_y * ratio[0][1],
        t_x,
        (sin + cos * k_y) * s_x * ratio[1][0],
        (sin * k_x + cos) * s_y * ratio[1][1],
        t_y,
    )
    return torch.stack(rows, -1).unflatten(-1, (2, 3))


def compose(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The θ of sampling through ``a`` and then sampling that through ``b``: the product a·b.

    A point of the last output goes through b first, then through a. Both ``(..., 2, 3)`` or
    homographies ``(..., 3, 3)``, of which one makes the result one; or both ``(..., 3, 4)``.

    Raises:
        TypeError, ValueError: not such tensors, or of different dimensions.

    Example:
        >>> enlarge = triton_stn.geometry.affine(64, scale=0.5)
        >>> shift = triton_stn.geometry.affine(64, translation=(0.5, 0.0))
        >>> triton_stn.geometry.compose(enlarge, shift).tolist()  # half of the shift
        [[0.5, 0.0, 0.25], [0.0, 0.5, 0.0]]
    """
    square_a, square_b = _square("a", a), _square("b", b)
    if square_a.shape[-1] != square_b.shape[-1]:
        raise ValueError(
            "a and b must both be (..., 2, 3) or (..., 3, 3), or both (..., 3, 4), "
            f"got {checks.shape_of(a)} and {checks.shape_of(b)}"
        )
    return _product(square_a, square_b)[..., : max(a.shape[-2], b.shape[-2]), :]


def invert(theta: torch.Tensor) -> torch.Tensor:
    """The θ that undoes ``theta`` ``(..., 2, 3)``, ``(..., 3, 4)`` or ``(..., 3, 3)``.

    Differentiable. To know whether θ is singular it waits for the device. A θ with NaN gives NaN.

    Raises:
        ValueError: a singular θ.

    Example:
        >>> theta = torch.tensor([[0.5, 0.0, 0.25], [0.0, 0.5, 0.0]])
        >>> triton_stn.geometry.invert(theta).tolist()
        [[2.0, 0.0, -0.5], [0.0, 2.0, 0.0]]
    """
    return _inverse("theta", _square("theta", theta))[..., : theta.shape[-2], :]


def homography(points: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The homography ``(..., 3, 3)`` that takes four points ``(..., 4, 2)`` to four others.

    In whatever coordinates the points are: of normalised ones a θ of ``Projective``, which shows at
    the output's ``points`` what lies at the input's ``targets``. Its last number is 1, or -1 where
    the origin lies beyond the horizon of the points. The two broadcast. Differentiable, in closed
    form, so nothing waits for the device; three points of a line give NaN or inf.

    Raises:
        TypeError, ValueError: not floating tensors of four points.

    Example:
        >>> square = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
        >>> triton_stn.geometry.homography(square, 0.5 * square).tolist()
        [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 1.0]]

    Source: Heckbert, "Fundamentals of Texture Mapping and Image Warping", 1989, section 2.2.3.
    """
    for name, four in (("points", points), ("targets", targets)):
        checks.check_floating(name, four)
        if four.shape[-2:] != (4, 2):
            raise ValueError(f"{name} must be (..., 4, 2), got {checks.shape_of(four)}")
    dtype = torch.promote_types(torch.promote_types(points.dtype, targets.dtype), torch.float32)
    points, targets = points.to(dtype), targets.to(dtype)
    of_points, of_targets = _of_unit_square(points), _of_unit_square(targets)
    rows = of_points.unbind(-2)
    # The inverse but for a factor, of which a homography knows nothing.
    adjugate = torch.stack(
        [torch.linalg.cross(rows[i - 2], rows[i - 1], dim=-1) for i in range(3)], -1
    )
    made = _product(of_targets, adjugate)
    made = made / made[..., 2:, 2:]
    w = (made[..., 2:, :2] * points).sum(-1) + 1  # of the four points, which are to be in view
    return torch.where(w.sum(-1)[..., None, None] < 0, -made, made)


def from_pixel_matrix(
    matrix: Any,
    input_size: Size,
    output_size: Size | None = None,
    align_corners: bool = False,
    direction: Direction = "output_to_input",
) -> torch.Tensor:
    """θ of a matrix between pixel coordinates: of OpenCV, kornia, or your own.

    Args:
        matrix: ``(..., 2, 3)``, a homography ``(..., 3, 3)``, or ``(..., 3, 4)`` of volumes; a
            tensor, or what ``torch.as_tensor`` takes, such as OpenCV's arrays.
        input_size, output_size: ``(H, W)``, ``(D, H, W)`` or an int; an output_size of None is the
            input's.
        align_corners: as it will be in sampling; the pixels that are read are the same.
        direction: ``"output_to_input"``: the matrix takes an output pixel to the input pixel to
            read, as ``cv2.warpAffine`` with ``WARP_INVERSE_MAP``. ``"input_to_output"``: it takes
            an input pixel to where it goes, as ``cv2.warpAffine`` and ``cv2.warpPerspective``
            without that flag and as kornia's ``warp_affine`` and ``warp_perspective``.

    Returns:
        θ of ``Affine()``, or of ``Projective()`` for a homography, whose sign is kept: pixels are
        in view where its w is positive, as around the origin for a matrix with a last entry of 1.
        An axis of one pixel with ``align_corners=True`` has no extent: its entries are 0.

    Raises:
        TypeError, ValueError: what does not fit; a singular matrix that has to be inverted.

    Example:
        >>> matrix = torch.tensor([[1.0, 0.0, 8.0], [0.0, 1.0, 16.0]])  # 8 to the right, 16 down
        >>> triton_stn.geometry.from_pixel_matrix(matrix, (64, 32)).tolist()
        [[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]]
        >>> from_opencv = torch.tensor([[1.0, 0.0, -8.0], [0.0, 1.0, -16.0]])  # of warpAffine
        >>> triton_stn.geometry.from_pixel_matrix(
        ...     from_opencv, (64, 32), direction="input_to_output"
        ... ).tolist()
        [[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]]
    """
    matrix = as_matrix(matrix)
    checks.check_choice("direction", direction, DIRECTIONS)
    pixels = _square("matrix", matrix)
    if direction == "input_to_output":
        pixels = _inverse("matrix", pixels)
    inner, outer = _pixel_maps(input_size, output_size, align_corners, pixels)
    return _product(_product(_unscale(inner), pixels), outer)[..., : matrix.shape[-2], :]


def to_pixel_matrix(
    theta: torch.Tensor,
    input_size: Size,
    output_size: Size | None = None,
    align_corners: bool = False,
    direction: Direction = "output_to_input",
) -> torch.Tensor:
    """The matrix between pixel coordinates of θ, in its shape, one of ``from_pixel_matrix``'s.

    The inverse of ``from_pixel_matrix``, with the same arguments.

    Raises:
        TypeError, ValueError: what does not fit; a singular θ that has to be inverted.

    Example:
        >>> theta = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]])
        >>> triton_stn.geometry.to_pixel_matrix(theta, (64, 32)).tolist()
        [[1.0, 0.0, 8.0], [0.0, 1.0, 16.0]]
    """
    checks.check_choice("direction", direction, DIRECTIONS)
    square = _square("theta", theta)
    inner, outer = _pixel_maps(input_size, output_size, align_corners, square)
    pixels = _product(_product(inner, square), _unscale(outer))
    if direction == "input_to_output":
        pixels = _inverse("theta", pixels)
    return pixels[..., : theta.shape[-2], :]


def quadrilateral(
    theta: torch.Tensor,
    input_size: Size,
    output_size: Size | None = None,
    align_corners: bool = False,
    transform: TransformName | Transform = "affine",
    points_per_edge: int = 1,
) -> torch.Tensor:
    """Where the output's outline lies in the input, in pixels: ``(..., 4·points_per_edge, 2)``.

    The outline runs along the outer edges of the output's pixels, from the top left corner to the
    top right, the bottom right, the bottom left and back. Every edge has ``points_per_edge``
    points, evenly spaced in the output, and starts with its corner: 1 gives the four corners,
    (x, y), and more follow the curved edges of a thin-plate spline.

    Args:
        theta: ``(..., *theta_shape)`` of ``transform``.
        input_size, output_size: ``(H, W)`` or an int; an output_size of None is the input's.

    Differentiable. A point that a homography puts out of view lies 1e4 half-images away.

    Raises:
        ValueError: a 3-D transform, or what does not fit.

    Example:
        >>> triton_stn.geometry.quadrilateral(torch.eye(2, 3), (2, 4)).tolist()
        [[-0.5, -0.5], [3.5, -0.5], [3.5, 1.5], [-0.5, 1.5]]
    """
    transform = resolve(transform)
    if transform.ndim != 2:
        raise ValueError(f"transform must be 2-D for a quadrilateral, got {transform!r}")
    if points_per_edge < 1:
        raise ValueError(f"points_per_edge must be at least 1, got {points_per_edge}")
    size, out_size = check_sizes(input_size, output_size, 2)
    theta = transform.check_theta(theta)
    # The outer edges: at 1, or half a pixel beyond it with align_corners.
    halves = half_extent(out_size, align_corners)
    reach = [n / (2 * half or 1.0) for n, half in zip(out_size[::-1], halves, strict=True)]
    points = outline(points_per_edge, theta) * vector(reach, theta)
    return in_pixels(transform.source(theta, points), size, align_corners)


def inside_mask(
    theta: torch.Tensor,
    input_size: Size,
    output_size: Size | None = None,
    align_corners: bool = False,
    transform: TransformName | Transform = "affine",
) -> torch.Tensor:
    """Which output pixels read inside the image: bool ``(..., H_out, W_out)``.

    Inside is on a pixel: -0.5 <= x <= W - 0.5 in pixels, and likewise y. In 3-D, with sizes
    ``(D, H, W)``, the mask is ``(..., D_out, H_out, W_out)``. A coordinate of NaN is outside.

    Raises:
        TypeError, ValueError: a θ or a size that does not fit.

    Example:
        >>> theta = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]])
        >>> triton_stn.geometry.inside_mask(theta, (1, 4)).tolist()
        [[True, True, True, False]]
    """
    transform = resolve_for(transform, input_size)
    size, out_size = check_sizes(input_size, output_size, transform.ndim)
    with torch.no_grad():
        pixels = in_pixels(transform.grid(theta, out_size, align_corners), size, align_corners)
    last = vector(size[::-1], pixels) - 0.5
    return ((pixels >= -0.5) & (pixels <= last)).all(-1)


def valid_fraction(
    theta: torch.Tensor,
    input_size: Size,
    output_size: Size | None = None,
    align_corners: bool = False,
    transform: TransformName | Transform = "affine",
) -> torch.Tensor:
    """The share of output pixels that read inside the image: float32 ``(...)``, no gradient.

    Raises:
        TypeError, ValueError: a θ or a size that does not fit.

    Example:
        >>> theta = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]])
        >>> triton_stn.geometry.valid_fraction(theta, (1, 4)).item()
        0.75
    """
    transform = resolve_for(transform, input_size)
    mask = inside_mask(theta, input_size, output_size, align_corners, transform)
    return mask.flatten(-transform.ndim).float().mean(-1)


def _pair(name: str, value: Any) -> Sequence[Any]:
    pair = value.unbind(-1) if isinstance(value, torch.Tensor) else value
    if not isinstance(pair, Sequence) or len(pair) != 2:
        raise ValueError(f"{name} must be a pair (x, y), got {value!r}")
    return pair


def _scale(value: Any) -> Sequence[Any]:
    """A pair, or what is the scale of both axes, twice."""
    if isinstance(value, torch.Tensor) and value.shape[-1:] in ((), (1,)):
        value = value.reshape(value.shape[:-1])
    elif isinstance(value, (Sequence, torch.Tensor)):
        return _pair("scale", value)
    return value, value


def _broadcast(values: Sequence[Any], dtype, device) -> Sequence[torch.Tensor]:
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    for tensor in tensors:
        checks.check_floating("every tensor", tensor)
    if tensors:
        dtype = dtype or reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
        device = tensors[0].device if device is None else device
    # A number is filled in: `as_tensor` would copy it to the device, and wait for that.
    return torch.broadcast_tensors(
        *(
            torch.full((), value, dtype=dtype, device=device)
            if isinstance(value, (int, float))
            else torch.as_tensor(value, dtype=dtype, device=device)
            for value in values
        )
    )


def _square(name: str, theta: Any) -> torch.Tensor:
    """θ as a homogeneous matrix, at least float32."""
    checks.check_floating(name, theta)
    fits = theta.shape[-2:] in ((2, 3), (3, 4), (3, 3))
    checks.check_shape(name, theta, fits, "(..., 2, 3), (..., 3, 4) or (..., 3, 3)")
    theta = theta if theta.dtype == torch.float64 else theta.float()
    rows, columns = theta.shape[-2:]
    if rows == columns:
        return theta
    last = torch.eye(columns, dtype=theta.dtype, device=theta.device)[-1:]
    return torch.cat((theta, last.expand(*theta.shape[:-2], 1, columns)), -2)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a·b, out of reach of autocast and TF32."""
    return (a[..., :, :, None] * b[..., None, :, :]).sum(-2)


def _inverse(name: str, square: torch.Tensor) -> torch.Tensor:
    inverse, info = torch.linalg.inv_ex(square)
    if is_plain(info) and info.any():  # whoever traces does not know, and gets an inf or a NaN
        raise ValueError(f"{name} must be invertible, got a singular matrix")
    return inverse


def _pixel_maps(input_size, output_size, align_corners, like) -> list[torch.Tensor]:
    """From normalised to pixel coordinates of the input and of the output, homogeneous."""
    ndim, maps = like.shape[-1] - 1, []
    for size in check_sizes(input_size, output_size, ndim):
        half = vector(half_extent(size, align_corners), like)
        middle = vector(centre(size), like)
        maps.append(_square("map", torch.cat((half.diag(), middle[:, None]), 1)))
    return maps


def _unscale(pixels: torch.Tensor) -> torch.Tensor:
    """From pixel to normalised coordinates; an axis without extent lies at 0."""
    half, middle = pixels[:-1, :-1].diagonal(), pixels[:-1, -1]
    scale = torch.where(half == 0, 0.0, 1 / half)
    return _square("map", torch.cat((scale.diag(), (-middle * scale)[:, None]), 1))


def _of_unit_square(corners: torch.Tensor) -> torch.Tensor:
    """The homography that takes (0, 0), (1, 0), (1, 1), (0, 1) to the corners (..., 4, 2)."""
    first, second, third, fourth = corners.unbind(-2)
    along, up = second - third, fourth - third
    rest = first - second + third - fourth  # zero of a parallelogram
    area = _cross(along, up)
    g, h = (_cross(rest, up) / area)[..., None], (_cross(along, rest) / area)[..., None]
    columns = (second - first + g * second, fourth - first + h * fourth, first)
    of_w = torch.cat((g, h, torch.ones_like(g)), -1)
    return torch.cat((torch.stack(columns, -1), of_w[..., None, :]), -2)


def _cross(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
