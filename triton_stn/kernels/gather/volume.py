"""The window of a volume's theta: each thread walks the bounding box of its own voxel's cell.

Input voxel (u, v, w) receives from the output voxels whose source point lies in the 2 x 2 x 2 cell
around it; the bounding box of the cell's preimage has the same size for every voxel of a theta.
Where it is too large for one thread a program shares it (`wide.py`).
"""

from typing import NamedTuple

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import affine_3d
from triton_stn.kernels.gather.candidates import (
    SLACK,
    add_candidate,
    at_offset,
    output_offsets,
    weight_where,
)
from triton_stn.kernels.gather.inverse import difference, inverse_3x3, largest_of, tile_box

# A window of more candidates is not walked by one thread. By reasoning, not measured.
MOST_VOXELS = tl.constexpr(1000)


class Row3d(NamedTuple):
    """One row of the inverse matrix, and how far a window reaches along its axis of the output."""

    x: object
    y: object
    z: object
    reach: object


class Inverse3d(NamedTuple):
    j: object  # a `Row3d` each
    i: object
    k: object
    n: object  # the map's matrix over its largest entry, row by row
    det: object  # of that
    size: object  # the entry
    walked: object  # by each thread for itself


class Along(NamedTuple):
    """Candidates along one axis of the output."""

    first: object  # centred index, of each voxel
    count: object
    meets: object  # the tile's windows meet the output


@triton.jit
def inverse_3d(pixel_map, CANVAS, RULES: tl.constexpr):
    """The `Inverse3d` of a voxel map.

    The reach is widened by 1/64 and by a bound on the rounding of the inverse and of what it is
    applied to; of a singular map it is not finite.
    """
    entries = ()
    for place in tl.static_range(12):
        if place % 4 != 3:  # not the shift
            entries = entries + (pixel_map[place],)
    size = largest_of(entries)
    scale = 1 / tl.maximum(size, 1e-30)  # so that the determinant neither overflows nor vanishes
    n = ()
    for place in tl.static_range(9):
        n = n + (entries[place] * scale,)
    inverse, det = inverse_3x3(n, scale)
    j_x, j_y, j_z, i_x, i_y, i_z, k_x, k_y, k_z = inverse
    sum_j = tl.abs(j_x) + tl.abs(j_y) + tl.abs(j_z)
    sum_i = tl.abs(i_x) + tl.abs(i_y) + tl.abs(i_z)
    sum_k = tl.abs(k_x) + tl.abs(k_y) + tl.abs(k_z)
    # 2^-19: the entries of n are at most 1, so the inverse is wrong by a few eps over det.
    condition = 3 * size * (sum_j + sum_i + sum_k) / tl.abs(det)
    extent = CANVAS.centre_d + CANVAS.centre_h + CANVAS.centre_w + 3
    rounding = tl.fma(1.9e-6 * condition, extent, 0.015625)
    half: tl.constexpr = 0.5078125 if RULES.mode == "nearest" else 1.015625
    reach_j = tl.fma(half, sum_j, rounding)
    reach_i = tl.fma(half, sum_i, rounding)
    reach_k = tl.fma(half, sum_k, rounding)
    across = tl.fma(2.0, reach_j, 1.0) * tl.fma(2.0, reach_i, 1.0)
    return Inverse3d(
        Row3d(j_x, j_y, j_z, reach_j),
        Row3d(i_x, i_y, i_z, reach_i),
        Row3d(k_x, k_y, k_z, reach_k),
        n,
        det,
        size,
        across * tl.fma(2.0, reach_k, 1.0) <= MOST_VOXELS,
    )


@triton.jit
def preimage(row, pixel_map, u, v, w):
    """Where the inverse takes a voxel, along one axis of the output, centred."""
    across = tl.fma(row.y, v - pixel_map.y_1, row.z * (w - pixel_map.z_1))
    return tl.fma(row.x, u - pixel_map.x_1, across)


