"""Align a photograph: recover a known affine warp by gradient descent through the sampler.

The photograph is warped by a known θ and gets a little noise: that is the target. Adam changes θ
until the photograph, sampled through it, looks like the target. Small copies come first: they let a
start that is far off find its way, and a normalised θ means the same at every size. On the smallest
copy several rotations start at once, K transforms of one image, and the best of them goes on.

    python -m examples.align_photo
    python -m examples.align_photo --image holiday.jpg --theta 0.8 -0.2 0.1 0.2 0.8 0 --device cuda
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.cbook import get_sample_data
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from PIL import Image, ImageOps
from tabulate import tabulate
from tqdm import tqdm

from examples.options import add_picture, check_least, check_picture
from triton_stn import geometry, spatial_transform

STARTS = 8  # rotations tried on the smallest copy, evenly spread; the first is the identity
TOLERANCE = 0.5  # pixels of the photograph, at the worst of the four corners
COARSEST = 32  # pixels on the longer side of the smallest copy
NOISE = 0.02  # standard deviation of the target's noise; intensities lie in [0, 1]
COLORS = {"true": "#2ca02c", "start": "#ff7f0e", "recovered": "#e8178a"}


def read_photo(path: Path, size: int) -> torch.Tensor:
    """An image file as (1, 3, H, W) in [0, 1], shrunk until its longer side is ``size``."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file).convert("RGB")
    photo = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    return shrink(photo, size)


def shrink(images: torch.Tensor, size: int) -> torch.Tensor:
    """Antialiased copy of (N, C, H, W) with its longer side at most ``size``."""
    h, w = images.shape[-2:]
    scale = min(1.0, size / max(h, w))
    shape = (max(1, round(h * scale)), max(1, round(w * scale)))
    return F.interpolate(images, shape, mode="bilinear", antialias=True)


def default_theta(h: int, w: int) -> torch.Tensor:
    """Rotation by 20°, shear, a scale for each axis and a translation."""
    angle = math.radians(20)
    options = dict(scale=(0.75, 0.9), shear=(0.15, 0.0), translation=(0.15, -0.1))
    return geometry.affine((h, w), rotation=angle, **options)


def corner_error(theta: torch.Tensor, true: torch.Tensor, h: int, w: int) -> float:
    """The largest distance between the corners of two θ, in pixels of the (h, w) input."""
    corners = geometry.quadrilateral(torch.stack((theta, true)).detach().double(), (h, w))
    return (corners[0] - corners[1]).norm(dim=1).max().item()


