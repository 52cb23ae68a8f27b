"""The wide windows of the gathering backward: of a theta that magnifies, or is singular.

`gather_straight` and `gather_walk`: each thread walks the window of its own pixel. `gather_wide`:
the threads of a program share the window of one pixel after another.
"""

import triton
import triton.language as tl

from triton_stn.kernels.candidates import (
    SLACK,
    accumulate,
    add_moments,
    gather_candidate,
    hat,
    load_pass,
    meets,
    pointers,
    source_of,
    window_corner,
    with_sign,
)
from triton_stn.kernels.coordinates import tile
from triton_stn.kernels.narrow import first_inside


@triton.jit
def candidates_along(a, MODE: tl.constexpr):
    """The most candidates of a pixel along one axis, from the first one inside on."""
    if MODE == "nearest":  # a half may round either way
        count = tl.floor(1 / tl.abs(a)) + 2
    else:
        count = tl.ceil(2 / tl.abs(a))
    return count.to(tl.int32)


@triton.jit
def gather_straight(
    acc,
    moments,
    X_ptrs,
    stride_xc,
    G,
    map,
    u,
    v,
    mask,
    channels,
    canvas,
    MODE: tl.constexpr,
    PASS: tl.constexpr,
    MASK_CHANNELS: tl.constexpr,
    NEEDS_THETA: tl.constexpr,
    INDEX: tl.constexpr,
):
    """A theta without rotation that magnifies: the window is exact, x changes along a row alone.

    Of a tile that the output's image meets, so no coordinate is large.
    """
    a00, a01, b0, a10, a11, b1 = map
    H_out, W_out, centre_h, centre_w = canvas
    G_ptr, stride_gc, stride_gh, stride_gw = G
    values = load_pass(X_ptrs, mask, channels, stride_xc, PASS, MASK_CHANNELS, NEEDS_THETA, u.dtype)
    j_first = first_inside(a00, b0, u, centre_w, MODE)
    i = first_inside(a11, b1, v, centre_h, MODE)
    G_row = pointers(G, i, j_first, canvas, INDEX)
    m0, m1, m2, m3, m4, m5 = moments
    zero = tl.zeros(m0.shape, m0.dtype)
    for _ in range(candidates_along(a11, MODE)):
        wy, distance_y, in_y = hat(tl.fma(a11, i, b1), v, MODE)
        in_y &= mask & (tl.abs(i) <= centre_h)
        # Over the row, of x's derivatives and of x's weights times t: sums along j and 1.
        s_j = zero
        s_1 = zero
        w_j = zero
        w_1 = zero
        G_ptrs = G_row
        j = j_first
        for _ in range(candidates_along(a00, MODE)):
            wx, distance_x, in_x = hat(tl.fma(a00, j, b0), u, MODE)
            inside = in_y & in_x & (tl.abs(j) <= centre_w)
            acc, t = accumulate(
                acc, zero, values, G_ptrs, stride_gc, wx * wy, inside, channels, PASS,
                MASK_CHANNELS, NEEDS_THETA,
            )  # fmt: skip
            if NEEDS_THETA:
                t = tl.where(inside, t, 0.0)
                s = with_sign(t, distance_x)
                w = t * wx
                s_j = tl.fma(j, s, s_j)
                w_j = tl.fma(j, w, w_j)
                s_1 += s
                w_1 += w
            G_ptrs += stride_gw
            j += 1
        if NEEDS_THETA:
            s_1 *= wy
            w_1 = with_sign(w_1, distance_y)
            m0 = tl.fma(-wy, s_j, m0)
            m1 = tl.fma(-i, s_1, m1)
            m2 -= s_1
            m3 -= with_sign(w_j, distance_y)
            m4 = tl.fma(-i, w_1, m4)
            m5 -= w_1
        G_row += stride_gh
        i += 1
    return acc, (m0, m1, m2, m3, m4, m5)


@triton.jit
def gather_walk(
    acc,
    moments,
    X_ptrs,
    stride_xc,
    G,
    map,
    inverse,
    u,
    v,
    mask,
    channels,
    canvas,
    MODE: tl.constexpr,
    PASS: tl.constexpr,
    MASK_CHANNELS: tl.constexpr,
    NEEDS_THETA: tl.constexpr,
    INDEX: tl.constexpr,
):
    """A larger window: each thread walks its own."""
    H_out, W_out, centre_h, centre_w = canvas
    G_ptr, stride_gc, stride_gh, stride_gw = G
    values = load_pass(X_ptrs, mask, channels, stride_xc, PASS, MASK_CHANNELS, NEEDS_THETA, u.dtype)
    i, j_first = window_corner(map, inverse, u, v, canvas)
    G_row = pointers(G, i, j_first, canvas, INDEX)
    for _ in range((2 * inverse[1] + 1).to(tl.int32)):
        G_ptrs = G_row
        j = j_first
        for _ in range((2 * inverse[0] + 1).to(tl.int32)):
            inside = mask & (tl.abs(i) <= centre_h) & (tl.abs(j) <= centre_w)
            x, y = source_of(map, i, j)
            acc, s_x, s_y, inside = gather_candidate(
                acc, values, G_ptrs, stride_gc, x, y, u, v, inside, channels,
                MODE, PASS, MASK_CHANNELS, NEEDS_THETA,
            )  # fmt: skip
            if NEEDS_THETA:
                moments = add_moments(moments, s_x, s_y, i, j)
            G_ptrs += stride_gw
            j += 1
        G_row += stride_gh
        i += 1
    return acc, moments


