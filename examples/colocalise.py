"""Find what images of a class have in common, with no box to learn from.

A transformer moves a window of the digit's size over images of digits that lie anywhere. It learns
that the windows of two images of a class should look alike to an encoder, more so than random
windows and those of other classes: a hinge loss. The encoder comes from a classifier of upright
digits. A digit is found where window and digit overlap by more than half (IoU).

    python -m examples.colocalise --data-dir MNIST
    python -m examples.colocalise --data-dir MNIST --clutter 16

Source: Jaderberg et al. 2015, arXiv 1506.02025, appendix A.2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from examples import data, pictures, scenes, train
from examples.data import SIZE
from examples.experiments import EXPERIMENTS, Result, overlaps
from examples.models import Window, convolutional_localization
from examples.options import (
    RUNS,
    add_common,
    add_training,
    check_common,
    check_least,
    check_out,
    check_training,
    perform,
    placed,
)
from triton_stn import spatial_transform
from triton_stn.nn import SpatialTransformer, out_of_view_penalty

CANVAS = 84  # so large that most random windows miss the digit: windows of nothing are alike, too


def encoder(digits: data.Digits, held_out: data.Digits, steps: int, seed: int) -> nn.Module:
    """(N, 1, 28, 28) -> (N, F) of length 1, of a classifier of upright digits."""
    upright = EXPERIMENTS["upright"]
    torch.manual_seed(seed)
    network = upright.network("cnn", filters=16, capacity=100_000).to(digits.images.device)
    trainer = train.Trainer(network, upright.scene, digits, train.Settings(steps, seed=seed))
    point = train.train(trainer, train.held_out_scene(upright, held_out), label="encoder")
    print(f"encoder: a classifier of upright digits, {point.result.error:.2f}% wrong")
    return nn.Sequential(*network[:-1]).requires_grad_(False).eval()


def hinge(window: Window, encode: nn.Module, generator: Generator, steps: int) -> Callable:
    """The objective: every window nearer to those of its class than to others, by a margin.

    The mean over pairs n ≠ m of a class of max(0, |e_n − e_m|² − p·d_n + (p + 1)/2), once with d_n
    the squared distance to the nearest of four random windows of the image, as in the paper, and
    once with d_n the mean to windows of other classes: a part of a digit looks like a part of
    another. At the start p is 3, or all windows would flee to where nothing is, where they are
    alike, too; over the first half of the steps it falls to 1. And what keeps windows in view.
    """
    done = count()

    def objective(forward: train.Forward, scene: data.Scene) -> Tensor:
        images = scene.images
        n, k = len(images), 4
        anywhere = 2 * torch.rand(n, k, 2, generator=generator, device=generator.device) - 1
        elsewhere = (1 - window.scale) * anywhere.to(images)
        random = spatial_transform(images, elsewhere, SIZE, transform=window)
        crops, theta = forward(images, return_theta=True)
        found = F.normalize(encode(crops))
        other = F.normalize(encode(random.flatten(0, 1))).unflatten(0, (n, k))
        apart = (found[:, None] - found[None]).square().sum(2)
        from_random = (found[:, None] - other).square().sum(2).amin(1)
        alike = scene.targets[:, None] == scene.targets
        others = torch.where(alike, 0.0, apart).sum(1) / (~alike).sum(1).clamp(min=1)
        alike = alike & ~torch.eye(n, dtype=torch.bool, device=alike.device)
        push = 1 + 2 * max(0.0, 1 - 2 * next(done) / steps)
        cost = sum(
            (apart - push * negative[:, None] + (push + 1) / 2).clamp(min=0)
            for negative in (from_random, others)
        )
        mean = torch.where(alike, cost, 0.0).sum() / alike.sum().clamp(min=1)
        return mean + 10 * out_of_view_penalty(theta, transform=window)

    return objective


@torch.no_grad()
def judge(transformer: nn.Module, scene: data.Scene) -> Result:
    """error: percent of the digits that are not found."""
    transformer.eval()
    overlap = overlaps(transformer, scene)
    return Result(100 * (overlap <= 0.5).float().mean().item(), overlap.mean().item())


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="colocalise", description=__doc__.splitlines()[0])
    add_common(parser)
    parser.add_argument("--clutter", type=int, default=0, help="pieces of digits (%(default)s)")
    parser.add_argument("--encoder-steps", type=int, default=1000, help="(%(default)s)")
    add_training(parser, lr=1e-3)
    parser.add_argument("--out", type=Path, default=RUNS / "colocalise.png", help="the picture")
    arguments = parser.parse_args(argv)
    check_common(parser, arguments)
    check_training(parser, arguments)
    check_least(parser, arguments, 1, "encoder_steps", "steps")
    check_out(parser, arguments.out)
    return arguments


def run(arguments: argparse.Namespace) -> None:
    device = torch.device(arguments.device)
    digits, held_out = (d.to(device) for d in data.load(arguments.data_dir))
    encode = encoder(digits, held_out, arguments.encoder_steps, arguments.seed)
    cluttered = partial(scenes.cluttered, size=CANVAS, distractors=arguments.clutter)
    experiment = replace(EXPERIMENTS["tc"], scene=cluttered)
    scene = train.held_out_scene(experiment, held_out)
    localization = convolutional_localization((1, CANVAS, CANVAS))
    window = Window(SIZE / CANVAS)
    transformer = placed(SpatialTransformer(*localization, window, SIZE), arguments)
    before = judge(transformer, scene)
    generator = Generator(device).manual_seed(arguments.seed)
    trainer = train.Trainer(
        transformer,
        experiment.scene,
        digits,
        train.Settings(arguments.steps, arguments.batch, arguments.lr, seed=arguments.seed),
        objective=hinge(window, encode, generator, arguments.steps),
    )
    every = max(arguments.steps // 10, 1)
    after = train.train(trainer, scene, every, label="windows", judge=judge).result
    print(
        f"digits anywhere on {CANVAS}x{CANVAS}, {arguments.clutter} pieces of others around them;"
    )
    print(f"{len(digits)} digits to train, {len(scene)} held out")
    for name, result in (("before", before), ("after", after)):
        print(f"{name}: {100 - result.error:.1f}% found (IoU > 0.5), mean IoU {result.iou:.3f}")
    pictures.show_windows(transformer, scene[:24]).savefig(arguments.out, dpi=100)
    print(f"picture: {arguments.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; 0, or 1 when there are no digits to read."""
    return perform(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
