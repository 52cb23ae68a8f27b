"""Warp a frame by optical flow, and mask what the other frame does not show.

Two frames of a scene: a photograph pans while a balloon in front of it moves on its own. The flow
from the first frame to the second is known; ``flow_warp`` fetches the second frame back onto the
first. Where the balloon now hides the background, what is fetched is wrong: those pixels are found
by following the flow there and back, and left out.

    python -m examples.warp_flow
    python -m examples.warp_flow --frames a.png b.png --flow forward.npy backward.npy
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.cbook import get_sample_data
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from PIL import Image
from tabulate import tabulate
from torch import Tensor

from examples.align_photo import read_photo
from examples.options import add_picture, check_least, check_picture
from triton_stn import flow_warp, geometry

PAN, STEP = (9.5, 4.25), (-14.5, 10.25)  # pixels that background and balloon move, (x, y)


@dataclass
class Pair:
    """Two frames (1, 3, H, W) and the flow (1, 2, H, W) from each to the other, in pixels."""

    first: Tensor
    second: Tensor
    forward: Tensor
    backward: Tensor


def moving_scene(photo: Tensor, pan=PAN, step=STEP) -> Pair:
    """A photograph that pans, and a striped balloon before it that moves by ``step``."""
    h, w = photo.shape[-2:]
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    y, x = y.to(photo), x.to(photo)

    def displacement(by) -> Tensor:
        return torch.tensor(by).to(photo).view(1, 2, 1, 1).expand(1, 2, h, w)

    def balloon(centre) -> tuple[Tensor, Tensor]:
        across, down = x - centre[0], y - centre[1]
        stripes = 0.5 + 0.4 * torch.sin(torch.stack((across / 5, across / 9 + 1, down / 7)))
        return stripes[None], (across**2 + down**2 < (min(h, w) / 7) ** 2)[None, None]

    start = (0.8 * w, 0.25 * h)
    stripes, here = balloon(start)
    moved, there = balloon((start[0] + step[0], start[1] + step[1]))
    first = torch.where(here, stripes, photo)
    second = torch.where(there, moved, flow_warp(photo, -displacement(pan)))
    forward = torch.where(here, displacement(step), displacement(pan))
    backward = torch.where(there, -displacement(step), -displacement(pan))
    return Pair(first, second, forward, backward)


def occlusion(forward: Tensor, backward: Tensor) -> Tensor:
    """Which pixels of the first frame the second does not show: bool (N, 1, H, W).

    Forth by the flow and back by the other, one must come to where one started; and the flow must
    not lead out of the picture. Source: Sundaram, Brox and Keutzer, "Dense Point Trajectories by
    GPU-Accelerated Large Displacement Optical Flow", ECCV 2010, equation 5.
    """
    back = flow_warp(backward, forward, padding_mode="border")
    gap = (forward + back).square().sum(1, keepdim=True)
    length = (forward.square() + back.square()).sum(1, keepdim=True)
    seen = geometry.flow_inside_mask(forward, backward.shape[2:])[:, None]
    return (gap > 0.01 * length + 0.5) | ~seen


def error(a: Tensor, b: Tensor, mask: Tensor) -> float:
    """Mean absolute difference where the mask is true; NaN where it is nowhere."""
    return (a - b).abs().mean(1, keepdim=True)[mask].mean().item()


def color_of(flow: Tensor) -> np.ndarray:
    """(1, 2, H, W) as colours (H, W, 3): the hue is the direction, the saturation the length."""
    x, y = flow[0].cpu().double().numpy()
    length = np.hypot(x, y)
    hue = (np.arctan2(y, x) / (2 * np.pi)) % 1
    return hsv_to_rgb(np.stack((hue, length / max(length.max(), 1e-9), np.ones_like(x)), -1))


def draw(path: Path, pair: Pair, warped: Tensor, hidden: Tensor) -> None:
    def picture(image: Tensor) -> np.ndarray:
        return image[0].clamp(0, 1).permute(1, 2, 0).cpu().numpy()

    masked = torch.where(hidden, torch.tensor([0.9, 0.1, 0.5]).to(warped).view(1, 3, 1, 1), warped)
    panels = {
        "first frame": picture(pair.first),
        "second frame": picture(pair.second),
        "flow, first to second": color_of(pair.forward),
        "second frame, fetched back": picture(warped),
        "|fetched - first|, 3 times": picture(3 * (warped - pair.first).abs()),
        "fetched, what is hidden left out": picture(masked),
    }
    h, w = warped.shape[-2:]
    figure = Figure(figsize=(12, 0.6 + 8 * h / w), layout="constrained")
    for i, (title, image) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(2, 3, i)
        axes.imshow(image)
        axes.set(title=title, xticks=[], yticks=[])
    figure.savefig(path, dpi=90)


def read_pair(frames: Sequence[Path], flows: Sequence[Path]) -> Pair:
    """Of image files and NumPy files (H, W, 2) or (2, H, W).

    Raises:
        ValueError, OSError: a file that can not be read, or of another size.
    """
    images = []
    for path in frames:
        with Image.open(path) as file:
            pixels = np.array(file.convert("RGB"))
        images.append(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    size = images[0].shape[-2:]
    fields = []
    for path in flows:
        field = torch.from_numpy(np.load(path)).float()
        field = field if field.shape[:1] == (2,) else field.movedim(-1, 0)
        fields.append(field[None])
    for path, tensor in zip((*frames, *flows), (*images, *fields), strict=True):
        if tensor.shape[-2:] != size or tensor.ndim != 4:
            raise ValueError(
                f"{str(path)!r} must be of {size[0]}x{size[1]} pixels as the first frame, "
                f"got {tuple(tensor.shape)}"
            )
    return Pair(*images, *fields)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="warp_flow", description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=Path, nargs=2, metavar="IMAGE", help="of your own")
    parser.add_argument(
        "--flow", type=Path, nargs=2, metavar="NPY", help="forward and backward, pixels, (x, y)"
    )
    parser.add_argument("--size", type=int, default=384, help="longer side, pixels (%(default)s)")
    add_picture(parser, "warp_flow.png")
    arguments = parser.parse_args(argv)
    if (arguments.frames is None) != (arguments.flow is None):
        parser.error("--frames and --flow go together")
    check_least(parser, arguments, 64, "size")
    check_picture(parser, arguments)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; 0, or 1 when a file can not be read."""
    arguments = parse_arguments(argv)
    try:
        if arguments.frames:
            pair = read_pair(arguments.frames, arguments.flow)
        else:
            path = Path(get_sample_data("grace_hopper.jpg", asfileobj=False))
            pair = moving_scene(read_photo(path, arguments.size))
    except (OSError, ValueError) as problem:
        print(problem, file=sys.stderr)
        return 1
    pair = Pair(*(tensor.to(arguments.device) for tensor in vars(pair).values()))
    warped = flow_warp(pair.second, pair.forward, padding_mode="border")
    hidden = occlusion(pair.forward, pair.backward)
    everywhere = torch.ones_like(hidden)
    rows = [
        ["second frame as it is", error(pair.second, pair.first, everywhere)],
        ["fetched back, everywhere", error(warped, pair.first, everywhere)],
        ["fetched back, what is hidden", error(warped, pair.first, hidden)],
        ["fetched back, the rest", error(warped, pair.first, ~hidden)],
    ]
    print(tabulate(rows, ["", "mean |difference|"], floatfmt=".5f"))
    print(f"hidden: {100 * hidden.float().mean().item():.1f}% of the pixels")
    draw(arguments.out, pair, warped, hidden)
    print(f"picture: {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
