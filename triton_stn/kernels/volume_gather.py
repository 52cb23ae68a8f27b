"""Backward on volumes by gathering, zeros padding: a program owns a tile of *input* voxels.

As in `gather.py`, input voxel (u, v, w) receives from the output voxels p whose source point lies
in the 2 x 2 x 2 cell around it:

    dX[n, c, w, v, u] = sum over k, p of dY[n, k, c, p] · wx(p) · wy(p) · wz(p)
    t(p)              = sum over c of dY[n, k, c, p] · X[n, c, w, v, u]
    S_x              += t(p) · sgn_x · wy(p) · wz(p) · (j', i', k', 1)        S_y, S_z likewise

Candidates are the bounding box of the cell's preimage, the same size for every voxel of a theta;
membership is decided on the coordinates as the forward kernel rounds them, so every tap is counted
exactly once. A theta whose box is too large is left to `volume_scatter`, unless EVERY is set.
Launch grid: (N·tiles·SPLITS,), splits fastest; a split owns a range of channels.
"""

import triton
import triton.language as tl

from triton_stn.kernels.candidates import (
    accumulate,
    advance,
    hat,
    load_pass,
    store_pass,
    with_sign,
    zero_pass,
)
from triton_stn.kernels.coordinates import channel_range
from triton_stn.kernels.moments import store_sums, zero_moments
from triton_stn.kernels.volume import (
    count_tiles,
    inside_3d,
    load_map_3d,
    offsets_3d,
    source_3d,
    tile_3d,
    window_3d,
)
from triton_stn.kernels.volume_scatter import add_moments_3d


