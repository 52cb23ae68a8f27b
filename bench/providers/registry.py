"""Who is measured: one entry of ``PROVIDERS`` a provider, with the reasons to leave it out."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial

import torch

from bench.providers import baselines
from bench.suite import sources
from bench.suite.cases import Task
from bench.suite.passes import Call, Forward, as_it_is, captured

YARDSTICK = "eager"  # the provider that speedups are against
# Output elements up to which calls are captured as well. Five tensors of as many, float32, are 10
# MB: an H200 moves them in 2.4 us (reckoned), about as long as one launch of eager's 20 or more.
MOST_CAPTURED = 2**19


@dataclass(frozen=True)
class Provider:
    """Something that samples images or volumes.

    ``build()`` is called once a case, dtype and layout and returns the forward
    ``f(input, theta, output_size, padding_mode, align_corners, transform, mode)``, with input
    (N, C, *extent), theta (N, *) or (N, K, *) in float32 (`suite.sources` says what it is), and the
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
        return "torch.compile on the CPU is 3-5x slower than baselines.eager, and slow to compile"
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
    Provider("triton_stn", lambda: baselines.ours),
    Provider("eager", lambda: baselines.eager, _why_not_eager, half_coordinates=True),
    Provider(
        "eager_no_cudnn",
        baselines.build_eager,
        _why_not_without_cudnn,
        half_coordinates=True,
        context=lambda: torch.backends.cudnn.flags(enabled=False),
    ),
    Provider("eager_tf32", baselines.build_eager, _why_not_tf32, context=baselines.tf32),
    Provider(
        "compiled",
        lambda: baselines.build_compiled("max-autotune-no-cudagraphs"),
        _why_not_compiled,
        half_coordinates=True,
    ),
    Provider(
        "compiled_graphs",
        lambda: baselines.build_compiled("max-autotune"),
        _why_not_graphs,
        half_coordinates=True,
    ),
    Provider(
        "flag_gems",
        baselines.build_eager,
        partial(_other_package, "flag_gems", "grid_sampler_2d", ()),
        half_coordinates=True,
        context=lambda: importlib.import_module("flag_gems").use_gems(),
    ),
    Provider(
        "kornia",
        baselines.build_kornia,
        partial(_other_package, "kornia", "", ("affine", "projective")),
        half_coordinates=True,
    ),
    Provider(
        "fireants",
        baselines.build_fireants,
        partial(_other_package, "fireants_fused_ops", "", ("affine",), ndims=(2, 3)),
        half_coordinates=True,
    ),
    # Last: what a capture that fails leaves behind harms no other row of the task.
    Provider("triton_stn_graph", lambda: baselines.ours, _why_not_captured, wrap=captured),
    Provider(
        "eager_graph",
        baselines.build_eager,
        _why_not_captured,
        half_coordinates=True,
        wrap=captured,
    ),
)
