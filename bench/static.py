"""The static kernel report: what the compiler makes of every kernel, with no GPU present.

    python -m bench.static

Compiles the specialisations that the launcher chooses for a spread of calls, for sm_80, sm_90 and
gfx942, and prints registers, spilled bytes, shared memory, warp footprint, widest load and store,
and instructions. The launches come from the launcher itself. Exit status 1 on any spill.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
import triton
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.model import sass
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


@dataclass(frozen=True)
class Specialisation:
    """One launch to compile. ``window`` is the gathering window whose path alone is compiled."""

    label: str
    launch: fused.Launch
    tensors: dict[str, torch.Tensor]
    window: str = ""


def specialisations() -> list[Specialisation]:
    """What the launcher chooses for a spread of calls, each specialisation once."""
    found = {}
    for spec in _calls():
        key = (spec.launch.kernel.__name__, repr(_signature(spec)), spec.window)
        found.setdefault(key, spec)
    return list(found.values())


def _calls() -> Iterator[Specialisation]:
    half, single, double = torch.bfloat16, torch.float32, torch.float64
    nchw, last = torch.contiguous_format, torch.channels_last
    every = ((True, True), (True, False), (False, True))  # which gradients are wanted
    both, only_theta = every[:1], every[2:]
    # Few channels unroll, many loop; 17 needs masks; 256 on a small canvas splits.
    for c in (1, 3):
        yield from passes((64, c, 512, 512), single, nchw, every, windows=True)
        yield from passes((16, c, 512, 512), half, nchw, both)
    yield from passes((64, 64, 56, 56), single, nchw, every, windows=True)
    yield from passes((64, 64, 56, 56), half, nchw, both, windows=True)
    yield from passes((64, 64, 56, 56), single, last, every)
    yield from passes((64, 64, 56, 56), half, last, both)
    yield from passes((64, 64, 56, 56), torch.float16, last, both)
    yield from passes((32, 256, 28, 28), single, nchw, both)
    yield from passes((32, 256, 28, 28), half, last, both)
    yield from passes((64, 1, 28, 28), single, nchw, both)
    for memory_format in (nchw, last):
        yield from passes((8, 17, 31, 33), single, memory_format, both)
    for c in (2, 4):
        yield from passes((16, c, 512, 512), single, nchw, both)
    yield from passes((16, 3, 512, 512), single, last, both)
    yield from passes((8, 3, 64, 64), double, nchw, both)
    yield from passes((8, 3, 512, 512), single, nchw, both, k=3, windows=True)
    yield from passes((8, 64, 56, 56), single, last, both, k=3)
    yield from passes((1, 1, 65536, 65536), single, nchw, both)  # offsets beyond int32
    yield from passes((16, 3, 512, 512), single, nchw, both, "nearest")
    yield from passes((64, 64, 56, 56), half, last, both, "nearest")
    for padding_mode in ("border", "reflection"):
        yield from passes((16, 3, 512, 512), single, nchw, both, "bilinear", padding_mode)
        yield from passes((64, 64, 56, 56), half, last, both, "bilinear", padding_mode)
        yield from passes((16, 3, 512, 512), single, nchw, both, "nearest", padding_mode)
        yield from passes((64, 64, 56, 56), single, nchw, only_theta, "bilinear", padding_mode)
    for source in ("projective", "spline", "grid", "flow"):
        yield from passes((16, 3, 512, 512), single, nchw, both, source=source)
        yield from passes((16, 3, 512, 512), single, nchw, both, "bicubic", source=source)
        yield from passes((64, 64, 56, 56), half, last, both, "bilinear", "border", source=source)
        yield from passes((64, 64, 56, 56), half, last, both, "nearest", source=source)
    yield from passes((8, 256, 120, 160), half, nchw, both, source="grid", size=(1, 2048))
    yield from passes((64, 64, 56, 56), half, last, both, source="projective")
    yield from passes((16, 3, 512, 512), single, nchw, both, "bicubic")
    yield from passes((16, 3, 512, 512), single, nchw, both, "area")  # antialias=True
    yield from passes((64, 64, 56, 56), half, last, both, "area")
    for source_of in (((16, 3, 512, 512), single, nchw), ((64, 64, 56, 56), half, last)):
        yield from passes(*source_of, both, "area", source="patch")
    yield from passes((64, 64, 56, 56), half, last, both, "bicubic", "border")
    # Volumes: few channels, many, channels-last, and thin ones.
    last = torch.channels_last_3d
    yield from volume_passes((4, 1, 128, 128, 128), single, nchw, every)
    yield from volume_passes((4, 3, 64, 64, 64), single, nchw, both, k=3)
    yield from volume_passes((8, 32, 64, 64, 64), single, nchw, every)
    yield from volume_passes((8, 32, 64, 64, 64), half, nchw, both)
    yield from volume_passes((8, 32, 64, 64, 64), half, last, both)
    yield from volume_passes((8, 32, 64, 64, 64), single, last, both)
    yield from volume_passes((2, 17, 3, 31, 33), single, nchw, both)
    yield from volume_passes((2, 3, 16, 16, 16), double, nchw, both)
    yield from volume_passes((1, 1, 2048, 2048, 2048), single, nchw, both)  # beyond int32
    yield from volume_passes((8, 32, 64, 64, 64), single, nchw, both, "nearest")
    for padding_mode in ("border", "reflection"):
        yield from volume_passes((8, 32, 64, 64, 64), single, nchw, both, "bilinear", padding_mode)
        yield from volume_passes((8, 32, 64, 64, 64), half, last, both, "bilinear", padding_mode)


def volume_passes(
    shape: tuple[int, int, int, int, int],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    wanted: Sequence[tuple[bool, bool]],
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    k: int = 1,
) -> Iterator[Specialisation]:
    """The launches of one call on a volume, as `passes`; the output has the input's size."""
    n, c, d, h, w = shape
    input = torch.empty(shape, dtype=dtype, device="meta").to(memory_format=memory_format)
    theta = torch.empty(n, k, 3, 4, device="meta")
    output = empty_output(input, k, d, h, w)
    layout = "channels-last" if memory_format == torch.channels_last_3d else "NCDHW"
    name = f"C={c} {str(dtype)[6:]} {layout} {mode} {padding_mode}" + (f" K={k}" if k > 1 else "")
    where = f"{name} {d}x{h}x{w}"
    x, t, y = fused.layout(input), fused.layout(theta), fused.layout(output)
    tensors = dict(X_ptr=input, Theta_ptr=theta, Y_ptr=output)
    plan = volume.plan_forward(x, t, y, mode, padding_mode, False)
    yield Specialisation(where, plan, tensors)
    partial = torch.empty(0, dtype=fused.sum_dtype(dtype), device="meta")
    for needs_input, needs_theta in wanted:
        needs_theta = needs_theta and mode != "nearest"
        sums = torch.empty_like(input, dtype=fused.sum_dtype(dtype))
        sums = sums if needs_input else input.new_empty(0)
        tensors = dict(X_ptr=input, Theta_ptr=theta, dY_ptr=output, dX_ptr=sums, P_ptr=partial)
        options = (mode, padding_mode, False, needs_input, needs_theta)
        plans = volume.plan_backward(y, x, t, fused.layout(sums), *options)
        wants = "+".join(["input"] * needs_input + ["θ"] * needs_theta)
        for plan in plans:
            yield Specialisation(f"{where} → {wants}", plan, tensors)
        if needs_theta:
            plan = volume.plan_reduce(y, x, plans[0].slots, False)
            yield Specialisation(f"{where} → θ", plan, dict(P_ptr=partial, dTheta_ptr=theta))


