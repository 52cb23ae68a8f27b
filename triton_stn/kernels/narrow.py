"""The narrow windows of the gathering backward: unrolled, each thread for its own pixel.

`gather_axis`, 2 x 2, for a theta without rotation or turned by 90° that does not magnify;
`gather_three`, 3 x 3, for any rotation at scale 1 or smaller.
"""

import triton
import triton.language as tl

from triton_stn.kernels.candidates import (
    accumulate,
    derivatives,
    hat,
    load_pass,
    locate,
    pointers,
    source_of,
    window_corner,
)


@triton.jit
def axis_kind(map):
    """Whether a map is one for `gather_axis`: (upright, on its side)."""
    a00, a01, b0, a10, a11, b1 = map
    finite = a00 * 0 + a01 * 0 + b0 * 0 + a10 * 0 + a11 * 0 + b1 * 0 == 0
    upright = (a01 == 0) & (a10 == 0) & (tl.abs(a00) >= 1) & (tl.abs(a11) >= 1)
    on_side = (a00 == 0) & (a11 == 0) & (tl.abs(a01) >= 1) & (tl.abs(a10) >= 1)
    return finite & upright, finite & on_side


@triton.jit
def first_inside(a, b, u, centre, MODE: tl.constexpr):
    """The smallest centred index j whose coordinate a·j + b lies in the cell of pixel u.

    Guessed from the inverse, low by at most one, then corrected on the coordinate itself.
    """
    reach: tl.constexpr = 0.5 if MODE == "nearest" else 1.0
    rising = a > 0
    bound = tl.where(rising, u - reach, u + reach)
    guess = tl.ceil((bound - b) * (1 / a) + (centre - 0.015625)) - centre
    here = tl.fma(a, guess, b)
    if MODE == "nearest":  # a half may round either way, so both ends may be inside
        inside = tl.where(rising, here >= bound, here <= bound)
    else:
        inside = (here >= bound) == rising
    return tl.where(inside, guess, guess + 1)


@triton.jit
def axis_candidate(index, a, b, u, centre, MODE: tl.constexpr):
    """One candidate along one axis: (weight, its -derivative, inside), zeros if not inside."""
    weight, distance, inside = hat(tl.fma(a, index, b), u, MODE)
    inside &= tl.abs(index) <= centre
    slope = tl.where(inside, tl.where(distance < 0, -1.0, 1.0), 0.0)
    return tl.where(inside, weight, 0.0), slope.to(weight.dtype), inside


@triton.jit
def axis_moments(t00, t01, t10, t11, fp0, fp1, fq0, fq1, p, q):
    """Sums of t·fp·fq times p, q and 1 over the 2 x 2 window whose corner is (p, q)."""
    right = fp1 * (t01 * fq0 + t11 * fq1)
    bottom = fq1 * (t10 * fp0 + t11 * fp1)
    one = fp0 * (t00 * fq0 + t10 * fq1) + right
    return tl.fma(p, one, right), tl.fma(q, one, bottom), one


