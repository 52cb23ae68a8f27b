"""Pictures of a results table: speedup against size, angle and zoom; bandwidth; peak memory."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bench.output import table
from bench.suite.cases import EXTREME, PASSES, SWEEP, SWEEP_CASE, angle_and_scale
from triton_stn.plot import NO_MATPLOTLIB

try:
    import matplotlib

    matplotlib.use("Agg")

    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter
except ImportError as error:
    raise ImportError(NO_MATPLOTLIB) from error

# Distinguishable with any colour vision, and by shape.
STYLES = {
    "triton_stn": ("#0072B2", "o"),
    "eager": ("#E69F00", "x"),
    "compiled": ("#009E73", "+"),
    "compiled_graphs": ("#D55E00", "P"),
}
OTHERS = (("#CC79A7", "D"), ("#56B4E9", "v"), ("#000000", "X"), ("#F0E442", "s"), ("#999999", "*"))
LINE = dict(color="#555555", linewidth=1, linestyle="--")
LABELS = {"elements": "output elements", "angle": "rotation, degrees", "zoom": "times as large"}


def draw(frame: pd.DataFrame, out: Path) -> list[Path]:
    """Write the PNGs that the rows allow into ``out``; their paths.

    speedup.png, bandwidth.png and memory.png have a point a row, over the number of output
    elements; angle.png and zoom.png follow the full suite's sweep on one case.
    """
    rows = frame[frame.status == "ok"]
    if rows.empty:
        return []
    depth = rows.d_out.clip(lower=1)
    rows = rows.assign(elements=rows.n * rows.k * rows.c * depth * rows.h_out * rows.w_out)
    compared = rows[rows.speedup_vs_eager.notna() & (rows.provider != "eager")]
    remembered = rows[rows.peak_memory_mib > 0]
    turned, zoomed = sweeps(compared)
    fast = "Speedup over eager PyTorch"
    pictures = {
        "speedup": (compared, "elements", "speedup_vs_eager", fast),
        "bandwidth": (rows, "elements", "gb_per_s", "Least bytes over time, GB/s"),
        "memory": (remembered, "elements", "peak_memory_mib", "Peak memory, MiB"),
        "angle": (turned, "angle", "speedup_vs_eager", f"{fast}, {SWEEP_CASE}"),
        "zoom": (zoomed, "zoom", "speedup_vs_eager", f"{fast}, {SWEEP_CASE}"),
    }
    written = []
    for name, (points, x, y, title) in pictures.items():
        if len(points):
            figure = _panels(points, x, y, f"{title}, {rows.device.iloc[-1]}")
            written.append(out / f"{name}.png")
            figure.savefig(written[-1], dpi=110)
            plt.close(figure)
    return written


def sweeps(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows over "angle" (degrees, scale 1) and over "zoom" (2: appears twice as large).

    Of the swept case in float32, contiguous; none where the table has no such sweep.
    """
    # What is extreme has neither an angle nor a zoom.
    plain = rows[table.plain(rows) & (rows.case == SWEEP_CASE) & ~rows.theta_kind.isin(EXTREME)]
    known = [angle_and_scale(kind) for kind in plain.theta_kind]
    plain = plain.assign(angle=[a for a, _ in known], zoom=[1 / s for _, s in known])
    swept = set(plain.theta_kind) & set(SWEEP)
    turned = plain[plain.zoom == 1].sort_values("angle")
    zoomed = plain[plain.angle == 0].sort_values("zoom")
    return (
        turned if any(kind.startswith("rotation") for kind in swept) else turned[:0],
        zoomed if any(kind.startswith("zoom") for kind in swept) else zoomed[:0],
    )


def _panels(rows: pd.DataFrame, x: str, y: str, title: str) -> Figure:
    """A panel a pass; a point a row. Sweeps, which are in order of x, get a line as well."""
    passes = [name for name in PASSES if (rows["pass"] == name).any()]
    shape = dict(ncols=len(passes), figsize=(1.2 + 3.2 * len(passes), 3.4), squeeze=False)
    figure, axes = plt.subplots(**shape, sharey=True, layout="constrained")
    others = [name for name in rows.provider.unique() if name not in STYLES]
    styles = STYLES | dict(zip(others, OTHERS * len(others), strict=False))
    for ax, pass_name in zip(axes[0], passes, strict=True):
        here = rows[rows["pass"] == pass_name]
        for provider, points in here.groupby("provider", sort=False):
            color, marker = styles[provider]
            line = marker + ("" if x == "elements" else "-")
            style = dict(color=color, alpha=0.7, markersize=5, linewidth=1, label=provider)
            ax.plot(points[x], points[y], line, **style)
        _scale(ax, x, y, here)
        ax.set_title(pass_name.replace("_", " "), fontsize=10)
        ax.set_xlabel(LABELS[x])
        ax.grid(alpha=0.25, which="both", linewidth=0.5)
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def _scale(ax: Axes, x: str, y: str, rows: pd.DataFrame) -> None:
    """Axes that suit what they show, and the line that it is set against."""
    ax.set_yscale("log")
    if x == "angle":
        ax.set_xticks(range(0, 91, 15))
    elif x == "zoom":
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
    else:
        ax.set_xscale("log")
    if y == "speedup_vs_eager":
        ax.axhline(1, **LINE)
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}x")
        ax.yaxis.set_minor_formatter(NullFormatter())
    elif y == "gb_per_s":  # of a copy in the same run
        ax.axhline(rows.copy_gb_per_s.iloc[-1], **LINE, label="copy")