def passes(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    wanted: Sequence[tuple[bool, bool]],
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    k: int = 1,
    windows: bool = False,
    size: tuple[int, int] | None = None,
    source: str = "affine",
) -> Iterator[Specialisation]:
    """The launches of one call: forward, and a backward for each pair of wanted gradients.

    ``shape`` is the input's, ``size`` the output's (H_out, W_out), by default the same.
    ``windows`` adds the gathering paths one by one, to count their instructions.
    """
    n, c, h, w = shape
    size = size or (h, w)
    input = torch.empty(shape, dtype=dtype, device="meta").to(memory_format=memory_format)
    inner = {"affine": (2, 3), "projective": (3, 3), "spline": (16 + 3, 4), "patch": (*size, 6)}
    inner = inner.get(source, (*size, 2))
    theta = torch.empty(n, k, *inner, device="meta")
    output = empty_output(input, k, *size)
    layout = "channels-last" if memory_format == torch.channels_last else "NCHW"
    name = f"C={c} {str(dtype)[6:]} {layout} {mode} {padding_mode}" + (f" K={k}" if k > 1 else "")
    where = f"{name} {h}x{w}" + (f" {source}" if source != "affine" else "")
    x, t, y = fused.layout(input), fused.layout(theta), fused.layout(output)
    tensors = dict(X_ptr=input, Theta_ptr=theta, Y_ptr=output)
    plan = fused.plan_forward(x, t, y, mode, padding_mode, False, source)
    yield Specialisation(where, plan, tensors)
    for needs_input, needs_theta in wanted:
        needs_theta = needs_theta and mode != "nearest"
        grad_input, grad_theta = empty_gradients(input, theta, needs_input, needs_theta)
        gathers = needs_input and fused.gathers(source, mode, padding_mode)
        if needs_input and (not gathers or fused.scatters_rest(source, False)):
            grad_input = torch.empty_like(input, dtype=fused.sum_dtype(dtype))
        partial = torch.empty(0, dtype=fused.sum_dtype(dtype), device="meta")
        tensors = dict(X_ptr=input, Theta_ptr=theta, dY_ptr=output, dX_ptr=grad_input)
        tensors.update(P_ptr=partial)
        layouts = (y, x, t, fused.layout(grad_input))
        options = (mode, padding_mode, False, needs_input, needs_theta)
        wants = "+".join(["input"] * needs_input + ["θ"] * needs_theta)
        plans = fused.plan_backward(*layouts, *options, source)
        for plan in plans:
            yield Specialisation(f"{where} → {wants}", plan, tensors)
        if gathers and source == "projective":  # as torch.use_deterministic_algorithms has it
            (plan,) = fused.plan_backward(*layouts, *options, source, True)
            yield Specialisation(f"{where} every → {wants}", plan, tensors)
        affine = windows and gathers and needs_theta and source == "affine"
        for window in sass.WINDOWS if affine else ():
            path = replace(plans[0], constants=plans[0].constants | dict(WINDOW=window))
            yield Specialisation(f"{where} → {wants}", path, tensors, window)
        if needs_theta and source == "spline":
            plan = fused.plan_spline_gradient(y, t, x, False)
            tensors = dict(Theta_ptr=theta, dG_ptr=partial, P_ptr=partial)
            yield Specialisation(f"{where} → θ", plan, tensors)
        if needs_theta and source == "affine":
            plan = fused.plan_reduce(y, x, plans[0].slots, False)
            tensors = dict(P_ptr=partial, dTheta_ptr=grad_theta)
            yield Specialisation(f"{where} → θ", plan, tensors)


