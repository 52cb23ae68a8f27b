"""``python -m bench``: measure, write the table, print the summary. ``--help`` has the options."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from bench import cli
from bench.measure.runner import Forwards, Machine, run_task, this_machine
from bench.model.compiler import compile_ahead
from bench.output import plots, report, screen, table
from bench.providers.registry import PROVIDERS, YARDSTICK, Provider
from bench.suite.cases import Task, suite

# `python -m bench NAME ...` runs `main([...])` of the module.
SUBCOMMANDS = {
    "compare": "bench.output.compare",
    "host": "bench.host",
    "probe": "bench.probe",
    "report": "bench.output.report",
    "roofline": "bench.model.roofline",
    "tune": "bench.tune",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 when a row of triton_stn is wrong or failed, 2 when the filter leaves
    nothing, 3 when ``--minutes`` ran out before the suite did, 4 when the GPU was lost.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in SUBCOMMANDS:
        return importlib.import_module(SUBCOMMANDS[argv[0]]).main(argv[1:])
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Check triton_stn, eager and compiled PyTorch against float64, then time them.",
        epilog=f"Further commands, each with its own --help: {', '.join(SUBCOMMANDS)}.",
    )
    cli.add_run_options(parser, "rows whose case/pass/provider/theta/dtype/layout")
    options = parser.parse_args(argv)
    machine = this_machine()
    if machine.type == "cpu":
        print("No GPU found: timing the pure-PyTorch path on the CPU.")
        cores = os.cpu_count() or 1
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        if load > cores / 2:  # every parallel region waits for a time slice
            print(f"The CPU is busy (load {load:.1f} on {cores} cores): do not trust these times.")
    csv = (options.out or table.folder(machine.device)) / "results.csv"
    tasks = suite(options.suite, machine.type)
    how = (options.filter, options.resume, options.minutes)
    try:
        status = run(tasks, PROVIDERS, machine, csv, *how)
    except KeyboardInterrupt:
        print(f"\nInterrupted; {csv} has what was measured. Go on with the same command, --resume.")
        return 130
    if not csv.exists():
        print(f"Nothing matches --filter {options.filter!r}.")
        return cli.NOTHING
    _write_report(csv)
    if status in cli.CUT_SHORT:
        print(cli.CUT_SHORT[status])
    return status


def run(
    tasks: Sequence[Task],
    providers: Sequence[Provider],
    machine: Machine,
    csv: Path,
    words: str = "",
    resume: bool = False,
    minutes: float | None = None,
) -> int:
    """Measure into ``csv``, a task at a time; the exit status, as that of ``main``."""
    over = cli.deadline(minutes)
    done = table.so_far(csv, machine.device) if resume else pd.DataFrame(columns=table.COLUMNS)
    table.begin(csv, done)
    known = set(table.keys(done))
    # Of an earlier run that was cut short, for the speedups of what is missing.
    eager = done[(done.provider == YARDSTICK) & done.ms_p50.notna()].assign(provider="")
    eager_ms = dict(zip(table.keys(eager), eager.ms_p50, strict=True))
    forwards = Forwards()
    todo = []
    for task in tasks:
        keys = {provider: task.key(provider.name) for provider in providers}
        missing = [p for p, key in keys.items() if key not in known]
        missing = [p for p in missing if cli.matches("/".join(keys[p][:6]), words)]
        if missing:
            todo.append((task, missing))
    if machine.type == "cuda":
        ours = [t for t, missing in todo if any(p.name.startswith("triton_stn") for p in missing)]
        compile_ahead(ours)
    steps = []
    for task, missing in todo:
        name = f"{task.case.name} {task.pass_name} {task.theta_kind}"
        known_ms = eager_ms.get(task.key(""))
        steps.append((name, partial(run_task, task, missing, machine, forwards, known_ms)))
    status = cli.measure(steps, csv, over)
    if status or not csv.exists():
        return status
    frame = table.read(csv)
    bad = frame[table.of_ours(frame)].status.isin(("wrong", "error"))
    return cli.FAILED if bad.any() else 0


def _write_report(csv: Path) -> None:
    frame = table.read(csv)
    markdown = csv.with_suffix(".md")
    markdown.write_text(report.whole(frame), encoding="utf-8")
    print(f"\n{screen.of(frame)}\n")
    pictures = plots.draw(frame, csv.parent)  # last: a picture that fails costs no number
    for path in (csv, markdown, *pictures):
        print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
