"""The Triton backend: allocate, choose the configuration, launch under the tensor's device.

Each ``plan_*`` function describes its launch as data, from the tensors' layouts alone: a call that
repeats a layout finds its plan again, and the static kernel report compiles exactly what runs.
"""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from triton_stn.backends.layout import channels_lie_last, empty_gradients, empty_output
from triton_stn.kernels import configs
from triton_stn.kernels.forward import forward
from triton_stn.kernels.gather import gather
from triton_stn.kernels.reduce import reduce
from triton_stn.kernels.scatter import scatter

INT32_MAX = 2**31 - 1
# Fewer channels than this in a channels-last image fill no 16-byte run worth a kernel of its own:
# the NCHW kernel reads them from the same sectors.
MIN_RUN = 8


class Layout(NamedTuple):
    """What of a tensor decides a launch."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


def layout(tensor: torch.Tensor) -> Layout:
    return Layout(tuple(tensor.shape), tensor.stride(), tensor.dtype)


@dataclass(frozen=True)
class Launch:
    """One kernel launch, as data; the tensors come to it in `launch`."""

    kernel: triton.JITFunction
    grid: tuple[int, int, int]
    numbers: dict[str, int | float]
    constants: dict[str, Any]
    slots: int = 0  # partial sums a theta
    num_warps: int = configs.WARPS
    maxnreg: int | None = None  # registers a thread, on NVIDIA

    def options(self, nvidia: bool) -> dict[str, int]:
        """The compiler's options."""
        capped = {"maxnreg": self.maxnreg} if nvidia and self.maxnreg else {}
        return {"num_warps": self.num_warps, **capped}


def launch(launch: Launch, device: torch.device, **tensors: torch.Tensor) -> None:
    """Run a launch on ``device``, whichever device is current."""
    options = launch.options(nvidia=device.type == "cuda" and torch.version.hip is None)
    run = launch.kernel[launch.grid]
    if device.type == "cpu":  # the interpreter
        run(**tensors, **launch.numbers, **launch.constants, **options)
        return
    with torch.get_device_module(device).device(device):
        run(**tensors, **launch.numbers, **launch.constants, **options)


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
        theta = as_rows(theta)
        plan = plan_forward(
            layout(input), layout(theta), layout(output), mode, padding_mode, align_corners
        )
        launch(plan, input.device, X_ptr=input, Theta_ptr=theta, Y_ptr=output)
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
    gathers = padding_mode == "zeros" or grad_output.numel() == 0
    grad_input, grad_theta = empty_gradients(input, theta, needs_input and gathers, needs_theta)
    if grad_output.numel() == 0:
        return grad_input.zero_(), grad_theta.zero_()
    if mode == "nearest":
        grad_theta.zero_()  # piecewise constant in theta
        needs_theta = False
    if not needs_input and not needs_theta:
        return grad_input, grad_theta

    sums = grad_input
    if needs_input and not gathers:
        check_deterministic(padding_mode)
        sums = torch.zeros_like(input, dtype=sum_dtype(input.dtype))
    theta = as_rows(theta)
    layouts = (layout(grad_output), layout(input), layout(theta), layout(sums))
    options = (mode, padding_mode, align_corners, needs_input, needs_theta)
    plan = (plan_gather if needs_input and gathers else plan_scatter)(*layouts, *options)
    n, k = grad_output.shape[:2]
    partial = input.new_empty((n * k, plan.slots, 6), dtype=sum_dtype(input.dtype))
    launch(
        plan, input.device, X_ptr=input, Theta_ptr=theta, dY_ptr=grad_output, dX_ptr=sums,
        P_ptr=partial,
    )  # fmt: skip
    if needs_theta:
        plan = plan_reduce(layout(grad_output), layout(input), plan.slots, align_corners)
        launch(plan, input.device, P_ptr=partial, dTheta_ptr=grad_theta)
    return sums.to(input.dtype), grad_theta


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


@lru_cache(maxsize=4096)
def plan_forward(
    input: Layout, theta: Layout, output: Layout, mode: str, padding_mode: str, align_corners: bool
) -> Launch:
    n, k, c, h_out, w_out = output.shape
    run = run_length(input, output)
    config = configs.forward(n * k, c, h_out, w_out, run)
    numbers = dict(K=k, C=c, H_out=h_out, W_out=w_out) | strides("x", input) | strides("t", theta)
    # From one of the N·K output images to the next; an axis of one has no stride to speak of.
    numbers.update(stride_yn=output.strides[1] if k > 1 else output.strides[0])
    numbers.update(zip(("stride_yc", "stride_yh", "stride_yw"), output.strides[2:], strict=True))
    return Launch(
        kernel=forward,
        grid=config.grid,
        numbers=numbers | geometry(input, h_out, w_out, align_corners),
        constants=config.constants
        | number_types(input, input, output)
        | dict(MODE=mode, PADDING=padding_mode),
    )


