"""Memory layouts: which one a tensor has, and an output in the same one."""

from __future__ import annotations

import torch


def is_channels_last(tensor: torch.Tensor) -> bool:
    """Whether the channels of a (N, C, H, W) tensor lie side by side, pixel after pixel."""
    _, c, _, w = tensor.shape
    return c > 1 and tensor.stride(1) == 1 and (w == 1 or tensor.stride(3) >= c)


def memory_format(tensor: torch.Tensor) -> torch.memory_format:
    return torch.channels_last if is_channels_last(tensor) else torch.contiguous_format


def empty_output(input: torch.Tensor, k: int, h_out: int, w_out: int) -> torch.Tensor:
    """An uninitialised (N, K, C, H_out, W_out) in the dtype and memory format of ``input``."""
    n, c = input.shape[:2]
    output = torch.empty(
        (n * k, c, h_out, w_out),
        dtype=input.dtype,
        device=input.device,
        memory_format=memory_format(input),
    )
    return output.view(n, k, c, h_out, w_out)


def empty_gradients(
    input: torch.Tensor, theta: torch.Tensor, needs_input: bool, needs_theta: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Uninitialised gradients of input and theta; a gradient nobody needs has no elements."""
    grad_input = torch.empty_like(input) if needs_input else input.new_empty(0)
    grad_theta = theta.new_empty(theta.shape) if needs_theta else theta.new_empty(0)
    return grad_input, grad_theta
