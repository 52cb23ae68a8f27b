"""The gathering backward of a homography: its inverse, and the window of each input pixel.

The output pixels that read input pixel (u, v) lie in the preimage of its 2 x 2 cell: with w' > 0 at
the cell's corners the convex hull of the corners' preimages, so the window is their bounding box.
With G = H⁻¹ and H scaled to a largest entry of 1, G (x, y, 1) = (X, Y, 1) / w, so that w' = 1 / w,
and what the canvas sees has w' of at least 1 over the largest w there.
"""

import triton
import triton.language as tl

from triton_stn.kernels.candidates import MOST_CANDIDATES, gather_candidate, load_pass, pointers
from triton_stn.kernels.coordinates import homography


@triton.jit
def difference(a, b, c, d):
    """a·b - c·d. No product is left for the compiler to contract as it likes."""
    return tl.fma(a, b, -(c * d))


@triton.jit
def dot(a, b, c, x, y):
    """a·x + b·y + c"""
    return tl.fma(a, x, tl.fma(b, y, c))


@triton.jit
def inverse_homography(map, canvas, MODE: tl.constexpr):
    """Returns (G, margin_j, margin_i, least, theta is gathered), as every kernel rounds them.

    ``least`` is the smallest w' in view; the margins, in output pixels, bound the rounding of G and
    of what it is applied to. A theta is gathered where they are small beside the canvas and no
    window in view has more than MOST_CANDIDATES; of a singular or non-finite one neither holds.
    """
    half_w, half_h, _, _, unit_w, unit_h = map[0], map[1], map[2], map[3], map[4], map[5]
    _, _, centre_h, centre_w = canvas
    size = tl.abs(map[6])
    for n in tl.static_range(9):
        size = tl.maximum(size, tl.abs(map[6 + n]))
    scale = 1 / tl.maximum(size, 1e-30)
    n00, n01, n02 = map[6] * scale, map[7] * scale, map[8] * scale
    n10, n11, n12 = map[9] * scale, map[10] * scale, map[11] * scale
    n20, n21, n22 = map[12] * scale, map[13] * scale, map[14] * scale
    c00 = difference(n11, n22, n12, n21)
    c10 = difference(n12, n20, n10, n22)
    c20 = difference(n10, n21, n11, n20)
    det = tl.fma(n00, c00, tl.fma(n01, c10, n02 * c20))
    f = 1 / det
    G = (
        c00 * f, difference(n02, n21, n01, n22) * f, difference(n01, n12, n02, n11) * f,
        c10 * f, difference(n00, n22, n02, n20) * f, difference(n02, n10, n00, n12) * f,
        c20 * f, difference(n01, n20, n00, n21) * f, difference(n00, n11, n01, n10) * f,
    )  # fmt: skip
    X = tl.abs(centre_w * unit_w)
    Y = tl.abs(centre_h * unit_h)
    w_most = dot(tl.abs(n20), tl.abs(n21), n22, X, Y)
    total = tl.abs(G[0])
    for n in tl.static_range(1, 9):
        total += tl.abs(G[n])
    # Of X and Y, 2^-19 being 32 roundings: cofactors of entries of at most 1 err by a few of them,
    # G and what it is applied to relatively; in view, both stand over w' >= 1 / w_most.
    rounding = 1.9e-6 * (1 + w_most) * (1 / tl.abs(det) + total)
    margin_j = tl.fma(rounding, 1 / unit_w, 0.015625)
    margin_i = tl.fma(rounding, 1 / unit_h, 0.015625)
    # What a step of one input pixel moves the preimage by, at most, where the canvas can see it.
    half: tl.constexpr = 0.5 if MODE == "nearest" else 1.0
    step_x = half * w_most / half_w
    step_y = half * w_most / half_h
    x_j = tl.fma(tl.abs(G[6]), X, tl.abs(G[0]))
    y_j = tl.fma(tl.abs(G[7]), X, tl.abs(G[1]))
    x_i = tl.fma(tl.abs(G[6]), Y, tl.abs(G[3]))
    y_i = tl.fma(tl.abs(G[7]), Y, tl.abs(G[4]))
    reach_j = tl.fma(x_j, step_x, y_j * step_y) / unit_w + margin_j
    reach_i = tl.fma(x_i, step_x, y_i * step_y) / unit_h + margin_i
    candidates = tl.fma(2.0, reach_j, 1.0) * tl.fma(2.0, reach_i, 1.0)
    gathered = (w_most > 0) & (rounding < 0.125) & (candidates <= MOST_CANDIDATES)
    return G, margin_j, margin_i, 1 / w_most, gathered


