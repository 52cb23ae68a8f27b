"""A results table in words: the Markdown beside its CSV, and the README's results.

``python -m bench report`` writes those of the README from a CSV, so that they agree: of the latest
run on a GPU; until there is one, of the CPU's, and apart what `bench roofline` predicts.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from bench.output import table, targets
from bench.suite.cases import CASES, PASSES, THETA_KINDS
from bench.suite.passes import TITLES

ROOT = Path(__file__).parents[2]
CPU = ROOT / "docs" / "cpu" / "results.csv"  # bench --out docs/cpu
PREDICTED = ROOT / "docs" / "predicted-h100.csv"  # bench roofline --gpu H100 --out
NOTHING = (
    "**Nothing has been timed on a GPU yet.** `python -m bench --suite full` on one writes a "
    "table, and\n`python -m bench report` puts it here in place of what follows.\n"
)
KNOWN = 10  # cases that people know: the suite's first
SHOWN_THETAS = {"identity": "identity", "rotation_30": "30°"}
SHAPE_OF = "NxKxC[xD]xHxW → out"
NUMBERS = {
    **{"ms_p50": "ms", "ms_p20": "p20", "ms_p80": "p80", "call_ms": "call"},
    **{"speedup_vs_eager": "x eager", "gb_per_s": "GB/s", "pct_copy_bandwidth": "% of copy"},
    **{"peak_memory_mib": "peak MiB", "max_abs_error": "error"},
}
BEGIN, END = "<!-- bench report: begin -->", "<!-- bench report: end -->"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 when ``--check`` finds a difference, 2 when there is nothing to do."""
    parser = argparse.ArgumentParser(
        prog="python -m bench report",
        description=f"Replace what stands between '{BEGIN}' and '{END}' in the README.",
    )
    parser.add_argument(
        "csv", type=Path, nargs="?", metavar="CSV", help="default: the latest run on a GPU, if any"
    )
    parser.add_argument("--cpu", type=Path, default=CPU, metavar="CSV", help="of a CPU")
    parser.add_argument("--predicted", type=Path, default=PREDICTED, metavar="CSV")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if it would")
    options = parser.parse_args(argv)
    try:
        csv = options.csv or latest(table.RESULTS)
        old = options.readme.read_text(encoding="utf-8")
        parts = []
        if csv is None:
            parts = [NOTHING]
            csv = options.cpu if options.cpu.exists() else None
        if csv is not None:
            figure = os.path.relpath(csv.parent / "speedup.png", options.readme.parent)
            parts.append(block(table.read(csv), Path(figure).as_posix()))
        if parts[0] is NOTHING and options.predicted.exists():
            parts.append(predicted(pd.read_csv(options.predicted)))
        new = replace(old, "\n".join(parts))
    except (OSError, ValueError) as exception:
        print(exception, file=sys.stderr)
        return 2
    source = csv or f"{table.RESULTS}, which has no run on a GPU"
    if options.check:
        print(f"{options.readme} {'agrees' if new == old else 'does not agree'} with {source}")
        return int(new != old)
    options.readme.write_text(new, encoding="utf-8")
    print(f"wrote {options.readme} from {source}")
    return 0


def latest(results: Path) -> Path | None:
    """The CSV of the latest run on a GPU, or None where there is none."""
    found = []
    for csv in results.glob("*/results.csv"):
        frame = table.read(csv)
        if len(frame) and frame.device.iloc[-1] != "cpu":
            found.append((frame.utc.max(), csv))
    return max(found)[-1] if found else None


