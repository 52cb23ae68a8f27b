"""Pure PyTorch: the CPU path and, in float64, the oracle. Differentiable to any order."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from triton_stn.backends.layout import empty_output, is_channels_last

# Under this bound a normalised coordinate times any image's width stays far inside int32, so
# F.grid_sample's cast to an integer is defined; on the CPU it faults on others.
_SAFE_COORDINATE = 1024.0
# From this many channels on, summing rows of channels-last pixels beats gathering pixel by pixel.
_ROW_CHANNELS = 16
# F.grid_sample walks all channels of 16 pixels; more planes than these no longer fit in the TLB.
_GROUP_CHANNELS = 32


def affine_sample(
    input: torch.Tensor,
    theta: torch.Tensor,
    h_out: int,
    w_out: int,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> torch.Tensor:
    """Sample input (N, C, H, W) through theta (N, K, 2, 3) -> (N, K, C, H_out, W_out)."""
    n, c = input.shape[:2]
    k = theta.shape[1]
    if n * k * c == 0:
        # An empty sum keeps both arguments in the graph, so their gradients are zeros, not None.
        empty = input.new_empty(n, k, c, h_out, w_out)
        return empty + (input.sum() * 0 + theta.sum().to(input.dtype) * 0)
    return _AffineSample.apply(input, theta, h_out, w_out, mode, padding_mode, align_corners)


class _AffineSample(torch.autograd.Function):
    """Keeps input and theta for backward, where autograd alone would keep a grid."""

    @staticmethod
    def forward(ctx, input, theta, h_out, w_out, mode, padding_mode, align_corners):
        ctx.save_for_backward(input, theta)
        ctx.size, ctx.rules = (h_out, w_out), (mode, padding_mode, align_corners)
        grid, hole = _safe_grid(input, theta, ctx.size, padding_mode, align_corners)
        sample = _sample_rows if _prefers_rows(input) else _sample_planes
        output = sample(_computed(input), grid, *ctx.rules)  # (N, C, K·H_out, W_out)
        if hole is not None:
            output = output.masked_fill(hole[:, None], torch.nan)
        output = output.unflatten(2, (-1, h_out)).transpose(1, 2)  # (N, K, C, H_out, W_out)
        wanted = empty_output(input, theta.shape[1], h_out, w_out)
        if output.dtype == wanted.dtype and output.stride() == wanted.stride():
            return output
        return wanted.copy_(output)

    @staticmethod
    def backward(ctx, grad_output):
        input, theta = ctx.saved_tensors
        needs_input, needs_theta = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # create_graph=True: F.grid_sample has no second derivative before torch 2.13.
            wanted = [t for t, needed in zip((input, theta), ctx.needs_input_grad) if needed]
            output = _sample_by_taps(input, theta, ctx.size, *ctx.rules)
            grads = torch.autograd.grad(
                output, wanted, grad_output, create_graph=True, materialize_grads=True
            )
            grads = list(grads)
            grad_input = grads.pop(0) if needs_input else None
            grad_theta = grads.pop(0) if needs_theta else None
        else:
            grad_input, grad_theta = _gradients(
                grad_output, input, theta, ctx.size, *ctx.rules, needs_input, needs_theta
            )
        return grad_input, grad_theta, None, None, None, None, None


def _gradients(
    grad_output, input, theta, size, mode, padding_mode, align_corners, needs_input, needs_theta
):
    """The gradients of input and of theta, by F.grid_sample's own backward."""
    grid, hole = _safe_grid(input, theta, size, padding_mode, align_corners)
    x = _computed(input)
    grad = grad_output.to(x.dtype).transpose(1, 2).flatten(2, 3)  # (N, C, K·H_out, W_out)
    if hole is not None:
        grad = grad.masked_fill(hole[:, None], 0.0)
    grad_input, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
        grad,
        x,
        grid,
        ("bilinear", "nearest").index(mode),
        ("zeros", "border", "reflection").index(padding_mode),
        align_corners,
        (needs_input, True),
    )
    grad_input = grad_input.to(input.dtype) if needs_input else None
    grad_theta = _theta_gradient(grad_grid, theta, size, align_corners) if needs_theta else None
    return grad_input, grad_theta


