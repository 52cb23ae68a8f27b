"""Forward: a program owns a tile of output pixels of one theta and loops over channels.

    Y[n, k, c, i, j] = sum over the taps (v, u) of X[n, c, v, u] · wx · wy

Coordinates, weights and masks are computed once a tile and serve every channel.
Launch grid: (N·K·SPLITS, tiles along W, tiles along H); a split owns a range of channels.
"""

import triton
import triton.language as tl

from triton_stn.kernels.area import forward_area, pixel_sides
from triton_stn.kernels.bicubic import forward_bicubic
from triton_stn.kernels.coordinates import (
    channel_range,
    nearest,
    nonfinite,
    source,
    source_map,
    taps,
    tile,
)


@triton.jit
def load_taps(p0, p1, stride_xw, masks, before):
    """The four taps of one channel; p0 and p1 point at the left ones of the two rows.

    Where a tap is not read it keeps what it was ``before``, so that a loop over channels sets a
    register to zero once, not at every load.
    """
    v00 = tl.load(p0, mask=masks[0], other=before[0])
    v01 = tl.load(p0 + stride_xw, mask=masks[1], other=before[1])
    v10 = tl.load(p1, mask=masks[2], other=before[2])
    v11 = tl.load(p1 + stride_xw, mask=masks[3], other=before[3])
    return v00, v01, v10, v11


@triton.jit
def weigh(values, weights, DTYPE: tl.constexpr):
    """The weighted sum of the four taps."""
    out = values[0].to(DTYPE) * weights[0]
    out = tl.fma(values[1].to(DTYPE), weights[1], out)
    out = tl.fma(values[2].to(DTYPE), weights[2], out)
    return tl.fma(values[3].to(DTYPE), weights[3], out)


@triton.jit
def forward(
    X_ptr,  # (N, C, H, W), any strides
    Theta_ptr,  # (N, K, *): see coordinates.source; contiguous past K unless of (H_out, W_out, *)
    Y_ptr,  # (N·K, C, H_out, W_out)
    K,
    C,
    H_out,
    W_out,
    stride_xn,
    stride_xc,
    stride_xh,
    stride_xw,
    stride_tn,
    stride_tk,
    stride_ti,
    stride_tj,
    stride_tc,
    stride_yn,
    stride_yc,
    stride_yh,
    stride_yw,
    ratio_xx,
    ratio_xy,
    ratio_yx,
    ratio_yy,
    half_w,
    half_h,
    last_w,
    last_h,
    centre_w,
    centre_h,
    edge,
    unit_w,
    unit_h,
    T,
    SOURCE: tl.constexpr,  # of coordinates
    MODE: tl.constexpr,
    PADDING: tl.constexpr,
    PASS: tl.constexpr,  # channels a pass (NCHW)
    ONE_PASS: tl.constexpr,  # a pass takes all channels
    MASK_CHANNELS: tl.constexpr,  # a pass does not divide a split's channels
    SPLITS: tl.constexpr,
    TILES: tl.constexpr,  # tiles a program walks, downwards
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,  # 1: NCHW; else channels-last
    DTYPE: tl.constexpr,  # of coordinates, weights and sums
    INDEX: tl.constexpr,  # of offsets inside one image
):
    nk = tl.program_id(0) // SPLITS
    n = nk // K
    Theta_ptr += n.to(tl.int64) * stride_tn + (nk - n * K).to(tl.int64) * stride_tk
    scales = (ratio_xx, ratio_xy, ratio_yx, ratio_yy, half_w, half_h, last_w, last_h)
    map = source_map(Theta_ptr, scales, (unit_w, unit_h, T), SOURCE, DTYPE)
    theta_strides = (stride_ti, stride_tj, stride_tc)
    first, count = channel_range(C, SPLITS)
    X_ptr += n.to(tl.int64) * stride_xn + first * stride_xc
    Y_ptr += nk.to(tl.int64) * stride_yn + first * stride_yc
    for t in tl.static_range(TILES):
        forward_tile(
            X_ptr, Y_ptr, Theta_ptr, map, theta_strides, (tl.program_id(2) * TILES + t) * BLOCK_H,
            tl.program_id(1) * BLOCK_W, count, H_out, W_out, stride_xc, stride_xh, stride_xw,
            stride_yc, stride_yh, stride_yw, last_w, last_h, centre_w, centre_h, edge,
            SOURCE, MODE, PADDING, PASS, ONE_PASS, MASK_CHANNELS, BLOCK_H, BLOCK_W, BLOCK_C,
            DTYPE, INDEX,
        )  # fmt: skip


