"""The Triton backend of volumes: what `fused` is for images.

The gradient of the input under zeros padding is gathered; then a second kernel scatters those θ
whose gathering window is too large, which only the device knows. Under
``torch.use_deterministic_algorithms`` every θ is gathered, however slowly.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from triton_stn.backends.fused import (
    Launch,
    Layout,
    as_rows,
    check_deterministic,
    geometry,
    gradient_buffer,
    launch,
    layout,
    number_types,
    run_length,
    strides,
    sum_dtype,
    tl_dtype,
)
from triton_stn.backends.layout import empty_gradients, empty_output
from triton_stn.kernels import configs
from triton_stn.kernels.volume_forward import volume_forward
from triton_stn.kernels.volume_gather import volume_gather
from triton_stn.kernels.volume_reduce import volume_reduce
from triton_stn.kernels.volume_scatter import volume_scatter

# More partial sums of one θ than this are first added by PyTorch, which cuts a sum among many
# programs (in a fixed order) where volume_reduce has one.
MANY_SLOTS = 512


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
    """input (N, C, D, H, W), theta (N, K, 3, 4) -> (N, K, C, D_out, H_out, W_out)."""
    output = empty_output(input, theta.shape[1], d_out, h_out, w_out)
    if output.numel() > 0:
        theta = as_rows(theta, "affine")
        layouts = (layout(input), layout(theta), layout(output))
        plan = plan_forward(*layouts, mode, padding_mode, align_corners)
        launch(plan, input.device, X_ptr=input, Theta_ptr=theta, Y_ptr=output)
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

    if needs_input:
        gathers = padding_mode == "zeros"
        if not gathers:
            check_deterministic("affine", padding_mode, mode)
        grad_input = gradient_buffer(input, gathers, rest=True)
    theta = as_rows(theta, "affine")
    layouts = (layout(grad_output), layout(input), layout(theta), layout(grad_input))
    options = (mode, padding_mode, align_corners, needs_input, needs_theta)
    plans = plan_backward(*layouts, *options, torch.are_deterministic_algorithms_enabled())
    n, k = theta.shape[:2]
    partial = input.new_empty((n, k, plans[-1].slots, 12), dtype=sum_dtype(input.dtype))
    for plan in plans:
        launch(
            plan, input.device, X_ptr=input, Theta_ptr=theta, dY_ptr=grad_output, dX_ptr=grad_input,
            P_ptr=partial,
        )  # fmt: skip
    if needs_theta:
        if partial.shape[2] > MANY_SLOTS:
            partial = partial.sum(2, keepdim=True)
        plan = plan_reduce(layout(grad_output), layout(input), partial.shape[2], align_corners)
        launch(plan, input.device, P_ptr=partial, dTheta_ptr=grad_theta)
    return grad_input.to(input.dtype), grad_theta


@lru_cache(maxsize=4096)
def plan_forward(
    input: Layout,
    theta: Layout,
    output: Layout,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> Launch:
    n, k, c, *size = output.shape
    run = run_length(input, output)
    config = configs.volume(n * k, c, tuple(size), run, configs.VOLUME_FORWARD_PASS)
    numbers = call_numbers(input, theta, size) | strides("x", input, "dhw")
    # From one of the N·K output images to the next; an axis of one has no stride to speak of.
    numbers.update(stride_yn=output.strides[1] if k > 1 else output.strides[0])
    names = ("stride_yc", "stride_yd", "stride_yh", "stride_yw")
    numbers.update(zip(names, output.strides[2:], strict=True))
    return Launch(
        kernel=volume_forward,
        grid=config.grid,
        numbers=numbers | geometry(input, size, align_corners),
        constants=config.constants
        | number_types(input, input, output)
        | dict(MODE=mode, PADDING=padding_mode),
    )


@lru_cache(maxsize=4096)
def plan_backward(
    grad_output: Layout,
    input: Layout,
    theta: Layout,
    grad_input: Layout,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    needs_input: bool,
    needs_theta: bool,
    deterministic: bool = False,
) -> tuple[Launch, ...]:
    """A gather and the scatter of what it leaves, or one of them. All share the partial sums."""
    n, c = input.shape[:2]
    k, size = grad_output.shape[1], grad_output.shape[3:]
    gathers = needs_input and padding_mode == "zeros"
    if gathers and needs_theta and k > 1:  # as in `fused.plan_backward`
        call = (grad_output, input, theta, grad_input, mode, padding_mode, align_corners)
        of_input = plan_backward(*call, True, False, deterministic)
        return of_input + plan_backward(*call, False, True, deterministic)
    scatters = not (gathers and deterministic)
    written = grad_input if needs_input else input
    run = run_length(input, grad_output, written)
    over_input = configs.volume(n, c, input.shape[2:], run, configs.VOLUME_GATHER_PASS)
    over_output = configs.volume(n * k, c, tuple(size), run, 1)
    if gathers or not needs_input:  # few programs: most have no work, or share one reduction
        over_output = configs.walk(over_output, n * k)
    gather_slots = over_input.slots if gathers else 0
    slots = gather_slots + (over_output.slots if scatters else 0)
    numbers = call_numbers(input, theta, size) | dict(slots=slots)
    numbers |= (
        strides("x", input, "dhw")
        | strides("g", grad_output, "dhw")
        | strides("dx", written, "dhw")
    )
    numbers |= geometry(input, size, align_corners)
    types = number_types(input, input, grad_output, written) | dict(MODE=mode)
    plans = ()
    if gathers:
        d, h, w = input.shape[2:]
        of_gather = numbers | dict(D=d, H=h, W=w)
        del of_gather["edge"]  # where reflection turns
        plans += (
            Launch(
                kernel=volume_gather,
                grid=over_input.grid,
                numbers=of_gather,
                constants=over_input.constants
                | types
                | dict(EVERY=deterministic, NEEDS_THETA=needs_theta),
                slots=slots if needs_theta else 0,
                maxnreg=configs.volume_registers(c, input.dtype.itemsize, needs_theta),
            ),
        )
    if scatters:
        constants = {name: v for name, v in over_output.constants.items() if name != "PASS"}
        splits = constants["SPLITS"]
        constants |= dict(PADDING=padding_mode, REST=gathers)
        plans += (
            Launch(
                kernel=volume_scatter,
                grid=over_output.grid,
                numbers=numbers
                | dict(first_slot=gather_slots, walkers=over_output.grid[0] // (n * k * splits)),
                constants=constants
                | types
                | dict(NEEDS_INPUT=needs_input, NEEDS_THETA=needs_theta),
                slots=slots if needs_theta else 0,
            ),
        )
    return plans


@lru_cache(maxsize=4096)
def plan_reduce(grad_output: Layout, input: Layout, slots: int, align_corners: bool) -> Launch:
    n, k = grad_output.shape[:2]
    scales = geometry(input, grad_output.shape[3:], align_corners)
    wanted = {name: v for name, v in scales.items() if name.startswith(("ratio", "half"))}
    return Launch(
        kernel=volume_reduce,
        grid=(n * k, 1, 1),
        numbers=dict(slots=slots) | wanted,
        constants=dict(BLOCK=64, DTYPE=tl_dtype(input.dtype)),
    )


def call_numbers(input: Layout, theta: Layout, size: tuple[int, int, int]) -> dict[str, int]:
    d_out, h_out, w_out = size
    numbers = dict(K=theta.shape[1], C=input.shape[1], D_out=d_out, H_out=h_out, W_out=w_out)
    return numbers | dict(stride_tn=theta.strides[0], stride_tk=theta.strides[1])
