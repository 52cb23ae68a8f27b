"""What the compiler makes of the kernels, with no GPU: no spills, a 2-D warp, few instructions."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from bench import static

ROOT = Path(__file__).resolve().parent.parent
FLOAT32 = static.PLAIN


def report(out: Path, text: str, *arguments: str) -> tuple[int, pd.DataFrame, str]:
    """(exit status, rows, what was printed) of ``python -m bench.static`` on part of the table."""
    # Interpreted kernels can not be compiled, and the tests may run under the interpreter.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.static", "--filter", text, "--out", str(out)]
    command += arguments
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert out.exists(), done.stderr
    return done.returncode, pd.read_csv(out, keep_default_na=False, na_values=[""]), done.stdout


@pytest.fixture(scope="module")
def of_plain(tmp_path_factory) -> tuple[int, pd.DataFrame, str]:
    """float32 NCHW, bilinear, zeros: C = 1 and 3 at 512², C = 64 at 56²; every pass."""
    out = tmp_path_factory.mktemp("static") / "report.csv"
    return report(out, FLOAT32, "--target", "sm_90")


@pytest.fixture
def sm_90(of_plain) -> pd.DataFrame:
    return of_plain[1]


def one(frame: pd.DataFrame, kernel: str, case: str) -> pd.Series:
    found = frame[(frame.kernel == kernel) & (frame.case == case)]
    assert len(found) == 1, found.to_string()
    return found.iloc[0]


@pytest.mark.landing
def test_all_compile_for_sm_90_and_no_register_is_spilled(of_plain):
    status, rows, printed = of_plain
    assert status == 0, printed
    kernels = {"forward", "gather", "gather_maps", "grad_theta", "reduce", "scatter"}
    assert set(rows.kernel) == {*kernels, "spline_gradient", "largest", "settle"}
    assert (rows.spilled == 0).all() and (rows.registers > 0).all()


@pytest.mark.landing
def test_a_warp_covers_a_patch_of_4_by_8_pixels_in_nchw(sm_90):
    assert set(sm_90.warp.dropna()) == {"4x8"}


@pytest.mark.landing
@pytest.mark.parametrize(
    ("kernel", "channels", "rest", "column", "most"),
    [(*case, column, most) for case, of in static.BUDGETS.items() for column, most in of.items()],
)
def test_a_kernel_stays_under_its_instructions_and_registers(
    sm_90, kernel, channels, rest, column, most
):
    assert 0 < one(sm_90, kernel, f"C={channels} {FLOAT32} {rest}")[column] <= most


@pytest.mark.landing
def test_volumes_spill_nothing_on_sm_90_and_a_warp_covers_2_by_4_by_4_voxels(tmp_path):
    text = "C=1 float32 NCDHW bilinear zeros 128"
    status, rows, printed = report(tmp_path / "volume.csv", text, "--target", "sm_90")
    assert status == 0, printed
    assert set(rows.kernel) == {"forward", "gather", "reduce"}
    assert (rows.spilled == 0).all()
    assert set(rows[rows.kernel != "reduce"].warp) == {"2x4x4"}


@pytest.mark.landing
def test_other_targets_compile_without_a_spill(tmp_path):
    text = f"forward C=3 {FLOAT32} 512x512"
    targets = ("--target", "gfx942", "--target", "sm_80")
    status, rows, _ = report(tmp_path / "other.csv", text, *targets)
    assert status == 0
    assert list(rows.target) == ["gfx942", "sm_80"]
    assert (rows.spilled == 0).all() and (rows.registers > 0).all()
    # gfx942 runs 64 threads side by side, sm_80 runs 32.
    assert [math.prod(map(int, warp.split("x"))) for warp in rows.warp] == [64, 32]


@pytest.mark.landing
def test_some_kernels_of_the_sweep_spill_nothing(tmp_path):
    seed = int(time.time()) // 86400  # others every day; the number is in the command that failed
    options = ("--sweep", "--sample", "6", "--seed", str(seed))
    status, rows, printed = report(tmp_path / "sweep.csv", "", *options)
    assert status == 0, f"seed {seed}\n{printed}"
    assert set(rows.target) == {"sm_80", "sm_90"} and len(rows) == 12


def test_the_sweep_has_every_number_of_channels_and_a_sample_is_drawn_by_its_seed():
    labels = [spec.label for spec in static.sweep()]
    assert len(set(labels)) > 200
    for text in ("C=1 ", "C=64 ", "float16", "bfloat16", "float64", "channels-last", "K=3"):
        assert any(text in label for label in labels), text
    samples = [[s.label for s in static.sweep(5, seed)] for seed in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2] and len(samples[0]) == 5


def test_other_targets_have_a_third_of_the_kernels():
    most, few = (len(static.spread(full)) for full in (True, False))
    assert few <= most / 3 and most < 85


@pytest.mark.parametrize(
    ("row", "status", "said"),
    [
        ({"spilled": 0}, 0, "0 spill"),
        ({"spilled": 8}, 1, "a case: 8 bytes"),
        ({"spilled": math.nan, "error": "RuntimeError: no"}, 1, "a case: RuntimeError: no"),
    ],
)
def test_a_spill_or_a_kernel_that_does_not_compile_is_exit_status_1(
    tmp_path, monkeypatch, capsys, row, status, said
):
    row = {"kernel": "gather", "case": "a case", "target": "sm_90", "registers": 9} | row
    monkeypatch.setattr(static, "table", lambda *_: pd.DataFrame([row]))
    assert static.main(["--target", "sm_90", "--out", str(tmp_path / "kernels.csv")]) == status
    assert said in capsys.readouterr().out


def test_the_digest_is_a_few_lines_and_names_what_is_counted(tmp_path, monkeypatch, capsys):
    rows = [
        {"kernel": kernel, "case": f"C={c} {FLOAT32} {rest}"}
        | {column: most - 0.5 for column, most in columns.items()}
        for (kernel, c, rest), columns in static.BUDGETS.items()
    ]
    frame = pd.DataFrame(rows).assign(target="sm_90", registers=range(len(rows)), spilled=0)
    monkeypatch.setattr(static, "table", lambda *_: frame)
    out = tmp_path / "new" / "kernels.csv"
    assert static.main(["--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert lines[-1].startswith(f"wrote {out}: {len(rows)} kernels in ")
    assert lines[0].startswith(f"sm_90: {len(rows)} kernels, 0 spill; registers: grad_theta 11")
    assert any("gather THREE, a tile: 177.5 of 178 at C=1" in line for line in lines)
    assert any("gather UPRIGHT, a channel: 32.5 of 33 at C=64" in line for line in lines)
    assert len(pd.read_csv(out)) == len(frame)


def test_nothing_to_compile_is_exit_status_2(capsys):
    assert static.main(["--filter", "no such kernel"]) == 2
    assert "no such kernel" in capsys.readouterr().err
