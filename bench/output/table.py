"""The results: a CSV that grows row by row, and the summaries of its rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.suite.cases import SHAPE
from bench.suite.passes import TITLES

COLUMNS = (
    *("case", "pass", "provider", "n", "k", "c", "h", "w", "h_out", "w_out"),
    *("dtype", "layout", "padding_mode", "align_corners", "theta_kind"),
    *("ms_p50", "ms_p20", "ms_p80", "speedup_vs_eager", "min_bytes", "gb_per_s"),
    *("pct_copy_bandwidth", "peak_memory_mib", "max_abs_error"),
    *("status", "device", "torch", "triton", "commit", "utc"),
    # Ours, after the agreed ones: the depth of volumes (0 for images), the copy that the percentage
    # is of (GB/s), what the case samples with, and why a row is not ok.
    *("d", "d_out", "copy_gb_per_s", "transform", "mode", "note"),
    # Wall-clock time of a call from Python where calls are short, on a GPU; and the most by which
    # rounding the exact results once to their dtype moves a number.
    *("call_ms", "one_rounding"),
)
# What tells a row from every other, whenever and at whichever commit it was measured.
KEY = (
    *("case", "pass", "provider", "theta_kind", "dtype", "layout"),
    *("padding_mode", "align_corners"),
)
ROW = [name for name in KEY if name != "provider"]
STATUSES = ("ok", "wrong", "oom", "error", "skipped")
Rows = Sequence[dict[str, Any]] | pd.DataFrame
COUNTS = (*SHAPE, "min_bytes")
RESULTS = Path(__file__).parents[1] / "results"
TEXT = ("device", "torch", "triton", "commit", "utc", "note")


def folder(device: str) -> Path:
    """Where the results of a device lie: bench/results/<device>/."""
    return RESULTS / re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def append(path: Path, rows: Rows, columns: Sequence[str] = COLUMNS) -> None:
    """Add rows to the CSV at once, so that an interrupted run loses nothing."""
    frame = pd.DataFrame(rows, columns=columns)
    frame.to_csv(path, mode="a", header=not path.exists(), index=False, float_format="%.6g")


def read(path: Path) -> pd.DataFrame:
    """The rows of a CSV; of rows with the same key the last, and none that was cut off.

    Raises:
        ValueError: the file lacks a column of the table.
    """
    frame = pd.read_csv(path, dtype=dict.fromkeys(TEXT, str), on_bad_lines="warn")
    missing = [column for column in COLUMNS if column not in frame]
    if missing:
        raise ValueError(f"{path} is no results table: it has no column {', '.join(missing)}")
    frame = frame.reindex(columns=COLUMNS)
    frame[list(TEXT)] = frame[list(TEXT)].fillna("")
    frame = frame[frame.status.isin(STATUSES) & (frame.utc != "")]
    frame[list(COUNTS)] = frame[list(COUNTS)].astype("int64")
    frame["align_corners"] = frame.align_corners.astype(str) == "True"
    return frame.drop_duplicates(list(KEY), keep="last").reset_index(drop=True)


def so_far(path: Path, device: str) -> pd.DataFrame:
    """The rows of ``read`` that were measured on the device; none where there is no such file.

    Times of two devices in one table would give speedups that nobody measured.
    """
    frame = read(path) if path.exists() else pd.DataFrame(columns=COLUMNS)
    return frame[frame.device == device]


def begin(path: Path, kept: pd.DataFrame) -> None:
    """Leave the CSV holding these rows alone, as whole lines; no file where there are none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if len(kept):
        append(path, kept.to_dict("records"))


def of_ours(frame: pd.DataFrame) -> pd.Series:
    """Which rows are of the library: called, or captured in a graph."""
    return frame.provider.str.startswith("triton_stn")


def plain(frame: pd.DataFrame) -> pd.Series:
    """Which rows are float32, contiguous, padded with zeros, and align no corners."""
    what = (frame["dtype"] == "float32") & (frame.layout == "contiguous")
    return what & (frame.padding_mode == "zeros") & ~frame.align_corners.astype(bool)