def in_view(sampled: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Which pixels both images with masks (..., C+1, H, W) see in full: (..., 1, H, W)."""
    return torch.minimum(sampled[..., -1:, :, :], target[..., -1:, :, :]).detach() > 0.99


def alignment_loss(sampled: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean square difference over what both see: (N, K, C+1, H, W), (N, C+1, H, W) -> (N, K)."""
    target = target[:, None]
    visible = in_view(sampled, target)
    gap = torch.where(visible, sampled - target, 0.0)[:, :, :-1]
    count = visible.sum((2, 3, 4))
    # A start that hardly meets the target must not win by that.
    lost = count < 0.1 * visible[0, 0].numel()
    return gap.square().mean(2).sum((2, 3)) / count.clamp(min=1) + lost


def align(source, target, true: torch.Tensor, steps: int) -> list[torch.Tensor]:
    """Every θ (2, 3) on the way from the start that won to the result, for images with masks.

    ``true`` serves the progress bar only.
    """
    h, w = source.shape[-2:]
    sizes = [max(h, w)]
    while sizes[0] > COARSEST:
        sizes.insert(0, max(COARSEST, (sizes[0] + 1) // 2))
    angles = torch.arange(STARTS) * (2 * math.pi / STARTS)
    theta = geometry.affine((h, w), rotation=angles)[None].to(source)  # (1, K, 2, 3)
    trail = [theta.clone()]
    with tqdm(total=steps * len(sizes), unit="step", disable=steps == 0) as bar:
        for level, size in enumerate(sizes):
            small_source, small_target = shrink(source, size), shrink(target, size)
            bar.set_description(f"{small_source.shape[-1]}x{small_source.shape[-2]}")
            theta = theta.detach().requires_grad_()
            # In θ a pixel is half as large at the next size, and what is left to mend is smaller.
            optimizer = torch.optim.Adam([theta], lr=0.03 / 3**level, betas=(0.9, 0.98))
            decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, max(steps, 1))
            best = 0
            for _ in range(steps):
                optimizer.zero_grad()
                losses = alignment_loss(spatial_transform(small_source, theta), small_target)
                losses.sum().backward()
                best = int(losses.argmin())
                optimizer.step()
                decay.step()
                trail.append(theta.detach().clone())
                error = corner_error(theta[0, best], true, h, w)
                bar.set_postfix_str(f"corners {error:.3f} px", refresh=False)
                bar.update()
            if level == 0:
                theta, trail = theta[:, best, None], [t[:, best, None] for t in trail]
    return [t[0, 0] for t in trail]


def draw(path: Path, source, target, thetas: dict[str, torch.Tensor], errors) -> None:
    """Write the picture: source with quadrilaterals, target, start, result, and what differs."""

    def show(axes, image, title, **options):
        axes.imshow(image[0].clamp(0, 1).permute(1, 2, 0).cpu().numpy(), **options)
        axes.set(title=title, xticks=[], yticks=[])

    h, w = source.shape[-2:]
    start, result = (spatial_transform(source, thetas[name]) for name in ("start", "recovered"))
    figure = Figure(figsize=(13, 1.5 + 6.2 * h / w if h < 1.4 * w else 10), layout="constrained")
    grid = figure.add_gridspec(2, 4)

    axes = figure.add_subplot(grid[0, 0])
    show(axes, source[:, :-1], "source, and what θ reads of it")
    corners = {
        name: geometry.quadrilateral(theta.cpu(), (h, w)).numpy() for name, theta in thetas.items()
    }
    for name, points in corners.items():
        style, width = ("--" if name == "recovered" else "-"), (4 if name == "true" else 2)
        axes.add_patch(Polygon(points, fill=False, label=name, ec=COLORS[name], ls=style, lw=width))
    everything, margin = np.concatenate([*corners.values(), [[0, 0], [w, h]]]), 0.03 * max(h, w)
    (x0, y0), (x1, y1) = everything.min(0) - margin, everything.max(0) + margin
    axes.set(xlim=(x0, x1), ylim=(y1, y0), facecolor="0.9")  # y points down
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, fontsize=9, frameon=False)

    titles = ("target", f"start, the best of {STARTS}", "result")
    for column, image in enumerate((target, start, result), 1):
        show(figure.add_subplot(grid[0, column]), image[:, :-1], titles[column - 1])

    axes = figure.add_subplot(grid[1, :2])
    axes.semilogy(np.maximum(errors, 1e-4), color=COLORS["recovered"])
    axes.axhline(TOLERANCE, color="0.4", linestyle=":", label=f"aligned: below {TOLERANCE} px")
    axes.set(title="error of the worst corner", xlabel="step, over all sizes", ylabel="pixels")
    axes.legend(frameon=False)
    axes.margins(x=0)
    for column, image, name in ((2, start, "start"), (3, result, "result")):
        gap = (image - target)[:, :-1].abs().mean(1, keepdim=True) * in_view(image, target)
        axes, title = figure.add_subplot(grid[1, column]), f"|{name} - target|, 3 times"
        show(axes, 3 * gap, title, cmap="gray", vmin=0, vmax=1)
    figure.savefig(path, dpi=100, bbox_inches="tight")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="align_photo", description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, help="a photograph (default: one of matplotlib's)")
    add_picture(parser, "align_photo.png")
    parser.add_argument("--theta", type=float, nargs=6, metavar="T", help="the true θ, row by row")
    parser.add_argument("--size", type=int, default=512, help="longer side, pixels (%(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="steps at each size (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the target's noise (%(default)s)")
    arguments = parser.parse_args(argv)
    check_least(parser, arguments, COARSEST, "size")
    if arguments.steps < 0:
        parser.error(f"--steps must not be negative, got {arguments.steps}")
    check_picture(parser, arguments)
    if arguments.theta and not all(map(math.isfinite, arguments.theta)):
        parser.error(f"--theta must be six finite numbers, got {arguments.theta}")
    path = arguments.image or Path(get_sample_data("grace_hopper.jpg", asfileobj=False))
    try:
        arguments.photo = read_photo(path, arguments.size)
    except (OSError, Image.DecompressionBombError) as error:
        parser.error(f"can not read the image {str(path)!r}: {error}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; 0 when every corner is within half a pixel, else 1."""
    arguments = parse_arguments(argv)
    photo = arguments.photo.to(arguments.device)
    # A channel of ones, sampled along, says how much of an output pixel is in view.
    source = torch.cat([photo, torch.ones_like(photo[:, :1])], dim=1)
    h, w = source.shape[-2:]
    true = torch.tensor(arguments.theta).view(2, 3) if arguments.theta else default_theta(h, w)
    true = true.to(source)
    target = spatial_transform(source, true)
    if not (target[:, -1] > 0.99).any():
        print(f"the true θ, {true.tolist()}, sees none of the photograph", file=sys.stderr)
        return 1
    noise = torch.randn(h, w, generator=torch.Generator().manual_seed(arguments.seed))
    target[:, :-1] += NOISE * target[:, -1:] * noise.to(source)

    began = time.perf_counter()
    trail = align(source, target, true, arguments.steps)
    elapsed = time.perf_counter() - began
    errors = [corner_error(theta, true, h, w) for theta in trail]

    names = [f"θ{row}{column}" for row in range(2) for column in range(3)]
    values = torch.stack([true, trail[-1], trail[-1] - true]).flatten(1).T.tolist()
    rows = [[name, *row] for name, row in zip(names, values, strict=True)]
    print(tabulate(rows, ["", "true", "recovered", "error"], floatfmt=("", ".5f", ".5f", "+.1e")))
    print(f"corner error: {errors[0]:.1f} px at the start, {errors[-1]:.4f} px at the end")
    print(f"{w}x{h} pixels, {len(errors) - 1} steps on {source.device}, {elapsed:.1f} s")
    thetas = {"start": trail[0], "true": true, "recovered": trail[-1]}
    draw(arguments.out, source, target, thetas, errors)
    print(f"picture: {arguments.out}")
    if not errors[-1] < TOLERANCE:
        print(f"did not converge: {errors[-1]:.2f} px is over {TOLERANCE} px", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
