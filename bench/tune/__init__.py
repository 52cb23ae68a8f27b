"""``python -m bench tune``: try other block shapes, tiles, passes, splits and register caps.

    python -m bench tune GATHER_REGISTERS=96,128,255 --filter "large_512/backward/ rotation_30"
    python -m bench tune PATCH_H=4,8,16 PATCH_W=8,16,32 --filter large_512/forward/
    python -m bench tune --plan registers gather_tiles --minutes 9 --resume

A variant is other values for constants of `triton_stn.kernels.configs`. For each variant and task
it prints what the compiler makes of the kernels for sm_90, without a GPU; on a GPU each is then
checked against float64, timed, and set against the present choice. That one is timed again at the
end of every task: its second row shows how far a ratio can be trusted. `bench.tune.experiments` has
the plan: reckoned at 7 minutes of a GPU with 16 cores, not measured.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from bench import cli
from bench.measure.runner import Forwards, Machine, run_task, this_machine
from bench.output import table
from bench.providers import baselines
from bench.providers.registry import Provider
from bench.suite.cases import suite
from bench.tune import report, trials
from bench.tune.experiments import PLAN, Experiment, product
from bench.tune.trials import Trial, chosen, tunable


def measure_trials(
    todo: Sequence[Trial], machine: Machine, csv: Path, over: Callable[[], bool]
) -> int:
    """Check and time the trials, each a row of ``csv``; the status of ``cli.measure``."""
    forwards = Forwards()
    steps = [
        (trial.variant, partial(run_task, trial.task, [provider_of(trial)], machine, forwards))
        for trial in todo
    ]
    return cli.measure(steps, csv, over)


def provider_of(trial: Trial) -> Provider:
    """The library, as the trial's constants cut it."""
    context = partial(chosen, trial.settings)
    return Provider(trial.variant, lambda: baselines.ours, context=context)


def begin(csv: Path, device: str, found: Sequence[Trial], resume: bool) -> list[Trial]:
    """The trials without a row yet. ``csv`` keeps the rows of its other trials.

    Raises:
        ValueError: ``csv`` is no results table.
    """
    kept = table.so_far(csv, device)
    if not resume:
        new = {trial.key for trial in found}
        kept = kept.loc[[key not in new for key in table.keys(kept)]]
    table.begin(csv, kept)
    known = set(table.keys(kept))
    return [trial for trial in found if trial.key not in known]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 when a result is wrong, 2 when there is nothing to try, 3 when
    ``--minutes`` ran out, 4 when the GPU was lost.
    """
    options = _parse(argv)
    over = cli.deadline(options.minutes)
    tasks = suite("full" if options.plan else options.suite, "cuda")
    planned = [(e, trials.of(e, tasks)) for e in options.experiments]
    every = [trial for _, found in planned for trial in found]
    if not every:
        print("No variant changes a launch of the tasks that were selected.", file=sys.stderr)
        return cli.NOTHING

    predicted = None
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("Triton interprets its kernels (TRITON_INTERPRET=1): nothing is compiled.")
    else:
        predicted = report.predict(every, options.jobs)
    if not torch.cuda.is_available():
        for experiment, found in planned:
            print(report.report(experiment, found, predicted, None))
        print("\nNothing was measured: there is no GPU. Ratios are of predicted floors.")
        return 0

    machine = this_machine()
    csv = (options.out or table.folder(machine.device)) / "tune.csv"
    try:
        todo = begin(csv, machine.device, every, options.resume)
    except (OSError, ValueError) as exception:
        print(exception, file=sys.stderr)
        return cli.NOTHING
    status = measure_trials(todo, machine, csv, over)
    rows = table.so_far(csv, machine.device)
    measured = report.verdicts(rows, every)
    texts = [report.report(e, found, predicted, measured) for e, found in planned]
    texts += [report.summary(measured)]
    markdown = csv.with_suffix(".md")
    markdown.write_text("\n".join(texts), encoding="utf-8")
    print("\n".join([*texts, f"\nwrote {csv} and {markdown}"]))
    if status in cli.CUT_SHORT:
        print(cli.CUT_SHORT[status])
        return status
    return cli.FAILED if (measured.status == "wrong").any() else 0


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
    cli.add_run_options(parser, "tasks whose case/pass/theta/dtype/layout/padding/align_corners")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="compilers at a time; default: cores, to 16"
    )
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
