"""The windows of the gathering backward: which output pixels an input pixel looks at.

Each function adds, for every pixel of a tile and every channel of a pass, what the output pixels
of one theta's window give. From narrow to wide: `gather_axis` 2 x 2 (no rotation, or 90°),
`gather_three` 3 x 3 (any rotation at scale 1 or smaller), `gather_walk` (magnifying: a window of
any size, walked), `gather_wide` (singular, or magnifying a lot: shared by the program's threads).

    G = (dY at the pass's first channel, stride_gc, stride_gh, stride_gw)
    canvas = (H_out, W_out, (H_out-1)/2, (W_out-1)/2)
    channels = (offsets inside the run, channels left from the pass's first one)
    inverse = (reach_j, reach_i, k00, k01, k10, k11, ...), see `inverse_map`
"""

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import affine, round_half_even, tile


@triton.jit
def inverse_map(map, MODE: tl.constexpr):
    """The inverse of a pixel map and how far from it a window reaches.

    Returns (reach_j, reach_i, k00, k01, k10, k11, n00, n01, n10, n11, det, size): k is the inverse
    matrix, n the matrix over its largest entry, size, and det the determinant of n. The reach is
    widened by 1/64, more than rounding moves a candidate in images of up to 65,536 pixels a side;
    where the map is singular it is not finite.
    """
    a00, a01, b0, a10, a11, b1 = map
    size = tl.maximum(tl.maximum(tl.abs(a00), tl.abs(a01)), tl.maximum(tl.abs(a10), tl.abs(a11)))
    size = tl.maximum(size, 1e-30)
    scale = 1 / size  # so that det neither overflows nor vanishes
    n00 = a00 * scale
    n01 = a01 * scale
    n10 = a10 * scale
    n11 = a11 * scale
    # Kahan's difference of products: a nearly singular map keeps an accurate determinant.
    product = n01 * n10
    det = tl.fma(n00, n11, -product) + tl.fma(-n01, n10, product)
    factor = scale / det
    k00 = n11 * factor
    k01 = -n01 * factor
    k10 = -n10 * factor
    k11 = n00 * factor
    slack: tl.constexpr = 0.5078125 if MODE == "nearest" else 1.015625
    reach_j = slack * (tl.abs(k00) + tl.abs(k01)) + 0.015625
    reach_i = slack * (tl.abs(k10) + tl.abs(k11)) + 0.015625
    return reach_j, reach_i, k00, k01, k10, k11, n00, n01, n10, n11, det, size


