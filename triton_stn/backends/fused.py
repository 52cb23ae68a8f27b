"""The Triton backend: allocate, choose the configuration, launch under the tensor's device.

Each ``plan_*`` function describes its launch as data, from the tensors' layouts alone: a call that
repeats a layout finds its plan again, and the static kernel report compiles exactly what runs.
"""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from triton_stn.backends.layout import channels_lie_last, empty_gradients, empty_output
from triton_stn.kernels import configs
from triton_stn.kernels.coordinates import FIELDS, SUMS
from triton_stn.kernels.forward import forward
from triton_stn.kernels.gather import gather
from triton_stn.kernels.reduce import reduce
from triton_stn.kernels.scatter import scatter
from triton_stn.kernels.spline import spline_gradient

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
    num_warps: int = field(default_factory=lambda: configs.WARPS)
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


def sample(
    input: torch.Tensor,
    theta: torch.Tensor,
    h_out: int,
    w_out: int,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    source: str = "affine",
) -> torch.Tensor:
    """input (N, C, H, W), theta (N, K, *) -> (N, K, C, H_out, W_out).

    ``source`` says what theta is: "affine", "projective", "spline", "grid", "flow" or
    "patch" (`coordinates.source` has their shapes).
    """
    output = empty_output(input, theta.shape[1], h_out, w_out)
    if output.numel() > 0:
        theta = as_rows(theta, source)
        layouts = (layout(input), layout(theta), layout(output))
        plan = plan_forward(*layouts, mode, padding_mode, align_corners, source)
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

    deterministic = torch.are_deterministic_algorithms_enabled()
    if needs_input:
        by_gathering = gathers(source, mode, padding_mode)
        if not by_gathering:
            check_deterministic(source, padding_mode, mode)
        grad_input = gradient_buffer(input, by_gathering, scatters_rest(source, deterministic))
    theta = as_rows(theta, source)
    layouts = (layout(grad_output), layout(input), layout(theta), layout(grad_input))
    options = (mode, padding_mode, align_corners, needs_input, needs_theta)
    plans = plan_backward(*layouts, *options, source, deterministic)
    n, k, _, h_out, w_out = grad_output.shape
    sums, field = numbers_of(source)
    of_one = (6 * configs.cdiv(sums, 6),) if sums else (h_out, w_out, field)
    slots = plans[-1].slots
    partial = input.new_empty((n, k, slots, *of_one), dtype=sum_dtype(input.dtype))
    for plan in plans:
        launch(
            plan, input.device, X_ptr=input, Theta_ptr=theta, dY_ptr=grad_output,
            dX_ptr=grad_input, P_ptr=partial,
        )  # fmt: skip
    if needs_theta and source == "affine":
        plan = plan_reduce(layout(grad_output), layout(input), slots, align_corners)
        launch(plan, input.device, P_ptr=partial, dTheta_ptr=grad_theta)
    elif needs_theta:
        grad = partial.sum(2) if slots > 1 else partial.squeeze(2)
        if sums:
            grad_theta.copy_(grad[..., :sums].view_as(grad_theta))
        elif source == "spline":
            plan = plan_spline_gradient(
                layout(grad_output), layout(theta), layout(input), align_corners
            )
            partial = grad.new_empty((n, k, plan.slots, theta.shape[2], 2))
            launch(plan, input.device, Theta_ptr=theta, dG_ptr=grad, P_ptr=partial)
            grad_theta[..., 2:] = 0.0
            grad_theta[..., :2] = partial.sum(2)
        else:
            grad_theta.copy_(grad)
    return grad_input.to(input.dtype), grad_theta


def numbers_of(source: str) -> tuple[int, int]:
    """(sums that make up grad_theta, numbers a pixel that it is made from); one of them is 0."""
    sums = SUMS.get(source, 0)
    return sums, 0 if sums else FIELDS.get(source, 2)


def gathers(source: str, mode: str, padding_mode: str) -> bool:
    """Whether grad_input is gathered; elsewhere it is scattered, by atomics."""
    plain = mode in ("nearest", "bilinear") and padding_mode == "zeros"
    return plain and source in ("affine", "projective")


def scatters_rest(source: str, deterministic: bool) -> bool:
    """Whether a scatter follows the gather, for each theta that has no bounded window."""
    return source == "projective" and not deterministic


def gradient_buffer(input: torch.Tensor, by_gathering: bool, rest: bool) -> torch.Tensor:
    """Where a backward writes grad_input: as it is returned, or where a scatter takes part (all of
    it, or the ``rest``) the dtype of sums; zeros where nothing is gathered."""
    if not by_gathering:
        return torch.zeros_like(input, dtype=sum_dtype(input.dtype))
    return torch.empty_like(input, dtype=sum_dtype(input.dtype) if rest else input.dtype)