def affine_grid(theta: torch.Tensor, h_out: int, w_out: int, align_corners: bool) -> torch.Tensor:
    """The sampling grid (N, K·H_out, W_out, 2) of theta (N, K, 2, 3), the K one below another."""
    n, k = theta.shape[:2]
    x = _centred(w_out, align_corners, theta)  # (W_out,)
    y = _centred(h_out, align_corners, theta)  # (H_out,)
    # x and y are kept in planes of their own: the CPU sampler reads both layouts equally well,
    # and a plane is written by one broadcast multiply-add.
    theta = theta.transpose(1, 2)  # (N, 2, K, 3)
    row = theta[..., 1, None] * y + theta[..., 2, None]  # (N, 2, K, H_out)
    planes = torch.addcmul(row[..., None], theta[..., 0, None, None], x)
    return planes.view(n, 2, k * h_out, w_out).permute(0, 2, 3, 1)


def _theta_gradient(grad_grid, theta, size, align_corners):
    """The adjoint of affine_grid: (N, K·H_out, W_out, 2) -> (N, K, 2, 3)."""
    h_out, w_out = size
    x = _centred(w_out, align_corners, grad_grid)
    y = _centred(h_out, align_corners, grad_grid)
    basis = torch.stack((x, torch.ones_like(x)), -1)  # (W_out, 2)
    basis = torch.kron(basis, torch.eye(2, dtype=x.dtype, device=x.device))  # (2·W_out, 4)
    with torch.autocast(x.device.type, enabled=False):
        rows = grad_grid.reshape(-1, 2 * w_out) @ basis
    rows = rows.view(*theta.shape[:2], h_out, 2, 2)  # (N, K, H_out, (X, 1), (x, y))
    along_x, constant = rows.unbind(-2)
    grad = torch.stack((along_x.sum(2), (constant * y[:, None]).sum(2), constant.sum(2)), -1)
    return grad.to(theta.dtype)


def _centred(size: int, align_corners: bool, like: torch.Tensor) -> torch.Tensor:
    """Normalised coordinates of ``size`` pixels: j' = j - (size-1)/2 over half the extent."""
    extent = max(size - 1, 1) if align_corners else size
    pixels = torch.arange(size, dtype=like.dtype, device=like.device) - (size - 1) / 2
    return pixels * (2 / extent)


def _computed(input: torch.Tensor) -> torch.Tensor:
    """The image in the dtype of coordinates, weights and sums."""
    return input if input.dtype == torch.float64 else input.float()


def _safe_grid(input, theta, size, padding_mode, align_corners):
    """(grid, hole): coordinates that F.grid_sample takes, and where they are not finite.

    ``hole`` (N, K·H_out, W_out) is None where all is known to be well, which costs a look at the
    device; an affine map has its extremes, at most this sum, at the corners.
    """
    theta = theta.to(torch.float64 if input.dtype == torch.float64 else torch.float32)
    grid = affine_grid(theta, *size, align_corners)
    if input.device.type == "cpu" and not torch.compiler.is_compiling():
        if bool((theta.abs().sum(-1) < _SAFE_COORDINATE).all()):
            return grid, None
    finite = grid.isfinite().all(-1)
    grid = torch.where(finite[..., None], grid, 0.0)
    if padding_mode == "reflection":  # has period 4 in normalised coordinates
        grid = torch.where(grid.abs() < _SAFE_COORDINATE, grid, grid.remainder(4.0))
    else:
        grid = grid.clamp(-_SAFE_COORDINATE, _SAFE_COORDINATE)
    return grid, ~finite


