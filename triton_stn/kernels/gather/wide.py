"""The window of a singular theta, or one that magnifies a lot: a program shares it.

Pixel by pixel of the tile, where the pixel's cell meets the image of the output: rows of output
pixels are spread over the tile's rows, and the stretch of each row that can lie in the cell is
walked by the tile's columns. Whatever theta is, an output pixel is looked at by few input pixels
beyond the four that it reads, and every sum keeps its order: no atomics. A volume's rows are those
of its slices, one slice after another.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import matrix_place
from triton_stn.kernels.gather.candidates import (
    SLACK,
    Pixels,
    add_candidate,
    at_offset,
    in_output,
    output_offsets,
    weight_where,
    zero_pass,
)
from triton_stn.kernels.gather.inverse import Box, meets
from triton_stn.kernels.gather.volume import meets_voxel, preimage
from triton_stn.kernels.taps import lines
from triton_stn.kernels.tiles import in_tile

FLAT = tl.constexpr(1e-30)  # a smaller slope leaves a row's stretch unbounded


class Rows(NamedTuple):
    """The rows of the output that can lie in a pixel's cell, slice after slice."""

    first_i: object
    first_k: object
    a_slice: object  # rows
    count: object


@triton.jit
def reach_along(slope):
    """How far along a row a cell reaches from where the row crosses its middle, by one axis."""
    size = tl.abs(slope)
    return tl.where(size > FLAT, 1 / size * SLACK, 1e30) + 0.015625


@triton.jit
def width_of(pixel_map, CANVAS, RULES: tl.constexpr):
    """Candidates of a row, at most."""
    reach = tl.minimum(reach_along(pixel_map.x_j), reach_along(pixel_map.y_j))
    if RULES.ndim == 3:
        reach = tl.minimum(reach, reach_along(pixel_map.z_j))
    return tl.minimum(2 * reach + 3, CANVAS.width.to(RULES.dtype)).to(tl.int32)


@triton.jit
def low_along(slope, distance):
    """Where along a row a cell begins, by one axis; the middle of the row is ``distance`` short."""
    return tl.where(tl.abs(slope) > FLAT, distance / slope - reach_along(slope), -1e30)


@triton.jit
def first_in_row(pixel_map, i, k, pixels, CANVAS, RULES: tl.constexpr):
    """The first centred index j of a row that can lie in the cell of a pixel."""
    middle = matrix_place(pixel_map, 0.0, i, k, RULES)
    low = tl.maximum(
        low_along(pixel_map.x_j, pixels.u - middle[0]),
        low_along(pixel_map.y_j, pixels.v - middle[1]),
    )
    if RULES.ndim == 3:
        low = tl.maximum(low, low_along(pixel_map.z_j, pixels.w - middle[2]))
    return tl.maximum(tl.floor(low + CANVAS.centre_w), 0.0) - CANVAS.centre_w


@triton.jit
def range_of(middle, reach, extent):
    """(first, end) of the indices around the centred ``middle``."""
    size = extent.to(reach.dtype)
    bounded = reach < 1e6  # and no NaN
    middle += (size - 1) * 0.5
    first = tl.where(bounded, tl.maximum(middle - reach, 0.0), 0.0)
    end = tl.where(bounded, tl.minimum(middle + reach + 1, size), size)
    return first.to(tl.int32), end.to(tl.int32)


@triton.jit
def rows_of(pixel_map, inverse, pixels, CANVAS, RULES: tl.constexpr):
    """The `Rows` of a pixel."""
    if RULES.ndim == 2:
        x = pixels.u - pixel_map.x_1
        i = tl.fma(inverse.i_x, x, inverse.i_y * (pixels.v - pixel_map.y_1))
        first_i, end_i = range_of(i, inverse.reach_i, CANVAS.height)
        first_k = 0
        slices = 1
    else:
        u, v, w = pixels.u, pixels.v, pixels.w
        i = preimage(inverse.i, pixel_map, u, v, w)
        k = preimage(inverse.k, pixel_map, u, v, w)
        first_i, end_i = range_of(i, inverse.i.reach, CANVAS.height)
        first_k, end_k = range_of(k, inverse.k.reach, CANVAS.depth)
        slices = tl.maximum(end_k - first_k, 0)
    a_slice = tl.maximum(end_i - first_i, 0)
    return Rows(first_i, first_k, a_slice, a_slice * slices)


