"""Register two volumes: an affine map first, then a field that folds nowhere.

Both are digits drawn out in depth, of one kind but not of one hand, and one is turned, scaled and
moved. Adam changes an affine θ until the moving volume, sampled through it, looks like the fixed
one; then a stationary velocity field, whose flow (``nn.integrate_velocity``) bends it the rest of
the way. Small copies come first. The overlap is Dice's, of what is brighter than half the range.

    python -m examples.register --data-dir MNIST
    python -m examples.register --fixed atlas.npy --moving subject.npy --device cuda
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from examples import data, scenes
from examples.options import add_picture, check_least, check_picture
from triton_stn import Affine, flow_warp, geometry, nn, spatial_transform

COARSEST = 15  # voxels on the longest side of the smallest copy
POSE = dict(angles=(0.3, -0.35, 0.3), scale=1.0, centre=(0.12, -0.1, 0.08))  # of the moving digit
TURN = 0.5  # radians about each axis, either way: where the affine map starts, besides at none
HANDS = 20  # of which the likest is taken
SQUARINGS = 5  # of a velocity of a few pixels, which 2^-5 makes a fraction of one
SMALLEST = 0.2  # of the Jacobian's determinant: a cell that is squeezed more is held back
LEVEL = 0.5  # what is brighter is the object


def digit_pair(folder: Path | None, digit: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """(fixed, moving) (1, 1, size³): a digit drawn at random, and the likest of some other hands'.

    Hands that are not alike differ in their holes, which no field that folds nowhere can mend.
    """
    digits, _ = data.load(folder)
    kind = digits.of(digit, digit + 1).images
    if len(kind) < 2:
        raise data.DataError(f"there must be at least 2 digits {digit}, got {len(kind)}")
    order = torch.randperm(len(kind), generator=torch.Generator().manual_seed(seed))
    fixed, *others = kind[order[: 1 + HANDS]]
    moving = max(others, key=lambda other: dice(other, fixed))
    scale = torch.tensor((1.2, POSE["scale"])) * size / 60
    angles, centre = (
        torch.stack((torch.zeros(3), torch.tensor(POSE[name]))) for name in ("angles", "centre")
    )
    both = scenes.extrude(torch.stack((fixed, moving)), size, angles.T, scale, centre)
    return both[:1], both[1:]


def read_volume(path: Path) -> Tensor:
    """A NumPy file (D, H, W) as (1, 1, D, H, W), brought to [0, 1].

    Raises:
        ValueError, OSError: a file that can not be read, or no volume.
    """
    volume = torch.from_numpy(np.load(path).astype(np.float32))
    if volume.ndim != 3 or min(volume.shape) < 2 or not volume.isfinite().all():
        raise ValueError(
            f"{str(path)!r} must be a finite volume (D, H, W), got shape {tuple(volume.shape)}"
        )
    low, high = volume.aminmax()
    return ((volume - low) / (high - low).clamp(min=1e-12))[None, None]


def resized(field: Tensor, size: Sequence[int]) -> Tensor:
    """Antialiased where it shrinks, and linear where it grows."""
    eye = torch.eye(3, 4, device=field.device)
    shrinks = any(new < old for new, old in zip(size, field.shape[2:], strict=True))
    return spatial_transform(field, eye, size, padding_mode="border", antialias=shrinks)


def pyramid(shape: Sequence[int], finest: int | None = None) -> list[tuple[int, ...]]:
    """Sizes of the copies, from the coarsest on, each about twice the last."""
    longest = max(shape)
    sides = [min(longest, finest or longest)]
    while sides[0] > COARSEST:
        sides.insert(0, max(COARSEST, (sides[0] + 1) // 2))
    return [tuple(max(2, round(n * side / longest)) for n in shape) for side in sides]


def fit_affine(fixed: Tensor, moving: Tensor, steps: int) -> Tensor:
    """θ (3, 4) that makes the moving volume look like the fixed one.

    On the smallest copy several rotations about the centre of mass start at once, K transforms of
    one volume, and the best of them goes on.
    """
    here, there = centre_of_mass(fixed), centre_of_mass(moving)
    axes = torch.eye(3, device=fixed.device)
    turns = scenes.turns(TURN * torch.cat((0 * axes[:, :1], axes, -axes), 1))
    theta = torch.cat((turns, (there - turns @ here)[:, :, None]), 2)[None]  # (1, K, 3, 4)
    for level, size in enumerate(pyramid(fixed.shape[2:], finest=30)):
        target, source = resized(fixed, size), resized(moving, size)
        theta = theta.detach().requires_grad_()
        optimizer = torch.optim.Adam([theta], lr=0.02 / 2**level)
        for _ in tqdm(range(steps), f"affine {size[-1]}", leave=False, disable=steps == 0):
            optimizer.zero_grad()
            gap = spatial_transform(source, theta) - target[:, None]
            losses = gap.square().mean((2, 3, 4, 5))
            losses.sum().backward()
            optimizer.step()
        if level == 0 and steps:
            theta = theta[:, losses.argmin(), None]
    return theta.detach()[0, 0]


def centre_of_mass(volume: Tensor) -> Tensor:
    """(x, y, z), normalised."""
    eye = torch.eye(3, 4, device=volume.device)
    grid = Affine(3).grid(eye, volume.shape[2:])
    return (grid * volume[0, 0, ..., None]).sum((0, 1, 2)) / volume.sum().clamp(min=1e-12)


def fit_field(fixed: Tensor, moving: Tensor, steps: int, smoothness: float) -> Tensor:
    """The flow (1, 3, D, H, W) of a velocity field of half the size, which takes moving to fixed.

    What is minimised is the mean square difference plus ``smoothness`` times the mean square
    derivative of the velocity, in pixels to a pixel, plus what nears a fold.
    """
    velocity = fixed.new_zeros(1, 3, 2, 2, 2)
    for size in pyramid(fixed.shape[2:]):
        half = [max(2, n // 2) for n in size]
        target, source = resized(fixed, size), resized(moving, size)
        velocity = rescaled(velocity, half).requires_grad_()
        optimizer = torch.optim.Adam([velocity], lr=0.1)
        for _ in tqdm(range(steps), f"field {size[-1]}", leave=False, disable=steps == 0):
            optimizer.zero_grad()
            flow = nn.integrate_velocity(velocity, SQUARINGS)
            image = flow_warp(source, rescaled(flow, size), padding_mode="border")
            gap = (image - target).square().mean()
            (gap + smoothness * roughness(velocity) + folding(flow)).backward()
            optimizer.step()
        velocity = velocity.detach()
    return rescaled(nn.integrate_velocity(velocity, SQUARINGS), fixed.shape[2:])


def rescaled(field: Tensor, size: Sequence[int]) -> Tensor:
    """A field of displacements for a volume of another size: their pixels are of that size."""
    ratio = [new / old for new, old in zip(size[::-1], field.shape[:1:-1], strict=True)]
    return resized(field, size) * field.new_tensor(ratio).view(1, 3, 1, 1, 1)


def roughness(field: Tensor) -> Tensor:
    return sum(field.diff(dim=axis).square().mean() for axis in (2, 3, 4))


def folding(flow: Tensor) -> Tensor:
    """By how much cells fall short of a determinant of ``SMALLEST``, on average.

    The flow of a velocity folds nowhere, but its samples on a grid do where they are too few.
    """
    determinant = geometry.jacobian_determinant(flow, "corners")
    return (SMALLEST - determinant).clamp(min=0).mean()


def flow_of(theta: Tensor, input_size: Sequence[int], size: Sequence[int]) -> Tensor:
    """The displacements in pixels (1, 3, *size) of an affine map."""
    matrix = geometry.to_pixel_matrix(theta, input_size, size)
    at = voxels(size, theta)
    moved = torch.einsum("ij,jdhw->idhw", matrix[:, :3], at) + matrix[:, 3].view(3, 1, 1, 1)
    return (moved - at)[None]


def voxels(size: Sequence[int], like: Tensor) -> Tensor:
    """Where each is, (3, *size), x first."""
    axes = [torch.arange(n, device=like.device).to(like) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1])


def dice(a: Tensor, b: Tensor) -> float:
    """Twice the overlap of the two objects over the sum of their sizes."""
    a, b = a > LEVEL, b > LEVEL
    return (2 * (a & b).sum() / (a.sum() + b.sum()).clamp(min=1)).item()


def draw(path: Path, fixed: Tensor, images: dict[str, Tensor], flow: Tensor) -> None:
    """A slice across z and one across y of each volume, and the field's grid on the aligned one.

    The outline is the fixed object's; ``images``: those to compare with it, by their titles.
    """
    panels = {name: image[0, 0].cpu().numpy() for name, image in {"fixed": fixed, **images}.items()}
    moved = (flow + voxels(flow.shape[2:], flow))[0].cpu().numpy()
    figure = Figure(figsize=(2.4 * (len(panels) + 1), 5), layout="constrained")
    for row, (across, right, down) in enumerate((("z", 0, 1), ("y", 0, 2))):
        cut = [slice(None)] * 3
        cut[row] = fixed.shape[2 + row] // 2
        outline = panels["fixed"][tuple(cut)]
        for column, name in enumerate((*panels, "grid of the field")):
            axes = figure.add_subplot(2, len(panels) + 1, row * (len(panels) + 1) + column + 1)
            image = panels.get(name, panels["after affine"])[tuple(cut)]
            axes.imshow(image, cmap="gray", vmin=0, vmax=1 if name in panels else 2.5)
            if name in panels:
                axes.contour(outline, [LEVEL], colors="#ff7f0e", linewidths=1)
            else:
                x, y = moved[right][tuple(cut)], moved[down][tuple(cut)]
                for lines in ((x[::2].T, y[::2].T), (x[:, ::2], y[:, ::2])):
                    axes.plot(*lines, color="#6db3f2", linewidth=0.5)
            h, w = image.shape
            axes.set(xticks=[], yticks=[], xlim=(-0.5, w - 0.5), ylim=(h - 0.5, -0.5))
            axes.set(title="" if row else name, ylabel="" if column else f"across {across}")
    figure.savefig(path, dpi=90)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="register", description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="MNIST's files (default: 8x8 digits)")
    parser.add_argument("--digit", type=int, choices=range(10), default=3, help="(%(default)s)")
    parser.add_argument("--fixed", type=Path, metavar="NPY", help="a volume (D, H, W) of your own")
    parser.add_argument("--moving", type=Path, metavar="NPY", help="the one to align with it")
    parser.add_argument("--size", type=int, default=60, help="voxels a side (%(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="at each size (%(default)s)")
    parser.add_argument(
        "--smoothness", type=float, default=0.04, help="of the velocity (%(default)s)"
    )
    add_picture(parser, "register.png")
    parser.add_argument("--seed", type=int, default=0, help="of the two digits (%(default)s)")
    arguments = parser.parse_args(argv)
    if (arguments.fixed is None) != (arguments.moving is None):
        parser.error("--fixed and --moving go together")
    check_least(parser, arguments, 8, "size")
    check_least(parser, arguments, 0, "steps", "smoothness")
    check_picture(parser, arguments)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; 0, or 1 when a file can not be read or the field folds."""
    arguments = parse_arguments(argv)
    try:
        if arguments.fixed:
            fixed, moving = read_volume(arguments.fixed), read_volume(arguments.moving)
        else:
            fixed, moving = digit_pair(
                arguments.data_dir, arguments.digit, arguments.size, arguments.seed
            )
    except (OSError, ValueError, data.DataError) as problem:
        print(problem, file=sys.stderr)
        return 1
    fixed, moving = fixed.to(arguments.device), moving.to(arguments.device)
    size = fixed.shape[2:]
    began = time.perf_counter()
    began = time.perf_counter()
    theta = fit_affine(fixed, moving, arguments.steps)
    aligned = spatial_transform(moving, theta, size)
    between = time.perf_counter()
    flow = fit_field(fixed, aligned, arguments.steps, arguments.smoothness)
    # Both maps in one, that the moving volume is interpolated once.
    whole = geometry.compose_flows(flow_of(theta, moving.shape[2:], size), flow)
    warped = flow_warp(moving, whole)
    ended = time.perf_counter()

    before = resized(moving, size)
    rows = [
        ["before", dice(before, fixed), None],
        ["after affine", dice(aligned, fixed), between - began],
        ["after field", dice(warped, fixed), ended - between],
    ]
    print(tabulate(rows, ["", "Dice", "seconds"], floatfmt=("", ".3f", ".1f")))
    determinant = geometry.jacobian_determinant(flow, "corners")
    folded = int((determinant <= 0).any(1).sum())
    low, high = determinant.aminmax()
    print(f"the field enlarges voxels {low:.2f} to {high:.2f} times, {folded} cells are folded")
    images = {"moving": before, "after affine": aligned, "after field": warped}
    draw(arguments.out, fixed, images, flow)
    print(f"picture: {arguments.out}")
    return int(folded > 0)


if __name__ == "__main__":
    sys.exit(main())
