"""Pure PyTorch on volumes: the CPU path. Differentiable once; F.grid_sample reads and scatters."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from triton_stn.backends.layout import memory_format
from triton_stn.backends.pytorch import _centred, _in_float, empty_of, safe_coordinates


def sample(
    input: torch.Tensor,
    theta: torch.Tensor,
    d_out: int,
    h_out: int,
    w_out: int,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> torch.Tensor:
    """Sample input (N, C, D, H, W) by theta (N, K, 3, 4) -> (N, K, C, D_out, H_out, W_out)."""
    n, c = input.shape[:2]
    k = theta.shape[1]
    size = (d_out, h_out, w_out)
    if n * k * c == 0:
        return empty_of(input, theta, *size)
    x = _in_float(input)
    grid = affine_grid(theta.to(x.dtype), size, align_corners)
    grid, hole = safe_coordinates(grid, padding_mode)
    y = F.grid_sample(x, grid, mode, padding_mode, align_corners)
    y = y.masked_fill(hole[:, None], torch.nan).unflatten(2, (k, d_out)).transpose(1, 2)
    y = y.flatten(0, 1).to(input.dtype).contiguous(memory_format=memory_format(input))
    return y.view(n, k, c, *size)


def affine_grid(
    theta: torch.Tensor, size: tuple[int, int, int], align_corners: bool
) -> torch.Tensor:
    """The sampling grid (N, K·D_out, H_out, W_out, 3) of theta, the K one below another."""
    z, y, x = (_centred(n, align_corners, theta) for n in size)
    theta = theta.transpose(1, 2)  # (N, 3, K, 4)
    plane = torch.addcmul(theta[..., 3, None], theta[..., 2, None], z)  # (N, 3, K, D_out)
    row = torch.addcmul(plane[..., None], theta[..., 1, None, None], y[None, :])
    grid = torch.addcmul(row[..., None], theta[..., 0, None, None, None], x)
    return grid.flatten(2, 3).permute(0, 2, 3, 4, 1)
