"""How a call is timed: alone on a GPU, in turns on a CPU; and what a failure leaves of its row."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from bench.suite.passes import Call

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

Row = dict[str, Any]


class DeviceLost(RuntimeError):
    """The GPU refuses all further work of this process, as after an illegal address.

    ``rows`` are the rows of the task that were settled before, and the one that it was lost in.
    """

    rows: Sequence[Row] = ()


def time_calls(
    rows: dict[str, Row],
    makers: dict[str, Callable[[], Call]],
    device: str,
    contexts: Mapping[str, Callable[[], AbstractContextManager]] = MappingProxyType({}),
) -> None:
    """Write ms_p50, ms_p20, ms_p80 (and the peak memory on a GPU) of each maker's call.

    ``makers`` and ``contexts`` are by the names of ``rows``; a context is entered around the timing
    of its call on a GPU. What fails has no time, but a status and a note.

    Raises:
        DeviceLost: the GPU can not go on.
    """
    if device != "cuda":
        # No provider of a CPU has a context: it would have to be entered at every turn.
        _time_in_turns(rows, makers)
        return
    for name, make in makers.items():
        with contexts.get(name, nullcontext)():
            guarded(rows[name], lambda n=name, m=make: time_on_gpu(rows[n], m()))


def time_on_gpu(row: Row, call: Call) -> None:
    """Write the times of the call after a flush of L2 each, of a call from Python where it is
    short, and the most memory that it asked for.
    """
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
        set_times(row, (once, once, once))
        return
    # do_bench empties the L2 cache before every run, and so hides what the host needs for a call.
    set_times(row, do_bench(call, rep=WORK_MS, quantiles=QUANTILES))
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
        call = guarded(rows[name], make)
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
            set_times(rows[name], times)


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
    guarded(row, call)
    return 1e3 * (time.perf_counter() - start)


def set_times(row: Row, times: Sequence[float]) -> None:
    """Write p50, p20 and p80, in milliseconds."""
    row["ms_p50"], row["ms_p20"], row["ms_p80"] = (float(ms) for ms in times)


def guarded(row: Row, step: Callable[[], Any]) -> Any:
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
