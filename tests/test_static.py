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


@pytest.mark.landing
@pytest.mark.parametrize(
    ("case", "warps"),
    [
        ("forward C=3 float32 NCHW bilinear zeros 512x512", {"sm_90": "4x8", "gfx942": "8x8"}),
        ("forward C=1 float32 NCDHW bilinear zeros 128", {"sm_90": "2x4x4", "sm_80": "2x4x4"}),
    ],
)
def test_a_warp_covers_a_patch_on_every_target(tmp_path, case, warps):
    """64 threads side by side on gfx942, 32 elsewhere."""
    targets = [word for target in warps for word in ("--target", target)]
    status, rows, printed = report(tmp_path / "warps.csv", case, *targets)
    assert status == 0, printed
    assert dict(zip(rows.target, rows.warp, strict=True)) == warps
    assert (rows.spilled == 0).all() and (rows.registers > 0).all()


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
    assert few <= most / 3 and most <= 85


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
    frame = pd.DataFrame(rows).assign(target="sm_90", spilled=0)
    monkeypatch.setattr(static, "table", lambda *_: frame)
    out = tmp_path / "new" / "kernels.csv"
    assert static.main(["--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert lines[-1].startswith(f"wrote {out}: {len(rows)} kernels in ")
    assert lines[0].startswith(f"sm_90: {len(rows)} kernels, 0 spill; registers: gather 127.5")
    assert any("gather THREE, a tile: 177.5 of 178 at C=1" in line for line in lines)
    assert any("gather UPRIGHT, a channel: 32.5 of 33 at C=64" in line for line in lines)
    assert len(pd.read_csv(out)) == len(frame)


@pytest.mark.parametrize(("number", "said"), [(72.5, "72.5 at C=1, over 72"), (math.nan, "nan at")])
def test_more_instructions_than_the_budget_are_exit_status_1(
    tmp_path, monkeypatch, capsys, number, said
):
    row = {"kernel": "forward", "case": f"C=1 {FLOAT32} 512x512", "per_tile": number}
    frame = pd.DataFrame([row]).assign(target="sm_90", registers=9, spilled=0)
    monkeypatch.setattr(static, "table", lambda *_: frame)
    assert static.main(["--out", str(tmp_path / "kernels.csv")]) == 1
    assert f"forward, a tile: {said}" in capsys.readouterr().out
    frame["per_tile"] = 72
    assert static.main(["--out", str(tmp_path / "kernels.csv")]) == 0


def test_nothing_to_compile_is_exit_status_2(capsys):
    assert static.main(["--filter", "no such kernel"]) == 2
    assert "no such kernel" in capsys.readouterr().err
