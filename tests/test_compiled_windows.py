"""Every window of the gather, and images of odd sizes, compiled for an H100 and run on the CPU."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch
from conftest import Place
from oracle import assert_right, expected, run, smooth
from ptxrun import launches
from test_compiled_values import noise
from test_windows import SHIFTS, WINDOWS, spread_crops, theta_from_pixels

import triton_stn
from triton_stn import calls
from triton_stn.backends import plans
from triton_stn.kernels import configs

pytestmark = pytest.mark.compiled
COMPILED = Place("triton", "cpu")
SIZE, OUTPUT_SIZE = (19, 13), (17, 22)
MORE_WINDOWS = WINDOWS | {
    "wide_rank_1": [[0.7, 0.4], [0.35, 0.2]],
    "axis_rotated_by_nothing": [[1, 1e-30], [0, 1]],
    "three_almost_a_quarter_turn": [[-4e-8, -1], [1, -4e-8]],
    "three_mirrored": [[-0.9, 0.6], [0.6, 0.9]],
}


def check(maps, size, output_size, channels=3, dtype=torch.float32, **options):
    """θ (1, K, 2, 3), or (N, 2, 3), in float64."""
    maps = maps.to(torch.promote_types(dtype, torch.float32))
    image = noise(len(maps), channels, *size, seed=1).to(dtype)
    corners = options.get("align_corners", False)
    keep = smooth(maps, *size, output_size, corners).unsqueeze(-3)
    grad = (noise(*maps.shape[:-2], channels, *output_size, seed=2) * keep).to(dtype)
    got = run(COMPILED.sample, image, maps, output_size, grad, **options)
    assert_right(got, *expected(image, maps, output_size, grad, **options))


def in_pixels(window: str, images: int) -> torch.Tensor:
    shifts = SHIFTS[:images]
    return torch.stack(
        [theta_from_pixels(MORE_WINDOWS[window], s, SIZE, OUTPUT_SIZE) for s in shifts]
    )


@pytest.mark.parametrize("window", MORE_WINDOWS)
def test_every_window_gathers_what_was_read(window):
    check(in_pixels(window, 2), SIZE, OUTPUT_SIZE)


@pytest.mark.parametrize("window", MORE_WINDOWS)
def test_every_window_of_nearest_gathers_what_was_read(window):
    check(in_pixels(window, 2), SIZE, OUTPUT_SIZE, mode="nearest")


@pytest.mark.parametrize("window", MORE_WINDOWS)
def test_every_window_of_many_channels_gathers_what_was_read(window):
    check(in_pixels(window, 1), SIZE, OUTPUT_SIZE, channels=70)


@contextmanager
def cut(**constants):
    """Launches are cut by other constants of `configs`."""
    before = {name: getattr(configs, name) for name in constants}

    def choose(these):
        for name, value in these.items():
            setattr(configs, name, value)
        plans.plan_backward.cache_clear()
        calls.forget()

    choose(constants)
    try:
        yield
    finally:
        choose(before)


@pytest.mark.parametrize(("enough", "pixels"), [(1, 2), (configs.ENOUGH_PROGRAMS, 1)])
def test_the_windows_of_one_image_s_maps_add_up(enough, pixels):
    """A thread has two pixels where programs are many."""
    with cut(ENOUGH_PROGRAMS=enough), launches.recorded() as launched:
        for windows in (["axis", "wide", "three"], ["axis_on_its_side", "walk", "straight"]):
            maps = [theta_from_pixels(WINDOWS[w], SHIFTS[0], SIZE, OUTPUT_SIZE) for w in windows]
            check(torch.stack(maps)[None], SIZE, OUTPUT_SIZE)
    tilings = [launch.plan.constants.get("TILING") for launch in launched]
    assert pixels * 128 in [tiling.pixels for tiling in tilings if tiling]


@pytest.mark.parametrize("count", [1 + 32, 64, 70])
def test_more_maps_than_a_warp_has_lanes_are_all_looked_at(count):
    check(spread_crops(count, (40, 28)), (40, 28), OUTPUT_SIZE)


@pytest.mark.parametrize("folds", [0, 32, 34])
def test_one_of_many_maps_that_folds_is_seen(folds):
    """A half image's gather keeps float32 sums for the scatter where any of its maps needs it."""
    maps = torch.eye(2, 3, dtype=torch.float64).repeat(35, 1, 1) * 0.4
    maps[folds, 0, 2] = 0.9
    dtype = torch.bfloat16
    with launches.recorded() as launched:
        check(maps[None], (40, 28), OUTPUT_SIZE, dtype=dtype, padding_mode="border")
    assert "settle" in [launch.kernel for launch in launched]


