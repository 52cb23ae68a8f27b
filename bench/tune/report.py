"""The tables of ``python -m bench tune``: each trial beside the present choice, task by task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bench.output import compare, table
from bench.tune.experiments import Experiment
from bench.tune.trials import Trial, name_of

ON = ["task", "variant"]


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
