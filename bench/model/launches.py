"""What the library would launch for a call: the one place that knows the launcher's internals.

Nothing else in the bench imports `triton_stn.backends`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from bench.suite.cases import FORMATS, Task
from triton_stn.backends import fused, volume
from triton_stn.backends.layout import empty_gradients, empty_output

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
}
WINDOWS = ("axis", "three", "straight", "walk")  # of the gather, that are counted one by one


@dataclass(frozen=True)
class Specialisation:
    """One launch of a call. ``window`` is the gathering window whose path alone is compiled."""

    label: str
    launch: fused.Launch
    tensors: dict[str, torch.Tensor]
    window: str = ""

    @property
    def kernel(self) -> str:
        return self.launch.kernel.__name__

    @property
    def constants(self) -> dict[str, Any]:
        return self.launch.constants

    @property
    def programs(self) -> int:
        return math.prod(self.launch.grid)

    @property
    def num_warps(self) -> int:
        return self.launch.num_warps

    @property
    def maps(self) -> int:
        """Of an image."""
        return self.launch.numbers.get("K", 1)

    @property
    def itemsize(self) -> int:
        """Bytes of a number of the image, or of the partial sums where there is none."""
        return self.tensors.get("X_ptr", self.tensors.get("P_ptr")).element_size()


def passes(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    wanted: Sequence[tuple[bool, bool]],
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    k: int = 1,
    windows: bool = False,
    size: tuple[int, ...] | None = None,
    source: str = "affine",
) -> Iterator[Specialisation]:
    """The launches of one call: forward, and a backward for each pair of wanted gradients.

    ``shape`` is the input's, ``size`` the output's, by default the same.
    ``windows`` adds the gathering paths of images one by one, to count their instructions.
    """
    n, c, *extent = shape
    size = size or tuple(extent)
    solid = len(extent) == 3
    backend, sources = (volume, ()) if solid else (fused, (source,))
    input = torch.empty(shape, dtype=dtype, device="meta").to(memory_format=memory_format)
    theta = torch.empty(n, k, *_theta_shape(source, size), device="meta")
    output = empty_output(input, k, *size)
    last = memory_format != torch.contiguous_format
    layout = "channels-last" if last else "NCDHW" if solid else "NCHW"
    name = f"C={c} {str(dtype)[6:]} {layout} {mode} {padding_mode}" + (f" K={k}" if k > 1 else "")
    where = f"{name} {'x'.join(map(str, extent))}" + (f" {source}" if source != "affine" else "")
    x, t, y = fused.layout(input), fused.layout(theta), fused.layout(output)
    how = (mode, padding_mode, False)
    tensors = dict(X_ptr=input, Theta_ptr=theta, Y_ptr=output)
    yield Specialisation(where, backend.plan_forward(x, t, y, *how, *sources), tensors)
    partial = torch.empty(0, dtype=fused.sum_dtype(dtype), device="meta")
    for needs_input, needs_theta in wanted:
        needs_theta = needs_theta and mode != "nearest"
        grad_input, grad_theta = empty_gradients(input, theta, needs_input, needs_theta)
        gathers = needs_input and fused.gathers(source, mode, padding_mode)
        if needs_input and (solid or not gathers or fused.scatters_rest(source, False)):
            grad_input = torch.empty_like(input, dtype=fused.sum_dtype(dtype))
        tensors = dict(X_ptr=input, Theta_ptr=theta, dY_ptr=output, dX_ptr=grad_input)
        tensors.update(P_ptr=partial)
        given = (y, x, t, fused.layout(grad_input), *how, needs_input, needs_theta, *sources)
        plans = backend.plan_backward(*given)
        label = f"{where} → " + "+".join(["input"] * needs_input + ["θ"] * needs_theta)
        specs = [Specialisation(label, plan, tensors) for plan in plans]
        yield from specs
        if gathers and source == "projective":  # as torch.use_deterministic_algorithms has it
            (plan,) = backend.plan_backward(*given, True)
            every = label.replace(" →", " every →")
            yield Specialisation(every, plan, tensors)
        if windows and gathers and needs_theta and source == "affine" and not solid:
            yield from paths(specs[0])
        if needs_theta and source == "spline":
            plan = fused.plan_spline_gradient(y, t, x, False)
            tensors = dict(Theta_ptr=theta, dG_ptr=partial, P_ptr=partial)
            yield Specialisation(f"{where} → θ", plan, tensors)
        if needs_theta and source == "affine":
            plan = backend.plan_reduce(y, x, plans[0].slots, False)
            yield Specialisation(f"{where} → θ", plan, dict(P_ptr=partial, dTheta_ptr=grad_theta))


def _theta_shape(source: str, size: tuple[int, ...]) -> tuple[int, ...]:
    shapes = {"affine": (len(size), len(size) + 1), "projective": (3, 3), "spline": (16 + 3, 4)}
    return shapes.get(source, (*size, 6 if source == "patch" else 2))


def paths(gather: Specialisation) -> Iterator[Specialisation]:
    """The gather with one window each, which is never launched: to count that path alone."""
    for window in WINDOWS:
        launch = replace(gather.launch, constants=gather.constants | dict(WINDOW=window))
        yield replace(gather, launch=launch, window=window)


def of_task(task: Task) -> list[Specialisation]:
    """The launches of the task's pass, and the gather's paths."""
    case = task.case
    wanted = {"forward": [], "backward_input": [(True, False)], "backward_theta": [(False, True)]}
    specs = passes(
        (case.n, case.c, *case.extent),
        getattr(torch, task.dtype),
        FORMATS[task.layout, case.ndim],
        wanted.get(task.pass_name, [(True, True)]),
        case.mode,
        task.padding_mode,
        case.k,
        windows=True,
        size=case.size,
        source="spline" if case.transform.startswith("tps") else case.transform,
    )
    if case.transform == "projective":  # the gather of every θ is for deterministic algorithms
        specs = (spec for spec in specs if not spec.constants.get("EVERY"))
    forward = "forward" in task.pass_name
    return [spec for spec in specs if forward or not spec.kernel.endswith("forward")]


def compiled(spec: Specialisation, target: str) -> CompiledKernel:
    """The launch compiled for one of ``TARGETS``."""
    source = ASTSource(spec.launch.kernel, *_signature(spec))
    options = spec.launch.options(nvidia=target.startswith("sm"))
    return triton.compile(source, target=TARGETS[target], options=options)


def key(spec: Specialisation) -> tuple[str, ...]:
    """Alike where the compiler is given the same."""
    return spec.kernel, repr(_signature(spec)), spec.window


def _signature(spec: Specialisation) -> tuple[dict, dict, dict]:
    """(signature, constants, attributes), as Triton specialises the arguments of a launch."""
    signature, constants, attributes = {}, dict(spec.constants), {}
    arguments = spec.tensors | spec.launch.numbers
    for index, name in enumerate(spec.launch.kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        value = arguments[name]
        aligned = True
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]  # allocations are aligned to 16 bytes
        elif isinstance(value, float):
            signature[name], aligned = "fp32", False
        elif value == 1:
            signature[name], constants[name], aligned = "constexpr", 1, False
        else:
            signature[name] = "i32" if abs(value) <= fused.INT32_MAX else "i64"
            aligned = value % 16 == 0
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def warm_up(specs: Sequence[Specialisation]) -> None:
    """Compile the launches as PyTorch's current device would run them."""
    for spec in specs:
        launch = spec.launch
        arguments = spec.tensors | launch.numbers | launch.constants
        arguments = {name: arguments[name] for name in launch.kernel.arg_names}
        options = launch.options(nvidia=torch.version.hip is None)
        with suppress(Exception):  # the launch itself will say what is wrong
            launch.kernel.warmup(**arguments, **options, grid=launch.grid)


def forget() -> None:
    """Empty the caches of plans, which were made from constants that have changed."""
    for module in (fused, volume):
        for value in vars(module).values():
            # What a module imported does not depend on them.
            if hasattr(value, "cache_clear") and value.__module__ == module.__name__:
                value.cache_clear()
