"""Antialiased sampling of an affine map: the mean of bilinear samples over an output pixel's area.

An output pixel covers a parallelogram of the input. It is sampled at m_i x m_j points, the centres
of as many equal parts, no further than about one input pixel apart: m_j = ceil(|dx/dj, dy/dj|),
likewise m_i, both 1 to 16. A map that does not minify has m = 1, which is the plain sampler.
"""

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import affine, nonfinite, taps


@triton.jit
def samples_along(d_x, d_y):
    """Samples along one axis of an output pixel whose side is (d_x, d_y) in input pixels."""
    length = tl.sqrt(d_x * d_x + d_y * d_y)
    # A hair's tolerance: rounding does not turn a zoom by 2 into 3 samples.
    samples = tl.ceil(tl.minimum(length - 0.01, 16.0))
    return tl.where(samples > 1, samples, 1.0).to(tl.int32)


@triton.jit
def part_centre(index, parts, like):
    """Centre of a part of the unit interval around 0, in the dtype of ``like``."""
    return (2 * index + 1 - parts).to(like.dtype) / (2 * parts).to(like.dtype)


@triton.jit
def sample_point(map, i, j, s, m_i, m_j):
    """(i, j, x, y) of sample ``s`` of the pixels (i, j), centred."""
    a00, a01, b0, a10, a11, b1 = map
    i = i + part_centre(s // m_j, m_i, i)
    j = j + part_centre(s % m_j, m_j, j)
    return i, j, affine(a00, a01, b0, j, i), affine(a10, a11, b1, j, i)


@triton.jit
def forward_area(
    X_ptr,
    Y_ptrs,
    map,
    i,
    j,
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
    m_j = samples_along(map[0], map[3])
    m_i = samples_along(map[1], map[4])
    X_ptr += offs_c * stride_xc
    for c in range(0, count, BLOCK_C):
        here = mask
        if MASK_CHANNELS:
            here = mask & (offs_c < count - c)
        total = tl.zeros(Y_ptrs.shape, DTYPE)
        for s in range(m_i * m_j):
            _, _, x, y = sample_point(map, i, j, s, m_i, m_j)
            u, wx, in_x0, in_x1, _ = taps(x, last_w, edge, PADDING)
            v, wy, in_y0, in_y1, _ = taps(y, last_h, edge, PADDING)
            in_x1 &= wx > 0
            in_y1 &= wy > 0
            p0 = X_ptr + (v.to(INDEX) * stride_xh + u.to(INDEX) * stride_xw)
            p1 = p0 + stride_xh
            v00 = tl.load(p0, mask=here & in_y0 & in_x0, other=0.0).to(DTYPE)
            v01 = tl.load(p0 + stride_xw, mask=here & in_y0 & in_x1, other=0.0).to(DTYPE)
            v10 = tl.load(p1, mask=here & in_y1 & in_x0, other=0.0).to(DTYPE)
            v11 = tl.load(p1 + stride_xw, mask=here & in_y1 & in_x1, other=0.0).to(DTYPE)
            above = tl.fma(v01, wx, v00 * (1 - wx))
            below = tl.fma(v11, wx, v10 * (1 - wx))
            total += tl.fma(below, wy, above * (1 - wy))
        out = total / (m_i * m_j).to(DTYPE)
        tl.store(Y_ptrs, out.to(Y_ptrs.dtype.element_ty), mask=here)
        X_ptr += BLOCK_C * stride_xc
        Y_ptrs += BLOCK_C * stride_yc


@triton.jit
def scatter_area(
    X_ptr,
    dX_ptr,
    G_ptrs,
    map,
    i,
    j,
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
    """The tile of `scatter`: adds to dX, and returns the six moments of each pixel."""
    stride_xc, stride_xh, stride_xw = strides_x
    stride_dxc, stride_dxh, stride_dxw = strides_dx
    m_j = samples_along(map[0], map[3])
    m_i = samples_along(map[1], map[4])
    share = 1 / (m_i * m_j).to(DTYPE)
    m0 = tl.zeros(G_ptrs.shape, DTYPE)
    m1 = m0
    m2 = m0
    m3 = m0
    m4 = m0
    m5 = m0
    for c in range(0, count, BLOCK_C):
        here = mask
        if MASK_CHANNELS:
            here = mask & (offs_c < count - c)
        g = tl.load(G_ptrs, mask=here, other=0.0).to(DTYPE) * share
        for s in range(m_i * m_j):
            i_s, j_s, x, y = sample_point(map, i, j, s, m_i, m_j)
            finite = nonfinite(x) + nonfinite(y) == 0
            u, wx, in_x0, in_x1, slope_x = taps(x, last_w, edge, PADDING)
            v, wy, in_y0, in_y1, slope_y = taps(y, last_h, edge, PADDING)
            read = here & finite
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
                m0 += s_x * j_s
                m1 += s_x * i_s
                m2 += s_x
                m3 += s_y * j_s
                m4 += s_y * i_s
                m5 += s_y
        X_ptr += BLOCK_C * stride_xc
        dX_ptr += BLOCK_C * stride_dxc
        G_ptrs += BLOCK_C * stride_gc
    if BLOCK_C > 1:
        m0 = tl.sum(m0, 1, keep_dims=True)
        m1 = tl.sum(m1, 1, keep_dims=True)
        m2 = tl.sum(m2, 1, keep_dims=True)
        m3 = tl.sum(m3, 1, keep_dims=True)
        m4 = tl.sum(m4, 1, keep_dims=True)
        m5 = tl.sum(m5, 1, keep_dims=True)
    return m0, m1, m2, m3, m4, m5
