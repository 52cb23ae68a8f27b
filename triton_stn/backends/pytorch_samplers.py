"""The PyTorch path's ways to sample: F.grid_sample on planes, and sums of channels-last pixels.

By its operators, ``torch.ops.aten``: `triton_stn.patch` replaces the function.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from triton_stn.backends import is_plain, maps, taps
from triton_stn.backends.pytorch_grid import in_float, safe_grid, theta_gradient

# F.grid_sample goes through the planes of a tensor point by point: with more planes at a time than
# this, of all tensors, their rows push one another out of the first-level cache.
_PLANES = 32
# Whose places are their numbers in PyTorch's operators.
PYTORCH_MODES = ("bilinear", "nearest", "bicubic")
PYTORCH_PADDING_MODES = ("zeros", "border", "reflection")


def sample_planes(input, theta, rules):
    """By F.grid_sample, which reads plane by plane and parallelises over the batch alone."""
    n, c, *extent = input.shape
    x = in_float(input)
    grid, hole = safe_grid(theta, x, rules)
    canvas = grid.shape[1:-1]
    groups = _channel_groups(n, c, _PLANES // 2)
    compiling = torch.compiler.is_compiling()  # to whom sizes compared are guards
    if compiling or groups > 1 or math.prod(canvas) >= math.prod(extent):
        x = x.contiguous()  # reading planes repays cutting them out
    if n * c == 1:  # rows serve as the batch, in equal blocks that occupy the threads
        threads = 1 if compiling else torch.get_num_threads()
        blocks = next(b for b in range(threads, 0, -1) if canvas[0] % b == 0)
        x = x.expand(blocks, *x.shape[1:])
        grid = grid.reshape(blocks, canvas[0] // blocks, *grid.shape[2:])
    elif groups > 1:
        x = x.view(n * groups, c // groups, *extent)
        grid = _for_each_group(grid, groups)
    y = torch.ops.aten.grid_sampler(x, grid, *_in_numbers(rules)).view(n, c, *canvas)
    return with_holes(y, hole, theta.shape[1])


def _in_numbers(rules) -> tuple[int, int, bool]:
    """(mode, padding_mode, align_corners) as PyTorch's operators take them."""
    mode = PYTORCH_MODES.index(rules.mode)
    return mode, PYTORCH_PADDING_MODES.index(rules.padding_mode), rules.align_corners


def sample_rows(input, theta, rules):
    """By weighted sums of channels-last pixels, C numbers at a time."""
    n, c, h, w = input.shape
    x = in_float(input)
    grid, hole = safe_grid(theta, x, rules)
    index, weight = _pixels_of(grid, h, w, rules)
    index += torch.arange(0, n * h * w, h * w, device=x.device)[:, None, None, None, None]
    index = index.reshape(-1, index.shape[-1] ** 2)
    weight = weight.reshape(index.shape)
    pixels = x.permute(0, 2, 3, 1).reshape(-1, c)
    y = F.embedding_bag(index, pixels, mode="sum", per_sample_weights=weight)
    unread = (weight == 0).all(-1)  # such a point names pixels, and may meet an inf there
    if not is_plain(y) or unread.any():
        y = torch.where(unread[:, None], 0.0, y)
    y = y.view(*grid.shape[:3], c).permute(0, 3, 1, 2)
    return with_holes(y, hole, theta.shape[1])