def replace(text: str, content: str) -> str:
    """``text`` with ``content`` between its two markers.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the README has no '{BEGIN}' followed by '{END}'")
    return f"{head}{BEGIN}\n\n{content}\n{END}{tail}"


def whole(frame: pd.DataFrame) -> str:
    """The whole Markdown file: where it was measured, the summary, what is not ok, every row."""
    last = frame.iloc[-1]
    commits = ", ".join(sorted({commit for commit in frame.commit if commit})) or "unknown"
    parts = [
        f"# Results on {last.device}",
        f"torch {last.torch}, triton {last.triton}, commit {commits}, "
        f"{frame.utc.min()} to {frame.utc.max()}; "
        f"a device-to-device copy moves {last.copy_gb_per_s:.4g} GB/s (read + write).",
        "Speedups are over eager PyTorch, in one run. Errors are the largest absolute difference "
        "from float64 PyTorch; only what is right has a time.",
        "## Summary",
        *_verdict(frame),
        *table.not_ok(frame, "Not timed", "provider"),
        "## Rows",
        table.to_markdown(_compact(frame[frame.status != "skipped"])),
    ]
    return "\n\n".join(parts) + "\n"


def _verdict(frame: pd.DataFrame) -> list[str]:
    parts = [table.to_markdown(table.summary(frame))]
    best = table.against_best(frame)
    if len(best):
        parts += ["triton_stn against the fastest other provider of each row:"]
        parts += [table.to_markdown(best)]
    return [*parts, *targets.paragraphs(frame)]


def _compact(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns that a reader looks at, the shape in one of them."""
    columns = ["case", SHAPE_OF, "theta_kind", "dtype", "layout", "pass", "provider"]
    shown = frame.assign(**{SHAPE_OF: frame.apply(table.shape_of, axis=1)})
    return shown[[*columns, *NUMBERS, "status"]].rename(columns={"theta_kind": "θ", **NUMBERS})


def block(frame: pd.DataFrame, figure: str) -> str:
    """The README's results: speedup by case and pass in float32, the summary, the figure."""
    last = frame.iloc[-1]
    kinds = {case.name: case.theta_kinds for case in CASES}
    pairs = zip(frame.case, frame.theta_kind, strict=True)
    own = [kind in kinds.get(case, (kind,)) for case, kind in pairs]
    plain = frame[table.plain(frame) & np.array(own)]
    parts = [
        f"Measured on {last.device}, torch {last.torch}, triton {last.triton}, "
        f"{frame.utc.min()[:10]} to {frame.utc.max()[:10]}. Times as fast as eager PyTorch, "
        "float32, contiguous: geometric mean over a case's θ (most have "
        f"{', '.join(THETA_KINDS)}), the worst of them in brackets.",
        table.to_markdown(by_case(plain)),
        "All rows:",
        *_verdict(frame),
        f"![Times as fast as eager PyTorch, a line a case]({figure})",
    ]
    return "\n\n".join(parts) + "\n"


def predicted(frame: pd.DataFrame) -> str:
    """What `bench roofline` predicts of the cases that people know, of a few θ."""
    lines = []
    for name, of_case in list(frame.groupby("case", sort=False))[:KNOWN]:
        (case,) = (case for case in CASES if case.name == name)
        line = {"case": name, SHAPE_OF: table.shape_of(pd.Series(asdict(case)))}
        for pass_name, (kind, shown) in itertools.product(
            ("forward", "backward"), SHOWN_THETAS.items()
        ):
            rows = of_case[(of_case["pass"] == pass_name) & (of_case.theta_kind == kind)]
            ours, eager = (
                rows[rows.provider == provider].iloc[0] for provider in ("triton_stn", "eager")
            )
            line[f"{pass_name}, {shown}"] = (
                f"{1e3 * ours['predicted ms']:.3g} {ours.binds} ({1e3 * eager['predicted ms']:.3g})"
            )
        lines.append(line)
    parts = [
        "**Predicted, not measured**, for an H100: microseconds of triton_stn as the largest of "
        "five floors, which one, and in brackets the largest floor that is known of eager "
        "PyTorch. Floors are not times: launches (1 and 2 of ours, 11 and 12 of eager's), a "
        "kernel's tail, eager's instructions and its atomics are in none, so no ratio of the two "
        "is a speedup. `python -m bench roofline --gpu H100` has every case, with `--out` the "
        "file that this is from.",
        table.to_markdown(pd.DataFrame(lines)),
    ]
    return "\n\n".join(parts) + "\n"


def by_case(frame: pd.DataFrame) -> pd.DataFrame:
    """One line a case, one column a pass: "mean (worst)" of triton_stn's speedup."""
    rows = frame[(frame.provider == "triton_stn") & frame.speedup_vs_eager.notna()]
    lines = []
    for case, of_case in rows.groupby("case", sort=False):
        line = {"case": case, SHAPE_OF: table.shape_of(of_case.iloc[0])}
        for pass_name in PASSES:
            speedups = of_case[of_case["pass"] == pass_name].speedup_vs_eager
            if len(speedups):
                line[TITLES[pass_name]] = (
                    f"{table.geometric_mean(speedups):.2f} ({speedups.min():.2f})"
                )
        lines.append(line)
    return pd.DataFrame(lines)