@lru_cache(maxsize=4096)
def plan_gather(
    grad_output: Layout,
    input: Layout,
    theta: Layout,
    grad_input: Layout,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    needs_input: bool,
    needs_theta: bool,
) -> Launch:
    n, c, h, w = input.shape
    k, h_out, w_out = grad_output.shape[1], *grad_output.shape[3:]
    run = run_length(input, grad_output, grad_input)
    config = configs.gather(n, c, h, w, run, one_theta=k == 1)
    numbers = dict(K=k, C=c, H=h, W=w, H_out=h_out, W_out=w_out, slots=config.slots)
    numbers |= strides("x", input) | strides("t", theta)
    numbers |= strides("g", grad_output) | strides("dx", grad_input)
    numbers |= geometry(input, h_out, w_out, align_corners)
    del numbers["edge"]  # where reflection turns
    return Launch(
        kernel=gather,
        grid=config.grid,
        numbers=numbers,
        constants=config.constants
        | number_types(input, input, grad_output, grad_input)
        | dict(MODE=mode, NEEDS_THETA=needs_theta, WINDOW="any"),
        slots=config.slots if needs_theta else 0,
        maxnreg=configs.GATHER_REGISTERS if run == 1 else configs.GATHER_RUN_REGISTERS,
    )


@lru_cache(maxsize=4096)
def plan_scatter(
    grad_output: Layout,
    input: Layout,
    theta: Layout,
    grad_input: Layout,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    needs_input: bool,
    needs_theta: bool,
) -> Launch:
    n, c = input.shape[:2]
    k, h_out, w_out = grad_output.shape[1], *grad_output.shape[3:]
    written = grad_input if needs_input else input
    run = run_length(input, grad_output, written)
    config = configs.scatter(n * k, c, h_out, w_out, run)
    numbers = dict(K=k, C=c, H_out=h_out, W_out=w_out, slots=config.slots)
    numbers |= strides("x", input) | strides("t", theta)
    numbers |= strides("g", grad_output) | strides("dx", written)
    return Launch(
        kernel=scatter,
        grid=config.grid,
        numbers=numbers | geometry(input, h_out, w_out, align_corners),
        constants=config.constants
        | number_types(input, input, grad_output, written)
        | dict(MODE=mode, PADDING=padding_mode, NEEDS_INPUT=needs_input, NEEDS_THETA=needs_theta),
        slots=config.slots if needs_theta else 0,
    )


@lru_cache(maxsize=4096)
def plan_reduce(grad_output: Layout, input: Layout, slots: int, align_corners: bool) -> Launch:
    n, k, _, h_out, w_out = grad_output.shape
    scales = geometry(input, h_out, w_out, align_corners)
    names = ("ratio_xx", "ratio_xy", "ratio_yx", "ratio_yy", "half_w", "half_h")
    return Launch(
        kernel=reduce,
        grid=(n * k, 1, 1),
        numbers=dict(slots=slots) | {name: scales[name] for name in names},
        constants=dict(BLOCK=64, DTYPE=tl_dtype(input.dtype)),
    )


def geometry(input: Layout, h_out: int, w_out: int, align_corners: bool) -> dict[str, Any]:
    """The numbers that take a normalised theta to centred pixels, for either align_corners."""
    h, w = input.shape[2:]
    less = 1 if align_corners else 0
    span_w, span_h = w - less, h - less  # of the image, from -1 to 1
    extent_w, extent_h = max(w_out - less, 1), max(h_out - less, 1)
    exact = float64_bits if input.dtype == torch.float64 else float
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


def strides(name: str, tensor: Layout) -> dict[str, int]:
    """stride_xn, stride_xc, ... of (N, C, H, W); of (N, K, C, H, W) also stride_gk."""
    if name == "t":  # theta's last two dimensions lie side by side
        return dict(stride_tn=tensor.strides[0], stride_tk=tensor.strides[1])
    axes = "nkchw" if len(tensor.shape) == 5 else "nchw"
    return {f"stride_{name}{axis}": s for axis, s in zip(axes, tensor.strides, strict=True)}


def as_rows(theta: torch.Tensor) -> torch.Tensor:
    """theta with its six numbers side by side; the batch may stay expanded."""
    return theta if theta.stride()[2:] == (3, 1) else theta.contiguous()


def run_length(input: Layout, *others: Layout) -> int:
    """Channels that a program reads of one pixel at a time: 1 in NCHW, a line in channels-last."""
    run = configs.RUN_BYTES // input.dtype.itemsize
    near = all(run * other.strides[-3] <= INT32_MAX for other in others)
    last = channels_lie_last(input.shape, input.strides)
    return run if last and input.shape[1] >= MIN_RUN and near else 1


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of coordinates, weights and sums for an image of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def tl_dtype(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


def number_types(input: Layout, *images: Layout) -> dict[str, tl.dtype]:
    """DTYPE of coordinates and sums; INDEX of offsets inside one image of each tensor."""
    far = max(
        sum(
            (size - 1) * stride
            for size, stride in zip(image.shape[-3:], image.strides[-3:], strict=True)
        )
        for image in images
    )
    return dict(DTYPE=tl_dtype(input.dtype), INDEX=tl.int32 if far <= INT32_MAX else tl.int64)
