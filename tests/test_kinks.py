"""At a pixel's centre grad_theta is the right-hand derivative, on every backend.

So a training that starts at the identity takes the same first step everywhere. The expected values
are written out here, pixel by pixel in float64, from whole coordinates.
"""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction
from typing import NamedTuple

import pytest
import torch

import triton_stn

# In whole pixels, x first: as it is, by less than the image, out of it, and into its reflection.
SHIFTS = [(0, 0), (1, -2), (-3, 1), (5, 4), (-9, 8)]
# The linear part of θ, x first, and the size of a square image that it takes to whole pixels.
MAPS = {
    "identity": ([[1, 0], [0, 1]], 28),
    "flip": ([[-1, 0], [0, 1]], 28),
    "half turn": ([[-1, 0], [0, -1]], 13),
    "quarter turn": ([[0, -1], [1, 0]], 28),
    "transpose": ([[0, 1], [1, 0]], 13),
}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def fold(x: torch.Tensor, n: int, padding_mode: str, align_corners: bool):
    """Whole coordinates -> (the pixel that is read, the sign of its derivative, 0 for none)."""
    slope = torch.ones_like(x)
    if padding_mode == "reflection" and n > 1:
        period = 2 * (n - 1 if align_corners else n)
        place = x % period
        back = place >= (n if not align_corners else n - 1)
        slope = torch.where(back, -1, 1)
        x = torch.where(back, period - place - (0 if align_corners else 1), place)
    if padding_mode != "zeros":
        slope = torch.where((x > 0) & (x < n - 1), slope, 0)
        x = x.clamp(0, n - 1)
    return x, slope


def read(image: torch.Tensor, places) -> torch.Tensor:
    """``image`` (C, *size) at whole coordinates, x first: zero outside."""
    inside = torch.ones((), dtype=torch.bool)
    index = []
    for x, n in zip(reversed(places), image.shape[1:], strict=True):
        inside = inside & (x >= 0) & (x < n)
        index.append(x.clamp(0, n - 1))
    return torch.where(inside, image[(slice(None), *index)], 0.0)


