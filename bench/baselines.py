"""Who is measured: one entry of ``PROVIDERS`` a provider, one function for its call."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
import torch.nn.functional as F

import triton_stn
from bench import sources
from bench.cases import Task
from bench.passes import Call, Forward, as_it_is, captured
from triton_stn.transforms import Transform

YARDSTICK = "eager"  # the provider that speedups are against
# Output elements up to which calls are captured as well. Five tensors of as many, float32, are 10
# MB: an H200 moves them in 2.4 us (reckoned), about as long as one launch of eager's 20 or more.
MOST_CAPTURED = 2**19


@dataclass(frozen=True)
class Provider:
    """Something that samples images or volumes.

    ``build()`` is called once a case, dtype and layout and returns the forward
    ``f(input, theta, output_size, padding_mode, align_corners, transform, mode)``, with input
    (N, C, *extent), theta (N, *) or (N, K, *) in float32 (`bench.sources` says what it is), and the
    result (N, C, *output_size) or (N, K, C, *output_size). ``why_not(device_type, task)`` gives the
    reason to skip it, or "". ``half_coordinates`` says that it computes coordinates in the image's
    dtype. What is checked and timed is ``wrap(call)`` of a pass, inside ``context()``, which is
    entered outside the timing.
    """

    name: str
    build: Callable[[], Forward]
    why_not: Callable[[str, Task], str] = lambda device_type, task: ""
    half_coordinates: bool = False
    context: Callable[[], AbstractContextManager] = nullcontext
    wrap: Callable[[Call], Call] = as_it_is


def ours(
    input: torch.Tensor,
    theta: torch.Tensor,
    size: tuple[int, ...],
    padding_mode: str,
    align_corners: bool,
    transform: str = "affine",
    mode: str = "bilinear",
) -> torch.Tensor:
    """The library's public functions; on a CPU that is its pure-PyTorch path."""
    if transform == "grid":
        return triton_stn.grid_sample(input, theta, mode, padding_mode, align_corners)
    if transform == "flow":
        return triton_stn.flow_warp(input, theta, mode, padding_mode)
    return triton_stn.spatial_transform(
        input,
        theta,
        size,
        transform=sources.spline(transform) if transform.startswith("tps") else transform,
        mode=mode,
        padding_mode=padding_mode,
        align_corners=align_corners,
    )


def eager(
    input: torch.Tensor,
    theta: torch.Tensor,
    size: tuple[int, ...],
    padding_mode: str,
    align_corners: bool,
    transform: str = "affine",
    mode: str = "bilinear",
) -> torch.Tensor:
    """A grid and ``F.grid_sample``, which wants the grid in the image's dtype."""
    return one_map_an_image(
        _eager, input, theta, size, padding_mode, align_corners, transform, mode
    )


def one_map_an_image(
    sample: Forward,
    input: torch.Tensor,
    theta: torch.Tensor,
    size: tuple[int, ...],
    padding_mode: str,
    align_corners: bool,
    transform: str = "affine",
    mode: str = "bilinear",
) -> torch.Tensor:
    """``sample`` of what takes one θ an image: K maps (N, K, *) cost K copies of the image."""
    options = (size, padding_mode, align_corners, transform, mode)
    if theta.ndim == 3 or transform in sources.FIELDS:  # no case has K grids an image
        return sample(input, theta, *options)
    k = theta.shape[1]
    return sample(input.repeat_interleave(k, 0), theta.flatten(0, 1), *options).unflatten(
        0, (-1, k)
    )


def _eager(input, theta, size, padding_mode, align_corners, transform, mode):
    if transform == "affine":  # affine_grid needs no other dtype; the other grids are rounded last
        theta = theta.to(input.dtype)
    grid = sources.grid(transform, theta, input.shape[2:], size, align_corners).to(input.dtype)
    return F.grid_sample(input, grid, mode, padding_mode, align_corners)


def eager_spline(input, theta, size, padding_mode, align_corners, transform, mode):
    """``eager`` of a spline evaluated anew, with the roundings that a kernel has too: the measure
    of errors. The matrix that ``eager`` keeps is rounded from float64.
    """
    grid = Transform.grid(sources.spline(transform), theta, size, align_corners)  # keeps no matrix
    grid = grid.to(input.dtype)
    return F.grid_sample(input, grid, mode, padding_mode, align_corners)


def build_eager() -> Forward:
    """Eager once more, for another ``context``: a function of its own, whose errors are its own."""
    return partial(one_map_an_image, _eager)


def build_compiled(mode: str) -> Forward:
    """``torch.compile`` of the same calls, for one shape."""
    from torch._dynamo import config as dynamo
    from torch._functorch import config as functorch

    # Donated buffers forbid retain_graph, by which the backward passes are repeated.
    functorch.donated_buffer = False
    # Two modes, gradients wanted or not, two align_corners: more than 8 and it would run eagerly.
    dynamo.recompile_limit = 64
    return torch.compile(eager, dynamic=False, fullgraph=True, mode=mode)


def build_kornia() -> Forward:
    """kornia's ``homography_warp``, whose normalised homography maps as θ does."""
    from kornia.geometry.transform import homography_warp

    def sample(input, theta, size, padding_mode, align_corners, transform, mode):
        theta = theta.to(input.dtype)
        if transform == "affine":
            last = torch.tensor([0.0, 0.0, 1.0], dtype=theta.dtype, device=theta.device)
            theta = torch.cat((theta, last.expand(len(theta), 1, 3)), 1)
        return homography_warp(
            input, theta, size, padding_mode=padding_mode, align_corners=align_corners
        )

    return partial(one_map_an_image, sample)


