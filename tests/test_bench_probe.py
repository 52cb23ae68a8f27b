"""The probe: kernels touch what is simulated, the compiler keeps it in the loop, tables follow."""

from __future__ import annotations

import os
import subprocess
import sys
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import GPU

import triton_stn
from bench import __main__ as command
from bench import cli, probe
from bench.measure import timing
from bench.measure.runner import Machine
from bench.measure.timing import DeviceLost
from bench.probe import cases as probe_cases
from bench.probe import kernels as probe_kernels
from bench.probe import report as probe_report
from bench.probe.cases import Case
from bench.probe.kernels import STRIDE, Walk, patch, touched

ROOT = Path(__file__).resolve().parent.parent
MACHINE = Machine("cpu", "a GPU", 4000.0, "2.x", "3.x", "abc1234")
PROGRAMS = 3
WALKS = [
    Walk(patch(4, 8, 30, 67, PROGRAMS), (0, 101, 202), 64, 1),
    Walk(patch(1, 32, 90, 37, PROGRAMS), (0, 5), 16, 37),
    Walk(patch(8, 4, 45, 131, PROGRAMS), (0, 1, 131, 132), 8, 32),
    Walk(np.zeros((PROGRAMS, 32), int), (0, 288), 1, 32),
]


@pytest.fixture(params=range(len(WALKS)))
def walk(request):
    return WALKS[request.param]


# --- walks ---------------------------------------------------------------------------------------


def test_a_walk_is_what_its_docstring_says():
    walk = WALKS[2]
    addresses = walk.addresses(steps=5)
    position = (2 + 4 * PROGRAMS) * STRIDE % 8
    assert addresses.shape == (PROGRAMS, 5, 4, 32)
    assert addresses[2, 4, 3, 17] == walk.offsets[2, 17] + 32 * position + 132
    assert (walk.addresses(5, 2) == addresses[:2]).all()


def test_every_position_is_visited():
    addresses = Walk(np.zeros((1, 32), int), (0,), 2**7, 1).addresses(2**7)
    assert (np.sort(addresses[:, :, 0, 0]) == np.arange(2**7)).all()


@pytest.mark.parametrize("positions", [0, 3, 2**31])
def test_what_the_kernels_can_not_count_is_refused(positions):
    with pytest.raises(ValueError, match=r"power of two|32 bits"):
        Walk(np.zeros((1, 32), int), (0,), positions, 1)


def test_all_cases_stay_in_their_buffers_and_no_place_is_below_it():
    walks = [case.walk for case in probe_cases.every(1) if case.walk is not None]
    assert len(walks) == 48 + 10 + 18
    for walk in walks:
        addresses = walk.addresses(64)
        assert addresses.min() >= 0
        assert addresses.max() < walk.numel


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    # Lines that a 32-lane load touches at 0, 10, 30, 45 and 90 degrees, simulated by others.
    [(1, 32, (2.0, 7.2, 16.9, 23.1, 32.0)), (4, 8, (4.7, 6.2, 7.8, 8.9, 8.7))],
)
def test_lines_of_the_measured_loads_are_those_of_an_independent_simulation(
    rows, columns, expected
):
    cases = {
        case.labels["degrees"]: case.walk
        for case in probe_cases.load_cases(256)
        if (case.labels["pattern"], case.labels["level"]) == (f"{rows}x{columns}", "L1")
    }
    lines = [touched(cases[degrees]).lines for degrees in (0, 10, 30, 45, 90)]
    assert lines == pytest.approx(expected, rel=0.05)


def test_a_patch_turned_by_90_degrees_lies_on_its_side():
    upright, side = patch(4, 8, 0, 100, 1)[0], patch(4, 8, 90, 100, 1)[0]
    i, j = np.divmod(np.arange(32), 8)
    assert (upright - upright.min() == 100 * i + j).all()
    assert (side - side.min() == 100 * j + 3 - i).all()


