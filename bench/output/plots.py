"""Pictures of a results table: speedup by case, angle and zoom; bandwidth; peak memory."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bench.output import table
from bench.suite.cases import EXTREME, PASSES, SWEEP, SWEEP_CASE, angle_and_scale
from bench.suite.passes import TITLES
from triton_stn.plot import NO_MATPLOTLIB

try:
    import matplotlib

    matplotlib.use("Agg")

    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
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
CASE = "case"  # the axis of names
LINE = dict(color="#555555", linewidth=1, linestyle="--")
LABELS = {
    "speedup_vs_eager": "times as fast as eager PyTorch",
    "gb_per_s": "least bytes over time, GB/s",
    "peak_memory_mib": "peak memory, MiB",
    "angle": "rotation, degrees",
    "zoom": "times as large",
}


def draw(frame: pd.DataFrame, out: Path) -> list[Path]:
    """Write the PNGs that the rows allow into ``out``; their paths.

    speedup.png, bandwidth.png and memory.png have a line a case and a point a row; angle.png and
    zoom.png follow the full suite's sweep on one case.
    """
    rows = frame[frame.status == "ok"]
    if rows.empty:
        return []
    compared = rows[rows.speedup_vs_eager.notna() & (rows.provider != "eager")]
    turned, zoomed = sweeps(compared)
    pictures = {
        "speedup": (compared, "speedup_vs_eager", CASE),
        "bandwidth": (rows, "gb_per_s", CASE),
        "memory": (rows[rows.peak_memory_mib > 0], "peak_memory_mib", CASE),
        "angle": (turned, "angle", "speedup_vs_eager"),
        "zoom": (zoomed, "zoom", "speedup_vs_eager"),
    }
    last, written = rows.iloc[-1], []
    for name, (points, x, y) in pictures.items():
        if len(points):
            figure = _panels(points, x, y)
            figure.suptitle(
                f"{_title(points, x, y)}; {last.device}, torch {last.torch}", fontsize=11
            )
            written.append(out / f"{name}.png")
            figure.savefig(written[-1], dpi=110)
            plt.close(figure)
    return written


def _title(rows: pd.DataFrame, x: str, y: str) -> str:
    """What is compared with what."""
    providers = ", ".join(rows.provider.unique())
    if "speedup_vs_eager" in (x, y):
        providers += " against F.affine_grid + F.grid_sample"
    return f"{providers}{'' if y == CASE else f', {SWEEP_CASE}'}"


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


def _panels(rows: pd.DataFrame, x: str, y: str) -> Figure:
    """A panel a pass; a point a row, on the line of its case. Sweeps, which are in order of x, are
    drawn as lines."""
    passes = [name for name in PASSES if (rows["pass"] == name).any()]
    cases = list(dict.fromkeys(rows.case))[::-1]  # the first on top
    high = 1.4 + 0.21 * len(cases) if y == CASE else 3.4
    shape = dict(ncols=len(passes), figsize=(2.2 + 3.2 * len(passes), high), squeeze=False)
    figure, axes = plt.subplots(**shape, sharey=True, layout="constrained")
    others = [name for name in rows.provider.unique() if name not in STYLES]
    styles = STYLES | dict(zip(others, OTHERS * len(others), strict=False))
    for ax, pass_name in zip(axes[0], passes, strict=True):
        here = rows[rows["pass"] == pass_name]
        for provider, points in here.groupby("provider", sort=False):
            color, marker = styles[provider]
            places = points.case.map(cases.index) if y == CASE else points[y]
            line = marker + ("" if y == CASE else "-")
            style = dict(color=color, alpha=0.7, markersize=5, linewidth=1, label=provider)
            ax.plot(points[x], places, line, **style)
        for axis, name in ((ax.xaxis, x), (ax.yaxis, y)):
            _scale(ax, axis, name, here)
        if y == CASE:
            ax.set_yticks(range(len(cases)), cases, fontsize=8)
        ax.set_title(TITLES[pass_name], fontsize=10)
        ax.set_xlabel(LABELS[x])
        ax.grid(alpha=0.25, linewidth=0.5)
    if rows.provider.nunique() > 1:
        axes[0, 0].legend(fontsize=8)
    return figure


def _scale(ax: Axes, axis: Axis, name: str, rows: pd.DataFrame) -> None:
    """An axis that suits what it shows, and the line that it is set against."""
    if name == CASE:
        return
    if name == "angle":
        ax.set_xticks(range(0, 91, 15))
        return
    set_scale = ax.set_xscale if axis is ax.xaxis else ax.set_yscale
    set_scale("log", base=2 if name == "zoom" else 10)
    if name == "zoom":
        axis.set_major_formatter("{x:g}")
    across = ax.axvline if axis is ax.xaxis else ax.axhline
    if name == "speedup_vs_eager":
        across(1, **LINE)
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}x")
        axis.set_minor_formatter(NullFormatter())
    elif name == "gb_per_s":  # of a copy in the same run
        across(rows.copy_gb_per_s.iloc[-1], **LINE, label="copy")