def build_fireants() -> Forward:
    """FireANTs' fused affine samplers (CUDA C++). They take channels first alone."""
    from fireants.interpolator import fused_grid_sample

    def sample(input, theta, size, padding_mode, align_corners, transform, mode):
        sampler = getattr(fused_grid_sample, f"fused_grid_sampler_{len(size)}d")
        return sampler(
            input.contiguous(),
            theta.to(input.dtype).contiguous(),
            padding_mode=padding_mode,
            align_corners=align_corners,
            out_shape=size,
        )

    return partial(one_map_an_image, sample)


def gems() -> AbstractContextManager:
    """PyTorch's operators replaced by FlagGems' Triton kernels."""
    return importlib.import_module("flag_gems").use_gems()


@contextmanager
def tf32() -> Iterator[None]:
    """Matrix products of float32 may be computed in TF32; by default PyTorch's may not."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@lru_cache
def missing(module: str, attribute: str = "") -> str:
    """The reason to skip a provider that needs ``module`` (with ``attribute``), or ""."""
    if not importlib.util.find_spec(module):
        return f"{module} is not installed"
    if not attribute:
        return ""
    try:
        has = hasattr(importlib.import_module(module), attribute)
    except Exception as exception:
        return f"{module} does not import: {exception}"
    return "" if has else f"this {module} has no {attribute}"


def _why_not_eager(device_type: str, task: Task) -> str:
    if device_type == "cpu" and task.dtype != "float32":
        return "F.grid_sample on the CPU gives NaN or crashes in half precision"
    return ""


def _why_not_without_cudnn(device_type: str, task: Task) -> str:
    if device_type == "cpu":
        return "there is no cuDNN on a CPU"
    # cond_cudnn_grid_sampler in aten/src/ATen/native/GridSamplerUtils.h
    case = task.case
    taken = task.padding_mode == "zeros" and task.align_corners and task.dtype != "bfloat16"
    if not taken or case.mode != "bilinear" or case.c > 1024 or case.ndim > 2:
        return "the same as eager: PyTorch takes cuDNN for images, align_corners=True, no bfloat16"
    return ""


def _why_not_tf32(device_type: str, task: Task) -> str:
    if device_type == "cpu" or task.dtype != "float32":
        return "the same as eager: TF32 is for float32 on a GPU"
    if task.case.transform in ("projective", *sources.FIELDS):
        return "the same as eager: no matrix product makes this grid"
    return ""


def _why_not_compiled(device_type: str, task: Task) -> str:
    if device_type == "cpu":
        return "torch.compile on the CPU is 3-5x slower than eager, and slow to compile"
    return ""


def _why_not_graphs(device_type: str, task: Task) -> str:
    if task.pass_name.startswith("backward"):
        return "a CUDA graph replays whole iterations, not one backward again and again"
    return _why_not_compiled(device_type, task)


def _why_not_captured(device_type: str, task: Task) -> str:
    if device_type == "cpu":
        return "there are no CUDA graphs on a CPU"
    case = task.case
    if case.n * case.k * case.c * math.prod(case.size) > MOST_CAPTURED:
        return f"launches weigh little beyond {MOST_CAPTURED:,} output elements"
    return _why_not_graphs(device_type, task)


def _other_package(
    module: str,
    attribute: str,
    transforms: tuple[str, ...],
    device_type: str,
    task: Task,
    ndims: tuple[int, ...] = (2,),
) -> str:
    """``transforms`` are those it has a bilinear sampler of; empty where it replaces PyTorch's."""
    if device_type == "cpu":
        return "measured on a GPU alone"
    if task.case.ndim not in ndims:
        return f"{module} is measured on images alone"
    if transforms and (task.case.transform not in transforms or task.case.mode != "bilinear"):
        return f"{module} is measured on bilinear samples of {' and '.join(transforms)} maps alone"
    return missing(module, attribute)


PROVIDERS = (
    Provider("triton_stn", lambda: ours),
    Provider("eager", lambda: eager, _why_not_eager, half_coordinates=True),
    Provider(
        "eager_no_cudnn",
        build_eager,
        _why_not_without_cudnn,
        half_coordinates=True,
        context=lambda: torch.backends.cudnn.flags(enabled=False),
    ),
    Provider("eager_tf32", build_eager, _why_not_tf32, context=tf32),
    Provider(
        "compiled",
        lambda: build_compiled("max-autotune-no-cudagraphs"),
        _why_not_compiled,
        half_coordinates=True,
    ),
    Provider(
        "compiled_graphs",
        lambda: build_compiled("max-autotune"),
        _why_not_graphs,
        half_coordinates=True,
    ),
    Provider(
        "flag_gems",
        build_eager,
        partial(_other_package, "flag_gems", "grid_sampler_2d", ()),
        half_coordinates=True,
        context=gems,
    ),
    Provider(
        "kornia",
        build_kornia,
        partial(_other_package, "kornia", "", ("affine", "projective")),
        half_coordinates=True,
    ),
    Provider(
        "fireants",
        build_fireants,
        partial(_other_package, "fireants_fused_ops", "", ("affine",), ndims=(2, 3)),
        half_coordinates=True,
    ),
    # Last: what a capture that fails leaves behind harms no other row of the task.
    Provider("triton_stn_graph", lambda: ours, _why_not_captured, wrap=captured),
    Provider("eager_graph", build_eager, _why_not_captured, half_coordinates=True, wrap=captured),
)
