"""The tables: cells are trained once, gone on with, and set beside the paper's numbers."""

from __future__ import annotations

import pytest
from digits import idx, made_up, write

pytest.importorskip("matplotlib")
pytest.importorskip("tabulate")

from examples import table
from examples.experiments import EXPERIMENTS

pytestmark = pytest.mark.usefixtures("small_and_quick")


def toy(tmp_path, *arguments: str) -> list[str]:
    source = write(tmp_path, *map(idx, made_up(40)))
    out = ["--out", str(tmp_path / "runs"), "--device", "cpu"]
    return [*arguments, *source, *out, "--steps", "2"]


def test_a_table_is_trained_once_and_printed_beside_the_paper(tmp_path, capsys, monkeypatch):
    command = toy(tmp_path, "addition", "--seeds", "0", "1")
    assert table.main(command) == 0
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in k.split("|")[1:-1]] for k in printed.splitlines() if "|" in k]
    errors, times = dict(rows[:7]), dict(rows[7:])
    assert errors[""] == times[""] == "addition" and errors["seeds"] == "2"
    papers = {"FCN": 47.7, "CNN": 14.7, "ST-FCN": 18.5, "2xST-FCN": 5.8}
    for network, paper in papers.items():
        mean, spread, theirs = errors[network].split()
        assert 0 <= float(mean) <= 100 and spread.startswith("±") and theirs == f"({paper})"
        assert float(times[network]) > 0
    assert len(errors) == len(papers) + 3 and len(times) == len(papers) + 2
    assert all(len(line) <= 120 for line in printed.splitlines() if "|" in line)

    def refuse(*arguments):
        raise AssertionError("it is there already")

    monkeypatch.setattr(table.train, "run", refuse)
    assert table.main(command) == 0
    assert capsys.readouterr().out == printed[printed.index("The sum of") :]


def test_a_cell_that_was_broken_off_goes_on(tmp_path, monkeypatch):
    commands = []

    def run(arguments):
        commands.append((arguments.model, arguments.resume))
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "checkpoint.pt").touch()

    monkeypatch.setattr(table.train, "run", run)
    for _ in range(2):
        assert table.main(toy(tmp_path, "birds", "--seeds", "0")) == 0
    networks = ["cnn", "2st-cnn", "4st-cnn"]
    assert commands == [(n, False) for n in networks] + [(n, True) for n in networks]


def test_nothing_is_trained_to_show(tmp_path, capsys):
    assert table.main(toy(tmp_path, "--show")) == 0
    assert capsys.readouterr().out == "nothing has been trained\n"


def test_every_row_and_column_is_an_experiment_s():
    for of in table.TABLES.values():
        for row in of.rows:
            assert all(model in EXPERIMENTS[row].networks for model, _ in of.columns.values())
            assert len(of.paper[row]) == len(of.columns)


def test_both_budgets_are_arguments_that_the_trainer_takes():
    for budget in table.BUDGETS.values():
        for recipe in (budget.dense, budget.convolutional):
            arguments = table.train.parse_arguments(["r", *recipe.options.split()])
            assert arguments.batch in (64, 128, 256) and recipe.steps >= 4000


def test_an_unknown_table_exits_with_a_message(capsys):
    with pytest.raises(SystemExit) as stop:
        table.main(["chairs"])
    assert stop.value.code == 2
    assert "TABLE must be of distorted, sequences, addition, birds, got chairs" in (
        capsys.readouterr().err
    )
