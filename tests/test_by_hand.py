"""Every public function against tiny cases whose values were worked out on paper."""

from __future__ import annotations

import math

import pytest
import torch

from triton_stn import (
    ThinPlateSpline,
    flow_warp,
    grid_sample,
    grid_splat,
    spatial_transform,
    splat,
)
from triton_stn.geometry import inside_mask, to_pixel_matrix

# With align_corners a canvas of one pixel lies at (X, Y) = (0, 0), and -1 ... 1 of the row is
# pixel 0 ... 3: x = 1.5 (X + 1).
ROW = [[[[2.0, 4.0, 8.0, 16.0]]]]
SQUARE = [[[[1.0, 2.0], [3.0, 4.0]]]]  # 1 + x + 2 y
CUBE = [[[[[0.0, 1.0], [2.0, 3.0]], [[4.0, 5.0], [6.0, 7.0]]]]]  # x + 2 y + 4 z
LAST = [[[[[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 64.0]]]]]  # 64 x y z
SPLINE = ThinPlateSpline(2, 2)


def at(x, y=0.0, z=None):
    """θ of a canvas of one pixel that reads the normalised (x, y[, z])."""
    here = [x, y] if z is None else [x, y, z]
    return [[*(float(i == j) for j in range(len(here))), value] for i, value in enumerate(here)]


def corners(function):
    """θ of SPLINE: the source of each of the control points (±1, ±1)."""
    return [function(x, y) for y in (-1, 1) for x in (-1, 1)]


def transformed(image, theta, size=(1, 1), **options):
    options = dict(align_corners=True) | options
    return lambda t: spatial_transform(t(image), t(theta), size, **options)


