"""Compiled kernels where numbers have to be exact: what is permuted, and which pixel is picked.

A compiler may contract a product and a sum in one kernel and not in another. Where forward and
backward then round a coordinate differently, one of them picks another pixel.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from conftest import Place
from oracle import run, same
from test_compiled_values import noise
from test_exact import LATTICE, TURNS, right_hand_gradient, shifted, with_holes

pytestmark = pytest.mark.compiled
COMPILED = Place("triton", "cpu")


def image_and_grad(*shape) -> tuple[torch.Tensor, torch.Tensor]:
    return noise(*shape, seed=1).float(), noise(*shape, seed=2).float()


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("turn", {"identity": None} | TURNS)
def test_flips_and_quarter_turns_permute_the_pixels(turn, mode, align_corners):
    matrix, permute = TURNS.get(turn, ([[1.0, 0, 0], [0, 1.0, 0]], lambda image: image))
    h, w = (19, 19) if "turn" in turn else (19, 13)
    image, grad = (with_holes(t) for t in image_and_grad(1, 3, h, w))
    options = dict(mode=mode, align_corners=align_corners)
    got = run(COMPILED.sample, image, torch.tensor(matrix), None, grad, **options)
    assert same(got.y, permute(image))
    assert same(permute(got.grad_input), grad)  # the adjoint of a permutation is its inverse


@pytest.mark.parametrize("padding_mode", ["border", "reflection"])
@pytest.mark.parametrize("turn", TURNS)
def test_flips_and_quarter_turns_permute_what_is_scattered(turn, padding_mode):
    matrix, permute = TURNS[turn]
    image, grad = image_and_grad(1, 3, 19, 19)
    got = run(COMPILED.sample, image, torch.tensor(matrix), None, grad, padding_mode=padding_mode)
    assert same(got.y, permute(image)) and same(permute(got.grad_input), grad)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("lattice", LATTICE)
def test_on_the_lattice_the_theta_gradient_is_the_right_hand_one(lattice, align_corners):
    image, grad = image_and_grad(1, 3, 7, 7)
    theta = torch.tensor([[*row, 0.0] for row in LATTICE[lattice]])[None]
    options = dict(padding_mode="zeros", align_corners=align_corners)
    got = run(COMPILED.sample, image, theta, None, grad, **options)
    exact = right_hand_gradient(image, grad, LATTICE[lattice], **options)
    assert (got.grad_theta[0] - exact).abs().max() <= 1e-5 * exact.abs().max()


def right_hand_terms(image, grad, dx, dy) -> torch.Tensor:
    """What each output pixel adds to dθ, (2, 3, C, H, W), of a shift by whole pixels."""
    h, w = image.shape[-2:]
    margin = 12
    padded = torch.nn.functional.pad(image.double(), [margin] * 4)
    rows, columns = slice(margin + dy, margin + dy + h), slice(margin + dx, margin + dx + w)
    x, y = ((2 * torch.arange(n) - (n - 1)) / n for n in (w, h))
    terms = []
    for axis, span in ((-1, w), (-2, h)):
        slope = (padded.roll(-1, axis) - padded)[..., rows, columns]
        each = slope * grad * span / 2
        terms.append(torch.stack((each * x, each * y[:, None], each)))
    return torch.stack(terms)[:, :, 0]


@pytest.mark.parametrize("width", [8, 100, 127, 3840])
def test_whole_pixel_shifts_move_the_pixels_and_take_right_hand_slopes(width):
    """θ holds 2·dx / W rounded, which makes a whole number of pixels again."""
    height = 5
    image, grad = image_and_grad(1, 3, height, width)
    for dx, dy in itertools.product((-7, -1, 0, 1, 3), (0, -2, 1)):
        theta = torch.tensor([[1, 0, 2 * dx / width], [0, 1, 2 * dy / height]])
        got = run(COMPILED.sample, image, theta[None], None, grad)
        assert same(got.y, shifted(image, dx, dy))
        assert same(got.grad_input, shifted(grad, -dx, -dy))
        terms = right_hand_terms(image, grad, dx, dy).flatten(2)
        error = (got.grad_theta[0] - terms.sum(2)).abs()
        # One pixel that picks its other neighbour changes a sum by about a mean term.
        assert (error <= 0.01 * terms.abs().mean(2)).all(), (dx, dy)
        alone = theta[None].requires_grad_()
        (of_theta,) = torch.autograd.grad(COMPILED.sample(image, alone), alone, grad)
        assert ((of_theta - got.grad_theta).abs()[0] <= 0.01 * terms.abs().mean(2)).all(), (dx, dy)


def many_maps(h: int, w: int) -> torch.Tensor:
    """Shifts by whole pixels, halves, and what is an ulp beside them; turns by 0, 90 and others."""
    maps = []
    for shift in (0, 0.5, 1, 1.5, -3, 2.25, 1e-7, 0.49999997, 1 - 6e-8):
        for degrees in (0, 30, 90, 180):
            c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            maps.append([[c, -s * h / w, 2 * shift / w], [s * w / h, c, -2 * shift / h]])
    zooms = [[[z, 0, 2 * z / w], [0, z, 1 / h]] for z in (0.5, 2, 0.25, 1 + 1e-7, 1 - 1e-7)]
    return torch.tensor(maps + zooms)


@pytest.mark.parametrize("size", [(12, 10), (33, 31)])
def test_nearest_gives_back_to_each_pixel_as_often_as_it_was_read(size):
    h, w = size
    maps = many_maps(h, w)
    image = torch.arange(1.0, h * w + 1).view(1, 1, h, w).expand(len(maps), 3, h, w).contiguous()
    got = run(COMPILED.sample, image, maps, None, torch.ones(image.shape), mode="nearest")
    for y, grad in zip(got.y.long(), got.grad_input.long(), strict=True):
        read = torch.bincount(y[0].flatten(), minlength=h * w + 1)[1:]
        assert torch.equal(grad, read.view(h, w).expand(3, -1, -1))


# A coordinate a hair below 0 or 1 has a distance from the next pixel but one that rounds to -1.
@pytest.mark.parametrize("width", [100, 127])
def test_the_input_s_side_and_the_output_s_side_pick_the_same_neighbours(width):
    """`gather` decides by membership, `grad_theta` as forward does: alike on every kink."""
    height = 9
    maps = many_maps(height, width)
    image, grad = image_and_grad(len(maps), 3, height, width)
    joint = run(COMPILED.sample, image, maps, None, grad).grad_theta
    alone = maps.requires_grad_()
    (of_theta,) = torch.autograd.grad(COMPILED.sample(image, alone), alone, grad)
    typical = image.std() * grad.std() * torch.tensor([[width, width, width], [height] * 3]) / 2
    error = (joint - of_theta).abs() / typical
    assert error.max() <= 0.02, error.amax((1, 2))
