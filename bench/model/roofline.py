"""``python -m bench roofline``: predict each kernel's time on a named GPU, and what bounds it.

A prediction is the largest of five floors under the time of a pass:

    memory   device-memory bytes / bandwidth of a copy
    L2       32-byte sectors that the warps' addresses touch / L2 bandwidth
    L1       cycles in which an L1 looks up the 128-byte lines of those addresses / (SMs x clock)
    issue    instructions of the warps, on the branch that θ takes in the kernel as it is launched
             (bench.model.counts) / (4 schedulers x SMs x clock)
    latency  rounds of loads that wait for one another in a program, θ's and one a tile and pass of
             channels, x waves of programs that fit by registers and threads x `LATENCY` / clock

A floor is not a time: floors add up where they do not overlap, and launches and a kernel's tail
come on top. Float32, contiguous, zeros padding. Of volumes only the bytes are modelled.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import pandas as pd
from tqdm import tqdm
from triton.compiler import CompiledKernel

from bench import cli
from bench.model import addresses, counts, launches, sass
from bench.model.addresses import SIZE, WARP
from bench.model.launches import Specialisation
from bench.output import table
from bench.suite.cases import CASES, Case, Task, angle_and_scale, in_view, min_bytes

PASSES = ("forward", "backward")
KEYS = ["case", "theta_kind", "pass", "provider"]  # what tells a row from the others
# Cycles from a load to its use, of L2 and device memory together: assumed, not from a document.
LATENCY = 600
THREADS, REGISTERS = 2048, 65536  # of a multiprocessor (CUDA programming guide)
SCHEDULERS = 4  # an SM issues four warps' instructions a cycle (CUDA programming guide)


@dataclass(frozen=True)
class GPU:
    """What the floors divide by."""

    name: str  # as the driver calls it
    target: str  # of bench.model.launches
    sms: int
    hz: float
    copy: float  # device memory, bytes read + written a second
    l2: float  # bytes a second between L2 and the SMs
    tags: int  # 128-byte lines that an L1 looks up a cycle


# L2: NVIDIA's A100 whitepaper gives 5,120 bytes a cycle; that Hopper has as many is assumed.
# L1: "4 tags per cycle, at most 16 sectors", an NVIDIA engineer on Volta
# (forums.developer.nvidia.com/t/pascal-l1-cache/49571/14); that it still holds is assumed, and no
# document says so: `--tags 1` shows what the other end would mean.
GPUS = {
    # Copy: PyTorch's on an H200, 8.6 GB in 2.0 ms (datasheet: 4.8e12). SMs: as PyTorch reports
    # them. Clock: 29.6e12 lane-instructions/s; up to 1.98e9 was read under load, 11% less time.
    "H200": GPU("NVIDIA H200", "sm_90", 132, 1.755e9, 4.3e12, 5120 * 1.755e9, 4),
    # Copy: the datasheet's 3.35e12, by the share of its own that the H200 reached: assumed.
    "H100": GPU("NVIDIA H100 80GB HBM3", "sm_90", 132, 1.755e9, 3.0e12, 5120 * 1.755e9, 4),
    # Datasheet and whitepaper: 108 SMs, 1,410 MHz, 2,039 GB/s. No copy was timed.
    "A100": GPU("NVIDIA A100-SXM4-80GB", "sm_80", 108, 1.41e9, 2.039e12, 5120 * 1.41e9, 4),
}
# Kernel launches a pass, of images and of volumes: eager's as counted in a profile of PyTorch, with
# about three more for the third axis of a volume's base grid; ours from the code, for one map an
# image (the backward of several has one more).
LAUNCHES = {("triton_stn", 2): (1, 2), ("triton_stn", 3): (1, 2)}
LAUNCHES |= {("eager", 2): (11, 12), ("eager", 3): (14, 15)}


@dataclass(frozen=True)
class Work:
    """What a pass asks of the GPU; ``None`` where it is not known."""

    bytes: float
    touched: addresses.Touched | None
    instructions: float | None  # of warps
    waits: float | None = None  # cycles of loads that wait for one another, wave after wave

    def floors(self, gpu: GPU) -> dict[str, float | None]:
        """Microseconds, by what bounds."""
        l1 = self.touched and self.touched.cycles / (gpu.sms * gpu.hz)
        l2 = self.touched and self.touched.sectors * addresses.SECTOR / gpu.l2
        issue = self.instructions and self.instructions / (gpu.sms * SCHEDULERS * gpu.hz)
        latency = self.waits and self.waits / gpu.hz
        memory = self.bytes / gpu.copy
        seconds = {"memory": memory, "L2": l2, "L1": l1, "issue": issue, "latency": latency}
        return {name: t and 1e6 * t for name, t in seconds.items()}


def ours(task: Task, gpu: GPU) -> Work:
    """triton_stn's work."""
    case = task.case
    bytes = min_bytes(task)
    backward = task.pass_name == "backward"
    if backward and case.ndim == 2 and not addresses.from_input(case, task.theta_kind):
        # grad_input and grad_theta each read dY.
        bytes += SIZE * case.n * case.c * in_view(case, task.theta_kind)[1]
    if case.ndim == 3 or window(task) == "WIDE":
        return Work(bytes, None, None)
    touched = addresses.ours(case, task.theta_kind, task.pass_name, gpu.tags)
    threads = instructions(task, gpu.target)
    return Work(bytes, touched, threads and threads / WARP, threads and waits(task, gpu))


