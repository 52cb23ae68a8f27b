"""Every window of the gathering backward, each with the θ that needs it (narrow.py, wide.py)."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import Place
from oracle import assert_right, expected, run, same, smooth

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
SIZE, OUTPUT_SIZE = (5, 6), (7, 6)


def turn(degrees: float, scale: float) -> list[list[float]]:
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return [[c, -s], [s, c]]


# From centred output pixels to input pixels, rows (x, y). A scale below 1 magnifies.
WINDOWS = {
    "axis": [[1.3, 0], [0, -1.1]],
    "axis_on_its_side": [[0, 1.2], [-1.4, 0]],
    "three": turn(30, 1),
    "three_shrinking": turn(45, 2.3),
    "walk": turn(30, 1 / 3),
    "straight": [[0.4, 0], [0, 0.5]],
    "straight_flipped": [[-0.37, 0], [0, 0.8]],
    "wide": turn(30, 1 / 20),
    "wide_upright": [[0.02, 0], [0, -0.03]],
    "wide_nearly_singular": [[0.8, 0.4], [1.2, 0.6000001]],
    "wide_singular": [[0.7, 0.3], [0, 0]],
    "wide_a_point": [[0, 0], [0, 0]],
}
# In pixels: off the lattice, and apart from each other.
SHIFTS = [(0.31, -0.17), (-0.77, 0.41), (1.37, 0.23)]


def theta_from_pixels(matrix, shift, size, output_size) -> torch.Tensor:
    """Normalised θ (2, 3), float64, of a pixel map about the centres; align_corners=False."""
    spans, extents = size[::-1], output_size[::-1]
    rows = [[matrix[r][0] * extents[0], matrix[r][1] * extents[1], 2 * shift[r]] for r in range(2)]
    return torch.tensor(rows, dtype=torch.float64) / torch.tensor(spans)[:, None]


def noise(*shape, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def check(place: Place, theta, channels, layout, dtype, mode="bilinear", size=SIZE):
    """θ (1, K, 2, 3) against the oracle; a gradient on a kink, or a tie, is zero."""
    k = theta.shape[1]
    theta = theta.to(torch.promote_types(dtype, torch.float32))
    image = noise(1, channels, *size, seed=1).to(dtype).contiguous(memory_format=layout)
    keep = smooth(theta, *size, OUTPUT_SIZE, False).unsqueeze(2)
    assert keep.mean() > 0.9
    grad = (noise(1, k, channels, *OUTPUT_SIZE, seed=2) * keep).to(dtype)
    tensors = (t.to(place.device) for t in (image, theta))
    got = run(place.sample, *tensors, OUTPUT_SIZE, grad.to(place.device), mode=mode)
    assert_right(got, *expected(image, theta, OUTPUT_SIZE, grad, mode=mode))


@pytest.mark.thinned(2)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("window", WINDOWS)
def test_every_window_gathers_what_was_read(kernels: Place, window, k, layout, mode):
    maps = [theta_from_pixels(WINDOWS[window], s, SIZE, OUTPUT_SIZE) for s in SHIFTS[:k]]
    dtype = DTYPES[(list(WINDOWS).index(window) + k // 3 + 2 * (layout == "nchw")) % 4]
    channels, layout = (
        (3, torch.contiguous_format) if layout == "nchw" else (9, torch.channels_last)
    )
    check(kernels, torch.stack(maps)[None], channels, layout, dtype, mode)


@pytest.mark.parametrize("channels, layout", [(5, "nchw"), (17, "nchw"), (8, "channels_last")])
def test_the_windows_of_one_image_s_transforms_add_up(kernels: Place, channels, layout):
    maps = [
        theta_from_pixels(WINDOWS[window], SHIFTS[0], SIZE, OUTPUT_SIZE)
        for window in ("axis_on_its_side", "wide", "three", "walk", "axis")
    ]
    layout = torch.contiguous_format if layout == "nchw" else torch.channels_last
    check(kernels, torch.stack(maps)[None], channels, layout, torch.float32)


@pytest.mark.parametrize("window", ["axis", "three", "walk", "straight", "wide"])
@pytest.mark.parametrize("k", [1, 4])
def test_crops_that_miss_most_tiles_of_an_image_lose_nothing(kernels: Place, k, window):
    """Four corners and edges of a canvas of 3 x 4 tiles, each crop over a few of them."""
    size = (40, 28)
    middles = [(-13.31, -19.17), (12.67, 18.41), (-6.43, 7.73), (20.23, -4.61)]
    maps = [theta_from_pixels(WINDOWS[window], m, size, OUTPUT_SIZE) for m in middles[:k]]
    check(kernels, torch.stack(maps)[None], 3, torch.contiguous_format, torch.float32, size=size)


def spread_crops(count: int, size: tuple[int, int]) -> torch.Tensor:
    """(1, count, 2, 3): crops all over an image and beyond, of three windows in turn."""
    maps = []
    for k in range(count):
        middle = (size[1] * (k * 0.618 % 1.4 - 0.7), size[0] * (k * 0.414 % 1.4 - 0.7))
        linear = WINDOWS[("axis", "three", "axis_on_its_side")[k % 3]]
        maps.append(theta_from_pixels(linear, middle, size, OUTPUT_SIZE))
    return torch.stack(maps)[None]


@pytest.mark.parametrize("channels", [3, 9])
def test_more_maps_than_a_warp_has_lanes_are_all_looked_at(kernels: Place, channels):
    size = (40, 28)
    maps = spread_crops(37, size)
    check(kernels, maps, channels, torch.contiguous_format, torch.float32, size=size)


@pytest.mark.thinned
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("window", WINDOWS)
def test_an_inf_that_no_output_reads_changes_no_number(kernels: Place, window, padding_mode):
    size, output_size = (11, 11), (3, 3)
    theta = theta_from_pixels(WINDOWS[window], SHIFTS[0], size, output_size).float()
    image = noise(1, 2, *size, seed=3)
    ring = torch.ones(size, dtype=torch.bool)
    ring[1:-1, 1:-1] = False
    grad = noise(1, 2, *output_size, seed=4).to(kernels.device)
    results = []
    for value in (0.0, math.inf):
        filled = image.masked_fill(ring, value).to(kernels.device)
        args = (filled, theta.to(kernels.device), output_size, grad)
        results.append(run(kernels.sample, *args, padding_mode=padding_mode))
    assert results[0].grad_theta.isfinite().all()
    assert same(results[0].y, results[1].y)
    assert same(results[0].grad_input, results[1].grad_input)
    assert same(results[0].grad_theta, results[1].grad_theta)