@triton.jit
def gather_axis(
    acc,
    moments,
    X_ptrs,  # X at the tile's pixels, the pass's first channel
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
    ON_SIDE: tl.constexpr,
):
    """A theta without rotation, or turned by 90°, that does not magnify: a 2 x 2 window.

    Index p drives x and index q drives y: (p, q) is (j, i) upright, (i, j) on its side, so weights
    and conditions are products of one along x and one along y either way. The moments are along p
    and q: whoever stores them swaps them for a theta on its side.
    """
    a00, a01, b0, a10, a11, b1 = map
    H_out, W_out, centre_h, centre_w = canvas
    G_ptr, stride_gc, stride_gh, stride_gw = G
    if ON_SIDE:
        a, b = a01, a10
        stride_p, stride_q = stride_gh, stride_gw
        centre_p, centre_q = centre_h, centre_w
    else:
        a, b = a00, a11
        stride_p, stride_q = stride_gw, stride_gh
        centre_p, centre_q = centre_w, centre_h
    p = first_inside(a, b0, u, centre_p, MODE)
    q = first_inside(b, b1, v, centre_q, MODE)
    wx0, sx0, in_p0 = axis_candidate(p, a, b0, u, centre_p, MODE)
    wx1, sx1, in_p1 = axis_candidate(p + 1, a, b0, u, centre_p, MODE)
    wy0, sy0, in_q0 = axis_candidate(q, b, b1, v, centre_q, MODE)
    wy1, sy1, in_q1 = axis_candidate(q + 1, b, b1, v, centre_q, MODE)
    # X is read only where some tap is: no inf of X meets the 0 of a masked dY.
    read = mask & (in_p0 | in_p1) & (in_q0 | in_q1)
    values = load_pass(X_ptrs, read, channels, stride_xc, PASS, MASK_CHANNELS, NEEDS_THETA, u.dtype)
    in_00 = in_p0 & (in_q0 & mask)
    in_01 = in_p1 & (in_q0 & mask)
    in_10 = in_p0 & (in_q1 & mask)
    in_11 = in_p1 & (in_q1 & mask)

    row = (q + centre_q).to(INDEX) * stride_q
    G00 = G_ptr + (row + (p + centre_p).to(INDEX) * stride_p)
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
        x_p, x_q, x_1 = axis_moments(t00, t01, t10, t11, sx0, sx1, wy0, wy1, p, q)
        y_p, y_q, y_1 = axis_moments(t00, t01, t10, t11, wx0, wx1, sy0, sy1, p, q)
        m = moments
        moments = (m[0] - x_p, m[1] - x_q, m[2] - x_1, m[3] - y_p, m[4] - y_q, m[5] - y_1)
    return acc, moments


@triton.jit
def elsewhere(index, centre, mask):
    """A centred index; outside the output or of no pixel, one so far that it lies in no cell."""
    return tl.where(mask & (tl.abs(index) <= centre), index, 1e15)


@triton.jit
def gather_three(
    acc,
    moments,
    X_ptrs,  # X at the tile's pixels, the pass's first channel
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
    """A reach of at most 1.5 each way, as of any rotation at scale 1: 3 x 3, unrolled."""
    H_out, W_out, centre_h, centre_w = canvas
    G_ptr, stride_gc, stride_gh, stride_gw = G
    i, j = window_corner(map, inverse, u, v, canvas)
    G_row = pointers(G, i, j, canvas, INDEX)
    m0, m1, m2, m3, m4, m5 = moments
    nothing = tl.full(m0.shape, -0.0, m0.dtype)  # added to at no cost, unlike +0.0
    places = ()
    rows = ()
    columns = ()
    for n in tl.static_range(3):
        rows = rows + (elsewhere(i + n if n > 0 else i, centre_h, mask),)
        columns = columns + (elsewhere(j + n if n > 0 else j, centre_w, True),)
    for di in tl.static_range(3):
        for dj in tl.static_range(3):
            x, y = source_of(map, rows[di], columns[dj])
            places = places + (locate(x, y, u, v, MODE, True),)
    # X is read only where some candidate is inside: no inf of X meets the 0 of a masked dY.
    values = load_pass(X_ptrs, mask, channels, stride_xc, PASS, MASK_CHANNELS, NEEDS_THETA, u.dtype)
    for di in tl.static_range(3):
        G_ptrs = G_row
        x_row = nothing
        y_row = nothing
        for dj in tl.static_range(3):
            wx, wy, distance_x, distance_y, inside = places[3 * di + dj]
            acc, t = accumulate(
                acc, values, G_ptrs, stride_gc, wx * wy, inside, channels,
                PASS, MASK_CHANNELS, NEEDS_THETA,
            )  # fmt: skip
            if NEEDS_THETA:
                x, y = derivatives(tl.where(inside, t, 0.0), wx, wy, distance_x, distance_y)
                m0 = tl.fma(-columns[dj], x, m0)
                m3 = tl.fma(-columns[dj], y, m3)
                x_row += x
                y_row += y
            G_ptrs += stride_gw
        G_row += stride_gh
        if NEEDS_THETA:
            m1 = tl.fma(-rows[di], x_row, m1)
            m4 = tl.fma(-rows[di], y_row, m4)
            m2 -= x_row
            m5 -= y_row
    return acc, (m0, m1, m2, m3, m4, m5)