@triton.jit
def meets_voxel(pixel_map, inverse, voxel, CANVAS):
    """Whether the cell of a voxel meets the image of the output, by six separating axes.

    They are those of the input, and across each pair of the map's columns. Of columns nearly alike
    the axis is what rounding leaves, so distances along it are widened by their rounding.
    """
    d = (voxel.u - pixel_map.x_1, voxel.v - pixel_map.y_1, voxel.w - pixel_map.z_1)
    n, size = inverse.n, inverse.size
    j, i, k = CANVAS.centre_w, CANVAS.centre_h, CANVAS.centre_d
    met = tl.full([], 1, tl.int1)
    for axis in tl.static_range(3):
        row = tl.abs(n[3 * axis]) * j + tl.abs(n[3 * axis + 1]) * i + tl.abs(n[3 * axis + 2]) * k
        met &= tl.abs(d[axis]) <= tl.fma(size, row, 1.0) * SLACK
    volume = tl.abs(inverse.det) * size
    far = tl.abs(d[0]) + tl.abs(d[1]) + tl.abs(d[2]) + size * (j + i + k)
    columns = ((n[0], n[3], n[6]), (n[1], n[4], n[7]), (n[2], n[5], n[8]))
    met &= between(columns[1], columns[2], d, volume * j, far)
    met &= between(columns[0], columns[2], d, volume * i, far)
    met &= between(columns[0], columns[1], d, volume * k, far)
    return met


@triton.jit
def between(a, b, d, extent, far):
    """Whether ``d`` is within a cell and ``extent`` along the axis across columns a and b."""
    x = difference(a[1], b[2], a[2], b[1])
    y = difference(a[2], b[0], a[0], b[2])
    z = difference(a[0], b[1], a[1], b[0])
    cell = tl.abs(x) + tl.abs(y) + tl.abs(z)
    distance = tl.abs(tl.fma(x, d[0], tl.fma(y, d[1], z * d[2])))
    return distance <= tl.fma(1e-6, far, (cell + extent) * SLACK)


@triton.jit
def candidates_along(row, pixel_map, pixels, middle, extent, size, centre):
    """The `Along` of one axis: all of the output where the window is larger."""
    bounded = 2 * row.reach + 1 < size
    at = preimage(row, pixel_map, pixels.u, pixels.v, pixels.w)
    first = tl.where(bounded, tl.ceil(at + (centre - row.reach)) - centre, -centre)
    count = tl.where(bounded, 2 * row.reach + 1, size)
    width = tl.abs(row.x) * extent[0] + tl.abs(row.y) * extent[1] + tl.abs(row.z) * extent[2]
    distance = tl.abs(preimage(row, pixel_map, middle[0], middle[1], middle[2]))
    near = distance <= centre + (row.reach + width + 1)
    return Along(first, count.to(tl.int32), near)


@triton.jit
def gather_volume(acc, G, JOB, at, pixels, RULES: tl.constexpr, TILING: tl.constexpr):
    """One pass of channels through the window of one theta."""
    dtype: tl.constexpr = RULES.dtype
    pixel_map, CANVAS = JOB.pixel_map, JOB.canvas
    box = tile_box(at, JOB.work, RULES)
    extent = (box.half_w, box.half_h, (TILING.block_d - 1) / 2)
    middle = (box.u, box.v, at.first_slice.to(dtype) + extent[2])
    inverse = JOB.inverse
    along_j = candidates_along(
        inverse.j, pixel_map, pixels, middle, extent, CANVAS.width.to(dtype), CANVAS.centre_w
    )
    along_i = candidates_along(
        inverse.i, pixel_map, pixels, middle, extent, CANVAS.height.to(dtype), CANVAS.centre_h
    )
    along_k = candidates_along(
        inverse.k, pixel_map, pixels, middle, extent, CANVAS.depth.to(dtype), CANVAS.centre_d
    )
    if along_j.meets & along_i.meets & along_k.meets:
        k = along_k.first
        for _ in range(along_k.count):
            i = along_i.first
            for _ in range(along_i.count):
                j = along_j.first
                slices = (k + CANVAS.centre_d).to(RULES.index) * JOB.dy.stride_d
                offs = G.offs + (slices + output_offsets(JOB.dy, j, i, CANVAS, RULES))
                for _ in range(along_j.count):
                    inside = (tl.abs(k) <= CANVAS.centre_d) & (tl.abs(i) <= CANVAS.centre_h)
                    inside &= pixels.mask & (tl.abs(j) <= CANVAS.centre_w)
                    weight = weight_where(inside, affine_3d(pixel_map, j, i, k), pixels, RULES)
                    acc = add_candidate(acc, at_offset(G, offs), 0, weight, pixels, RULES, TILING)
                    offs += JOB.dy.stride_w
                    j += 1
                i += 1
            k += 1
    return acc
