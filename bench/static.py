"""The static kernel report: what the compiler makes of every kernel, with no GPU present.

    python -m bench.static
    python -m bench.static --sweep --sample 20 --seed 1

Compiles the specialisations that the launcher chooses for a spread of calls, for sm_90, and of a
third of them for sm_80 and gfx942, and prints a digest: kernels, spills, most registers, and the
counted instructions beside what they may be. Registers, spilled bytes, shared memory, warp
footprint, widest load and store, and counted instructions are in the CSV that it writes.
``--sweep`` compiles affine maps of images with any number of channels instead, for sm_80 and sm_90.
Exit status 1 on any spill, where a kernel does not compile, and over a budget.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from bench import cli
from bench.model import counts
from bench.model.compiler import workers
from bench.model.launches import BOTH, EVERY, TARGETS, Specialisation, passes

OUT = Path(__file__).parents[1] / "build" / "kernels.csv"
PLAIN = "float32 NCHW bilinear zeros"
COUNTED = "sm_90"
AXIS = ("UPRIGHT", "ON_SIDE")
HALF, SINGLE, DOUBLE = torch.bfloat16, torch.float32, torch.float64
BYTES = "uint8 channels-last bilinear zeros"
NCHW, LAST, LAST_3D = torch.contiguous_format, torch.channels_last, torch.channels_last_3d
CHANNELS = (*range(1, 67), 96, 128, 255, 256)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _gather(unit: str, axis: float, **others: float) -> dict[str, float]:
    windows = {f"{window} {unit}": axis for window in AXIS}
    return windows | {f"{window} {unit}": most for window, most in others.items()}


# Instructions that a thread may execute on sm_90, of kernels of ``PLAIN`` images as they are
# launched (see `counts`), and its registers; by kernel, channels and the rest of the case, of whose
# label see `_label`. A tile is one pixel of a thread.
BUDGETS = {
    ("forward", "1", "512x512"): {"per_tile": 72},
    ("forward", "3", "512x512"): {"per_tile": 124},
    ("forward", "64", "56x56"): {"per_channel": 16},
    ("forward", "3", f"{BYTES} 512x512 to bfloat16"): {"per_tile": 136},
    ("gather", "1", "512x512 → input+θ"): _gather("per_tile", 118, THREE=178, OUTPUT=80)
    | {"registers": 80},
    ("gather", "3", "512x512 → input+θ"): _gather("per_tile", 170, THREE=245, OUTPUT=115)
    | {"registers": 80},
    ("gather", "64", "56x56 → input+θ"): _gather("per_channel", 33, THREE=39, OUTPUT=18)
    | {"registers": 128},
    ("gather", "1", "512x512 → input"): _gather("per_tile", 74, THREE=176),
    ("gather", "3", "512x512 → input"): _gather("per_tile", 113, THREE=245),
    ("gather", "64", "56x56 → input"): _gather("per_channel", 24, THREE=39),
    ("grad_theta", "1", "512x512 → θ"): {"per_tile": 80},
    ("grad_theta", "3", "512x512 → θ"): {"per_tile": 125},
    ("grad_theta", "64", "56x56 → θ"): {"per_channel": 18},
}


def _label(channels: str, rest: str) -> str:
    return f"C={channels} {rest if rest.startswith(BYTES) else f'{PLAIN} {rest}'}"


@lru_cache(maxsize=2)
def spread(full: bool) -> list[Specialisation]:
    """What the launcher chooses for a spread of calls, each specialisation once.

    ``full`` is for the target whose instructions have budgets; else it is a third of that.
    """
    return _each_once(_calls(full))


@lru_cache(maxsize=2)
def sweep(sample: int | None = None, seed: int = 0) -> list[Specialisation]:
    """For affine maps of images: all channels to 66 and a few more, layouts, dtypes, one map and
    several, each specialisation once; or ``sample`` of them, drawn at random.
    """
    calls = ((c, dtype, last, k) for c in CHANNELS for dtype in DTYPES for last in (NCHW, LAST)
             for k in (1, 3))  # fmt: skip
    found = _each_once(
        spec
        for c, dtype, last, k in calls
        for spec in passes((8, c, 56, 56), dtype, last, BOTH, k=k)
    )
    return found if sample is None else random.Random(seed).sample(found, sample)


def _each_once(specs: Iterator[Specialisation]) -> list[Specialisation]:
    found = {}
    for spec in specs:
        found.setdefault(spec.key, spec)
    return list(found.values())


def _calls(full: bool) -> Iterator[Specialisation]:
    """Few channels are one pass, many a loop; 17 need masks."""
    large, deep = (16, 3, 512, 512), (64, 64, 56, 56)
    yield from passes((64, 3, 512, 512), SINGLE, NCHW, EVERY)
    yield from passes(deep, HALF, LAST, BOTH)
    yield from passes((8, 3, 512, 512), SINGLE, NCHW, BOTH, k=3)
    yield from passes(large, HALF, NCHW, BOTH, "bilinear", "border", deterministic=True)
    yield from passes((4, 1, 128, 128, 128), SINGLE, NCHW, BOTH)
    if not full:
        return
    yield from passes((64, 1, 512, 512), SINGLE, NCHW, EVERY)
    yield from passes(large, HALF, NCHW, BOTH, fill=(SINGLE, 1))
    yield from passes(large, torch.uint8, LAST, (), normalized=HALF)  # frames, as of a camera
    yield from passes(deep, SINGLE, NCHW, EVERY)
    yield from passes(deep, HALF, NCHW, BOTH)
    yield from passes(deep, SINGLE, LAST, BOTH)
    yield from passes((8, 17, 31, 33), SINGLE, LAST, BOTH)
    yield from passes((8, 3, 64, 64), DOUBLE, NCHW, BOTH)
    yield from passes((8, 64, 56, 56), SINGLE, LAST, BOTH, k=3)
    yield from passes((1, 1, 65536, 65536), SINGLE, NCHW, BOTH)  # offsets beyond int32
    yield from passes(large, SINGLE, NCHW, BOTH, "bilinear", "border")
    yield from passes((8, 3, 512, 512), SINGLE, NCHW, BOTH, "bilinear", "border", k=3)
    yield from passes(large, SINGLE, NCHW, BOTH, "nearest")
    yield from passes(deep, HALF, LAST, BOTH, "nearest", "reflection")
    yield from passes(large, SINGLE, NCHW, BOTH, source="projective")
    yield from passes(large, SINGLE, NCHW, BOTH, source="projective", deterministic=True)
    yield from passes(large, SINGLE, NCHW, BOTH, source="spline")
    yield from passes(deep, SINGLE, NCHW, BOTH, source="grid", deterministic=True)
    yield from passes(deep, HALF, LAST, BOTH, "bilinear", "border", source="grid")
    yield from passes(large, SINGLE, NCHW, BOTH, "bicubic")
    yield from passes(large, SINGLE, NCHW, BOTH, "area", source="patch")
    yield from passes((8, 32, 64, 64, 64), HALF, LAST_3D, BOTH)
    yield from passes((4, 3, 128, 128, 128), SINGLE, NCHW, BOTH, source="flow")


def table(targets: Sequence[str], text: str = "", drawn: tuple | None = None) -> pd.DataFrame:
    """A row a specialisation × target; ``text`` selects by kernel or case.

    ``drawn``: the arguments of `sweep`, whose kernels take the place of `spread`'s.
    """
    chosen = []
    for target in targets:
        every = partial(sweep, *drawn) if drawn else partial(spread, target == COUNTED)
        chosen += [
            (every, index, target)
            for index, spec in enumerate(every())
            if text in f"{spec.kernel} {spec.label}"
        ]
    with workers() as pool:
        futures = [pool.submit(_row, *row) for row in chosen]
        progress = tqdm(futures, desc="compiling", unit="kernel", disable=None)
        return pd.DataFrame([future.result() for future in progress])


def _row(every: Callable[[], list[Specialisation]], index: int, target: str) -> dict:
    """For a worker process, which kernels can not be sent to."""
    os.dup2(sys.stderr.fileno(), 1)  # what the compiler dumps of a kernel that it refuses
    spec = every()[index]
    budgets = {(kernel, _label(*case)): columns for (kernel, *case), columns in BUDGETS.items()}
    columns = budgets.get((spec.kernel, spec.label), {}) if target == COUNTED else {}
    windows = dict.fromkeys(c.rpartition(" ")[0] for c in columns if c != "registers")
    try:
        return counts.row(spec, target, tuple(windows))
    except Exception as exception:
        why = f"{type(exception).__name__}: {exception}".splitlines()[0]
        row = {"kernel": spec.kernel, "case": spec.label, "target": target, "error": why}
        return row | {"registers": math.nan, "spilled": math.nan}


def failed(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that no landing may have: kernels that spill, or do not compile, which have NaN."""
    return frame[frame.spilled != 0]