@triton.jit
def forward_tile(
    X_ptr,
    Y_ptr,
    Theta_ptr,
    map,
    theta_strides,
    i_first,
    j_first,
    count,
    H_out,
    W_out,
    stride_xc,
    stride_xh,
    stride_xw,
    stride_yc,
    stride_yh,
    stride_yw,
    last_w,
    last_h,
    centre_w,
    centre_h,
    edge,
    SOURCE: tl.constexpr,
    MODE: tl.constexpr,
    PADDING: tl.constexpr,
    PASS: tl.constexpr,
    ONE_PASS: tl.constexpr,
    MASK_CHANNELS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    DTYPE: tl.constexpr,
    INDEX: tl.constexpr,
):
    offs_i, offs_j, offs_c = tile(i_first, j_first, BLOCK_H, BLOCK_W, BLOCK_C)
    mask = (offs_i < H_out) & (offs_j < W_out)
    x, y = source(
        map, Theta_ptr, theta_strides, offs_i, offs_j, centre_h, centre_w, mask,
        SOURCE, DTYPE, INDEX,
    )  # fmt: skip
    Y_ptrs = Y_ptr + (offs_i.to(INDEX) * stride_yh + offs_j.to(INDEX) * stride_yw)
    Y_ptrs += offs_c * stride_yc

    if MODE == "nearest":
        u, in_x = nearest(x, last_w, edge, PADDING)
        v, in_y = nearest(y, last_h, edge, PADDING)
        finite = nonfinite(x) + nonfinite(y) == 0
        X_ptrs = X_ptr + (v.to(INDEX) * stride_xh + u.to(INDEX) * stride_xw) + offs_c * stride_xc
        read = mask & in_x & in_y
        for c in range(0, 1 if ONE_PASS else count, PASS * BLOCK_C):
            values = ()
            for s in tl.static_range(PASS):
                some = offs_c + s * BLOCK_C < count - c if MASK_CHANNELS else True
                values = values + (tl.load(X_ptrs, mask=read & some, other=0.0),)
                X_ptrs += BLOCK_C * stride_xc
            for s in tl.static_range(PASS):
                some = offs_c + s * BLOCK_C < count - c if MASK_CHANNELS else True
                value = tl.where(finite, values[s].to(DTYPE), float("nan"))
                tl.store(Y_ptrs, value.to(Y_ptr.dtype.element_ty), mask=mask & some)
                Y_ptrs += BLOCK_C * stride_yc
    elif MODE == "area":
        sides = pixel_sides(
            map, Theta_ptr, theta_strides, offs_i, offs_j, mask, SOURCE, DTYPE, INDEX
        )
        forward_area(
            X_ptr, Y_ptrs, x, y, sides, mask, offs_c, count, (stride_xc, stride_xh, stride_xw),
            stride_yc, last_w, last_h, edge, PADDING, MASK_CHANNELS, BLOCK_C, DTYPE, INDEX,
        )  # fmt: skip
    elif MODE == "bicubic":
        forward_bicubic(
            X_ptr, Y_ptrs, x, y, mask, offs_c, count, (stride_xc, stride_xh, stride_xw), stride_yc,
            last_w, last_h, edge, PADDING, MASK_CHANNELS, BLOCK_C, DTYPE, INDEX,
        )  # fmt: skip
    else:
        u, wx, in_x0, in_x1, _ = taps(x, last_w, edge, PADDING)
        v, wy, in_y0, in_y1, _ = taps(y, last_h, edge, PADDING)
        # A tap with zero weight is not read: an inf next door does not leak in as NaN.
        in_x1 &= wx > 0
        in_y0 &= mask
        in_y1 &= mask & (wy > 0)
        m00 = in_y0 & in_x0
        m01 = in_y0 & in_x1
        m10 = in_y1 & in_x0
        m11 = in_y1 & in_x1
        w11 = wx * wy
        w01 = wx * (1 - wy)
        w10 = (1 - wx) * wy
        w00 = (1 - wx) * (1 - wy)
        weights = (w00, w01, w10, w11)
        offs_x = v.to(INDEX) * stride_xh + u.to(INDEX) * stride_xw + offs_c * stride_xc
        step_x = tl.full([1, 1], BLOCK_C, INDEX) * stride_xc
        X_below = X_ptr + stride_xh
        zero = tl.zeros(offs_x.shape, X_ptr.dtype.element_ty)
        values = ()
        for _ in tl.static_range(PASS):
            values = values + ((zero, zero, zero, zero),)
        for c in range(0, 1 if ONE_PASS else count, PASS * BLOCK_C):
            # The loads of a whole pass come before its stores, which the compiler keeps in order.
            before = values
            values = ()
            for s in tl.static_range(PASS):
                some = offs_c + s * BLOCK_C < count - c if MASK_CHANNELS else True
                masks = (m00 & some, m01 & some, m10 & some, m11 & some)
                four = load_taps(X_ptr + offs_x, X_below + offs_x, stride_xw, masks, before[s])
                values = values + (four,)
                offs_x += step_x
            for s in tl.static_range(PASS):
                some = offs_c + s * BLOCK_C < count - c if MASK_CHANNELS else True
                out = weigh(values[s], weights, DTYPE)
                tl.store(Y_ptrs, out.to(Y_ptr.dtype.element_ty), mask=mask & some)
                Y_ptrs += BLOCK_C * stride_yc
