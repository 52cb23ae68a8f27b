"""The roofline: addresses counted by hand, floors that divide as they say, predictions named so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench import __main__ as command
from bench.measure import runner, timing
from bench.measure.runner import Machine
from bench.model import addresses, roofline
from bench.model.addresses import Programs, Touched
from bench.model.roofline import GPUS, Work
from bench.output import table
from bench.providers.registry import PROVIDERS
from bench.suite.cases import CASES, THETA_KINDS, Case, Task, in_view, min_bytes
from triton_stn.kernels import configs

ROOT = Path(__file__).resolve().parent.parent
SQUARE = Case("square", 2, 1, 3, 512, 512, 512, 512, 2)
SMALL = Case("small", 1, 1, 1, 21, 17, 19, 23, 1)
H200 = GPUS["H200"]


def programs(i: np.ndarray, j: np.ndarray, inside: np.ndarray | bool = True) -> Programs:
    zero = np.zeros((len(i), 1), int)
    return Programs(zero, zero, i, j, np.broadcast_to(inside, i.shape), 1.0)


# --- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    # Lines that a 32-lane load touches at 0, 10, 30, 45 and 90 degrees, simulated by others.
    [(1, 32, (2.0, 7.2, 16.9, 23.1, 32.0)), (4, 8, (4.7, 6.2, 7.8, 8.9, 8.7))],
)
def test_lines_of_a_rotated_load_are_those_of_an_independent_simulation(rows, columns, expected):
    random = np.random.default_rng(0)
    lane = np.arange(32)
    i, j = lane // columns + np.zeros((400, 1), int), lane % columns + np.zeros((400, 1), int)
    for degrees, lines in zip((0, 10, 30, 45, 90), expected, strict=True):
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        maps = np.broadcast_to([cos, -sin, 0, sin, cos, 0], (400, 1, 6)).copy()
        maps[..., [2, 5]] = random.uniform(500, 3500, (400, 1, 2))
        image = np.zeros((400, 1), int)
        source, target = (1, 4096, 4096), (1, 1, 1)  # output pixels are counted from its centre
        taps = addresses._taps(programs(i, j), maps, image, source, target, False)
        counted = Touched(*addresses._loads(taps[:1], tags=1)).lines
        assert counted == pytest.approx(lines, rel=0.07)


def test_at_identity_every_warp_reads_and_writes_four_rows_of_one_sector():
    warps = SQUARE.n * SQUARE.c * 512 * 512 / 32
    touched = addresses.ours(SQUARE, "identity", "forward", tags=4)
    assert (touched.lines, touched.cycles, touched.sectors) == (8 * warps, 2 * warps, 8 * warps)


def test_a_row_turned_by_90_degrees_touches_a_line_a_thread():
    warps = SQUARE.n * SQUARE.c * 512 * 512 / 32
    touched = addresses.eager(SQUARE, "rotation_90", "forward", tags=4)
    # Four taps; the output's row; two coordinates of two lines each, once for all channels.
    assert touched.lines / warps == pytest.approx(4 * 32 + 1 + 4 / 3, rel=0.01)


@pytest.mark.parametrize("theta_kind", [*THETA_KINDS, "rotation_45", "rotation_90", "zoom_in_1.5"])
def test_the_gather_reads_an_output_pixel_exactly_where_the_forward_tapped(theta_kind):
    (map,) = addresses.pixel_maps(SMALL, theta_kind)
    source, target = (1, SMALL.h, SMALL.w), (1, SMALL.h_out, SMALL.w_out)
    image = np.zeros((1, 1), int)

    def pairs(at, accesses, swap):
        here = np.arange(at.i.size)
        found = [(h, a) for access in accesses for h, a in zip(here, access[0], strict=True)]
        return sorted((a, h) if swap else (h, a) for h, a in found if a >= 0)

    i, j = np.mgrid[: SMALL.h_out, : SMALL.w_out].reshape(2, 1, -1)
    outputs = programs(i, j)
    tapped = addresses._taps(outputs, map, image, source, target, False)
    i, j = np.mgrid[: SMALL.h, : SMALL.w].reshape(2, 1, -1)
    inputs = programs(i, j)
    kind = addresses.window(map)
    gathered = addresses._candidates(inputs, map, image, kind, target)
    assert pairs(outputs, tapped, False) == pairs(inputs, gathered, True)
    assert kind != "WALK" or len(gathered) <= np.prod(addresses.walked(map))


@pytest.mark.parametrize(
    ("theta_kind", "window"),
    [
        ("identity", "UPRIGHT"),
        ("rotation_90", "ON_SIDE"),
        ("zoom_out_2", "UPRIGHT"),
        ("rotation_45", "THREE"),
        ("zoom_in_2", "STRAIGHT"),
        ("zoom_in_16", "WIDE"),
    ],
)
def test_the_window_of_a_map(theta_kind, window):
    assert addresses.window(addresses.pixel_maps(SQUARE, theta_kind)[0]) == window


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("theta_kind", ["identity", "zoom_in_2", "zoom_in_4", "rotation_30"])
def test_no_tile_that_an_output_reads_counts_as_out_of_view(theta_kind, k):
    case = Case("crops", 1, k, 1, 128, 96, 24, 20, 1)
    maps = addresses.pixel_maps(case, theta_kind)
    i, j = np.mgrid[: case.h_out, : case.w_out].reshape(2, 1, -1)
    config = configs.gather(configs.Problem(1, 1, (1, case.h, case.w)), k == 1, itemsize=4)
    rows, columns = config.tile
    corner = np.mgrid[: case.h : rows, : case.w : columns].reshape(2, -1, 1)
    thread = np.arange(rows * columns)
    tiles = programs(corner[0] + thread // columns, corner[1] + thread % columns)
    shares = []
    for map in maps:
        taps = addresses._taps(programs(i, j), map, 0, (1, 128, 96), (1, 24, 20), False)
        taps = np.unique(taps)[1:]
        read = set(zip(taps // 96 // rows, taps % 96 // columns, strict=True))
        met = addresses._seen(tiles, np.broadcast_to(map, (len(thread), 6)), case)[1][:, 0]
        indices = zip(corner[0, met, 0] // rows, corner[1, met, 0] // columns, strict=True)
        assert read <= set(indices)
        shares.append(met.mean())
    assert theta_kind != "zoom_in_4" or k == 1 or np.mean(shares) < 0.3


# --- floors --------------------------------------------------------------------------------------


def test_floors_divide_by_what_the_gpu_has():
    gpu = roofline.GPU("made up", "sm_90", 10, 1e9, 2e12, 4e12, 4)
    work = Work(
        bytes=2e6, touched=Touched(lines=0, cycles=2e4, sectors=2.5e5), instructions=8e4, waits=3e3
    )
    floors = {"memory": 1, "L2": 2, "L1": 2, "issue": 2, "latency": 3}
    assert work.floors(gpu) == pytest.approx(floors)
    unknown = dict.fromkeys(("L2", "L1", "issue", "latency"))
    assert Work(2e6, None, None).floors(gpu) == {"memory": 1} | unknown


def test_bytes_of_eager_are_the_published_ones():
    # Same-size output at identity, an output element: 8 + 40/C forward, 20 + 48/C backward.
    for c in (1, 3, 64):
        case = Case("c", 4, 1, c, 32, 32, 32, 32, 4)
        elements = 4 * c * 32 * 32
        for pass_name, expected in (("forward", 8 + 40 / c), ("backward", 20 + 48 / c)):
            work = roofline.eager(Task(case, pass_name, "identity"), H200)
            assert work.bytes / elements == pytest.approx(expected)


def test_of_volumes_only_the_bytes_are_predicted():
    volume = Case("volume", 2, 1, 4, 8, 8, 8, 8, 2, d=8, d_out=8)
    elements = 2 * 4 * 8**3
    # Eager's grid has 3 numbers a voxel, its base grid 4: 14 moved forward, 17 backward.
    for pass_name, grid, ours in (("forward", 14, 2), ("backward", 17, 3)):
        task = Task(volume, pass_name, "identity")
        eager = roofline.eager(task, H200)
        moved = {"forward": 2, "backward": 5}[pass_name] * elements
        assert eager == Work(4 * (moved + grid * elements / 4), None, None)
        assert roofline.ours(task, H200) == Work(4 * ours * elements, None, None)
        frame = roofline.predict([task], H200)
        assert frame.binds.eq("memory").all() and frame.window.isna().all()


def test_a_wide_window_has_only_its_bytes():
    task = Task(SQUARE, "backward", "zoom_in_16")
    twice = 4 * SQUARE.n * SQUARE.c * in_view(SQUARE, "zoom_in_16")[1]  # of grad_output
    assert roofline.ours(task, H200) == Work(min_bytes(task) + twice, None, None)


# --- the command ---------------------------------------------------------------------------------


def test_the_largest_floor_is_the_prediction_and_instructions_are_compiled(tmp_path):
    # Interpreted kernels can not be compiled, and the tests may run under the interpreter.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    out = tmp_path / "roofline.csv"
    arguments = ["--filter", "tutorial_28 backward", "--theta", "rotation_20", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "bench", "roofline", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "predicted" in done.stdout
    frame = pd.read_csv(out).set_index("provider")
    floors = frame[["memory µs", "L2 µs", "L1 µs", "issue µs", "latency µs"]]
    assert frame["predicted ms"].tolist() == pytest.approx((floors.max(axis=1) / 1e3).tolist())
    assert floors.loc["triton_stn"].gt(0).all() and np.isnan(floors.loc["eager", "issue µs"])
    # 64 images of 8 tiles of 128 threads, and 250 to 1000 instructions each.
    warps = 64 * 8 * 4
    a_thread = floors.loc["triton_stn", "issue µs"] / 1e6 * H200.sms * 4 * H200.hz / warps
    assert 250 < a_thread < 1000


def test_measured_stands_beside_predicted_only_for_this_gpu_and_batch(tmp_path):
    """The times here are made up: they test the table, and are no measurement."""
    case = CASES[0]
    task = Task(case, "forward", "identity")
    rows = []
    for device, n, ms in ((H200.name, case.n, 0.5), (H200.name, case.n - 1, 7.0), ("x", case.n, 9)):
        machine = Machine("cuda", device, 10.0, "2.x", "3.x", "abc1234")
        row = runner.new_row(task, PROVIDERS[0], machine) | {"n": n}
        timing.set_times(row, (ms, ms, ms))
        table.append(tmp_path / f"{ms}.csv", [row])
        rows.append(table.read(tmp_path / f"{ms}.csv"))
    predicted = roofline.predict([task], H200)
    found = roofline.measured(predicted, pd.concat(rows), H200).set_index("provider")
    assert found.loc["triton_stn", "measured ms"] == 0.5
    assert np.isnan(found.loc["eager", "measured ms"])


def test_the_command_refuses_what_it_can_not_predict(capsys):
    assert command.main(["roofline", "--filter", "nowhere"]) == 2
    assert command.main(["roofline", "--filter", "flow_1080"]) == 2
    assert "Not predicted: flow_1080. Only bilinear" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["roofline", "--theta", "sideways"])
    assert "sideways" in capsys.readouterr().err
