"""Backward by gathering, zeros padding: a program owns a tile of *input* pixels.

Input pixel (u, v) receives from the output pixels p with x(p) in [u-1, u+1), y(p) in [v-1, v+1):

    dX[n, c, v, u] = sum over k, p of dY[n, k, c, p] · wx(p) · wy(p)        wx = 1 - |x(p) - u|
    t(p)           = sum over c of dY[n, k, c, p] · X[n, c, v, u]
    S_x           += t(p) · sgn_x · wy(p) · (j', i', 1)    sgn_x = +1 left of the pixel, else -1
    S_y           += t(p) · sgn_y · wx(p) · (j', i', 1)

and S is the gradient of the pixel map. The preimage of the 2 x 2 cell is a parallelogram whose
bounding box, the window, has the same size for every pixel of a theta.
Membership is decided on x(p), y(p) as the forward kernel rounds them, so every tap is counted
exactly once. A homography has windows and moments of its own, in `perspective.py`. A tile is NCHW
or channels-last as `coordinates.tile` says.
Launch grid: (N·SPLITS, tiles along W, tiles along H); a split owns a range of channels.
"""

import triton
import triton.language as tl

from triton_stn.kernels.candidates import advance, inverse_map, store_pass, zero_pass
from triton_stn.kernels.coordinates import channel_range, source_map, tile
from triton_stn.kernels.moments import store_sums, zero_moments
from triton_stn.kernels.perspective import inverse_homography
from triton_stn.kernels.windows import ON_SIDE, PERSPECTIVE, gather_theta, window_kind


