"""Train the tutorial's spatial transformer network on real digits, upright or turned.

The localisation net and the classifier are those of PyTorch's spatial transformer tutorial; any
transform of the library stands between them. ``--compare`` trains the same classifier without its
transformer too, on the same digits, and prints both. The tutorial trains by SGD (0.01, batches of
64, 20 epochs); here Adam takes a one-cycle schedule over as many batches, and the localisation net
learns at a tenth of the rate, as for the street-view numbers of Jaderberg et al. 2015.

    python -m examples.mnist --data-dir MNIST
    python -m examples.mnist --data-dir MNIST --rotate 90 --compare
    python -m examples.mnist --transform tps
"""

from __future__ import annotations

import argparse
import gzip
import math
import struct
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from triton_stn import plot, spatial_transform, use_backend
from triton_stn.nn import SpatialTransformer, parameter_groups
from triton_stn.transforms import ThinPlateSpline

SIZE = 28  # pixels a side, which the networks are made for
IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049
TRAINING_SHARE = 0.8  # of the digits, the first; the rest is held out
TRANSFORMS = {
    "affine": "affine",
    "attention": "attention",
    "similarity": "similarity",
    "projective": "projective",
    "tps": ThinPlateSpline(4, 4),
}


class DataError(Exception):
    """Digits that can not be read; the message names the file."""


@dataclass
class Digits:
    """images (N, 1, 28, 28) in [0, 1], labels (N,) int64."""

    images: torch.Tensor
    labels: torch.Tensor

    def __getitem__(self, index) -> Digits:
        return Digits(self.images[index], self.labels[index])

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Digits:
        return Digits(self.images.to(device), self.labels.to(device))


def read_idx(path: Path, magic: int) -> np.ndarray:
    """An IDX file of bytes, gzipped or not: (N, H, W) for images, (N,) for labels.

    The format: big-endian int32s, magic (its last byte is the number of dimensions) and sizes, then
    the bytes. Source: http://yann.lecun.com/exdb/mnist.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise DataError(f"there is no file {str(path)!r}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"can not read {str(path)!r}, is it truncated? {error}") from None
    header = 4 * (1 + magic % 256)
    if len(content) < header:
        raise DataError(f"{str(path)!r} is truncated: {len(content)} bytes, no whole header")
    found, *shape = struct.unpack(f">{header // 4}i", content[:header])
    if found != magic:
        kind = "images" if magic == IMAGES_MAGIC else "labels"
        raise DataError(
            f"{str(path)!r} has the wrong magic number {found}, {magic} is that of {kind}"
        )
    if len(content) - header != math.prod(shape):
        raise DataError(
            f"{str(path)!r} must hold {' x '.join(map(str, shape))} bytes after its header, "
            f"got {len(content) - header}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_mnist(folder: Path) -> Digits:
    """The 10,000 digits of MNIST's test files."""
    paths = []
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        plain = folder / name
        paths.append(plain if plain.exists() else folder / f"{name}.gz")
    images, labels = (
        read_idx(path, magic)
        for path, magic in zip(paths, (IMAGES_MAGIC, LABELS_MAGIC), strict=True)
    )
    if len(images) != len(labels) or len(images) < 2:
        raise DataError(
            f"{str(folder)!r} must hold a label for each of at least 2 images, "
            f"got {len(images)} images and {len(labels)} labels"
        )
    if images.shape[1:] != (SIZE, SIZE):
        raise DataError(f"{str(paths[0])!r} must hold {SIZE}x{SIZE} images, got {images.shape[1:]}")
    if labels.max() > 9:
        raise DataError(f"{str(paths[1])!r} must hold labels from 0 to 9, got {labels.max()}")
    return Digits(
        torch.from_numpy(images / np.float32(255))[:, None], torch.from_numpy(labels.astype(int))
    )