# what the call gives, with every tensor made by t; the value
CASES = {
    # x = 1.25: 3/4 of 4 and 1/4 of 8
    "affine": (transformed(ROW, at(-1 / 6)), [[[[5.0]]]]),
    # x = j + 1/2: the mean of both columns, then half of the last and half of nothing
    "affine from edge to edge": (
        transformed(SQUARE, at(0.5), (2, 2), align_corners=False),
        [[[[1.5, 1.0], [3.5, 2.0]]]],
    ),
    # X = ∓1 -> ∓0.5: x = 0.75 and 2.25
    "attention": (
        transformed(ROW, [0.5, 0.0, 0.0], (1, 2), transform="attention"),
        [[[[3.5, 10.0]]]],
    ),
    # a quarter turn, halved: (X, Y) -> (-Y, X) / 2, in pixels 1/4 or 3/4, in 1 + x + 2 y
    "similarity": (
        transformed(SQUARE, [0.5, math.pi / 2, 0.0, 0.0], (2, 2), transform="similarity"),
        [[[[2.25, 3.25], [1.75, 2.75]]]],
    ),
    # w = X + 3 = 2 and 4: X = -1/2 and 1/4, x = 0.75 and 1.875
    "projective": (
        transformed(ROW, [[1, 0, 0], [0, 1, 0], [1, 0, 3]], (1, 2), transform="projective"),
        [[[[3.5, 7.5]]]],
    ),
    # the canvas is the four control points: x = 0, 1, 2 and 1.25 exactly
    "spline at its control points": (
        transformed(ROW, [[-1, 0], [-1 / 3, 0], [1 / 3, 0], [-1 / 6, 0]], (2, 2), transform=SPLINE),
        [[[[2.0, 4.0], [8.0, 5.0]]]],
    ),
    # Corners displaced by XY/2 along x: weights ±w, where 1/2 = w (8 ln 8 - 2·4 ln 4), w = 1/(16 ln
    # 2). At (±1/2, ±1/2) r² is 1/2, 5/2, 5/2, 9/2, and X moves by ±w (ln(1/2)/2 + 9/2 ln(9/2)
    # - 5 ln(5/2)) = ±0.165940; x = 2 X + 1.5 by ±0.331880.
    "spline between its control points": (
        transformed(
            ROW,
            corners(lambda x, y: (x + x * y / 2, y)),
            (2, 2),
            transform=SPLINE,
            padding_mode="border",
            align_corners=False,
        ),
        [[[[3.66376, 9.34496], [2.33624, 14.65504]]]],
    ),
    # halfway between four pixels: their mean
    "grid": (
        lambda t: grid_sample(t([[[[1, 3], [5, 15]]]]), t([[[[0, 0]]]])),
        [[[[6.0]]]],
    ),
    # x = 1.25 is pixel 1; X = 5 is past the end
    "grid, by position": (
        lambda t: grid_sample(t(ROW), t([[[[-1 / 6, 0], [5, 0]]]]), "nearest", "border", True),
        [[[[4.0, 16.0]]]],
    ),
    # a quarter of the next pixel; after the last lies 0
    "flow": (
        lambda t: flow_warp(t(ROW), t([[[[0.25] * 4], [[0.0] * 4]]])),
        [[[[2.5, 5.0, 10.0, 12.0]]]],
    ),
    # 8 and 4 land at x = 0.5 and 1.5: halves of 8 in both, a half of 4 in one, the rest outside
    "splat": (
        lambda t: splat(t([[[[8, 4]]]]), t([[1, 0, 0.5], [0, 1, 0]])),
        [[[[4.0, 6.0]]]],
    ),
    # weights 1/2 and 1/2 + 1/2
    "splat, a mean": (
        lambda t: splat(t([[[[8, 4]]]]), t([[1, 0, 0.5], [0, 1, 0]]), normalize=True),
        [[[[8.0, 6.0]]]],
    ),
    # 1.5 becomes 1: 4 lands whole
    "splat, border": (
        lambda t: splat(t([[[[8, 4]]]]), t([[1, 0, 0.5], [0, 1, 0]]), padding_mode="border"),
        [[[[4.0, 8.0]]]],
    ),
    # 8 at x = 0.25, 4 at x = 1: (6, 2 + 4) over the weights (3/4, 1/4 + 1)
    "grid splat, a mean": (
        lambda t: grid_splat(
            t([[[[8, 4]]]]), t([[[[-0.5, 0], [1, 0]]]]), align_corners=True, normalize=True
        ),
        [[[[8.0, 4.8]]]],
    ),
    # x = 1.5: -0.09375 (2 + 16) + 0.59375 (4 + 8)
    "bicubic": (transformed(ROW, at(0), mode="bicubic"), [[[[5.4375]]]]),
    # x = 1.25: -0.10546875·2 + 0.87890625·4 + 0.26171875·8 - 0.03515625·16
    "bicubic, a quarter": (transformed(ROW, at(-1 / 6), mode="bicubic"), [[[[4.8359375]]]]),
    # x = 0.5: -0.09375 (p + 8) + 0.59375 (2 + 4), where pixel -1 is p = 0, 2 or 4
    "bicubic, zeros": (transformed(ROW, at(-2 / 3), mode="bicubic"), [[[[2.8125]]]]),
    "bicubic, border": (
        transformed(ROW, at(-2 / 3), mode="bicubic", padding_mode="border"),
        [[[[2.625]]]],
    ),
    "bicubic, reflection": (
        transformed(ROW, at(-2 / 3), mode="bicubic", padding_mode="reflection"),
        [[[[2.4375]]]],
    ),
    # 0.5 -> 0, 1.5 -> 2, 2.5 -> 2, 3.5 -> 4, which is outside
    "nearest, half to even": (
        lambda t: flow_warp(t(ROW), t([[[[0.5] * 4], [[0.0] * 4]]]), "nearest"),
        [[[[2.0, 8.0, 8.0, 0.0]]]],
    ),
    # half of the pixel, half of what lies outside it
    "fill": (transformed([[[[4.0]]]], at(1), align_corners=False, fill_value=2.0), [[[[3.0]]]]),
    "fill, one a channel": (
        lambda t: spatial_transform(t([[[[4]], [[8]]]]), t(at(1)), fill_value=t([2, -1])),
        [[[[3.0]], [[3.5]]]],
    ),
    # twice as wide: pixels cover columns -2 and -1, 0 and 1, 2 and 3, 4 and 5
    "antialias": (
        transformed(
            [[[[0.0, 1.0, 0.0, 1.0]]]],
            [[2, 0, 0], [0, 1, 0]],
            (1, 4),
            antialias=True,
            align_corners=False,
        ),
        [[[[0.0, 0.5, 0.5, 0.0]]]],
    ),
    # the mean of all eight
    "volume": (transformed(CUBE, at(0, 0, 0), (1, 1, 1)), [[[[[3.5]]]]]),
    # (1/4, 1/2, 3/4): 64 x y z
    "volume, a fraction": (transformed(LAST, at(-0.5, 0, 0.5), (1, 1, 1)), [[[[[6.0]]]]]),
    # (1/4, 3/4, 3/4) is voxel (0, 1, 1)
    "volume, nearest": (
        transformed(CUBE, at(-0.5, 0.5, 0.5), (1, 1, 1), mode="nearest"),
        [[[[[6.0]]]]],
    ),
    # X = x_out - 1/2, x = 4 (X + 1/4) + 3.5; Y = y_out - 1/2, y = 2 (Y / 2) + 1.5
    "to_pixel_matrix": (
        lambda t: to_pixel_matrix(t([[1, 0, 0.25], [0, 0.5, 0]]), (4, 8), (2, 2)),
        [[4.0, 0.0, 2.5], [0.0, 1.0, 1.0]],
    ),
    "to_pixel_matrix, inverse": (
        lambda t: to_pixel_matrix(
            t([[1, 0, 0.25], [0, 0.5, 0]]), (4, 8), (2, 2), direction="input_to_output"
        ),
        [[0.25, 0.0, -0.625], [0.0, 1.0, -1.0]],
    ),
    # x = j + 1/2: 3.5 is still on the last pixel; x = j + 1: 4 is not; y = 0
    "inside_mask": (
        lambda t: inside_mask(t([at(0.25), at(0.5)]), (1, 4)),
        [[[True, True, True, True]], [[True, True, True, False]]],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_value_is_the_one_on_paper(device, name):
    call, expected = CASES[name]
    got = call(lambda numbers: torch.tensor(numbers, dtype=torch.float32, device=device))
    torch.testing.assert_close(got.cpu(), torch.tensor(expected), rtol=1e-5, atol=1e-5)