def right_hand(image, linear, shift, grad, padding_mode, align_corners):
    """grad_theta of an image (C, *size), for an output grad (C, *size) of the same size.

    ``linear`` and ``shift`` are in centred pixels, x first, and lead to whole coordinates.
    """
    sizes, ndim = list(reversed(image.shape[1:])), image.ndim - 1
    pixels = torch.meshgrid(*(torch.arange(n) for n in reversed(sizes)), indexing="ij")[::-1]
    centred = [2 * p - (n - 1) for p, n in zip(pixels, sizes, strict=True)]  # in half pixels
    places, slopes = [], []
    for row, by, n in zip(linear, shift, sizes, strict=True):
        twice = sum(a * c for a, c in zip(row, centred, strict=True)) + 2 * by + n - 1
        assert (twice % 2 == 0).all(), "the test's own map must lead to whole pixels"
        place, slope = fold(twice // 2, n, padding_mode, align_corners)
        places.append(place)
        slopes.append(slope)
    extents = [n - 1 if align_corners else n for n in sizes]
    outputs = [c.double() / e for c, e in zip(centred, extents, strict=True)]  # normalised
    rows = []
    for axis in range(ndim):
        beyond = [p + (d == axis) for d, p in enumerate(places)]
        step = (read(image, beyond) - read(image, places)) * slopes[axis] * extents[axis] / 2
        per_pixel = (step * grad).sum(0)
        rows.append([(per_pixel * o).sum() for o in (*outputs, torch.ones(()))])
    return torch.stack([torch.stack(row) for row in rows])


def theta_of(linear, shift, sizes, align_corners, dtype):
    """Centred pixels to normalised coordinates, of images of one size; x first."""
    extents = [n - 1 if align_corners else n for n in sizes]
    rows = [
        [*(a * e / extent for a, e in zip(line, extents, strict=True)), 2 * by / extent]
        for line, by, extent in zip(linear, shift, extents, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float64).to(dtype)


def check(device, size, linear, shift, dtype, padding_mode, align_corners, derive=None):
    torch.manual_seed(0)
    image, grad = torch.randn(2, 2, *size, dtype=torch.float64).to(dtype)
    theta = theta_of(linear, shift, size[::-1], align_corners, dtype)
    expected = right_hand(image.double(), linear, shift, grad.double(), padding_mode, align_corners)
    x = image[None].to(device).requires_grad_()
    t = theta.to(device).requires_grad_()
    y = triton_stn.spatial_transform(x, t, padding_mode=padding_mode, align_corners=align_corners)
    got = (derive or derivative)(y, x, t, grad[None].to(device)).cpu().double()
    largest = expected.abs().max() + grad.abs().max()
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE[dtype] * float(largest))


def derivative(y, x, theta, grad):
    return torch.autograd.grad(y, (x, theta), grad)[1]


RULES = pytest.mark.parametrize(
    "padding_mode, align_corners",
    list(itertools.product(("zeros", "border", "reflection"), (False, True))),
)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@pytest.mark.thinned(2)
@RULES
@DTYPES
@pytest.mark.parametrize("shift", SHIFTS, ids=str)
def test_whole_pixel_shifts_have_the_right_hand_derivative(
    device, shift, dtype, padding_mode, align_corners
):
    check(device, (6, 7), [[1, 0], [0, 1]], shift, dtype, padding_mode, align_corners)


@pytest.mark.thinned(2, rest="nightly")
@RULES
@DTYPES
@pytest.mark.parametrize("name", MAPS)
def test_maps_of_pixels_to_pixels_have_the_right_hand_derivative(
    device, name, dtype, padding_mode, align_corners
):
    linear, n = MAPS[name]
    check(device, (n, n), linear, (0, 0), dtype, padding_mode, align_corners)


@pytest.mark.thinned(2)
@RULES
@DTYPES
@pytest.mark.parametrize("shift", [(0, 0, 0), (1, -1, 2)], ids=str)
def test_volumes_have_the_right_hand_derivative(device, shift, dtype, padding_mode, align_corners):
    linear = torch.eye(3, dtype=torch.int64).tolist()
    check(device, (4, 5, 6), linear, shift, dtype, padding_mode, align_corners)


RESIZED = [(28, 14), (14, 28), (5, 4), (8, 6), (9, 12), (3, 10)]


def of_a_resized_line(image, grad, sign, padding_mode, align_corners):
    """The sums (over X, over 1) of grad_theta's row of x = sign · X, from exact coordinates.

    image (W,), grad (W_out,). A coordinate is rational; at a pixel the derivative is the
    right-hand one, and of a rule that folds none at the edge or beyond.
    """
    n, n_out = len(image), len(grad)
    span, extent = (n - 1, n_out - 1) if align_corners else (n, n_out)
    values = dict(enumerate(image.tolist()))
    sums = [0.0, 0.0]
    for j, g in enumerate(grad.tolist()):
        centred = Fraction(2 * j - (n_out - 1), 2)
        x = Fraction(n - 1, 2) + sign * centred * span / extent
        left = math.floor(x)
        step = values.get(left + 1, 0.0) - values.get(left, 0.0)
        if padding_mode != "zeros" and not 0 < x < n - 1:
            step = 0.0
        by_pixel = g * step * span / 2
        sums[0] += by_pixel * float(2 * centred / extent)
        sums[1] += by_pixel
    return sums


def check_resized(device, sizes, sign, dtype, padding_mode, align_corners, wanted=(True, True)):
    """An image of one row, and one of one column, each of another size than what is made of it."""
    n, n_out = sizes
    torch.manual_seed(0)
    image, grad = torch.randn(n, dtype=dtype), torch.randn(n_out, dtype=dtype)
    expected = of_a_resized_line(image, grad, sign, padding_mode, align_corners)
    options = dict(padding_mode=padding_mode, align_corners=align_corners)
    for axis, shape in enumerate(((1, 1, 1, -1), (1, 1, -1, 1))):
        x = image.view(shape).to(device).requires_grad_(wanted[0])
        theta = torch.eye(2, 3, dtype=dtype)[None].clone()
        theta[0, axis, axis] = sign
        theta = theta.to(device).requires_grad_()
        size = grad.view(shape).shape[2:]
        y = triton_stn.spatial_transform(x, theta, tuple(size), **options)
        (row,) = torch.autograd.grad(y, theta, grad.view(shape).to(device))
        got = row[0, axis, [axis, 2]].cpu().double()
        atol = TOLERANCE[dtype] * n * float(image.abs().max() * grad.abs().sum())
        torch.testing.assert_close(
            got, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=atol
        )


@pytest.mark.thinned(2)
@RULES
@DTYPES
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("sizes", RESIZED, ids=str)
def test_another_size_has_the_right_hand_derivative(
    device, sizes, sign, dtype, padding_mode, align_corners
):
    check_resized(device, sizes, sign, dtype, padding_mode, align_corners)


@pytest.mark.compiled
@RULES
@DTYPES
@pytest.mark.parametrize("sizes", RESIZED[:4], ids=str)
def test_compiled_so_it_has(sizes, dtype, padding_mode, align_corners):
    with triton_stn.use_backend("triton"):
        for wanted in ((True, True), (False, True)):
            check_resized("cpu", sizes, 1, dtype, padding_mode, align_corners, wanted)


def create_graph(y, x, theta, grad):
    return torch.autograd.grad(y, (x, theta), grad, create_graph=True)[1].detach()


@RULES
@DTYPES
def test_a_derivative_that_is_differentiable_itself_is_the_same(dtype, padding_mode, align_corners):
    with triton_stn.use_backend("torch"):
        for size in ((6, 7), (4, 5, 6)):
            linear = torch.eye(len(size), dtype=torch.int64).tolist()
            shift = (1, -2, 0)[: len(size)]
            check("cpu", size, linear, shift, dtype, padding_mode, align_corners, create_graph)


class Lattice(NamedTuple):
    """An image (H, W), shifted by whole pixels, x first."""

    size: tuple[int, int]
    shift: tuple[int, int]
    padding_mode: str
    align_corners: bool


def lattices(count: int, seed: int) -> list[Lattice]:
    draw = random.Random(seed)
    cases = []
    for _ in range(count):
        align_corners = draw.random() < 0.5
        h, w = (draw.randint(1 + align_corners, most) for most in (24, 64))
        shift = draw.randint(-w - 1, w + 1), draw.randint(-h - 1, h + 1)
        padding_mode = draw.choice(("zeros", "border", "reflection"))
        cases.append(Lattice((h, w), shift, padding_mode, align_corners))
    return cases


# These came out as the left-hand derivative, of a pixel that rounding θ had missed by an ulp.
MISSED = [
    Lattice((3, 26), (-14, 0), "border", False),
    Lattice((5, 21), (-6, -5), "border", False),
    Lattice((3, 24), (-15, 1), "border", True),
    Lattice((2, 58), (-15, -1), "zeros", False),
]
LATTICES = pytest.mark.parametrize(
    "case",
    [
        *MISSED,
        *lattices(8, seed=0),
        *(pytest.param(case, marks=pytest.mark.nightly) for case in lattices(60, seed=1)),
    ],
    ids=lambda case: "{}-{}-{}-{}".format(*case).replace(" ", ""),
)


@LATTICES
@DTYPES
def test_every_lattice_has_the_right_hand_derivative(device, case, dtype):
    check(device, case.size, [[1, 0], [0, 1]], case.shift, dtype, *case[2:])


@LATTICES
@DTYPES
def test_every_lattice_gives_nearest_grad_input_to_the_pixel_that_was_read(device, case, dtype):
    size, shift, padding_mode, align_corners = case
    torch.manual_seed(0)
    grad = torch.randn(1, 2, *size, dtype=torch.float64).to(dtype)
    theta = theta_of([[1, 0], [0, 1]], shift, size[::-1], align_corners, dtype)
    x = torch.zeros_like(grad).to(device).requires_grad_()
    options = dict(padding_mode=padding_mode, align_corners=align_corners, mode="nearest")
    y = triton_stn.spatial_transform(x, theta.to(device), **options)
    (got,) = torch.autograd.grad(y, x, grad.to(device))
    expected, inside = torch.zeros_like(grad[0], dtype=torch.float64), torch.ones(())
    lines = torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")
    flat = torch.zeros(size, dtype=torch.int64)
    for line, n, by in zip(lines, size, reversed(shift), strict=True):
        places, _ = fold(line + by, n, padding_mode, align_corners)
        inside = inside * ((places >= 0) & (places < n))
        flat = flat * n + places.clamp(0, n - 1)
    expected.flatten(1).index_add_(1, flat.flatten(), (grad[0].double() * inside).flatten(1))
    if padding_mode == "zeros":  # each is read once at most
        assert torch.equal(got[0].cpu().double(), expected)
    torch.testing.assert_close(
        got[0].cpu().double(), expected, rtol=0, atol=TOLERANCE[dtype] * float(grad.abs().sum())
    )
