"""A plan -> a compiled kernel, which is kept and called directly.

Triton's own call specialises, looks up and binds some sixty numbers at every launch. Here all that
depends on the layouts is decided once a plan, and so is what a kernel is specialised on: data
types, strides of one, the alignment of channels-last pixels, and nothing else, so that no size of
an image or a batch makes a kernel of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from triton_stn.backends import INTERPRETED
from triton_stn.kernels import configs
from triton_stn.kernels.arguments import Buffer, Image, InputSums

INT32_MAX = 2**31 - 1
RUNTIME = triton.knobs.runtime  # Triton's settings
POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}
ALIGNED = ("stride_n", "stride_k", "stride_d", "stride_h", "stride_w")  # see `alignment`


@dataclass(frozen=True, eq=False)
class Plan:
    """One kernel launch, as data; the tensors come to it in `launch`.

    ``arguments`` are the kernel's, by name and in its order. Where a tensor goes, ``ptr`` of a
    named tuple, is its dtype.
    """

    kernel: triton.JITFunction
    grid: tuple[int, int, int]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    num_warps: int
    maxnreg: int | None = None  # registers a thread, on NVIDIA
    align: int = 1  # numbers; where it is more than 1, tensors have to be aligned to 16 bytes

    def options(self, target: GPUTarget) -> dict[str, Any]:
        """The compiler's options."""
        # Triton 3.10 will fuse no more unless asked; what two kernels agree in depends on neither.
        options = {"num_warps": self.num_warps, "enable_fp_fusion": True}
        if target.backend == "cuda" and self.maxnreg is not None:
            cap = configs.register_cap(self.maxnreg, target.arch)
            options |= {"maxnreg": cap} if cap else {}
        return options

    @cached_property
    def tensors(self) -> list[str]:
        """The names of the arguments that are tensors."""
        return [name for name, value in self.arguments.items() if hasattr(value, "ptr")]

    def filled(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """The arguments with tensors in their places."""
        return {
            name: value._replace(ptr=tensors[name]) if hasattr(value, "ptr") else value
            for name, value in self.arguments.items()
        }


@dataclass(frozen=True, eq=False)
class Launches:
    """Plans that run one after another. Of the same tensors each takes those that it names."""

    plans: tuple[Plan, ...]
    kept: tuple[dict, dict] = field(default_factory=lambda: ({}, {}))  # [aligned][device], `Ready`

    @cached_property
    def in_lanes(self) -> tuple[str, ...]:
        """The names of tensors that have to be aligned, or the kernels are others."""
        return tuple(name for plan in self.plans if plan.align > 1 for name in plan.tensors)

    def aligned(self, tensors: dict[str, torch.Tensor | None]) -> bool:
        """Whether tensors begin at multiples of 16 bytes, where it matters."""
        for name in self.in_lanes:
            if tensors[name] is not None and tensors[name].data_ptr() % 16:
                return False
        return True


def _kind(name: str, value: Any, wide: bool) -> tuple[str, Any]:
    """(Triton's type of a number or a dtype, its constant value or None)."""
    if isinstance(value, torch.dtype):
        return POINTERS[value], None
    if isinstance(value, float):
        return "fp64" if wide else "fp32", None
    if name in ("stride_n", "stride_k", "elements"):  # offsets between images are 64-bit anyway
        return "i64", None
    if name in ("stride_c", "stride_w") and value == 1:
        return "constexpr", 1
    return "i32" if abs(value) <= INT32_MAX else "i64", None


def specialisation(plan: Plan, aligned: bool) -> tuple[dict, dict, dict]:
    """(signature, constants, attributes) of a plan's kernel, as `ASTSource` takes them."""
    signature, constants, attributes = {}, {}, {}
    wide = any(getattr(v, "dtype", None) == tl.float64 for v in plan.constants.values())
    for index, name in enumerate(plan.kernel.arg_names):
        if name in plan.constants:
            signature[name] = "constexpr"
            constants[index,] = plan.constants[name]
            continue
        value = plan.arguments[name]
        if not isinstance(value, tuple):
            signature[name], _ = _kind(name, value, wide)
            continue
        kinds = []
        for place, (part, number) in enumerate(zip(value._fields, value, strict=True)):
            kind, constant = _kind(part, number, wide)
            kinds.append(kind)
            if constant is not None:
                constants[index, place] = constant
            elif part == "ptr" and (
                isinstance(value, Buffer | InputSums) or (aligned and plan.align > 1)
            ):
                attributes[index, place] = [["tt.divisibility", 16]]
            elif part in ALIGNED and plan.align > 1 and isinstance(value, Image):
                attributes[index, place] = [["tt.divisibility", plan.align]]
        signature[name] = type(value)(*kinds)
    return signature, constants, attributes


_compiled: dict[tuple, CompiledKernel] = {}


def compile_plan(plan: Plan, target: GPUTarget, device: Any = None, aligned: bool = True):
    """The compiled kernel of a plan, kept by what it is specialised on and by device."""
    signature, constants, attributes = specialisation(plan, aligned)
    options = plan.options(target)
    key = (
        plan.kernel.__name__, str(signature), str(constants), str(attributes), str(options),
        target, device,
    )  # fmt: skip
    found = _compiled.get(key)
    if found is None:
        source = ASTSource(plan.kernel, signature, constants, attributes)
        found = _compiled[key] = triton.compile(source, target=target, options=options)
    return found


class Ready:
    """A compiled kernel on a device, with all of its arguments but the tensors."""

    def __init__(self, plan: Plan, device: torch.device, aligned: bool):
        self.grid = plan.grid
        self.driver, self.compiled, self.run = self._load(plan, device, aligned)
        values = {**plan.arguments, **plan.constants}
        # A kernel's tensors are its first arguments: their names, and what follows each pointer.
        self.tensors = [(name, tuple(values[name][1:])) for name in plan.tensors]
        self.numbers = [values[name] for name in plan.kernel.arg_names[len(self.tensors) :]]
        of_kernel = self.compiled.function, self.compiled.packed_metadata
        self.head = (*of_kernel, None, None, None)  # with no hooks

    def _load(self, plan: Plan, device: torch.device, aligned: bool) -> tuple[Any, Any, Any]:
        """(Triton's driver, the compiled kernel, its launcher), loaded on the device."""
        driver = triton.runtime.driver.active
        with torch.get_device_module(device).device(device):
            compiled = compile_plan(plan, driver.get_current_target(), device, aligned)
            return driver, compiled, compiled.run


def launch(
    launches: Launches, device: torch.device, tensors: dict[str, torch.Tensor | None]
) -> None:
    """Run what was planned on ``device``, whichever device is current."""
    aligned = not launches.in_lanes or launches.aligned(tensors)
    found = launches.kept[aligned].get(device)
    if found is None:
        if INTERPRETED and device.type == "cpu":
            for plan in launches.plans:
                plan.kernel[plan.grid](**plan.filled(tensors), **plan.constants)
            return
        found = [Ready(plan, device, aligned) for plan in launches.plans]
        launches.kept[aligned][device] = found
    driver, index = found[0].driver, device.index
    if driver.get_current_device() != index:
        with torch.get_device_module(device).device(device):
            return launch(launches, device, tensors)
    stream, hook = driver.get_current_stream(index), RUNTIME.launch_enter_hook
    watched = getattr(hook, "calls", hook)  # by a profiler, which Triton's own call tells
    for each in found:
        pointers = [(tensors[name],) + rest for name, rest in each.tensors]  # noqa: RUF005, quicker
        if watched:
            each.compiled[each.grid](*pointers, *each.numbers)
        else:
            each.run(*each.grid, stream, *each.head, *pointers, *each.numbers)
