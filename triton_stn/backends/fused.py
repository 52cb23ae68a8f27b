"""The Triton backend: allocate, choose the configuration, launch under the tensor's device.

Each ``plan_*`` function describes its launch as data, so the static kernel report compiles exactly
what runs.
"""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from triton_stn.backends.layout import empty_gradients, empty_output, is_channels_last
from triton_stn.kernels import configs
from triton_stn.kernels.forward import forward
from triton_stn.kernels.gather import gather
from triton_stn.kernels.reduce import reduce
from triton_stn.kernels.scatter import scatter

INT32_MAX = 2**31 - 1
# Fewer channels than this in a channels-last image fill no 16-byte run worth a kernel of its own:
# the NCHW kernel reads them from the same sectors.
MIN_RUN = 8


@dataclass(frozen=True)
class Launch:
    """One kernel launch, as data."""

    kernel: triton.JITFunction
    grid: tuple[int, int, int]
    args: dict[str, Any]
    constants: dict[str, Any]
    num_warps: int = configs.WARPS


def launch(launch: Launch, device: torch.device) -> None:
    """Run a launch on ``device``, whichever device is current."""
    run = launch.kernel[launch.grid]
    if device.type == "cpu":  # the interpreter
        run(**launch.args, **launch.constants, num_warps=launch.num_warps)
        return
    with torch.get_device_module(device).device(device):
        run(**launch.args, **launch.constants, num_warps=launch.num_warps)


