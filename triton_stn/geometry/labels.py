"""Labels under θ: points and boxes that follow the image, and the θ of boxes to crop.

All are public as ``triton_stn.geometry``. A mask follows by sampling, with ``mode="nearest"``:

    >>> mask = torch.tensor([[0, 0, 1, 2]]).view(1, 1, 1, 4)  # of class numbers
    >>> shift = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]])
    >>> moved = triton_stn.spatial_transform(mask.float(), shift, mode="nearest", fill_value=255)
    >>> moved.to(mask.dtype).tolist()  # 255 where the image is not
    [[[[0, 1, 2, 255]]]]
"""

from __future__ import annotations

from typing import Any, NamedTuple, get_args

import torch

from triton_stn import checks
from triton_stn.backends.maps import OUT_OF_VIEW
from triton_stn.backends.numbers import vector
from triton_stn.geometry.frames import (
    check_sizes,
    half_extent,
    in_pixels,
    normalised,
    outline,
    per_pixel,
    resolve_for,
)
from triton_stn.transforms import Projective, Transform
from triton_stn.types import Direction, Size, TransformName

DIRECTIONS = get_args(Direction)
# Points of a curved edge: the top of an arc between two of them is missed by 1/256 of its height.
_CURVED = 16


class MappedBoxes(NamedTuple):
    """What `map_boxes` gives: boxes ``(..., B, 4)``, visible and valid ``(..., B)``.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        >>> mapped = triton_stn.geometry.map_boxes(torch.eye(2, 3), boxes, 4)
        >>> mapped.boxes[mapped.valid].tolist()
        [[0.0, 0.0, 2.0, 2.0]]
    """

    boxes: torch.Tensor
    visible: torch.Tensor
    valid: torch.Tensor


def map_points(
    theta: torch.Tensor,
    points: torch.Tensor,
    input_size: Size,
    output_size: Size | None = None,
    *,
    transform: TransformName | Transform = "affine",
    align_corners: bool = False,
    direction: Direction = "input_to_output",
    pixels: bool = True,
) -> torch.Tensor:
    """Where points of the input go in the output, or what the output's points read.

    Args:
        theta: ``(..., *theta_shape)`` of ``transform``.
        points: ``(..., P, 2)``, (x, y), or ``(..., P, 3)`` of volumes. Leading dimensions broadcast
            with those of theta: for K maps an image, ``(N, K, *theta_shape)``, an image's own
            points are ``(N, 1, P, 2)``, and the result is ``(N, K, P, 2)``.
        input_size, output_size: ``(H, W)``, ``(D, H, W)`` or an int; an output_size of None is the
            input's.
        transform, align_corners: as in sampling.
        direction: ``"input_to_output"``: a keypoint follows its image, as in torchvision and
            kornia. ``"output_to_input"``: to where θ reads, as a detection in a crop goes back.
        pixels: whether points and result are in pixels, whose centres are whole numbers. False:
            both are normalised.

    Returns:
        ``(..., P, ndim)``, float64 where an argument is and float32 otherwise. What has no place,
        behind a homography's viewer or under a singular θ, is 1e4 half-images away, with a gradient
        of zero. Against the θ of a spline, or of a map of your own, eight steps of Newton's
        method are made from the best of a lattice of the output's points: what then reads more than
        1e-4 half-images off has no place. Of several places of a map that folds it is one.

    Differentiable in theta and points, against a spline to the third order; nothing waits for
    the device.

    Raises:
        TypeError, ValueError: what does not fit; the message says what was expected.

    Example:
        >>> crop = torch.tensor([[0.5, 0.0, 0.5], [0.0, 0.5, -0.5]])  # the upper right quarter
        >>> nose = torch.tensor([[44.0, 20.0]])
        >>> triton_stn.geometry.map_points(crop, nose, 64, 32).tolist()
        [[12.0, 20.0]]
        >>> found = torch.tensor([[12.0, 20.0]])
        >>> triton_stn.geometry.map_points(
        ...     crop, found, 64, 32, direction="output_to_input"
        ... ).tolist()
        [[44.0, 20.0]]
    """
    transform = resolve_for(transform, input_size)
    checks.check_bool("pixels", pixels)
    theta, points = _operands(transform, theta, "points", points, transform.ndim)
    here, there = _ways(input_size, output_size, transform.ndim, direction)
    if pixels:
        points = normalised(points, here, align_corners)
    points = _move(transform, theta, points, direction)
    return in_pixels(points, there, align_corners) if pixels else points


