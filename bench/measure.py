"""One task, every provider: compare with float64 first, then time what is right."""

from __future__ import annotations

import datetime
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from bench import baselines, oracle, table
from bench.baselines import Provider
from bench.cases import Case, Task, min_bytes
from bench.passes import Call, Forward, prepare

# The least work behind a timing on a GPU. A longer call is run once: do_bench would take one sample
# of it, too, and make eight calls for that, which is minutes where a singular θ meets atomics.
WORK_MS = 100
# Beyond this a call's launches weigh nothing. The loops of a row take 100 ms at most.
SHORT_MS, SHORT_LOOPS, SHORT_CALLS = 1.0, 5, 20
# On a CPU: enough rounds for a median, few enough that the quick suite keeps its three minutes.
CPU_WORK_MS, CPU_ROUNDS = 200, (3, 200)
# On a shared CPU a burst of other work makes some calls tens of times slower. A measurement whose
# p80 is more than twice its p20 is taken again, and the steadiest one counts.
CPU_SPREAD, CPU_ATTEMPTS, CPU_PATIENCE_S = 2.0, 3, 2.0
QUANTILES = (0.5, 0.2, 0.8)
COPY_BYTES = {"cuda": 2**30, "cpu": 2**28}  # past the last cache; quick on a slow machine

Row = dict[str, Any]


class DeviceLost(RuntimeError):
    """The GPU refuses all further work of this process, as after an illegal address.

    ``rows`` are the rows of the task that were settled before, and the one that it was lost in.
    """

    rows: Sequence[Row] = ()


@dataclass(frozen=True)
class Machine:
    """What every row says about where it was measured."""

    type: str  # "cuda" (ROCm too) or "cpu"
    device: str  # what the driver calls the GPU, or "cpu"
    copy_gb_per_s: float  # device-to-device copy, bytes read + bytes written
    torch: str
    triton: str
    commit: str


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
    rows = {"copy": {"status": "ok"}}
    _time(rows, {"copy": lambda: lambda: (target.copy_(source),)}, device)
    return 2 * COPY_BYTES[device] / rows["copy"]["ms_p50"] / 1e6


def _commit() -> str:
    """The commit of the sources, or "" outside a git checkout."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


class Forwards:
    """The providers' forwards, built once a case, dtype and layout."""

    def __init__(self) -> None:
        self._of: tuple[Case, str, str] | None = None
        self._built: dict[str, Forward] = {}

    def get(self, provider: Provider, task: Task) -> Forward:
        """The provider's forward for the task."""
        shape = (task.case, task.dtype, task.layout)
        if shape != self._of:
            self._of, self._built = shape, {}
            if torch.cuda.is_available():
                # Past eight shapes of one function Dynamo would quietly run it eagerly.
                torch.compiler.reset()
        if provider.name not in self._built:
            self._built[provider.name] = provider.build()
        return self._built[provider.name]


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
    rows = {provider.name: _new_row(task, provider, machine) for provider in providers}
    try:
        _check_and_time(task, providers, machine, forwards, rows)
    except DeviceLost as lost:
        rows = {n: row for n, row in rows.items() if "ms_p50" in row or row["status"] != "ok"}
        lost.rows = _compared(rows, machine, eager_ms)
        raise
    return _compared(rows, machine, eager_ms)


def _check_and_time(
    task: Task,
    providers: Sequence[Provider],
    machine: Machine,
    forwards: Forwards,
    rows: dict[str, Row],
) -> None:
    makers: dict[str, Callable[[], Call]] = {}
    contexts = {provider.name: provider.context for provider in providers}
    for provider in providers:
        row = rows[provider.name]
        row["note"] = provider.why_not(machine.type, task)
        if row["note"]:
            row["status"] = "skipped"
            continue
        _guarded(row, lambda p=provider, r=row: _check(task, p, forwards, machine.type, r))
        if row["status"] == "ok":
            makers[provider.name] = lambda p=provider: _make_call(task, p, forwards, machine.type)
    _time(rows, makers, machine.type, contexts)


def _compared(rows: dict[str, Row], machine: Machine, eager_ms: float | None) -> list[Row]:
    """The rows with what follows from their times."""
    if rows.get(baselines.YARDSTICK, {}).get("status") == "ok":
        eager_ms = rows[baselines.YARDSTICK]["ms_p50"]
    for row in rows.values():
        if row["status"] == "ok":
            row["gb_per_s"] = row["min_bytes"] / row["ms_p50"] / 1e6
            row["pct_copy_bandwidth"] = 100 * row["gb_per_s"] / machine.copy_gb_per_s
            row["speedup_vs_eager"] = eager_ms / row["ms_p50"] if eager_ms else None
    return list(rows.values())


def _new_row(task: Task, provider: Provider, machine: Machine) -> Row:
    case = task.case
    return {
        "case": case.name,
        "pass": task.pass_name,
        "provider": provider.name,
        **{name: getattr(case, name) for name in table.SHAPE},
        "dtype": task.dtype,
        "layout": task.layout,
        "padding_mode": task.padding_mode,
        "align_corners": task.align_corners,
        "theta_kind": task.theta_kind,
        "min_bytes": min_bytes(task),
        "status": "ok",
        "device": machine.device,
        "torch": machine.torch,
        "triton": machine.triton,
        "commit": machine.commit,
        "utc": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "copy_gb_per_s": machine.copy_gb_per_s,
        "transform": case.transform,
        "mode": case.mode,
    }


