"""What there is to train: scenes of digits, the networks for them, and how a result is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from examples import data, models, scenes
from examples.data import LONGEST, Digits, Scene
from examples.models import Shape
from triton_stn import geometry
from triton_stn.nn import SpatialTransformer

SINGLE = ("st-cnn", "st-fcn", "cnn", "fcn")
READERS = ("reader-multi", "reader-single", "reader")


@dataclass(frozen=True)
class Experiment:
    """Scenes, and the networks that learn to read them; the first of these is the default.

    scene: (digits, pool, generator) -> Scene. read: a folder -> digits to train on, held out.
    localization_lr_scale: of the transformers' learning rate, where none is asked for.
    """

    says: str
    scene: Callable[[Digits, Digits, Generator], Scene]
    shape: Shape
    networks: tuple[str, ...]
    read: Callable[[Path | None], tuple[Digits, Digits]] = data.load
    localization_lr_scale: float = 1.0

    def network(self, name: str, transform: str = "affine", **changes) -> nn.Module:
        """``changes`` are of the shape: ``capacity``, ``filters``, ``crop``."""
        return models.MODELS[name](replace(self.shape, **changes), transform)


def _square(side: int, channels: int = 1, **rest) -> Shape:
    return Shape((channels, side, side), **rest)


NUMBER = _square(64, 3, classes=11, answers=LONGEST, filters=16)
EXPERIMENTS = {
    "upright": Experiment(
        "digits as they are",
        partial(scenes.rotated, degrees=0),
        _square(28),
        ("tutorial", "tutorial-cnn", *SINGLE),
    ),
    "r": Experiment(
        "R: turned by up to ±90°",
        scenes.rotated,
        _square(28),
        (*SINGLE, "tutorial", "tutorial-cnn"),
    ),
    "rts": Experiment(
        "RTS: turned by up to ±45°, scaled by 0.7 to 1.2, anywhere on 42x42",
        scenes.rotated_scaled_translated,
        _square(42),
        SINGLE,
    ),
    "p": Experiment("P: in perspective", scenes.projected, _square(28), SINGLE),
    "e": Experiment("E: bent by a spline", scenes.elastic, _square(28), SINGLE),
    "t": Experiment("T: anywhere on 60x60", scenes.translated, _square(60, zoom=0.5), SINGLE),
    "tc": Experiment(
        "TC: anywhere on 60x60, in clutter", scenes.cluttered, _square(60, zoom=0.5), SINGLE
    ),
    "addition": Experiment(
        "the sum of two digits, each distorted as RTS",
        scenes.addition,
        _square(42, 2, classes=19, crop=20),
        ("2st-fcn", "st-fcn", "cnn", "fcn"),
    ),
    "sequences-64": Experiment(
        "numbers of one to five digits in colour, 64x64",
        scenes.sequences,
        NUMBER,
        READERS,
        localization_lr_scale=0.1,
    ),
    "sequences-128": Experiment(
        "the same, anywhere on 128x128",
        partial(scenes.sequences, size=128),
        replace(NUMBER, image=(3, 128, 128)),
        READERS,
        localization_lr_scale=0.1,
    ),
    "svhn": Experiment(
        "street-view house numbers, 64x64; --data-dir holds their train and test folders",
        lambda numbers, pool, generator: numbers,
        NUMBER,
        READERS,
        data.load_svhn,
        localization_lr_scale=0.1,
    ),
    "birds": Experiment(
        "25 kinds of bird, told by head and body, 84x84",
        scenes.birds,
        _square(84, classes=25, crop=42),
        ("2st-cnn", "4st-cnn", "cnn"),
    ),
    "volume": Experiment(
        "digits drawn out in depth and turned, 60x60x60",
        scenes.extruded,
        Shape((1, 60, 60, 60)),
        ("st-3d", "cnn-3d"),
        localization_lr_scale=0.1,  # at 1 what it reads leaves the volume
    ),
    "large": Experiment(
        "a digit of 112 pixels on 512x512, in colour and clutter",
        scenes.enlarged,
        _square(512, 3, crop=48),
        ("large", "large-cnn"),
    ),
}


@dataclass(frozen=True)
class Result:
    """error: percent of the scenes with a wrong answer; iou: what the first transformer reads, with
    the object's box, mean over the scenes that have one.
    """

    error: float
    iou: float | None = None


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy, the mean over samples and answers."""
    return F.cross_entropy(logits.float(), targets)


@torch.no_grad()
def measure(network: nn.Module, scene: Scene, batch: int = 250) -> Result:
    """On held-out scenes; the network is left in evaluation mode."""
    network.eval()
    wrong = []
    for part in parts(scene, batch):
        miss = network(part.images).argmax(1) != part.targets
        wrong.append(miss.flatten(1).any(1) if miss.ndim > 1 else miss)
    error = 100 * torch.cat(wrong).float().mean().item()
    found = models.transformers(network)
    if not found or scene.boxes is None:
        return Result(error)
    return Result(error, overlaps(found[0], scene, batch).mean().item())


def parts(scene: Scene, batch: int) -> Iterator[Scene]:
    for index in torch.arange(len(scene), device=scene.targets.device).split(batch):
        yield scene[index]


def overlaps(transformer: SpatialTransformer, scene: Scene, batch: int = 250) -> Tensor:
    """(N,): IoU of the box around what the transformer reads with the object's."""
    return torch.cat(
        [
            iou(read_box(transformer, transformer.predict(part.images), part.images), part.boxes)
            for part in parts(scene, batch)
        ]
    )


def read_box(transformer: SpatialTransformer, theta: Tensor, images: Tensor) -> Tensor:
    """(..., 4): left, top, right, bottom edge in pixels of the box around all that θ reads."""
    size = images.shape[-2:]
    outline = geometry.quadrilateral(
        theta,
        size,
        transformer.output_size or tuple(size),
        transformer.align_corners,
        transform=transformer.transform,
        points_per_edge=1 if transformer.transform.is_affine else 16,
    )
    return torch.cat((outline.amin(-2), outline.amax(-2)), -1) + 0.5


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 4)."""
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(
        min=0
    )
    of_both = shared.prod(-1)
    areas = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    return of_both / (areas - of_both)