def check_deterministic(source: str, padding_mode: str, mode: str) -> None:
    """Atomics add in no fixed order: refuse, or warn, as PyTorch's own operators do."""
    if not torch.are_deterministic_algorithms_enabled():
        return
    cause = f"{source} coordinates, mode={mode!r} and padding_mode={padding_mode!r}"
    message = (
        f"the gradient of the input with {cause} does not have a deterministic implementation, but "
        "you set torch.use_deterministic_algorithms(True); affine and projective transforms with "
        "padding_mode='zeros' have one unless bicubic or antialiased"
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)


@lru_cache(maxsize=4096)
def plan_forward(
    input: Layout,
    theta: Layout,
    output: Layout,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    source: str = "affine",
) -> Launch:
    n, k, c, h_out, w_out = output.shape
    run = run_length(input, output)
    config = configs.forward(n * k, c, h_out, w_out, run)
    numbers = dict(K=k, C=c, H_out=h_out, W_out=w_out)
    numbers |= strides("x", input) | theta_numbers(
        theta, source, h_out, w_out, input, align_corners
    )
    # From one of the N·K output images to the next; an axis of one has no stride to speak of.
    numbers.update(stride_yn=output.strides[1] if k > 1 else output.strides[0])
    numbers.update(zip(("stride_yc", "stride_yh", "stride_yw"), output.strides[2:], strict=True))
    return Launch(
        kernel=forward,
        grid=config.grid,
        numbers=numbers | geometry(input, (h_out, w_out), align_corners),
        constants=config.constants
        | number_types(input, input, output, theta)
        | dict(SOURCE=source, MODE=mode, PADDING=padding_mode),
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
    source: str = "affine",
    deterministic: bool = False,
) -> tuple[Launch, ...]:
    """A gather, a scatter, or a gather and the scatter of what it leaves. They share ``slots``."""
    n, c, h, w = input.shape
    k, h_out, w_out = grad_output.shape[1], *grad_output.shape[3:]
    by_gathering = needs_input and gathers(source, mode, padding_mode)
    if by_gathering and needs_theta and k > 1:
        # A gather would reduce the sums of every map in every tile. From the output's side a
        # program has one map, and keeps its sums over many tiles.
        call = (grad_output, input, theta, grad_input, mode, padding_mode, align_corners)
        of_input = plan_backward(*call, True, False, source, deterministic)
        return of_input + plan_backward(*call, False, True, source, deterministic)
    rest = by_gathering and scatters_rest(source, deterministic)
    written = grad_input if needs_input else input
    run = run_length(input, grad_output, written)
    over_input = configs.gather(n, c, h, w, run, one_theta=k == 1)
    over_output = configs.scatter(n * k, c, h_out, w_out, run, rest)
    gather_slots = over_input.slots if by_gathering else 0
    sums, field = numbers_of(source)
    scatter_slots = over_output.slots if sums else over_output.constants["SPLITS"]
    slots = gather_slots + (scatter_slots if rest or not by_gathering else 0)
    from_theta = theta_numbers(theta, source, h_out, w_out, input, align_corners)
    images = strides("x", input) | strides("g", grad_output) | strides("dx", written)
    images |= dict(K=k, C=c, H_out=h_out, W_out=w_out, slots=slots)
    images |= geometry(input, (h_out, w_out), align_corners)
    types = number_types(input, input, grad_output, written, theta)
    types |= dict(SOURCE=source, MODE=mode, NEEDS_THETA=needs_theta, SUMS=sums)
    plans = ()
    if by_gathering:
        wanted = ("stride_tn", "stride_tk", "unit_w", "unit_h")
        numbers = images | {name: from_theta[name] for name in wanted} | dict(H=h, W=w)
        del numbers["edge"]  # where reflection turns
        plans += (
            Launch(
                kernel=gather,
                grid=over_input.grid,
                numbers=numbers,
                constants=over_input.constants | types | dict(WINDOW="any", EVERY=not rest),
                slots=slots if needs_theta else 0,
                maxnreg=configs.GATHER_REGISTERS if run == 1 else configs.GATHER_RUN_REGISTERS,
            ),
        )
    if rest or not by_gathering:
        of_scatter = dict(PADDING=padding_mode, NEEDS_INPUT=needs_input, REST=rest, FIELD=field)
        plans += (
            Launch(
                kernel=scatter,
                grid=over_output.grid,
                numbers=images | from_theta | dict(first_slot=gather_slots),
                constants=over_output.constants | types | of_scatter,
                slots=slots if needs_theta else 0,
            ),
        )
    return plans


@lru_cache(maxsize=4096)
def plan_reduce(grad_output: Layout, input: Layout, slots: int, align_corners: bool) -> Launch:
    n, k, _, h_out, w_out = grad_output.shape
    scales = geometry(input, (h_out, w_out), align_corners)
    names = ("ratio_xx", "ratio_xy", "ratio_yx", "ratio_yy", "half_w", "half_h")
    return Launch(
        kernel=reduce,
        grid=(n * k, 1, 1),
        numbers=dict(slots=slots) | {name: scales[name] for name in names},
        constants=dict(BLOCK=64, DTYPE=tl_dtype(input.dtype)),
    )


