"""Augment a photograph: random maps, and the boxes and keypoints on it that follow.

Copies of a portrait are turned, moved, put in perspective, bent and flipped, each by a map of its
own, in one call: the bytes of the photograph go in, and so do the boxes around face, name and
ribbons and the points on eyes, nose, mouth and button.

    python -m examples.augment
    python -m examples.augment --seed 3 --device cuda
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.cbook import get_sample_data
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from examples.align_photo import read_photo
from examples.options import add_picture, check_least, check_picture
from triton_stn.augment import Augmented, RandomTransform
from triton_stn.geometry import MappedBoxes

# On the portrait as matplotlib ships it, 512 x 600 pixels.
BOXES = {"face": (172, 150, 364, 335), "name": (78, 482, 168, 515), "ribbons": (322, 488, 454, 526)}
POINTS = ((222, 187), (307, 187), (268, 235), (266, 278), (244, 587))
COLUMNS = 4
LEAST = 0.3  # of a box must be in view for it to be drawn


def draw(out: Path, before: Augmented, after: Augmented) -> None:
    """The photograph, and what became of each of its copies."""
    rows = -(-(1 + len(after.images)) // COLUMNS)
    figure = Figure(figsize=(2.1 * COLUMNS, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for ax in axes:
        ax.axis("off")
    draw_one(axes[0], "photograph", before, 0)
    for i in range(len(after.images)):
        draw_one(axes[1 + i], f"draw {i + 1}", after, i)
    figure.savefig(out, dpi=80)


def draw_one(ax, title: str, batch: Augmented, i: int) -> None:
    height, width = batch.images.shape[-2:]
    ax.imshow(batch.images[i].permute(1, 2, 0).cpu())
    ax.set(title=title, xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    ax.scatter(*batch.points[i].T.cpu(), s=9, color="#F0E442", edgecolors="black", linewidths=0.5)
    kept = batch.boxes.valid[i] & (batch.boxes.visible[i] >= LEAST)
    for name, (x1, y1, x2, y2), shown in zip(
        BOXES, batch.boxes.boxes[i].tolist(), kept.tolist(), strict=True
    ):
        if shown:  # pixels are drawn around their centres
            corner, line = (x1 - 0.5, y1 - 0.5), dict(fill=False, edgecolor="#56B4E9")
            ax.add_patch(Rectangle(corner, x2 - x1, y2 - y1, **line))
            ax.text(*corner, name, fontsize=6, color="white", va="bottom")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.augment", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--count", type=int, default=7, help="copies (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (%(default)s)")
    add_picture(parser, "augment.png")
    arguments = parser.parse_args(argv)
    check_least(parser, arguments, 1, "count")
    check_picture(parser, arguments)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; 0."""
    arguments = parse_arguments(argv)
    path = Path(get_sample_data("grace_hopper.jpg", asfileobj=False))
    photo = (255 * read_photo(path, 600)).round().byte().to(arguments.device)
    boxes = torch.tensor([list(BOXES.values())], dtype=torch.float32, device=photo.device)
    points = torch.tensor([POINTS], dtype=torch.float32, device=photo.device)
    everything = torch.ones(boxes.shape[:2], device=photo.device)
    before = Augmented(photo, photo, None, MappedBoxes(boxes, everything, everything > 0), points)

    change = RandomTransform(
        degrees=20, translate=(0.1, 0.1), scale=(0.7, 1.1), distortion_scale=0.3, elastic=8,
        horizontal_flip=0.5,
    )  # fmt: skip
    generator = torch.Generator(photo.device).manual_seed(arguments.seed)
    n = arguments.count
    began = time.perf_counter()
    after = change(
        photo.expand(n, -1, -1, -1),
        boxes=boxes.expand(n, -1, -1),
        points=points.expand(n, -1, -1),
        generator=generator,
    )
    seconds = time.perf_counter() - began
    kept = (after.boxes.valid & (after.boxes.visible >= LEAST)).sum().item()
    print(f"{n} copies in {seconds:.2f} s; {kept} of {n * len(BOXES)} boxes are in view")
    draw(arguments.out, before, after)
    print(f"picture: {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
