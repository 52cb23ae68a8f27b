"""Train the tutorial's spatial transformer network on real digits, upright or turned.

The localisation net and the classifier are those of PyTorch's spatial transformer tutorial; any
transform of the library stands between them. ``--compare`` trains the same classifier without its
transformer too, on the same digits, and prints both. The tutorial trains by SGD (0.01, batches of
64, 20 epochs); here Adam takes a one-cycle schedule over as many batches, and the localisation net
learns at a tenth of the rate, as for the street-view numbers of Jaderberg et al. 2015. Other
networks and other scenes: ``python -m examples.train --help``.

    python -m examples.mnist --data-dir MNIST
    python -m examples.mnist --data-dir MNIST --rotate 90 --compare
    python -m examples.mnist --transform tps
    torchrun --nproc-per-node=N -m examples.mnist
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tabulate import tabulate

from examples import data, models, pictures, processes, scenes
from examples.experiments import EXPERIMENTS
from examples.options import RUNS, add_common, check_common, check_out, check_rates, perform, placed
from examples.train import Settings, Trainer, held_out_scene, train


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mnist", description=__doc__.splitlines()[0])
    add_common(parser)
    parser.set_defaults(threads=1)  # on batches this small, more threads gain little
    parser.add_argument("--transform", choices=models.TRANSFORMS, default="affine")
    parser.add_argument("--rotate", type=float, default=0.0, help="turn digits by up to ±degrees")
    parser.add_argument("--compare", action="store_true", help="train without transformer too")
    parser.add_argument("--epochs", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--lr", type=float, default=4e-3, help="highest rate (%(default)s)")
    parser.add_argument(
        "--localization-lr-scale", type=float, default=0.1, help="slower by (%(default)s)"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", help="a training each (default: 0, with --compare 0 1 2)"
    )
    parser.add_argument("--out", type=Path, default=RUNS / "mnist.png", help="the picture")
    arguments = parser.parse_args(argv)
    check_common(parser, arguments)
    if arguments.epochs < 0:
        parser.error(f"--epochs must not be negative, got {arguments.epochs}")
    check_rates(parser, arguments)
    if not 0 <= arguments.rotate <= 180:
        parser.error(f"--rotate must lie between 0 and 180 degrees, got {arguments.rotate}")
    check_out(parser, arguments.out)
    arguments.seeds = arguments.seeds or ([0, 1, 2] if arguments.compare else [0])
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Train a network for each seed, and each kind to compare; print the table; draw the last."""
    training, held_out = (d.to(arguments.device) for d in data.load(arguments.data_dir))
    turned = partial(scenes.rotated, degrees=arguments.rotate)
    experiment = replace(EXPERIMENTS["upright"], scene=turned)
    scene = held_out_scene(experiment, held_out)
    chief = processes.rank() == 0
    if chief:
        says = f"turned by up to {arguments.rotate:g}°" if arguments.rotate else "upright"
        print(f"{len(training)} digits to train, {len(scene)} held out, {says}")

    rows = []
    kinds = {f"{arguments.transform} transformer": "tutorial"}
    if arguments.compare:
        kinds = {"no transformer": "tutorial-cnn", **kinds}
    for kind, model in kinds.items():
        percents, began = [], time.perf_counter()
        for seed in arguments.seeds:
            settings = Settings(
                steps=arguments.epochs * -(-len(training) // Settings.batch),
                lr=arguments.lr,
                localization_lr_scale=arguments.localization_lr_scale,
                seed=seed,
            )
            torch.manual_seed(seed)
            network = placed(experiment.network(model, arguments.transform), arguments)
            place = processes.rank(), processes.world()
            trainer = Trainer(network, experiment.scene, training, settings, *place)
            point = train(trainer, scene, label=f"{kind}, seed {seed}")
            percents.append(100 - point.result.error)
        seconds = (time.perf_counter() - began) / len(percents)
        rows.append([kind, *percents, sum(percents) / len(percents), f"{seconds:.0f}"])
    if not chief:
        return
    seeds = [f"seed {seed}" for seed in arguments.seeds]
    print("held-out accuracy, %")
    print(tabulate(rows, ["", *seeds, "mean", "s a training"], floatfmt=".2f"))
    pictures.show(network, scene[:24]).savefig(arguments.out, dpi=100)
    print(f"picture: {arguments.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; 0, or 1 when there are no digits to read."""
    arguments = parse_arguments(argv)
    with processes.joined(arguments):
        return perform(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