def _sample_planes(x, grid, mode, padding_mode, align_corners):
    """By F.grid_sample, which reads channel planes and parallelises over the batch alone."""
    n, c, h, w = x.shape
    rows, w_out = grid.shape[1:3]
    threads = torch.get_num_threads()
    x = x.contiguous()
    # Groups of channels, or for one channel blocks of rows, serve as a larger batch.
    groups = next(
        (g for g in range(1, c) if c % g == 0 and c // g <= _GROUP_CHANNELS and n * g >= threads), c
    )
    if groups > 1:
        x = x.view(n * groups, c // groups, h, w)
        grid = grid[:, None].expand(-1, groups, -1, -1, -1).flatten(0, 1)
    elif n == 1 and c == 1:
        blocks = next(b for b in range(threads, 0, -1) if rows % b == 0)
        x = x.expand(blocks, -1, -1, -1)
        grid = grid.view(blocks, rows // blocks, w_out, 2)
    output = F.grid_sample(x, grid, mode, padding_mode, align_corners)
    return output.view(n, c, rows, w_out)


def _prefers_rows(input: torch.Tensor) -> bool:
    return is_channels_last(input) and input.shape[1] >= _ROW_CHANNELS


def _sample_rows(x, grid, mode, padding_mode, align_corners):
    """By weighted sums of channels-last pixels, C numbers at a time."""
    n, c, h, w = x.shape
    index, weight = _taps(grid, h, w, mode, padding_mode, align_corners)  # (N, P, T)
    index = index + torch.arange(n, device=x.device)[:, None, None] * (h * w)
    read = weight != 0  # a tap with zero weight is not read
    ends = read.sum(-1).flatten().cumsum(0)
    output = F.embedding_bag(
        index[read],
        x.permute(0, 2, 3, 1).reshape(-1, c),
        F.pad(ends, (1, 0)),
        mode="sum",
        per_sample_weights=weight[read],
        include_last_offset=True,
    )
    return output.view(n, *grid.shape[1:3], c).permute(0, 3, 1, 2)


def _sample_by_taps(input, theta, size, mode, padding_mode, align_corners):
    """By operations that are all differentiable to any order."""
    n, c, h, w = input.shape
    k = theta.shape[1]
    grid, hole = _safe_grid(input, theta, size, padding_mode, align_corners)
    index, weight = _taps(grid, h, w, mode, padding_mode, align_corners)  # (N, P, T)
    pixels = _computed(input).flatten(2)
    taps = pixels.gather(2, index.flatten(1)[:, None].expand(-1, c, -1))
    taps = taps.view(n, c, *index.shape[1:])  # (N, C, P, T)
    weight = weight[:, None]
    output = torch.where(weight != 0, taps * weight, 0.0).sum(-1)
    if hole is not None:
        output = output.masked_fill(hole.flatten(1)[:, None], torch.nan)
    return output.view(n, c, k, *size).transpose(1, 2).to(input.dtype)


def _taps(grid, h, w, mode, padding_mode, align_corners):
    """What each output reads: pixel numbers v·W + u and weights, both (N, P, taps)."""
    axes = []
    for coordinate, size in zip(grid.flatten(1, 2).unbind(-1), (w, h)):
        extent = size - 1 if align_corners else size
        x = coordinate * (extent / 2) + (size - 1) / 2
        if padding_mode == "reflection":
            x = _reflect(x, size, align_corners)
        if padding_mode != "zeros":  # PyTorch's derivative is zero at and beyond the edge
            x = torch.where((x > 0) & (x < size - 1), x, x.detach().clamp(0, size - 1))
        left = (x.detach().round() if mode == "nearest" else x.detach().floor())[..., None]
        if mode == "nearest":
            pixel, weight = left, torch.ones_like(left)
        else:
            pixel = torch.cat((left, left + 1), -1)
            weight = torch.stack((1 - (x - left[..., 0]), x - left[..., 0]), -1)
        inside = (pixel >= 0) & (pixel < size)
        axes.append((pixel.clamp(0, size - 1).long(), torch.where(inside, weight, 0.0)))
    (u, weight_x), (v, weight_y) = axes
    index = v[..., :, None] * w + u[..., None, :]
    return index.flatten(2), (weight_y[..., :, None] * weight_x[..., None, :]).flatten(2)


def _reflect(x, size, align_corners):
    """Reflect at the centres of the edge pixels (align_corners) or at their outer edges."""
    low = 0.0 if align_corners else -0.5
    span = size - 1 if align_corners else size
    if span == 0:
        return x * 0.0
    distance = (x - low).abs()
    flips = (distance.detach() / span).floor()
    rest = distance - flips * span
    return torch.where(flips % 2 == 0, rest, span - rest) + low
