"""Backward from the output's side: a program owns a tile of output pixels of one theta.

dtheta alone needs no scatter: with the four taps of its coordinate each output pixel has

    S_x += sum over c of dY · (dY/dx) · (j', i', 1)        S_y likewise

or, of a grid, S_x and S_y themselves without the sum over pixels, which `spline_gradient` takes on
to the coefficients of a spline; and grad_input, where no window
can be bounded (the padding modes that fold the plane onto the image's edge, and grids), adds
dY · wx · wy to the four taps with float atomics, whose order is not fixed. Of homographies with
zeros padding it takes those that `perspective.py` does not gather.
Launch grid: (N·K·SPLITS, tiles along W, runs of tiles along H); a split owns a range of channels.
"""

import triton
import triton.language as tl

from triton_stn.kernels.area import pixel_sides, scatter_area
from triton_stn.kernels.bicubic import scatter_bicubic
from triton_stn.kernels.coordinates import (
    centred,
    channel_range,
    nearest,
    nonfinite,
    source,
    source_gradient,
    source_map,
    taps,
    tile,
)
from triton_stn.kernels.moments import store_sums, zero_moments
from triton_stn.kernels.perspective import inverse_homography


@triton.jit
def scatter(
    X_ptr,  # (N, C, H, W), any strides
    Theta_ptr,  # (N, K, *): see coordinates.source; contiguous past K unless of (H_out, W_out, *)
    dY_ptr,  # (N, K, C, H_out, W_out), any strides
    dX_ptr,  # (N, C, H, W), in the dtype of the sums; what it holds is added to
    # Partial sums of grad_theta, (N, K, slots, SUMS filled up to a multiple of six); else the
    P_ptr,  # gradient of each pixel's coordinates or patch, (N, K, SPLITS, H_out, W_out, FIELD)
    K,
    C,
    H_out,
    W_out,
    slots,
    first_slot,  # of this kernel's; those before it are the gather's
    stride_xn,
    stride_xc,
    stride_xh,
    stride_xw,
    stride_tn,
    stride_tk,
    stride_ti,
    stride_tj,
    stride_tc,
    stride_gn,
    stride_gk,
    stride_gc,
    stride_gh,
    stride_gw,
    stride_dxn,
    stride_dxc,
    stride_dxh,
    stride_dxw,
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
    REST: tl.constexpr,  # leave alone every theta that is gathered
    NEEDS_INPUT: tl.constexpr,
    NEEDS_THETA: tl.constexpr,
    SUMS: tl.constexpr,  # that make up grad_theta, or 0
    FIELD: tl.constexpr,  # numbers a pixel that it is made from afterwards, or 0
    FEW: tl.constexpr,  # C where it is small, so that no loop over channels remains, or 0
    MASK_CHANNELS: tl.constexpr,  # BLOCK_C does not divide a split's channels
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
    k = nk - n * K
    scales = (ratio_xx, ratio_xy, ratio_yx, ratio_yy, half_w, half_h, last_w, last_h)
    Theta_ptr += n.to(tl.int64) * stride_tn + k.to(tl.int64) * stride_tk
    map = source_map(Theta_ptr, scales, (unit_w, unit_h, T), SOURCE, DTYPE)
    first, count = channel_range(FEW if FEW else C, SPLITS)
    X_ptr += n.to(tl.int64) * stride_xn + first * stride_xc
    dX_ptr += n.to(tl.int64) * stride_dxn + first * stride_dxc
    dY_ptr += n.to(tl.int64) * stride_gn + k.to(tl.int64) * stride_gk + first * stride_gc
    split = tl.program_id(0) % SPLITS
    if REST:
        mine = inverse_homography(map, (H_out, W_out, centre_h, centre_w), MODE)[4] == 0
    else:
        mine = True
    moments = zero_moments(SUMS, BLOCK_H * BLOCK_W, DTYPE)
    if mine:
        for t in range(TILES):
            moments = scatter_tile(
                moments,
                (X_ptr, stride_xc, stride_xh, stride_xw),
                (dX_ptr, stride_dxc, stride_dxh, stride_dxw),
                (dY_ptr, stride_gc, stride_gh, stride_gw),
                P_ptr + (nk.to(tl.int64) * SPLITS + split) * H_out * W_out * FIELD,
                Theta_ptr, (stride_ti, stride_tj, stride_tc), map,
                (tl.program_id(2) * TILES + t) * BLOCK_H, tl.program_id(1) * BLOCK_W, count,
                (H_out, W_out, centre_h, centre_w), (half_w, half_h, last_w, last_h, edge),
                SOURCE, MODE, PADDING, NEEDS_INPUT, NEEDS_THETA, SUMS, FIELD, MASK_CHANNELS,
                BLOCK_H, BLOCK_W, BLOCK_C, DTYPE, INDEX,
            )  # fmt: skip
    if NEEDS_THETA and SUMS > 0:
        slot = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
        slot = first_slot + slot * SPLITS + split
        store_sums(P_ptr, nk.to(tl.int64) * slots + slot, moments, False, SUMS)


@triton.jit
def scatter_tile(
    moments,
    X,  # (X at the first channel, stride_xc, stride_xh, stride_xw)
    dX,
    G,
    P_ptr,  # of one theta and split
    Theta_ptr,
    theta_strides,
    map,
    i_first,
    j_first,
    count,
    canvas,
    frame,  # of the input: (half_w, half_h, last_w, last_h, edge)
    SOURCE: tl.constexpr,
    MODE: tl.constexpr,
    PADDING: tl.constexpr,
    NEEDS_INPUT: tl.constexpr,
    NEEDS_THETA: tl.constexpr,
    SUMS: tl.constexpr,
    FIELD: tl.constexpr,
    MASK_CHANNELS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    DTYPE: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Adds to dX; returns the moments with this tile's, or stores each pixel's gradient."""
    X_ptr, stride_xc, stride_xh, stride_xw = X
    dX_ptr, stride_dxc, stride_dxh, stride_dxw = dX
    G_ptr, stride_gc, stride_gh, stride_gw = G
    H_out, W_out, centre_h, centre_w = canvas
    half_w, half_h, last_w, last_h, edge = frame
    offs_i, offs_j, offs_c = tile(i_first, j_first, BLOCK_H, BLOCK_W, BLOCK_C)
    i = centred(offs_i, centre_h, DTYPE)
    j = centred(offs_j, centre_w, DTYPE)
    canvas_mask = (offs_i < H_out) & (offs_j < W_out)
    x, y = source(
        map, Theta_ptr, theta_strides, offs_i, offs_j, centre_h, centre_w,
        canvas_mask, SOURCE, DTYPE, INDEX,
    )  # fmt: skip
    # An output that is not finite gives nothing to any gradient.
    mask = canvas_mask & (nonfinite(x) + nonfinite(y) == 0)

    X_ptr += offs_c * stride_xc
    dX_ptr += offs_c * stride_dxc
    G_ptrs = G_ptr + offs_c * stride_gc
    G_ptrs += offs_i.to(INDEX) * stride_gh + offs_j.to(INDEX) * stride_gw

    if MODE == "nearest":
        u, in_x = nearest(x, last_w, edge, PADDING)
        v, in_y = nearest(y, last_h, edge, PADDING)
        D_ptrs = dX_ptr + (v.to(INDEX) * stride_dxh + u.to(INDEX) * stride_dxw)
        written = mask & in_x & in_y
        for c in range(0, count, BLOCK_C):
            here = written
            if MASK_CHANNELS:
                here &= offs_c < count - c
            g = tl.load(G_ptrs, mask=here, other=0.0).to(DTYPE)
            tl.atomic_add(D_ptrs, g, mask=here, sem="relaxed")
            G_ptrs += BLOCK_C * stride_gc
            D_ptrs += BLOCK_C * stride_dxc
    elif MODE == "area":
        sides = pixel_sides(
            map, Theta_ptr, theta_strides, offs_i, offs_j, mask, SOURCE, DTYPE, INDEX
        )
        s_x, s_y, s_sides = scatter_area(
            X_ptr, dX_ptr, G_ptrs, x, y, sides, mask, offs_c, count,
            (stride_xc, stride_xh, stride_xw), (stride_dxc, stride_dxh, stride_dxw), stride_gc,
            last_w, last_h, edge, PADDING, NEEDS_INPUT, NEEDS_THETA, MASK_CHANNELS, BLOCK_C,
            DTYPE, INDEX,
        )  # fmt: skip
    elif MODE == "bicubic":
        s_x, s_y = scatter_bicubic(
            X_ptr, dX_ptr, G_ptrs, x, y, mask, offs_c, count, (stride_xc, stride_xh, stride_xw),
            (stride_dxc, stride_dxh, stride_dxw), stride_gc, last_w, last_h, edge,
            PADDING, NEEDS_INPUT, NEEDS_THETA, MASK_CHANNELS, BLOCK_C, DTYPE, INDEX,
        )  # fmt: skip
    else:
        u, wx, in_x0, in_x1, slope_x = taps(x, last_w, edge, PADDING)
        v, wy, in_y0, in_y1, slope_y = taps(y, last_h, edge, PADDING)
        in_y0 &= mask
        in_y1 &= mask
        m00 = in_y0 & in_x0
        m01 = in_y0 & in_x1
        m10 = in_y1 & in_x0
        m11 = in_y1 & in_x1
        X00 = X_ptr + (v.to(INDEX) * stride_xh + u.to(INDEX) * stride_xw)
        X10 = X00 + stride_xh
        D00 = dX_ptr + (v.to(INDEX) * stride_dxh + u.to(INDEX) * stride_dxw)
        D10 = D00 + stride_dxh
        # t: sums over the channels of dY times each of the four taps
        t00 = tl.zeros(G_ptrs.shape, DTYPE)
        t01 = t00
        t10 = t00
        t11 = t00
        for c in range(0, count, BLOCK_C):
            some = offs_c < count - c if MASK_CHANNELS else True
            g = tl.load(G_ptrs, mask=mask & some, other=0.0).to(DTYPE)
            if NEEDS_INPUT:
                add_tap(D00, g * ((1 - wx) * (1 - wy)), m00 & some)
                add_tap(D00 + stride_dxw, g * (wx * (1 - wy)), m01 & some & (wx > 0))
                add_tap(D10, g * ((1 - wx) * wy), m10 & some & (wy > 0))
                add_tap(D10 + stride_dxw, g * (wx * wy), m11 & some & (wx > 0) & (wy > 0))
                D00 += BLOCK_C * stride_dxc
                D10 += BLOCK_C * stride_dxc
            if NEEDS_THETA:
                t00 = tl.fma(g, tl.load(X00, mask=m00 & some, other=0.0).to(DTYPE), t00)
                t01 = tl.fma(g, tl.load(X00 + stride_xw, mask=m01 & some, other=0.0).to(DTYPE), t01)
                t10 = tl.fma(g, tl.load(X10, mask=m10 & some, other=0.0).to(DTYPE), t10)
                t11 = tl.fma(g, tl.load(X10 + stride_xw, mask=m11 & some, other=0.0).to(DTYPE), t11)
                X00 += BLOCK_C * stride_xc
                X10 += BLOCK_C * stride_xc
            G_ptrs += BLOCK_C * stride_gc
        if NEEDS_THETA:
            if BLOCK_C > 1:
                t00 = tl.sum(t00, 1, keep_dims=True)
                t01 = tl.sum(t01, 1, keep_dims=True)
                t10 = tl.sum(t10, 1, keep_dims=True)
                t11 = tl.sum(t11, 1, keep_dims=True)
            s_x = slope_x * ((t01 - t00) * (1 - wy) + (t11 - t10) * wy)
            s_y = slope_y * ((t10 - t00) * (1 - wx) + (t11 - t01) * wx)
    if NEEDS_THETA:
        s_x = tl.where(mask, s_x, 0.0)
        s_y = tl.where(mask, s_y, 0.0)
        if SUMS > 0:
            terms = source_gradient(map, i, j, s_x, s_y, mask, SOURCE)
            if MODE == "area":  # of an affine map: x = a00·j + a01·i + b0 at every sample
                x_j, x_i, x_1, y_j, y_i, y_1 = terms
                x_j += s_sides[0]
                y_j += s_sides[1]
                x_i += s_sides[2]
                y_i += s_sides[3]
                terms = (x_j, x_i, x_1, y_j, y_i, y_1)
            before = moments
            moments = ()
            for n in tl.static_range(SUMS):
                moments = moments + (before[n] + terms[n],)
        else:
            P_ptrs = P_ptr + (offs_i.to(tl.int64) * W_out + offs_j) * FIELD
            tl.store(P_ptrs, s_x if SOURCE == "flow" else s_x * half_w, mask=canvas_mask)
            tl.store(P_ptrs + 1, s_y if SOURCE == "flow" else s_y * half_h, mask=canvas_mask)
            if SOURCE == "patch":
                for n in tl.static_range(4):
                    tl.store(P_ptrs + 2 + n, s_sides[n] * map[n % 2], mask=canvas_mask)
    return moments


@triton.jit
def add_tap(ptrs, value, mask):
    tl.atomic_add(ptrs, value, mask=mask, sem="relaxed")
