"""The static kernel report: what the compiler makes of every kernel, with no GPU present.

    python -m bench.static

Compiles the specialisations that the launcher chooses for a spread of calls, for sm_80, sm_90 and
gfx942, and prints a digest: kernels, spills, most registers, and the counted instructions beside
what they may be. Registers, spilled bytes, shared memory, warp footprint, widest load and store,
and instructions of every kernel are in the CSV that it writes. Exit status 1 on any spill.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from bench import cli
from bench.model import counts, launches
from bench.model.compiler import workers
from bench.model.launches import TARGETS, Specialisation, passes

OUT = Path(__file__).parents[1] / "build" / "kernels.csv"
PLAIN = "float32 NCHW bilinear zeros"
# Instructions that a thread may execute on sm_90, of kernels of ``PLAIN`` images; by kernel,
# window, case (its label is "C=CHANNELS PLAIN REST") and column. A little above what was compiled.
BUDGETS = {
    ("forward", "", "1", "512x512", "per_pixel"): 82,
    ("forward", "", "3", "512x512", "per_pixel"): 126,
    ("forward", "", "64", "56x56", "per_pixel_channel"): 17,
    ("gather", "axis", "1", "512x512 → input+θ", "per_pixel"): 168,
    ("gather", "axis", "3", "512x512 → input+θ", "per_pixel"): 216,
    ("gather", "axis", "64", "56x56 → input+θ", "per_pixel_channel"): 49,
    ("gather", "three", "1", "512x512 → input+θ", "per_pixel"): 342,
    ("gather", "three", "3", "512x512 → input+θ", "per_pixel"): 503,
    ("gather", "three", "64", "56x56 → input+θ", "per_pixel_channel"): 96,
    ("scatter", "", "3", "K=3 512x512 → input+θ", "per_pixel"): 150,
}


@lru_cache(maxsize=1)
def specialisations() -> list[Specialisation]:
    """What the launcher chooses for a spread of calls, each specialisation once."""
    found = {}
    for spec in calls():
        found.setdefault(launches.key(spec), spec)
    return list(found.values())


def calls() -> Iterator[Specialisation]:
    """The launches of the spread of calls."""
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
    yield from _of_volumes()


def _of_volumes() -> Iterator[Specialisation]:
    """Few channels, many, channels-last, and thin ones."""
    half, single = torch.bfloat16, torch.float32
    nchw, last = torch.contiguous_format, torch.channels_last_3d
    every = ((True, True), (True, False), (False, True))
    both = every[:1]
    yield from passes((4, 1, 128, 128, 128), single, nchw, every)
    yield from passes((4, 3, 64, 64, 64), single, nchw, both, k=3)
    yield from passes((8, 32, 64, 64, 64), single, nchw, every)
    yield from passes((8, 32, 64, 64, 64), half, nchw, both)
    yield from passes((8, 32, 64, 64, 64), half, last, both)
    yield from passes((8, 32, 64, 64, 64), single, last, both)
    yield from passes((2, 17, 3, 31, 33), single, nchw, both)
    yield from passes((2, 3, 16, 16, 16), torch.float64, nchw, both)
    yield from passes((1, 1, 2048, 2048, 2048), single, nchw, both)  # beyond int32
    yield from passes((8, 32, 64, 64, 64), single, nchw, both, "nearest")
    for padding_mode in ("border", "reflection"):
        yield from passes((8, 32, 64, 64, 64), single, nchw, both, "bilinear", padding_mode)
        yield from passes((8, 32, 64, 64, 64), half, last, both, "bilinear", padding_mode)


def table(targets: list[str], text: str = "") -> pd.DataFrame:
    """A row a specialisation × target; ``text`` selects by kernel or case."""
    chosen = [
        (index, target)
        for target in targets
        for index, spec in enumerate(specialisations())
        if text in f"{spec.kernel} {spec.label} {spec.window}"
        # One path alone is never launched: it is compiled to count its instructions on sm_90.
        and (not spec.window or target == "sm_90")
    ]
    with workers() as pool:
        futures = [pool.submit(_row, *choice) for choice in chosen]
        progress = tqdm(futures, desc="compiling", unit="kernel", disable=None)
        return pd.DataFrame([future.result() for future in progress])


def _row(index: int, target: str) -> dict:
    """For a worker process, which kernels can not be sent to."""
    return counts.row(specialisations()[index], target)


def digest(frame: pd.DataFrame) -> str:
    """A line a target, a line a kernel whose instructions are counted, a line a spill."""
    launched = frame[frame.window == ""]
    lines = []
    for target, rows in launched.groupby("target", sort=False):
        most = rows.groupby("kernel").registers.max().sort_values(ascending=False)
        spilled = int((rows.spilled > 0).sum())
        registers = ", ".join(f"{name} {number}" for name, number in most.items())
        lines.append(f"{target}: {len(rows)} kernels, {spilled} spill; registers: {registers}")
    counted: dict[str, list[str]] = {}
    for (kernel, window, channels, rest, column), most in BUDGETS.items():
        case = f"C={channels} {PLAIN} {rest}"
        found = frame[(frame.kernel == kernel) & (frame.window == window) & (frame.case == case)]
        found = found[found.target == "sm_90"]
        for number in found.get(column, ()):
            unit = column.removeprefix("per_").replace("_", "·")
            said = f"{number:g} of {most} a {unit} at C={channels}"
            counted.setdefault(f"{kernel} {window}".strip(), []).append(said)
    lines += [f"sm_90 instructions, {kernel}: {', '.join(of)}" for kernel, of in counted.items()]
    spilled = launched[launched.spilled > 0]
    lines += [f"{r.target} {r.kernel} {r.case}: {r.spilled} bytes" for r in spilled.itertuples()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, 1 when a launched kernel spills, 2 when there is nothing to compile."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.static",
        description="Compile the kernels that the library launches, for targets that are not here.",
    )
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="default: all")
    parser.add_argument("--filter", default="", metavar="TEXT", help="in the kernel or the case")
    parser.add_argument(
        "--out", type=Path, metavar="CSV", default=OUT, help="default: build/kernels.csv"
    )
    options = parser.parse_args(argv)
    frame = table(options.target or list(TARGETS), options.filter)
    if frame.empty:
        print(f"Nothing matches --filter {options.filter!r}.", file=sys.stderr)
        return cli.NOTHING
    options.out.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(options.out, index=False)
    print(f"{digest(frame)}\nwrote {options.out}: every kernel")
    return cli.FAILED if (frame[frame.window == ""].spilled > 0).any() else 0


if __name__ == "__main__":
    sys.exit(main())
