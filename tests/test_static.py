"""What the compiler makes of the kernels, with no GPU: no spills, a 2-D warp, few instructions."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from bench import static

ROOT = Path(__file__).resolve().parent.parent
FLOAT32 = static.PLAIN


def report(out: Path, text: str, *targets: str) -> tuple[int, pd.DataFrame, str]:
    """(exit status, rows, what was printed) of ``python -m bench.static`` on part of the table."""
    # Interpreted kernels can not be compiled, and the tests may run under the interpreter.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.static", "--filter", text, "--out", str(out)]
    for target in targets:
        command += ["--target", target]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert out.exists(), done.stderr
    return done.returncode, pd.read_csv(out, keep_default_na=False, na_values=[""]), done.stdout


@pytest.fixture(scope="module")
def sm_90(tmp_path_factory) -> pd.DataFrame:
    """float32 NCHW, bilinear, zeros: C = 1 to 4 at 512², C = 64 at 56²; every pass."""
    out = tmp_path_factory.mktemp("static") / "report.csv"
    status, rows, printed = report(out, f"{FLOAT32} 5", "sm_90")
    assert status == 0, printed
    return rows


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> pd.DataFrame:
    """Three maps an image of three channels."""
    out = tmp_path_factory.mktemp("static") / "several.csv"
    status, rows, printed = report(out, f"C=3 {FLOAT32} K=3 512x512", "sm_90")
    assert status == 0, printed
    return rows


def one(frame: pd.DataFrame, kernel: str, case: str, window: str = "") -> pd.Series:
    found = frame[(frame.kernel == kernel) & (frame.case == case)]
    found = found[found.window.fillna("") == window]
    assert len(found) == 1, found.to_string()
    return found.iloc[0]


def test_no_register_is_spilled_on_sm_90(sm_90):
    launched = sm_90[sm_90.window.isna()]
    assert set(launched.kernel) == {"forward", "gather", "scatter", "reduce", "spline_gradient"}
    assert (launched.spilled == 0).all() and (launched.registers > 0).all()


def test_volumes_spill_nothing_on_sm_90_and_a_warp_covers_2_by_4_by_4_voxels(tmp_path):
    text = "C=1 float32 NCDHW bilinear zeros 128"
    status, rows, printed = report(tmp_path / "volume.csv", text, "sm_90")
    assert status == 0, printed
    kernels = {"volume_forward", "volume_gather", "volume_scatter", "volume_reduce"}
    assert set(rows.kernel) == kernels and (rows.spilled == 0).all()
    assert set(rows[rows.kernel != "volume_reduce"].warp) == {"2x4x4"}


def test_a_warp_covers_a_patch_of_4_by_8_pixels_in_nchw(sm_90):
    sampling = sm_90[sm_90.kernel.isin(["forward", "gather", "scatter"])]
    assert set(sampling.warp) == {"4x8"}


@pytest.mark.parametrize(("budget", "most"), static.BUDGETS.items(), ids=str)
def test_a_kernel_stays_under_its_instructions(sm_90, several, budget, most):
    kernel, window, channels, rest, unit = budget
    frame = several if rest.startswith("K=") else sm_90
    assert 0 < one(frame, kernel, f"C={channels} {FLOAT32} {rest}", window)[unit] <= most


@pytest.mark.parametrize("window", ["axis", "three"])
def test_a_map_that_misses_a_tile_costs_less_than_half_of_one_that_meets_it(several, window):
    row = one(several, "gather", f"C=3 {FLOAT32} K=3 512x512 → input+θ", window)
    assert 0 < row.per_miss <= row.per_pixel / 2 and row.per_pixel <= 400


def test_a_walked_window_is_counted_by_its_candidates(several):
    case = f"C=3 {FLOAT32} K=3 512x512 → input+θ"
    straight, walk = (one(several, "gather", case, window) for window in ("straight", "walk"))
    assert 0 < straight.per_candidate < walk.per_candidate <= 60


def test_other_targets_compile_without_a_spill(tmp_path):
    text = f"forward C=3 {FLOAT32} 512x512"
    status, rows, _ = report(tmp_path / "other.csv", text, "gfx942", "sm_80")
    assert status == 0
    rows = rows[rows.case == text.removeprefix("forward ")]
    assert list(rows.target) == ["gfx942", "sm_80"]
    assert (rows.spilled == 0).all() and (rows.registers > 0).all()
    # gfx942 runs 64 threads side by side, sm_80 runs 32.
    assert [math.prod(map(int, warp.split("x"))) for warp in rows.warp] == [64, 32]


@pytest.mark.parametrize(("spilled", "window", "status"), [(0, "", 0), (8, "", 1), (8, "axis", 0)])
def test_a_spill_in_a_launched_kernel_is_exit_status_1(
    tmp_path, monkeypatch, capsys, spilled, window, status
):
    row = {"kernel": "gather", "case": "a case", "window": window, "target": "sm_90"}
    row |= {"registers": 9, "spilled": spilled}
    monkeypatch.setattr(static, "table", lambda *_: pd.DataFrame([row]))
    assert static.main(["--target", "sm_90", "--out", str(tmp_path / "kernels.csv")]) == status
    assert ("a case: 8 bytes" in capsys.readouterr().out) == bool(status)


def test_the_digest_is_a_few_lines_and_names_what_is_counted(tmp_path, monkeypatch, capsys):
    rows = [
        {"kernel": kernel, "window": window, "case": f"C={c} {FLOAT32} {rest}", unit: most - 0.5}
        for (kernel, window, c, rest, unit), most in static.BUDGETS.items()
    ]
    frame = pd.DataFrame(rows).assign(target="sm_90", registers=range(len(rows)), spilled=0)
    monkeypatch.setattr(static, "table", lambda *_: frame)
    out = tmp_path / "new" / "kernels.csv"
    assert static.main(["--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 10 and lines[-1] == f"wrote {out}: every kernel"
    assert lines[0].startswith("sm_90: 4 kernels, 0 spill; registers: scatter 9, forward 2")
    assert "167.5 of 168 a pixel at C=1" in lines[2] and "a pixel·channel at C=64" in lines[2]
    assert len(pd.read_csv(out)) == len(frame)


def test_nothing_to_compile_is_exit_status_2(capsys):
    assert static.main(["--filter", "no such kernel"]) == 2
    assert "no such kernel" in capsys.readouterr().err