@triton.jit
def load_pass(
    X_ptrs,
    mask,
    channels,
    stride_xc,
    PASS: tl.constexpr,
    MASK_CHANNELS: tl.constexpr,
    NEEDS_THETA: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """X at the given pixels for each channel of a pass; nothing where dtheta is not wanted."""
    values = ()
    if NEEDS_THETA:
        for c in tl.static_range(PASS):
            read = mask
            if MASK_CHANNELS:
                read &= channels[0] + c < channels[1]
            values = values + (tl.load(X_ptrs, mask=read, other=0.0).to(DTYPE),)
            X_ptrs += stride_xc
    return values


@triton.jit
def hat(x, u, MODE: tl.constexpr):
    """Weight of pixel u at coordinate x, its derivative, and whether x lies in u's cell."""
    if MODE == "nearest":
        inside = round_half_even(x) == u
        weight = tl.where(inside, 1.0, 0.0).to(x.dtype)
        slope = weight * 0
    else:
        distance = x - u
        inside = (distance >= -1) & (distance < 1)
        weight = 1 - tl.abs(distance)
        slope = tl.where(distance < 0, 1.0, -1.0).to(x.dtype)
    return weight, slope, inside


@triton.jit
def accumulate(
    acc,
    values,  # the pass's X at the tile's pixels
    G_ptrs,  # dY at one candidate a pixel
    stride_gc,
    weight,
    inside,
    channels,
    PASS: tl.constexpr,
    MASK_CHANNELS: tl.constexpr,
    NEEDS_THETA: tl.constexpr,
):
    """Add one candidate to grad_input, for every channel of the pass; returns (acc, t)."""
    out = ()
    t = tl.zeros(acc[0].shape, acc[0].dtype)
    for c in tl.static_range(PASS):
        mask = inside
        if MASK_CHANNELS:
            mask &= channels[0] + c < channels[1]
        g = tl.load(G_ptrs, mask=mask, other=0.0).to(weight.dtype)
        # A tap with zero weight adds nothing, even of an inf; its derivative still counts in t.
        out = out + (tl.fma(tl.where(weight > 0, g, 0.0), weight, acc[c]),)
        if NEEDS_THETA:
            t = tl.fma(g, values[c], t)
        G_ptrs += stride_gc
    if NEEDS_THETA and t.shape != weight.shape:
        t = tl.sum(t, 1, keep_dims=True)  # channels-last: one t a pixel
    return out, t


@triton.jit
def first_inside(a, b, u, centre, MODE: tl.constexpr):
    """The smallest index j whose coordinate a·(j - centre) + b lies in the cell of pixel u.

    Guessed from the inverse, then corrected by one on the coordinates themselves.
    """
    reach: tl.constexpr = 0.5 if MODE == "nearest" else 1.0
    rising = a > 0
    bound = tl.where(rising, u - reach, u + reach)
    guess = tl.ceil((bound - b) / a + centre)
    before = tl.fma(a, guess - 1 - centre, b)
    here = tl.fma(a, guess - centre, b)
    if MODE == "nearest":  # a half may round either way, so both ends may be inside
        before_in = tl.where(rising, before >= bound, before <= bound)
        here_in = tl.where(rising, here >= bound, here <= bound)
    else:
        before_in = (before >= bound) == rising
        here_in = (here >= bound) == rising
    return guess + tl.where(before_in, -1.0, tl.where(here_in, 0.0, 1.0)).to(u.dtype)


@triton.jit
def axis_candidate(index, a, b, u, centre, extent, MODE: tl.constexpr):
    """One candidate along one axis: (weight, slope, inside), the numbers zero if not inside."""
    weight, slope, inside = hat(tl.fma(a, index - centre, b), u, MODE)
    inside &= (index >= 0) & (index < extent)
    return tl.where(inside, weight, 0.0), tl.where(inside, slope, 0.0), inside


@triton.jit
def gather_axis(
    acc,
    moments,
    values,
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
    """A theta without rotation, or turned by 90°, that does not magnify: a 2 x 2 window.

    Index p drives x and index q drives y: (p, q) is (j, i) upright, (i, j) on its side, so in NCHW
    the weights are a row vector and a column vector either way.
    """
    a00, a01, b0, a10, a11, b1 = map
    H_out, W_out, centre_h, centre_w = canvas
    G_ptr, stride_gc, stride_gh, stride_gw = G
    upright = (a01 == 0) & (a10 == 0)
    a = tl.where(upright, a00, a01)
    b = tl.where(upright, a11, a10)
    stride_p = tl.where(upright, stride_gw, stride_gh).to(INDEX)
    stride_q = tl.where(upright, stride_gh, stride_gw).to(INDEX)
    centre_p = tl.where(upright, centre_w, centre_h)
    centre_q = tl.where(upright, centre_h, centre_w)
    extent_p = tl.where(upright, W_out, H_out).to(u.dtype)
    extent_q = tl.where(upright, H_out, W_out).to(u.dtype)

    p = first_inside(a, b0, u, centre_p, MODE)
    q = first_inside(b, b1, v, centre_q, MODE)
    wx0, sx0, in_p0 = axis_candidate(p, a, b0, u, centre_p, extent_p, MODE)
    wx1, sx1, in_p1 = axis_candidate(p + 1, a, b0, u, centre_p, extent_p, MODE)
    wy0, sy0, in_q0 = axis_candidate(q, b, b1, v, centre_q, extent_q, MODE)
    wy1, sy1, in_q1 = axis_candidate(q + 1, b, b1, v, centre_q, extent_q, MODE)
    in_00 = in_p0 & (in_q0 & mask)
    in_01 = in_p1 & (in_q0 & mask)
    in_10 = in_p0 & (in_q1 & mask)
    in_11 = in_p1 & (in_q1 & mask)

    G00 = G_ptr + (p.to(INDEX) * stride_p + q.to(INDEX) * stride_q)
    G10 = G00 + stride_q
    acc, t00 = accumulate(
        acc, values, G00, stride_gc, wx0 * wy0, in_00, channels, PASS, MASK_CHANNELS, NEEDS_THETA
    )
    acc, t01 = accumulate(
        acc, values, G00 + stride_p, stride_gc, wx1 * wy0, in_01, channels,
        PASS, MASK_CHANNELS, NEEDS_THETA,
    )  # fmt: skip
    acc, t10 = accumulate(
        acc, values, G10, stride_gc, wx0 * wy1, in_10, channels, PASS, MASK_CHANNELS, NEEDS_THETA
    )
    acc, t11 = accumulate(
        acc, values, G10 + stride_p, stride_gc, wx1 * wy1, in_11, channels,
        PASS, MASK_CHANNELS, NEEDS_THETA,
    )  # fmt: skip
    if NEEDS_THETA:
        # Only the taps that exist: an inf of X times a masked 0 would be NaN.
        t00 = tl.where(in_00, t00, 0.0)
        t01 = tl.where(in_01, t01, 0.0)
        t10 = tl.where(in_10, t10, 0.0)
        t11 = tl.where(in_11, t11, 0.0)
        p -= centre_p
        q -= centre_q
        x_p, x_q, x_1 = axis_moments(t00, t01, t10, t11, sx0, sx1, wy0, wy1, p, q)
        y_p, y_q, y_1 = axis_moments(t00, t01, t10, t11, wx0, wx1, sy0, sy1, p, q)
        x_j = tl.where(upright, x_p, x_q)
        x_i = tl.where(upright, x_q, x_p)
        y_j = tl.where(upright, y_p, y_q)
        y_i = tl.where(upright, y_q, y_p)
        m = moments
        moments = (m[0] + x_j, m[1] + x_i, m[2] + x_1, m[3] + y_j, m[4] + y_i, m[5] + y_1)
    return acc, moments


@triton.jit
def axis_moments(t00, t01, t10, t11, fp0, fp1, fq0, fq1, p, q):
    """Sums of t·fp·fq times p, q and 1 over the 2 x 2 window whose corner is (p, q)."""
    right = fp1 * (t01 * fq0 + t11 * fq1)
    bottom = fq1 * (t10 * fp0 + t11 * fp1)
    one = fp0 * (t00 * fq0 + t10 * fq1) + right
    return tl.fma(p, one, right), tl.fma(q, one, bottom), one


@triton.jit
def gather_candidate(
    acc,
    moments,
    values,
    G,
    map,
    i,  # the candidate's indices, as floats
    j,
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
    """Add output pixel (i, j), one for each input pixel (u, v), where it reads that pixel."""
    a00, a01, b0, a10, a11, b1 = map
    H_out, W_out, centre_h, centre_w = canvas
    G_ptr, stride_gc, stride_gh, stride_gw = G
    i_centred = i - centre_h
    j_centred = j - centre_w
    wx, slope_x, in_x = hat(affine(a00, a01, b0, j_centred, i_centred), u, MODE)
    wy, slope_y, in_y = hat(affine(a10, a11, b1, j_centred, i_centred), v, MODE)
    inside = mask & in_x & in_y & (i >= 0) & (i < H_out) & (j >= 0) & (j < W_out)
    G_ptrs = G_ptr + (i.to(INDEX) * stride_gh + j.to(INDEX) * stride_gw)
    weight = tl.where(inside, wx * wy, 0.0)
    acc, t = accumulate(
        acc, values, G_ptrs, stride_gc, weight, inside, channels, PASS, MASK_CHANNELS, NEEDS_THETA
    )
    if NEEDS_THETA:
        # Not a product with 0: X may hold an inf there, or the coordinate overflow.
        x = tl.where(inside, t * slope_x * wy, 0.0)
        y = tl.where(inside, t * slope_y * wx, 0.0)
        m = moments
        moments = (
            tl.fma(j_centred, x, m[0]),
            tl.fma(i_centred, x, m[1]),
            m[2] + x,
            tl.fma(j_centred, y, m[3]),
            tl.fma(i_centred, y, m[4]),
            m[5] + y,
        )
    return acc, moments


@triton.jit
def window_corner(map, inverse, u, v, canvas):
    """Indices (i, j), as floats, of the first candidate of pixel (u, v)."""
    a00, a01, b0, a10, a11, b1 = map
    H_out, W_out, centre_h, centre_w = canvas
    reach_j, reach_i, k00, k01, k10, k11, n00, n01, n10, n11, det, size = inverse
    i = tl.ceil(tl.fma(k10, u - b0, k11 * (v - b1)) + (centre_h - reach_i))
    j = tl.ceil(tl.fma(k00, u - b0, k01 * (v - b1)) + (centre_w - reach_j))
    return i, j


@triton.jit
def gather_three(
    acc,
    moments,
    values,
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
    """A reach of at most 1.5 each way, as of any rotation at scale 1: 3 x 3, unrolled."""
    i, j = window_corner(map, inverse, u, v, canvas)
    for di in tl.static_range(3):
        for dj in tl.static_range(3):
            acc, moments = gather_candidate(
                acc, moments, values, G, map, i + di, j + dj, u, v, mask, channels, canvas,
                MODE, PASS, MASK_CHANNELS, NEEDS_THETA, INDEX,
            )  # fmt: skip
    return acc, moments


@triton.jit
def gather_walk(
    acc,
    moments,
    values,
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
    i, j = window_corner(map, inverse, u, v, canvas)
    for di in range((2 * inverse[1] + 1).to(tl.int32)):
        for dj in range((2 * inverse[0] + 1).to(tl.int32)):
            acc, moments = gather_candidate(
                acc, moments, values, G, map, i + di, j + dj, u, v, mask, channels, canvas,
                MODE, PASS, MASK_CHANNELS, NEEDS_THETA, INDEX,
            )  # fmt: skip
    return acc, moments


@triton.jit
def meets(map, inverse, u, v, canvas, slack):
    """Whether the cell of a pixel meets the image of the output, by separating axes."""
    a00, a01, b0, a10, a11, b1 = map
    H_out, W_out, centre_h, centre_w = canvas
    reach_j, reach_i, k00, k01, k10, k11, n00, n01, n10, n11, det, size = inverse
    du = u - b0
    dv = v - b1
    x = tl.abs(du) <= slack * (1 + tl.abs(a00) * centre_w + tl.abs(a01) * centre_h)
    y = tl.abs(dv) <= slack * (1 + tl.abs(a10) * centre_w + tl.abs(a11) * centre_h)
    across_j = slack * (tl.abs(n00) + tl.abs(n10) + tl.abs(det) * size * centre_h)
    across_i = slack * (tl.abs(n01) + tl.abs(n11) + tl.abs(det) * size * centre_w)
    along_j = tl.abs(n00 * dv - n10 * du) <= across_j
    along_i = tl.abs(n01 * dv - n11 * du) <= across_i
    return x & y & along_j & along_i


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
    dtype: tl.constexpr = a00.dtype
    slack = 1.015625
    flat = 1e-30  # a smaller slope leaves a row's stretch unbounded
    rows, columns, _ = tile(0, 0, BLOCK_H, BLOCK_W, BLOCK_C)
    own = (rows, columns)
    if BLOCK_C > 1:  # channels-last has one axis of pixels: it spreads over rows
        rows = tl.arange(0, BLOCK_H * BLOCK_W)[:, None]
        columns = 0
    ROWS: tl.constexpr = BLOCK_H if BLOCK_C == 1 else BLOCK_H * BLOCK_W
    COLUMNS: tl.constexpr = BLOCK_W if BLOCK_C == 1 else 1
    everywhere = (rows >= 0) & (columns >= 0)
    reach_x = tl.where(tl.abs(a00) > flat, slack / tl.abs(a00), 1e30) + 0.015625
    reach_y = tl.where(tl.abs(a10) > flat, slack / tl.abs(a10), 1e30) + 0.015625
    width = tl.minimum(2 * tl.minimum(reach_x, reach_y) + 3, W_out.to(dtype)).to(tl.int32)
    bounded = inverse[1] < 1e6
    for pixel in range(BLOCK_H * BLOCK_W):
        offs_u = u_first + pixel % BLOCK_W
        offs_v = v_first + pixel // BLOCK_W
        u = offs_u.to(dtype)
        v = offs_v.to(dtype)
        if (offs_u < W) & (offs_v < H) & meets(map, inverse, u, v, canvas, slack):
            values = load_pass(
                X_ptr + (offs_v.to(INDEX) * stride_xh + offs_u.to(INDEX) * stride_xw),
                offs_u < W, channels, stride_xc, PASS, MASK_CHANNELS, NEEDS_THETA, dtype,
            )  # fmt: skip
            middle = inverse[4] * (u - b0) + inverse[5] * (v - b1) + centre_h
            i_first = tl.maximum(middle - inverse[1], 0.0)
            i_end = tl.minimum(middle + inverse[1] + 1, H_out.to(dtype))
            i_first = tl.where(bounded, i_first, 0.0).to(tl.int32)
            i_end = tl.where(bounded, i_end, H_out.to(dtype)).to(tl.int32)
            sums = ()
            for c in tl.static_range(PASS):
                sums = sums + (tl.zeros(acc[c].shape, dtype),)
            for i_block in range(i_first, i_end, ROWS):
                i = (i_block + rows).to(dtype)
                x_row = tl.fma(a01, i - centre_h, b0)
                y_row = tl.fma(a11, i - centre_h, b1)
                low_x = tl.where(tl.abs(a00) > flat, (u - x_row) / a00 - reach_x, -1e30)
                low_y = tl.where(tl.abs(a10) > flat, (v - y_row) / a10 - reach_y, -1e30)
                j_first = tl.maximum(tl.floor(tl.maximum(low_x, low_y) + centre_w), 0.0)
                for j_block in range(0, width, COLUMNS):
                    j = j_first + (j_block + columns).to(dtype)
                    sums, moments = gather_candidate(
                        sums, moments, values, G, map, i, j, u, v, everywhere, channels, canvas,
                        MODE, PASS, MASK_CHANNELS, NEEDS_THETA, INDEX,
                    )  # fmt: skip
            here = (own[0] == pixel // BLOCK_W) & (own[1] == pixel % BLOCK_W)
            out = ()
            for c in tl.static_range(PASS):
                total = tl.sum(sums[c], 0, keep_dims=True)
                if BLOCK_C == 1:
                    total = tl.sum(total, 1, keep_dims=True)
                out = out + (acc[c] + tl.where(here, total, 0.0),)
            acc = out
    return acc, moments
