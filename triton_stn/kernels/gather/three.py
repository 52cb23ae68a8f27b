"""The window of a theta that reaches at most 1.5 each way, as of any rotation at scale 1: 3 x 3."""

from typing import NamedTuple

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import affine_2d
from triton_stn.kernels.gather.candidates import (
    accumulate,
    at_row,
    hat,
    load_pass,
    pixel_offsets,
    with_sign,
)
from triton_stn.kernels.gather.inverse import window_corner


class ThreeWindow(NamedTuple):
    """What is known of every pixel whatever the channel."""

    rows: object  # three centred indices each
    columns: object
    wx: object  # of nine candidates, row by row
    wy: object
    distance_x: object
    distance_y: object
    inside: object
    offs: object  # of the first in dY
    stride_q: object  # a row further
    stride_p: object  # a column further


@triton.jit
def elsewhere(index, centre, mask):
    """A centred index; outside the output or of no pixel, one so far that it lies in no cell."""
    return tl.where(mask & (tl.abs(index) <= centre), index, 1e15)


@triton.jit
def locate(pixel_map, j, i, pixels, RULES: tl.constexpr):
    """Where an output pixel falls in the cells of input pixels: (wx, wy, distances, inside).

    All coordinates are finite here.
    """
    x, y = affine_2d(pixel_map, j, i)
    wx, distance_x, in_x = hat(x, pixels.u, pixels.last[0], RULES)
    wy, distance_y, in_y = hat(y, pixels.v, pixels.last[1], RULES)
    if RULES.mode == "nearest" or RULES.padding != "zeros":
        inside = in_x & in_y
    else:
        # The same of finite numbers. A chain of four conditions is packed into bit masks by the
        # compiler, 80 instructions for nine candidates; a chain of two is not.
        inside = (x >= pixels.u - 1) & (y >= pixels.v - 1)
        inside &= tl.maximum(distance_x, distance_y) < 1
    return wx, wy, distance_x, distance_y, inside


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
    wx = ()
    wy = ()
    distance_x = ()
    distance_y = ()
    inside = ()
    for n in tl.static_range(9):
        x, y, d_x, d_y, here = locate(pixel_map, columns[n % 3], rows[n // 3], pixels, RULES)
        wx = wx + (x,)
        wy = wy + (y,)
        distance_x = distance_x + (d_x,)
        distance_y = distance_y + (d_y,)
        inside = inside + (here,)
    return ThreeWindow(
        rows, columns, wx, wy, distance_x, distance_y, inside, offs, G.stride_h, G.stride_w
    )


@triton.jit
def gather_three(acc, ts, X, G, window, pixels, RULES: tl.constexpr, TILING: tl.constexpr):
    """One pass of channels through the window: (acc, ts), as `gather_axis`."""
    values = load_pass(X, pixels.mask, pixels, RULES, TILING)
    row = G.ptr
    out = ()
    for r in tl.static_range(3):
        for c in tl.static_range(3):
            weight = window.wx[3 * r + c] * window.wy[3 * r + c]
            acc, t = accumulate(
                acc, ts[3 * r + c], values, at_row(G, row), c, weight, window.inside[3 * r + c],
                pixels, RULES, TILING,
            )  # fmt: skip
            out = out + (t,)
        row += window.stride_q
    return acc, out


@triton.jit
def three_moments(moments, ts, window):
    """moments and what the window of each pixel gives to them."""
    m0, m1, m2, m3, m4, m5 = moments
    nothing = tl.full(m0.shape, -0.0, m0.dtype)  # added to at no cost, unlike +0.0
    for r in tl.static_range(3):
        x_row = nothing
        y_row = nothing
        for c in tl.static_range(3):
            # X may be an inf that no candidate reads: no product of it with 0 is wanted.
            t = tl.where(window.inside[3 * r + c], ts[3 * r + c], 0.0)
            x = with_sign(t * window.wy[3 * r + c], window.distance_x[3 * r + c])
            y = with_sign(t * window.wx[3 * r + c], window.distance_y[3 * r + c])
            m0 = tl.fma(-window.columns[c], x, m0)
            m3 = tl.fma(-window.columns[c], y, m3)
            x_row += x
            y_row += y
        m1 = tl.fma(-window.rows[r], x_row, m1)
        m4 = tl.fma(-window.rows[r], y_row, m4)
        m2 -= x_row
        m5 -= y_row
    return m0, m1, m2, m3, m4, m5
