"""The window of a theta without rotation that magnifies: each thread walks that of its own pixel.

It is exact, and x changes along a row alone. Of a tile that the output's image meets, so no
coordinate is large.
"""

import triton
import triton.language as tl

from triton_stn.kernels.gather.axis import first_inside
from triton_stn.kernels.gather.candidates import (
    Gathered,
    add_joint,
    at_offset,
    hat,
    load_pass,
    output_offsets,
    with_sign,
)


@triton.jit
def candidates_along(a, RULES: tl.constexpr):
    """The most candidates of a pixel along one axis, from the first one inside on."""
    if RULES.mode == "nearest":  # a half may round either way
        count = tl.floor(1 / tl.abs(a)) + 2
    else:
        count = tl.ceil(2 / tl.abs(a))
    return count.to(tl.int32)


@triton.jit
def gather_straight(gathered, X, G, JOB, pixels, RULES: tl.constexpr, TILING: tl.constexpr):
    """One pass of channels through the window."""
    pixel_map, inverse, CANVAS = JOB.pixel_map, JOB.inverse, JOB.canvas
    values = load_pass(X, pixels.mask, pixels, RULES, TILING)
    a, x_1 = pixel_map.x_j, pixel_map.x_1
    b, y_1 = pixel_map.y_i, pixel_map.y_1
    j_first = first_inside(a, inverse.j_x, x_1, pixels.u, CANVAS.centre_w, RULES)
    i = first_inside(b, inverse.i_y, y_1, pixels.v, CANVAS.centre_h, RULES)
    row = G.offs + output_offsets(JOB.dy, j_first, i, CANVAS, RULES)
    acc, moments = gathered.acc, gathered.moments
    zero = tl.zeros(pixels.u.shape, RULES.dtype)
    for _ in range(candidates_along(b, RULES)):
        wy, distance_y, in_y = hat(tl.fma(b, i, y_1), pixels.v, pixels.lines[1], RULES)
        in_y &= pixels.mask & (tl.abs(i) <= CANVAS.centre_h)
        # Over the row, of x's derivatives and of x's weights times t: sums along j and 1.
        s_j = zero
        s_1 = zero
        w_j = zero
        w_1 = zero
        offs = row
        j = j_first
        for _ in range(candidates_along(a, RULES)):
            wx, distance_x, in_x = hat(tl.fma(a, j, x_1), pixels.u, pixels.lines[0], RULES)
            inside = in_y & in_x & (tl.abs(j) <= CANVAS.centre_w)
            weight = wx * wy
            if not RULES.joint:  # `add_candidate` looks at the weight alone
                weight = tl.where(inside, weight, 0.0)
            acc, t = add_joint(
                acc, zero, values, at_offset(G, offs), 0, weight, inside, pixels, RULES, TILING
            )
            if RULES.joint:
                t = tl.where(inside, t, 0.0)
                s = with_sign(t, distance_x)
                w = t * wx
                s_j = tl.fma(j, s, s_j)
                w_j = tl.fma(j, w, w_j)
                s_1 += s
                w_1 += w
            offs += JOB.dy.stride_w
            j += 1
        if RULES.joint:
            m0, m1, m2, m3, m4, m5 = moments
            s_1 *= wy
            w_1 = with_sign(w_1, distance_y)
            m3 -= with_sign(w_j, distance_y)
            moments = (
                tl.fma(-wy, s_j, m0), tl.fma(-i, s_1, m1), m2 - s_1,
                m3, tl.fma(-i, w_1, m4), m5 - w_1,
            )  # fmt: skip
        row += JOB.dy.stride_h
        i += 1
    return Gathered(acc, moments)