def affine_sample(
    input: torch.Tensor,
    theta: torch.Tensor,
    h_out: int,
    w_out: int,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> torch.Tensor:
    """input (N, C, H, W), theta (N, K, 2, 3) -> (N, K, C, H_out, W_out)."""
    output = empty_output(input, theta.shape[1], h_out, w_out)
    if output.numel() > 0:
        plan = plan_forward(input, theta, output, mode, padding_mode, align_corners)
        launch(plan, input.device)
    return output


def affine_sample_backward(
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
    grad_input, grad_theta = empty_gradients(input, theta, needs_input, needs_theta)
    if grad_output.numel() == 0:
        return grad_input.zero_(), grad_theta.zero_()
    if mode == "nearest":
        grad_theta.zero_()  # piecewise constant in theta
        needs_theta = False
    options = (grad_output, input, theta, mode, padding_mode, align_corners)
    if needs_input and padding_mode == "zeros":
        backward, partial = plan_gather(grad_input, *options, needs_theta)
        launch(backward, input.device)
    elif needs_input or needs_theta:
        sums = grad_input
        if needs_input:
            check_deterministic(padding_mode)
            sums = torch.zeros_like(input, dtype=sum_dtype(input))
        backward, partial = plan_scatter(sums, *options, needs_input, needs_theta)
        launch(backward, input.device)
        if needs_input:
            grad_input = sums.to(input.dtype)
    if needs_theta:
        launch(plan_reduce(partial, grad_theta, input, grad_output, align_corners), input.device)
    return grad_input, grad_theta


def check_deterministic(padding_mode: str) -> None:
    """Atomics add in no fixed order: refuse, or warn, as PyTorch's own operators do."""
    if not torch.are_deterministic_algorithms_enabled():
        return
    message = (
        f"the gradient of spatial_transform's input with padding_mode={padding_mode!r} does not "
        "have a deterministic implementation, but you set torch.use_deterministic_algorithms(True);"
        " padding_mode='zeros' has one"
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)


def plan_forward(input, theta, output, mode, padding_mode, align_corners) -> Launch:
    n, c = input.shape[:2]
    k, h_out, w_out = output.shape[1], *output.shape[3:]
    runs = reads_runs(input, output)
    config = configs.forward(n * k, c, h_out, w_out, runs)
    args = dict(X_ptr=input, Theta_ptr=as_rows(theta), Y_ptr=output)
    args.update(K=k, C=c, H_out=h_out, W_out=w_out)
    args.update(strides("x", input), stride_yn=output.stride(1) if k > 1 else output.stride(0))
    args.update(zip(("stride_yc", "stride_yh", "stride_yw"), output.stride()[2:], strict=True))
    return Launch(
        kernel=forward,
        grid=config.grid,
        args=args | theta_strides(args["Theta_ptr"]) | geometry(input, h_out, w_out, align_corners),
        constants=config.constants
        | number_types(input, input, output)
        | dict(MODE=mode, PADDING=padding_mode),
    )


def plan_gather(
    grad_input, grad_output, input, theta, mode, padding_mode, align_corners, needs_theta
) -> tuple[Launch, torch.Tensor]:
    """The launch, and the partial sums (N·K, slots, 6) that it leaves for `plan_reduce`."""
    n, c, h, w = input.shape
    k, h_out, w_out = grad_output.shape[1], *grad_output.shape[3:]
    runs = reads_runs(input, grad_output, grad_input)
    config = configs.gather(n, c, h, w, runs, one_theta=k == 1)
    partial = partial_sums(input, n * k, config, needs_theta)
    args = dict(X_ptr=input, Theta_ptr=as_rows(theta), dY_ptr=grad_output, dX_ptr=grad_input)
    args.update(P_ptr=partial, K=k, C=c, H=h, W=w, H_out=h_out, W_out=w_out, slots=config.slots)
    args.update(strides("x", input) | strides("g", grad_output) | strides("dx", grad_input))
    numbers = geometry(input, h_out, w_out, align_corners)
    del numbers["edge"]  # where reflection turns
    plan = Launch(
        kernel=gather,
        grid=config.grid,
        args=args | theta_strides(args["Theta_ptr"]) | numbers,
        constants=config.constants
        | number_types(input, input, grad_output, grad_input)
        | dict(MODE=mode, NEEDS_THETA=needs_theta, WINDOW="any"),
    )
    return plan, partial


def plan_scatter(
    grad_input,
    grad_output,
    input,
    theta,
    mode,
    padding_mode,
    align_corners,
    needs_input,
    needs_theta,
) -> tuple[Launch, torch.Tensor]:
    """The launch, and the partial sums (N·K, slots, 6) that it leaves for `plan_reduce`."""
    n, c = input.shape[:2]
    k, h_out, w_out = grad_output.shape[1], *grad_output.shape[3:]
    written = (grad_input,) if needs_input else ()
    runs = reads_runs(input, grad_output, *written)
    config = configs.scatter(n * k, c, h_out, w_out, runs)
    partial = partial_sums(input, n * k, config, needs_theta)
    args = dict(X_ptr=input, Theta_ptr=as_rows(theta), dY_ptr=grad_output, dX_ptr=grad_input)
    args.update(P_ptr=partial, K=k, C=c, H_out=h_out, W_out=w_out, slots=config.slots)
    args.update(strides("x", input) | strides("g", grad_output))
    args.update(strides("dx", grad_input if needs_input else input))
    plan = Launch(
        kernel=scatter,
        grid=config.grid,
        args=args | theta_strides(args["Theta_ptr"]) | geometry(input, h_out, w_out, align_corners),
        constants=config.constants
        | number_types(input, input, grad_output, *written)
        | dict(MODE=mode, PADDING=padding_mode, NEEDS_INPUT=needs_input, NEEDS_THETA=needs_theta),
    )
    return plan, partial


def plan_reduce(partial, grad_theta, input, grad_output, align_corners) -> Launch:
    numbers = geometry(input, *grad_output.shape[3:], align_corners)
    names = ("ratio_xx", "ratio_xy", "ratio_yx", "ratio_yy", "half_w", "half_h")
    rows, slots = partial.shape[:2]
    return Launch(
        kernel=reduce,
        grid=(rows, 1, 1),
        args=dict(P_ptr=partial, dTheta_ptr=grad_theta, slots=slots)
        | {name: numbers[name] for name in names},
        constants=dict(BLOCK=64, DTYPE=tl_dtype(partial.dtype)),
    )


def geometry(input: torch.Tensor, h_out: int, w_out: int, align_corners: bool) -> dict[str, Any]:
    """The numbers that take a normalised theta to centred pixels, for either align_corners."""
    h, w = input.shape[2:]
    less = 1 if align_corners else 0
    span_w, span_h = w - less, h - less  # of the image, from -1 to 1
    extent_w, extent_h = max(w_out - less, 1), max(h_out - less, 1)
    exact = float if sum_dtype(input) == torch.float32 else float64_bits
    return dict(
        ratio_xx=exact(span_w / extent_w),
        ratio_xy=exact(span_w / extent_h),
        ratio_yx=exact(span_h / extent_w),
        ratio_yy=exact(span_h / extent_h),
        half_w=span_w / 2,
        half_h=span_h / 2,
        last_w=float(w - 1),
        last_h=float(h - 1),
        centre_w=(w_out - 1) / 2,
        centre_h=(h_out - 1) / 2,
        edge=0.0 if align_corners else -0.5,
    )


def float64_bits(value: float) -> int:
    """A float argument reaches a kernel as float32; as bits, a float64 reaches it whole.

    The bits of 0 would arrive as an int32; an image one pixel wide, whose ratio it is, can take
    any factor small enough instead.
    """
    return struct.unpack("q", struct.pack("d", value or 2.0**-500))[0]


def strides(name: str, tensor: torch.Tensor) -> dict[str, int]:
    """stride_xn, stride_xc, ... of (N, C, H, W), or stride_gn, stride_gk, ... of (N, K, C, H, W)."""
    axes = "nkchw" if tensor.ndim == 5 else "nchw"
    return {f"stride_{name}{a}": s for a, s in zip(axes, tensor.stride(), strict=True)}


def as_rows(theta: torch.Tensor) -> torch.Tensor:
    """theta with its six numbers side by side; the batch may stay expanded."""
    return theta if theta.stride()[2:] == (3, 1) else theta.contiguous()


def theta_strides(theta: torch.Tensor) -> dict[str, int]:
    return dict(stride_tn=theta.stride(0), stride_tk=theta.stride(1))


def reads_runs(input: torch.Tensor, *others: torch.Tensor) -> bool:
    """Whether channels-last runs are worth reading: enough channels, side by side."""
    return (
        is_channels_last(input)
        and input.shape[1] >= MIN_RUN
        and all(configs.RUN * other.stride(-3) <= INT32_MAX for other in others)
    )


def sum_dtype(input: torch.Tensor) -> torch.dtype:
    """The dtype of coordinates, weights and sums."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def tl_dtype(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


def number_types(input: torch.Tensor, *planes: torch.Tensor) -> dict[str, tl.dtype]:
    """DTYPE of coordinates and sums; INDEX of offsets inside one image of each tensor."""
    far = max(
        (plane.shape[-2] - 1) * plane.stride(-2) + (plane.shape[-1] - 1) * plane.stride(-1)
        for plane in planes
    )
    index = tl.int32 if far <= INT32_MAX else tl.int64
    return dict(DTYPE=tl_dtype(sum_dtype(input)), INDEX=index)


def partial_sums(
    input: torch.Tensor, thetas: int, config: configs.Config, needs_theta: bool
) -> torch.Tensor:
    slots = config.slots if needs_theta else 0
    return torch.empty((thetas, slots, 6), dtype=sum_dtype(input), device=input.device)