@triton.jit
def window(map, inverse, u, v, mask, canvas, MODE: tl.constexpr, EVERY: tl.constexpr):
    """Indices (i, j) of the first and the last candidate of each pixel: (i0, i1, j0, j1).

    The last comes before the first where there is none. ``EVERY``: also of a theta that is not
    gathered otherwise, the whole output.
    """
    half_w, half_h, middle_w, middle_h, unit_w, unit_h = (
        map[0], map[1], map[2], map[3], map[4], map[5],
    )  # fmt: skip
    G, margin_j, margin_i, least, gathered = inverse
    _, _, centre_h, centre_w = canvas
    half: tl.constexpr = 0.5 if MODE == "nearest" else 1.0
    w_low = tl.full(u.shape, float("inf"), u.dtype)
    j_low = w_low
    i_low = w_low
    w_high = -w_low
    j_high = w_high
    i_high = w_high
    for corner in tl.static_range(4):
        x = (u + (half if corner % 2 == 1 else -half) - middle_w) / half_w
        y = (v + (half if corner // 2 == 1 else -half) - middle_h) / half_h
        w = dot(G[6], G[7], G[8], x, y)
        j = dot(G[0], G[1], G[2], x, y) / w / unit_w
        i = dot(G[3], G[4], G[5], x, y) / w / unit_h
        w_low = tl.minimum(w_low, w)
        w_high = tl.maximum(w_high, w)
        j_low = tl.minimum(j_low, j)
        j_high = tl.maximum(j_high, j)
        i_low = tl.minimum(i_low, i)
        i_high = tl.maximum(i_high, i)
    seen = mask & (w_high >= 0.5 * least)
    # Where w' changes a lot inside the cell, as in an image of few pixels, no box is drawn.
    whole = w_low < 0.125 * least
    if EVERY:
        seen = mask & (seen | (gathered == 0))
        whole |= gathered == 0
    j0 = tl.where(whole, 0.0, tl.maximum(tl.ceil(j_low - margin_j + centre_w), 0.0))
    i0 = tl.where(whole, 0.0, tl.maximum(tl.ceil(i_low - margin_i + centre_h), 0.0))
    j1 = tl.where(
        whole, 2 * centre_w, tl.minimum(tl.floor(j_high + margin_j + centre_w), 2 * centre_w)
    )
    i1 = tl.where(
        whole, 2 * centre_h, tl.minimum(tl.floor(i_high + margin_i + centre_h), 2 * centre_h)
    )
    seen &= (j1 >= j0) & (i1 >= i0)
    return (
        tl.where(seen, i0, 0.0),
        tl.where(seen, i1, -1.0),
        tl.where(seen, j0, 0.0),
        tl.where(seen, j1, -1.0),
    )


@triton.jit
def gather_perspective(
    acc,
    moments,  # along X, Y and 1 of the gradients of the rows of H
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
    EVERY: tl.constexpr,
):
    """Each thread walks its own window; the tile walks as far as the largest of them."""
    _, _, centre_h, centre_w = canvas
    G_ptr, stride_gc, stride_gh, stride_gw = G
    i0, i1, j0, j1 = window(map, inverse, u, v, mask, canvas, MODE, EVERY)
    read = i1 >= i0
    values = load_pass(X_ptrs, read, channels, stride_xc, PASS, MASK_CHANNELS, NEEDS_THETA, u.dtype)
    G_row = pointers(G, i0 - centre_h, j0 - centre_w, canvas, INDEX)
    i = i0
    for _ in range((tl.max(i1 - i0) + 1).to(tl.int32)):
        G_ptrs = G_row
        j = j0
        for _ in range((tl.max(j1 - j0) + 1).to(tl.int32)):
            X = (j - centre_w) * map[4]
            Y = (i - centre_h) * map[5]
            x, y, over_w = homography(map, X, Y)
            acc, s_x, s_y, inside = gather_candidate(
                acc, values, G_ptrs, stride_gc, tl.fma(x, map[0], map[2]),
                tl.fma(y, map[1], map[3]), u, v, (i <= i1) & (j <= j1), channels,
                MODE, PASS, MASK_CHANNELS, NEEDS_THETA,
            )  # fmt: skip
            if NEEDS_THETA:
                over_w = tl.where(inside, over_w, 0.0)
                s_x *= map[0] * over_w
                s_y *= map[1] * over_w
                s_w = -tl.where(inside, tl.fma(s_x, x, s_y * y), 0.0)
                moments = add_rows(moments, s_x, s_y, s_w, X, Y)
            G_ptrs += stride_gw
            j += 1
        G_row += stride_gh
        i += 1
    return acc, moments


@triton.jit
def add_rows(m, s_x, s_y, s_w, X, Y):
    """moments - (s_x·(X, Y, 1), s_y·(X, Y, 1), s_w·(X, Y, 1))"""
    return (
        tl.fma(-X, s_x, m[0]), tl.fma(-Y, s_x, m[1]), m[2] - s_x,
        tl.fma(-X, s_y, m[3]), tl.fma(-Y, s_y, m[4]), m[5] - s_y,
        tl.fma(-X, s_w, m[6]), tl.fma(-Y, s_w, m[7]), m[8] - s_w,
    )  # fmt: skip
