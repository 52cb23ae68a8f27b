"""Antialiased sampling: the mean of bilinear samples over an output pixel's area.

An output pixel covers a parallelogram of the input, whose sides are the change of the source
coordinate along one step of j and one of i. It is sampled at m_i x m_j points, the centres of as
many equal parts, no further than about one input pixel apart: m_j = ceil(|dx/dj, dy/dj|), likewise
m_i, both 1 to 16. A pixel that is not minified has m = 1, which is the plain sampler. An affine map
has the same sides everywhere; any other brings those of each pixel, the source "patch".
"""

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import affine, nonfinite, taps


@triton.jit
def pixel_sides(
    map,
    Theta_ptr,
    theta_strides,
    offs_i,
    offs_j,
    mask,
    SOURCE: tl.constexpr,
    DTYPE: tl.constexpr,
    INDEX: tl.constexpr,
):
    """(dx/dj, dy/dj, dx/di, dy/di) in pixels of the input a pixel of the output.

    [pixels, 1] each, or [1, 1] of an affine map.
    """
    if SOURCE == "affine":
        one = tl.full([1, 1], 1.0, DTYPE)
        sides = (map[0] * one, map[3] * one, map[1] * one, map[4] * one)
    else:
        stride_ti, stride_tj, stride_tc = theta_strides
        ptrs = Theta_ptr + (offs_i.to(INDEX) * stride_ti + offs_j.to(INDEX) * stride_tj)
        sides = ()
        for n in tl.static_range(4):  # past the coordinates themselves
            ptrs_n = ptrs + (2 + n) * stride_tc
            sides = sides + (tl.load(ptrs_n, mask=mask, other=0.0).to(DTYPE) * map[n % 2],)
    return sides


@triton.jit
def samples_along(d_x, d_y):
    """Samples along a side (d_x, d_y), a whole number in its dtype."""
    length = tl.sqrt(d_x * d_x + d_y * d_y)
    # A hair's tolerance: rounding does not turn a zoom by 2 into 3 samples.
    samples = tl.ceil(tl.minimum(length - 0.01, 16.0))
    return tl.where(samples > 1, samples, 1.0)


@triton.jit
def sample_offset(s, m_j, m_i):
    """Where sample ``s`` lies from the centre of its pixel, (along j, along i), in pixels."""
    half_j = 0.5 / m_j
    half_i = 0.5 / m_i
    row = tl.floor((2 * s + 1) * half_j)
    column = s - row * m_j
    return (2 * column + 1 - m_j) * half_j, (2 * row + 1 - m_i) * half_i


@triton.jit
def forward_area(
    X_ptr,
    Y_ptrs,
    x,
    y,
    sides,
    mask,
    offs_c,
    count,
    strides_x,
    stride_yc,
    last_w,
    last_h,
    edge,
    PADDING: tl.constexpr,
    MASK_CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    DTYPE: tl.constexpr,
    INDEX: tl.constexpr,
):
    """The tile of `forward`, channel after channel."""
    stride_xc, stride_xh, stride_xw = strides_x
    xj, yj, xi, yi = sides
    m_j = samples_along(xj, yj)
    m_i = samples_along(xi, yi)
    samples = m_j * m_i
    most = tl.max(samples).to(tl.int32)
    X_ptr += offs_c * stride_xc
    for c in range(0, count, BLOCK_C):
        here = mask
        if MASK_CHANNELS:
            here = mask & (offs_c < count - c)
        total = tl.zeros(Y_ptrs.shape, DTYPE)
        for s in range(most):
            dj, di = sample_offset(s, m_j, m_i)
            u, wx, in_x0, in_x1, _ = taps(affine(xj, xi, x, dj, di), last_w, edge, PADDING)
            v, wy, in_y0, in_y1, _ = taps(affine(yj, yi, y, dj, di), last_h, edge, PADDING)
            in_x1 &= wx > 0
            in_y0 &= here & (s < samples)
            in_y1 &= here & (s < samples) & (wy > 0)
            p0 = X_ptr + (v.to(INDEX) * stride_xh + u.to(INDEX) * stride_xw)
            p1 = p0 + stride_xh
            v00 = tl.load(p0, mask=in_y0 & in_x0, other=0.0).to(DTYPE)
            v01 = tl.load(p0 + stride_xw, mask=in_y0 & in_x1, other=0.0).to(DTYPE)
            v10 = tl.load(p1, mask=in_y1 & in_x0, other=0.0).to(DTYPE)
            v11 = tl.load(p1 + stride_xw, mask=in_y1 & in_x1, other=0.0).to(DTYPE)
            above = tl.fma(v01, wx, v00 * (1 - wx))
            below = tl.fma(v11, wx, v10 * (1 - wx))
            total += tl.fma(below, wy, above * (1 - wy))
        out = total / samples
        tl.store(Y_ptrs, out.to(Y_ptrs.dtype.element_ty), mask=here)
        X_ptr += BLOCK_C * stride_xc
        Y_ptrs += BLOCK_C * stride_yc