def counted(frame: pd.DataFrame) -> Iterator[tuple[str, str, float, float]]:
    """(what is counted, channels, how many, how many there may be) of each budget met in it."""
    for (kernel, channels, rest), columns in BUDGETS.items():
        case = _label(channels, rest)
        found = frame[(frame.kernel == kernel) & (frame.case == case) & (frame.target == COUNTED)]
        for column, most in columns.items():
            for number in found.get(column, [math.nan] * len(found)):
                window, _, unit = column.rpartition(" ")
                alone = kernel == "gather" and not rest.endswith("θ")
                name = f"{kernel} {window}".strip() + " of input alone" * alone
                name += " of bytes" * rest.startswith(BYTES)
                yield f"{name}, {unit.replace('per_', 'a ')}", channels, number, most


def over(frame: pd.DataFrame) -> list[str]:
    """The budgets that are exceeded; a number that could not be counted (NaN) exceeds its own."""
    return [
        f"{name}: {number:g} at C={channels}, over {most:g}"
        for name, channels, number, most in counted(frame)
        if not 0 < number <= most
    ]


def digest(frame: pd.DataFrame) -> str:
    """A line a target, a line a kernel and number that has a budget, a line a failure."""
    lines = []
    for target, rows in frame.groupby("target", sort=False):
        most = rows.groupby("kernel").registers.max().sort_values(ascending=False).dropna()
        spilled = int((rows.spilled > 0).sum())
        registers = ", ".join(f"{name} {number:g}" for name, number in most.items())
        lines.append(f"{target}: {len(rows)} kernels, {spilled} spill; registers: {registers}")
    of: dict[str, list[str]] = {}
    for name, channels, number, most in counted(frame):
        of.setdefault(name, []).append(f"{number:g} of {most:g} at C={channels}")
    lines += [f"{COUNTED} {name}: {', '.join(numbers)}" for name, numbers in of.items()]
    for row in failed(frame).itertuples():
        why = f"{row.spilled:g} bytes" if row.spilled > 0 else row.error
        lines.append(f"{row.target} {row.kernel} {row.case}: {why}")
    return "\n".join(lines + over(frame))


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, 1 for a spill, a failure or a budget exceeded, 2 for nothing to compile."""
    start = time.monotonic()
    options = _parse(argv)
    drawn = (options.sample, options.seed) if options.sweep else None
    targets = options.target or [t for t in TARGETS if drawn is None or t.startswith("sm")]
    frame = table(targets, options.filter, drawn)
    if frame.empty:
        print(f"Nothing matches --filter {options.filter!r}.", file=sys.stderr)
        return cli.NOTHING
    options.out.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(options.out, index=False)
    seconds = time.monotonic() - start
    print(f"{digest(frame)}\nwrote {options.out}: {len(frame)} kernels in {seconds:.0f} s")
    return cli.FAILED if len(failed(frame)) or over(frame) else 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.static",
        description="Compile the kernels that the library launches, for targets that are not here.",
    )
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="default: all")
    parser.add_argument("--filter", default="", metavar="TEXT", help="in the kernel or the case")
    parser.add_argument(
        "--sweep", action="store_true", help="any number of channels; takes an hour or more"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="only N kernels of the sweep")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the sample")
    parser.add_argument(
        "--out", type=Path, metavar="CSV", default=OUT, help="default: build/kernels.csv"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
