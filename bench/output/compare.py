"""``python -m bench compare OLD.csv NEW.csv``: what got faster, slower or broken."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bench.output import table
from bench.suite.cases import SHAPE

NOTICED = 1.05  # times as long or as short: below it neither a reader nor a user would notice


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 on a regression, 2 when the tables can not be compared."""
    parser = argparse.ArgumentParser(
        prog="python -m bench compare",
        description="Show the rows whose time changed beyond the spread of both runs "
        "(p20 to p80) and by more than 5%. Exit status 1 when one got slower or broke.",
    )
    parser.add_argument("old", type=Path, metavar="OLD.csv")
    parser.add_argument("new", type=Path, metavar="NEW.csv")
    options = parser.parse_args(argv)
    try:
        old, new = table.read(options.old), table.read(options.new)
        both = pair(old, new)
    except (OSError, ValueError) as exception:
        print(exception, file=sys.stderr)
        return 2

    # The machine itself may have changed: what should not have, shows it.
    for provider, rows in both.groupby("provider", sort=False):
        ratios = (rows.ms_p50_new / rows.ms_p50_old).dropna()
        if len(ratios):
            mean = table.geometric_mean(ratios)
            print(f"{provider}: {len(ratios)} rows, new / old time {mean:.3f} (geometric mean)")
    mine = both[both.provider == "triton_stn"]
    if mine.empty:
        print("The tables share no row of triton_stn.", file=sys.stderr)
        return 2
    gone = len(old[old.provider == "triton_stn"]) - len(mine)
    if gone:
        print(f"triton_stn: rows that only {options.old} has: {gone}.")
    changed = changes(mine)
    if changed.empty:
        print(f"triton_stn: no change beyond the spread in {len(mine)} rows.")
    else:
        print(f"\n{table.to_terminal(changed)}")
    return int(changed.change.isin(("slower", "broken")).any())


def pair(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """The rows that both tables have, side by side.

    Raises:
        ValueError: the tables come from different devices, or shapes differ under one key.
    """
    devices = sorted(set(old.device) | set(new.device))
    if len(devices) > 1:
        raise ValueError(f"times of different devices do not compare: {', '.join(devices)}")
    both = old.merge(new, on=list(table.KEY), suffixes=("_old", "_new"))
    for name in SHAPE:
        if (both[f"{name}_old"] != both[f"{name}_new"]).any():
            raise ValueError(f"the tables hold cases of the same name with another {name}")
    return both


def changes(both: pd.DataFrame) -> pd.DataFrame:
    """The rows that changed, the worst first: faster, slower, broken or repaired."""
    ratio = both.ms_p50_new / both.ms_p50_old
    ok_old, ok_new = both.status_old == "ok", both.status_new == "ok"
    change = np.select(
        [
            ok_old & ~ok_new & (both.status_new != "skipped"),
            (both.ms_p20_new > both.ms_p80_old) & (ratio > NOTICED),
            (both.ms_p80_new < both.ms_p20_old) & (ratio < 1 / NOTICED),
            ok_new & ~ok_old & (both.status_old != "skipped"),
        ],
        ["broken", "slower", "faster", "repaired"],
        "",
    )
    columns = {"ms_p50_old": "old_ms", "ms_p50_new": "new_ms", "status_new": "status"}
    both = both.rename(columns=columns).assign(ratio=ratio, change=change)
    shown = ["case", "pass", "theta_kind", "dtype", "layout", "old_ms", "new_ms", "ratio"]
    lines = both[[*shown, "change", "status"]]
    return lines[change != ""].sort_values("ratio", ascending=False, na_position="first")
