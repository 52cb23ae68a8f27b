"""The bench's side of a GPU, with stand-ins for the GPU: nothing here is timed on one."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import triton_stn
from bench import __main__ as command
from bench import cli
from bench.measure import runner, timing
from bench.measure.runner import Forwards, Machine, run_task
from bench.measure.timing import DeviceLost
from bench.model import launches
from bench.output import table
from bench.providers import baselines, registry
from bench.providers.registry import MOST_CAPTURED, Provider
from bench.suite import passes
from bench.suite.cases import CASES, PASSES, Case, Task

TINY = Case("tiny", 2, 1, 3, 8, 8, 8, 8, 2)
MACHINE = Machine("cpu", "cpu", 10.0, "2.x", "3.x", "abc1234")
EAGER, OURS = (
    Provider("eager", lambda: baselines.eager),
    Provider("triton_stn", lambda: baselines.ours),
)


@pytest.fixture(autouse=True)
def pytorch_path():
    with triton_stn.use_backend("torch"):
        yield


# --- a call in a graph ---------------------------------------------------------------------------


@pytest.fixture
def streams(monkeypatch):
    """CUDA's streams and graphs, as far as a capture uses them: the stack of current streams."""
    stack = ["default"]

    class Stream(str):
        __slots__ = ()

        def __new__(cls, name="side"):
            return super().__new__(cls, name)

        def wait_stream(self, other):
            assert other in ("default", "side")

    @contextmanager
    def stream(name):
        stack.append(name)
        depth = len(stack)
        try:
            yield
        finally:
            del stack[depth - 1 :]

    class Graph:
        replays = 0

        def replay(self):
            self.replays += 1

    class Capture:  # as torch.cuda.graph: where the capture ends badly its stream stays current
        def __init__(self, graph):
            pass

        def __enter__(self):
            stack.append("capture")

        def __exit__(self, kind, *_):
            if kind is None:
                stack.pop()

    for name, stand_in in dict(
        Stream=Stream,
        stream=stream,
        current_stream=lambda: Stream(stack[-1]),
        CUDAGraph=Graph,
        graph=Capture,
    ).items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return stack


def test_a_call_is_warmed_up_beside_captured_once_and_then_replayed(streams):
    ran = []

    def call():
        ran.append(streams[-1])
        return (torch.tensor(len(ran)),)

    replay = passes.captured(call)
    assert ran == ["side"] * 3 + ["capture"] and streams == ["default"]
    assert replay() == replay() == (torch.tensor(4),) and len(ran) == 4


def test_a_capture_that_fails_leaves_no_stream_current(streams):
    def call():
        if streams[-1] == "capture":
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="capturing"):
        passes.captured(call)
    assert streams == ["default"]


@pytest.mark.parametrize("pass_name", PASSES)
def test_what_is_captured_is_checked_and_timed_as_captured(pass_name, monkeypatch):
    monkeypatch.setattr(timing, "CPU_WORK_MS", 1)
    calls = []

    def wrap(call):
        return lambda: calls.append(1) or call()

    def off(call):
        return lambda: tuple(x + 1 for x in call())

    providers = (replace(OURS, wrap=wrap), Provider("off", lambda: baselines.ours, wrap=off))
    task = Task(TINY, pass_name, "rotation_30")
    ours, wrong = run_task(task, providers, MACHINE, Forwards())
    assert (ours["status"], wrong["status"]) == ("ok", "wrong")
    assert len(calls) > timing.CPU_ROUNDS[0]
    # Eager's errors are kept as a yardstick; a captured eager has its own.
    (captured,) = run_task(task, [replace(EAGER, wrap=off)], MACHINE, Forwards())
    assert captured["status"] == "wrong"


def test_whole_iterations_are_captured_where_launches_matter():
    ours, eager = (p for p in registry.PROVIDERS if p.wrap is passes.captured)
    assert (ours.name, eager.name) == ("triton_stn_graph", "eager_graph")
    cases = {case.name: case for case in CASES}
    for provider in (ours, eager):
        for pass_name in PASSES:
            task = Task(cases["tutorial_28"], pass_name, "identity")
            whole = pass_name in ("forward", "forward_backward")
            assert (provider.why_not("cuda", task) == "") == whole
            assert "CPU" in provider.why_not("cpu", task)
        task = Task(cases["large_512"], "forward", "identity")
        assert f"{MOST_CAPTURED:,}" in provider.why_not("cuda", task)


# --- times ---------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    """A GPU whose allocator and clock say what they are told, and which is never lost."""
    told = SimpleNamespace(seconds=0.0, peak=0, p50=0.5, benched=0)

    def do_bench(call, rep, quantiles):
        told.benched += 1
        return told.p50, told.p50, told.p50

    monkeypatch.setattr("triton.testing.do_bench", do_bench)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(
        torch.cuda,
        "memory_stats",
        lambda: {"requested_bytes.all.current": 2**20, "requested_bytes.all.peak": told.peak},
    )
    monkeypatch.setattr(timing.time, "perf_counter", lambda: told.seconds)
    return told