def _check(task: Task, provider: Provider, forwards: Forwards, device: str, row: Row) -> None:
    """Set the row's error, and its status to wrong when a result is off by more than allowed."""
    reference = oracle.reference(task, device)
    dtype = getattr(torch, task.dtype)
    forward = forwards.get(provider, task)
    with provider.context():
        errors = reference.errors(forward, task.pass_name, dtype, task.layout, provider.wrap)
    # What rounds its coordinates to 16 bits is judged by eager PyTorch, which does so too.
    like = dtype if provider.half_coordinates else torch.float32
    excess = []
    for result, (error, result_dtype) in errors.items():
        allowed = reference.allowed(result, result_dtype, like)
        if not error <= allowed:
            excess.append(f"{result} off by {error:.3g}, allowed {allowed:.3g}")
    row["max_abs_error"] = float(np.max([error for error, _ in errors.values()]))
    row["one_rounding"] = max(reference.rounding(name, d) for name, (_, d) in errors.items())
    if excess:
        row["status"], row["note"] = "wrong", "; ".join(excess)


def _make_call(task: Task, provider: Provider, forwards: Forwards, device: str) -> Call:
    reference = oracle.reference(task, device)
    arguments = reference.arguments(getattr(torch, task.dtype), task.layout)
    forward = forwards.get(provider, task)
    return provider.wrap(prepare(task.pass_name, forward, *arguments, *reference.options))


def _time(
    rows: dict[str, Row],
    makers: dict[str, Callable[[], Call]],
    device: str,
    contexts: Mapping[str, Callable[[], AbstractContextManager]] = MappingProxyType({}),
) -> None:
    """Write ms_p50, ms_p20, ms_p80 (and the peak memory on a GPU) of each maker's call."""
    if device != "cuda":
        # No provider of a CPU has a context: it would have to be entered at every turn.
        _time_in_turns(rows, makers)
        return
    for name, make in makers.items():
        with contexts.get(name, nullcontext)():
            _guarded(rows[name], lambda n=name, m=make: _time_on_gpu(rows[n], m()))


def _time_on_gpu(row: Row, call: Call) -> None:
    from triton.testing import do_bench

    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = _requested_bytes("current")
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    once = 1e3 * (time.perf_counter() - start)
    row["peak_memory_mib"] = (_requested_bytes("peak") - before) / 2**20
    if once > WORK_MS:
        _set_times(row, (once, once, once))
        return
    # do_bench empties the L2 cache before every run, and so hides what the host needs for a call.
    _set_times(row, do_bench(call, rep=WORK_MS, quantiles=QUANTILES))
    if row["ms_p50"] < SHORT_MS:
        row["call_ms"] = _milliseconds_a_call(call)


def _requested_bytes(which: str) -> int:
    """What callers asked the allocator for; what it hands out is up to a mebibyte more a tensor."""
    return torch.cuda.memory_stats()[f"requested_bytes.all.{which}"]


def _milliseconds_a_call(call: Call) -> float:
    """Wall-clock time of a call from Python, one after the other as in a training loop: the host's
    or the GPU's, whichever takes longer. The median of a few loops.
    """
    loops = []
    for _ in range(SHORT_LOOPS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(SHORT_CALLS):
            call()
        torch.cuda.synchronize()
        loops.append(1e3 * (time.perf_counter() - start) / SHORT_CALLS)
    return float(np.median(loops))


def _time_in_turns(rows: dict[str, Row], makers: dict[str, Callable[[], Call]]) -> None:
    """Time the calls A B A B: when a shared CPU speeds up or slows down, all of them feel it."""
    calls, slowest = {}, 0.0
    for name, make in makers.items():
        call = _guarded(rows[name], make)
        if call is not None:
            calls[name] = call
            slowest = max(slowest, _milliseconds(rows[name], call))  # the warm-up, too
    rounds = int(np.clip(CPU_WORK_MS / max(slowest, 1e-3), *CPU_ROUNDS))
    attempts = []
    start = time.perf_counter()
    for _ in range(CPU_ATTEMPTS):
        attempts.append(_take_turns(rows, calls, rounds))
        waited = time.perf_counter() - start
        if _spread(attempts[-1]) <= CPU_SPREAD or waited > CPU_PATIENCE_S:
            break
    for name, times in min(attempts, key=_spread).items():
        if rows[name]["status"] == "ok":
            _set_times(rows[name], times)


def _take_turns(rows: dict[str, Row], calls: dict[str, Call], rounds: int) -> dict[str, np.ndarray]:
    """p50, p20 and p80 in milliseconds of every call that did not fail."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            if rows[name]["status"] == "ok":
                samples[name].append(_milliseconds(rows[name], call))
    return {name: np.quantile(times, QUANTILES) for name, times in samples.items() if times}


def _spread(times: dict[str, np.ndarray]) -> float:
    """The largest p80 / p20."""
    return max((p80 / p20 for _, p20, p80 in times.values()), default=1.0)


def _milliseconds(row: Row, call: Call) -> float:
    start = time.perf_counter()
    _guarded(row, call)
    return 1e3 * (time.perf_counter() - start)


def _set_times(row: Row, times: Sequence[float]) -> None:
    row["ms_p50"], row["ms_p20"], row["ms_p80"] = (float(ms) for ms in times)


def _guarded(row: Row, step: Callable[[], Any]) -> Any:
    """Run the step; an exception becomes the row's status and note, and the run goes on.

    Raises:
        DeviceLost: it can not go on.
    """
    try:
        return step()
    except Exception as exception:
        text = str(exception)
        memory = isinstance(exception, (torch.OutOfMemoryError, MemoryError))
        row["status"] = "oom" if memory or "can't allocate memory" in text else "error"
        first = text.strip().splitlines()[0] if text.strip() else ""
        row["note"] = f"{type(exception).__name__}: {first}"[:200]
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
        except Exception as exception:
            raise DeviceLost(row["note"]) from exception
        with suppress(RuntimeError):  # which a capture that failed forbids from then on
            torch.cuda.empty_cache()
    return None