def keys(frame: pd.DataFrame) -> list[tuple[str, ...]]:
    """The key of every row, as ``Task.key`` writes it."""
    return list(frame[list(KEY)].astype(str).itertuples(index=False, name=None))


def shape_of(row: pd.Series) -> str:
    """A row's shape, "NxKxCxHxW → H_outxW_out", with D before H of volumes."""
    sides = (["d"] if row.d else []) + ["h", "w"]
    into = [row[name] for name in ("n", "k", "c", *sides)]
    out = [row[f"{name}_out"] for name in sides]
    return " → ".join("x".join(map(str, numbers)) for numbers in (into, out))


def geometric_mean(values: Sequence[float]) -> float:
    """The mean for ratios: 2x and 0.5x cancel."""
    return float(np.exp(np.mean(np.log(values))))


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Speedup over eager by pass and provider: geometric mean, wins, losses, the worst row."""
    lines = []
    for (pass_name, provider), rows in frame.groupby(["pass", "provider"], sort=False):
        rows = rows[rows.status != "skipped"]
        if provider == "eager" or rows.empty:
            continue
        ratios = rows[rows.speedup_vs_eager.notna()]
        line = {"pass": TITLES[pass_name], "provider": provider, "rows": len(rows)}
        line |= _spread(ratios, "speedup_vs_eager") if len(ratios) else {}
        lines.append(line | {"not ok": int((rows.status != "ok").sum())})
    return pd.DataFrame(lines)


def _spread(rows: pd.DataFrame, ratio: str) -> dict[str, Any]:
    worst = rows.loc[rows[ratio].idxmin()]
    return {
        "geometric mean": geometric_mean(rows[ratio]),
        "wins": int((rows[ratio] >= 1).sum()),
        "losses": int((rows[ratio] < 1).sum()),
        "worst": worst[ratio],
        "worst row": " ".join(worst[["case", "theta_kind", "dtype", "layout"]]),
    }


def against_best(frame: pd.DataFrame) -> pd.DataFrame:
    """triton_stn's speedup over the fastest other provider of each row, by pass.

    Rows that no other provider got right are left out.
    """
    ok = frame[frame.status == "ok"]
    both = ok[ok.provider == "triton_stn"].merge(best_other(ok), on=ROW, suffixes=("", "_best"))
    both["ratio"] = both.ms_p50_best / both.ms_p50
    lines = []
    for pass_name, rows in both.groupby("pass", sort=False):
        line = {"pass": TITLES[pass_name], "rows": len(rows), **_spread(rows, "ratio")}
        lines.append(line | {"against": rows.provider_best[rows.ratio.idxmin()]})
    return pd.DataFrame(lines)


def best_other(ok: pd.DataFrame) -> pd.DataFrame:
    """The fastest other provider of each row."""
    return ok[~of_ours(ok)].sort_values("ms_p50").drop_duplicates(ROW)


def not_ok(frame: pd.DataFrame, title: str, *by: str) -> list[str]:
    """How many rows have no time, and why; nothing where all have one."""
    bad = frame[frame.status != "ok"]
    counts = bad.groupby([*by, "status", "note"], sort=False).size()
    counts = counts.rename("rows").reset_index()
    return [f"## {title}", to_markdown(counts)] if len(bad) else []


def to_terminal(frame: pd.DataFrame, **options: Any) -> str:
    """A table for a terminal, with two digits behind the point and no rules between columns."""
    options = {"tablefmt": "simple", "floatfmt": ".2f", "numalign": "right", **options}
    return to_markdown(frame, **options)


def to_markdown(frame: pd.DataFrame, **options: Any) -> str:
    """A Markdown table, with three significant digits and empty cells for what is missing."""
    options = {"index": False, "floatfmt": ".3g", "missingval": "", **options}
    # The cast keeps counts whole numbers beside empty cells.
    return frame.astype(object).where(frame.notna(), None).to_markdown(**options)
