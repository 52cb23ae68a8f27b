"""θ that is NaN, infinite, huge or degenerate, compiled: no access out of bounds, no long walk.

ptxrun checks every access. The interpreter can not tell any of this: it turns a NaN into another
integer than a GPU does.
"""

from __future__ import annotations

import math

import pytest
import torch
from conftest import Place
from oracle import run
from ptxrun import launches
from test_compiled_values import noise

import triton_stn

pytestmark = pytest.mark.compiled
COMPILED = Place("triton", "cpu")
SIZE = (19, 13)
NAN, INF = math.nan, math.inf
VALUES = [NAN, INF, -INF, 3e38, -3e38, 1e20, 2.0**31, -(2.0**31), 2.0**24, 1e-38, 1e-45]
GOOD = [[0.83, -0.31, 0.12], [0.27, 1.13, -0.21]]


def bad(shape: tuple[int, ...], good) -> torch.Tensor:
    """One θ for each value at each place, and two with it everywhere; the first is good."""
    good = torch.tensor(good).view(shape)
    maps = [good]
    for value in VALUES:
        for place in range(good.numel()):
            one = good.clone()
            one.view(-1)[place] = value
            maps.append(one)
        maps += [torch.full(shape, value), torch.full(shape, value).triu()]
    return torch.stack(maps)


def transformed(theta, size=SIZE, channels=3, **options):
    """(results, launches) of a batch, one image to all."""
    image, grad = (
        noise(1, channels, *size, seed=seed).float().expand(len(theta), *[-1] * (1 + len(size)))
        for seed in (1, 2)
    )

    def sample(x, maps, output_size, **options):
        return COMPILED.sample(x, maps, output_size, **options)

    with launches.recorded() as launched:
        results = run(sample, image, theta, size, grad, **options)
    return results, launched


def all_good(theta):
    """As many of the good one: a batch is cut into programs, whose sums are added, by its size."""
    return theta[:1].expand_as(theta)


def assert_contained(theta, got, good):
    """The good sample is as among good ones, and what is not finite gives nothing to grad_input."""
    for all_of, of_good in ((got.y, good.y), (got.grad_theta, good.grad_theta)):
        assert torch.equal(all_of[:1], of_good[:1])
    torch.testing.assert_close(got.grad_input[:1], good.grad_input[:1])
    assert got.grad_input.isfinite().all()
    everywhere = theta.isnan().flatten(1).all(1)
    assert everywhere.any() and got.y[everywhere].isnan().all()
    assert (got.grad_input[everywhere] == 0).all()


OPTIONS = {
    "zeros": {},
    "border": dict(padding_mode="border"),
    "reflection": dict(padding_mode="reflection"),
    "nearest": dict(mode="nearest"),
    "nearest_border": dict(mode="nearest", padding_mode="border"),
    "bicubic": dict(mode="bicubic"),
    "bicubic_reflection": dict(mode="bicubic", padding_mode="reflection"),
}


@pytest.mark.parametrize("options", OPTIONS)
def test_a_bad_number_in_an_affine_map_stays_in_its_sample(options):
    theta = bad((2, 3), GOOD)
    got, _ = transformed(theta, **OPTIONS[options])
    assert_contained(theta, got, transformed(all_good(theta), **OPTIONS[options])[0])


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_bad_number_in_a_homography_stays_in_its_sample(deterministic):
    theta = bad((3, 3), [[0.9, -0.3, 0.12], [0.2, 1.1, -0.21], [0.25, -0.15, 1.0]])
    torch.use_deterministic_algorithms(deterministic)
    try:
        got, _ = transformed(theta, transform="projective")
        good, _ = transformed(all_good(theta), transform="projective")
    finally:
        torch.use_deterministic_algorithms(False)
    assert_contained(theta, got, good)


@pytest.mark.landing
@pytest.mark.parametrize("options", ["zeros", "border"])
def test_a_bad_number_in_a_volume_s_map_stays_in_its_sample(options):
    theta = bad((3, 4), [[0.9, 0.1, -0.2, 0.1], [0.2, 1.1, 0.1, -0.2], [-0.1, 0.1, 0.8, 0.05]])
    got, _ = transformed(theta, size=(5, 9, 6), **OPTIONS[options])
    good, _ = transformed(all_good(theta), size=(5, 9, 6), **OPTIONS[options])
    assert_contained(theta, got, good)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflection"])
@pytest.mark.parametrize("of", ["grid", "flow", "volume_grid", "volume_flow"])
def test_a_bad_number_in_a_field_stays_in_its_pixel(of, padding_mode):
    size = (3, *SIZE) if "volume" in of else SIZE
    ndim = len(size)
    image = noise(1, 3, *size, seed=1).float().requires_grad_()
    field = noise(1, *size, ndim, seed=3).float()
    holes = torch.zeros(size, dtype=torch.bool)
    for n, value in enumerate(VALUES):
        place = (n % 3, n, n % ndim + 3)[-ndim:]
        field[0][place][n % ndim] = value
        holes[place] = not math.isfinite(value)
    field.requires_grad_()
    with triton_stn.use_backend("triton"):
        options = dict(padding_mode=padding_mode)
        if "grid" in of:
            y = triton_stn.grid_sample(image, field, **options)
        else:
            y = triton_stn.flow_warp(image, field.movedim(-1, 1), **options)
    assert y[0, 0][holes].isnan().all()
    of_image, of_field = torch.autograd.grad(y, (image, field), torch.ones_like(y))
    assert of_image.isfinite().all() and (of_field[0][holes] == 0).all()


def instructions(launched) -> int:
    return sum(launch.counts.total for launch in launched)


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_not_finite_takes_one_antialiased_sample_a_pixel(channels, value):
    """`min` of a NaN and 16 is 16 compiled: 256 samples a pixel where a NaN counts as a number."""
    eye = torch.eye(2, 3)[None]
    options = dict(channels=channels, antialias=True)
    _, plain = transformed(eye, **options)
    got, launched = transformed(torch.full((1, 2, 3), value), **options)
    assert got.y.isnan().all()
    assert instructions(launched) <= 1.1 * instructions(plain)


def test_nan_walks_nothing_in_a_deterministic_homography():
    torch.use_deterministic_algorithms(True)
    try:
        _, plain = transformed(torch.eye(3)[None], transform="projective")
        for place in range(9):
            theta = torch.eye(3)
            theta.view(-1)[place] = NAN
            got, launched = transformed(theta[None], transform="projective")
            assert got.y.isnan().all()
            assert instructions(launched) <= instructions(plain)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("value", [NAN, INF, 0.0, 1e-38])
def test_a_degenerate_affine_map_costs_no_more_than_some_turns(value):
    turned, _ = math.cos(0.5), math.sin(0.5)
    plain = torch.tensor([[[turned, -_, 0.0], [_, turned, 0.0]]])
    _, usual = transformed(plain, size=(40, 40))
    _, launched = transformed(torch.full((1, 2, 3), value), size=(40, 40))
    assert instructions(launched) <= 20 * instructions(usual)
