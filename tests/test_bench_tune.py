"""Tuning: variants are set and taken back, are right before they are timed, and are judged fairly.

Every time in these tests is made up, or a CPU's: they test the command, and measure nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import triton_stn
from bench import __main__ as command
from bench import cli, tune
from bench.measure import runner, timing
from bench.measure.runner import Forwards, Machine, run_task
from bench.model import launches
from bench.output import table
from bench.providers.registry import Provider
from bench.suite.cases import Case, Task, suite
from bench.tune import report, trials
from bench.tune.experiments import PLAN, Experiment, product
from bench.tune.trials import Trial, chosen, name_of
from triton_stn.backends import fused, plans
from triton_stn.backends.launch import Plan
from triton_stn.kernels import configs

ROOT = Path(__file__).resolve().parent.parent
TINY = Case("tiny", 1, 1, 3, 20, 9, 20, 9, 1)
MANY = Case("many", 1, 1, 20, 5, 4, 5, 4, 1)
VOLUME = Case("volume", 1, 1, 2, 5, 6, 5, 6, 1, d=4, d_out=4)
FORWARD = Task(TINY, "forward", "rotation_30")
BACKWARD = replace(FORWARD, pass_name="backward")
MACHINE = Machine("cpu", "cpu", 10.0, "2.x", "3.x", "abc1234")


def plan(task: Task) -> list[Plan]:
    return [spec.plan for spec in launches.of_task(task)]


def choices(task: Task) -> list[tuple]:
    return [spec.choice for spec in launches.of_task(task)]


def block(plan: Plan) -> tuple[int, int]:
    tiling = plan.constants["TILING"]
    return tiling.block_h, tiling.block_w


# --- variants ------------------------------------------------------------------------------------


def test_constants_are_set_and_taken_back_also_after_an_exception():
    before = trials.tunable()
    with chosen(dict(PATCH_H=4, PATCH_W=32)):
        assert (configs.PATCH_H, configs.PATCH_W) == (4, 32)
    assert trials.tunable() == before
    with pytest.raises(ZeroDivisionError), chosen(dict(BACKWARD_TILES=1)):
        _ = 1 / 0
    assert trials.tunable() == before


@pytest.mark.parametrize(("case", "constant"), [(TINY, "PATCH_W"), (VOLUME, "WARPS")])
@pytest.mark.parametrize("pass_name", ["forward", "backward"])
def test_a_cached_plan_does_not_outlive_the_constants_that_it_was_made_from(
    case, constant, pass_name
):
    task = Task(case, pass_name, "rotation_30")
    present = choices(task)
    with chosen({constant: 16}):
        assert choices(task)[0] != present[0]
    assert choices(task) == present
    assert plans.plan_forward.cache_info().currsize


def test_the_register_caps_and_the_warps_reach_the_launch():
    with chosen(dict(FEW_REGISTERS=96, GATHER_REGISTERS=136, WARPS=8)):
        assert plan(BACKWARD)[0].maxnreg == 96
        assert plan(Task(MANY, "backward", "rotation_30"))[0].maxnreg == 136
        assert plan(BACKWARD)[0].num_warps == 8
    assert plan(BACKWARD)[0].num_warps == configs.WARPS


def test_the_passes_of_volumes_reach_their_launches():
    forward, backward = (Task(VOLUME, name, "rotation_30") for name in ("forward", "backward"))

    def a_pass(task):
        return plan(task)[0].constants["TILING"].channels_a_pass

    with chosen(dict(VOLUME_FORWARD_PASS=1, GATHER_PASS=1)):
        assert a_pass(forward) == a_pass(backward) == 1
    assert a_pass(forward) == a_pass(backward) == 2


def test_no_constant_is_offered_that_a_launch_would_not_read():
    assert "MAX_GRID" not in trials.tunable()
    assert {"PATCH_H", "GATHER_REGISTERS", "RUN_PATCH_H", "WARPS"} <= set(trials.tunable())


def test_the_present_choice_is_first_and_last_and_no_launch_is_tried_twice():
    values = (4, 16, 8, 4)  # 16 is the present one
    experiment = Experiment("e", "", product(PATCH_H=values), ("tiny/forward/",))
    found = trials.of(experiment, [FORWARD, BACKWARD])
    labels = ["PATCH_H=16", "PATCH_H=4", "PATCH_H=8", "PATCH_H=16 again"]
    assert [trial.variant for trial in found] == labels
    assert len({trial.key for trial in found}) == 4
    assert {trial.yardstick for trial in found} == {FORWARD.key("PATCH_H=16")}


def test_a_task_that_no_variant_changes_is_left_out():
    experiment = Experiment("e", "", product(FEW_REGISTERS=(96,)), ("",))
    found = trials.of(experiment, [FORWARD, BACKWARD])
    assert {trial.task for trial in found} == {BACKWARD}


def test_filters_have_the_words_of_the_bench():
    tasks = suite("full", "cuda")
    found = trials.select(tasks, ("large_512/backward/ rotation_30 -align -True float32/cont",))
    names = ["large_512/backward/rotation_30/float32/contiguous/zeros/False"]
    assert [name_of(task) for task in found] == names


@pytest.mark.parametrize("experiment", PLAN, ids=lambda experiment: experiment.name)
def test_every_experiment_of_the_plan_sets_known_constants_and_finds_its_tasks(experiment):
    for settings in experiment.variants:
        assert settings.keys() <= trials.tunable().keys()
    tasks = suite("full", "cuda")
    for words in experiment.filters:
        assert trials.select(tasks, [words]), words
    assert experiment.question and experiment.expected
    assert len(trials.of(experiment, tasks)) >= 3


def untimed(rows, *_):
    for row in rows.values():
        row["ms_p50"] = 1.0


@pytest.mark.parametrize(
    ("case", "layout", "settings"),
    [
        (TINY, "contiguous", dict(PATCH_H=4, PATCH_W=32)),
        (TINY, "contiguous", dict(GATHER_PASS=2, FORWARD_PASS=2)),
        (TINY, "contiguous", dict(ENOUGH_PROGRAMS=1, BACKWARD_TILES=4, FORWARD_TILES=4)),
        (MANY, "contiguous", dict(MIN_CHANNELS_A_SPLIT=16, GATHER_PASS=8)),
        (MANY, "channels_last", dict(RUN_PATCH_H=2)),
    ],
    ids=lambda x: x.name if isinstance(x, Case) else str(x),
)
@pytest.mark.parametrize("pass_name", ["forward", "backward"])
def test_results_are_right_under_a_variant(kernels, monkeypatch, case, layout, settings, pass_name):
    launched = []
    launch = fused.launch

    def spy(launches, *arguments):
        launched.extend((plan.grid, plan.constants) for plan in launches.plans)
        launch(launches, *arguments)

    monkeypatch.setattr(fused, "launch", spy)
    monkeypatch.setattr(runner, "time_calls", untimed)
    task = Task(case, pass_name, "rotation_30", layout=layout)
    present = plan(task)[0].grid, plan(task)[0].constants
    machine = replace(MACHINE, type=kernels.device)
    with triton_stn.use_backend(kernels.backend):
        provider = tune.provider_of(Trial(task, settings, {}))
        (row,) = run_task(task, [provider], machine, Forwards())
    assert row["status"] == "ok", row["note"]
    assert row["provider"] == " ".join(f"{k}={v}" for k, v in settings.items())
    assert launched and present not in launched


# --- predicted -----------------------------------------------------------------------------------


def test_warps_an_sm_are_what_registers_leave():
    # 168 registers leave three programs of four warps, 64 warps is all an SM holds.
    found = [report.warps_an_sm(registers, 4) for registers in (168, 136, 96, 65, 64, 32, 16)]
    assert found == [12, 12, 20, 28, 32, 64, 64]


@pytest.mark.landing
def test_without_a_gpu_the_compiler_is_asked_and_nothing_is_measured():
    # Interpreted kernels can not be compiled, and the tests may run under the interpreter.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    asked = ["PATCH_W=24", "--filter", "tutorial_28/backward/rotation_30", "--jobs", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "bench", "tune", *asked],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Nothing was measured" in done.stdout and "again" not in done.stdout
    lines = [line.split("|") for line in done.stdout.splitlines() if line.startswith("|")]
    header, _, *lines = ([cell.strip() for cell in line] for line in lines)
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    assert [row["variant"] for row in rows] == ["PATCH_W=8", "PATCH_W=24"]
    assert not {"ms", "ratio", "change"} & set(header)
    assert (rows[0]["kernel"], rows[0]["window"], rows[0]["programs"]) == ("gather", "THREE", "448")
    assert 0 < int(rows[0]["registers"]) <= 128 and int(rows[0]["warps an SM"]) >= 16
    assert float(rows[0]["per_tile"]) > 0 and float(rows[0]["predicted ms"]) > 0
    assert rows[0]["predicted ratio"] == "1"
    assert "CompilationError" in rows[1]["cause"]  # 16 x 24 pixels are no power of two


# --- measured ------------------------------------------------------------------------------------


def made_up(found: list[Trial], times: dict[str, tuple[float, float, float] | str]) -> pd.DataFrame:
    """Rows with these (p50, p20, p80) by variant, or with a status."""
    rows = []
    for trial in found:
        provider = Provider(trial.variant, lambda: None)
        row = runner.new_row(trial.task, provider, MACHINE)
        given = times[trial.variant]
        if isinstance(given, str):
            row |= {"status": given, "note": "why"}
        else:
            timing.set_times(row, given)
        rows.append(row)
    return pd.DataFrame(rows, columns=table.COLUMNS)


@pytest.fixture
def found() -> list[Trial]:
    settings = [dict(BACKWARD_TILES=tiles) for tiles in (32, 16, 8, 4, 2)]
    all = [Trial(BACKWARD, s, settings[0]) for s in settings]
    return [*all, Trial(BACKWARD, settings[0], settings[0], again=True)]


TIMES = {
    "BACKWARD_TILES=32": (2.0, 1.9, 2.1),
    "BACKWARD_TILES=16": (1.5, 1.4, 1.6),
    "BACKWARD_TILES=8": (3.0, 2.9, 3.1),
    "BACKWARD_TILES=4": (1.4, 1.3, 2.2),  # faster in the median, within the spread
    "BACKWARD_TILES=2": "wrong",
    "BACKWARD_TILES=32 again": (1.99, 1.98, 2.0),
}


def test_a_variant_is_faster_or_slower_beyond_the_spread_alone(found):
    measured = report.verdicts(made_up(found, TIMES), found)
    change = ["present", "faster", "slower", "within spread", "broken", "within spread"]
    assert measured.change.tolist() == change
    assert measured.ratio[:3].tolist() == [1.0, 0.75, 1.5]
    assert measured.status.tolist() == ["ok"] * 4 + ["wrong", "ok"] and measured.note[4] == "why"
    (best,) = report.by_task(measured).itertuples()
    assert (best.best, best.ratio) == ("BACKWARD_TILES=16", 0.75)
    over = report.by_variant(measured).set_index("variant")
    assert over.faster.tolist() == [0, 1, 0, 0, 0, 0] and over.slower.sum() == 1
    assert over.loc["BACKWARD_TILES=2", "not ok"] == 1


def test_the_present_choice_stays_the_best_where_none_is_faster_beyond_the_spread(found):
    times = dict.fromkeys(TIMES, (1.99, 1.9, 2.1)) | {"BACKWARD_TILES=32": (2.0, 1.9, 2.1)}
    (best,) = report.by_task(report.verdicts(made_up(found, times), found)).itertuples()
    assert best.best == "BACKWARD_TILES=32"


def test_what_was_not_measured_has_no_verdict(found):
    rows = made_up(found, TIMES)
    assert len(report.verdicts(rows.iloc[1:], found)) == 0  # nothing to set the others against
    assert len(report.verdicts(rows.iloc[:2], found)) == 2
    text = report.report(Experiment("e", "why?", (), ()), found, None, report.verdicts(rows, []))
    assert "why?" in text and "BACKWARD_TILES=16" in text


def test_the_report_sets_what_was_measured_beside_what_was_predicted(found):
    rows = [
        {"task": name_of(t.task), "variant": t.variant, "kernel": "gather", "registers": 163}
        for t in found[:-1]
    ]
    predicted = pd.DataFrame(rows).reindex(columns=report.COLUMNS).astype({"registers": "Int64"})
    measured = report.verdicts(made_up(found, TIMES), found)
    text = report.report(Experiment("e", "why?", (), ()), found, predicted, measured)
    lines = [[c.strip() for c in x.split("|")[1:-1]] for x in text.splitlines() if x[:1] == "|"]
    header, _, *lines = lines
    table_of = [dict(zip(header, line, strict=True)) for line in lines]
    assert [row["registers"] for row in table_of] == ["163"] * 5 + [""]
    assert [row["ms"] for row in table_of] == ["2", "1.5", "3", "1.4", "", "1.99"]
    assert "predicted ms" not in header  # there is none of this task


def test_the_file_keeps_other_rows_and_resume_measures_what_is_missing(tmp_path, found):
    csv = tmp_path / "tune.csv"
    table.append(csv, made_up(found[:2], TIMES).to_dict("records"))
    other = replace(found[0], task=FORWARD)
    table.append(csv, made_up([other], TIMES).to_dict("records"))
    csv.write_text(csv.read_text() + "tiny,backw")  # a run was cut off here
    assert tune.begin(csv, "cpu", found, resume=True) == found[2:]
    assert tune.begin(csv, "cpu", found, resume=False) == found
    assert table.keys(table.read(csv)) == [other.key]
    assert tune.begin(csv, "another GPU", found, resume=True) == found
    assert not csv.exists()


def test_rows_are_written_one_by_one_until_time_is_over(tmp_path, monkeypatch, found):
    csv = tmp_path / "tune.csv"
    written = []

    def run_task(task, providers, machine, forwards):
        written.append(len(table.read(csv)) if csv.exists() else 0)
        return [runner.new_row(task, providers[0], machine) | {"ms_p50": 1.0}]

    monkeypatch.setattr(tune, "run_task", run_task)
    over = tune.measure_trials(found, MACHINE, csv, over=lambda: len(written) == 2)
    assert over == cli.OUT_OF_TIME
    assert written == [0, 1] and len(table.read(csv)) == 2


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "PATCH_H"),
        (["PATCH=1"], "no constant 'PATCH'; there are WARPS, PATCH_H"),
        (["MAX_GRID=4,8"], "no constant 'MAX_GRID'"),
        (["PATCH_H=4,wide"], "whole numbers"),
        (["PATCH_H"], "whole numbers"),
        (["--plan", "nothing"], "no experiment 'nothing'; the plan has registers"),
    ],
)
def test_the_command_says_what_it_knows(capsys, arguments, said):
    with pytest.raises(SystemExit) as exit:
        command.main(["tune", *arguments])
    assert exit.value.code == 2 and said in capsys.readouterr().err


def test_nothing_to_try_is_exit_status_2(capsys):
    assert command.main(["tune", "BACKWARD_TILES=4", "--filter", "digits_60/forward/"]) == 2
    assert "No variant changes" in capsys.readouterr().err


@pytest.fixture
def small_gpu(monkeypatch, tmp_path):
    """A stand-in for a GPU: the PyTorch path on a CPU, and a plan of one tiny case."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tune, "this_machine", lambda: MACHINE)
    monkeypatch.setattr(timing, "CPU_WORK_MS", 1)
    monkeypatch.setattr(tune, "suite", lambda *_: [FORWARD, BACKWARD])
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with triton_stn.use_backend("torch"):
        yield tmp_path / "out" / "tune.csv"


