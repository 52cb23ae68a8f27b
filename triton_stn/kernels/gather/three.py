"""The window of a theta that reaches at most 1.5 each way, as of any rotation at scale 1: 3 x 3."""

from typing import NamedTuple

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import affine_2d
from triton_stn.kernels.gather.candidates import add_candidate, at_row, pixel_offsets, weight_at
from triton_stn.kernels.gather.inverse import window_corner


class ThreeWindow(NamedTuple):
    """What is known of every pixel whatever the channel."""

    weights: object  # of nine candidates, row by row
    offs: object  # of the first in dY
    stride_q: object  # a row further
    stride_p: object  # a column further


@triton.jit
def elsewhere(index, centre, mask):
    """A centred index; outside the output or of no pixel, one so far that it lies in no cell."""
    return tl.where(mask & (tl.abs(index) <= centre), index, 1e15)


@triton.jit
def three_window(pixel_map, inverse, pixels, G, CANVAS, RULES: tl.constexpr):
    """The `ThreeWindow` of each pixel of a tile."""
    column, row = window_corner(pixel_map, inverse, pixels, CANVAS)
    offs = pixel_offsets(G, column, row, RULES)
    j = column - CANVAS.centre_w
    i = row - CANVAS.centre_h
    rows = ()
    columns = ()
    for n in tl.static_range(3):
        rows = rows + (elsewhere(i + n if n > 0 else i, CANVAS.centre_h, pixels.mask),)
        columns = columns + (elsewhere(j + n if n > 0 else j, CANVAS.centre_w, True),)
    weights = ()
    for n in tl.static_range(9):
        # All coordinates are finite here.
        place = affine_2d(pixel_map, columns[n % 3], rows[n // 3])
        weights = weights + (weight_at(place, pixels, RULES),)
    return ThreeWindow(weights, offs, G.stride_h, G.stride_w)


@triton.jit
def gather_three(acc, G, window, pixels, RULES: tl.constexpr, TILING: tl.constexpr):
    """One pass of channels through the window."""
    row = G.ptr
    for r in tl.static_range(3):
        for c in tl.static_range(3):
            weight = window.weights[3 * r + c]
            acc = add_candidate(acc, at_row(G, row), c, weight, pixels, RULES, TILING)
        row += window.stride_q
    return acc
