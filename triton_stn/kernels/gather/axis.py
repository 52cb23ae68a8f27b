"""The window of a theta upright or turned by 90° that does not magnify: 2 x 2 candidates.

Index p drives x and index q drives y: (p, q) is (j, i) upright, (i, j) on its side, so weights and
conditions are products of one along x and one along y either way.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from triton_stn.kernels.gather.candidates import add_joint, at_row, hat, load_pass, with_sign


class AxisWindow(NamedTuple):
    """What is known of every pixel whatever the channel."""

    p: object
    q: object
    wx: object  # of p and p + 1
    wy: object
    slope_x: object  # -derivatives of wx
    slope_y: object
    inside: object  # of the candidates (p, q), (p + 1, q), (p, q + 1), (p + 1, q + 1)
    read: object  # any of them
    offs: object  # of the first candidate in dY
    stride_q: object  # a row further
    stride_p: object  # a column further


@triton.jit
def first_inside(a, inverse_a, b, u, centre, RULES: tl.constexpr):
    """The smallest centred index j whose coordinate a·j + b lies in the cell of pixel u.

    Guessed from the inverse, low by at most one, then corrected on the coordinate itself.
    """
    reach: tl.constexpr = 0.5 if RULES.mode == "nearest" else 1.0
    rising = a > 0
    bound = tl.where(rising, u - reach, u + reach)
    guess = tl.ceil(tl.fma(bound - b, inverse_a, centre - 0.03125)) - centre
    here = tl.fma(a, guess, b)
    if RULES.mode == "nearest":  # a half may round either way, so both ends may be inside
        inside = tl.where(rising, here >= bound, here <= bound)
    else:
        inside = (here >= bound) == rising
    return tl.where(inside, guess, guess + 1)


@triton.jit
def axis_candidate(index, a, b, u, line, centre, RULES: tl.constexpr):
    """One candidate along one axis: (weight, its -derivative, inside), zeros if not inside."""
    weight, distance, inside = hat(tl.fma(a, index, b), u, line, RULES)
    inside &= tl.abs(index) <= centre
    slope = with_sign(tl.where(inside, 1.0, 0.0).to(weight.dtype), distance)
    return tl.where(inside, weight, 0.0), slope, inside


@triton.jit
def axis_window(pixel_map, pixels, G, CANVAS, ON_SIDE: tl.constexpr, RULES: tl.constexpr):
    """The `AxisWindow` of each pixel of a tile."""
    if ON_SIDE:
        a, b = pixel_map.x_i, pixel_map.y_j
        stride_p, stride_q = G.stride_h, G.stride_w
        centre_p, centre_q = CANVAS.centre_h, CANVAS.centre_w
    else:
        a, b = pixel_map.x_j, pixel_map.y_i
        stride_p, stride_q = G.stride_w, G.stride_h
        centre_p, centre_q = CANVAS.centre_w, CANVAS.centre_h
    p = first_inside(a, 1 / a, pixel_map.x_1, pixels.u, centre_p, RULES)
    q = first_inside(b, 1 / b, pixel_map.y_1, pixels.v, centre_q, RULES)
    x_1, y_1 = pixel_map.x_1, pixel_map.y_1
    line_x, line_y = pixels.lines
    wx0, sx0, in_p0 = axis_candidate(p, a, x_1, pixels.u, line_x, centre_p, RULES)
    wx1, sx1, in_p1 = axis_candidate(p + 1, a, x_1, pixels.u, line_x, centre_p, RULES)
    wy0, sy0, in_q0 = axis_candidate(q, b, y_1, pixels.v, line_y, centre_q, RULES)
    wy1, sy1, in_q1 = axis_candidate(q + 1, b, y_1, pixels.v, line_y, centre_q, RULES)
    # X is read only where some tap is: no inf of X meets the 0 of a masked dY.
    read = pixels.mask & (in_p0 | in_p1) & (in_q0 | in_q1)
    in_q0 &= pixels.mask
    in_q1 &= pixels.mask
    inside = (in_p0 & in_q0, in_p1 & in_q0, in_p0 & in_q1, in_p1 & in_q1)
    offs = (q + centre_q).to(RULES.index) * stride_q + (p + centre_p).to(RULES.index) * stride_p
    return AxisWindow(
        p, q, (wx0, wx1), (wy0, wy1), (sx0, sx1), (sy0, sy1), inside, read, offs,
        stride_q, stride_p,
    )  # fmt: skip


@triton.jit
def gather_axis(acc, ts, X, G, window, pixels, RULES: tl.constexpr, TILING: tl.constexpr):
    """One pass of channels through the window: (acc, ts).

    ``ts``: t of each candidate, over the channels of the passes before.
    """
    values = load_pass(X, window.read, pixels, RULES, TILING)
    out = ()
    for n in tl.static_range(4):
        ptr = G.ptr + window.stride_q if n // 2 == 1 else G.ptr
        weight = window.wx[n % 2] * window.wy[n // 2]
        acc, t = add_joint(
            acc, ts[n], values, at_row(G, ptr), n % 2, weight, window.inside[n], pixels,
            RULES, TILING,
        )  # fmt: skip
        out = out + (t,)
    return acc, out


@triton.jit
def products(ts, fp, fq, p, q):
    """Sums of t·fp·fq times p, q and 1 over the 2 x 2 window whose corner is (p, q)."""
    t00, t01, t10, t11 = ts
    right = fp[1] * tl.fma(t01, fq[0], t11 * fq[1])
    bottom = fq[1] * tl.fma(t10, fp[0], t11 * fp[1])
    one = tl.fma(fp[0], tl.fma(t00, fq[0], t10 * fq[1]), right)
    return tl.fma(p, one, right), tl.fma(q, one, bottom), one


@triton.jit
def axis_moments(moments, ts, window, ON_SIDE: tl.constexpr):
    """moments and what the window of each pixel gives to them."""
    x_p, x_q, x_1 = products(ts, window.slope_x, window.wy, window.p, window.q)
    y_p, y_q, y_1 = products(ts, window.wx, window.slope_y, window.p, window.q)
    m0, m1, m2, m3, m4, m5 = moments
    x_j, x_i, y_j, y_i = (x_q, x_p, y_q, y_p) if ON_SIDE else (x_p, x_q, y_p, y_q)
    return m0 - x_j, m1 - x_i, m2 - x_1, m3 - y_j, m4 - y_i, m5 - y_1
