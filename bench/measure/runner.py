"""One task, every provider: compare with float64 first, then time what is right."""

from __future__ import annotations

import datetime
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bench.measure import oracle
from bench.measure.timing import DeviceLost, Row, guarded, time_calls
from bench.providers.registry import YARDSTICK, Provider
from bench.suite.cases import SHAPE, Case, Task, min_bytes
from bench.suite.passes import Call, Forward

HOW = ("theta_kind", "dtype", "layout", "padding_mode", "align_corners")
STAMP = ("device", "torch", "triton", "commit", "copy_gb_per_s")
COPY_BYTES = {"cuda": 2**30, "cpu": 2**28}  # past the last cache; quick on a slow machine


@dataclass(frozen=True)
class Machine:
    """Where rows are measured."""

    type: str  # "cuda" (ROCm too) or "cpu"
    device: str  # what the driver calls the GPU, or "cpu"
    copy_gb_per_s: float  # device-to-device copy, bytes read + bytes written
    torch: str
    triton: str
    commit: str

    def stamp(self) -> Row:
        """What every row says about where, of what and when it was measured: now."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        return {name: getattr(self, name) for name in STAMP} | {"utc": now}


def this_machine() -> Machine:
    """Look around, and time the copy that bandwidths are set against."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        from triton import __version__ as triton
    except ImportError:
        triton = ""
    return Machine(
        type=kind,
        device=torch.cuda.get_device_name() if kind == "cuda" else "cpu",
        copy_gb_per_s=_copy_bandwidth(kind),
        torch=torch.__version__,
        triton=triton,
        commit=_commit(),
    )


def _copy_bandwidth(device: str) -> float:
    source = torch.ones(COPY_BYTES[device] // 4, device=device)
    target = torch.empty_like(source)
    row: Row = {"status": "ok"}
    time_calls({"": row}, {"": lambda: lambda: (target.copy_(source),)}, device)
    if row["status"] != "ok":
        raise RuntimeError(f"a copy of {COPY_BYTES[device]:,} bytes failed: {row['note']}")
    return 2 * COPY_BYTES[device] / row["ms_p50"] / 1e6


def _commit() -> str:
    """The commit of the sources, or "" outside a git checkout."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    with suppress(OSError):  # there is no git
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
        return done.stdout.strip()
    return ""


class Forwards:
    """The providers' forwards, built once a case, dtype and layout."""

    def __init__(self) -> None:
        self._of: tuple[Case, str, str] | None = None
        self._built: dict[str, Forward] = {}

    def how(self, provider: Provider, task: Task) -> tuple:
        """What ``Reference.errors`` and ``Reference.call`` take."""
        shape = (task.case, task.dtype, task.layout)
        if shape != self._of:
            self._of, self._built = shape, {}
            if torch.cuda.is_available():
                # Past eight shapes of one function Dynamo would quietly run it eagerly.
                torch.compiler.reset()
        if provider.name not in self._built:
            self._built[provider.name] = provider.build()
        dtype = getattr(torch, task.dtype)
        return self._built[provider.name], task.pass_name, dtype, task.layout, provider.wrap


def run_task(
    task: Task,
    providers: Sequence[Provider],
    machine: Machine,
    forwards: Forwards,
    eager_ms: float | None = None,
) -> list[Row]:
    """The rows of the task, one a provider; whatever goes wrong in one stays in that one.

    ``eager_ms``: eager's time where it was measured before, for the speedup.

    Raises:
        DeviceLost: with the rows that are settled.
    """
    rows = {provider.name: new_row(task, provider, machine) for provider in providers}
    makers: dict[str, Callable[[], Call]] = {}
    contexts = {provider.name: provider.context for provider in providers}
    try:
        for provider in providers:
            row = rows[provider.name]
            row["note"] = provider.why_not(machine.type, task)
            if row["note"]:
                row["status"] = "skipped"
                continue
            guarded(row, partial(_check, task, provider, forwards, machine.type, row))
            if row["status"] == "ok":
                makers[provider.name] = partial(_call, task, provider, forwards, machine.type)
        time_calls(rows, makers, machine.type, contexts)
    except DeviceLost as lost:
        rows = {n: row for n, row in rows.items() if "ms_p50" in row or row["status"] != "ok"}
        lost.rows = _compared(rows, machine, eager_ms)
        raise
    return _compared(rows, machine, eager_ms)


def _compared(rows: dict[str, Row], machine: Machine, eager_ms: float | None) -> list[Row]:
    """The rows with what follows from their times."""
    if rows.get(YARDSTICK, {}).get("status") == "ok":
        eager_ms = rows[YARDSTICK]["ms_p50"]
    for row in rows.values():
        if row["status"] == "ok":
            row["gb_per_s"] = row["min_bytes"] / row["ms_p50"] / 1e6
            row["pct_copy_bandwidth"] = 100 * row["gb_per_s"] / machine.copy_gb_per_s
            row["speedup_vs_eager"] = eager_ms / row["ms_p50"] if eager_ms else None
    return list(rows.values())


def new_row(task: Task, provider: Provider, machine: Machine) -> Row:
    """A row without results: what is measured, of whom and where."""
    case = task.case
    return {
        **{"case": case.name, "pass": task.pass_name, "provider": provider.name},
        **{name: getattr(case, name) for name in (*SHAPE, "transform", "mode")},
        **{name: getattr(task, name) for name in HOW},
        **{"min_bytes": min_bytes(task), "status": "ok", **machine.stamp()},
    }


def _check(task: Task, provider: Provider, forwards: Forwards, device: str, row: Row) -> None:
    """Set the row's error, and its status to wrong when a result is off by more than allowed."""
    reference = oracle.reference(task, device)
    with provider.context():
        errors = reference.errors(*forwards.how(provider, task))
    # What rounds its coordinates to 16 bits is judged by eager PyTorch, which does so too.
    like = getattr(torch, task.dtype) if provider.half_coordinates else torch.float32
    excess = []
    for result, (error, result_dtype) in errors.items():
        allowed = reference.allowed(result, result_dtype, like)
        if not error <= allowed:
            excess.append(f"{result} off by {error:.3g}, allowed {allowed:.3g}")
    row["max_abs_error"] = float(np.max([error for error, _ in errors.values()]))
    row["one_rounding"] = max(reference.rounding(name, d) for name, (_, d) in errors.items())
    if excess:
        row["status"], row["note"] = "wrong", "; ".join(excess)


def _call(task: Task, provider: Provider, forwards: Forwards, device: str) -> Call:
    return oracle.reference(task, device).call(*forwards.how(provider, task))
