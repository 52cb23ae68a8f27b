"""The literature's tables on real digits: each network's error, beside the paper's own.

    python -m examples.table distorted --data-dir MNIST
    python -m examples.table sequences addition birds --data-dir MNIST --seeds 0 1 2
    python -m examples.table distorted --only rts tc --data-dir MNIST
    python -m examples.table distorted --data-dir MNIST --budget gpu --device cuda

Each cell is a run of ``python -m examples.train`` in a folder of its own. What is there already is
not trained again, and what was broken off goes on; ``--show`` prints what there is and trains
nothing. The digits, the training's length and its optimizer are not the paper's: what is printed
says how they differ.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from examples import train
from examples.experiments import EXPERIMENTS
from examples.options import RUNS, add_common, check_common, check_least, perform


@dataclass(frozen=True)
class Recipe:
    """How a cell is trained: steps, and other options of ``examples.train``."""

    steps: int
    options: str


@dataclass(frozen=True)
class Budget:
    """Of fully connected networks, and of convolutional ones."""

    dense: Recipe
    convolutional: Recipe

    def of(self, model: str) -> Recipe:
        return self.dense if model.endswith("fcn") else self.convolutional


@dataclass(frozen=True)
class Table:
    """columns: label -> (model, transform); paper: error in percent, row by row.

    patience: how many times the budget's steps it takes.
    """

    says: str
    rows: tuple[str, ...]
    columns: dict[str, tuple[str, str]]
    paper: dict[str, tuple[float | None, ...]]
    patience: int = 1


PAPERS = Recipe(150_000, "--batch 256 --filters 32 --optimizer sgd --schedule steps --lr 0.01")
BUDGETS = {
    "cpu": Budget(
        Recipe(15_000, "--batch 128 --lr 0.003"),
        Recipe(4000, "--batch 64 --lr 0.002 --filters 16"),
    ),
    "gpu": Budget(PAPERS, PAPERS),
}
WARPS = {"aff": "affine", "proj": "projective", "tps": "tps"}
TABLES = {
    "distorted": Table(
        "Distorted digits (the paper trains on 60,000 digits, 150,000 steps of SGD)",
        ("r", "rts", "p", "e", "tc"),
        {
            "FCN": ("fcn", "affine"),
            "CNN": ("cnn", "affine"),
            **{f"ST-FCN {short}": ("st-fcn", name) for short, name in WARPS.items()},
            **{f"ST-CNN {short}": ("st-cnn", name) for short, name in WARPS.items()},
        },
        {
            "r": (2.1, 1.2, 1.2, 1.3, 1.1, 0.7, 0.8, 0.7),
            "rts": (5.2, 0.8, 0.8, 0.9, 0.8, 0.5, 0.6, 0.5),
            "p": (3.1, 1.5, 1.5, 1.4, 1.4, 0.8, 0.8, 0.8),
            "e": (3.2, 1.4, 2.7, 2.6, 2.4, 1.2, 1.3, 1.1),
            "tc": (13.2, 3.5, 2.0, None, None, 1.7, None, None),
        },
    ),
    "sequences": Table(
        "Numbers of 1 to 5 digits, wrong where one is (the paper: street-view house numbers)",
        ("sequences-64", "sequences-128"),
        {
            "CNN": ("reader", "affine"),
            "ST-CNN single": ("reader-single", "affine"),
            "ST-CNN multi": ("reader-multi", "affine"),
        },
        {"sequences-64": (4.0, 3.7, 3.6), "sequences-128": (5.6, 3.9, 3.9)},
    ),
    "addition": Table(
        "The sum of two digits",
        ("addition",),
        {
            "FCN": ("fcn", "affine"),
            "CNN": ("cnn", "affine"),
            "ST-FCN": ("st-fcn", "affine"),
            "2xST-FCN": ("2st-fcn", "affine"),
        },
        {"addition": (47.7, 14.7, 18.5, 5.8)},
        patience=2,
    ),
    "birds": Table(
        "Birds of two parts (the paper: CUB-200-2011, 200 kinds, photographs)",
        ("birds",),
        {
            "CNN": ("cnn", "affine"),
            "2xST-CNN": ("2st-cnn", "affine"),
            "4xST-CNN": ("4st-cnn", "affine"),
        },
        {"birds": (17.7, 16.1, 15.9)},
    ),
}


@dataclass(frozen=True)
class Cell:
    """error in percent, and milliseconds a step, of each seed that has been trained."""

    errors: tuple[float, ...]
    milliseconds: tuple[float, ...]

    def text(self, paper: float | None) -> str:
        """The mean, the spread over seeds, the paper's number in brackets."""
        if not self.errors:
            return ""
        spread = f" ±{statistics.stdev(self.errors):.2f}" if len(self.errors) > 1 else ""
        return f"{statistics.mean(self.errors):.2f}{spread}" + f" ({paper})" * (paper is not None)


def folder_of(arguments: argparse.Namespace, row: str, model: str, warp: str, seed: int) -> Path:
    return arguments.out / arguments.budget / f"{row}-{model}-{warp}-{seed}"


def steps_of(arguments: argparse.Namespace, row: str, model: str) -> int:
    (patience,) = {table.patience for table in TABLES.values() if row in table.rows}
    return arguments.steps or patience * BUDGETS[arguments.budget].of(model).steps


