"""Sizes, and what is normalised in pixels: the frames in which geometry and labels are given.

Pixel coordinates count pixel centres from 0 at the top left. Sizes are (H, W) or (D, H, W), points
and what is said of them (x, y[, z]).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from triton_stn import checks
from triton_stn.backends.numbers import vector
from triton_stn.transforms import Transform, resolve
from triton_stn.transforms.base import check_size
from triton_stn.types import Size, TransformName


def resolve_for(transform: TransformName | Transform, input_size: Size) -> Transform:
    """The transform of images of that size; an int is a square's."""
    several = isinstance(input_size, Sequence) and not isinstance(input_size, str)
    return resolve(transform, len(input_size) if several else 2)


def check_sizes(
    size: Size, output_size: Size | None, ndim: int, name: str = "input_size"
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The input's and the output's, which None makes the input's."""
    size = check_size(name, size, ndim)
    return size, size if output_size is None else check_size("output_size", output_size, ndim)


def as_matrix(matrix: Any) -> torch.Tensor:
    """A floating tensor, on its own device if it was one."""
    if not isinstance(matrix, torch.Tensor):
        matrix = torch.as_tensor(matrix)
    return matrix if matrix.is_floating_point() else matrix.to(torch.get_default_dtype())


def half_extent(size: Sequence[int], align_corners: bool) -> list[float]:
    """What 1 is in pixels."""
    checks.check_bool("align_corners", align_corners)
    return [(n - align_corners) / 2 for n in reversed(size)]


def centre(size: Sequence[int]) -> list[float]:
    """In pixels."""
    return [(n - 1) / 2 for n in reversed(size)]


def in_pixels(points: torch.Tensor, size: Sequence[int], align_corners: bool) -> torch.Tensor:
    """Of normalised coordinates."""
    return points * vector(half_extent(size, align_corners), points) + vector(centre(size), points)


def normalised(points: torch.Tensor, size: Sequence[int], align_corners: bool) -> torch.Tensor:
    """Of pixel coordinates. An axis without extent lies at 0."""
    return (points - vector(centre(size), points)) * per_pixel(size, align_corners, points)


def per_pixel(size: Sequence[int], align_corners: bool, like: torch.Tensor) -> torch.Tensor:
    """What a pixel is, normalised; 0 along an axis without extent."""
    halves = half_extent(size, align_corners)
    return vector([1 / half if half else 0.0 for half in halves], like)


def outline(points_per_edge: int, like: torch.Tensor) -> torch.Tensor:
    """Of the square |x|, |y| <= 1, clockwise on the screen from the top left corner.

    ``(4·points_per_edge, 2)``; every edge starts with its corner and is evenly divided.
    """
    along = torch.arange(points_per_edge, dtype=like.dtype, device=like.device)
    along = 2 * along / points_per_edge - 1
    edge = torch.ones_like(along)
    x = torch.cat((along, edge, -along, -edge))
    y = torch.cat((-edge, along, edge, -along))
    return torch.stack((x, y), -1)


def turned_and_sheared(
    angle: torch.Tensor, shear_x: torch.Tensor, shear_y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(a, b, c, d) of torchvision's [[a, b], [c, d]], rotation times shear, of degrees.

    It takes a picture's (x, y) to where they go; its determinant is 1.
    """
    turn, s_x, s_y = (torch.deg2rad(degrees) for degrees in (angle, shear_x, shear_y))
    cos, sin = turn.cos(), turn.sin()
    a, c = cos + sin * s_y.tan(), sin - cos * s_y.tan()
    return a, -a * s_x.tan() - sin, c, -c * s_x.tan() + cos
