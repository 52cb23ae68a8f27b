"""The window of a homography: its inverse, and the candidates of each input pixel.

The output pixels that read input pixel (u, v) lie in the preimage of its 2 x 2 cell: with w' > 0 at
the cell's corners the convex hull of the corners' preimages, so the window is their bounding box.
With G = H⁻¹ and H scaled to a largest entry of 1, G (x, y, 1) = (X, Y, 1) / w, so that w' = 1 / w,
and what the canvas sees has w' of at least 1 over the largest w there.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import fma3, matrix_place
from triton_stn.kernels.gather.candidates import (
    add_candidate,
    at_offset,
    output_offsets,
    weight_where,
)
from triton_stn.kernels.gather.inverse import MOST_CANDIDATES, inverse_3x3, largest_of


class InverseHomography(NamedTuple):
    """G, row by row, and what bounds the windows."""

    g: object
    margin_j: object  # output pixels that bound the rounding of G and of what it is applied to
    margin_i: object
    least: object  # the smallest w' in view
    gathered: object  # the margins are small and no window in view has many candidates


class PerspectiveWindow(NamedTuple):
    """Rows and columns of the first and the last candidate; the last before the first of none."""

    i_first: object
    i_last: object
    j_first: object
    j_last: object


@triton.jit
def inverse_homography(pixel_map, CANVAS, RULES: tl.constexpr):
    """The `InverseHomography` of a theta, as every kernel rounds it.

    Of a singular or non-finite theta, whose determinant is 0 or NaN, nothing is gathered.
    """
    scale = 1 / tl.maximum(largest_of(pixel_map.h), 1e-30)
    n = ()
    for place in tl.static_range(9):
        n = n + (pixel_map.h[place] * scale,)
    g, det = inverse_3x3(n, 1.0)
    X = tl.abs(CANVAS.centre_w * pixel_map.unit_w)
    Y = tl.abs(CANVAS.centre_h * pixel_map.unit_h)
    w_most = fma3(tl.abs(n[6]), tl.abs(n[7]), n[8], X, Y)
    total = tl.abs(g[0])
    for place in tl.static_range(1, 9):
        total += tl.abs(g[place])
    # Of X and Y, 2^-19 being 32 roundings: cofactors of entries of at most 1 err by a few of them,
    # G and what it is applied to relatively; in view, both stand over w' >= 1 / w_most.
    rounding = 1.9e-6 * (1 + w_most) * (1 / tl.abs(det) + total)
    margin_j = tl.fma(rounding, 1 / pixel_map.unit_w, 0.015625)
    margin_i = tl.fma(rounding, 1 / pixel_map.unit_h, 0.015625)
    # What a step of one input pixel moves the preimage by, at most, where the canvas can see it.
    half: tl.constexpr = 0.5 if RULES.mode == "nearest" else 1.0
    step_x = half * w_most / pixel_map.half[0]
    step_y = half * w_most / pixel_map.half[1]
    x_j = tl.fma(tl.abs(g[6]), X, tl.abs(g[0]))
    y_j = tl.fma(tl.abs(g[7]), X, tl.abs(g[1]))
    x_i = tl.fma(tl.abs(g[6]), Y, tl.abs(g[3]))
    y_i = tl.fma(tl.abs(g[7]), Y, tl.abs(g[4]))
    reach_j = tl.fma(x_j, step_x, y_j * step_y) / pixel_map.unit_w + margin_j
    reach_i = tl.fma(x_i, step_x, y_i * step_y) / pixel_map.unit_h + margin_i
    candidates = tl.fma(2.0, reach_j, 1.0) * tl.fma(2.0, reach_i, 1.0)
    gathered = (w_most > 0) & (rounding < 0.125) & (candidates <= MOST_CANDIDATES)
    return InverseHomography(g, margin_j, margin_i, 1 / w_most, gathered)


@triton.jit
def perspective_window(pixel_map, inverse, pixels, CANVAS, RULES: tl.constexpr):
    """The `PerspectiveWindow` of each pixel."""
    half: tl.constexpr = 0.5 if RULES.mode == "nearest" else 1.0
    g = inverse.g
    w_low = tl.full(pixels.u.shape, float("inf"), RULES.dtype)
    j_low = w_low
    i_low = w_low
    w_high = -w_low
    j_high = w_high
    i_high = w_high
    for corner in tl.static_range(4):
        u = pixels.u + (half if corner % 2 == 1 else -half)
        v = pixels.v + (half if corner // 2 == 1 else -half)
        x = (u - pixel_map.middle[0]) / pixel_map.half[0]
        y = (v - pixel_map.middle[1]) / pixel_map.half[1]
        w = fma3(g[6], g[7], g[8], x, y)
        j = fma3(g[0], g[1], g[2], x, y) / w / pixel_map.unit_w
        i = fma3(g[3], g[4], g[5], x, y) / w / pixel_map.unit_h
        w_low = tl.minimum(w_low, w)
        w_high = tl.maximum(w_high, w)
        j_low = tl.minimum(j_low, j)
        j_high = tl.maximum(j_high, j)
        i_low = tl.minimum(i_low, i)
        i_high = tl.maximum(i_high, i)
    seen = pixels.mask & (w_high >= 0.5 * inverse.least)
    # Where w' changes a lot inside the cell, as in an image of few pixels, no box is drawn.
    whole = w_low < 0.125 * inverse.least
    last_j = 2 * CANVAS.centre_w
    last_i = 2 * CANVAS.centre_h
    j_first = tl.maximum(tl.ceil(j_low - inverse.margin_j + CANVAS.centre_w), 0.0)
    i_first = tl.maximum(tl.ceil(i_low - inverse.margin_i + CANVAS.centre_h), 0.0)
    j_last = tl.minimum(tl.floor(j_high + inverse.margin_j + CANVAS.centre_w), last_j)
    i_last = tl.minimum(tl.floor(i_high + inverse.margin_i + CANVAS.centre_h), last_i)
    j_first = tl.where(whole, 0.0, j_first)
    i_first = tl.where(whole, 0.0, i_first)
    j_last = tl.where(whole, last_j, j_last)
    i_last = tl.where(whole, last_i, i_last)
    seen &= (j_last >= j_first) & (i_last >= i_first)
    return PerspectiveWindow(
        tl.where(seen, i_first, 0.0),
        tl.where(seen, i_last, -1.0),
        tl.where(seen, j_first, 0.0),
        tl.where(seen, j_last, -1.0),
    )


@triton.jit
def gather_perspective(acc, G, JOB, pixels, RULES: tl.constexpr, TILING: tl.constexpr):
    """One pass of channels; the tile walks as far as the largest of its pixels' windows."""
    pixel_map, inverse, CANVAS = JOB.pixel_map, JOB.inverse, JOB.canvas
    window = perspective_window(pixel_map, inverse, pixels, CANVAS, RULES)
    i = window.i_first
    j_first = window.j_first - CANVAS.centre_w
    row = G.offs + output_offsets(JOB.dy, j_first, i - CANVAS.centre_h, CANVAS, RULES)
    for _ in range((tl.max(window.i_last - window.i_first) + 1).to(tl.int32)):
        offs = row
        j = window.j_first
        for _ in range((tl.max(window.j_last - window.j_first) + 1).to(tl.int32)):
            place = matrix_place(pixel_map, j - CANVAS.centre_w, i - CANVAS.centre_h, 0.0, RULES)
            here = (i <= window.i_last) & (j <= window.j_last)
            weight = weight_where(here, place, pixels, RULES)
            acc = add_candidate(acc, at_offset(G, offs), 0, weight, pixels, RULES, TILING)
            offs += JOB.dy.stride_w
            j += 1
        row += JOB.dy.stride_h
        i += 1
    return acc