@triton.jit
def is_met(pixel_map, inverse, pixels, CANVAS, RULES: tl.constexpr):
    """Whether the cell of a pixel meets the image of the output."""
    if RULES.ndim == 2:
        met = meets(pixel_map, inverse, Box(pixels.u, pixels.v, 0.0, 0.0), CANVAS)
    else:
        met = meets_voxel(pixel_map, inverse, pixels, CANVAS)
    return met


@triton.jit
def pixel_of(n, at, left, WORK, FRAME, RULES: tl.constexpr, TILING: tl.constexpr):
    """The n-th pixel of a tile, as `Pixels`."""
    row, column = in_tile(n, WORK, RULES, TILING)
    column += at.first_column
    row += at.first_row
    exists = (row < FRAME.height) & (column < FRAME.width)
    w = 0.0
    if RULES.ndim == 3:
        depth = at.first_slice + n // (TILING.block_w * TILING.block_h)
        exists &= depth < FRAME.depth
        w = depth.to(RULES.dtype)
    u = column.to(RULES.dtype)
    v = row.to(RULES.dtype)
    return Pixels(u, v, w, lines(FRAME, RULES), exists, at.channels, left)


@triton.jit
def gather_wide(acc, G, JOB, at, left, RULES: tl.constexpr, TILING: tl.constexpr):
    """One pass of channels, of every pixel of a tile."""
    PASS: tl.constexpr = TILING.channels_a_pass
    ROWS: tl.constexpr = TILING.block_d * TILING.block_h
    pixel_map, CANVAS = JOB.pixel_map, JOB.canvas
    width = width_of(pixel_map, CANVAS, RULES)
    # The tile's pixels stand for candidates: as many rows of block_w columns at a time.
    lanes = tl.arange(0, TILING.pixels)[:, None]
    for n in range(TILING.pixels):
        pixels = pixel_of(n, at, left, JOB.work, JOB.frame, RULES, TILING)
        if pixels.mask & is_met(pixel_map, JOB.inverse, pixels, CANVAS, RULES):
            rows = rows_of(pixel_map, JOB.inverse, pixels, CANVAS, RULES)
            of_pixel = zero_pass(RULES, TILING)
            for block in range(0, rows.count, ROWS):
                row = block + lanes // TILING.block_w
                i = (rows.first_i + row % rows.a_slice).to(RULES.dtype) - CANVAS.centre_h
                k = (rows.first_k + row // rows.a_slice).to(RULES.dtype) - CANVAS.centre_d
                j_first = first_in_row(pixel_map, i, k, pixels, CANVAS, RULES)
                for across in range(0, width, TILING.block_w):
                    j = j_first + (across + lanes % TILING.block_w).to(RULES.dtype)
                    place = matrix_place(pixel_map, j, i, k, RULES)
                    here = (row < rows.count) & in_output(j, i, CANVAS)
                    weight = weight_where(here, place, pixels, RULES)
                    offs = G.offs + output_offsets(JOB.dy, j, i, CANVAS, RULES)
                    if RULES.ndim == 3:
                        offs += (k + CANVAS.centre_d).to(RULES.index) * JOB.dy.stride_d
                    candidate = at_offset(G, offs)
                    of_pixel = add_candidate(of_pixel, candidate, 0, weight, pixels, RULES, TILING)
            out = ()
            for c in tl.static_range(PASS):
                total = tl.sum(of_pixel[c], 0, keep_dims=True)
                out = out + (acc[c] + tl.where(lanes == n, total, 0.0),)
            acc = out
    return acc
