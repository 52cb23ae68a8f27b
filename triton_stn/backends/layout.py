"""Memory layouts: which one a tensor has, and an output in the same one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Layout(NamedTuple):
    """What of a tensor decides a launch."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


def layout(tensor: torch.Tensor) -> Layout:
    return Layout(tensor.shape, tensor.stride(), tensor.dtype)


def channels_lie_last(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the channels of a (N, C, [D,] H, W) layout lie side by side, pixel after pixel."""
    c, w = shape[1], shape[-1]
    return c > 1 and strides[1] == 1 and (w == 1 or strides[-1] >= c)


def is_channels_last(tensor: torch.Tensor) -> bool:
    return channels_lie_last(tensor.shape, tensor.stride())


def memory_format(tensor: torch.Tensor) -> torch.memory_format:
    if not is_channels_last(tensor):
        return torch.contiguous_format
    return torch.channels_last if tensor.ndim == 4 else torch.channels_last_3d


def empty_output(
    input: torch.Tensor, k: int, *size: int, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """An uninitialised (N, K, C, *size) in the memory format of ``input``, and its dtype or
    another."""
    n, c = input.shape[:2]
    output = torch.empty(
        (n * k, c, *size),
        dtype=input.dtype if dtype is None else dtype,
        device=input.device,
        memory_format=memory_format(input),
    )
    return output.view(n, k, c, *size)


def one_of(planes: torch.Tensor) -> torch.Tensor:
    """(N, C, *size) like any of planes (N, K, C, *size), also where K is 0. Its values are not to
    be read."""
    n, k, *rest = planes.shape
    return planes[:, 0] if k else planes.new_empty(n, *rest)


def empty_gradients(
    input: torch.Tensor, theta: torch.Tensor, needs_input: bool, needs_theta: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Uninitialised gradients of input and theta; a gradient nobody needs has no elements."""
    grad_input = torch.empty_like(input) if needs_input else input.new_empty(0)
    grad_theta = theta.new_empty(theta.shape) if needs_theta else theta.new_empty(0)
    return grad_input, grad_theta
