"""What a network looks at, drawn: its first transformer's outlines and outputs, and its answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from examples.data import NO_DIGIT, Scene
from examples.models import transformers
from triton_stn import Affine, plot
from triton_stn.nn import SpatialTransformer


def can_draw(network: nn.Module) -> bool:
    """Whether there is a transformer."""
    return bool(transformers(network))


@torch.no_grad()
def show(network: nn.Module, scene: Scene, title: str = "") -> Figure:
    """Images with what the first transformer reads of them, beside what it hands on.

    Above each stands what the network answers, and what is right where that is something else. The
    network is left in evaluation mode.
    """
    network.eval()
    answers = [text(answer) for answer in network(scene.images).argmax(1)]
    titles = [
        answer if answer == right else f"{answer}, is {right}"
        for answer, right in zip(answers, map(text, scene.targets), strict=True)
    ]
    columns = 3 if len(scene.images) > 6 else 2  # the same for every frame of an animation
    return show_windows(transformers(network)[0], scene, titles, title, columns=columns)


@torch.no_grad()
def show_windows(
    transformer: SpatialTransformer,
    scene: Scene,
    titles: Sequence[str] | None = None,
    title: str = "",
    panel: float = 1.3,
    columns: int | None = None,
) -> Figure:
    """The same of a transformer alone; ``panel``: an image's width in inches.

    Volumes are seen from the front, with the outline of the output's middle slice.
    """
    images, transform = scene.images, transformer.transform
    theta = transformer.predict(images)
    output = transformer.sample(images, theta)
    if images.ndim == 5:
        images, output = (flat / flat.amax() for flat in (images.mean(2), output.mean(2)))
        theta, transform = theta[..., :2, [0, 1, 3]], Affine()
    figure = plot.show(
        visible(images),
        theta,
        visible(output),
        transform,
        transformer.align_corners,
        titles=titles,
        limit=24,
        panel=panel,
        columns=columns,
    )
    if title:
        figure.suptitle(title, fontsize=9)
    return figure


def visible(images: Tensor) -> Tensor:
    """(..., C, H, W) with one channel or three: two are laid over each other."""
    return images if images.shape[-3] in (1, 3) else images.sum(-3, keepdim=True).clamp(max=1)


def text(target: Tensor) -> str:
    """A class as its number; a sequence as its digits."""
    if target.ndim == 0:
        return str(target.item())
    return "".join(str(digit) for digit in target.tolist() if digit != NO_DIGIT) or "none"


def pixels(figure: Figure) -> np.ndarray:
    """(H, W, 3), uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def animate(path: Path, frames: list[np.ndarray], milliseconds: int = 250) -> None:
    """A GIF that repeats, and rests on its last frame."""
    # What a transformer reads may lie outside of the image, and such a frame is taller.
    size = np.max([frame.shape for frame in frames], 0)
    frames = [np.pad(f, [(0, n) for n in size - f.shape], constant_values=255) for f in frames]
    # One palette for all: where frames have their own, traces of one stay in the next.
    common = Image.fromarray(np.concatenate((frames[0], frames[-1]))).quantize(64)
    images = [Image.fromarray(f).quantize(palette=common, dither=Image.Dither.NONE) for f in frames]
    duration = [milliseconds] * (len(images) - 1) + [8 * milliseconds]
    first, *rest = images
    first.save(path, save_all=True, append_images=rest, duration=duration, loop=0)