def test_on_a_gpu_every_trial_is_checked_timed_and_printed(small_gpu, capsys):
    asked = ["tune", "PATCH_H=4,8", "--out", str(small_gpu.parent)]
    assert command.main([*asked, "--minutes", "0"]) == cli.OUT_OF_TIME
    assert "Go on with the same command, --resume" in capsys.readouterr().out
    assert command.main([*asked, "--resume"]) == 0
    rows = table.read(small_gpu)
    assert len(rows) == 2 * 4 and (rows.status == "ok").all() and rows.ms_p50.gt(0).all()
    assert rows.device.eq("cpu").all() and rows.commit.eq("abc1234").all()
    printed = capsys.readouterr().out
    assert "### tiny/backward/rotation_30" in printed and "## Each task, the fastest" in printed
    assert "PATCH_H=16 again" in printed and "PATCH_H=4" in small_gpu.with_suffix(".md").read_text()


def test_a_wrong_result_is_exit_status_1(small_gpu, monkeypatch):
    def off(input, theta, size, *options):
        return triton_stn.spatial_transform(input.roll(1, -1), theta, size)

    monkeypatch.setattr(tune.baselines, "ours", off)
    asked = ["tune", "PATCH_H=4", "--filter", "tiny/forward", "--out", str(small_gpu.parent)]
    assert command.main(asked) == 1
    assert table.read(small_gpu).status.eq("wrong").all()


def test_a_gpu_that_is_lost_ends_the_run_with_the_row_that_lost_it(small_gpu, monkeypatch, capsys):
    def illegal(*arguments):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(tune.baselines, "ours", illegal)
    monkeypatch.setattr(torch.cuda, "synchronize", illegal)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    asked = ["tune", "PATCH_H=4", "--filter", "tiny/backward/", "--out", str(small_gpu.parent)]
    assert command.main(asked) == cli.DEVICE_LOST
    (row,) = table.read(small_gpu).itertuples()
    assert (row.provider, row.status) == ("PATCH_H=16", "error") and "illegal" in row.note
    assert "Go on past it with --resume" in capsys.readouterr().out
    assert trials.tunable()["PATCH_H"] == 16


def test_another_file_is_not_overwritten(small_gpu, capsys):
    small_gpu.parent.mkdir()
    small_gpu.write_text("a,b\n1,2\n")
    assert command.main(["tune", "PATCH_H=4", "--out", str(small_gpu.parent)]) == 2
    assert "no results table" in capsys.readouterr().err
    assert small_gpu.read_text() == "a,b\n1,2\n"


def test_experiments_have_names_of_their_own():
    names = [experiment.name for experiment in PLAN]
    assert len(set(names)) == len(names)
