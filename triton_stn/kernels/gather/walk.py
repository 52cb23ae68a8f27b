"""The window of a theta that magnifies: each thread walks the bounding box of its own pixel."""

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import affine_2d
from triton_stn.kernels.gather.candidates import (
    add_candidate,
    at_offset,
    in_output,
    pixel_offsets,
    weight_where,
)
from triton_stn.kernels.gather.inverse import window_corner


@triton.jit
def gather_walk(acc, G, JOB, pixels, RULES: tl.constexpr, TILING: tl.constexpr):
    """One pass of channels through the window."""
    pixel_map, inverse, CANVAS = JOB.pixel_map, JOB.inverse, JOB.canvas
    column, first_row = window_corner(pixel_map, inverse, pixels, CANVAS)
    row = G.offs + pixel_offsets(JOB.dy, column, first_row, RULES)
    j_first = column - CANVAS.centre_w
    i = first_row - CANVAS.centre_h
    for _ in range((2 * inverse.reach_i + 1).to(tl.int32)):
        offs = row
        j = j_first
        for _ in range((2 * inverse.reach_j + 1).to(tl.int32)):
            here = pixels.mask & in_output(j, i, CANVAS)
            weight = weight_where(here, affine_2d(pixel_map, j, i), pixels, RULES)
            acc = add_candidate(acc, at_offset(G, offs), 0, weight, pixels, RULES, TILING)
            offs += JOB.dy.stride_w
            j += 1
        row += JOB.dy.stride_h
        i += 1
    return acc