def _signature(spec: Specialisation) -> tuple[dict, dict, dict]:
    """(signature, constants, attributes), as Triton specialises the arguments of a launch."""
    signature, constants, attributes = {}, dict(spec.launch.constants), {}
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


def _itemsize(spec: Specialisation) -> int:
    """Bytes of a number of the image, or of the partial sums where there is none."""
    return spec.tensors.get("X_ptr", spec.tensors.get("P_ptr")).element_size()


def compile_one(index: int, target: str) -> dict:
    """`compile_spec` for a worker process, which kernels can not be sent to."""
    return compile_spec(specialisations()[index], target)


def compile_spec(spec: Specialisation, target: str) -> dict:
    """The report's row of one specialisation on one target."""
    source = ASTSource(spec.launch.kernel, *_signature(spec))
    options = spec.launch.options(nvidia=target.startswith("sm"))
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    row = {"kernel": spec.launch.kernel.__name__, "case": spec.label, "window": spec.window}
    row |= {"target": target, "warp": sass.footprint(compiled.asm["ttgir"], spec.launch.constants)}
    row |= {"shared": compiled.metadata.shared}
    if target.startswith("gfx"):
        return row | sass.amd_resources(compiled.asm["amdgcn"])
    return row | sass.nvidia_resources(
        compiled.asm["cubin"], spec.launch, spec.window, _itemsize(spec)
    )


def table(targets: list[str], text: str = "", jobs: int | None = None) -> pd.DataFrame:
    """A row a specialisation × target; ``text`` selects by kernel or case."""
    specs = specialisations()
    tasks = [
        (index, target)
        for target in targets
        for index, spec in enumerate(specs)
        if text in f"{spec.launch.kernel.__name__} {spec.label} {spec.window}"
        # One path alone is never launched: it is compiled to count its instructions on sm_90.
        and (not spec.window or target == "sm_90")
    ]
    rows = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs or os.cpu_count(), mp_context=context) as pool:
        futures = [pool.submit(compile_one, *task) for task in tasks]
        for future in tqdm(futures, desc="compiling", unit="kernel"):
            rows.append(future.result())
    return pd.DataFrame(rows)


def report(out: Path | None = None, targets: list[str] | None = None, text: str = "") -> int:
    """Print the report, write it to ``out`` as CSV if given, and return the exit status."""
    frame = table(targets or list(TARGETS), text)
    for target, rows in frame.groupby("target", sort=False):
        print(f"\n## {target}\n")
        print(rows.drop(columns="target").dropna(axis=1, how="all").to_markdown(index=False))
    if out is not None:
        frame.to_csv(out, index=False)
    launched = frame[frame.window == ""]
    spilled = launched[launched.spilled > 0]
    print(f"\n{len(launched)} kernels compiled, {len(spilled)} with spilled registers")
    for row in spilled.itertuples():
        print(f"  {row.target} {row.kernel} {row.case}: {row.spilled} bytes")
    return 1 if len(spilled) else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.static", description=__doc__)
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="default: all")
    parser.add_argument("--filter", default="", metavar="TEXT", help="in the kernel or the case")
    parser.add_argument("--out", type=Path, help="also write the rows as CSV")
    args = parser.parse_args(argv)
    return report(args.out, args.target, args.filter)


if __name__ == "__main__":
    sys.exit(main())