def map_boxes(
    theta: torch.Tensor,
    boxes: torch.Tensor,
    input_size: Size,
    output_size: Size | None = None,
    *,
    transform: TransformName | Transform = "affine",
    align_corners: bool = False,
    direction: Direction = "input_to_output",
    points_per_edge: int | None = None,
) -> MappedBoxes:
    """The boxes around what boxes of the input become in the output, clipped to it; or back.

    Args:
        theta: ``(..., *theta_shape)`` of a 2-D ``transform``.
        boxes: ``(..., B, 4)``, (x1, y1, x2, y2) in pixels, counted from the image's upper left
            corner as torchvision's: all of it is (0, 0, W, H), so a pixel's centre lies at a half.
            Leading dimensions broadcast as those of `map_points`.
        input_size, output_size, transform, align_corners, direction: as in `map_points`.
        points_per_edge: of the outline that is mapped; None: 1, the corners, where lines stay
            straight (affine, projective), and 16 elsewhere.

    Returns:
        `MappedBoxes` of

        * boxes ``(..., B, 4)``, differentiable;
        * visible ``(..., B)``: the share of the mapped box's area that clipping left;
        * valid, bool ``(..., B)``: something is left, and the whole outline has a place. A box
          that crosses a homography's horizon has none. An invalid box is 0, as is its share.

    Raises:
        TypeError, ValueError: what does not fit; the message says what was expected.

    Example:
        >>> shift = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]])  # 16 pixels to the left
        >>> boxes = torch.tensor([[8.0, 0.0, 24.0, 8.0], [0.0, 0.0, 8.0, 8.0]])
        >>> mapped = triton_stn.geometry.map_boxes(shift, boxes, 64)
        >>> mapped.boxes.tolist()
        [[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 0.0, 0.0]]
        >>> mapped.visible.tolist(), mapped.valid.tolist()
        ([0.5, 0.0], [True, False])
    """
    transform = resolve_for(transform, input_size)
    if transform.ndim != 2:
        raise ValueError(f"transform must be 2-D for boxes, got {transform!r}")
    if points_per_edge is None:
        points_per_edge = 1 if transform.is_affine or isinstance(transform, Projective) else _CURVED
    checks.check_count("points_per_edge", points_per_edge, 1)
    theta, boxes = _operands(transform, theta, "boxes", boxes, 4)
    here, there = _ways(input_size, output_size, 2, direction)
    middle, sides = _middle_and_sides(boxes)
    edges = outline(points_per_edge, boxes)
    around = (middle - 0.5)[..., None, :] + sides[..., None, :] / 2 * edges  # (..., B, E, 2)
    places = _move(
        transform, theta, normalised(around.flatten(-3, -2), here, align_corners), direction
    ).unflatten(-2, around.shape[-3:-1])
    placed = (places.abs() < OUT_OF_VIEW).flatten(-2).all(-1)
    mapped = in_pixels(places, there, align_corners) + 0.5
    box = torch.stack((mapped.amin(-2), mapped.amax(-2)), -2)  # (..., B, 2, 2)
    end = vector(there[::-1], mapped)
    clipped = torch.minimum(box.clamp(min=0), end)
    area, left = (corners.diff(dim=-2).prod(-1).squeeze(-1) for corners in (box, clipped))
    valid = placed & (left > 0)
    visible = torch.where(valid, left, 0.0) / torch.where(valid, area, 1.0)
    return MappedBoxes(torch.where(valid[..., None], clipped.flatten(-2), 0.0), visible, valid)


def from_boxes(
    boxes: torch.Tensor,
    input_size: Size,
    output_size: Size | None = None,
    align_corners: bool = False,
) -> torch.Tensor:
    """θ ``(..., 2, 3)`` of crops: each output shows one box, edge to edge.

    ``spatial_transform(images, from_boxes(boxes, size), out)`` with boxes ``(N, K, 4)`` is the
    RoI align of K boxes an image, ``(N, K, C, *out)``, in one launch: with
    ``padding_mode="border"``, torchvision's ``roi_align(aligned=True, sampling_ratio=1)``; with
    ``antialias=True`` the mean over each output pixel's area.

    Args:
        boxes: ``(..., 4)``, (x1, y1, x2, y2) in pixels, counted from the image's upper left corner
            as torchvision's: all of it is (0, 0, W, H).
        input_size: ``(H, W)`` or an int.
        output_size: needed with ``align_corners=True`` alone; None: the input's.
        align_corners: as it will be in sampling; the pixels that are read are the same.

    Differentiable in boxes. float64 for float64 boxes and float32 otherwise. Boxes may reach out of
    the image, and x2 < x1 mirrors.

    Raises:
        TypeError, ValueError: what does not fit; the message says what was expected.

    Example:
        >>> image = torch.arange(16.0).view(1, 1, 4, 4)
        >>> boxes = torch.tensor([[[2.0, 0.0, 4.0, 2.0], [0.0, 0.0, 4.0, 4.0]]])
        >>> theta = triton_stn.geometry.from_boxes(boxes, (4, 4))
        >>> triton_stn.spatial_transform(image, theta, output_size=2).tolist()
        [[[[[2.0, 3.0], [6.0, 7.0]]], [[[2.5, 4.5], [10.5, 12.5]]]]]

    Source: He et al., "Mask R-CNN", 2017, arXiv 1703.06870, section 3.
    """
    boxes = _check("boxes", boxes, "(..., 4)", 4)
    middle, sides = _middle_and_sides(boxes)
    one, zero = torch.ones_like(sides[..., 0]), torch.zeros_like(sides[..., 0])
    return _window(middle, sides, (one, zero), input_size, output_size, align_corners)