def small_digits() -> Digits:
    """The 1,797 digits of 8x8 pixels that scikit-learn ships, enlarged."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(
            "without --data-dir the digits are scikit-learn's, which is not installed: "
            "pip install scikit-learn, or give --data-dir, a folder with MNIST's "
            "t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz"
        ) from None
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    images = spatial_transform(images, torch.eye(2, 3), SIZE, padding_mode="border")
    return Digits(images, torch.from_numpy(digits.target).long())


def turn(images: torch.Tensor, degrees: float, generator: torch.Generator) -> torch.Tensor:
    """Each image turned by an angle of its own, uniform in ±degrees."""
    if degrees == 0:
        return images
    angle = (2 * torch.rand(len(images), generator=generator) - 1) * math.radians(degrees)
    one, zero = torch.ones_like(angle), torch.zeros_like(angle)
    theta = torch.stack((one, angle, zero, zero), 1)  # scale, angle, translation
    return spatial_transform(images, theta.to(images), transform="similarity")


class Network(nn.Module):
    """The tutorial's network: (N, 1, 28, 28) -> logits (N, 10); ``transform`` None: without it."""

    def __init__(self, transform: str | None):
        super().__init__()
        localization = nn.Sequential(
            nn.Conv2d(1, 8, 7),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(8, 10, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(90, 32),
            nn.ReLU(),
        )
        self.transformer = (
            SpatialTransformer(localization, 32, TRANSFORMS[transform]) if transform else None
        )
        self.classifier = nn.Sequential(
            nn.Conv2d(1, 10, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(10, 20, 5),
            nn.Dropout2d(),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(320, 50),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(50, 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.transformer(x) if self.transformer else x)


def train(
    network: Network,
    digits: Digits,
    degrees: float,
    epochs: int,
    lr: float,
    localization_lr_scale: float,
    seed: int,
) -> list[float]:
    """Train on digits turned anew in every batch; the mean loss of each epoch."""
    generator = torch.Generator().manual_seed(seed)
    device = digits.images.device
    batches = math.ceil(len(digits) / 64)
    groups = parameter_groups(network, lr, localization_lr_scale)
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in groups], total_steps=max(epochs * batches, 1)
    )
    network.train()
    losses = []
    with tqdm(total=epochs * batches, unit="batch") as bar:
        for epoch in range(epochs):
            bar.set_description(f"seed {seed}, epoch {epoch + 1}/{epochs}")
            total = 0.0
            for index in torch.randperm(len(digits), generator=generator).to(device).split(64):
                batch = digits[index]
                optimizer.zero_grad()
                loss = F.cross_entropy(
                    network(turn(batch.images, degrees, generator)), batch.labels
                )
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.detach() * len(batch)
                bar.update()
            losses.append(float(total) / len(digits))
            bar.set_postfix_str(f"loss {losses[-1]:.3f}")
    return losses


@torch.no_grad()
def accuracy(network: Network, digits: Digits) -> float:
    """Percent of the digits that are told right."""
    network.eval()
    right = 0
    for index in torch.arange(len(digits), device=digits.images.device).split(500):
        batch = digits[index]
        right += int((network(batch.images).argmax(1) == batch.labels).sum())
    return 100 * right / len(digits)


@torch.no_grad()
def draw(path: Path, network: Network, digits: Digits) -> None:
    """The picture: digits with the outlines of what the transformer reads, beside its outputs."""
    network.eval()
    images = digits.images[:24]
    output, theta = network.transformer(images, return_theta=True)
    transform = network.transformer.transform
    plot.show(images, theta, output, transform, limit=24).savefig(path, dpi=100)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mnist", description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="MNIST's t10k files (default: 8x8 digits)")
    parser.add_argument("--transform", choices=TRANSFORMS, default="affine")
    parser.add_argument("--backend", choices=("auto", "triton", "torch"), default="auto")
    parser.add_argument("--device", help="a torch device (default: cuda where there is one)")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (%(default)s)")
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
    parser.add_argument("--out", type=Path, default=Path("mnist.png"), help="the picture")
    arguments = parser.parse_args(argv)
    if arguments.threads < 1:
        parser.error(f"--threads must be at least 1, got {arguments.threads}")
    if arguments.epochs < 0:
        parser.error(f"--epochs must not be negative, got {arguments.epochs}")
    for name in ("lr", "localization_lr_scale"):
        if not getattr(arguments, name) > 0:
            option = name.replace("_", "-")
            parser.error(f"--{option} must be above 0, got {getattr(arguments, name)}")
    if not 0 <= arguments.rotate <= 180:
        parser.error(f"--rotate must lie between 0 and 180 degrees, got {arguments.rotate}")
    if not arguments.out.parent.is_dir():
        parser.error(f"--out: there is no folder {str(arguments.out.parent)!r}")
    arguments.seeds = arguments.seeds or ([0, 1, 2] if arguments.compare else [0])
    arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=arguments.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {arguments.device!r} can not be used: {error}")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Train a network for each seed, and each kind to compare; print the table; draw the last."""
    digits = read_mnist(arguments.data_dir) if arguments.data_dir else small_digits()
    digits = digits.to(arguments.device)
    split = int(TRAINING_SHARE * len(digits))
    training, held_out = digits[:split], digits[split:]
    # One angle for each held-out digit, the same for every network.
    held_out.images = turn(held_out.images, arguments.rotate, torch.Generator().manual_seed(0))
    turned = f"turned by up to {arguments.rotate:g}°" if arguments.rotate else "upright"
    print(f"{len(training)} digits to train, {len(held_out)} held out, {turned}")

    rows = []
    for transform in [None] * arguments.compare + [arguments.transform]:
        percents, began = [], time.perf_counter()
        for seed in arguments.seeds:
            torch.manual_seed(seed)
            network = Network(transform).to(arguments.device)
            rates = arguments.lr, arguments.localization_lr_scale
            train(network, training, arguments.rotate, arguments.epochs, *rates, seed)
            percents.append(accuracy(network, held_out))
        seconds = (time.perf_counter() - began) / len(percents)
        name = f"{transform} transformer" if transform else "no transformer"
        rows.append([name, *percents, sum(percents) / len(percents), f"{seconds:.0f}"])
    seeds = [f"seed {seed}" for seed in arguments.seeds]
    print("held-out accuracy, %")
    print(tabulate(rows, ["", *seeds, "mean", "s a training"], floatfmt=".2f"))
    draw(arguments.out, network, held_out)
    print(f"picture: {arguments.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; 0, or 1 when there are no digits to read."""
    arguments = parse_arguments(argv)
    # On batches this small, threads gain little; on a busy machine they wait for each other.
    torch.set_num_threads(arguments.threads)
    try:
        with use_backend(arguments.backend):
            run(arguments)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
