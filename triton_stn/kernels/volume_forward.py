"""Forward on volumes: a program owns a tile of output voxels of one theta and loops over channels.

    Y[n, k, c, p] = sum over the eight taps q of p of X[n, c, q] · wx · wy · wz

Coordinates, weights and masks are computed once a tile and serve every channel.
Launch grid: (N·K·tiles·SPLITS,), splits fastest; a split owns a range of channels.
"""

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import centred, channel_range, nearest, nonfinite, taps
from triton_stn.kernels.volume import (
    corner,
    corners,
    count_tiles,
    inside_3d,
    load_map_3d,
    offsets_3d,
    source_3d,
    tile_3d,
)


@triton.jit
def volume_forward(
    X_ptr,  # (N, C, D, H, W), any strides
    Theta_ptr,  # (N, K, 3, 4), the last two dimensions contiguous
    Y_ptr,  # (N·K, C, D_out, H_out, W_out)
    K,
    C,
    D_out,
    H_out,
    W_out,
    stride_xn,
    stride_xc,
    stride_xd,
    stride_xh,
    stride_xw,
    stride_tn,
    stride_tk,
    stride_yn,
    stride_yc,
    stride_yd,
    stride_yh,
    stride_yw,
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
    PASS: tl.constexpr,  # channels a pass (NCDHW)
    MASK_CHANNELS: tl.constexpr,  # a pass does not divide a split's channels
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
    nk = program // tiles
    n = nk // K
    Theta_ptr += n.to(tl.int64) * stride_tn + (nk - n * K).to(tl.int64) * stride_tk
    scales = (
        ratio_xx, ratio_xy, ratio_xz, ratio_yx, ratio_yy, ratio_yz, ratio_zx, ratio_zy, ratio_zz,
        half_w, half_h, half_d, last_w, last_h, last_d,
    )  # fmt: skip
    map = load_map_3d(Theta_ptr, scales, DTYPE)
    first, count = channel_range(C, SPLITS)
    _, offs, offs_c = tile_3d(
        program - nk * tiles, H_out, W_out, BLOCK_D, BLOCK_H, BLOCK_W, BLOCK_C
    )
    mask = inside_3d(offs, D_out, H_out, W_out)
    x, y, z = source_3d(
        map, centred(offs[2], centre_w, DTYPE), centred(offs[1], centre_h, DTYPE),
        centred(offs[0], centre_d, DTYPE),
    )  # fmt: skip
    X_ptr += n.to(tl.int64) * stride_xn + first * stride_xc
    Y_ptr += nk.to(tl.int64) * stride_yn + first * stride_yc
    Y_ptrs = Y_ptr + offsets_3d(offs[0], offs[1], offs[2], stride_yd, stride_yh, stride_yw, INDEX)
    Y_ptrs += offs_c * stride_yc

    if MODE == "nearest":
        u, in_x = nearest(x, last_w, edge, PADDING)
        v, in_y = nearest(y, last_h, edge, PADDING)
        w, in_z = nearest(z, last_d, edge, PADDING)
        finite = nonfinite(x) + nonfinite(y) + nonfinite(z) == 0
        read = mask & in_x & in_y & in_z
    else:
        along_x = taps(x, last_w, edge, PADDING)
        along_y = taps(y, last_h, edge, PADDING)
        along_z = taps(z, last_d, edge, PADDING)
        u = along_x[0]
        v = along_y[0]
        w = along_z[0]
        weights, masks = corners(along_x, along_y, along_z, mask)
    X_ptrs = X_ptr + offsets_3d(w, v, u, stride_xd, stride_xh, stride_xw, INDEX)
    X_ptrs += offs_c * stride_xc

    for c in range(0, count, PASS * BLOCK_C):
        # The loads of a whole pass come before its stores, which the compiler keeps in order.
        sums = ()
        for s in tl.static_range(PASS):
            some = offs_c + s * BLOCK_C < count - c if MASK_CHANNELS else True
            if MODE == "nearest":
                value = tl.load(X_ptrs, mask=read & some, other=0.0).to(DTYPE)
                sums = sums + (tl.where(finite, value, float("nan")),)
            else:
                out = tl.zeros(X_ptrs.shape, DTYPE)
                for t in tl.static_range(8):
                    # A tap with zero weight is not read: an inf next door does not leak in as NaN.
                    value = tl.load(
                        corner(X_ptrs, stride_xd, stride_xh, stride_xw, t),
                        mask=masks[t] & (weights[t] != 0) & some,
                        other=0.0,
                    )
                    out = tl.fma(value.to(DTYPE), weights[t], out)
                sums = sums + (out,)
            X_ptrs += BLOCK_C * stride_xc
        for s in tl.static_range(PASS):
            some = offs_c + s * BLOCK_C < count - c if MASK_CHANNELS else True
            tl.store(Y_ptrs, sums[s].to(Y_ptr.dtype.element_ty), mask=mask & some)
            Y_ptrs += BLOCK_C * stride_yc
