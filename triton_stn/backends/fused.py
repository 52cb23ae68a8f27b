"""The Triton backend: allocate, find the plan, launch. Images and volumes alike."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch

from triton_stn.backends.launch import launch
from triton_stn.backends.layout import empty_output, layout
from triton_stn.backends.plans import (
    FIELDS,
    Backward,
    Sampling,
    Wanted,
    plan_backward,
    plan_forward,
)
from triton_stn.kernels.sums import ZERO


def sample(
    input: torch.Tensor,
    theta: torch.Tensor,
    size: Sequence[int],
    mode: str,
    padding_mode: str,
    align_corners: bool,
    source: str = "affine",
    fill: float | None = None,
    fills: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    finish: torch.Tensor | None = None,
) -> torch.Tensor:
    """input (N, C, [D,] H, W), theta (N, K, *) -> (N, K, C, *size).

    Outside lies ``fill``, or ``fills``, a tensor () or (C,); else zeros. Of a uint8 input
    ``dtype`` is that of the output, and ``finish``, (2,) or (2, C), what scales and shifts it.
    """
    output = empty_output(input, theta.shape[1], *size, dtype=dtype)
    if output.numel() > 0:
        theta, shown = _in_rows(_as_rows(theta, source), output, source)
        outside = _outside(fill, fills)
        strides = _finish_strides(finish)
        sampling = Sampling(mode, padding_mode, align_corners, source, outside, strides)
        found = plan_forward(layout(input), layout(theta), layout(shown), sampling)
        tensors = dict(X=input, THETA=theta, Y=shown, FILL=input if fills is None else fills)
        tensors["FINISH"] = finish
        launch(found, input.device, tensors)
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
    fill: float | None = None,
    fills: torch.Tensor | None = None,
    finish: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of input and theta; one that is not needed comes back without elements."""
    nearest = mode == "nearest"  # piecewise constant in theta
    some = grad_output.numel() > 0
    grad_input = grad_theta = None
    if some and (needs_input or (needs_theta and not nearest)):
        outside, strides = _outside(fill, fills), _finish_strides(finish)
        sampling = Sampling(mode, padding_mode, align_corners, source, outside, strides)
        needs = needs_input, needs_theta and not nearest
        wanted = Wanted(*needs, torch.are_deterministic_algorithms_enabled())
        rows, grad = _in_rows(_as_rows(theta, source), grad_output, source)
        found = plan_backward(layout(grad), layout(input), layout(rows), sampling, wanted)
        grad_input, grad_theta = launch_backward(found, grad, input, rows, *needs, fills, finish)
        grad_theta = None if grad_theta is None else grad_theta.view(theta.shape)
    if grad_input is None:
        grad_input = torch.zeros_like(input) if needs_input else input.new_empty(0)
    if grad_theta is None:
        grad_theta = theta.new_zeros(theta.shape if needs_theta else 0)
    return grad_input, grad_theta


def launch_backward(
    found: Backward,
    grad_output: torch.Tensor,
    input: torch.Tensor,
    theta: torch.Tensor,
    needs_input: bool,
    needs_theta: bool,
    fills: torch.Tensor | None = None,
    finish: torch.Tensor | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Launch what was planned, for the gradients; None where one is not needed."""
    if found.adds_floats:
        check_deterministic()
    grad_theta = None
    if needs_theta:
        grad_theta = torch.empty_like(theta, memory_format=torch.contiguous_format)
    partial = grad_theta
    if found.partial:
        partial = input.new_empty(found.partial, dtype=found.dtype)
    grad_input = sums = None
    if needs_input:
        empty = torch.empty_like if found.writes_all else torch.zeros_like
        grad_input = sums = empty(input)
        if found.into != "dX":
            sums = input_sums(found, grad_input)
    tensors = {
        "X": input, "THETA": theta, "dY": grad_output,
        "FILL": input if fills is None else fills, "FINISH": finish,
        "dX": grad_input, "SUMS": sums, "dTHETA": grad_theta, "P": partial,
    }  # fmt: skip
    launch(found.launches, input.device, tensors)
    if found.of_spline is not None:
        tensors["dG"] = partial
        tensors["P"] = input.new_empty(found.coefficients, dtype=found.dtype)
        launch(found.of_spline, input.device, tensors)
    return grad_input, grad_theta


def input_sums(found: Backward, grad_input: torch.Tensor) -> torch.Tensor:
    """Where else than in grad_input it is added up, see `kernels/sums.py`: zeros where nothing is
    gathered."""
    words = grad_input.numel()
    if found.into == "float":
        new = grad_input.new_empty if found.gathers else grad_input.new_zeros
        return new(words, dtype=torch.float32)
    images = 2 * grad_input.shape[0]
    sums = grad_input.new_empty(words + images, dtype=torch.int64)
    if not found.gathers:
        sums.fill_(ZERO.value)
    sums[words:].zero_()
    return sums


def check_deterministic() -> None:
    """Atomics add floats in no fixed order: refuse, or warn, as PyTorch's own operators do."""
    if not torch.are_deterministic_algorithms_enabled():
        return
    message = (
        "the gradient of a float64 input does not have a deterministic implementation here, but "
        "you set torch.use_deterministic_algorithms(True); a float32 or half input has one, and "
        "so has float64 of an affine map with padding_mode='zeros', bilinear or nearest"
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)


def _outside(fill: float | None, fills: torch.Tensor | None):
    """What lies outside, as `Sampling` has it."""
    if fills is not None:
        return fills.dtype, fills.stride(0) if fills.ndim == 1 and len(fills) > 1 else 0
    return math.nan if fill != fill else fill  # one NaN, which is equal to itself in a key


def _finish_strides(finish: torch.Tensor | None) -> tuple[int, int] | None:
    """As `Sampling` has them: of channels, and from the gains to the biases."""
    if finish is None:
        return None
    return finish.stride(1) if finish.ndim == 2 and finish.shape[1] > 1 else 0, finish.stride(0)


def _as_rows(theta: torch.Tensor, source: str) -> torch.Tensor:
    """theta with the numbers of one map side by side; the batch may stay expanded."""
    if source in FIELDS or theta.stride()[2:] == (theta.shape[3], 1):
        return theta
    return theta.contiguous()


def _in_rows(
    theta: torch.Tensor, image: torch.Tensor, source: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """A grid's points one below another, and the numbers there, as a row, which fills a tile.

    A point says where it is read, so where it lies does not matter. The axes of one come first.
    """
    size = image.shape[3:]
    if source != "grid" or size[-1] != 1:
        return theta, image
    order = sorted(range(len(size)), key=lambda axis: size[axis] != 1)
    theta = theta.permute(0, 1, *(2 + axis for axis in order), -1)
    return theta, image.permute(0, 1, 2, *(3 + axis for axis in order))
