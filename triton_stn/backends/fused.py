"""The Triton backend: allocate, find the plan, launch. Images and volumes alike."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from triton_stn.backends.launch import launch
from triton_stn.backends.layout import empty_gradients, empty_output, layout
from triton_stn.backends.plans import (
    FIELDS,
    Backward,
    Sampling,
    Wanted,
    grad_input_dtype,
    grad_input_layout,
    plan_backward,
    plan_forward,
)
from triton_stn.kernels.spline import spline_gradient


def sample(
    input: torch.Tensor,
    theta: torch.Tensor,
    size: Sequence[int],
    mode: str,
    padding_mode: str,
    align_corners: bool,
    source: str = "affine",
) -> torch.Tensor:
    """input (N, C, [D,] H, W), theta (N, K, *) -> (N, K, C, *size)."""
    output = empty_output(input, theta.shape[1], *size)
    if output.numel() > 0:
        theta = _as_rows(theta, source)
        sampling = Sampling(mode, padding_mode, align_corners, source)
        plan = plan_forward(layout(input), layout(theta), layout(output), sampling)
        launch(plan, input.device, X=input, THETA=theta, Y=output)
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
    """The gradients of input and theta; one that is not needed comes back without elements."""
    grad_input, grad_theta = empty_gradients(input, theta, False, needs_theta)
    if grad_output.numel() == 0:
        grad_input = torch.zeros_like(input) if needs_input else grad_input
        return grad_input, grad_theta.zero_()
    if mode == "nearest":
        grad_theta.zero_()  # piecewise constant in theta
        needs_theta = False
    if not needs_input and not needs_theta:
        return grad_input, grad_theta

    sampling = Sampling(mode, padding_mode, align_corners, source)
    deterministic = torch.are_deterministic_algorithms_enabled()
    theta = _as_rows(theta, source)
    found = plan_backward(
        layout(grad_output),
        layout(input),
        layout(theta),
        grad_input_layout(layout(input), sampling, deterministic),
        sampling,
        Wanted(needs_input, needs_theta, deterministic),
    )
    buffer = gradient_buffer(input, sampling, deterministic) if needs_input else None
    of_input, _ = launch_backward(found, grad_output, input, theta, buffer, grad_theta)
    return grad_input if of_input is None else of_input, grad_theta


def gradient_buffer(input: torch.Tensor, sampling: Sampling, deterministic: bool) -> torch.Tensor:
    """Where a backward writes grad_input; zeros where nothing is gathered."""
    dtype = grad_input_dtype(input.dtype, input.ndim - 2, sampling, deterministic)
    if sampling.gathers:
        return torch.empty_like(input, dtype=dtype)
    check_deterministic(sampling)
    return torch.zeros_like(input, dtype=dtype)


def launch_backward(
    found: Backward,
    grad_output: torch.Tensor,
    input: torch.Tensor,
    theta: torch.Tensor,
    grad_input: torch.Tensor | None,
    grad_theta: torch.Tensor | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Launch what was planned: grad_input in the dtype of ``input``, and grad_theta."""
    partial = grad_theta
    if found.partial:
        partial = input.new_empty(found.partial, dtype=found.dtype)
    tensors = dict(X=input, THETA=theta, dY=grad_output, dX=grad_input, P=partial)
    tensors["dTHETA"] = grad_theta
    for plan in found.plans:
        if plan.kernel is spline_gradient:  # of the gradient of each pixel's coordinates
            tensors["dG"] = partial
            tensors["P"] = input.new_empty(found.coefficients, dtype=found.dtype)
        launch(plan, input.device, **tensors)
    if grad_input is not None and grad_input.dtype != input.dtype:
        grad_input = grad_input.to(input.dtype)
    return grad_input, grad_theta


def check_deterministic(sampling: Sampling) -> None:
    """Atomics add in no fixed order: refuse, or warn, as PyTorch's own operators do."""
    if not torch.are_deterministic_algorithms_enabled():
        return
    cause = (
        f"{sampling.source} coordinates, mode={sampling.mode!r} and "
        f"padding_mode={sampling.padding_mode!r}"
    )
    message = (
        f"the gradient of the input with {cause} does not have a deterministic implementation, but "
        "you set torch.use_deterministic_algorithms(True); affine and projective transforms with "
        "padding_mode='zeros' have one unless bicubic or antialiased"
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)


def _as_rows(theta: torch.Tensor, source: str) -> torch.Tensor:
    """theta with the numbers of one map side by side; the batch may stay expanded."""
    if source in FIELDS or theta.stride()[2:] == (theta.shape[3], 1):
        return theta
    return theta.contiguous()
