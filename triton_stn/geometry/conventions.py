"""θ of other libraries' arguments, where ``from_pixel_matrix`` is not all of the conversion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from triton_stn import checks
from triton_stn.geometry.frames import as_matrix, check_sizes, normalised, turned_and_sheared
from triton_stn.geometry.matrices import from_pixel_matrix, homography
from triton_stn.types import Size


def normalize_points(points: torch.Tensor, size: Size, align_corners: bool = False) -> torch.Tensor:
    """Pixel coordinates ``(..., ndim)``, (x, y[, z]), as normalised ones: of ``cv2.remap``'s maps.

    ``grid_sample(image, normalize_points(torch.stack((map_x, map_y), -1), size)[None])`` is
    ``cv2.remap(image, map_x, map_y, ...)``.

    Raises:
        TypeError, ValueError: what does not fit.

    Example:
        >>> points = torch.tensor([[-0.5, -0.5], [3.5, 1.5]])  # the corners of 2 x 4 pixels
        >>> triton_stn.geometry.normalize_points(points, (2, 4)).tolist()
        [[-1.0, -1.0], [1.0, 1.0]]
    """
    checks.check_floating("points", points)
    fits = points.shape[-1:] in ((2,), (3,))
    checks.check_shape("points", points, fits, "(..., 2) or (..., 3)")
    points = points if points.dtype == torch.float64 else points.float()
    size, _ = check_sizes(size, None, points.shape[-1], "size")
    return normalised(points, size, align_corners)


def from_torchvision_affine(
    image_size: Size,
    angle: float = 0.0,
    translate: Sequence[float] = (0.0, 0.0),
    scale: float = 1.0,
    shear: float | Sequence[float] = (0.0, 0.0),
    center: Sequence[float] | None = None,
    align_corners: bool = False,
) -> torch.Tensor:
    """θ ``(2, 3)``, float32, of torchvision's ``affine(image, angle, translate, scale, shear)``.

    Angles are in degrees, the translation in pixels, and ``center``, None for the image's own, is
    counted from the image's upper left edge. A number shears along x, and one in a sequence along
    both axes. ``rotate(image, angle)`` is this with ``-angle``.

    Raises:
        TypeError, ValueError: a size that does not fit; a scale of 0.

    Example:
        >>> triton_stn.geometry.from_torchvision_affine((4, 8), translate=(2, 1)).tolist()
        [[1.0, 0.0, -0.5], [0.0, 1.0, -0.5]]

    Source: torchvision.transforms.functional, ``_get_inverse_affine_matrix``.
    """
    h, w = check_sizes(image_size, None, 2, "image_size")[0]
    x, y = (w / 2, h / 2) if center is None else center
    centre = torch.tensor([x - 0.5, y - 0.5], dtype=torch.float64)
    if not isinstance(shear, Sequence):
        shear = (shear, 0.0)
    shear = (*shear, *shear) if len(shear) == 1 else shear
    degrees = torch.tensor([angle, *shear], dtype=torch.float64)
    linear = scale * torch.stack(turned_and_sheared(*degrees)).view(2, 2)
    moved = centre + torch.tensor(translate, dtype=torch.float64) - linear @ centre
    matrix = torch.cat((linear, moved[:, None]), 1)
    theta = from_pixel_matrix(matrix, (h, w), None, align_corners, "input_to_output")
    return theta.float()


def from_torchvision_perspective(
    startpoints: Any, endpoints: Any, image_size: Size, align_corners: bool = False
) -> torch.Tensor:
    """θ ``(3, 3)``, float32, of torchvision's ``perspective(image, startpoints, endpoints)``.

    Both ``(4, 2)``, (x, y): the corners in the input, and where they go. torchvision counts them
    from the image's edge, half a pixel off pixel centres: a homography of OpenCV through the same
    numbers, and ``from_pixel_matrix`` of it, is another one.

    Raises:
        TypeError, ValueError: a size that does not fit; points of another shape.

    Example:
        >>> corners = [[0, 0], [8, 0], [8, 4], [0, 4]]
        >>> moved = [[2, 0], [10, 0], [10, 4], [2, 4]]  # two pixels to the right
        >>> theta = triton_stn.geometry.from_torchvision_perspective(corners, moved, (4, 8))
        >>> theta.round(decimals=4) + 0.0
        tensor([[ 1.0000,  0.0000, -0.5000],
                [ 0.0000,  1.0000,  0.0000],
                [ 0.0000,  0.0000,  1.0000]])

    Source: torchvision.transforms.functional, ``_get_perspective_coeffs``.
    """
    start, end = (torch.as_tensor(p, dtype=torch.float64) for p in (startpoints, endpoints))
    for name, points in (("startpoints", start), ("endpoints", end)):
        checks.check_shape(name, points, points.shape == (4, 2), "(4, 2)")
    # Pixels are counted from centres; what is at the end reads the start.
    matrix = homography(end - 0.5, start - 0.5)
    return from_pixel_matrix(matrix, image_size, None, align_corners).float()


def from_monai(
    matrix: Any,
    input_size: Size,
    output_size: Size | None = None,
    align_corners: bool = False,
) -> torch.Tensor:
    """θ of a matrix between voxel indices in MONAI's order, rows first: (i, j) or (i, j, k).

    Args:
        matrix: ``(..., 2, 3)`` or ``(..., 3, 3)`` for images, ``(..., 3, 4)`` or ``(..., 4, 4)``
            for volumes, from output to input, as ``monai.networks.layers.AffineTransform`` takes it
            with ``normalized=False``. A square one is affine: its last row is left out.
        input_size, output_size, align_corners: as in ``from_pixel_matrix``. AffineTransform samples
            with ``align_corners=True`` unless told otherwise.

    Raises:
        TypeError, ValueError: what does not fit.

    Example:
        >>> matrix = torch.tensor([[1.0, 0.0, 16.0], [0.0, 1.0, 8.0]])  # 16 down, 8 to the right
        >>> triton_stn.geometry.from_monai(matrix, (64, 32)).tolist()
        [[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]]
    """
    matrix = as_matrix(matrix)
    shapes = ((2, 3), (3, 3), (3, 4), (4, 4))
    fits = matrix.shape[-2:] in shapes
    checks.check_shape("matrix", matrix, fits, f"(..., r, c) with (r, c) one of {shapes}")
    ndim = matrix.shape[-1] - 1
    matrix = matrix[..., :ndim, :]
    reversed_ = torch.cat((matrix[..., :ndim].flip(-2, -1), matrix[..., ndim:].flip(-2)), -1)
    return from_pixel_matrix(reversed_, input_size, output_size, align_corners)
