"""The inverse of an affine map of images, the kind of window it gathers through, tiles in view."""

from typing import NamedTuple

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import number
from triton_stn.kernels.gather.candidates import SLACK

# A window of more candidates is not walked by one thread. By reasoning, not measured.
MOST_CANDIDATES = tl.constexpr(400)

# Kinds of windows, the same for every thread of a theta.
UPRIGHT = tl.constexpr(1)  # axis.py
ON_SIDE = tl.constexpr(2)
THREE = tl.constexpr(3)
STRAIGHT = tl.constexpr(4)
WALK = tl.constexpr(5)
WIDE = tl.constexpr(6)
PERSPECTIVE = tl.constexpr(7)
NOTHING = tl.constexpr(8)  # zeros
VOLUME = tl.constexpr(9)
EIGHT = tl.constexpr(10)


class Inverse(NamedTuple):
    """j = j_x·(x - x_1) + j_y·(y - y_1), likewise i; and how far from there a window reaches.

    ``n_xj`` ... is the map's matrix over its largest entry, ``size``, and ``det`` its determinant.
    The reach is widened by 1/64, more than rounding moves a candidate in images of up to 65,536
    pixels a side; where the map is singular it is not finite.
    """

    reach_j: object
    reach_i: object
    j_x: object
    j_y: object
    i_x: object
    i_y: object
    n_xj: object
    n_xi: object
    n_yj: object
    n_yi: object
    det: object
    size: object


@triton.jit
def inverse_map(pixel_map, RULES: tl.constexpr):
    """The `Inverse` of a pixel map."""
    size = tl.maximum(tl.abs(pixel_map.x_j), tl.abs(pixel_map.x_i))
    size = tl.maximum(size, tl.maximum(tl.abs(pixel_map.y_j), tl.abs(pixel_map.y_i)))
    size = tl.maximum(size, 1e-30)
    scale = 1 / size  # so that det neither overflows nor vanishes
    n_xj = pixel_map.x_j * scale
    n_xi = pixel_map.x_i * scale
    n_yj = pixel_map.y_j * scale
    n_yi = pixel_map.y_i * scale
    # Kahan's difference of products: a nearly singular map keeps an accurate determinant.
    product = n_xi * n_yj
    det = tl.fma(n_xj, n_yi, -product) + tl.fma(-n_xi, n_yj, product)
    factor = scale / det
    j_x = n_yi * factor
    j_y = -n_xi * factor
    i_x = -n_yj * factor
    i_y = n_xj * factor
    slack: tl.constexpr = SLACK / 2 if RULES.mode == "nearest" else SLACK
    reach_j = tl.fma(slack, tl.abs(j_x) + tl.abs(j_y), 0.015625)
    reach_i = tl.fma(slack, tl.abs(i_x) + tl.abs(i_y), 0.015625)
    return Inverse(reach_j, reach_i, j_x, j_y, i_x, i_y, n_xj, n_xi, n_yj, n_yi, det, size)


@triton.jit
def is_finite(pixel_map):
    """Whether every number of a map is."""
    zero = pixel_map[0] * 0
    for n in tl.static_range(1, len(pixel_map)):
        zero += pixel_map[n] * 0
    return zero == 0


@triton.jit
def largest_of(numbers):
    """The largest absolute value."""
    size = tl.abs(numbers[0])
    for n in tl.static_range(1, len(numbers)):
        size = tl.maximum(size, tl.abs(numbers[n]))
    return size


@triton.jit
def difference(a, b, c, d):
    """a·b - c·d. No product is left for the compiler to contract as it likes."""
    return tl.fma(a, b, -(c * d))


@triton.jit
def inverse_3x3(n, scale):
    """(scale · n⁻¹, the determinant of n) of nine numbers row by row, as every kernel rounds it."""
    n00, n01, n02, n10, n11, n12, n20, n21, n22 = n
    c00 = difference(n11, n22, n12, n21)
    c10 = difference(n12, n20, n10, n22)
    c20 = difference(n10, n21, n11, n20)
    det = tl.fma(n00, c00, tl.fma(n01, c10, n02 * c20))
    f = scale / det
    inverse = (
        c00 * f, difference(n02, n21, n01, n22) * f, difference(n01, n12, n02, n11) * f,
        c10 * f, difference(n00, n22, n02, n20) * f, difference(n02, n10, n00, n12) * f,
        c20 * f, difference(n01, n20, n00, n21) * f, difference(n00, n11, n01, n10) * f,
    )  # fmt: skip
    return inverse, det


@triton.jit
def is_axis(pixel_map, ON_SIDE: tl.constexpr):
    """Whether a map is upright, or on its side, and does not magnify. Needs no inverse."""
    if ON_SIDE:
        a, b, c, d = pixel_map.x_i, pixel_map.y_j, pixel_map.x_j, pixel_map.y_i
    else:
        a, b, c, d = pixel_map.x_j, pixel_map.y_i, pixel_map.x_i, pixel_map.y_j
    size = tl.abs(a) + tl.abs(b) + tl.abs(pixel_map.x_1) + tl.abs(pixel_map.y_1)
    zero = (c == 0) & (d == 0)
    return zero & (tl.minimum(tl.abs(a), tl.abs(b)) >= 1) & (size < float("inf"))


