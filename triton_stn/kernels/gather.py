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

from triton_stn.kernels.candidates import MOST_CANDIDATES, inverse_map, is_tame, meets, near
from triton_stn.kernels.coordinates import channel_range, load_map, source_map, tile
from triton_stn.kernels.narrow import axis_kind, gather_axis, gather_three
from triton_stn.kernels.perspective import gather_perspective, inverse_homography
from triton_stn.kernels.wide import gather_straight, gather_walk, gather_wide


@triton.jit
def store_moments(P_ptr, moments, swap):
    """Sum six tiles of moments in a fixed order and store the six numbers.

    Eight pixels inside a warp first; then stacked, so that one exchange between warps serves all.
    ``swap`` exchanges the moments along j and i.
    """
    m0 = sum_of_eights(moments[0])
    m1 = sum_of_eights(moments[1])
    m2 = sum_of_eights(moments[2])
    m3 = sum_of_eights(moments[3])
    m4 = sum_of_eights(moments[4])
    m5 = sum_of_eights(moments[5])
    zero = tl.zeros(m0.shape, m0.dtype)
    even = tl.join(tl.join(m0, m4), tl.join(m2, zero))
    odd = tl.join(tl.join(m1, m5), tl.join(m3, zero))
    stacked = tl.reshape(tl.join(even, odd), (m0.shape[0], 8))
    column = tl.arange(0, 8)
    swapped = tl.where(column % 3 < 2, column // 3 * 3 + 1 - column % 3, column)
    place = tl.where(swap, swapped, column)
    tl.store(P_ptr + place, tl.sum(stacked, 0), mask=column < 6)


@triton.jit
def sum_of_eights(x):
    """[pixels, 1] -> [pixels / 8]"""
    return tl.sum(tl.reshape(x, (x.shape[0] // 8, 8)), 1)


@triton.jit
def zero_moments(SUMS: tl.constexpr, PIXELS: tl.constexpr, DTYPE: tl.constexpr):
    """A zero a pixel of a tile for each of the sums that make up grad_theta."""
    moments = ()
    for _ in tl.static_range(SUMS):
        moments = moments + (tl.zeros([PIXELS, 1], DTYPE),)
    return moments


@triton.jit
def store_sums(P_ptr, row, moments, swap, SUMS: tl.constexpr):
    """The sums of one theta, six at a time; the last six are filled up with zeros."""
    zero = tl.zeros(moments[0].shape, moments[0].dtype)
    GROUPS: tl.constexpr = (SUMS + 5) // 6
    for group in tl.static_range(GROUPS):
        six = ()
        for n in tl.static_range(6 * group, 6 * group + 6):
            six = six + (moments[n] if n < SUMS else zero,)
        store_moments(P_ptr + (row * GROUPS + group) * 6, six, swap)


@triton.jit
def load_theta(
    Theta_ptr,
    scales,
    units,
    canvas,
    SOURCE: tl.constexpr,
    MODE: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """One theta: (the map of `source_map`, its inverse, the moments lie swapped)."""
    map = source_map(Theta_ptr, scales, units, SOURCE, DTYPE)
    if SOURCE == "projective":
        inverse = inverse_homography(map, canvas, MODE)
        swap = False
    else:
        inverse = inverse_map(map, MODE)
        swap = axis_kind(map)[1]
    return map, inverse, swap


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
    STEP: tl.constexpr = PASS * BLOCK_C
    scales = (ratio_xx, ratio_xy, ratio_yx, ratio_yy, half_w, half_h, last_w, last_h)
    units = (unit_w, unit_h, 0)
    passes = 1 if ONE_PASS else tl.cdiv(count, STEP)
    if ONE_THETA:
        map, inverse, swap = load_theta(Theta_ptr, scales, units, canvas, SOURCE, MODE, DTYPE)
    moments = zero_moments(SUMS, BLOCK_H * BLOCK_W, DTYPE)

    for t in range(TILES):
        v_first = (tl.program_id(2) * TILES + t) * BLOCK_H
        u_first = tl.program_id(1) * BLOCK_W
        offs_v, offs_u, offs_c = tile(v_first, u_first, BLOCK_H, BLOCK_W, BLOCK_C)
        mask = (offs_v < H) & (offs_u < W)
        v = offs_v.to(DTYPE)
        u = offs_u.to(DTYPE)
        offs_x = offs_v.to(INDEX) * stride_xh + offs_u.to(INDEX) * stride_xw
        offs_dx = offs_v.to(INDEX) * stride_dxh + offs_u.to(INDEX) * stride_dxw
        X_pass = X_ptr + offs_c * stride_xc
        dX_pass = dX_ptr + offs_c * stride_dxc + offs_dx
        G_pass = dY_ptr + offs_c * stride_gc
        for step in range(passes):
            channels = (offs_c, count - step * STEP)
            acc = ()
            for _ in tl.static_range(PASS):
                acc = acc + (tl.zeros(dX_pass.shape, DTYPE),)
            G_ptr = G_pass
            Theta_k = Theta_ptr
            for _k in range(K):
                X = (X_pass, stride_xc, stride_xh, stride_xw)
                G = (G_ptr, stride_gc, stride_gh, stride_gw)
                if not ONE_THETA:
                    map, inverse, swap = load_theta(
                        Theta_k, scales, units, canvas, SOURCE, MODE, DTYPE
                    )
                acc, moments = gather_theta(
                    acc, moments, X_pass + offs_x, X, G, Theta_k, scales, map, inverse, u, v,
                    u_first, v_first, H, W, mask, channels, canvas, MODE, PASS, MASK_CHANNELS,
                    NEEDS_THETA, ONE_THETA, WINDOW, BLOCK_H, BLOCK_W, BLOCK_C, INDEX, SOURCE, EVERY,
                )  # fmt: skip
                G_ptr += stride_gk
                Theta_k += stride_tk
            for c in tl.static_range(PASS):
                written = mask
                if MASK_CHANNELS:
                    written &= offs_c + c < count - step * STEP
                tl.store(dX_pass, acc[c].to(dX_ptr.dtype.element_ty), mask=written)
                # Pointers walk the channels: a product of strides could leave int32.
                dX_pass += BLOCK_C * stride_dxc
                X_pass += BLOCK_C * stride_xc
                G_pass += BLOCK_C * stride_gc
    if NEEDS_THETA:
        slot = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
        slot = slot * SPLITS + tl.program_id(0) % SPLITS
        store_sums(P_ptr, n.to(tl.int64) * slots + slot, moments, swap, SUMS)


@triton.jit
def gather_theta(
    acc,
    moments,
    X_ptrs,
    X,
    G,
    Theta_ptr,
    scales,
    map,
    inverse,
    u,
    v,
    u_first,
    v_first,
    H,
    W,
    mask,
    channels,
    canvas,
    MODE: tl.constexpr,
    PASS: tl.constexpr,
    MASK_CHANNELS: tl.constexpr,
    NEEDS_THETA: tl.constexpr,
    ONE_THETA: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    INDEX: tl.constexpr,
    SOURCE: tl.constexpr,
    EVERY: tl.constexpr,
):
    """Choose the window of one theta, the same for every thread, and gather through it."""
    half_w: tl.constexpr = (BLOCK_W - 1) / 2
    half_h: tl.constexpr = (BLOCK_H - 1) / 2
    box = (u_first + half_w, v_first + half_h, half_w, half_h)
    if SOURCE == "projective":
        if EVERY or inverse[4]:
            acc, moments = gather_perspective(
                acc, moments, X_ptrs, X[1], G, map, inverse, u, v, mask, channels, canvas,
                MODE, PASS, MASK_CHANNELS, NEEDS_THETA, INDEX, EVERY,
            )  # fmt: skip
    # Of several crops of an image most miss a tile.
    elif ONE_THETA or near(map, box, canvas):
        a00, a01, b0, a10, a11, b1 = map
        finite = a00 * 0 + a01 * 0 + b0 * 0 + a10 * 0 + a11 * 0 + b1 * 0 == 0
        upright, on_side = axis_kind(map)
        reach_j = inverse[0]
        reach_i = inverse[1]
        three = finite & (reach_j <= 1.5) & (reach_i <= 1.5) & is_tame(map, inverse)
        # More are shared by the threads of a program.
        walk = finite & ((2 * reach_j + 1) * (2 * reach_i + 1) <= MOST_CANDIDATES)
        straight = (a01 == 0) & (a10 == 0)
        if WINDOW == "axis":
            upright = True
        if WINDOW != "any" and WINDOW != "axis":
            upright = False
            on_side = False
            three = WINDOW == "three"
            walk = True
            straight = WINDOW == "straight"
        if upright:
            acc, moments = gather_axis(
                acc, moments, X_ptrs, X[1], G, map, u, v, mask, channels, canvas,
                MODE, PASS, MASK_CHANNELS, NEEDS_THETA, INDEX, False,
            )  # fmt: skip
        elif on_side:
            acc, moments = gather_axis(
                acc, moments, X_ptrs, X[1], G, map, u, v, mask, channels, canvas,
                MODE, PASS, MASK_CHANNELS, NEEDS_THETA, INDEX, True,
            )  # fmt: skip
        elif three:
            acc, moments = gather_three(
                acc, moments, X_ptrs, X[1], G, map, inverse, u, v, mask, channels, canvas,
                MODE, PASS, MASK_CHANNELS, NEEDS_THETA, INDEX,
            )  # fmt: skip
        elif walk:
            # What is magnified shows in part: a tile may be out of view.
            if meets(map, inverse, box, canvas):
                if straight:
                    acc, moments = gather_straight(
                        acc, moments, X_ptrs, X[1], G, map, u, v, mask, channels, canvas,
                        MODE, PASS, MASK_CHANNELS, NEEDS_THETA, INDEX,
                    )  # fmt: skip
                else:
                    acc, moments = gather_walk(
                        acc, moments, X_ptrs, X[1], G, map, inverse, u, v, mask, channels, canvas,
                        MODE, PASS, MASK_CHANNELS, NEEDS_THETA, INDEX,
                    )  # fmt: skip
        elif finite:
            # Loaded anew, so that none of its numbers holds a register in the narrow windows.
            map = load_map(Theta_ptr, scales, a00.dtype)
            inverse = inverse_map(map, MODE)
            acc, moments = gather_wide(
                acc, moments, X, G, map, inverse, u_first, v_first, H, W, channels, canvas,
                MODE, PASS, MASK_CHANNELS, NEEDS_THETA, BLOCK_H, BLOCK_W, BLOCK_C, INDEX,
            )  # fmt: skip
    return acc, moments
