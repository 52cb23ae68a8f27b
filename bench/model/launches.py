"""What the library would launch for a call: the one place that knows the launcher's internals.

Nothing else in the bench imports `triton_stn.backends`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel

from bench.suite.cases import FORMATS, NORMALIZED, Case, Task
from triton_stn.backends import plans
from triton_stn.backends.launch import Plan, compile_plan, specialisation
from triton_stn.backends.layout import empty_output, layout
from triton_stn.kernels.arguments import Tiling

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
EVERY = ((True, True), (True, False), (False, True))  # which gradients are wanted
BOTH, INPUT, THETA = EVERY[:1], EVERY[1:2], EVERY[2:]


@dataclass(frozen=True)
class Specialisation:
    """One launch of a call."""

    label: str
    plan: Plan

    @property
    def kernel(self) -> str:
        return self.plan.kernel.__name__

    @property
    def tiling(self) -> Tiling | None:
        """None where no tile is cut from an image."""
        return self.plan.constants.get("TILING")

    @property
    def programs(self) -> int:
        return math.prod(self.plan.grid)

    @property
    def itemsize(self) -> int:
        """Bytes of a number of the image."""
        return self.plan.arguments["X"].ptr.itemsize

    @property
    def choice(self) -> tuple:
        """Alike where the same is launched."""
        plan = self.plan
        cut = plan.grid, plan.num_warps, plan.maxnreg, plan.align
        return self.kernel, cut, plan.arguments, plan.constants

    @property
    def key(self) -> tuple[str, ...]:
        """Alike where the compiler is given the same."""
        given = specialisation(self.plan, aligned=True), self.plan.maxnreg
        return self.kernel, repr(given)


def passes(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    wanted: Sequence[tuple[bool, bool]],
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    k: int = 1,
    size: tuple[int, ...] | None = None,
    source: str = "affine",
    deterministic: bool = False,
    fill: float | tuple[torch.dtype, int] | None = None,
    normalized: torch.dtype | None = None,
) -> Iterator[Specialisation]:
    """The launches of one call: forward, and a backward for each pair of wanted gradients.

    ``shape`` is the input's, ``size`` the output's, by default the same. ``normalized`` is the
    dtype of the output of a uint8 input, by numbers one a channel.
    """
    n, c, *extent = shape
    size = size or tuple(extent)
    input = torch.empty(shape, dtype=dtype, device="meta").to(memory_format=memory_format)
    ndim = len(size)
    shapes = {"affine": (ndim, ndim + 1), "projective": (3, 3), "spline": (16 + 3, 4)}
    shapes["patch"] = (*size, 6)
    theta = torch.empty(n, k, *shapes.get(source, (*size, ndim)), device="meta")
    output = empty_output(input, k, *size, dtype=normalized)
    x, t, y = (layout(tensor) for tensor in (input, theta, output))
    last = memory_format != torch.contiguous_format
    order = "channels-last" if last else "NCDHW" if len(extent) == 3 else "NCHW"
    name = f"C={c} {str(dtype)[6:]} {order} {mode} {padding_mode}" + (f" K={k}" if k > 1 else "")
    where = f"{name} {'x'.join(map(str, extent))}" + (f" {source}" if source != "affine" else "")
    where += " filled" * (fill is not None)
    where += f" to {str(normalized)[6:]}" if normalized else ""
    finish = (1, c) if normalized else None
    sampling = plans.Sampling(mode, padding_mode, False, source, fill, finish)
    (plan,) = plans.plan_forward(x, t, y, sampling).plans
    yield Specialisation(where, plan)
    for needs_input, needs_theta in wanted:
        needs_theta = needs_theta and mode != "nearest"
        if not needs_input and not needs_theta:
            continue
        every = plans.Wanted(needs_input, needs_theta, deterministic)
        found = plans.plan_backward(y, x, t, sampling, every)
        label = f"{where} → " + "+".join(["input"] * needs_input + ["θ"] * needs_theta)
        label += " deterministic" * deterministic
        yield from (Specialisation(label, plan) for plan in found.plans)


def of_case(case: Case) -> Iterator[Specialisation]:
    """The launches of a case's forward and joint backward, float32 and contiguous."""
    shape, nchw = (case.n, case.c, *case.extent), torch.contiguous_format
    return passes(shape, torch.float32, nchw, BOTH, k=case.k, size=case.size)


def sums_apart(case: Case) -> bool:
    """Whether grad_theta has a launch of its own beside the gather."""
    return any(spec.kernel == "grad_theta" for spec in of_case(case))


def of_task(task: Task) -> list[Specialisation]:
    """The launches of the task's pass."""
    case = task.case
    wanted = {"forward": (), "backward_input": INPUT, "backward_theta": THETA}
    specs = passes(
        (case.n, case.c, *case.extent),
        getattr(torch, task.dtype),
        FORMATS[task.layout, case.ndim],
        wanted.get(task.pass_name, BOTH),
        case.mode,
        task.padding_mode,
        case.k,
        size=case.size,
        source="spline" if case.transform.startswith("tps") else case.transform,
        normalized=NORMALIZED if task.dtype == "uint8" else None,
    )
    forward = "forward" in task.pass_name
    return [spec for spec in specs if forward or spec.kernel != "forward"]


def compiled(spec: Specialisation, target: str) -> CompiledKernel:
    """The launch compiled for one of ``TARGETS``."""
    return compile_plan(spec.plan, TARGETS[target])


def warm_up(specs: Sequence[Specialisation]) -> None:
    """Compile the launches for PyTorch's current device, as they are launched."""
    for spec in specs:
        with suppress(Exception):  # the launch itself will say what is wrong
            compile_plan(spec.plan, triton.runtime.driver.active.get_current_target())


def forget() -> None:
    """Empty the caches of plans, which were made from constants that have changed."""
    plans.plan_forward.cache_clear()
    plans.plan_backward.cache_clear()