@triton.jit
def load_theta(
    Theta_ptr,
    scales,
    units,
    canvas,
    SOURCE: tl.constexpr,
    MODE: tl.constexpr,
    WINDOW: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """One theta: (the map of `source_map`, its inverse, the kind of its window)."""
    map = source_map(Theta_ptr, scales, units, SOURCE, DTYPE)
    if SOURCE == "projective":
        inverse = inverse_homography(map, canvas, MODE)
        kind = PERSPECTIVE
    else:
        inverse = inverse_map(map, MODE)
        kind = window_kind(map, inverse, WINDOW)
    return map, inverse, kind


@triton.jit
def gather(
    X_ptr,  # (N, C, H, W), any strides
    Theta_ptr,  # (N, K, 2, 3), or (N, K, 3, 3); the last two dimensions contiguous
    dY_ptr,  # (N, K, C, H_out, W_out), any strides
    dX_ptr,  # (N, C, H, W)
    P_ptr,  # (N, slots, SUMS filled up to a multiple of six): partial sums of grad_theta
    K,
    C,
    H,
    W,
    H_out,
    W_out,
    slots,
    stride_xn,
    stride_xc,
    stride_xh,
    stride_xw,
    stride_tn,
    stride_tk,
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
    unit_w,
    unit_h,
    SOURCE: tl.constexpr,  # of coordinates: "affine" or "projective"
    EVERY: tl.constexpr,  # leave no homography to the scatter kernel
    MODE: tl.constexpr,
    NEEDS_THETA: tl.constexpr,  # of one theta: moments stay in registers over passes and tiles
    SUMS: tl.constexpr,  # that make up grad_theta
    ONE_THETA: tl.constexpr,  # K = 1
    WINDOW: tl.constexpr,  # "any", or the one kind of window to compile, for the static report
    PASS: tl.constexpr,  # channels a pass (NCHW)
    ONE_PASS: tl.constexpr,  # a pass takes all channels
    MASK_CHANNELS: tl.constexpr,  # a pass does not divide a split's channels
    SPLITS: tl.constexpr,
    TILES: tl.constexpr,  # tiles a program walks, downwards
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,  # 1: NCHW; else channels-last, the channels a pass
    DTYPE: tl.constexpr,  # of coordinates, weights and sums
    INDEX: tl.constexpr,  # of offsets inside one image
):
    n = tl.program_id(0) // SPLITS
    first, count = channel_range(C, SPLITS)
    X_ptr += n.to(tl.int64) * stride_xn + first * stride_xc
    dX_ptr += n.to(tl.int64) * stride_dxn + first * stride_dxc
    dY_ptr += n.to(tl.int64) * stride_gn + first * stride_gc
    Theta_ptr += n.to(tl.int64) * stride_tn
    canvas = (H_out, W_out, centre_h, centre_w)
    scales = (ratio_xx, ratio_xy, ratio_yx, ratio_yy, half_w, half_h, last_w, last_h)
    units = (unit_w, unit_h, 0)
    passes = 1 if ONE_PASS else tl.cdiv(count, PASS * BLOCK_C)
    if ONE_THETA:
        map, inverse, kind = load_theta(
            Theta_ptr, scales, units, canvas, SOURCE, MODE, WINDOW, DTYPE
        )
        moments = zero_moments(SUMS, BLOCK_H * BLOCK_W, DTYPE)
    for t in range(TILES):
        v_first = (tl.program_id(2) * TILES + t) * BLOCK_H
        u_first = tl.program_id(1) * BLOCK_W
        offs_v, offs_u, offs_c = tile(v_first, u_first, BLOCK_H, BLOCK_W, BLOCK_C)
        mask = (offs_v < H) & (offs_u < W)
        offs_x = offs_v.to(INDEX) * stride_xh + offs_u.to(INDEX) * stride_xw
        offs_dx = offs_v.to(INDEX) * stride_dxh + offs_u.to(INDEX) * stride_dxw
        spot = (offs_u.to(DTYPE), offs_v.to(DTYPE), mask, u_first, v_first, offs_x)
        X = (X_ptr + offs_c * stride_xc, stride_xc, stride_xh, stride_xw)
        dX_pass = dX_ptr + offs_c * stride_dxc + offs_dx
        dX = (dX_pass, stride_dxc)
        G_pass = dY_ptr + offs_c * stride_gc
        if ONE_THETA:
            G = (G_pass, stride_gc, stride_gh, stride_gw)
            moments = gather_theta(
                moments, kind, Theta_ptr, scales,
                (map, inverse, spot, X, dX, G, (offs_c, count), canvas, (H, W)), passes, SOURCE,
                ONE_THETA, MODE, PASS, MASK_CHANNELS, NEEDS_THETA, BLOCK_H, BLOCK_W, BLOCK_C,
                INDEX, EVERY,
            )  # fmt: skip
        else:
            for step in range(passes):
                channels = (offs_c, count - step * PASS * BLOCK_C)
                acc = zero_pass(BLOCK_H * BLOCK_W, PASS, BLOCK_C, DTYPE)
                G_ptr = G_pass
                Theta_k = Theta_ptr
                for _k in range(K):
                    map, inverse, kind = load_theta(
                        Theta_k, scales, units, canvas, SOURCE, MODE, WINDOW, DTYPE
                    )
                    G = (G_ptr, stride_gc, stride_gh, stride_gw)
                    acc = gather_theta(
                        acc, kind, Theta_k, scales,
                        (map, inverse, spot, X, dX, G, channels, canvas, (H, W)), passes, SOURCE,
                        ONE_THETA, MODE, PASS, MASK_CHANNELS, NEEDS_THETA, BLOCK_H, BLOCK_W,
                        BLOCK_C, INDEX, EVERY,
                    )  # fmt: skip
                    G_ptr += stride_gk
                    Theta_k += stride_tk
                store_pass(dX_pass, stride_dxc, acc, mask, channels, PASS, MASK_CHANNELS)
                dX_pass = advance(dX_pass, BLOCK_C * stride_dxc, PASS)
                G_pass = advance(G_pass, BLOCK_C * stride_gc, PASS)
    if NEEDS_THETA:
        slot = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
        slot = slot * SPLITS + tl.program_id(0) % SPLITS
        store_sums(P_ptr, n.to(tl.int64) * slots + slot, moments, kind == ON_SIDE, SUMS)