@triton.jit
def volume_gather(
    X_ptr,  # (N, C, D, H, W), any strides
    Theta_ptr,  # (N, K, 3, 4), the last two dimensions contiguous
    dY_ptr,  # (N, K, C, D_out, H_out, W_out), any strides
    dX_ptr,  # (N, C, D, H, W)
    P_ptr,  # (N, slots, 12): partial sums of the gradient of the voxel map
    K,
    C,
    D,
    H,
    W,
    D_out,
    H_out,
    W_out,
    slots,
    stride_xn,
    stride_xc,
    stride_xd,
    stride_xh,
    stride_xw,
    stride_tn,
    stride_tk,
    stride_gn,
    stride_gk,
    stride_gc,
    stride_gd,
    stride_gh,
    stride_gw,
    stride_dxn,
    stride_dxc,
    stride_dxd,
    stride_dxh,
    stride_dxw,
    ratio_xx,
    ratio_xy,
    ratio_xz,
    ratio_yx,
    ratio_yy,
    ratio_yz,
    ratio_zx,
    ratio_zy,
    ratio_zz,
    half_w,
    half_h,
    half_d,
    last_w,
    last_h,
    last_d,
    centre_w,
    centre_h,
    centre_d,
    MODE: tl.constexpr,
    EVERY: tl.constexpr,  # gather every theta: nothing is left to atomics
    NEEDS_THETA: tl.constexpr,  # of one theta: moments stay in registers over passes
    PASS: tl.constexpr,  # channels a pass (NCDHW)
    MASK_CHANNELS: tl.constexpr,  # a pass does not divide a split's channels
    SPLITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,  # 1: NCDHW; else channels-last, the channels a pass
    DTYPE: tl.constexpr,  # of coordinates, weights and sums
    INDEX: tl.constexpr,  # of offsets inside one image
):
    tiles = count_tiles(D, H, W, BLOCK_D, BLOCK_H, BLOCK_W)
    program = tl.program_id(0) // SPLITS
    n = program // tiles
    tile = program - n * tiles
    first, count = channel_range(C, SPLITS)
    corner, offs, offs_c = tile_3d(tile, H, W, BLOCK_D, BLOCK_H, BLOCK_W, BLOCK_C)
    mask = inside_3d(offs, D, H, W)
    voxel = (offs[2].to(DTYPE), offs[1].to(DTYPE), offs[0].to(DTYPE))
    # The tile's middle and half its extent.
    middle = (
        corner[2].to(DTYPE) + (BLOCK_W - 1) / 2,
        corner[1].to(DTYPE) + (BLOCK_H - 1) / 2,
        corner[0].to(DTYPE) + (BLOCK_D - 1) / 2,
    )
    extent = ((BLOCK_W - 1) / 2, (BLOCK_H - 1) / 2, (BLOCK_D - 1) / 2)
    scales = (
        ratio_xx, ratio_xy, ratio_xz, ratio_yx, ratio_yy, ratio_yz, ratio_zx, ratio_zy, ratio_zz,
        half_w, half_h, half_d, last_w, last_h, last_d,
    )  # fmt: skip
    canvas = (D_out, H_out, W_out, centre_d, centre_h, centre_w)
    X_pass = X_ptr + n.to(tl.int64) * stride_xn + first * stride_xc + offs_c * stride_xc
    X_pass += offsets_3d(offs[0], offs[1], offs[2], stride_xd, stride_xh, stride_xw, INDEX)
    dX_pass = dX_ptr + n.to(tl.int64) * stride_dxn + first * stride_dxc + offs_c * stride_dxc
    dX_pass += offsets_3d(offs[0], offs[1], offs[2], stride_dxd, stride_dxh, stride_dxw, INDEX)
    G_pass = dY_ptr + n.to(tl.int64) * stride_gn + first * stride_gc + offs_c * stride_gc
    Theta_ptr += n.to(tl.int64) * stride_tn
    STEP: tl.constexpr = PASS * BLOCK_C
    VOXELS: tl.constexpr = BLOCK_D * BLOCK_H * BLOCK_W
    split = tl.program_id(0) % SPLITS
    moments = zero_moments(12, VOXELS, DTYPE)
    for step in range(tl.cdiv(count, STEP)):
        channels = (offs_c, count - step * STEP)
        acc = zero_pass(VOXELS, PASS, BLOCK_C, DTYPE)
        values = load_pass(
            X_pass, mask, channels, stride_xc, PASS, MASK_CHANNELS, NEEDS_THETA, DTYPE
        )
        G_ptr = G_pass
        Theta_k = Theta_ptr
        for _k in range(K):
            map = load_map_3d(Theta_k, scales, DTYPE)
            G = (G_ptr, stride_gc, stride_gd, stride_gh, stride_gw)
            acc, moments = gather_theta_3d(
                acc, moments, values, G, map, voxel, middle, extent, mask, channels, canvas,
                MODE, EVERY, PASS, MASK_CHANNELS, NEEDS_THETA, INDEX,
            )  # fmt: skip
            G_ptr += stride_gk
            Theta_k += stride_tk
        store_pass(dX_pass, stride_dxc, acc, mask, channels, PASS, MASK_CHANNELS)
        dX_pass = advance(dX_pass, BLOCK_C * stride_dxc, PASS)
        X_pass = advance(X_pass, BLOCK_C * stride_xc, PASS)
        G_pass = advance(G_pass, BLOCK_C * stride_gc, PASS)
    if NEEDS_THETA:
        row = n.to(tl.int64) * slots + tile * SPLITS + split
        store_sums(P_ptr, row, moments, False, 12)


@triton.jit
def along(inverse_row, u, v, w, map):
    """Where the inverse of the voxel map takes a voxel, along one axis of the output, centred."""
    return inverse_row[0] * (u - map[3]) + (
        inverse_row[1] * (v - map[7]) + inverse_row[2] * (w - map[11])
    )


