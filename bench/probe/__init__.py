"""``python -m bench probe``: three numbers of a GPU that no document gives.

    loads  what a load costs whose warp lies rotated, from L1 and from L2
    adds   how many float32 atomic adds L2 takes
    rows   whether rows a power of two apart hurt

Reckoned, not measured: about a minute on a GPU, a third of it spent compiling. Each row is on disk
before the next begins. ``--static`` needs no GPU: it shows what the compiler made of the kernels,
so that a reader sees that what is timed is there.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from bench import cli
from bench.measure.runner import STAMP, Machine, this_machine
from bench.measure.timing import DeviceLost, Row, guarded, time_calls
from bench.output import table
from bench.probe import cases, kernels, report
from bench.probe.cases import Case
from bench.probe.kernels import WARP, Launch, touched
from bench.suite.passes import Call

COLUMNS = (
    *("question", "pattern", "degrees", "level", "pitch", "pass", "theta_kind"),
    *("ms_p50", "ms_p20", "ms_p80", "steps", "accesses", "lines", "sectors", "banks"),
    *("sms", "sm_mhz", "accesses_per_s", "ns", "cycles", "lines_per_cycle"),
    *("adds_per_s", "sectors_per_s", "elements", "ps_per_element"),
    *("status", "note", *STAMP, "utc"),
)
INSTEAD = "`python -m bench probe --static` shows what it would run."
ENOUGH_MS = 0.5  # of one launch: what is cold at its start and its launch weigh 2% at most


def run(todo: Sequence[Case], machine: Machine, sms: int, csv: Path) -> pd.DataFrame:
    """Measure each case into ``csv``, which is begun anew; what fails in one stays in its row.

    It ends early where the GPU is lost.
    """
    csv.unlink(missing_ok=True)
    rows = []
    progress = tqdm(todo, unit="row", dynamic_ncols=True, disable=None)
    for case in progress:
        progress.set_description(" ".join(map(str, case.labels.values())))
        rows.append({**case.labels, "sms": sms, **machine.stamp(), "status": "ok"})
        lost = False
        try:
            time_case(case, machine.type, rows[-1])
        except DeviceLost:
            lost = True
        table.append(csv, derived(rows[-1:]), COLUMNS)
        if lost:
            break
    return derived(rows)


def time_case(case: Case, device: str, row: Row) -> None:
    """Write the times of the case, what its accesses touch and the clock that they ran at."""

    def make() -> Call:
        call = case.start(device)
        if case.walk is None:
            return call
        row["steps"] = enough(call)
        row["accesses"] = row["steps"] * len(case.walk.offsets) * len(case.walk.places)
        row.update(vars(touched(case.walk)))
        return lambda: (call(row["steps"]),)

    time_calls({"": row}, {"": make}, device)
    if row["status"] == "ok" and case.walk is not None and device == "cuda":
        # Right after the work, so that it is the clock that the work ran at.
        guarded(row, lambda: row.update(sm_mhz=kernels.sm_hz(device) / 1e6))


def enough(launch: Launch, at_least_ms: float = ENOUGH_MS) -> int:
    """Steps with which a launch takes ``at_least_ms``, and about four times that at most."""
    steps = 1
    while True:
        start = time.perf_counter()
        launch(steps)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if 1e3 * (time.perf_counter() - start) >= at_least_ms:
            return steps
        steps *= 4


def derived(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows with the columns that follow from their times; NaN where one has no time."""
    frame = pd.DataFrame(rows, columns=COLUMNS)
    accesses_per_s = frame.accesses / frame.ms_p50 * 1e3
    ns = 1e9 * frame.sms / accesses_per_s
    cycles = ns * frame.sm_mhz / 1e3
    return frame.assign(
        accesses_per_s=accesses_per_s,
        sectors_per_s=accesses_per_s * frame.sectors,
        adds_per_s=(accesses_per_s * WARP).where(frame.question == "adds"),
        ns=ns,
        cycles=cycles,
        lines_per_cycle=frame.lines / cycles,
        ps_per_element=1e9 * frame.ms_p50 / frame.elements,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 when a row failed, 2 where the kernels can not run or be compiled, 4 when
    the GPU was lost.
    """
    parser = argparse.ArgumentParser(
        prog="python -m bench probe",
        description="Measure rotated loads, atomic adds and rows a power of two apart.",
    )
    parser.add_argument("--static", action="store_true", help="compile for sm_90; needs no GPU")
    cli.add_out(parser)
    options = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("TRITON_INTERPRET=1 interprets the kernels; a probe compiles them.", file=sys.stderr)
        return cli.NOTHING
    if options.static:
        print(table.to_markdown(report.compiled(cases.every(1))))
        return 0
    if not torch.cuda.is_available() or torch.version.hip:
        print(f"A probe needs an NVIDIA GPU. {INSTEAD}", file=sys.stderr)
        return cli.NOTHING
    machine = this_machine()
    sms = torch.cuda.get_device_properties().multi_processor_count
    csv = (options.out or table.folder(machine.device)) / "probe.csv"
    csv.parent.mkdir(parents=True, exist_ok=True)
    every = cases.every(sms)
    frame = run(every, machine, sms, csv)
    print(f"\n{report.report(frame)}\n\nwrote {csv}")
    if len(frame) < len(every):
        print("The GPU was lost: the last row says how.")
        return cli.DEVICE_LOST
    return cli.FAILED if (frame.status != "ok").any() else 0
