"""Bicubic sampling: 4 x 4 taps with Keys' kernel, A = -0.75, as PyTorch's.

    w(d) = (A + 2)|d|³ - (A + 3)|d|² + 1           |d| <= 1
           A|d|³ - 5A|d|² + 8A|d| - 4A             1 < |d| < 2

The padding rule moves each tap, not the coordinate, so no derivative is cut at the edge.
"""

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import pad


@triton.jit
def near_weight(d):
    """(w, dw/dd) at a distance of 0 to 1."""
    return (1.25 * d - 2.25) * d * d + 1, (3.75 * d - 4.5) * d


@triton.jit
def far_weight(d):
    """(w, dw/dd) at a distance of 1 to 2."""
    return ((3.75 - 0.75 * d) * d - 6) * d + 3, (7.5 - 2.25 * d) * d - 6


@triton.jit
def cubic_taps(x, last, edge, PADDING: tl.constexpr):
    """Four taps along one axis: four tuples (pixel, weight, its derivative, it is read).

    A tap of zero weight is not read, unless its derivative is asked for: the last tuple is of taps
    inside the image.
    """
    left = tl.floor(x)
    t = x - left
    w0, d0 = far_weight(t + 1)
    w1, d1 = near_weight(t)
    w2, d2 = near_weight(1 - t)
    w3, d3 = far_weight(2 - t)
    pixels = ()
    inside = ()
    for o in tl.static_range(4):
        pixel, _ = pad(left + (o - 1), last, edge, PADDING)
        pixels = pixels + (pixel.to(tl.int32),)
        inside = inside + ((pixel >= 0) & (pixel <= last),)
    return pixels, (w0, w1, w2, w3), (d0, d1, -d2, -d3), inside


@triton.jit
def forward_bicubic(
    X_ptr,
    Y_ptrs,
    x,
    y,
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
    u, wx, _, in_x = cubic_taps(x, last_w, edge, PADDING)
    v, wy, _, in_y = cubic_taps(y, last_h, edge, PADDING)
    X_ptr += offs_c * stride_xc
    for c in range(0, count, BLOCK_C):
        here = mask
        if MASK_CHANNELS:
            here = mask & (offs_c < count - c)
        out = tl.zeros(Y_ptrs.shape, DTYPE)
        for a in tl.static_range(4):
            X_row = X_ptr + v[a].to(INDEX) * stride_xh
            for b in tl.static_range(4):
                weight = wy[a] * wx[b]
                read = here & in_y[a] & in_x[b] & (weight != 0)
                value = tl.load(X_row + u[b].to(INDEX) * stride_xw, mask=read, other=0.0)
                out = tl.fma(value.to(DTYPE), weight, out)
        tl.store(Y_ptrs, out.to(Y_ptrs.dtype.element_ty), mask=here)
        X_ptr += BLOCK_C * stride_xc
        Y_ptrs += BLOCK_C * stride_yc


@triton.jit
def scatter_bicubic(
    X_ptr,
    dX_ptr,
    G_ptrs,
    x,
    y,
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
    """The tile of `scatter`: adds to dX, and returns dY/dx and dY/dy summed over the channels."""
    stride_xc, stride_xh, stride_xw = strides_x
    stride_dxc, stride_dxh, stride_dxw = strides_dx
    u, wx, dx, in_x = cubic_taps(x, last_w, edge, PADDING)
    v, wy, dy, in_y = cubic_taps(y, last_h, edge, PADDING)
    s_x = tl.zeros(G_ptrs.shape, DTYPE)
    s_y = tl.zeros(G_ptrs.shape, DTYPE)
    for c in range(0, count, BLOCK_C):
        here = mask
        if MASK_CHANNELS:
            here = mask & (offs_c < count - c)
        g = tl.load(G_ptrs, mask=here, other=0.0).to(DTYPE)
        for a in tl.static_range(4):
            for b in tl.static_range(4):
                read = here & in_y[a] & in_x[b]
                if NEEDS_INPUT:
                    weight = wy[a] * wx[b]
                    place = v[a].to(INDEX) * stride_dxh + u[b].to(INDEX) * stride_dxw
                    written = read & (weight != 0)
                    tl.atomic_add(dX_ptr + place, g * weight, mask=written, sem="relaxed")
                if NEEDS_THETA:
                    place = v[a].to(INDEX) * stride_xh + u[b].to(INDEX) * stride_xw
                    value = g * tl.load(X_ptr + place, mask=read, other=0.0).to(DTYPE)
                    s_x = tl.fma(value, wy[a] * dx[b], s_x)
                    s_y = tl.fma(value, dy[a] * wx[b], s_y)
        X_ptr += BLOCK_C * stride_xc
        dX_ptr += BLOCK_C * stride_dxc
        G_ptrs += BLOCK_C * stride_gc
    if NEEDS_THETA and BLOCK_C > 1:
        s_x = tl.sum(s_x, 1, keep_dims=True)
        s_y = tl.sum(s_y, 1, keep_dims=True)
    return s_x, s_y
