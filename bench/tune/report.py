"""The tables of ``python -m bench tune``: what the compiler makes of the trials' kernels, the time
that the roofline gives them, and each trial beside the present choice, task by task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from bench.measure.timing import Row
from bench.model import counts, launches, roofline
from bench.model.addresses import WARP
from bench.model.compiler import workers
from bench.output import compare, table
from bench.tune.experiments import Experiment
from bench.tune.trials import Trial, chosen, name_of

GPU = roofline.GPUS["H200"]  # what is compiled for, and whose time is predicted
# Of a multiprocessor of compute capability 9.0 (CUDA programming guide); a warp gets its registers
# in pieces of 256.
REGISTERS, PIECE, MOST_WARPS = 65536, 256, 64
COLUMNS = (
    *("task", "variant", "kernel", "warp", "window", "programs", "waves", "registers", "spilled"),
    *("per_tile", "per_channel", "per_map", "warps an SM", "binds", "predicted ms", "cause"),
)
ON = ["task", "variant"]


def predict(found: Sequence[Trial], jobs: int | None = None) -> pd.DataFrame:
    """A row a trial × kernel: what the compiler makes of it, and the time that the roofline gives.

    With a GPU it also compiles what the trials will launch, on every core instead of one.
    """
    rows = []
    with workers(jobs) as pool:
        futures = [(t, pool.submit(compiled, t)) for t in found if not t.again]
        for trial, future in tqdm(futures, desc="compiling", unit="trial", disable=None):
            try:
                of_trial = future.result()
            except Exception as exception:  # of one variant: the others go on
                first = str(exception).strip().splitlines()[:1]
                of_trial = [{"cause": ": ".join([type(exception).__name__, *first])[:200]}]
            rows += [{"task": name_of(trial.task), "variant": trial.variant, **r} for r in of_trial]
    frame = pd.DataFrame(rows).reindex(columns=COLUMNS)
    frame = frame.astype(dict.fromkeys(("programs", "registers", "warps an SM"), "Int64"))
    of_present = frame.groupby("task", sort=False)["predicted ms"].transform("first")
    return frame.assign(**{"predicted ratio": frame["predicted ms"] / of_present})


def compiled(trial: Trial) -> list[Row]:
    """The rows of a trial; for a worker process."""
    task = trial.task
    how = (task.case.transform, task.case.mode, task.padding_mode)
    plain = how == ("affine", "bilinear", "zeros")
    modelled = plain and (task.dtype, task.layout) == ("float32", "contiguous")
    is_counted = plain and task.case.ndim == 2
    window = roofline.window(replace(task, pass_name="backward")) if is_counted else ""
    with chosen(trial.settings):
        rows = []
        specs = launches.of_task(task)
        for spec in specs:
            if spec.tiling is None:  # no sampling kernel
                continue
            row = counts.row(spec, GPU.target)
            if is_counted:
                row["window"] = window if spec.kernel.startswith("gather") else ""
                if row["window"] in ("", *counts.NARROW):
                    kernel = launches.compiled(spec, GPU.target)
                    row |= counts.instructions(spec, kernel, row["window"])
            resident = warps_an_sm(row["registers"], spec.plan.num_warps)
            row |= {"programs": spec.programs, "warps an SM": resident}
            rows.append(row | {"waves": spec.programs * spec.plan.num_warps / (GPU.sms * resident)})
        if modelled and task.pass_name in roofline.PASSES:
            bound = roofline.bound(roofline.ours(task, GPU).floors(GPU))
            rows = [row | bound for row in rows]
        if torch.cuda.is_available():
            launches.warm_up(specs)
    return rows


def warps_an_sm(registers: int, warps: int) -> int:
    """Warps that a multiprocessor holds of programs of ``warps``, by their registers a thread."""
    pieces = -(-registers * WARP // PIECE)
    return min(REGISTERS // (pieces * PIECE * warps), MOST_WARPS // warps) * warps


def verdicts(rows: pd.DataFrame, found: Sequence[Trial]) -> pd.DataFrame:
    """The measured trials beside the present choice, by the rule of ``bench compare``."""
    by_key = dict(zip(table.keys(rows), rows.to_dict("records"), strict=True))
    done = [t for t in found if t.key in by_key and t.yardstick in by_key]
    pairs = [(t, by_key[t.yardstick], by_key[t.key]) for t in done]
    new = pd.DataFrame([row for _, _, row in pairs], columns=rows.columns)
    old = pd.DataFrame([row for _, row, _ in pairs], columns=rows.columns)
    changes = compare.changes(new.join(new.add_suffix("_new")).join(old.add_suffix("_old")))
    change = changes.change.reindex(new.index, fill_value="within spread")
    is_present = pd.Series([t.key == t.yardstick for t, *_ in pairs], dtype=bool)
    return pd.DataFrame(
        {
            "task": [name_of(t.task) for t, *_ in pairs],
            "variant": new.provider,
            "ms": new.ms_p50,
            "p20": new.ms_p20,
            "p80": new.ms_p80,
            "ratio": new.ms_p50 / old.ms_p50,
            "change": change.mask(is_present, "present"),
            "status": new.status,
            "note": new.note,
        }
    )


def by_task(measured: pd.DataFrame) -> pd.DataFrame:
    """The fastest of each task, the present choice where none is faster beyond the spread."""
    fit = measured[measured.change.isin(("present", "faster")) & (measured.status == "ok")]
    best = fit.sort_values("ms", kind="stable").drop_duplicates("task").sort_index()
    return best.rename(columns={"variant": "best"})[["task", "best", "ms", "ratio", "change"]]


def by_variant(measured: pd.DataFrame) -> pd.DataFrame:
    """Every variant over its tasks: what decides about a constant, which has one value for all."""
    found = measured.assign(
        log=np.log(measured.ratio.astype(float)),
        **{name: measured.change == name for name in ("faster", "slower")},
        **{"not ok": measured.status != "ok"},
    ).groupby("variant", sort=False)
    means = {"tasks": found.size(), "geometric mean": np.exp(found["log"].mean())}
    counts = found[["faster", "slower", "not ok"]].sum()
    return pd.DataFrame(means).join(counts).reset_index()


def summary(measured: pd.DataFrame) -> str:
    """Over all tasks and over all variants, last: it is what decides."""
    titles = {"variant, over its tasks": by_variant, "task, the fastest": by_task}
    tables = {title: table.to_markdown(of(measured)) for title, of in titles.items()}
    return "\n".join(f"\n## Each {title}\n\n{text}" for title, text in tables.items())


def report(
    experiment: Experiment,
    found: Sequence[Trial],
    predicted: pd.DataFrame | None,
    measured: pd.DataFrame | None,
) -> str:
    """Its question, and one table a task, predicted columns before measured ones."""
    parts = [f"\n## {experiment.name}", experiment.question]
    parts += [f"Predicted: {experiment.expected}"] if experiment.expected else []
    shown = [(name_of(t.task), t.variant) for t in found if measured is not None or not t.again]
    frame = pd.DataFrame(shown, columns=ON)
    for columns in (predicted, measured):
        frame = frame if columns is None else frame.merge(columns, "left", ON)
    for task, rows in frame.groupby("task", sort=False):
        rows = rows.drop(columns="task").replace({"": None}).dropna(axis=1, how="all")
        parts += [f"### {task}", table.to_markdown(rows)]
    return "\n\n".join(filter(None, parts))
