"""The narrow windows of the gathering backward: unrolled, each thread for its own pixel.

`axis_window`, 2 x 2, for a theta without rotation or turned by 90° that does not magnify;
`three_window`, 3 x 3, for any rotation at scale 1 or smaller. A window is worked out once a tile;
`gather_narrow` takes every pass of channels through it, and the moments come at the end.
"""

import triton
import triton.language as tl

from triton_stn.kernels.candidates import (
    accumulate,
    derivatives,
    hat,
    load_pass,
    locate,
    source_of,
    window_corner,
)


@triton.jit
def axis_kind(map):
    """Whether a map is one for `axis_window`: (upright, on its side)."""
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
def products(ts, fp0, fp1, fq0, fq1, p, q):
    """Sums of t·fp·fq times p, q and 1 over the 2 x 2 window whose corner is (p, q)."""
    t00, t01, t10, t11 = ts
    right = fp1 * (t01 * fq0 + t11 * fq1)
    bottom = fq1 * (t10 * fp0 + t11 * fp1)
    one = fp0 * (t00 * fq0 + t10 * fq1) + right
    return tl.fma(p, one, right), tl.fma(q, one, bottom), one


@triton.jit
def axis_window(
    map, u, v, mask, G, canvas, MODE: tl.constexpr, INDEX: tl.constexpr, ON_SIDE: tl.constexpr
):
    """A theta without rotation, or turned by 90°, that does not magnify: 2 x 2 candidates.

    Index p drives x and index q drives y: (p, q) is (j, i) upright, (i, j) on its side, so weights
    and conditions are products of one along x and one along y either way. The moments are along p
    and q: whoever stores them swaps them for a theta on its side.
    """
    a00, a01, b0, a10, a11, b1 = map
    H_out, W_out, centre_h, centre_w = canvas
    _, _, stride_gh, stride_gw = G
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
    in_q0 &= mask
    in_q1 &= mask
    inside = (in_p0 & in_q0, in_p1 & in_q0, in_p0 & in_q1, in_p1 & in_q1)
    weights = (wx0 * wy0, wx1 * wy0, wx0 * wy1, wx1 * wy1)
    offs = (q + centre_q).to(INDEX) * stride_q + (p + centre_p).to(INDEX) * stride_p
    details = (p, q, wx0, sx0, wx1, sx1, wy0, sy0, wy1, sy1)
    return offs, stride_q, stride_p, read, weights, inside, details


@triton.jit
def axis_moments(moments, ts, window):
    """moments and what the 2 x 2 window of each pixel gives to them."""
    p, q, wx0, sx0, wx1, sx1, wy0, sy0, wy1, sy1 = window[6]
    x_p, x_q, x_1 = products(ts, sx0, sx1, wy0, wy1, p, q)
    y_p, y_q, y_1 = products(ts, wx0, wx1, sy0, sy1, p, q)
    m0, m1, m2, m3, m4, m5 = moments
    return m0 - x_p, m1 - x_q, m2 - x_1, m3 - y_p, m4 - y_q, m5 - y_1


@triton.jit
def elsewhere(index, centre, mask):
    """A centred index; outside the output or of no pixel, one so far that it lies in no cell."""
    return tl.where(mask & (tl.abs(index) <= centre), index, 1e15)


@triton.jit
def three_window(map, inverse, u, v, mask, G, canvas, MODE: tl.constexpr, INDEX: tl.constexpr):
    """A reach of at most 1.5 each way, as of any rotation at scale 1: 3 x 3 candidates."""
    H_out, W_out, centre_h, centre_w = canvas
    _, _, stride_gh, stride_gw = G
    i, j = window_corner(map, inverse, u, v, canvas)
    offs = (i + centre_h).to(INDEX) * stride_gh + (j + centre_w).to(INDEX) * stride_gw
    rows = ()
    columns = ()
    for n in tl.static_range(3):
        rows = rows + (elsewhere(i + n if n > 0 else i, centre_h, mask),)
        columns = columns + (elsewhere(j + n if n > 0 else j, centre_w, True),)
    weights = ()
    inside = ()
    places = ()
    for n in tl.static_range(9):
        x, y = source_of(map, rows[n // 3], columns[n % 3])
        wx, wy, distance_x, distance_y, here = locate(x, y, u, v, MODE, True)
        weights = weights + (wx * wy,)
        inside = inside + (here,)
        places = places + ((wx, wy, distance_x, distance_y),)
    return offs, stride_gh, stride_gw, mask, weights, inside, (rows, columns, places)


@triton.jit
def three_moments(moments, ts, window):
    """moments and what the 3 x 3 window of each pixel gives to them."""
    rows, columns, places = window[6]
    m0, m1, m2, m3, m4, m5 = moments
    nothing = tl.full(m0.shape, -0.0, m0.dtype)  # added to at no cost, unlike +0.0
    for r in tl.static_range(3):
        x_row = nothing
        y_row = nothing
        for c in tl.static_range(3):
            wx, wy, distance_x, distance_y = places[3 * r + c]
            # X may be an inf that no candidate reads: no product of it with 0 is wanted.
            t = tl.where(window[5][3 * r + c], ts[3 * r + c], 0.0)
            x, y = derivatives(t, wx, wy, distance_x, distance_y)
            m0 = tl.fma(-columns[c], x, m0)
            m3 = tl.fma(-columns[c], y, m3)
            x_row += x
            y_row += y
        m1 = tl.fma(-rows[r], x_row, m1)
        m4 = tl.fma(-rows[r], y_row, m4)
        m2 -= x_row
        m5 -= y_row
    return m0, m1, m2, m3, m4, m5


@triton.jit
def gather_narrow(
    acc,
    ts,  # of each candidate, over the channels of the passes before
    X_ptrs,  # X at the tile's pixels, the pass's first channel
    stride_xc,
    G,
    window,
    channels,
    SIDE: tl.constexpr,
    PASS: tl.constexpr,
    MASK_CHANNELS: tl.constexpr,
    NEEDS_THETA: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """One pass of channels through a window of SIDE x SIDE candidates, unrolled: (acc, ts)."""
    offs, step_row, step_column, read, weights, inside, _ = window
    G_row = G[0] + offs
    values = load_pass(X_ptrs, read, channels, stride_xc, PASS, MASK_CHANNELS, NEEDS_THETA, DTYPE)
    out = ()
    for r in tl.static_range(SIDE):
        G_ptrs = G_row
        for c in tl.static_range(SIDE):
            acc, t = accumulate(
                acc, ts[SIDE * r + c], values, G_ptrs, G[1], weights[SIDE * r + c],
                inside[SIDE * r + c], channels, PASS, MASK_CHANNELS, NEEDS_THETA,
            )  # fmt: skip
            out = out + (t,)
            G_ptrs += step_column
        G_row += step_row
    return acc, out
