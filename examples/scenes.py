"""Scenes that the experiments make of digits: the distortions of Jaderberg et al. 2015 and others.

A scene takes a batch of digits, a pool from which it draws others, and a generator, of which all
that is random comes: a seed gives the same scenes again. Everything is drawn on the digits' device,
through the library itself.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from examples.data import LONGEST, NO_DIGIT, SIZE, Digits, Scene
from triton_stn import geometry, spatial_transform
from triton_stn.augment import RandomTransform

FREE = (1 - SIZE / 42) / 2  # of 42 pixels, either way
RTS = RandomTransform(45, (FREE, FREE), (0.7, 1.2), output_size=42)
E = RandomTransform(elastic=1.5)


def uniform(generator: Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def normal(generator: Generator, deviation: float, *shape: int) -> Tensor:
    return deviation * torch.randn(shape, generator=generator, device=generator.device)


def place(digits: Tensor, size: int, scale=1.0, rotation=0.0, centre=(0.0, 0.0)) -> Tensor:
    """Each image (N, C, H, W) on a canvas (N, C, size, size) of zeros.

    It is enlarged by ``scale``, turned counter-clockwise by ``rotation`` radians, and its middle
    lies at ``centre`` (x, y), normalised: the canvas reaches from -1 to 1. Each may be a tensor.
    """
    scale, centre = torch.as_tensor(scale), torch.as_tensor(centre)
    window = geometry.affine(digits.shape[-2:], size, scale=1 / scale[..., None], rotation=rotation)
    back = geometry.affine(size, translation=-centre)
    theta = geometry.compose(window.to(digits), back.to(digits))
    return spatial_transform(digits, theta.expand(len(digits), 2, 3), size)


def rotated(digits: Digits, pool: Digits, generator: Generator, degrees: float = 90) -> Scene:
    """R: turned by up to ±90°."""
    if degrees == 0:
        return Scene(digits.images, digits.labels)
    return changed(digits, generator, RandomTransform(degrees))


def rotated_scaled_translated(digits: Digits, pool: Digits, generator: Generator) -> Scene:
    """RTS: turned by up to ±45°, scaled by 0.7 to 1.2, anywhere on 42×42 pixels."""
    return changed(digits, generator, RTS)


def changed(digits: Digits, generator: Generator, change: RandomTransform) -> Scene:
    return Scene(change(digits.images, generator=generator).images, digits.labels)


def projected(digits: Digits, pool: Digits, generator: Generator) -> Scene:
    """P: scaled by 0.75 to 1, then each corner moved by N(0, 5 pixels); none folds."""
    n = len(digits)
    square = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], device=generator.device)
    small = uniform(generator, 0.75, 1.0, n, 1, 1) * square
    move = normal(generator, 5 * 2 / SIZE, n, 4, 2)
    for _ in range(5):  # a corner may be pulled over the diagonal
        folds = ~_is_convex(small + move)
        move = torch.where(folds[:, None, None], move / 2, move)
    theta = geometry.homography(small + move, square).to(digits.images)
    return Scene(spatial_transform(digits.images, theta, transform="projective"), digits.labels)


def _is_convex(corners: Tensor) -> Tensor:
    """Whether quadrilaterals (N, 4, 2) turn the same way at every corner, clearly."""
    edge = corners.roll(-1, 1) - corners
    following = edge.roll(-1, 1)
    turn = edge[..., 0] * following[..., 1] - edge[..., 1] * following[..., 0]
    return (turn > 0.25).all(1)


def elastic(digits: Digits, pool: Digits, generator: Generator) -> Scene:
    """E: a thin-plate spline whose 4×4 control points move by N(0, 1.5 pixels)."""
    return changed(digits, generator, E)


def cluttered(
    digits: Digits, pool: Digits, generator: Generator, size: int = 60, distractors: int = 6
) -> Scene:
    """TC: anywhere on 60×60 pixels, among six 6×6 pieces of other digits."""
    n = len(digits)
    corner = whole(generator, size - SIZE, n, 2)
    images = paste(digits.images, corner, size)
    if distractors:
        images = images + clutter(pool, n, generator, size, distractors)
    boxes = torch.cat((corner, corner + SIZE), 1).to(images)
    return Scene(images.clamp(max=1), digits.labels, boxes)


def translated(digits: Digits, pool: Digits, generator: Generator) -> Scene:
    """T: anywhere on 60×60 pixels."""
    return cluttered(digits, pool, generator, distractors=0)


def whole(generator: Generator, most: int, *shape: int) -> Tensor:
    """Whole numbers from 0 to ``most``."""
    return torch.randint(most + 1, shape, generator=generator, device=generator.device)


def paste(images: Tensor, corner: Tensor, size: int) -> Tensor:
    """Images (N, C, h, h), pixel for pixel, on (N, C, size, size), upper left at ``corner``."""
    centre = (2 * corner + images.shape[-1]) / size - 1
    return place(images, size, centre=centre)


def clutter(
    pool: Digits, count: int, generator: Generator, size: int, pieces: int, side: int = 6
) -> Tensor:
    """(count, 1, size, size): so many pieces of digits, ``side`` pixels wide, anywhere."""
    others = pool.draw(count * pieces, generator).images
    cut = 2 * whole(generator, SIZE - side, count * pieces, 2) + side
    window = geometry.affine(SIZE, side, translation=(cut / SIZE - 1).to(others))
    cuttings = spatial_transform(others, window, side)
    corner = whole(generator, size - side, count * pieces, 2)
    return paste(cuttings, corner, size).unflatten(0, (count, pieces)).sum(1)


def addition(digits: Digits, pool: Digits, generator: Generator) -> Scene:
    """Two digits, each distorted as RTS in a channel of its own; the target is their sum."""
    first = rotated_scaled_translated(digits, pool, generator)
    second = rotated_scaled_translated(pool.draw(len(digits), generator), pool, generator)
    images = torch.cat((first.images, second.images), 1)
    return Scene(images, first.targets + second.targets)


def sequences(digits: Digits, pool: Digits, generator: Generator, size: int = 64) -> Scene:
    """Numbers of one to five digits in colour, in the manner of the street-view house numbers.

    As tall as 64 pixels allow whatever the canvas: on a larger one they lie anywhere. Targets
    (N, 5), 10 where a number has ended.
    """
    n, device = len(digits), digits.images.device
    length = whole(generator, LONGEST - 1, n).to(device) + 1
    others = pool.draw(n * (LONGEST - 1), generator)
    images = torch.cat((digits.images[:, None], others.images.unflatten(0, (n, LONGEST - 1))), 1)
    labels = torch.cat((digits.labels[:, None], others.labels.unflatten(0, (n, LONGEST - 1))), 1)
    there = torch.arange(LONGEST, device=device) < length[:, None]

    # In pixels from the number's middle: digits of 20 pixels' ink stand 18 apart before scaling.
    scale = (60 / (18 * length + 10)).clamp(max=1.6) * uniform(generator, 0.8, 1.0, n).to(device)
    tilt = uniform(generator, -0.2, 0.2, n).to(device)
    along = (torch.arange(LONGEST, device=device) - (length[:, None] - 1) / 2) * 18 * scale[:, None]
    offset = torch.stack((along * tilt[:, None].cos(), -along * tilt[:, None].sin()), -1)
    free = (size - 60) / size
    middle = uniform(generator, -free, free, n, 1, 2).to(device)
    centre = middle + offset * 2 / size
    each = [t[:, None].expand(n, LONGEST).flatten() for t in (scale, tilt)]
    ink = place(images.flatten(0, 1), size, *each, centre.flatten(0, 1)).unflatten(0, (n, LONGEST))
    ink = (ink * there[:, :, None, None, None]).sum(1).clamp(max=1)

    light = uniform(generator, -0.15, 0.15, n, 3, 3, 3).to(device)
    light = spatial_transform(light, torch.eye(2, 3, device=device), size, padding_mode="border")
    images = (painted(ink, generator) + light).clamp(0, 1)
    return Scene(images, labels.masked_fill(~there, NO_DIGIT))


def painted(ink: Tensor, generator: Generator) -> Tensor:
    """(N, 1, S, S) in two colours (N, 3, S, S) that are told apart."""
    wall, paint = uniform(generator, 0, 1, 2, len(ink), 3, 1, 1).to(ink)
    apart = (paint - wall).mean(1, keepdim=True).abs() > 0.3
    paint = torch.where(apart, paint, (wall + 0.5) % 1)
    return wall + (paint - wall) * ink


def birds(digits: Digits, pool: Digits, generator: Generator, size: int = 84) -> Scene:
    """25 kinds of bird: a body (one of the digits 5 to 9) and a smaller head (0 to 4) beside it.

    Both parts are needed to tell a kind, neither has a fixed place, and there is clutter. Targets
    are 5 times the head's digit plus the body's less 5.
    """
    n = len(digits)
    head, body = pool.of(0, 5).draw(n, generator), pool.of(5, 10).draw(n, generator)
    centre = uniform(generator, -0.35, 0.35, n, 2)
    lean = uniform(generator, -math.pi / 3, math.pi / 3, n)
    neck = torch.stack((lean.sin(), -lean.cos()), -1) * 23 * 2 / size
    tilt = uniform(generator, -0.25, 0.25, n)
    images = place(body.images, size, 1.0, tilt, centre) + place(
        head.images, size, 0.8, tilt, centre + neck
    )
    images = images + clutter(pool, n, generator, size, 6)
    return Scene(images.clamp(max=1), 5 * head.labels + body.labels - 5)


def extruded(digits: Digits, pool: Digits, generator: Generator, size: int = 60) -> Scene:
    """Digits drawn out in depth into a volume of 60³, turned about all axes, scaled and moved."""
    n = len(digits)
    angles = uniform(generator, -math.pi / 4, math.pi / 4, 3, n)
    scale = uniform(generator, 0.8, 1.4, n)
    centre = uniform(generator, -0.25, 0.25, n, 3)
    return Scene(extrude(digits.images, size, angles, scale, centre), digits.labels)


def extrude(images: Tensor, size: int, angles: Tensor, scale: Tensor, centre: Tensor) -> Tensor:
    """Images (N, C, S, S), drawn out S deep, in volumes (N, C, size, size, size) of zeros.

    Each is turned by ``angles`` (3, N) about x, y and z, enlarged by ``scale`` (N,), and its middle
    lies at ``centre`` (N, 3), normalised.
    """
    linear = turns(angles.to(images)) * (size / images.shape[-1]) / scale.to(images)[:, None, None]
    theta = torch.cat((linear, -linear @ centre.to(images)[:, :, None]), 2)
    volume = images[:, :, None].expand(-1, -1, images.shape[-1], -1, -1)
    return spatial_transform(volume, theta, size, transform="affine")


def turns(angles: Tensor) -> Tensor:
    """(N, 3, 3): rotations by ``angles`` (3, N) about x, then y, then z."""
    about_x, about_y, about_z = angles
    return _turn(about_z, 0, 1) @ _turn(about_y, 2, 0) @ _turn(about_x, 1, 2)


def _turn(angle: Tensor, a: int, b: int) -> Tensor:
    """(N, 3, 3): a rotation in the plane of two axes."""
    turn = torch.eye(3, device=angle.device).repeat(len(angle), 1, 1)
    turn[:, a, a], turn[:, b, b] = angle.cos(), angle.cos()
    turn[:, a, b], turn[:, b, a] = -angle.sin(), angle.sin()
    return turn


def enlarged(digits: Digits, pool: Digits, generator: Generator, size: int = 512) -> Scene:
    """A digit of 112 pixels, in colour, anywhere on 512×512 among clutter as coarse as it."""
    scene = cluttered(digits, pool, generator, size // 4, 12)
    wide = torch.eye(2, 3, device=digits.images.device)
    images = spatial_transform(scene.images, wide, size, padding_mode="border")
    return Scene(painted(images, generator), scene.targets, scene.boxes * 4)
