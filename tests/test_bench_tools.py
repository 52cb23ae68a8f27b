"""The tables that maintainers compare and the README that is written from one."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from bench import __main__ as command
from bench.measure import runner, timing
from bench.measure.runner import Machine
from bench.output import compare, report, table
from bench.providers.registry import PROVIDERS
from bench.suite.cases import SWEEP_CASE, Case, Task

TINY = Case("tiny", 2, 1, 3, 8, 8, 8, 8, 2)
MACHINE = Machine("cpu", "cpu", 10.0, "2.x", "3.x", "abc1234")
OURS, EAGER = PROVIDERS[:2]


@pytest.fixture
def measured(tmp_path):
    """A CSV with a forward and a backward row of triton_stn, 2 ms each, and eager's."""
    csv = tmp_path / "old.csv"
    rows = []
    for pass_name in ("forward", "backward"):
        for provider, ms in ((OURS, 2.0), (EAGER, 6.0)):
            row = runner.new_row(Task(TINY, pass_name, "identity"), provider, MACHINE)
            timing.set_times(row, (ms, ms * 0.99, ms * 1.01))
            rows.append(row | {"speedup_vs_eager": 6.0 / ms})
    table.append(csv, rows)
    return csv


def altered(csv, **columns):
    """A copy of the CSV whose first row, triton_stn's forward, has other values."""
    frame = table.read(csv).astype(object)
    for name, value in columns.items():
        frame.loc[0, name] = value
    new = csv.with_name("new.csv")
    frame.to_csv(new, index=False)
    return new


@pytest.mark.parametrize(
    ("columns", "status", "said"),
    [
        ({}, 0, "no change"),
        ({"ms_p50": 2.6, "ms_p20": 2.5, "ms_p80": 2.7}, 1, "slower"),
        ({"ms_p50": 1.6, "ms_p20": 1.5, "ms_p80": 1.7}, 0, "faster"),
        # Slower in the median, but within the spread; beyond the spread, but by 2%.
        ({"ms_p50": 2.6, "ms_p20": 1.9, "ms_p80": 2.7}, 0, "no change"),
        ({"ms_p50": 2.04, "ms_p20": 2.03, "ms_p80": 2.05}, 0, "no change"),
        ({"ms_p50": None, "ms_p20": None, "ms_p80": None, "status": "wrong"}, 1, "broken"),
        ({"device": "another"}, 2, "different devices"),
        ({"h": 9}, 2, "another h"),
        ({"d": 9}, 2, "another d"),
    ],
)
def test_compare_exits_1_on_a_regression(measured, capsys, columns, status, said):
    new = altered(measured, **columns)
    assert command.main(["compare", str(measured), str(new)]) == status
    assert said in "".join(capsys.readouterr())


def test_compare_says_which_rows_are_gone(measured, capsys):
    frame = table.read(measured)
    new = measured.with_name("new.csv")
    frame[frame["pass"] != "backward"].to_csv(new, index=False)
    assert compare.main([str(measured), str(new)]) == 0
    assert "old.csv has: 1." in capsys.readouterr().out


def test_compare_says_what_is_no_table(tmp_path, measured, capsys):
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    assert compare.main([str(measured), str(other)]) == 2
    assert "no results table" in capsys.readouterr().err


def test_report_writes_the_readme_from_the_csv_and_checks_it(tmp_path, measured):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nstale\n{report.END}\nafter\n", encoding="utf-8")
    arguments = [str(measured), "--readme", str(readme)]
    assert report.main([*arguments, "--check"]) == 1
    assert report.main(arguments) == 0
    assert report.main([*arguments, "--check"]) == 0
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "stale" not in text
    assert "3.00 (3.00)" in text and "(speedup.png)" in text