def window(task: Task) -> str:
    """The gathering window of a backward pass on images, else ""."""
    if task.pass_name != "backward" or task.case.ndim == 3:
        return ""
    return addresses.window(addresses.pixel_maps(task.case, task.theta_kind)[0])


def eager(task: Task, gpu: GPU) -> Work:
    """PyTorch's work: `affine_grid` (a base grid and a bmm), `grid_sample`, their backward.

    K maps of an image cost K copies of it. How many instructions its kernels take is not known.
    """
    case = task.case
    touched, _ = in_view(case, task.theta_kind)
    images = case.n * case.k
    pixels = images * math.prod(case.size)
    whole = case.c * math.prod(case.extent)
    streamed = (case.n + images) * whole if case.k > 1 else 0
    # Base grid written and read, ndim + 1 numbers a pixel.
    streamed += 2 * (case.ndim + 1) * pixels
    # Forward, grid written, and read by the sampler; backward, grad_grid read.
    streamed += case.ndim * pixels
    if task.pass_name == "forward":
        sampler_grid = case.ndim * pixels
        sampled = case.n * case.c * touched + pixels * case.c
    else:
        streamed += images * whole  # the zeros of grad_input
        sampler_grid = 2 * case.ndim * pixels  # grid read, grad_grid written
        # grad read, input read, grad_input read and written by the atomics.
        sampled = pixels * case.c + 3 * case.n * case.c * touched
    bytes = SIZE * (streamed + sampler_grid + sampled)
    if case.ndim == 3:
        return Work(bytes, None, None)
    beside = SIZE * streamed
    touched = addresses.eager(case, task.theta_kind, task.pass_name, gpu.tags, beside)
    return Work(bytes, touched, None)


def instructions(task: Task, target: str) -> float | None:
    """Instructions of all threads of a pass, as it is launched, compiled for ``target``.

    None of a window of kind STRAIGHT, whose loops the compiler unrolls in ways that are not
    followed, and where Triton interprets its kernels and can not compile them.
    """
    kind = window(task)
    if os.environ.get("TRITON_INTERPRET") == "1" or kind == "STRAIGHT":
        return None
    case = task.case
    if not kind:
        return of_kernel(case, "forward", "", target)
    candidates = ()
    if kind == "WALK":
        candidates = addresses.walked(addresses.pixel_maps(case, task.theta_kind)[0])
    gather = "gather" if case.k == 1 else "gather_maps"
    share, near = addresses.met(case, task.theta_kind)
    total = share * of_kernel(case, gather, kind, target, candidates)
    if near > share and case.k > 1:
        total += (near - share) * of_kernel(case, gather, counts.NEAR, target)
        share = near
    if share < 1:
        total += (1 - share) * of_kernel(case, gather, counts.MISSED, target)
    if "grad_theta" in launched(case, target):
        total += of_kernel(case, "grad_theta", "", target)
    elif from_output(launched(case, target)[gather][0], kind):
        total += of_output(case, gather, target)
    return total


def from_output(spec: Specialisation, kind: str) -> bool:
    """Whether a gather's programs take grad_theta from the output's side, by their window."""
    rules = spec.plan.constants["RULES"]
    return rules.needs_theta and not (rules.joint and kind in counts.JOINT)