@triton.jit
def gather_wide(
    acc,
    moments,
    X,  # (X at the pass's first channel, stride_xc, stride_xh, stride_xw)
    G,
    map,
    inverse,
    u_first,
    v_first,
    H,
    W,
    channels,
    canvas,
    MODE: tl.constexpr,
    PASS: tl.constexpr,
    MASK_CHANNELS: tl.constexpr,
    NEEDS_THETA: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    INDEX: tl.constexpr,
):
    """A singular theta, or one that magnifies a lot: the threads of a program share one window.

    Pixel by pixel of the tile, where the pixel's cell meets the image of the output: rows of
    output pixels are spread over the tile's rows, and the stretch of each row that can lie in the
    cell is walked by the tile's columns. Whatever theta is, an output pixel is looked at by few
    input pixels beyond the four that it reads, and every sum keeps its order: no atomics.
    """
    a00, a01, b0, a10, a11, b1 = map
    H_out, W_out, centre_h, centre_w = canvas
    X_ptr, stride_xc, stride_xh, stride_xw = X
    G_ptr, stride_gc, stride_gh, stride_gw = G
    dtype: tl.constexpr = a00.dtype
    flat = 1e-30  # a smaller slope leaves a row's stretch unbounded
    # The tile's pixels stand for candidates: BLOCK_H rows of BLOCK_W columns at a time.
    rows, columns, _ = tile(0, 0, BLOCK_H, BLOCK_W, BLOCK_C)
    reach_x = tl.where(tl.abs(a00) > flat, SLACK / tl.abs(a00), 1e30) + 0.015625
    reach_y = tl.where(tl.abs(a10) > flat, SLACK / tl.abs(a10), 1e30) + 0.015625
    width = tl.minimum(2 * tl.minimum(reach_x, reach_y) + 3, W_out.to(dtype)).to(tl.int32)
    bounded = inverse[1] < 1e6
    for pixel in range(BLOCK_H * BLOCK_W):
        offs_u = u_first + pixel % BLOCK_W
        offs_v = v_first + pixel // BLOCK_W
        u = offs_u.to(dtype)
        v = offs_v.to(dtype)
        if (offs_u < W) & (offs_v < H) & meets(map, inverse, (u, v, 0.0, 0.0), canvas):
            values = load_pass(
                X_ptr + (offs_v.to(INDEX) * stride_xh + offs_u.to(INDEX) * stride_xw),
                offs_u < W, channels, stride_xc, PASS, MASK_CHANNELS, NEEDS_THETA, dtype,
            )  # fmt: skip
            middle = tl.fma(inverse[4], u - b0, inverse[5] * (v - b1)) + centre_h
            i_first = tl.maximum(middle - inverse[1], 0.0)
            i_end = tl.minimum(middle + inverse[1] + 1, H_out.to(dtype))
            i_first = tl.where(bounded, i_first, 0.0).to(tl.int32)
            i_end = tl.where(bounded, i_end, H_out.to(dtype)).to(tl.int32)
            sums = ()
            for c in tl.static_range(PASS):
                sums = sums + (tl.zeros(acc[c].shape, dtype),)
            for i_block in range(i_first, i_end, BLOCK_H):
                i = (i_block + rows).to(dtype) - centre_h
                x_row = tl.fma(a01, i, b0)
                y_row = tl.fma(a11, i, b1)
                low_x = tl.where(tl.abs(a00) > flat, (u - x_row) / a00 - reach_x, -1e30)
                low_y = tl.where(tl.abs(a10) > flat, (v - y_row) / a10 - reach_y, -1e30)
                j_first = tl.maximum(tl.floor(tl.maximum(low_x, low_y) + centre_w), 0.0) - centre_w
                for j_block in range(0, width, BLOCK_W):
                    j = j_first + (j_block + columns).to(dtype)
                    inside = (tl.abs(i) <= centre_h) & (tl.abs(j) <= centre_w)
                    x, y = source_of(map, i, j)
                    sums, s_x, s_y, inside = gather_candidate(
                        sums, values, pointers(G, i, j, canvas, INDEX), stride_gc, x, y, u, v,
                        inside, channels, MODE, PASS, MASK_CHANNELS, NEEDS_THETA,
                    )  # fmt: skip
                    if NEEDS_THETA:
                        moments = add_moments(moments, s_x, s_y, i, j)
            here = (rows == pixel // BLOCK_W) & (columns == pixel % BLOCK_W)
            out = ()
            for c in tl.static_range(PASS):
                out = out + (acc[c] + tl.where(here, tl.sum(sums[c], 0, keep_dims=True), 0.0),)
            acc = out
    return acc, moments
