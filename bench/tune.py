"""``python -m bench tune``: try other block shapes, tiles, passes, splits and register caps.

    python -m bench tune GATHER_REGISTERS=96,128,255 --filter "large_512/backward/ rotation_30"
    python -m bench tune PATCH_H=4,8,16 PATCH_W=8,16,32 --filter large_512/forward/
    python -m bench tune --plan registers gather_tiles --minutes 9 --resume

A variant is other values for constants of `triton_stn.kernels.configs`. For each variant and task
it prints what the compiler makes of the kernels for sm_90, without a GPU; on a GPU each is then
checked against float64, timed, and set against the present choice. That one is timed again at the
end of every task: its second row shows how far a ratio can be trusted. `bench.experiments` has the
plan: reckoned at 5 minutes of a GPU with 16 cores (``--plan --list``), not measured.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from bench import baselines, compare, measure, table
from bench.baselines import Provider
from bench.cases import suite
from bench.experiments import PLAN, Experiment, product
from bench.measure import Forwards, Machine, Row
from bench.trials import Trial, chosen, name_of, predict, trials, tunable

UNFINISHED = 3
ON = ["task", "variant"]
# Reckoned, not measured: what comes before and after; a check and a timing; a sampling kernel
# compiled by one core, for its report and for its launch.
START_S, TRIAL_S, COMPILATION_S = 60.0, 1.0, 16.0


def measure_trials(
    todo: Sequence[Trial], machine: Machine, csv: Path, over: Callable[[], bool]
) -> bool:
    """Check and time the trials, each a row of ``csv`` at once; False when not all were.

    It ends early when time is ``over()``, or when a kernel's fault has left the GPU beyond use.
    """
    forwards = Forwards()
    for trial in tqdm(todo, desc="measuring", unit="trial", disable=None):
        if over():
            return False
        table.append(csv, [_measured(trial, machine, forwards)])
        if not _answers(machine):
            print(f"The GPU failed under {trial.variant} on {name_of(trial.task)}.")
            return False
    return True


def _measured(trial: Trial, machine: Machine, forwards: Forwards) -> Row:
    context = partial(chosen, trial.settings)
    provider = Provider(trial.variant, lambda: baselines.ours, context=context)
    try:
        (row,) = measure.run_task(trial.task, [provider], machine, forwards)
    except Exception as exception:  # the bench outlives an error, but not a fault of the GPU
        row = measure._new_row(trial.task, provider, machine)
        row |= {"status": "error", "note": f"{type(exception).__name__}: {exception}"[:200]}
    return row


def _answers(machine: Machine) -> bool:
    try:
        if machine.type == "cuda":
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def rows_of(csv: Path) -> pd.DataFrame:
    """The rows of ``csv``; none where there is no such file."""
    return table.read(csv) if csv.exists() else pd.DataFrame(columns=table.COLUMNS)


def begin(csv: Path, device: str, found: Sequence[Trial], resume: bool) -> list[Trial]:
    """The trials without a row yet. ``csv`` keeps the rows of its other trials, as whole lines.

    Raises:
        ValueError: ``csv`` is no results table.
    """
    kept = rows_of(csv)
    kept = kept[kept.device == device]
    if not resume:
        new = {trial.key for trial in found}
        kept = kept.loc[[key not in new for key in table.keys(kept)]]
    csv.parent.mkdir(parents=True, exist_ok=True)
    csv.unlink(missing_ok=True)
    if len(kept):
        table.append(csv, kept.to_dict("records"))
    known = set(table.keys(kept))
    return [trial for trial in found if trial.key not in known]


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
    lines = []
    for variant, rows in measured.groupby("variant", sort=False):
        ratios = rows.ratio.dropna()
        line = {"variant": variant, "tasks": len(rows)}
        line["geometric mean"] = table.geometric_mean(ratios) if len(ratios) else None
        line |= {name: int((rows.change == name).sum()) for name in ("faster", "slower")}
        lines.append(line | {"not ok": int((rows.status != "ok").sum())})
    return pd.DataFrame(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 when a result is wrong, 2 when there is nothing to try, 3 when not all of
    it was measured.
    """
    start = time.monotonic()
    options = _parse(argv)
    try:
        tasks = suite("full" if options.plan else options.suite, "cuda")
        planned = [(e, trials(e, tasks)) for e in options.experiments]
    except ImportError as exception:
        print(f"The launches can not be planned: {exception}", file=sys.stderr)
        return 2
    if options.list:
        _print_plan(planned, options.jobs or os.cpu_count() or 1)
        return 0
    every = [trial for _, found in planned for trial in found]
    if not every:
        print("No variant changes a launch of the tasks that were selected.", file=sys.stderr)
        return 2

    predicted = None
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("Triton interprets its kernels (TRITON_INTERPRET=1): nothing is compiled.")
    else:
        predicted = predict(every, options.jobs)
    if not torch.cuda.is_available():
        for experiment, found in planned:
            print(_report(experiment, found, predicted, None))
        print("\nNothing was measured: there is no GPU. Ratios are of predicted floors.")
        return 0

    machine = measure.this_machine()
    csv = options.out or table.folder(machine.device) / "tune.csv"
    try:
        todo = begin(csv, machine.device, every, options.resume)
    except (OSError, ValueError) as exception:
        print(exception, file=sys.stderr)
        return 2
    seconds = math.inf if options.minutes is None else 60 * options.minutes
    done = measure_trials(todo, machine, csv, lambda: time.monotonic() - start >= seconds)
    rows = rows_of(csv)
    measured = verdicts(rows, every)
    texts = [_report(e, found, predicted, verdicts(rows, found)) for e, found in planned]
    for title, summary in (("variant, over its tasks", by_variant), ("task, the fastest", by_task)):
        texts.append(f"\n## Each {title}\n\n{table.to_markdown(summary(measured))}")
    markdown = csv.with_suffix(".md")
    markdown.write_text("\n".join(texts), encoding="utf-8")
    print("\n".join([*texts, f"\nwrote {csv} and {markdown}"]))
    if not done:
        print("Not all was measured. Go on with the same command, --resume.")
        return UNFINISHED
    return int((measured.status == "wrong").any())


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench tune",
        description="Try other values of the constants that cut kernels into programs.",
    )
    parser.add_argument(
        "what", nargs="*", metavar="NAME=V,V", help="a constant and its values, or experiments"
    )
    parser.add_argument(
        "--plan", action="store_true", help="the prepared experiments: those named, or all"
    )
    parser.add_argument("--list", action="store_true", help="only say what would be tried")
    parser.add_argument("--suite", choices=("quick", "full"), default="quick")
    parser.add_argument(
        "--filter",
        default="",
        metavar="TEXT",
        help="only tasks whose case/pass/theta/dtype/layout/padding/align_corners contains every "
        "word of TEXT, and none that begins with a minus",
    )
    parser.add_argument(
        "--out", type=Path, metavar="CSV", help="default: bench/results/<device>/tune.csv"
    )
    parser.add_argument("--resume", action="store_true", help="measure what CSV does not have")
    parser.add_argument("--minutes", type=float, metavar="M", help="begin nothing after M minutes")
    parser.add_argument("--jobs", type=int, metavar="N", help="compilers at a time; default: cores")
    options = parser.parse_args(argv)
    try:
        options.experiments = _planned(options.what) if options.plan else [_asked(options)]
    except ValueError as exception:
        parser.error(str(exception))
    return options


