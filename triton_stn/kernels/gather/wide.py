"""The window of a singular theta, or one that magnifies a lot: a program shares it.

Pixel by pixel of the tile, where the pixel's cell meets the image of the output: rows of output
pixels are spread over the tile's rows, and the stretch of each row that can lie in the cell is
walked by the tile's columns. Whatever theta is, an output pixel is looked at by few input pixels
beyond the four that it reads, and every sum keeps its order: no atomics.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import affine_2d
from triton_stn.kernels.gather.candidates import (
    SLACK,
    Pixels,
    add_candidate,
    at_offset,
    in_output,
    output_offsets,
    weight_at,
    zero_pass,
)
from triton_stn.kernels.gather.inverse import Box, meets
from triton_stn.kernels.taps import lasts

FLAT = tl.constexpr(1e-30)  # a smaller slope leaves a row's stretch unbounded


class Stretch(NamedTuple):
    """How far from where a row crosses a pixel's column its candidates reach, and how many."""

    reach_x: object
    reach_y: object
    width: object


@triton.jit
def row_stretch(pixel_map, CANVAS, RULES: tl.constexpr):
    """The `Stretch` of every row of a theta."""
    x_j = tl.abs(pixel_map.x_j)
    y_j = tl.abs(pixel_map.y_j)
    reach_x = tl.where(x_j > FLAT, 1 / x_j * SLACK, 1e30) + 0.015625
    reach_y = tl.where(y_j > FLAT, 1 / y_j * SLACK, 1e30) + 0.015625
    most = CANVAS.width.to(RULES.dtype)
    width = tl.minimum(2 * tl.minimum(reach_x, reach_y) + 3, most).to(tl.int32)
    return Stretch(reach_x, reach_y, width)


@triton.jit
def first_in_row(pixel_map, stretch, i, u, v, CANVAS):
    """The first centred index j of a row that can lie in the cell of pixel (u, v)."""
    x_row = tl.fma(pixel_map.x_i, i, pixel_map.x_1)
    y_row = tl.fma(pixel_map.y_i, i, pixel_map.y_1)
    low_x = tl.where(
        tl.abs(pixel_map.x_j) > FLAT, (u - x_row) / pixel_map.x_j - stretch.reach_x, -1e30
    )
    low_y = tl.where(
        tl.abs(pixel_map.y_j) > FLAT, (v - y_row) / pixel_map.y_j - stretch.reach_y, -1e30
    )
    low = tl.floor(tl.maximum(low_x, low_y) + CANVAS.centre_w)
    return tl.maximum(low, 0.0) - CANVAS.centre_w


@triton.jit
def rows_of(pixel_map, inverse, u, v, CANVAS):
    """The rows of the output that can lie in the cell of pixel (u, v): (first, end)."""
    height = CANVAS.height.to(u.dtype)
    middle = (
        tl.fma(inverse.i_x, u - pixel_map.x_1, inverse.i_y * (v - pixel_map.y_1)) + CANVAS.centre_h
    )
    bounded = inverse.reach_i < 1e6  # and no NaN
    first = tl.where(bounded, tl.maximum(middle - inverse.reach_i, 0.0), 0.0)
    end = tl.where(bounded, tl.minimum(middle + inverse.reach_i + 1, height), height)
    return first.to(tl.int32), end.to(tl.int32)


@triton.jit
def gather_wide(acc, G, JOB, at, left, RULES: tl.constexpr, TILING: tl.constexpr):
    """One pass of channels, of every pixel of a tile."""
    PASS: tl.constexpr = TILING.channels_a_pass
    pixel_map, inverse, FRAME, CANVAS = JOB.pixel_map, JOB.inverse, JOB.frame, JOB.canvas
    stretch = row_stretch(pixel_map, CANVAS, RULES)
    # The tile's pixels stand for candidates: block_h rows of block_w columns at a time.
    rows = at.rows - at.first_row
    columns = at.columns - at.first_column
    for pixel in range(TILING.pixels):
        row = at.first_row + pixel // TILING.block_w
        column = at.first_column + pixel % TILING.block_w
        u = column.to(RULES.dtype)
        v = row.to(RULES.dtype)
        exists = (row < FRAME.height) & (column < FRAME.width)
        if exists & meets(pixel_map, inverse, Box(u, v, 0.0, 0.0), CANVAS):
            pixels = Pixels(u, v, 0.0, lasts(FRAME, RULES), exists, at.channels, left)
            of_pixel = zero_pass(RULES, TILING)
            first, end = rows_of(pixel_map, inverse, u, v, CANVAS)
            for block in range(first, end, TILING.block_h):
                i = (block + rows).to(RULES.dtype) - CANVAS.centre_h
                j_first = first_in_row(pixel_map, stretch, i, u, v, CANVAS)
                for across in range(0, stretch.width, TILING.block_w):
                    j = j_first + (across + columns).to(RULES.dtype)
                    offs = output_offsets(JOB.dy, j, i, CANVAS, RULES)
                    weight = weight_at(affine_2d(pixel_map, j, i), pixels, RULES)
                    weight = tl.where(in_output(j, i, CANVAS), weight, 0.0)
                    here = at_offset(G, G.offs + offs)
                    of_pixel = add_candidate(of_pixel, here, 0, weight, pixels, RULES, TILING)
            own = (rows == pixel // TILING.block_w) & (columns == pixel % TILING.block_w)
            out = ()
            for c in tl.static_range(PASS):
                total = tl.sum(of_pixel[c], 0, keep_dims=True)
                out = out + (acc[c] + tl.where(own, total, 0.0),)
            acc = out
    return acc