def waits(task: Task, gpu: GPU) -> float:
    """Cycles that the programs of a pass's launches wait, were every tile in view.

    Of several maps of an image a program waits for the look at all, and for each that it sees,
    whose theta then lies in L1.
    """
    case = task.case
    backward = task.pass_name == "backward"
    cycles = 0.0
    for kernel, (spec, compiled) in launched(case, gpu.target).items():
        if backward == (kernel == "forward"):
            continue
        threads = spec.plan.num_warps * WARP
        registers = -(-sass.resources(compiled)["registers"] // 8) * 8 * threads
        resident = gpu.sms * min(THREADS // threads, REGISTERS // registers)
        rounds = 1.0
        if kernel != "reduce":
            work = spec.plan.arguments["WORK"]
            passes = math.ceil(work.channels_a_split / spec.tiling.step)
            tiles = work.bands * work.tiles
            looks = 1.0
            if kernel == "gather_maps":
                looks += work.maps * addresses.met(case, task.theta_kind)[0]
            rounds += tiles * passes * looks
        if kernel.startswith("gather") and from_output(spec, window(task)):
            rounds += passes * output_tiles(spec)
        cycles += math.ceil(spec.programs / resident) * rounds * LATENCY
    return cycles


@lru_cache(maxsize=64)
def launched(case: Case, target: str) -> dict[str, tuple[Specialisation, CompiledKernel]]:
    """The launches of a case's passes, and what they are compiled to, by kernel."""
    return {spec.kernel: (spec, launches.compiled(spec, target)) for spec in launches.of_case(case)}


@lru_cache(maxsize=256)
def of_kernel(
    case: Case, kernel: str, window: str, target: str, candidates: tuple[int, ...] = ()
) -> float:
    """Instructions that the threads of a launch execute, were every tile's window this one.

    ``candidates``: rows, and how many in each, of a window that is walked.
    """
    spec, compiled = launched(case, target)[kernel]
    found = counts.path(spec, compiled, window)
    threads = spec.programs * spec.plan.num_warps * WARP
    return threads * found.total(counts.turns(spec, found, candidates))


def output_tiles(spec: Specialisation) -> float:
    """Tiles of the output that a program of the gather walks, where it does (`output_side.py`)."""
    walk = spec.plan.arguments["OUTPUT"]
    return walk.bands * walk.tiles


@lru_cache(maxsize=256)
def of_output(case: Case, gather: str, target: str) -> float:
    """Instructions of the gather's threads that it takes grad_theta from the output's side with."""
    spec, compiled = launched(case, target)[gather]
    found = counts.path(spec, compiled, counts.OUTPUT)
    turns = [output_tiles(spec), *counts.turns(spec, found)[1 : len(found.loops)]]
    beside = counts.path(spec, compiled, counts.MISSED).once  # is counted with the window
    return spec.programs * spec.plan.num_warps * WARP * (found.total(turns) - beside)


def predict(tasks: Sequence[Task], gpu: GPU) -> pd.DataFrame:
    """A row a task × provider: the five floors in µs, which binds, and the *predicted* ms."""
    rows = []
    for task in tqdm(tasks, desc="predicting", unit="task", disable=None):
        backward = PASSES.index(task.pass_name)
        for provider, work_of in (("triton_stn", ours), ("eager", eager)):
            mine = provider == "triton_stn"
            floors = work_of(task, gpu).floors(gpu)
            key = (task.case.name, task.theta_kind, task.pass_name, provider)
            row: dict[str, object] = dict(zip(KEYS, key, strict=True))
            row |= {f"{name} µs": t for name, t in floors.items()} | bound(floors)
            row["launches"] = LAUNCHES[provider, task.case.ndim][backward]
            row["launches"] += mine and backward and launches.sums_apart(task.case)
            rows.append(row | {"window": (mine and window(task)) or None})
    return pd.DataFrame(rows)


def bound(floors: dict[str, float | None]) -> dict[str, object]:
    """The columns of the largest of the floors that are known."""
    known = {name: microseconds for name, microseconds in floors.items() if microseconds}
    binds = max(known, key=known.get)
    return {"binds": binds, "predicted ms": known[binds] / 1e3}


def measured(predicted: pd.DataFrame, results: pd.DataFrame, gpu: GPU) -> pd.DataFrame:
    """``predicted`` with a column "measured ms", from rows of this GPU and of the full batch."""
    batch = {case.name: case.n for case in CASES}
    plain = results[table.plain(results) & (results.device == gpu.name) & (results.status == "ok")]
    plain = plain[plain.n == plain.case.map(batch)]
    times = plain[[*KEYS, "ms_p50"]].rename(columns={"ms_p50": "measured ms"})
    return predicted.merge(times, "left", KEYS)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 when nothing is to be predicted."""
    options = _parse(argv)
    gpu = GPUS[options.gpu]
    gpu = replace(gpu, tags=options.tags or gpu.tags)
    tasks = [
        Task(case, pass_name, theta_kind)
        for case in CASES
        for theta_kind in options.theta or case.theta_kinds
        for pass_name in PASSES
    ]
    names = ["/".join((t.case.name, t.pass_name, t.theta_kind)) for t in tasks]
    tasks = [t for t, name in zip(tasks, names, strict=True) if cli.matches(name, options.filter)]
    cases = dict.fromkeys(task.case for task in tasks)
    unknown = [c.name for c in cases if (c.transform, c.mode) != ("affine", "bilinear")]
    if unknown:
        said = f"Not predicted: {', '.join(unknown)}."
        said += " Only bilinear samples of affine maps are modelled."
        print(f"{textwrap.fill(said, 100)}\n")
        tasks = [task for task in tasks if task.case.name not in unknown]
    if not tasks:
        print(f"Nothing to predict with --filter {options.filter!r}.", file=sys.stderr)
        return 2
    csv = table.folder(gpu.name) / "results.csv"
    frame = predict(tasks, gpu)
    if csv.exists():
        frame = measured(frame, table.read(csv), gpu)
    if options.out:
        frame.to_csv(options.out, index=False, float_format="%.6g")
    _print(frame, gpu, csv if csv.exists() else None)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench roofline",
        description="Predict times as the largest of five floors: memory, L2, L1, issue, latency.",
    )
    parser.add_argument("--gpu", choices=list(GPUS), default="H200", help="default: %(default)s")
    cli.add_filter(parser, "tasks whose case/pass/theta")
    parser.add_argument(
        "--theta",
        action="append",
        type=lambda kind: angle_and_scale(kind) and kind,  # a ValueError says that it is none
        metavar="KIND",
        help="rotation_A, zoom_in_F or zoom_out_F; default: each case's own",
    )
    parser.add_argument("--tags", type=int, metavar="N", help="lines an L1 looks up a cycle")
    parser.add_argument("--out", type=Path, metavar="CSV", help="also write the rows as CSV")
    return parser.parse_args(argv)


def _shown(frame: pd.DataFrame) -> pd.DataFrame:
    """A line a task, in microseconds: ours, and eager's time beside it."""
    ours, eager = (frame[frame.provider == name] for name in ("triton_stn", "eager"))
    *task, _ = KEYS
    times = [name for name in ("predicted ms", "measured ms") if name in frame]
    both = ours.merge(eager[[*task, *times]], on=task, suffixes=("", " of eager"))
    floors = [name for name in frame if name.endswith(" µs")]
    shown = both[[*task, *floors, "binds", "window"]].rename(
        columns=lambda n: n.removesuffix(" µs")
    )
    for name in times:
        ours, eager = ("µs", "eager") if name == times[0] else ("timed", "eager timed")
        shown[ours], shown[eager] = 1e3 * both[name], 1e3 * both[f"{name} of eager"]
    return shown.rename(columns={"theta_kind": "θ"})


def _print(frame: pd.DataFrame, gpu: GPU, csv: Path | None) -> None:
    lines = [
        f"{gpu.name}, float32, contiguous. All numbers are *predicted* floors, unless measured.",
        f"{gpu.sms} SMs, {gpu.hz / 1e9:g} GHz, copy {gpu.copy / 1e12:g} TB/s, "
        f"L2 {gpu.l2 / 1e12:.3g} TB/s, {gpu.tags} L1 lines a cycle.",
        "",
        table.to_terminal(_shown(frame), floatfmt=".3g"),
        "",
        "Microseconds: the largest of the five, which binds. Eager's issue and",
        "latency floors are not known: nobody counted its instructions. A launch takes time of its",
        "own, which is in no floor.",
    ]
    notes = {
        "STRAIGHT": "its instructions are not counted.",
        "WIDE": "only the bytes are known; its threads share pixels, which is not modelled.",
    }
    lines += [f"{name}: {note}" for name, note in notes.items() if (frame.window == name).any()]
    if frame.case.isin([case.name for case in CASES if case.ndim == 3]).any():
        lines.append("Of volumes only the bytes are known.")
    lines += [f"Measured: {csv}." if csv else f"Measured: nothing, no results of {gpu.name}."]
    print("\n".join(lines))
