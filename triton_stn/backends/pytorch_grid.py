"""The PyTorch path's sampling grids: made of θ, fit for F.grid_sample, and their gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from triton_stn.backends import is_plain, kinks
from triton_stn.backends.numbers import kept, vector, without_autocast

# F.grid_sample on the CPU faults on coordinates that no int32 holds. Under this bound a normalised
# coordinate times any image's width stays far inside.
_SAFE_COORDINATE = 1024.0


class Rules(NamedTuple):
    """A call without its tensors; ``size`` is the output's."""

    size: tuple[int, ...]
    mode: str
    padding_mode: str
    align_corners: bool


def in_float(input: torch.Tensor) -> torch.Tensor:
    """The image in the dtype of coordinates, weights and sums."""
    return input if input.dtype == torch.float64 else input.float()


@kept
def centred(size: int, edge: int, align_corners: bool, dtype: torch.dtype, device) -> torch.Tensor:
    """Normalised coordinates of ``size`` pixels, from -1 to 1 or from half a pixel inside; with an
    ``edge`` of 1 those of their size + 1 edges. One pixel lies at 0, with either align_corners."""
    count = size + edge
    steps = 2 * torch.arange(count, dtype=dtype, device=device) - (count - 1)  # whole numbers
    return steps / (max(size - 1, 1) if align_corners else size)


@kept
def _sum_and_moment(size: int, align_corners: bool, dtype: torch.dtype, device) -> torch.Tensor:
    """(2, size), whose product with the numbers of an axis is their sum and their moment."""
    coordinate = centred(size, 0, align_corners, dtype, device)
    return torch.stack((torch.ones_like(coordinate), coordinate))


@kept
def _columns(ndim: int, dtype: torch.dtype, device) -> torch.Tensor:
    """Which of 2^ndim sums, a bit an axis that is a moment's, are the columns of theta's gradient:
    one moment each, along x first, and the plain sum."""
    moments = torch.arange(ndim, dtype=dtype, device=device)
    return torch.cat((2**moments, torch.zeros_like(moments[:1])))


def safe_grid(theta, x, rules, derivative=False):
    """(grid, hole): coordinates that F.grid_sample takes, and where they are not finite.

    ``grid`` (N, K·H_out, W_out, 2), the K one below another, or of volumes; of theta (N, K, *).
    ``hole`` (N, K·H_out, W_out) is None where all is known to be well. To know costs a look at
    θ's values, so on the CPU alone; a coordinate of an affine map is at most the sum of four.
    ``derivative``: the grid is for one along the coordinates (`kinks`).
    """
    theta = theta.to(x.dtype)
    if theta.ndim > 4:
        grid = theta.flatten(1, 2)
    else:
        at_kinks = derivative and rules.mode == "bilinear"
        grid = affine_grid(theta, rules, x.shape[2:] if at_kinks else None)
    if x.device.type == "cpu" and is_plain(x, theta):
        bound = _SAFE_COORDINATE / 4
        values = theta.detach()
        # Not the infinity norm, which takes seven times as long (docs/performance.md).
        if float(values.amax()) < bound and float(values.amin()) > -bound:  # no NaN either
            return grid, None
    return safe_coordinates(grid, rules.padding_mode), ~grid.isfinite().all(-1)


def safe_coordinates(grid: torch.Tensor, padding_mode: str) -> torch.Tensor:
    """A grid (..., ndim) whose coordinates are finite and small, and read as those of ``grid``
    do; 0 where one of a point is not finite."""
    grid = torch.where(grid.isfinite().all(-1, keepdim=True), grid, 0.0)
    if padding_mode == "reflection":  # has period 4 in normalised coordinates
        return torch.where(grid.abs() < _SAFE_COORDINATE, grid, grid.remainder(4.0))
    return grid.clamp(-_SAFE_COORDINATE, _SAFE_COORDINATE)


def affine_grid(
    theta: torch.Tensor, rules: Rules, extent: Sequence[int] | None = None
) -> torch.Tensor:
    """The sampling grid (N, K·H_out, W_out, 2) of theta (N, K, 2, 3), the K one below another.

    Of (N, K, 3, 4) it is (N, K·D_out, H_out, W_out, 3). With the ``extent`` of the input it is the
    one to differentiate at (`kinks`).
    """
    # The coordinates are kept in planes of their own: the CPU sampler reads both layouts equally
    # well, and a plane is written by one broadcast addition (an addcmul is not vectorised there).
    theta = theta.transpose(1, 2).contiguous()  # (N, ndim, K, ndim + 1)
    terms = [
        theta[..., -axis, None] * centred(n, 0, rules.align_corners, theta.dtype, theta.device)
        for axis, n in enumerate(rules.size, 2)
    ]
    shift = theta[..., -1:]
    if extent is not None:
        edges = rules.padding_mode, rules.align_corners
        terms, shift = kinks.settle(terms, shift, theta, extent, *edges)
    planes = shift + terms[0]
    for axis, along in enumerate(terms[1:], 1):
        # (N, ndim, K, D_out, H_out, ...)
        planes = along.view(*theta.shape[:3], *[1] * axis, -1) + planes[..., None]
    return planes.flatten(2, 3).movedim(1, -1)


def theta_gradient(grad_grid, theta, rules):
    """The adjoint of `affine_grid`: (N, K·H_out, W_out, 2) -> (N, K, 2, 3), or of volumes.

    Axis by axis, the slowest first: a product takes the rest to its sum and its moment.
    """
    n, k, ndim = theta.shape[:3]
    sums = grad_grid
    with without_autocast(sums):
        for axis, extent in enumerate(rules.size):
            basis = _sum_and_moment(extent, rules.align_corners, sums.dtype, sums.device)
            sums = basis @ sums.reshape(n, k * 2**axis, extent, -1)
    sums = sums.view(n, k, 2**ndim, ndim)
    wanted = sums.index_select(2, _columns(ndim, torch.int64, sums.device))
    return wanted.transpose(2, 3).to(theta.dtype)


def flow_extent(extent, align_corners, like):
    """The pixels (x, y) from -1 to 1 of an input of a size, (2,)."""
    return vector([max(n - int(align_corners), 1) for n in reversed(extent)], like)


def flow_grid(flow, extent, align_corners):
    """The grid of displacements (N, K, *size, ndim) in pixels of an input of a size."""
    size = flow.shape[2:-1]
    axes = [torch.arange(n, dtype=flow.dtype, device=flow.device) for n in size]
    pixels = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)
    middle = vector([(n - 1) / 2 for n in reversed(extent)], flow)
    return (flow + pixels - middle) * (2 / flow_extent(extent, align_corners, flow))