def with_holes(y, hole, k):
    """Restore the NaNs; (N, C, K·H_out, W_out) -> (N, K, C, H_out, W_out), or of volumes."""
    if hole is not None:
        y = torch.where(hole[:, None], torch.nan, y)  # keeps the layout, which masked_fill does not
    n, c, rows, *rest = y.shape
    return y.view(n, c, k, rows // k, *rest).transpose(1, 2)


def _pixels_of(grid, h, w, rules):
    """The pixels that each point of a grid (..., 2) reads: (index in an image, weight).

    Both (..., taps along y, taps along x). A tap whose weight is 0 is the other one: no inf next
    door leaks in.
    """
    columns, rows = (taps.axis_taps(grid[..., axis], n, rules, 0) for axis, n in enumerate((w, h)))
    indices, weights = [], []
    for along in (rows, columns):
        index, weight = (torch.stack(each, -1) for each in zip(*along, strict=True))
        indices.append(torch.where(weight != 0, index, index.flip(-1)))
        weights.append(weight)
    index = torch.add(indices[1][..., None, :], indices[0][..., :, None], alpha=w)
    return index, weights[1][..., None, :] * weights[0][..., :, None]


def gradients(grad_output, input, theta, rules, needs_input, needs_theta):
    """The gradients of input and of theta or the grid, by F.grid_sample's own backward."""
    n, c, *extent = input.shape
    x = in_float(input)
    if rules.mode == "bicubic" and len(extent) == 3:
        return tricubic_gradients(grad_output, input, theta, rules)
    grid, hole = safe_grid(theta, x, rules, needs_theta)
    grad = grad_output.to(x.dtype).transpose(1, 2).flatten(2, 3)  # (N, C, K·H_out, W_out)
    if hole is not None:
        grad = grad.masked_fill(hole[:, None], 0.0)
    groups = _channel_groups(n, c, _PLANES // 4)  # grad_input and grad_output too
    if groups > 1:
        x = x.reshape(n * groups, c // groups, *extent)
        grad = grad.reshape(n * groups, c // groups, *grad.shape[2:])
        grid = _for_each_group(grid, groups)
    of_images = torch.ops.aten.grid_sampler_2d_backward
    backward = of_images if len(extent) == 2 else torch.ops.aten.grid_sampler_3d_backward
    grad_input, grad_grid = backward(grad, x, grid, *_in_numbers(rules), (needs_input, True))
    grad_input = grad_input.view(input.shape).to(input.dtype) if needs_input else None
    if needs_input and torch.compiler.is_compiling():
        # A compiled `splat` returns it; in torch 2.11 what is written in place has no gradient.
        grad_input = grad_input.clone()
    if not needs_theta:
        return grad_input, None
    if groups > 1:
        grad_grid = grad_grid.view(n, groups, *grad_grid.shape[1:]).sum(1)
    if theta.ndim > 4:
        return grad_input, grad_grid.view(theta.shape).to(theta.dtype)
    return grad_input, theta_gradient(grad_grid, theta, rules)


def tricubic(input, theta, rules):
    """Volumes, by sums over taps: F.grid_sample has no such mode."""
    at, weights = _map_of(theta, input, rules)
    grid = at.grid(theta.to(in_float(input).dtype))
    return taps.sample(input, grid, weights)


def tricubic_gradients(grad_output, input, theta, rules):
    """The gradients of input and of theta or the grid."""
    at, weights = _map_of(theta, input, rules)
    grid = at.grid(theta.to(in_float(input).dtype))
    grad_input = taps.splat(grad_output, grid, weights).to(input.dtype)
    grad_theta = at.pull(theta, taps.slopes(grad_output, input, grid, weights))
    return grad_input, grad_theta.to(theta.dtype)


def _map_of(theta, input, rules):
    """(the map of theta, an affine one or a grid; the weights to read at its points)."""
    source, extent = "grid" if theta.ndim > 4 else "affine", input.shape[2:]
    return maps.map_of(source, rules, extent), taps.Weights.of(rules, extent)


def _channel_groups(n: int, c: int, most: int) -> int:
    """Into how many equal groups of at most ``most`` to cut the channels of each image, which then
    serve as the batch: the planes of one stay in the cache, and one image occupies all threads."""
    if torch.compiler.is_compiling():  # which does not trace the number of threads
        return 1
    if n == 1:
        most, least = min(most, c // torch.get_num_threads()), 1
    else:
        least = most // 2  # smaller groups would not repay the copies of the grid
    return c // next((size for size in range(most, least - 1, -1) if c % size == 0), c)


def _for_each_group(grid: torch.Tensor, groups: int) -> torch.Tensor:
    """(N, *, ndim) -> (N·groups, *, ndim), without a copy where N = 1."""
    planes = grid.movedim(-1, 1)
    planes = planes[:, None].expand(-1, groups, *planes.shape[1:])
    return planes.flatten(0, 1).movedim(1, -1)
