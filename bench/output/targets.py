"""What the library promises, and whether a results table keeps it: a line a figure.

A figure is judged over every row of ``triton_stn`` that its words cover, whatever they leave open:
dtype, layout, θ, padding. No row leaves quietly. "not judged" counts those without the numbers that
it takes, and a figure is not met while a row of ours among them is wrong or failed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bench.output import table
from bench.output.table import ROW
from bench.suite import sources
from bench.suite.cases import CASES, EXTREME, suite
from bench.suite.passes import RESULTS, TITLES

LARGE_BYTES = 64e6
BACKWARDS = ("backward_input", "backward_theta", "backward")
HALVES = ("float16", "bfloat16")
INTRODUCTION = (
    "**Targets.** Rows over 64 MB: min_bytes above 64,000,000. Axis-aligned: identity, zooms, a "
    "turn by 90°. % of copy: min_bytes over the time, against the copy of the run; of a backward "
    "pass min_bytes are its three tensors, of what is read the part in view. Times are ms_p50, but "
    "of a call from Python call_ms, the wall-clock time in a loop. Memory: what the call asked of "
    "the allocator over its results and, where θ has a gradient, as many partial sums as "
    "`bench.output.targets.allowed_bytes` says. Error: the largest of the row, over that of eager "
    "PyTorch in the same row; of a half type over that of eager in float32 plus one rounding of "
    "the largest exact number. Of a pass of several results the largest error decides."
)


@dataclass(frozen=True)
class Figure:
    """One promise, over ``rows``; ``values`` are theirs, NaN where there is nothing to judge."""

    name: str
    rows: pd.DataFrame
    values: pd.Series
    least: float = 0.0  # what the values must reach
    most: float = np.inf  # and must not exceed
    unit: str = "x"
    mean: bool = False  # not each value must, but their geometric mean

    def verdict(self) -> dict[str, object]:
        """The line of the table."""
        judged = self.values.dropna()
        failed = self.rows[self.rows.status.isin(("wrong", "oom", "error"))]
        asked = f"≥ {self.least:g}" if self.least else f"≤ {self.most:g}"
        line = {
            "figure": self.name,
            "asked": asked + self.unit,
            "rows": len(judged),
            "not judged": len(self.rows) - len(judged),
            "met": "no" if len(failed) else "not measured",
        }
        if len(judged):
            at = judged.idxmin() if self.least else judged.idxmax()
            measured = table.geometric_mean(judged) if self.mean else judged[at]
            met = self.least <= measured <= self.most and failed.empty
            line |= {"measured": measured, "met": "yes" if met else "no"}
            line["rows beyond"] = int((~judged.between(self.least, self.most)).sum())
            line |= {"worst": judged[at], "worst row": _name(self.rows.loc[at])}
        if len(failed):  # worse than any number
            line["worst row"] = f"{_name(failed.iloc[0])}: {failed.status.iloc[0]}"
        return line


def _name(row: pd.Series) -> str:
    return " ".join(row[["case", "pass", "theta_kind", "dtype", "layout"]])


def verdicts(frame: pd.DataFrame) -> pd.DataFrame:
    """Every figure: what is asked, over how many rows, what came out, met or not, the worst row.

    ``frame`` is a results table, whole or in part.
    """
    columns = ["figure", "asked", "rows", "not judged", "measured", "met"]
    promised = of_cpu if frame.device.iloc[-1] == "cpu" else figures
    lines = [figure.verdict() for figure in promised(frame)]
    return pd.DataFrame(lines, columns=[*columns, "rows beyond", "worst", "worst row"])


def paragraphs(frame: pd.DataFrame) -> list[str]:
    """What a report says of the targets: nothing of a run on a CPU, which has two."""
    if frame.device.iloc[-1] == "cpu":
        return []
    tasks = {task.key("triton_stn") for task in suite("full", "cuda")}
    ran = tasks & set(table.keys(frame))
    coverage = f"The table has {len(ran):,} of the full suite's {len(tasks):,} tasks."
    return [f"{INTRODUCTION} {coverage}", table.to_markdown(verdicts(frame))]


def of_cpu(frame: pd.DataFrame) -> list[Figure]:
    """The promises of the pure-PyTorch path: no slower than what it stands in for."""
    ours = compared(frame, "triton_stn")
    made = []
    for pass_name in ("forward", "forward_backward"):
        rows = ours[ours["pass"] == pass_name]
        name = f"{TITLES[pass_name]} over eager, geometric mean"
        made.append(Figure(name, rows, rows.vs_eager, least=1, mean=True))
    return made


def figures(frame: pd.DataFrame) -> list[Figure]:
    """The promises of a GPU, in the order in which they are stated."""
    ours, replayed = compared(frame, "triton_stn"), compared(frame, "triton_stn_graph")
    forward, backward = ours["pass"] == "forward", ours["pass"] == "backward"
    both = ours["pass"] == "forward_backward"
    exact, half = ours["dtype"] == "float32", ours["dtype"].isin(HALVES)
    large = exact & (ours.min_bytes > LARGE_BYTES)
    axis, turned = axis_aligned(ours), ours.theta_kind == "rotation_45"
    extreme = ours.theta_kind.isin(EXTREME)
    every_backward = ours["pass"].isin(BACKWARDS)
    memory = ours.peak_memory_mib * 2**20 / allowed_bytes(ours)
    digits, replayed = ours[of_digits(ours)], replayed[of_digits(replayed)]

    def of(name: str, which: pd.Series, values: pd.Series, **options: object) -> Figure:
        return Figure(name, ours[which], values[which], **options)

    def bandwidth(name: str, which: pd.Series, least: float) -> Figure:
        name = f"{name}, rows over 64 MB, float32"
        values = ours.pct_copy_bandwidth
        return of(name, which & large, values, least=least, unit="% of copy")

    def mean(name: str, which: pd.Series, values: pd.Series, least: float) -> Figure:
        return of(f"{name}, geometric mean", which, values, least=least, mean=True)

    return [
        bandwidth("forward, axis-aligned", forward & axis, 90),
        bandwidth("forward, 45°", forward & turned, 75),
        bandwidth("backward, axis-aligned", backward & axis, 75),
        bandwidth("backward, 45°", backward & turned, 55),
        mean("forward over eager", forward, ours.vs_eager, 3),
        mean("backward over eager", backward, ours.vs_eager, 5),
        mean("forward + backward over eager", both, ours.vs_eager, 4),
        mean("forward over the best other provider", forward, ours.vs_best, 1.4),
        mean("backward over the best other provider", backward, ours.vs_best, 4),
        of("each forward over eager", forward & ~extreme, ours.vs_eager, least=1),
        of("each backward over eager", every_backward & ~extreme, ours.vs_eager, least=1),
        of("singular and extreme θ over eager", extreme, ours.vs_eager, least=0.33),
        Figure("64x1x28x28, a call from Python over eager", digits, digits.call_vs_eager, 1.5),
        Figure("64x1x28x28, CUDA graphs of both", replayed, replayed.vs_eager_graph, 4),
        Figure("memory", ours, memory, most=1),
        of("error, float32", exact, error_ratio(ours), most=1),
        of("error, half types", half, error_ratio(ours), most=1),
    ]


def compared(frame: pd.DataFrame, provider: str) -> pd.DataFrame:
    """The rows of a provider with ratios of eager's times, and the best other's, to theirs.

    NaN where either is not ok. Errors of eager are in the row's dtype, and in float32.
    """
    rows = frame[frame.provider == provider]
    ok = frame[frame.status == "ok"]
    eager = ok[ok.provider == "eager"]
    exact = eager[eager["dtype"] == "float32"]
    but_dtype = [name for name in ROW if name != "dtype"]
    for others, on, columns in (
        (eager, ROW, {"ms_p50": "eager", "call_ms": "eager_call", "max_abs_error": "eager_error"}),
        (ok[ok.provider == "eager_graph"], ROW, {"ms_p50": "eager_graph"}),
        (table.best_other(ok), ROW, {"ms_p50": "best"}),
        (exact, but_dtype, {"max_abs_error": "eager_float32_error"}),
    ):
        rows = rows.merge(others[[*on, *columns]].rename(columns=columns), "left", on)
    timed = rows[["ms_p50", "call_ms"]].where(rows.status == "ok")
    return rows.assign(
        vs_eager=rows.eager / timed.ms_p50,
        vs_eager_graph=rows.eager_graph / timed.ms_p50,
        vs_best=rows.best / timed.ms_p50,
        call_vs_eager=rows.eager_call / timed.call_ms,
    )


def axis_aligned(rows: pd.DataFrame) -> pd.Series:
    """Rows whose θ takes each axis of the image to one of the two."""
    kinds = rows.theta_kind
    return kinds.isin(("identity", "rotation_0", "rotation_90")) | kinds.str.startswith("zoom_")


def of_digits(rows: pd.DataFrame) -> pd.Series:
    """Rows of forward + backward on the 64 x 1 x 28 x 28 images of a tutorial, at any θ."""
    (case,) = (case for case in CASES if case.name == "tutorial_28")
    return (rows.case == case.name) & (rows.n == case.n) & (rows["pass"] == "forward_backward")


def error_ratio(rows: pd.DataFrame) -> pd.Series:
    """Our error over what is allowed, 0 where there is none."""
    half = rows["dtype"].isin(HALVES)
    allowed = rows.eager_error.where(~half, rows.eager_float32_error + rows.one_rounding)
    return (rows.max_abs_error / allowed).where((rows.max_abs_error != 0) | allowed.isna(), 0.0)


def allowed_bytes(rows: pd.DataFrame) -> pd.Series:
    """What each row's pass returns, and O(N·K·tiles) partial sums where θ has a gradient.

    Of each θ a set of sums for every tile of the larger canvas, 16 x 8 pixels or 8 x 4 x 4 voxels,
    and every four channels, as many as the smallest tiles of the kernels have; twice that of
    volumes and homographies, where a scatter may follow the gather.
    """
    width = rows["dtype"].map({"float32": 4, "float16": 2, "bfloat16": 2})
    d, d_out = rows.d.clip(lower=1), rows.d_out.clip(lower=1)
    tiles = np.maximum(_tiles(d, rows.h, rows.w), _tiles(d_out, rows.h_out, rows.w_out))
    sums = 6 * -(-_numbers_of_theta(rows).clip(upper=12) // 6)
    launches = 1 + ((rows.d > 0) | (rows["transform"] == "projective"))
    partial = tiles * -(-rows.c // 4) * sums * launches
    sizes = {
        "y": rows.n * rows.k * rows.c * d_out * rows.h_out * rows.w_out * width,
        "grad_input": rows.n * rows.c * d * rows.h * rows.w * width,
        "grad_theta": 4 * rows.n * rows.k * (_numbers_of_theta(rows) + partial),
    }
    returned = {
        name: rows["pass"].isin([of for of, results in RESULTS.items() if name in results])
        for name in sizes
    }
    total = sum(size.where(returned[name], 0) for name, size in sizes.items())
    return total * (1 + 1e-5)  # the table has six digits


def _numbers_of_theta(rows: pd.DataFrame) -> pd.Series:
    """Of one θ, grid or flow."""
    points = rows["transform"].str.extract(r"^tps_(\d+)$", expand=False).astype(float)
    numbers = (rows.d > 0).map({True: 12, False: 6}).astype(float)
    numbers = numbers.mask(rows["transform"] == "projective", 9).mask(points.notna(), 2 * points)
    field = rows.d_out.clip(lower=1) * rows.h_out * rows.w_out * (2 + (rows.d > 0))
    return numbers.mask(rows["transform"].isin(sources.FIELDS), field)


def _tiles(depth: pd.Series, height: pd.Series, width: pd.Series) -> pd.Series:
    images = -(-height // 16) * -(-width // 8)
    volumes = -(-depth // 8) * -(-height // 4) * -(-width // 4)
    return images.where(depth == 1, volumes)
