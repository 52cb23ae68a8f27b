"""Volumes: where an output voxel reads, its eight taps, and the window that reads an input voxel.

With j' = j - (W_out-1)/2, i' and k' likewise along H and D, and for either align_corners,

    x = a00·j' + a01·i' + a02·k' + b0        y and z likewise

is the source coordinate in voxels of the input; see `coordinates.py`, whose padding rules and taps
serve each axis. Forward and backward call the same helpers.
"""

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import scalar

# More candidates a voxel than this are scattered. By reasoning, not measured.
MOST_CANDIDATES = tl.constexpr(1000)


@triton.jit
def load_map_3d(Theta_ptr, scales, DTYPE: tl.constexpr):
    """Normalised theta (3, 4), side by side -> (a00, a01, a02, b0, a10, ..., b2) in voxels.

    ``scales`` are the host's nine ratios, three half spans and three sizes less one.
    """
    map = ()
    for row in tl.static_range(3):
        for column in tl.static_range(3):
            ratio = scalar(scales[3 * row + column], DTYPE)
            map = map + (tl.load(Theta_ptr + 4 * row + column).to(DTYPE) * ratio,)
        shift = tl.load(Theta_ptr + 4 * row + 3).to(DTYPE) * scales[9 + row]
        map = map + (shift + scales[12 + row] * 0.5,)
    return map


@triton.jit
def source_3d(map, j, i, k):
    """(x, y, z) of centred output voxels; the one rounding order that every kernel uses."""
    x = tl.fma(map[0], j, tl.fma(map[1], i, tl.fma(map[2], k, map[3])))
    y = tl.fma(map[4], j, tl.fma(map[5], i, tl.fma(map[6], k, map[7])))
    z = tl.fma(map[8], j, tl.fma(map[9], i, tl.fma(map[10], k, map[11])))
    return x, y, z


@triton.jit
def count_tiles(D, H, W, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr):
    return tl.cdiv(D, BLOCK_D) * (tl.cdiv(H, BLOCK_H) * tl.cdiv(W, BLOCK_W))


@triton.jit
def tile_3d(
    tile,
    H,
    W,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The tile of that number: its first voxel (d, h, w), its voxels' and channels' offsets.

    Offsets are (slices, rows, columns), [voxels, 1] each, and channels [1, BLOCK_C]. The voxels are
    one axis, columns fastest: 32 threads lie over a patch of 2 x 4 x 4 where BLOCK_H = BLOCK_W = 4.
    """
    across = tl.cdiv(W, BLOCK_W)
    down = tl.cdiv(H, BLOCK_H)
    first_d = tile // (across * down) * BLOCK_D
    first_h = tile // across % down * BLOCK_H
    first_w = tile % across * BLOCK_W
    voxels = tl.arange(0, BLOCK_D * BLOCK_H * BLOCK_W)[:, None]
    offs_d = first_d + voxels // (BLOCK_H * BLOCK_W)
    offs_h = first_h + voxels // BLOCK_W % BLOCK_H
    offs_w = first_w + voxels % BLOCK_W
    return (first_d, first_h, first_w), (offs_d, offs_h, offs_w), tl.arange(0, BLOCK_C)[None, :]


@triton.jit
def inside_3d(offs, D, H, W):
    return (offs[0] < D) & (offs[1] < H) & (offs[2] < W)


@triton.jit
def offsets_3d(d, h, w, stride_d, stride_h, stride_w, INDEX: tl.constexpr):
    return d.to(INDEX) * stride_d + (h.to(INDEX) * stride_h + w.to(INDEX) * stride_w)


@triton.jit
def corners(along_x, along_y, along_z, mask):
    """(weights, masks) of the eight taps, x fastest, from `coordinates.taps` along each axis."""
    _, wx, in_x0, in_x1, _ = along_x
    _, wy, in_y0, in_y1, _ = along_y
    _, wz, in_z0, in_z1, _ = along_z
    weights = ()
    masks = ()
    for t in tl.static_range(8):
        if t // 4 == 0:
            weight = 1 - wz
            here = mask & in_z0
        else:
            weight = wz
            here = mask & in_z1
        if t // 2 % 2 == 0:
            weight *= 1 - wy
            here &= in_y0
        else:
            weight *= wy
            here &= in_y1
        if t % 2 == 0:
            weight *= 1 - wx
            here &= in_x0
        else:
            weight *= wx
            here &= in_x1
        weights = weights + (weight,)
        masks = masks + (here,)
    return weights, masks


@triton.jit
def corner(ptrs, stride_d, stride_h, stride_w, TAP: tl.constexpr):
    """Pointers to one of the eight taps from those to the first. Sums of strides could overflow."""
    if TAP // 4 == 1:
        ptrs += stride_d
    if TAP // 2 % 2 == 1:
        ptrs += stride_h
    if TAP % 2 == 1:
        ptrs += stride_w
    return ptrs


@triton.jit
def window_3d(map, centre_d, centre_h, centre_w, MODE: tl.constexpr):
    """The inverse of a voxel map: (inverse matrix, reach along (j, i, k), theta is gathered).

    Output voxels that read input voxel u lie within the reach of A⁻¹(u - b), as in
    `candidates.inverse_map`. The reach is widened by 1/64 and by a bound on the rounding of A⁻¹ and
    of what it is applied to; of a singular map it is not finite.
    """
    size = tl.abs(map[0])
    for n in tl.static_range(11):
        if n % 4 != 3:
            size = tl.maximum(size, tl.abs(map[n]))
    scale = 1 / tl.maximum(size, 1e-30)  # so that the determinant neither overflows nor vanishes
    n00 = map[0] * scale
    n01 = map[1] * scale
    n02 = map[2] * scale
    n10 = map[4] * scale
    n11 = map[5] * scale
    n12 = map[6] * scale
    n20 = map[8] * scale
    n21 = map[9] * scale
    n22 = map[10] * scale
    c00 = n11 * n22 - n12 * n21
    c10 = n12 * n20 - n10 * n22
    c20 = n10 * n21 - n11 * n20
    det = n00 * c00 + n01 * c10 + n02 * c20
    f = scale / det
    inverse = (
        (c00 * f, (n02 * n21 - n01 * n22) * f, (n01 * n12 - n02 * n11) * f),
        (c10 * f, (n00 * n22 - n02 * n20) * f, (n02 * n10 - n00 * n12) * f),
        (c20 * f, (n01 * n20 - n00 * n21) * f, (n00 * n11 - n01 * n10) * f),
    )
    sum_j = tl.abs(inverse[0][0]) + tl.abs(inverse[0][1]) + tl.abs(inverse[0][2])
    sum_i = tl.abs(inverse[1][0]) + tl.abs(inverse[1][1]) + tl.abs(inverse[1][2])
    sum_k = tl.abs(inverse[2][0]) + tl.abs(inverse[2][1]) + tl.abs(inverse[2][2])
    # 2^-19: the entries of n are at most 1, so A⁻¹ is wrong by a few eps over det.
    condition = 3 * size * (sum_j + sum_i + sum_k) / tl.abs(det)
    rounding = 1.9e-6 * condition * (centre_d + centre_h + centre_w + 3) + 0.015625
    half: tl.constexpr = 0.5078125 if MODE == "nearest" else 1.015625
    reach_j = half * sum_j + rounding
    reach_i = half * sum_i + rounding
    reach_k = half * sum_k + rounding
    candidates = (2 * reach_j + 1) * (2 * reach_i + 1) * (2 * reach_k + 1)
    return inverse, (reach_j, reach_i, reach_k), candidates <= MOST_CANDIDATES
