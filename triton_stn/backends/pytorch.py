"""Pure PyTorch: the CPU path and, in float64, the oracle. On images differentiable to any order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from triton_stn.backends.layout import empty_output, is_channels_last, memory_format
from triton_stn.backends.numbers import vector
from triton_stn.backends.pytorch_grid import Rules, flow_grid, in_float
from triton_stn.backends.pytorch_samplers import gradients, sample_planes, sample_rows

# From here on, sums of channels-last pixels beat F.grid_sample on planes (docs/performance.md).
_ROW_CHANNELS = 16
# A piece that is converted afterwards stays in the cache, and its memory is used again.
_PIECE_BYTES = 8 * 2**20


def sample(
    input: torch.Tensor,
    theta: torch.Tensor,
    size: Sequence[int],
    mode: str,
    padding_mode: str,
    align_corners: bool,
    source: str = "affine",
) -> torch.Tensor:
    """Sample input (N, C, H, W) -> (N, K, C, H_out, W_out), or (N, C, D, H, W) likewise.

    ``theta`` is (N, K, 2, 3), or (N, K, 3, 4) of volumes, for the source "affine"; or
    (N, K, H_out, W_out, 2), normalised coordinates for "grid", displacements in pixels for "flow";
    or (N, K, H_out, W_out, 6), `Transform.patches`, for "patch", of the mode "area".
    """
    (n, c), k = input.shape[:2], theta.shape[1]
    if n * k * c == 0:  # in the graph of both: their gradients are zeros, not None
        nothing = input.sum() * 0 + theta.sum().to(input.dtype) * 0
        return input.new_empty(n, k, c, *size) + nothing
    rules = Rules(tuple(size), mode, padding_mode, align_corners)
    if mode == "area":
        return _sample_area(input, theta, rules, source)
    if source == "flow":
        theta = flow_grid(theta, input, align_corners)
    sampled = _Sample.apply if torch.is_grad_enabled() else _sampled
    return sampled(input, theta, rules)


def sample_backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    theta: torch.Tensor,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    needs_input: bool,
    needs_theta: bool,
    source: str = "affine",
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The gradients of input and of theta, affine or a grid; None for one that is not needed."""
    if grad_output.numel() == 0:
        return torch.zeros_like(input), torch.zeros_like(theta)
    rules = Rules(grad_output.shape[3:], mode, padding_mode, align_corners)
    return gradients(grad_output, input, theta, rules, needs_input, needs_theta)


class _Sample(torch.autograd.Function):
    """Keeps input and theta for backward, where autograd alone would keep a grid of its own."""

    @staticmethod
    def forward(ctx, input, theta, rules):
        ctx.save_for_backward(input, theta)
        ctx.rules = rules
        return _sampled(input, theta, rules)

    @staticmethod
    def backward(ctx, grad_output):
        input, theta = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return *gradients(grad_output, input, theta, ctx.rules, *needs), None
        # create_graph=True: F.grid_sample has no second derivative, of images since torch 2.13.
        # Of aliases, for θ may depend on input, and that path is not this Function's.
        aliases = input.view_as(input), theta.view_as(theta)
        sample = sample_rows if input.ndim == 4 else sample_planes
        output = sample(*aliases, ctx.rules, differentiable=True).to(input.dtype)
        wanted = [alias for alias, needed in zip(aliases, needs, strict=True) if needed]
        create = dict(create_graph=True, materialize_grads=True)
        grads = iter(torch.autograd.grad(output, wanted, grad_output, **create))
        return *(next(grads) if needed else None for needed in needs), None


def _sampled(input, theta, rules):
    """The output, by whichever way suits the layout, in pieces where it is converted."""
    (n, c), k = input.shape[:2], theta.shape[1]
    channels_last = is_channels_last(input)
    of_rows = channels_last and c >= _ROW_CHANNELS and input.ndim == 4
    rows = of_rows and rules.mode != "bicubic"
    sample = sample_rows if rows else sample_planes
    if torch.compiler.is_compiling():  # which knows neither values, sizes nor exact strides
        # (and, in torch 2.11, loses the gradient of an output that is copied into)
        output = sample(input, theta, rules).to(input.dtype).flatten(0, 1)
        return output.clone(memory_format=memory_format(input)).unflatten(0, (n, k))
    if k == 1 and rows == channels_last and input.dtype in (torch.float32, torch.float64):
        return sample(input, theta, rules)
    output = empty_output(input, k, *rules.size)
    each = 4 * (input[0].numel() + (c + len(rules.size)) * k * math.prod(rules.size))
    piece = max(_PIECE_BYTES // each, torch.get_num_threads())
    for i in range(0, n, piece):
        part = slice(i, i + piece)
        output[part] = sample(input[part], theta[part], rules)
    return output


def _sample_area(input, theta, rules, source):
    """The mean of bilinear samples over each output pixel's area, those of ``kernels.area``."""
    x = in_float(input)
    theta = theta.to(x.dtype)
    less = int(rules.align_corners)
    spans = vector([n - less for n in (input.shape[3], input.shape[2])], theta)
    # slopes (N, K, H_out, W_out, (x, y), (j, i)), alike for all pixels of an affine map
    if source == "patch":
        centres = theta[..., :2]
        slopes = theta[..., 2:].unflatten(-1, (2, 2)).transpose(-1, -2)
        extents = vector([2, 2], theta)  # a pixel's change, where an affine map's is that of 1
    else:
        centres, slopes = theta[:, :, None, None, :, 2], theta[:, :, None, None, :, :2]
        extents = vector([max(n - less, 1) for n in reversed(rules.size)], theta)
    sides = slopes.detach() * spans[:, None] / extents  # pixels
    count = (sides.square().sum(-2).sqrt() - 0.01).clamp(max=16).ceil()
    count = torch.where(count > 1, count, 1.0)  # (N, K, H_out, W_out, (j, i)); 1 where NaN
    most_j, most_i = count.flatten(0, 3).amax(0).int().tolist()
    bilinear = rules._replace(mode="bilinear")
    total = 0.0
    for index in itertools.product(range(most_j), range(most_i)):
        part = vector(index, theta)
        used = (part < count).all(-1)  # (N, K, H_out, W_out)
        if not used.any():
            continue
        shift = torch.where(used[..., None], (2 * part + 1 - count) / count / extents, 0.0)
        place = centres + (slopes * shift[..., None, :]).sum(-1)
        if source == "affine":
            place = torch.cat((slopes, place[..., None]), -1)[:, :, 0, 0]
        total = total + torch.where(used[:, :, None], sample(x, place, *bilinear), 0.0)
    mean = total / count.prod(-1)[:, :, None]
    return mean.to(input.dtype, memory_format=torch.preserve_format)
