"""Backward on volumes from the output's side: a program owns a tile of output voxels of one theta.

With the eight taps of its coordinate each output voxel has

    S_x += sum over c of dY · (dY/dx) · (j', i', k', 1)        S_y, S_z likewise

for dtheta, and adds dY · wx · wy · wz to the eight taps of grad_input with float atomics, whose
order is not fixed: for the padding modes that fold space onto the edge, and for a theta whose
gathering window is too large.
Launch grid: (N·K·walkers·SPLITS,), splits fastest; a split owns a range of channels, a walker every
walkers-th tile. There are as many walkers as tiles, but few where most of a launch may be idle.
"""

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import centred, channel_range, nearest, nonfinite, taps
from triton_stn.kernels.moments import store_sums, zero_moments
from triton_stn.kernels.volume import (
    corner,
    corners,
    count_tiles,
    inside_3d,
    load_map_3d,
    offsets_3d,
    source_3d,
    tile_3d,
    window_3d,
)


@triton.jit
def add_moments_3d(m, x, y, z, j, i, k):
    """moments - (x·(j, i, k, 1), y·(j, i, k, 1), z·(j, i, k, 1))"""
    return (
        tl.fma(-j, x, m[0]), tl.fma(-i, x, m[1]), tl.fma(-k, x, m[2]), m[3] - x,
        tl.fma(-j, y, m[4]), tl.fma(-i, y, m[5]), tl.fma(-k, y, m[6]), m[7] - y,
        tl.fma(-j, z, m[8]), tl.fma(-i, z, m[9]), tl.fma(-k, z, m[10]), m[11] - z,
    )  # fmt: skip


@triton.jit
def volume_scatter(
    X_ptr,  # (N, C, D, H, W), any strides
    Theta_ptr,  # (N, K, 3, 4), the last two dimensions contiguous
    dY_ptr,  # (N, K, C, D_out, H_out, W_out), any strides
    dX_ptr,  # (N, C, D, H, W), in the dtype of the sums; what it holds is added to
    P_ptr,  # (N, K, slots, 12): partial sums of the gradient of the voxel map
    K,
    C,
    D_out,
    H_out,
    W_out,
    slots,
    first_slot,  # of this kernel's; the others are the gather's
    walkers,
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
    edge,
    MODE: tl.constexpr,
    PADDING: tl.constexpr,
    REST: tl.constexpr,  # leave alone every theta that `volume_gather` gathers
    NEEDS_INPUT: tl.constexpr,
    NEEDS_THETA: tl.constexpr,
    MASK_CHANNELS: tl.constexpr,  # BLOCK_C does not divide a split's channels
    SPLITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,  # 1: NCDHW; else channels-last
    DTYPE: tl.constexpr,  # of coordinates, weights and sums
    INDEX: tl.constexpr,  # of offsets inside one image
):
    tiles = count_tiles(D_out, H_out, W_out, BLOCK_D, BLOCK_H, BLOCK_W)
    program = tl.program_id(0) // SPLITS
    nk = program // walkers
    walker = program - nk * walkers
    n = nk // K
    k = nk - n * K
    Theta_ptr += n.to(tl.int64) * stride_tn + k.to(tl.int64) * stride_tk
    scales = (
        ratio_xx, ratio_xy, ratio_xz, ratio_yx, ratio_yy, ratio_yz, ratio_zx, ratio_zy, ratio_zz,
        half_w, half_h, half_d, last_w, last_h, last_d,
    )  # fmt: skip
    map = load_map_3d(Theta_ptr, scales, DTYPE)
    first, count = channel_range(C, SPLITS)
    X_ptr += n.to(tl.int64) * stride_xn + first * stride_xc
    dX_ptr += n.to(tl.int64) * stride_dxn + first * stride_dxc
    dY_ptr += n.to(tl.int64) * stride_gn + k.to(tl.int64) * stride_gk + first * stride_gc
    if REST:
        mine = not window_3d(map, centre_d, centre_h, centre_w, MODE)[2]
    else:
        mine = True
    moments = zero_moments(12, BLOCK_D * BLOCK_H * BLOCK_W, DTYPE)
    if mine:
        for tile in range(walker, tiles, walkers):
            moments = scatter_tile(
                moments,
                (X_ptr, stride_xc, stride_xd, stride_xh, stride_xw),
                (dY_ptr, stride_gc, stride_gd, stride_gh, stride_gw),
                (dX_ptr, stride_dxc, stride_dxd, stride_dxh, stride_dxw),
                map, tile, count, D_out, H_out, W_out, last_w, last_h, last_d,
                centre_w, centre_h, centre_d, edge, MODE, PADDING, NEEDS_INPUT, NEEDS_THETA,
                MASK_CHANNELS, BLOCK_D, BLOCK_H, BLOCK_W, BLOCK_C, DTYPE, INDEX,
            )  # fmt: skip
    if NEEDS_THETA:
        slot = first_slot + walker * SPLITS + tl.program_id(0) % SPLITS
        store_sums(P_ptr, nk.to(tl.int64) * slots + slot, moments, False, 12)