@triton.jit
def scatter_area(
    X_ptr,
    dX_ptr,
    G_ptrs,
    x,
    y,
    sides,
    mask,
    offs_c,
    count,
    strides_x,
    strides_dx,
    stride_gc,
    last_w,
    last_h,
    edge,
    PADDING: tl.constexpr,
    NEEDS_INPUT: tl.constexpr,
    NEEDS_THETA: tl.constexpr,
    MASK_CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    DTYPE: tl.constexpr,
    INDEX: tl.constexpr,
):
    """The tile of `scatter`: adds to dX, and returns the gradients of x, y and ``sides``."""
    stride_xc, stride_xh, stride_xw = strides_x
    stride_dxc, stride_dxh, stride_dxw = strides_dx
    xj, yj, xi, yi = sides
    m_j = samples_along(xj, yj)
    m_i = samples_along(xi, yi)
    samples = m_j * m_i
    most = tl.max(samples).to(tl.int32)
    share = 1 / samples
    # gx: sums over the channels and samples of dY · (dY/dx) · (1, dj, di), and gy likewise
    gx = tl.zeros(x.shape, DTYPE)
    gx_j = gx
    gx_i = gx
    gy = gx
    gy_j = gx
    gy_i = gx
    for c in range(0, count, BLOCK_C):
        here = mask
        if MASK_CHANNELS:
            here = mask & (offs_c < count - c)
        g = tl.load(G_ptrs, mask=here, other=0.0).to(DTYPE) * share
        for s in range(most):
            dj, di = sample_offset(s, m_j, m_i)
            x_s = affine(xj, xi, x, dj, di)
            y_s = affine(yj, yi, y, dj, di)
            u, wx, in_x0, in_x1, slope_x = taps(x_s, last_w, edge, PADDING)
            v, wy, in_y0, in_y1, slope_y = taps(y_s, last_h, edge, PADDING)
            read = here & (s < samples) & (nonfinite(x_s) + nonfinite(y_s) == 0)
            m00 = read & in_y0 & in_x0
            m01 = read & in_y0 & in_x1
            m10 = read & in_y1 & in_x0
            m11 = read & in_y1 & in_x1
            if NEEDS_INPUT:
                D00 = dX_ptr + (v.to(INDEX) * stride_dxh + u.to(INDEX) * stride_dxw)
                D10 = D00 + stride_dxh
                left = g * (1 - wx)
                right = g * wx
                tl.atomic_add(D00, left * (1 - wy), mask=m00, sem="relaxed")
                tl.atomic_add(
                    D00 + stride_dxw, right * (1 - wy), mask=m01 & (wx > 0), sem="relaxed"
                )
                tl.atomic_add(D10, left * wy, mask=m10 & (wy > 0), sem="relaxed")
                both = m11 & (wx > 0) & (wy > 0)
                tl.atomic_add(D10 + stride_dxw, right * wy, mask=both, sem="relaxed")
            if NEEDS_THETA:
                X00 = X_ptr + (v.to(INDEX) * stride_xh + u.to(INDEX) * stride_xw)
                X10 = X00 + stride_xh
                v00 = tl.load(X00, mask=m00, other=0.0).to(DTYPE)
                v01 = tl.load(X00 + stride_xw, mask=m01, other=0.0).to(DTYPE)
                v10 = tl.load(X10, mask=m10, other=0.0).to(DTYPE)
                v11 = tl.load(X10 + stride_xw, mask=m11, other=0.0).to(DTYPE)
                s_x = g * slope_x * ((v01 - v00) * (1 - wy) + (v11 - v10) * wy)
                s_y = g * slope_y * ((v10 - v00) * (1 - wx) + (v11 - v01) * wx)
                s_x = tl.where(read, s_x, 0.0)
                s_y = tl.where(read, s_y, 0.0)
                if BLOCK_C > 1:  # here, for six sums a channel would not fit the registers
                    s_x = tl.sum(s_x, 1, keep_dims=True)
                    s_y = tl.sum(s_y, 1, keep_dims=True)
                gx += s_x
                gx_j += s_x * dj
                gx_i += s_x * di
                gy += s_y
                gy_j += s_y * dj
                gy_i += s_y * di
        X_ptr += BLOCK_C * stride_xc
        dX_ptr += BLOCK_C * stride_dxc
        G_ptrs += BLOCK_C * stride_gc
    return gx, gy, (gx_j, gy_j, gx_i, gy_i)