def finished(folder: Path, steps: int) -> dict[str, str] | None:
    """The last row of a run that has come to its end; None for another."""
    if not (folder / "run.csv").exists():
        return None
    with (folder / "run.csv").open() as file:
        rows = list(csv.DictReader(file))
    return rows[-1] if rows and int(rows[-1]["step"]) == steps else None


def cells(arguments: argparse.Namespace) -> Iterator[tuple[str, str, str, int]]:
    """(row, model, transform, seed), seed by seed, so that a table is soon whole."""
    for seed in arguments.seeds:
        for name in arguments.tables:
            for row in TABLES[name].rows:
                if not arguments.only or row in arguments.only:
                    yield from ((row, *column, seed) for column in TABLES[name].columns.values())


def train_cell(arguments: argparse.Namespace, row: str, model: str, warp: str, seed: int) -> None:
    folder = folder_of(arguments, row, model, warp, seed)
    steps = steps_of(arguments, row, model)
    command = [row, *BUDGETS[arguments.budget].of(model).options.split(), "--model", model]
    command += ["--transform", warp, "--seed", str(seed)]
    command += ["--steps", str(steps), "--every", str(max(steps // 10, 1)), "--out", str(folder)]
    command += ["--backend", arguments.backend, "--device", arguments.device]
    if arguments.data_dir:
        command += ["--data-dir", str(arguments.data_dir)]
    if (folder / "checkpoint.pt").exists():
        command.append("--resume")
    train.run(train.parse_arguments(command))


def results(arguments: argparse.Namespace, row: str, model: str, warp: str) -> Cell:
    """Of all seeds that are there, asked for or not."""
    found = []
    pattern = folder_of(arguments, row, model, warp, 0).name.removesuffix("0") + "*"
    for folder in sorted((arguments.out / arguments.budget).glob(pattern)):
        if (last := finished(folder, steps_of(arguments, row, model))) is not None:
            found.append((float(last["error"]), float(last["milliseconds"])))
    errors, milliseconds = zip(*found, strict=True) if found else ((), ())
    return Cell(errors, milliseconds)


def report(arguments: argparse.Namespace) -> str:
    """The tables in Markdown, a line a network."""
    parts = []
    for name in arguments.tables:
        table = TABLES[name]
        found = {
            row: [results(arguments, row, *column) for column in table.columns.values()]
            for row in table.rows
        }
        found = {row: cells for row, cells in found.items() if any(cell.errors for cell in cells)}
        if not found:
            continue
        errors, times = {"": [*table.columns, "seeds"]}, {"": list(table.columns)}
        for row, cells in found.items():
            texts = [c.text(theirs) for c, theirs in zip(cells, table.paper[row], strict=True)]
            seeds = {len(cell.errors) for cell in cells if cell.errors}
            count = f"{min(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
            errors[row] = [*texts, count]
            times[row] = [_mean(cell.milliseconds) for cell in cells]
        parts += [
            f"{table.says}.\n",
            "Held-out error, %, mean ± spread over seeds, in brackets the paper's.",
            *_recipes(arguments, table),
            tabulate(errors, "keys", "github") + "\n",
            "Milliseconds a step:\n",
            tabulate(times, "keys", "github", floatfmt=".1f") + "\n",
        ]
    return "\n".join(parts) or "nothing has been trained"


def _recipes(arguments: argparse.Namespace, table: Table) -> list[str]:
    others = _recipe(arguments, table, "cnn") + ".\n"
    if not any(model.endswith("fcn") for model, _ in table.columns.values()):
        return [others]
    dense = _recipe(arguments, table, "fcn")
    return [f"Fully connected networks: {dense};", f"others: {others}"]


def _recipe(arguments: argparse.Namespace, table: Table, model: str) -> str:
    steps = steps_of(arguments, table.rows[0], model)
    return f"{steps:,} steps of `{BUDGETS[arguments.budget].of(model).options}`"


def _mean(values: tuple[float, ...]) -> float | None:
    return statistics.mean(values) if values else None


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.table", description=__doc__.splitlines()[0]
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}")
    add_common(parser)
    parser.add_argument("--budget", choices=BUDGETS, default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, metavar="ROW", default=[])
    parser.add_argument("--steps", type=int, help="of every cell (default: the budget's)")
    parser.add_argument("--out", type=Path, default=RUNS / "table")
    parser.add_argument("--show", action="store_true", help="print what there is, train nothing")
    arguments = parser.parse_args(argv)
    check_common(parser, arguments)
    unknown = set(arguments.tables) - set(TABLES)
    if unknown:
        parser.error(f"TABLE must be of {', '.join(TABLES)}, got {', '.join(sorted(unknown))}")
    check_least(parser, arguments, 1, "steps")
    arguments.tables = arguments.tables or list(TABLES)
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Train what is missing and print the tables."""
    for row, model, warp, seed in () if arguments.show else cells(arguments):
        folder = folder_of(arguments, row, model, warp, seed)
        if finished(folder, steps_of(arguments, row, model)) is None:
            train_cell(arguments, row, model, warp, seed)
    print(report(arguments))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0, or 1 when there is no data to read."""
    return perform(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