@triton.jit
def candidates_3d(inverse_row, reach, voxel, middle, extent, map, size, centre, fits):
    """Along one axis of the output: (first candidate of each voxel, centred; how many; tile in it).

    All of the output where the window is larger, or theta has none.
    """
    bounded = fits & (2 * reach + 1 < size)
    at = along(inverse_row, voxel[0], voxel[1], voxel[2], map)
    first = tl.where(bounded, tl.ceil(at + (centre - reach)) - centre, -centre)
    number = tl.where(bounded, 2 * reach + 1, size)
    width = tl.abs(inverse_row[0]) * extent[0] + tl.abs(inverse_row[1]) * extent[1]
    width += tl.abs(inverse_row[2]) * extent[2]
    distance = tl.abs(along(inverse_row, middle[0], middle[1], middle[2], map))
    return first, number.to(tl.int32), (distance <= centre + (reach + width + 1)) | (not fits)


@triton.jit
def gather_theta_3d(
    acc,
    moments,
    values,  # the pass's X at the tile's voxels
    G,
    map,
    voxel,
    middle,
    extent,
    mask,
    channels,
    canvas,
    MODE: tl.constexpr,
    EVERY: tl.constexpr,
    PASS: tl.constexpr,
    MASK_CHANNELS: tl.constexpr,
    NEEDS_THETA: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Walk the window of one theta; every thread that of its own voxel."""
    D_out, H_out, W_out, centre_d, centre_h, centre_w = canvas
    G_ptr, stride_gc, stride_gd, stride_gh, stride_gw = G
    dtype: tl.constexpr = map[0].dtype
    inverse, reach, fits = window_3d(map, centre_d, centre_h, centre_w, MODE)
    j_first, columns, meets_j = candidates_3d(
        inverse[0], reach[0], voxel, middle, extent, map, W_out.to(dtype), centre_w, fits
    )
    i_first, rows, meets_i = candidates_3d(
        inverse[1], reach[1], voxel, middle, extent, map, H_out.to(dtype), centre_h, fits
    )
    k_first, slices, meets_k = candidates_3d(
        inverse[2], reach[2], voxel, middle, extent, map, D_out.to(dtype), centre_d, fits
    )
    zero = map[0] * 0
    for n in tl.static_range(11):
        zero += map[n + 1] * 0
    here = (zero == 0) & meets_j & meets_i & meets_k
    if not EVERY:
        here &= fits
    if here:
        k = k_first
        for _ in range(slices):
            i = i_first
            for _ in range(rows):
                j = j_first
                G_ptrs = G_ptr + offsets_3d(
                    k + centre_d, i + centre_h, j + centre_w, stride_gd, stride_gh, stride_gw, INDEX
                )
                for _ in range(columns):
                    x, y, z = source_3d(map, j, i, k)
                    wx, distance_x, in_x = hat(x, voxel[0], MODE)
                    wy, distance_y, in_y = hat(y, voxel[1], MODE)
                    wz, distance_z, in_z = hat(z, voxel[2], MODE)
                    inside = mask & in_x & in_y & in_z & (tl.abs(k) <= centre_d)
                    inside &= (tl.abs(i) <= centre_h) & (tl.abs(j) <= centre_w)
                    wx = tl.where(inside, wx, 0.0)
                    wy = tl.where(inside, wy, 0.0)
                    wz = tl.where(inside, wz, 0.0)
                    acc, t = accumulate(
                        acc, tl.zeros(wx.shape, dtype), values, G_ptrs, stride_gc, wx * wy * wz,
                        inside, channels, PASS, MASK_CHANNELS, NEEDS_THETA,
                    )  # fmt: skip
                    if NEEDS_THETA:
                        t = tl.where(inside, t, 0.0)
                        s_x = with_sign(t * (wy * wz), distance_x)
                        s_y = with_sign(t * (wx * wz), distance_y)
                        s_z = with_sign(t * (wx * wy), distance_z)
                        moments = add_moments_3d(moments, s_x, s_y, s_z, j, i, k)
                    G_ptrs += stride_gw
                    j += 1
                i += 1
            k += 1
    return acc, moments
