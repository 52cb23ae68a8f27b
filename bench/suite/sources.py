"""Where outputs read: what a case's ``transform`` is to the library and to plain PyTorch.

A case's ``transform`` is "affine", "projective", "tps_<T>" (a spline of T control points, √T by
√T), "grid" or "flow". The second argument of its call is called θ here whatever it is: the
transform's θ, a grid (N, H_out, W_out, 2), or a flow in pixels (N, 2, H_out, W_out); of volumes
(N, D_out, H_out, W_out, 3) and (N, 3, D_out, H_out, W_out).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F

from triton_stn.transforms import Projective, ThinPlateSpline

FIELDS = ("grid", "flow")  # transforms whose θ has a number for every output
PROJECTIVE = Projective()


@lru_cache
def spline(transform: str) -> ThinPlateSpline:
    """The spline that "tps_<T>" names."""
    side = math.isqrt(int(transform.removeprefix("tps_")))
    return ThinPlateSpline(side, side)


def bent(points: torch.Tensor, amount: float) -> torch.Tensor:
    """Points (..., 2), normalised, pushed by up to ``amount`` along each axis, smoothly."""
    return points + amount * torch.sin(math.pi * points.flip(-1))


def shifted(
    transform: str, theta: torch.Tensor, shift: torch.Tensor, extent: tuple[int, ...]
) -> torch.Tensor:
    """θ (K, *), its source coordinates moved by ``shift`` pixels, (x, y[, z]).

    ``extent`` is the input's ([D,] H, W).
    """
    if transform == "flow":
        return theta + shift.view(-1, *[1] * len(extent))
    shift = 2 * shift / torch.tensor(extent[::-1])
    if transform == "affine":
        return torch.cat((theta[..., :-1], theta[..., -1:] + shift[:, None]), -1)
    if transform == "projective":
        xy, w_row = theta[:, :2], theta[:, 2:]
        return torch.cat((xy + shift[:, None] * w_row, w_row), 1)
    return theta + shift


def grid(
    transform: str,
    theta: torch.Tensor,
    extent: tuple[int, ...],
    size: tuple[int, ...],
    align_corners: bool,
) -> torch.Tensor:
    """The grid (N, *size, len(size)) for ``F.grid_sample``, as one gets it in plain PyTorch.

    Args:
        theta: one an image, (N, *).
        extent: the input's (H, W), or (D, H, W) of volumes: of affine maps, grids and flows.
        size: the output's.
    """
    if transform == "affine":
        return F.affine_grid(theta, (len(theta), 1, *size), align_corners)
    if transform == "projective":
        return PROJECTIVE.grid(theta, size, align_corners)
    if transform == "grid":
        return theta
    if transform == "flow":
        places = []
        for axis, (n, n_out) in enumerate(zip(extent[::-1], size[::-1], strict=True)):
            pixels = torch.arange(n_out, device=theta.device).view(-1, *[1] * axis)
            # Pixel 0 lies at 1/W - 1.
            places.append((theta[:, axis] + pixels) * (2 / n) + (1 / n - 1))
        return torch.stack(places, -1)
    matrix = spline_matrix(transform, size, align_corners, theta.device, theta.dtype)
    return (matrix @ theta).unflatten(1, size)


@torch.compiler.assume_constant_result
def spline_matrix(*arguments: object) -> torch.Tensor:
    """``_spline_matrix``, which torch.compile takes as it is."""
    return _spline_matrix(*arguments)


@lru_cache
def _spline_matrix(
    transform: str,
    size: tuple[int, int],
    align_corners: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    """(H_out·W_out, T), what takes θ (T, 2) to the grid: the basis times the inverse of the system.

    Usual implementations keep the two factors; their product takes less time and rounds less.
    """
    control = spline(transform).points
    units = torch.eye(len(control), dtype=torch.float64)[..., None].expand(-1, -1, 2)
    inverse = spline(transform).coefficients(units)[..., 0].T
    still = torch.eye(2, 3, dtype=torch.float64)[None]
    points = F.affine_grid(still, (1, 1, *size), align_corners).flatten(0, 2)
    square = (points[:, None] - control).square().sum(-1)
    basis = torch.cat((torch.xlogy(square, square), torch.ones_like(points[:, :1]), points), 1)
    return (basis @ inverse).to(device, dtype)