def from_rotated_boxes(
    boxes: torch.Tensor,
    input_size: Size,
    output_size: Size | None = None,
    align_corners: bool = False,
) -> torch.Tensor:
    """θ ``(..., 2, 3)`` of crops of rotated boxes, each upright in its output.

    Args:
        boxes: ``(..., 5)``: (cx, cy, w, h, angle): centre and sides in pixels, counted as those of
            `from_boxes`; the angle in radians, positive from x to y, clockwise on the screen, as
            ``affine``'s. Of the degrees, counter-clockwise, that detectron2 and torchvision have:
            ``-torch.deg2rad(degrees)``.
        input_size, output_size, align_corners: as in `from_boxes`.

    Differentiable in boxes.

    Raises:
        TypeError, ValueError: what does not fit; the message says what was expected.

    Example:
        >>> image = torch.arange(16.0).view(1, 1, 4, 4)
        >>> upright = torch.tensor([2.0, 2.0, 4.0, 2.0, 0.0])
        >>> turned = torch.tensor([2.0, 2.0, 4.0, 2.0, torch.pi / 2])  # x runs down
        >>> theta = triton_stn.geometry.from_rotated_boxes(torch.stack((upright, turned)), 4)
        >>> crops = triton_stn.spatial_transform(image, theta[None], (2, 4))
        >>> crops.round().int().tolist()
        [[[[[4, 5, 6, 7], [8, 9, 10, 11]]], [[[2, 6, 10, 14], [1, 5, 9, 13]]]]]
    """
    boxes = _check("boxes", boxes, "(..., 5)", 5)
    angle = boxes[..., 4]
    turn = (angle.cos(), angle.sin())
    return _window(boxes[..., :2], boxes[..., 2:4], turn, input_size, output_size, align_corners)


def _window(middle, sides, turn, input_size, output_size, align_corners) -> torch.Tensor:
    """θ of an output that shows, edge to edge, a rectangle of the input."""
    size, out_size = check_sizes(input_size, output_size, 2)
    outer = half_extent(out_size, align_corners)
    reach = [half / n for half, n in zip(outer, reversed(out_size), strict=True)]
    x, y = (sides * vector(reach, sides)).unbind(-1)  # where the output's 1 lies, in pixels
    cos, sin = turn
    columns = torch.stack((cos * x, sin * x, -sin * y, cos * y), -1).unflatten(-1, (2, 2))
    columns = columns * per_pixel(size, align_corners, columns)
    middle = normalised(middle - 0.5, size, align_corners)
    return torch.cat((columns, middle[..., None, :]), -2).transpose(-1, -2)


def _middle_and_sides(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = boxes.split(2, -1)
    return (low + high) / 2, high - low


def _move(transform: Transform, theta, points, direction: Direction) -> torch.Tensor:
    move = transform.source if direction == "output_to_input" else transform.target
    return move(theta, points)


def _ways(input_size, output_size, ndim, direction) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The size of where points come from, and of where they go."""
    checks.check_choice("direction", direction, DIRECTIONS)
    size, out_size = check_sizes(input_size, output_size, ndim)
    return (out_size, size) if direction == "output_to_input" else (size, out_size)


def _operands(
    transform: Transform, theta: Any, name: str, labels: Any, last: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """θ and the labels, checked, in the dtype of coordinates."""
    theta = transform.check_theta(theta)
    labels = _check(name, labels, f"(..., {name[0].upper()}, {last})", last, least=2)
    if labels.device != theta.device:
        raise ValueError(
            f"{name} must be on the device of theta, {theta.device}, got {labels.device}"
        )
    leading = theta.shape[: theta.ndim - len(transform.theta_shape)]
    pairs = zip(leading[::-1], labels.shape[-3::-1], strict=False)
    if any(a != b and 1 not in (a, b) for a, b in pairs):
        raise ValueError(
            f"{name} must have leading dimensions that broadcast with those of theta, "
            f"{tuple(leading)}, got shape {checks.shape_of(labels)}"
        )
    dtype = torch.promote_types(theta.dtype, labels.dtype)
    return theta.to(dtype), labels.to(dtype)


def _check(name: str, labels: Any, shape: str, last: int, least: int = 1) -> torch.Tensor:
    checks.check_floating(name, labels)
    fits = labels.ndim >= least and labels.shape[-1] == last
    checks.check_shape(name, labels, fits, shape)
    return labels if labels.dtype == torch.float64 else labels.float()
