"""Pure PyTorch: the CPU path and, in float64, the oracle."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from triton_stn.backends.layout import empty_output, is_channels_last, memory_format
from triton_stn.backends.pytorch_grid import Rules
from triton_stn.backends.pytorch_samplers import gradients, sample_planes, sample_rows, tricubic

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
    """Sample input (N, C, *) -> (N, K, C, *size), of images and of volumes.

    ``theta`` is (N, K, 2, 3), or (N, K, 3, 4) of volumes, of the source "affine", or a "grid",
    (N, K, *size, ndim). Its derivatives are `autograd`'s.
    """
    (n, c), k = input.shape[:2], theta.shape[1]
    if n * k * c * math.prod(size) == 0:
        return input.new_empty(n, k, c, *size)
    rules = Rules(tuple(size), mode, padding_mode, align_corners)
    channels_last = is_channels_last(input)
    of_rows = channels_last and c >= _ROW_CHANNELS and input.ndim == 4
    rows = of_rows and rules.mode != "bicubic"
    sampler = sample_rows if rows else sample_planes
    if rules.mode == "bicubic" and input.ndim == 5:
        sampler = tricubic
    if torch.compiler.is_compiling():  # which knows neither values, sizes nor exact strides
        # (and, in torch 2.11, loses the gradient of an output that is copied into)
        output = sampler(input, theta, rules).to(input.dtype).flatten(0, 1)
        return output.clone(memory_format=memory_format(input)).unflatten(0, (n, k))
    if k == 1 and rows == channels_last and input.dtype in (torch.float32, torch.float64):
        return sampler(input, theta, rules)
    output = empty_output(input, k, *rules.size)
    each = 4 * (input[0].numel() + (c + len(rules.size)) * k * math.prod(rules.size))
    piece = max(_PIECE_BYTES // each, torch.get_num_threads())
    for i in range(0, n, piece):
        part = slice(i, i + piece)
        output[part] = sampler(input[part], theta[part], rules)
    return output


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
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of input and of theta; without elements where not needed."""
    if grad_output.numel() == 0:
        made = torch.zeros_like(input), torch.zeros_like(theta)
    else:
        rules = Rules(grad_output.shape[3:], mode, padding_mode, align_corners)
        made = gradients(grad_output, input, theta, rules, needs_input, needs_theta)
    return (
        made[0] if needs_input else input.new_empty(0),
        made[1] if needs_theta else theta.new_empty(0),
    )