@pytest.mark.parametrize(
    ("offsets", "expected"),
    [
        (np.arange(32), (1, 4, 1)),
        (32 * np.arange(32), (32, 32, 32)),
        (33 * np.arange(32), (32, 32, 1)),
        (np.zeros(32, int), (1, 1, 1)),
        (np.arange(32) // 8 * 64 + np.arange(32) % 8, (4, 4, 4)),
    ],
)
def test_lines_sectors_and_banks_counted_by_hand(offsets, expected):
    counted = touched(Walk(offsets[None], (0,), 1, 1))
    assert (counted.lines, counted.sectors, counted.banks) == expected


def test_patterns_of_adds_touch_the_sectors_that_their_names_say():
    sectors = {
        (case.labels["pattern"], case.labels["level"]): touched(case.walk).sectors
        for case in probe_cases.add_cases(2)
    }
    for level in ("L2", "memory"):
        assert sectors["1x32", level] == sectors["4x8", level] == 4
        assert sectors["one a sector", level] == 32
        assert sectors["4x8, four taps", level] == 6  # 4 for even taps, 8 one to the right
    assert sectors["512 floats in all", "L2"] == 4
    assert sectors["16 floats in all", "L2"] == 1


def test_adds_on_few_floats_are_on_as_many_as_their_names_say():
    walks = {case.labels["pattern"]: case.walk for case in probe_cases.add_cases(2)}
    for count in (16, 512):
        assert len(np.unique(walks[f"{count} floats in all"].addresses(3))) == count


# --- kernels -------------------------------------------------------------------------------------


def test_loads_sum_what_stands_at_the_simulated_addresses(walk, triton_device):
    x = torch.randint(-99, 99, (walk.numel,), generator=torch.Generator().manual_seed(0)).float()
    sums = torch.empty(PROGRAMS, 32, device=triton_device)
    probe_kernels.launcher(probe_kernels.loads, walk, x.to(triton_device), sums)(4)
    expected = x.numpy()[walk.addresses(4)].sum((1, 2))
    assert (sums.cpu().numpy() == expected).all()


def test_adds_count_at_the_simulated_addresses_and_nowhere_else(walk, triton_device):
    x = torch.zeros(walk.numel, device=triton_device)
    probe_kernels.launcher(probe_kernels.adds, walk, x)(4)
    expected = np.bincount(walk.addresses(4).ravel(), minlength=walk.numel)
    assert (x.cpu().numpy() == expected).all()


@pytest.mark.parametrize("kernel", ["loads", "adds"])
def test_a_kernel_that_does_not_do_its_work_is_not_timed(kernel, walk, triton_device, monkeypatch):
    start = probe_kernels.STARTS[kernel]
    start(walk, triton_device)(2)

    def lazy(kernel, walk, x, *sums):
        return lambda steps: (x, *sums)[-1].fill_(0)

    monkeypatch.setattr(probe_kernels, "launcher", lazy)
    with pytest.raises(RuntimeError):
        start(walk, triton_device)


@pytest.mark.gpu
def test_the_clock_is_that_of_a_gpu():
    assert 2e8 < probe_kernels.sm_hz("cuda") < 4e9


@pytest.fixture(scope="module")
def compiled() -> pd.DataFrame:
    """What ``python -m bench probe --static`` prints; interpreted kernels can not be compiled."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "bench", "probe", "--static"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    header, _, *rows = (line.strip("| ") for line in done.stdout.strip().splitlines())
    frame = pd.read_csv(StringIO("\n".join([header, *rows])), sep=r"\s*\|\s*", engine="python")
    return frame.set_index("kernel")


@pytest.mark.landing
def test_every_access_is_one_instruction_in_the_loop(compiled):
    walks = compiled.loc[["loads", "adds"]]
    assert len(walks) == 1 + 9 + 2
    assert (walks.accesses == walks.asked).all()
    assert (walks.asked == 16).all()
    # Less than an SM issues in the cycle that its fastest load takes.
    assert (walks.issue < 1).all()


def test_a_warp_covers_the_footprint_that_its_row_names(compiled):
    first = compiled.loc["loads"].iloc[0]
    assert first.warp == first.pattern == "1x32, 2x16, 4x8, 8x4"
    assert set(compiled.loc["loads"].warp[1:]) == {"4x8"}


def test_all_programs_of_a_launch_fit_the_multiprocessors_at_once(compiled):
    # 65,536 registers a multiprocessor.
    assert (compiled.registers <= 65536 // (32 * probe_cases.WARPS_AN_SM)).all()
    assert (compiled.spilled == 0).all()


# --- rows and tables -----------------------------------------------------------------------------


def lose(case, device, row):
    """In place of ``time_case``: a fault after which the GPU refuses all work."""
    row |= {"status": "error", "note": "an illegal memory access"}
    raise DeviceLost


def fabricated(monkeypatch, cycles_of, sm_mhz=2000.0) -> None:
    """Times as if an access took ``cycles_of(row)`` of an SM, and an element a picosecond."""

    def time_case(case, device, row):
        row["ms_p50"] = row.get("elements", 0) * 1e-9
        if case.walk is not None:
            row |= dict(steps=10, accesses=10**9, sm_mhz=sm_mhz, **vars(touched(case.walk)))
            row["ms_p50"] = 1e3 * cycles_of(row) * 10**9 / row["sms"] / (1e6 * sm_mhz)
        row["ms_p20"] = row["ms_p80"] = row["ms_p50"]

    monkeypatch.setattr(probe, "time_case", time_case)


@pytest.mark.parametrize("tags", [1, 2, 4])
def test_lines_a_cycle_are_read_off_the_loads_from_l1(tmp_path, monkeypatch, tags):
    fabricated(monkeypatch, lambda row: 1.5 + row["lines"] / tags)
    csv = tmp_path / "probe.csv"
    frame = probe.run(probe_cases.every(2), MACHINE, 2, csv)
    text = probe_report.report(frame)
    assert f"roofline --tags {tags}`" in text
    fastest = frame[(frame.question == "loads") & (frame.level == "L2")].sectors_per_s.max()
    assert f"L2 delivered {fastest * 32 / 1e12:.3g} TB/s" in text
    assert "A power of two takes at worst 1.0" in text
    assert "no advice on padding is needed" in text
    written = pd.read_csv(csv)
    assert tuple(written.columns) == probe.COLUMNS
    assert len(written) == len(frame) == 112
    identity = ["question", "device", "torch", "triton", "commit", "utc"]
    assert written[identity].notna().all().all()
    loads = written[written.question == "loads"]
    assert np.allclose(loads.cycles, 1.5 + loads.lines / tags, rtol=1e-4)
    assert np.allclose(loads.ns, loads.cycles / 2, rtol=1e-4)
    assert np.allclose(loads.lines_per_cycle, loads.lines / loads.cycles, rtol=1e-4)
    ours = written[written.pattern == "triton_stn"]
    assert np.allclose(ours.ps_per_element, 1, rtol=1e-4)


def test_banks_that_explain_the_loads_better_than_lines_are_said_to(tmp_path, monkeypatch):
    fabricated(monkeypatch, lambda row: 1.0 + row["banks"])
    frame = probe.run(probe_cases.load_cases(64), MACHINE, 2, tmp_path / "probe.csv")
    assert "Cycles do not follow lines" in probe_report.report(frame)


def test_slow_powers_of_two_are_worth_an_advice(tmp_path, monkeypatch):
    slow = {256: 3.0, 512: 2.0}
    fabricated(monkeypatch, lambda row: slow.get(row["pitch"], 1.0))
    frame = probe.run(probe_cases.band_cases(2), MACHINE, 2, tmp_path / "probe.csv")
    text = probe_report.report(frame)
    assert "at worst 3.00 times its neighbours (load 4x8 0°, cycles, 256): advise" in text
    assert "2 (2.00)" in text and "1 (1.00)" in text
    assert text.count("Nothing measured.") == 2


def test_adds_a_second_and_what_a_scatter_takes_of_them(tmp_path, monkeypatch):
    # 32 adds a cycle on each of two SMs at 2 GHz: 128e9 a second, four an element.
    fabricated(monkeypatch, lambda row: 1.0)
    frame = probe.run(probe_cases.add_cases(2), MACHINE, 2, tmp_path / "probe.csv")
    assert np.allclose(frame.adds_per_s, 128e9)
    assert np.allclose(frame.sectors_per_s, 4e9 * frame.sectors)
    text = probe_report.report(frame)
    assert "take 31.2 ps in L2, 31.2 ps in memory a pixel·channel" in text
    assert f"the 12 bytes that a gathering one moves {12 / 4000 * 1e3:.3g} ps" in text


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(timing, "CPU_WORK_MS", 1)
    monkeypatch.setattr(probe_cases, "WIDTHS", (16, 24))
    with triton_stn.use_backend("torch"):
        yield


@pytest.mark.skipif(GPU is not None, reason="with a GPU the kernels are compiled")
def test_a_run_times_walks_and_the_library_and_outlives_what_fails(tmp_path, hurried):
    def refuse(device):
        raise RuntimeError("no such thing")

    csv = tmp_path / "probe.csv"
    csv.write_text("an older run\n")
    walks = [probe_cases.load_cases(1)[0], probe_cases.add_cases(1)[2]]
    failing = Case(dict(question="adds", pattern="none"), refuse, "adds", WALKS[0])
    frame = probe.run(
        [walks[0], failing, walks[1], *probe_cases.library_cases(600)], MACHINE, 1, csv
    )
    assert list(frame.status) == ["ok", "error"] + 9 * ["ok"]
    assert (frame.ms_p50[frame.status == "ok"] > 0).all()
    assert frame.note[1] == "RuntimeError: no such thing"
    assert len(pd.read_csv(csv)) == len(frame)
    text = probe_report.report(frame)
    assert "no such thing" in text
    # Without a multiprocessor's clock there are no cycles, and nothing is read off.
    assert "Too few rows" in text


def test_a_gpu_that_is_lost_ends_the_run_with_the_row_that_lost_it(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "time_case", lose)
    csv = tmp_path / "probe.csv"
    frame = probe.run(probe_cases.band_cases(1)[:2], MACHINE, 1, csv)
    assert list(frame.status) == list(pd.read_csv(csv).status) == ["error"]
    assert "Nothing measured." in probe_report.report(frame)


def test_a_launch_is_given_steps_until_it_takes_long_enough(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(probe.time, "perf_counter", lambda: now[0])

    def launch(steps):
        now[0] += 20e-6 + 1e-6 * steps

    assert probe.enough(launch, at_least_ms=0.5) == 1024


@pytest.mark.parametrize("status", [0, cli.FAILED, cli.DEVICE_LOST])
def test_the_command_writes_its_rows_and_prints_its_tables(tmp_path, monkeypatch, capsys, status):
    def fail(case, device, row):
        row |= {"status": "error", "note": "a row that failed"}

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    properties = SimpleNamespace(multi_processor_count=2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: properties)
    monkeypatch.setattr(probe, "this_machine", lambda: MACHINE)
    fabricated(monkeypatch, lambda row: row["lines"])
    if status:
        monkeypatch.setattr(probe, "time_case", lose if status == cli.DEVICE_LOST else fail)
    assert command.main(["probe", "--out", str(tmp_path)]) == status
    rows = len(pd.read_csv(tmp_path / "probe.csv"))
    assert rows == (1 if status == cli.DEVICE_LOST else 112)
    printed = capsys.readouterr().out
    assert "2 SMs at" in printed
    assert ("a row that failed" in printed) == (status == cli.FAILED)
    assert ("The GPU was lost" in printed) == (status == cli.DEVICE_LOST)
    for title in ("## Loads of", "## Atomic adds", "## Rows a power of two"):
        assert title in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
@pytest.mark.parametrize(("interpreted", "said"), [(False, "--static"), (True, "TRITON_INTERPRET")])
def test_without_a_gpu_the_exit_status_is_2(monkeypatch, capsys, interpreted, said):
    monkeypatch.setenv("TRITON_INTERPRET", str(int(interpreted)))
    assert command.main(["probe"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.gpu
def test_a_row_of_each_kind_is_measured_on_the_gpu(tmp_path):
    machine = Machine("cuda", "a GPU", 4000.0, "2.x", "3.x", "abc1234")
    chosen = [probe_cases.load_cases(64)[0], probe_cases.add_cases(64)[0]]
    chosen += [probe_cases.band_cases(64)[0], probe_cases.library_cases(2**20)[0]]
    frame = probe.run(chosen, machine, 2, tmp_path / "probe.csv")
    assert (frame.status == "ok").all()
    assert (frame.ms_p50 > 0).all() and frame.cycles[:3].gt(0).all()
