"""What the commands of ``python -m bench`` share: exit statuses, the filter, options of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

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
    parser.add_argument(
        "--filter",
        default="",
        metavar="TEXT",
        help=f"only {filtered} contains every word of TEXT, and none that begins with a minus "
        "(--filter='large -compiled')",
    )
    add_out(parser)
    parser.add_argument(
        "--resume", action="store_true", help="keep the rows that DIR has, measure the others"
    )
    parser.add_argument("--minutes", type=float, metavar="M", help="begin no task after M minutes")


def add_out(parser: argparse.ArgumentParser) -> None:
    """Where a command writes."""
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: bench/results/<device>/")


def matches(name: str, words: str) -> bool:
    """Whether ``name`` contains every word of ``words``, and none that begins with a minus."""
    return all(w[1:] not in name if w[0] == "-" else w in name for w in words.split())