@triton.jit
def scatter_tile(
    moments,
    X,  # (X at the first channel, stride_xc, stride_xd, stride_xh, stride_xw)
    G,
    dX,
    map,
    tile,
    count,
    D_out,
    H_out,
    W_out,
    last_w,
    last_h,
    last_d,
    centre_w,
    centre_h,
    centre_d,
    edge,
    MODE: tl.constexpr,
    PADDING: tl.constexpr,
    NEEDS_INPUT: tl.constexpr,
    NEEDS_THETA: tl.constexpr,
    MASK_CHANNELS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    DTYPE: tl.constexpr,
    INDEX: tl.constexpr,
):
    X_ptr, stride_xc, stride_xd, stride_xh, stride_xw = X
    dY_ptr, stride_gc, stride_gd, stride_gh, stride_gw = G
    dX_ptr, stride_dxc, stride_dxd, stride_dxh, stride_dxw = dX
    _, offs, offs_c = tile_3d(tile, H_out, W_out, BLOCK_D, BLOCK_H, BLOCK_W, BLOCK_C)
    j = centred(offs[2], centre_w, DTYPE)
    i = centred(offs[1], centre_h, DTYPE)
    k = centred(offs[0], centre_d, DTYPE)
    x, y, z = source_3d(map, j, i, k)
    # An output that is not finite gives nothing to any gradient.
    mask = inside_3d(offs, D_out, H_out, W_out)
    mask &= nonfinite(x) + nonfinite(y) + nonfinite(z) == 0
    G_ptrs = dY_ptr + offsets_3d(offs[0], offs[1], offs[2], stride_gd, stride_gh, stride_gw, INDEX)
    G_ptrs += offs_c * stride_gc

    if MODE == "nearest":
        u, in_x = nearest(x, last_w, edge, PADDING)
        v, in_y = nearest(y, last_h, edge, PADDING)
        w, in_z = nearest(z, last_d, edge, PADDING)
        written = mask & in_x & in_y & in_z
        D_ptrs = dX_ptr + offsets_3d(w, v, u, stride_dxd, stride_dxh, stride_dxw, INDEX)
        D_ptrs += offs_c * stride_dxc
        for c in range(0, count, BLOCK_C):
            here = written
            if MASK_CHANNELS:
                here &= offs_c < count - c
            g = tl.load(G_ptrs, mask=here, other=0.0).to(DTYPE)
            tl.atomic_add(D_ptrs, g, mask=here, sem="relaxed")
            G_ptrs += BLOCK_C * stride_gc
            D_ptrs += BLOCK_C * stride_dxc
    else:
        along_x = taps(x, last_w, edge, PADDING)
        along_y = taps(y, last_h, edge, PADDING)
        along_z = taps(z, last_d, edge, PADDING)
        u, wx, _, _, slope_x = along_x
        v, wy, _, _, slope_y = along_y
        w, wz, _, _, slope_z = along_z
        weights, masks = corners(along_x, along_y, along_z, mask)
        X_ptrs = X_ptr + offsets_3d(w, v, u, stride_xd, stride_xh, stride_xw, INDEX)
        X_ptrs += offs_c * stride_xc
        D_ptrs = dX_ptr + offsets_3d(w, v, u, stride_dxd, stride_dxh, stride_dxw, INDEX)
        D_ptrs += offs_c * stride_dxc
        sums = ()  # over the channels, dY times each of the eight taps
        for _ in tl.static_range(8):
            sums = sums + (tl.zeros(G_ptrs.shape, DTYPE),)
        for c in range(0, count, BLOCK_C):
            some = offs_c < count - c if MASK_CHANNELS else True
            g = tl.load(G_ptrs, mask=mask & some, other=0.0).to(DTYPE)
            if NEEDS_INPUT:
                for t in tl.static_range(8):
                    tl.atomic_add(
                        corner(D_ptrs, stride_dxd, stride_dxh, stride_dxw, t),
                        g * weights[t],
                        mask=masks[t] & (weights[t] > 0) & some,
                        sem="relaxed",
                    )
                D_ptrs += BLOCK_C * stride_dxc
            if NEEDS_THETA:
                before = sums
                sums = ()
                for t in tl.static_range(8):
                    value = tl.load(
                        corner(X_ptrs, stride_xd, stride_xh, stride_xw, t),
                        mask=masks[t] & some,
                        other=0.0,
                    )
                    sums = sums + (tl.fma(g, value.to(DTYPE), before[t]),)
                X_ptrs += BLOCK_C * stride_xc
            G_ptrs += BLOCK_C * stride_gc
        if NEEDS_THETA:
            s_x = tl.zeros(x.shape, DTYPE)
            s_y = s_x
            s_z = s_x
            for t in tl.static_range(8):
                total = tl.sum(sums[t], 1, keep_dims=True)
                if t % 2 == 0:
                    of_x = 1 - wx
                    sign_x = -total
                else:
                    of_x = wx
                    sign_x = total
                if t // 2 % 2 == 0:
                    of_y = 1 - wy
                    sign_y = -total
                else:
                    of_y = wy
                    sign_y = total
                if t // 4 == 0:
                    of_z = 1 - wz
                    sign_z = -total
                else:
                    of_z = wz
                    sign_z = total
                s_x += sign_x * (of_y * of_z)
                s_y += sign_y * (of_x * of_z)
                s_z += sign_z * (of_x * of_y)
            s_x = tl.where(mask, s_x * slope_x, 0.0)
            s_y = tl.where(mask, s_y * slope_y, 0.0)
            s_z = tl.where(mask, s_z * slope_z, 0.0)
            # The sums that `add_moments_3d` takes have the other sign.
            moments = add_moments_3d(moments, -s_x, -s_y, -s_z, j, i, k)
    return moments
