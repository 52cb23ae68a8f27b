"""Straighten a curved line of text: a spline that is predicted from the picture, and learned.

Random words are rendered straight and bent by an arc, a slant and a change of size. A localisation
net looks at the bent line and places the control points of a thin-plate spline along its upper and
lower edge; what the spline reads is compared with the straight rendering, and that is all it learns
from. Text that it has never seen is straightened at the end.

    python -m examples.rectify_text

Source: Shi et al., "ASTER: An Attentional Scene Text Recognizer with Flexible Rectification", IEEE
TPAMI 41(9), 2019, whose rectification network learns from a recogniser instead.
"""

from __future__ import annotations

import argparse
import string
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from examples import data, pictures, train
from examples.experiments import Result
from examples.options import RUNS, add_common, check_common, check_least, check_out, perform, placed
from examples.scenes import uniform
from triton_stn import ThinPlateSpline, grid_sample
from triton_stn.nn import SpatialTransformer

HEIGHT, WIDTH = 48, 128  # of the bent picture
STRAIGHT = (24, 128)  # of the straight line
SPLINE = ThinPlateSpline(2, 8)


def words(count: int, seed: int) -> data.Digits:
    """Straight renderings (count, 1, 24, 128) of random letters and digits, as labels their index.

    White on black, in one of four fonts.
    """
    draw = np.random.default_rng(seed)
    letters = list(string.ascii_letters + string.digits)
    names = ("DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono", "STIXGeneral")
    fonts = [ImageFont.truetype(font_manager.findfont(name), 20) for name in names]
    height, width = STRAIGHT
    images = np.zeros((count, height, width), np.float32)
    for image in images:
        text = "".join(draw.choice(letters, draw.integers(5, 10)))
        canvas = Image.new("L", (width, height))
        font = fonts[draw.integers(len(fonts))]
        ImageDraw.Draw(canvas).text((width / 2, height / 2), text, 255, font, anchor="mm")
        image[:] = np.asarray(canvas, np.float32) / 255
    return data.Digits(torch.from_numpy(images)[:, None], torch.arange(count))


def bent(lines: data.Digits, pool: data.Digits, generator: torch.Generator) -> data.Scene:
    """Lines on pictures (N, 1, 48, 128), along an arc or aslant; targets: the straight lines."""
    n = len(lines)
    arc, slant, shift = uniform(generator, -1, 1, 3, n, 1, 1).to(lines.images)
    size = uniform(generator, 0.75, 1.0, n, 1, 1).to(lines.images)
    across, down = (2 * torch.arange(k).to(arc) / k + 1 / k - 1 for k in (WIDTH, HEIGHT))
    middle = 0.45 * arc * (1 - 2 * across**2) + 0.2 * slant * across + 0.1 * shift  # of the line
    y = (down[:, None] - middle) * (HEIGHT / STRAIGHT[0]) / size
    grid = torch.stack((across.expand_as(y), y), -1)
    return data.Scene(grid_sample(lines.images, grid), lines.images)


def rectifier() -> SpatialTransformer:
    """It starts with a spline that reads the middle of the picture."""
    localization = nn.Sequential(
        nn.Conv2d(1, 16, 5, 2, 2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (HEIGHT // 8) * (WIDTH // 8), 64),
        nn.ReLU(),
    )
    start = SPLINE.identity() * torch.tensor([1.0, STRAIGHT[0] / HEIGHT])
    return SpatialTransformer(localization, 64, SPLINE, STRAIGHT, theta=start)


def difference(forward: train.Forward, scene: data.Scene) -> Tensor:
    """The objective: mean square difference to the straight line, at four resolutions.

    The coarse ones pull a spline that is a letter's height off.
    """
    gap = forward(scene.images).float() - scene.targets
    return sum(F.avg_pool2d(gap, side).square().mean() * side for side in (1, 2, 4, 8))


@torch.no_grad()
def judge(transformer: nn.Module, scene: data.Scene) -> Result:
    """error: 100 less the correlation of what is read with the straight line, in percent."""
    transformer.eval()
    pairs = (transformer(scene.images).flatten(1), scene.targets.flatten(1))
    one, other = (F.normalize(x - x.mean(1, keepdim=True)) for x in pairs)
    return Result(100 * (1 - (one * other).sum(1).mean().item()))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="rectify_text", description=__doc__.splitlines()[0])
    add_common(parser, data_dir=False)
    parser.add_argument("--lines", type=int, default=4000, help="to train on (%(default)s)")
    parser.add_argument("--steps", type=int, default=2000, help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="(%(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="highest rate (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RUNS / "rectify_text.png", help="the picture")
    arguments = parser.parse_args(argv)
    check_common(parser, arguments)
    check_least(parser, arguments, 1, "lines", "steps", "batch")
    check_out(parser, arguments.out)
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Train; print the correlations, draw lines that were never seen."""
    lines = words(arguments.lines, arguments.seed).to(arguments.device)
    unseen = words(max(arguments.lines // 10, 24), arguments.seed + 1).to(arguments.device)
    generator = torch.Generator(arguments.device).manual_seed(train.HELD_OUT_SEED)
    scene = bent(unseen, unseen, generator)
    torch.manual_seed(arguments.seed)
    transformer = placed(rectifier(), arguments)
    before = judge(transformer, scene)
    settings = train.Settings(arguments.steps, arguments.batch, arguments.lr, seed=arguments.seed)
    trainer = train.Trainer(transformer, bent, lines, settings, objective=difference)
    every = max(arguments.steps // 10, 1)
    after = train.train(trainer, scene, every, label="rectifier", judge=judge).result
    print(f"{len(lines)} lines of text to train on, {len(scene)} others to test")
    for name, result in (("before", before), ("after", after)):
        print(f"{name}: correlation with the straight line {1 - result.error / 100:.3f}")
    pictures.show_windows(transformer, scene[:18], panel=2.2).savefig(arguments.out, dpi=90)
    print(f"picture: {arguments.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; 0."""
    return perform(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