def test_until_there_is_a_gpu_the_readme_has_the_cpus_rows_and_what_is_predicted(
    tmp_path, measured, monkeypatch
):
    """The predictions here are made up: they test the table."""
    monkeypatch.setattr(report, "latest", lambda _: None)
    rows = [
        {"case": "tutorial_28", "pass": pass_name, "theta_kind": kind, "provider": provider}
        | {"predicted ms": 0.001 * n, "binds": "issue"}
        for pass_name in ("forward", "backward")
        for kind in report.SHOWN_THETAS
        for n, provider in enumerate(("triton_stn", "eager"), 4)
    ]
    predicted = tmp_path / "predicted.csv"
    pd.DataFrame(rows).to_csv(predicted, index=False)
    readme = tmp_path / "README.md"
    readme.write_text(f"{report.BEGIN}\n{report.END}\n", encoding="utf-8")
    sources = ["--cpu", str(measured), "--predicted", str(predicted)]
    assert report.main(["--readme", str(readme), *sources]) == 0
    text = readme.read_text(encoding="utf-8")
    assert text.index("Nothing has been timed") < text.index("3.00 (3.00)")
    assert text.index("3.00 (3.00)") < text.index("Predicted, not measured")
    assert "| 64x1x1x28x28 → 28x28 | 4 issue (5)" in re.sub(" +", " ", text)


def test_a_volume_shows_its_depth_and_an_image_none(measured):
    frame = table.read(measured)
    assert (frame.d == 0).all() and "2x1x3x8x8 → 8x8" in report.whole(frame)
    volume = frame.assign(case="block", d=5, d_out=6)
    both = pd.concat([frame, volume])
    for text in (report.whole(both), report.block(both, "speedup.png")):
        assert "2x1x3x8x8 → 8x8" in text and "2x1x3x5x8x8 → 6x8x8" in text


def test_the_report_has_every_case_but_not_the_sweep(measured):
    frame = table.read(measured)
    crops = frame.assign(case="crops", theta_kind="zoom_in_4")
    swept = crops.assign(case=SWEEP_CASE)
    text = report.block(pd.concat([frame, crops, swept]), "speedup.png")
    by_case = text[: text.index("All rows")]
    assert "tiny" in by_case and "crops" in by_case and SWEEP_CASE not in by_case


def test_the_readme_agrees_with_the_results_of_the_repository(capsys):
    assert report.main(["--check"]) == 0, capsys.readouterr().out


def test_without_a_run_on_a_gpu_the_readme_says_that_nothing_was_timed(
    tmp_path, measured, monkeypatch
):
    (tmp_path / "results" / "cpu").mkdir(parents=True)
    measured.rename(tmp_path / "results" / "cpu" / "results.csv")  # a CPU's times are no results
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results")
    readme = tmp_path / "README.md"
    readme.write_text(f"{report.BEGIN}\n3x faster\n{report.END}\n", encoding="utf-8")
    assert report.main(["--readme", str(readme), "--check"]) == 1
    assert report.main(["--readme", str(readme)]) == 0
    text = readme.read_text(encoding="utf-8")
    assert "Nothing has been timed" in text and "3x faster" not in text

    gpu = tmp_path / "results" / "a-gpu" / "results.csv"
    gpu.parent.mkdir()
    frame = table.read(tmp_path / "results" / "cpu" / "results.csv")
    frame.assign(device="A GPU").to_csv(gpu, index=False)
    assert report.latest(tmp_path / "results") == gpu
    assert report.main(["--readme", str(readme), "--check"]) == 1
    assert report.main(["--readme", str(readme)]) == 0
    assert "Measured on A GPU" in readme.read_text(encoding="utf-8")


def test_against_the_fastest_other_provider_of_each_row(measured):
    frame = table.read(measured)
    # A third provider: slower than eager's 6 ms forward, faster than our 2 ms backward.
    third = frame[frame.provider == "eager"].assign(provider="third", ms_p50=[8.0, 1.0])
    wrong = third.assign(provider="fourth", ms_p50=0.1, status="wrong")
    both = table.against_best(pd.concat([frame, third, wrong])).set_index("pass")
    assert both.loc["forward", "geometric mean"] == pytest.approx(3.0)
    assert both.loc["forward", ["losses", "against"]].tolist() == [0, "eager"]
    assert both.loc["backward", ["worst", "losses", "against"]].tolist() == [0.5, 1, "third"]


def test_report_without_markers_changes_nothing(tmp_path, measured, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("no place\n")
    assert report.main([str(measured), "--readme", str(readme)]) == 2
    assert readme.read_text() == "no place\n" and "bench report" in capsys.readouterr().err