def _planned(names: Sequence[str]) -> list[Experiment]:
    known = {experiment.name: experiment for experiment in PLAN}
    for name in names:
        if name not in known:
            raise ValueError(f"no experiment {name!r}; the plan has {', '.join(known)}")
    return [known[name] for name in names or known]


def _asked(options: argparse.Namespace) -> Experiment:
    if not options.what:
        raise ValueError(f"name a constant, or --plan; there are {', '.join(tunable())}")
    axes = {}
    for text in options.what:
        name, _, values = text.partition("=")
        if name not in tunable():
            raise ValueError(f"no constant {name!r}; there are {', '.join(tunable())}")
        try:
            axes[name] = [int(value) for value in values.split(",")]
        except ValueError:
            raise ValueError(f"{text!r} is not {name}= and whole numbers with commas") from None
    return Experiment(" ".join(axes), "", product(**axes), (options.filter,))


def _print_plan(planned: Sequence[tuple[Experiment, list[Trial]]], jobs: int) -> None:
    total = START_S
    for experiment, found in planned:
        print(_heading(experiment))
        tasks = dict.fromkeys(name_of(trial.task) for trial in found)
        # θ does not decide what is compiled.
        kernels = {(*t.task.key(t.variant)[:3], *t.task.key("")[4:]) for t in found if not t.again}
        seconds = len(found) * TRIAL_S + len(kernels) * COMPILATION_S / jobs
        total += seconds
        print(f"\n{len(found)} trials, {len(kernels)} kernels: reckoned at {seconds:.0f} s\n")
        print("  " + "\n  ".join(tasks))
    print(f"\nReckoned, not measured: {total / 60:.1f} minutes on a GPU with {jobs} cores.")


def _heading(experiment: Experiment) -> str:
    lines = [f"\n## {experiment.name}", experiment.question]
    lines += [f"Predicted: {experiment.expected}"] if experiment.expected else []
    return "\n\n".join(line for line in lines if line)


def _report(
    experiment: Experiment,
    found: Sequence[Trial],
    predicted: pd.DataFrame | None,
    measured: pd.DataFrame | None,
) -> str:
    """One table a task, predicted columns before measured ones."""
    parts = [_heading(experiment)]
    shown = [(name_of(t.task), t.variant) for t in found if measured is not None or not t.again]
    frame = pd.DataFrame(shown, columns=ON)
    for columns in (predicted, measured):
        frame = frame if columns is None else frame.merge(columns, "left", ON)
    for task, rows in frame.groupby("task", sort=False):
        rows = rows.drop(columns="task").replace({"": None}).dropna(axis=1, how="all")
        parts += [f"### {task}", table.to_markdown(rows)]
    return "\n\n".join(parts)
