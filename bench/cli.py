"""What the commands of ``python -m bench`` share: exit statuses, the filter, options of a run."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from bench.measure.timing import DeviceLost, Row
from bench.output import table

# Exit statuses beside 0: a result is wrong or failed, there is nothing to do, or the run was cut
# short.
FAILED, NOTHING, OUT_OF_TIME, DEVICE_LOST = 1, 2, 3, 4
CUT_SHORT = {
    OUT_OF_TIME: "Time is up. Go on with the same command, --resume.",
    DEVICE_LOST: "The GPU was lost: the last row says how. Go on past it with --resume.",
}


def add_run_options(parser: argparse.ArgumentParser, filtered: str) -> None:
    """The options of a command that measures tasks into a table; ``filtered``: what of them."""
    parser.add_argument("--suite", choices=("quick", "full"), default="quick")
    add_filter(parser, filtered)
    add_out(parser)
    parser.add_argument(
        "--resume", action="store_true", help="keep the rows that DIR has, measure the others"
    )
    parser.add_argument("--minutes", type=float, metavar="M", help="begin no task after M minutes")


def add_filter(parser: argparse.ArgumentParser, filtered: str) -> None:
    """What a command leaves out, by ``matches``."""
    parser.add_argument(
        "--filter",
        default="",
        metavar="TEXT",
        help=f"only {filtered} contains every word of TEXT, and none that begins with a minus "
        "(--filter='large -compiled')",
    )


def add_out(parser: argparse.ArgumentParser) -> None:
    """Where a command writes."""
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: bench/results/<device>/")


def deadline(minutes: float | None) -> Callable[[], bool]:
    """Whether so many minutes are over from now on; they never are where there is no number."""
    end = math.inf if minutes is None else time.monotonic() + 60 * minutes
    return lambda: time.monotonic() >= end


def measure(
    steps: Sequence[tuple[str, Callable[[], list[Row]]]], csv: Path, over: Callable[[], bool]
) -> int:
    """Append the rows of each named step to ``csv``, a step at a time; 0 or the exit status of a
    run cut short, because time is ``over()`` or because the GPU can not go on.
    """
    progress = tqdm(steps, unit="task", smoothing=0.1, dynamic_ncols=True, disable=None)
    for place, (name, rows_of) in enumerate(progress, 1):
        progress.set_description(name)
        try:
            table.append(csv, rows_of())
        except DeviceLost as lost:
            table.append(csv, lost.rows)
            return DEVICE_LOST
        if place < len(steps) and over():
            return OUT_OF_TIME
    return 0


def matches(name: str, words: str) -> bool:
    """Whether ``name`` contains every word of ``words``, and none that begins with a minus."""
    return all(w[1:] not in name if w[0] == "-" else w in name for w in words.split())