@triton.jit
def window_kind(pixel_map, inverse):
    """The kind of window of any other affine map."""
    straight = (pixel_map.x_i == 0) & (pixel_map.y_j == 0)
    three = (inverse.reach_j <= 1.5) & (inverse.reach_i <= 1.5)
    # Products of two coordinates stay finite there, even of those that `elsewhere` puts far out.
    three &= (
        (inverse.size <= 1024) & (tl.abs(pixel_map.x_1) <= 1e15) & (tl.abs(pixel_map.y_1) <= 1e15)
    )
    walked = (2 * inverse.reach_j + 1) * (2 * inverse.reach_i + 1) <= MOST_CANDIDATES
    kind = tl.where(straight, STRAIGHT, WALK)
    kind = tl.where(three, THREE, tl.where(walked, kind, WIDE))
    return tl.where(is_finite(pixel_map), kind, NOTHING)


@triton.jit
def window_corner(pixel_map, inverse, pixels, CANVAS):
    """Column and row in the output, as floats, of the first candidate of each pixel."""
    x = pixels.u - pixel_map.x_1
    y = pixels.v - pixel_map.y_1
    j = tl.fma(inverse.j_x, x, inverse.j_y * y) + (CANVAS.centre_w - inverse.reach_j)
    i = tl.fma(inverse.i_x, x, inverse.i_y * y) + (CANVAS.centre_h - inverse.reach_i)
    return tl.ceil(j), tl.ceil(i)


class Box(NamedTuple):
    """A box of pixels: its middle and half extents."""

    u: object
    v: object
    half_w: object
    half_h: object


@triton.jit
def tile_box(at, WORK, RULES: tl.constexpr):
    """The box of a tile's pixels."""
    half_w = number(WORK.half_w, RULES)
    half_h = number(WORK.half_h, RULES)
    u = at.first_column.to(RULES.dtype) + half_w
    v = at.first_row.to(RULES.dtype) + half_h
    return Box(u, v, half_w, half_h)


@triton.jit
def near(pixel_map, box, CANVAS):
    """Whether the cells of a box of pixels meet the box around the image of the output."""
    x = tl.abs(pixel_map.x_j) * CANVAS.centre_w + tl.abs(pixel_map.x_i) * CANVAS.centre_h
    y = tl.abs(pixel_map.y_j) * CANVAS.centre_w + tl.abs(pixel_map.y_i) * CANVAS.centre_h
    in_x = tl.abs(box.u - pixel_map.x_1) <= (1 + x) * SLACK + box.half_w
    return in_x & (tl.abs(box.v - pixel_map.y_1) <= (1 + y) * SLACK + box.half_h)


@triton.jit
def theta_is_near(theta, box, CANVAS, FRAME, SCALE, RULES: tl.constexpr):
    """The same of theta's own numbers: to make a map in pixels of them costs more than to look."""
    a, b, shift = theta[0], theta[1], theta[2]
    wide = (number(SCALE.ratio_xx, RULES) * CANVAS.centre_w) * SLACK
    high = (number(SCALE.ratio_xy, RULES) * CANVAS.centre_h) * SLACK
    reach = tl.fma(wide, tl.abs(a), tl.fma(high, tl.abs(b), box.half_w + SLACK))
    middle = box.u - number(FRAME.last_w, RULES) * 0.5
    in_x = tl.abs(tl.fma(-number(SCALE.half_w, RULES), shift, middle)) <= reach
    a, b, shift = theta[3], theta[4], theta[5]
    wide = (number(SCALE.ratio_yx, RULES) * CANVAS.centre_w) * SLACK
    high = (number(SCALE.ratio_yy, RULES) * CANVAS.centre_h) * SLACK
    reach = tl.fma(wide, tl.abs(a), tl.fma(high, tl.abs(b), box.half_h + SLACK))
    middle = box.v - number(FRAME.last_h, RULES) * 0.5
    return in_x & (tl.abs(tl.fma(-number(SCALE.half_h, RULES), shift, middle)) <= reach)


@triton.jit
def meets(pixel_map, inverse, box, CANVAS):
    """Whether the cells of a box of pixels meet the image of the output, by separating axes."""
    return near(pixel_map, box, CANVAS) & crosses(pixel_map, inverse, box, CANVAS)


@triton.jit
def crosses(pixel_map, inverse, box, CANVAS):
    """The same of a box that is `near`."""
    du = box.u - pixel_map.x_1
    dv = box.v - pixel_map.y_1
    x = box.half_w + SLACK
    y = box.half_h + SLACK
    area = tl.abs(inverse.det) * inverse.size * SLACK
    across_j = y * tl.abs(inverse.n_xj) + x * tl.abs(inverse.n_yj) + area * CANVAS.centre_h
    across_i = y * tl.abs(inverse.n_xi) + x * tl.abs(inverse.n_yi) + area * CANVAS.centre_w
    along_j = tl.abs(inverse.n_xj * dv - inverse.n_yj * du) <= across_j
    along_i = tl.abs(inverse.n_xi * dv - inverse.n_yi * du) <= across_i
    return along_j & along_i