@pytest.mark.parametrize(
    ("seconds", "p50", "calls", "benched", "call_ms"),
    # A short call, one that keeps the GPU busy, and one that do_bench would take minutes over.
    [(25e-6, 0.01, 102, 1, 0.025), (3e-3, 3.0, 2, 1, None), (20.0, None, 2, 0, None)],
)
def test_a_short_call_is_timed_from_python_too_and_a_long_one_once(
    gpu, seconds, p50, calls, benched, call_ms
):
    made = []

    def call():
        made.append(1)
        gpu.seconds += seconds
        gpu.peak = 3 * 2**20

    gpu.p50, row = p50, {}
    timing.time_on_gpu(row, call)
    assert (len(made), gpu.benched) == (calls, benched)
    assert row["ms_p50"] == pytest.approx(p50 or 20e3) and row["peak_memory_mib"] == 2
    assert row.get("call_ms") == (call_ms and pytest.approx(call_ms))


# --- compiled ahead ------------------------------------------------------------------------------


def test_the_kernels_of_what_is_missing_of_the_library_are_compiled_ahead(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(command, "compile_ahead", given.append)
    monkeypatch.setattr(command, "run_task", lambda *_: [])
    tasks = [Task(TINY, "forward", kind) for kind in ("identity", "rotation_30")]
    for provider in (EAGER, OURS):
        csv = tmp_path / "results.csv"
        command.run(tasks, (provider,), replace(MACHINE, type="cuda"), csv, "identity")
    assert given == [[], tasks[:1]]


@pytest.mark.parametrize("pass_name", PASSES)
def test_a_kernel_that_does_not_compile_harms_no_other(monkeypatch, pass_name):
    compiled = []

    def compile_plan(plan, target):
        compiled.append(plan.kernel.__name__)
        if len(compiled) == 1:
            raise RuntimeError("no such kernel")

    monkeypatch.setattr(launches, "compile_plan", compile_plan)
    target = SimpleNamespace(active=SimpleNamespace(get_current_target=lambda: "a GPU"))
    monkeypatch.setattr(launches.triton.runtime, "driver", target)
    specs = launches.of_task(Task(TINY, pass_name, "rotation_30"))
    launches.warm_up(specs)
    assert compiled == [spec.kernel for spec in specs]


# --- what a GPU can do to a run ------------------------------------------------------------------


def illegal(*arguments):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_gpu_that_is_lost_ends_the_run_with_the_row_that_lost_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(timing, "CPU_WORK_MS", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", illegal)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    bad = Provider("bad", lambda: illegal)
    skipped = Provider("skipped", lambda: baselines.eager, lambda device, task: "no reason")
    tasks = [Task(TINY, "forward", kind) for kind in ("identity", "rotation_30", "zoom_in_2")]
    monkeypatch.setattr(command, "this_machine", lambda: MACHINE)
    monkeypatch.setattr(command, "suite", lambda *_: tasks)
    csv = tmp_path / "results.csv"

    def run(*providers):
        monkeypatch.setattr(command, "PROVIDERS", providers)
        return command.main(["--out", str(tmp_path), "--resume"])

    assert run(skipped, EAGER, bad, OURS) == cli.DEVICE_LOST
    frame = table.read(csv)
    # Eager was right, but not yet timed: the next run takes it up again.
    assert frame[["provider", "status"]].values.tolist() == [
        ["skipped", "skipped"],
        ["bad", "error"],
    ]
    assert "illegal memory access" in frame.note.iloc[-1]
    assert "--resume" in capsys.readouterr().out

    once_bad = replace(bad, why_not=lambda device, task: "" if task == tasks[0] else "elsewhere")
    assert run(EAGER, once_bad, OURS) == 0
    frame = table.read(csv)
    assert (frame.provider == "eager").sum() == (frame.provider == "triton_stn").sum() == 3
    assert frame.query("provider == 'triton_stn'").speedup_vs_eager.notna().all()


def test_an_error_that_the_gpu_survives_stays_in_its_row(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", illegal)  # as after a capture that failed
    row = {"status": "ok"}
    assert timing.guarded(row, illegal) is None
    assert row["status"] == "error" and "illegal" in row["note"]


def test_what_was_timed_before_the_gpu_was_lost_is_kept(monkeypatch):
    def time(rows, *_):
        timing.set_times(rows["eager"], (2.0, 1.0, 3.0))
        rows["triton_stn"] |= {"status": "error", "note": "lost"}
        raise DeviceLost("lost")

    monkeypatch.setattr(runner, "time_calls", time)
    providers = (EAGER, OURS, Provider("later", lambda: baselines.eager))
    with pytest.raises(DeviceLost) as lost:
        run_task(Task(TINY, "forward", "identity"), providers, MACHINE, Forwards())
    eager, ours = lost.value.rows
    assert eager["speedup_vs_eager"] == 1 and eager["gb_per_s"] > 0
    assert ours["provider"] == "triton_stn" and "ms_p50" not in ours