@pytest.mark.parametrize("window", ["axis", "three"])
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_a_program_walks_several_bands(window, padding_mode):
    """As where one multiprocessor has all of a larger image to itself."""
    size, output_size = (60, 41), (75, 53)
    theta = theta_from_pixels(WINDOWS[window], SHIFTS[0], size, output_size)
    with cut(MULTIPROCESSORS=1), launches.recorded() as launched:
        check(theta[None], size, output_size, padding_mode=padding_mode)
    (work,) = (one.plan.arguments["WORK"] for one in launched if one.kernel == "gather")
    assert work.bands > 1 and work.tiles > 1


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("window", MORE_WINDOWS)
def test_warps_side_by_side_gather_what_was_read(window, several):
    """Seven tiles of 4 x 32 cover a digit, eight of 16 x 8 would."""
    size, output_size = (28, 28), (20, 25)
    shifts = SHIFTS[: 2 if several else 1]
    maps = [theta_from_pixels(MORE_WINDOWS[window], shift, size, output_size) for shift in shifts]
    with launches.recorded() as launched:
        check(torch.stack(maps)[None] if several else torch.stack(maps), size, output_size)
    works = {launch.kernel: launch.plan.arguments.get("WORK") for launch in launched}
    for kernel in "forward", "gather_maps" if several else "gather":
        work = works[kernel]
        assert (work.tile_h, work.tile_w, work.down, work.right) == (4, 32, 0, 8)


SIZES = [(1, 1), (1, 7), (9, 1), (2, 2), (2, 130), (16, 8), (17, 9), (33, 3), (3, 129)]


@pytest.mark.thinned
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_an_image_of_any_size_is_right(size, align_corners):
    """To and from an image of the tile's own size, and to its own."""
    turned = torch.tensor([[0.83, -0.31, 0.12], [0.27, 1.13, -0.21]], dtype=torch.float64)
    for of, to in ((size, (16, 8)), ((16, 8), size), (size, size)):
        check(turned[None], of, to, align_corners=align_corners)


@pytest.mark.nightly
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (17, 9)])
@pytest.mark.parametrize("padding_mode", ["border", "reflection"])
def test_an_image_of_any_size_is_scattered_right(size, padding_mode):
    turned = torch.tensor([[0.83, -0.31, 0.12], [0.27, 1.13, -0.21]], dtype=torch.float64)
    for of, to in ((size, (16, 8)), ((16, 8), size)):
        check(turned[None], of, to, padding_mode=padding_mode)


def test_crops_of_a_canvas_of_many_tiles_lose_nothing():
    size = (130, 140)
    middles = [(-43.31, -39.17), (42.67, 38.41), (-6.43, 7.73)]
    for window in ("axis", "three", "walk", "straight"):
        maps = [theta_from_pixels(WINDOWS[window], m, size, OUTPUT_SIZE) for m in middles]
        check(torch.stack(maps), size, OUTPUT_SIZE)


@pytest.mark.parametrize("of", ["affine", "projective"])
def test_the_same_bits_every_time_and_deterministically(of):
    """Of a homography what the gather leaves is added up in fixed point."""
    image = noise(2, 3, *SIZE, seed=1).float()
    rows = [[0.9, -0.3, 0.12], [0.2, 1.1, -0.21], [0.25, -0.15, 1.0]]
    horizon = [[1.0, 0.3, 0.1], [0.1, 1.0, -0.1], [6.0, 2.0, 1.0]]
    maps = torch.tensor([rows, horizon]) if of == "projective" else torch.tensor([rows[:2]] * 2)
    grad = noise(2, 3, *OUTPUT_SIZE, seed=2)

    def sample(x, theta, size):
        return COMPILED.sample(x, theta, size, transform=of)

    def pytorch(x, theta, size):
        return Place("torch", "cpu").sample(x, theta, size, transform=of)

    torch.use_deterministic_algorithms(True)
    try:
        with launches.recorded() as launched:
            got = run(sample, image, maps, OUTPUT_SIZE, grad)
    finally:
        torch.use_deterministic_algorithms(False)
    scatters = [launch.plan for launch in launched if launch.kernel == "scatter"]
    assert bool(scatters) == (of == "projective")
    assert all(plan.constants["RULES"].into == "fixed" for plan in scatters)
    exact, rival = (
        run(pytorch, image.to(dtype), maps.to(dtype), OUTPUT_SIZE, grad)
        for dtype in (torch.float64, torch.float32)
    )
    assert_right(got, exact, rival)
    again = run(sample, image, maps, OUTPUT_SIZE, grad)
    if of == "affine":
        assert torch.equal(got.grad_input, again.grad_input)
        assert torch.equal(got.grad_theta, again.grad_theta)


def test_an_image_that_is_expanded_or_strided_is_read_where_it_lies():
    wide = noise(1, 3, 38, 26, seed=1).float()
    turned = torch.tensor([[0.83, -0.31, 0.12], [0.27, 1.13, -0.21]])
    for image in (wide[..., ::2, 1::2], wide[..., :19, :13].expand(2, -1, -1, -1), wide.mT):
        got = COMPILED.sample(image, turned)
        with triton_stn.use_backend("torch"):
            exact = triton_stn.spatial_transform(image.double(), turned.double())
        torch.testing.assert_close(got.double(), exact, rtol=0, atol=2e-5)
    assert math.prod(got.shape) == wide.numel()
