"""What a run ends with on a terminal: the machine, the means, the worst rows, the targets."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pandas as pd

from bench.output import table, targets
from bench.suite.passes import TITLES

WORST, WIDTH = 4, 120  # rows shown, columns


def of(frame: pd.DataFrame) -> str:
    """At most 120 columns."""
    parts = [_machine(frame.iloc[-1]), _means(frame), _worst(frame), _targets(frame)]
    return "\n\n".join(part for part in parts if part)


def _machine(last: pd.Series) -> str:
    device = last.device
    if device == "cpu":
        device = f"{_processor()}, {os.cpu_count()} cores"
    commit = f", commit {last.commit}" if last.commit else ""
    return f"{device}: torch {last.torch}, triton {last.triton or 'none'}{commit}, {last.utc[:10]}"


def _processor() -> str:
    """What the CPU calls itself; Linux tells Python no more than "x86_64"."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _means(frame: pd.DataFrame) -> str:
    summary = table.summary(frame[table.of_ours(frame)])
    if summary.empty:
        return ""
    summary = summary.drop(columns=["worst", "worst row"], errors="ignore")
    if summary.provider.nunique() == 1:
        summary = summary.drop(columns="provider")
    shown = table.to_terminal(summary)
    return f"Times as fast as eager PyTorch, F.affine_grid + F.grid_sample:\n\n{shown}"


def _worst(frame: pd.DataFrame) -> str:
    """The rows of ours that are not right, and those furthest behind eager."""
    ours = frame[table.of_ours(frame)]
    wrong = ours[ours.status.isin(("wrong", "error", "oom"))]
    timed = ours[ours.speedup_vs_eager.notna()].nsmallest(WORST, "speedup_vs_eager")
    lines = [f"  {row.status:>6}  {_name(row)}: {row.note}"[:WIDTH] for _, row in wrong.iterrows()]
    lines += [f"  {row.speedup_vs_eager:5.2f}x  {_name(row)}" for _, row in timed.iterrows()]
    return "\n".join(["Worst rows:", *lines]) if lines else ""


def _name(row: pd.Series) -> str:
    what = [] if row["dtype"] == "float32" else [row["dtype"]]
    what += [] if row.layout == "contiguous" else [row.layout]
    return ", ".join([row.case, row.theta_kind, TITLES[row["pass"]], *what])


def _targets(frame: pd.DataFrame) -> str:
    verdicts = targets.verdicts(frame)
    judged = verdicts[verdicts.met != "not measured"]
    lines = [
        f"Targets: {(judged.met == 'yes').sum()} of {len(judged)} met"
        + (f", {unknown} not measured." if (unknown := len(verdicts) - len(judged)) else ".")
    ]
    for _, line in judged.iterrows():
        known = line.measured == line.measured
        got = f"{line.measured:.3g}" if known else f"{line['worst row']}"
        met = "met" if line.met == "yes" else "not met"
        lines.append(f"  {met:>7}  {line.figure}: {got}, asked {line.asked}"[:WIDTH])
    return "\n".join(lines)