@lru_cache(maxsize=4096)
def plan_spline_gradient(
    grad_output: Layout, theta: Layout, input: Layout, align_corners: bool
) -> Launch:
    n, k, _, h_out, w_out = grad_output.shape
    config = configs.spline_gradient(n * k, h_out * w_out, theta.shape[2])
    scales = geometry(input, (h_out, w_out), align_corners)
    numbers = dict(K=k, H_out=h_out, W_out=w_out)
    numbers |= {name: scales[name] for name in ("centre_w", "centre_h")}
    from_theta = theta_numbers(theta, "spline", h_out, w_out, input, align_corners)
    wanted = ("stride_tn", "stride_tk", "unit_w", "unit_h", "T")
    return Launch(
        kernel=spline_gradient,
        grid=config.grid,
        numbers=numbers | {name: from_theta[name] for name in wanted},
        constants=config.constants | dict(DTYPE=tl_dtype(input.dtype)),
        slots=config.slots,
    )


def geometry(input: Layout, size: tuple[int, ...], align_corners: bool) -> dict[str, Any]:
    """The numbers that take a normalised theta to centred pixels, for either align_corners.

    ``size`` is the output's, (H_out, W_out) or (D_out, H_out, W_out).
    """
    less = 1 if align_corners else 0
    exact = float64_bits if input.dtype == torch.float64 else float
    axes = "xyz"[: len(size)]
    into = dict(zip(axes, reversed(input.shape[2:]), strict=True))
    out = dict(zip(axes, reversed(size), strict=True))
    numbers = {
        f"ratio_{a}{b}": exact((into[a] - less) / max(out[b] - less, 1)) for a in axes for b in axes
    }
    for a, side in zip(axes, "whd", strict=False):
        numbers[f"half_{side}"] = (into[a] - less) / 2
        numbers[f"last_{side}"] = float(into[a] - 1)
        numbers[f"centre_{side}"] = (out[a] - 1) / 2
    return numbers | dict(edge=0.0 if align_corners else -0.5)


def float64_bits(value: float) -> int:
    """A float argument reaches a kernel as float32; as bits, a float64 reaches it whole.

    The bits of 0 would arrive as an int32; an image one pixel wide, whose ratio it is, can take
    any factor small enough instead.
    """
    return struct.unpack("q", struct.pack("d", value or 2.0**-500))[0]


def strides(name: str, tensor: Layout, sides: str = "hw") -> dict[str, int]:
    """stride_xn, stride_xc, ... of (N, C, *sides); of (N, K, C, *sides) also stride_gk."""
    axes = ("nkc" if len(tensor.shape) == 3 + len(sides) else "nc") + sides
    return {f"stride_{name}{axis}": s for axis, s in zip(axes, tensor.strides, strict=True)}


def theta_numbers(
    theta: Layout, source: str, h_out: int, w_out: int, input: Layout, align_corners: bool
) -> dict[str, Any]:
    """theta's strides, T of a spline, and normalised output coordinates a pixel."""
    inner = theta.strides[2:] if source in FIELDS else (0, 0, 0)
    names = ("stride_tn", "stride_tk", "stride_ti", "stride_tj", "stride_tc")
    less = 1 if align_corners else 0
    exact = float64_bits if input.dtype == torch.float64 else float
    return dict(zip(names, (*theta.strides[:2], *inner), strict=True)) | dict(
        unit_w=exact(2 / max(w_out - less, 1)),
        unit_h=exact(2 / max(h_out - less, 1)),
        T=theta.shape[2] - 3 if source == "spline" else 0,
    )


def as_rows(theta: torch.Tensor, source: str) -> torch.Tensor:
    """theta with the numbers of one map side by side; the batch may stay expanded."""
    if source in FIELDS or theta.stride()[2:] == (theta.shape[3], 1):
        return theta
    return theta.contiguous()


def run_length(input: Layout, *others: Layout) -> int:
    """Channels that a program reads of one pixel at a time: 1 in NCHW, a line in channels-last."""
    run = configs.RUN_BYTES // input.dtype.itemsize
    channel = 1 - len(input.shape)  # counted from the end: others may have a K
    near = all(run * other.strides[channel] <= INT32_MAX for other in others)
    last = channels_lie_last(input.shape, input.strides)
    return run if last and input.shape[1] >= MIN_RUN and near else 1


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of coordinates, weights and sums for an image of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def tl_dtype(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


def number_types(input: Layout, *images: Layout) -> dict[str, tl.dtype]:
    """DTYPE of coordinates and sums; INDEX of offsets inside one image (or grid) of each tensor."""
    inner = slice(1 - len(input.shape), None)  # all but N, and K
    far = max(
        sum(
            (size - 1) * stride
            for size, stride in zip(image.shape[inner], image.strides[inner], strict=True)
        )
        for image in images
    )
    return dict(DTYPE=tl_dtype(input.dtype), INDEX=tl.int32 if far <= INT32_MAX else tl.int64)
