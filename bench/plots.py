"""Pictures of a results table: speedup against size, achieved against copy bandwidth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bench.cases import PASSES

# Distinguishable with any colour vision, and by shape.
STYLES = {
    "triton_stn": ("#0072B2", "o"),
    "eager": ("#E69F00", "x"),
    "compiled": ("#009E73", "+"),
}
OTHERS = (("#CC79A7", "D"), ("#56B4E9", "v"), ("#D55E00", "P"), ("#000000", "X"))


def draw(frame: pd.DataFrame, out: Path) -> list[Path]:
    """Write the PNGs that the rows allow into ``out``; their paths."""
    rows = frame[frame.status == "ok"]
    rows = rows.assign(elements=rows.n * rows.k * rows.c * rows.h_out * rows.w_out)
    compared = rows[rows.speedup_vs_eager.notna() & (rows.provider != "eager")]
    written = []
    if len(compared):
        title = f"Speedup over eager PyTorch, {rows.device.iloc[-1]}"
        figure = _panels(compared, "speedup_vs_eager", title, "times as fast", _mark_eager)
        written.append(_save(figure, out / "speedup.png"))
    if len(rows):
        title = f"Least bytes of the pass over its time, {rows.device.iloc[-1]}"
        figure = _panels(rows, "gb_per_s", title, "GB/s", _mark_copy)
        written.append(_save(figure, out / "bandwidth.png"))
    return written


def _panels(
    rows: pd.DataFrame,
    column: str,
    title: str,
    label: str,
    mark: Callable[[Axes, pd.DataFrame], None],
) -> Figure:
    """A panel a pass; a point a row, over the number of output elements."""
    passes = [name for name in PASSES if (rows["pass"] == name).any()]
    figure, axes = plt.subplots(
        ncols=len(passes),
        figsize=(1.2 + 3.2 * len(passes), 3.4),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for ax, pass_name in zip(axes[0], passes, strict=True):
        here = rows[rows["pass"] == pass_name]
        spare = iter(OTHERS)
        for provider, points in here.groupby("provider", sort=False):
            color, marker = STYLES.get(provider) or next(spare, OTHERS[-1])
            ax.plot(
                points.elements,
                points[column],
                marker,
                color=color,
                alpha=0.7,
                markersize=5,
                label=provider,
            )
        ax.set_xscale("log")
        ax.set_yscale("log")
        mark(ax, here)
        ax.set_title(pass_name.replace("_", " "), fontsize=10)
        ax.set_xlabel("output elements")
        ax.grid(alpha=0.25, which="both", linewidth=0.5)
    axes[0, 0].set_ylabel(label)
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def _mark_eager(ax: Axes, rows: pd.DataFrame) -> None:
    ax.axhline(1, color="#555555", linewidth=1, linestyle="--")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}x")
    ax.yaxis.set_minor_formatter(NullFormatter())


def _mark_copy(ax: Axes, rows: pd.DataFrame) -> None:
    ax.axhline(
        rows.copy_gb_per_s.iloc[-1], color="#555555", linewidth=1, linestyle="--", label="copy"
    )


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
