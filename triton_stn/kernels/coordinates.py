"""Where an output pixel reads, in pixels of the input, and how its gradient makes that of theta.

With j' = j - (W_out-1)/2, i' = i - (H_out-1)/2, and for either align_corners,

    x = a00·j' + a01·i' + b0        y = a10·j' + a11·i' + b1        (and z, of volumes, likewise)

is the source coordinate in pixels of the input. Centred coordinates are half-integers, exact in
float32, so identity, flips and quarter turns are exact. Forward and backward call the same
helpers, and no product is left for the compiler to contract with a sum as it likes, so they can
not disagree about which pixel a coordinate falls on.
"""

from typing import NamedTuple

import triton
import triton.language as tl

# Sources whose grad_theta is so many sums over the pixels, in the order of theta's numbers
# (`source_gradient`). Any other's is made from the gradient of each pixel's coordinates.
SUMS = {("affine", 2): 6, ("projective", 2): 9, ("affine", 3): 12}  # of images, of volumes
# Sources whose theta is a field, so many vectors (x, y[, z]) a pixel, side by side:
# (N, K, [D_out,] H_out, W_out, *), any strides.
FIELDS = {"grid": 1, "flow": 1, "patch": 3}
MAPS_A_LOOK = tl.constexpr(32)  # a lane of a warp looks at each


class Affine(NamedTuple):
    """x = x_j·j + x_i·i + x_1 and y likewise, of centred output pixels."""

    x_j: object
    x_i: object
    x_1: object
    y_j: object
    y_i: object
    y_1: object


class Affine3d(NamedTuple):
    x_j: object
    x_i: object
    x_k: object
    x_1: object
    y_j: object
    y_i: object
    y_k: object
    y_1: object
    z_j: object
    z_i: object
    z_k: object
    z_1: object


class Normalised(NamedTuple):
    """A map of normalised coordinates: pixel = coordinate·half + middle; coordinate = j·unit."""

    half: object  # along each axis, x first
    middle: object
    unit_w: object
    unit_h: object
    h: object  # the nine numbers of a homography; else nothing


@triton.jit
def number(value, RULES: tl.constexpr):
    """A host number in the dtype of coordinates."""
    return tl.full([], value, RULES.dtype)


@triton.jit
def coefficient(value, ratio, RULES: tl.constexpr):
    """A number of an affine theta -> of the map in pixels."""
    return value * number(ratio, RULES)


@triton.jit
def shift(value, half, last, RULES: tl.constexpr):
    """The last number of a row of an affine theta -> of the map in pixels.

    The product is an operand of an explicit fused multiply-add, so it is rounded once, always. What
    rounding theta left of a whole or half pixel, up to 2^-22 of the product, is taken away: at a
    shift by whole pixels every coordinate is a pixel's, and its derivative the right-hand one.
    """
    scaled = value * number(half, RULES)
    moved = tl.fma(number(last, RULES), number(0.5, RULES), scaled)
    magic: tl.constexpr = 1.5 * 2.0 ** (52 if RULES.dtype == tl.float64 else 23)
    whole = ((2 * moved + magic) - magic) * 0.5  # from 2^21 on not the nearest half
    rounding: tl.constexpr = 4.5e-16 if RULES.dtype == tl.float64 else 2.4e-7
    close = tl.minimum(tl.abs(scaled) * rounding, 0.125)
    return tl.where(tl.abs(moved - whole) <= close, whole, moved)


@triton.jit
def lifted(value, scale, lift, RULES: tl.constexpr):
    """The last number of a row of the map in pixels, raised by what ``scale`` times a ratio is off.

    Where the ratio of sizes is no floating-point number, a coordinate that is meant to be a pixel's
    comes out a little beside it, and its derivative would be the left-hand one. Raised by twice
    that, which is no more than coordinates are rounded by, it is the right-hand one. Where the
    ratio is exact so are the coordinates, and ``lift`` is 0.
    """
    return tl.fma(tl.abs(scale), number(lift, RULES), value)


@triton.jit
def affine_map(theta, FRAME, SCALE, RULES: tl.constexpr):
    """The six or twelve numbers of a normalised theta -> the map in pixels."""
    if RULES.ndim == 2:
        x_i = coefficient(theta[1], SCALE.ratio_xy, RULES)
        y_j = coefficient(theta[3], SCALE.ratio_yx, RULES)
        x_1 = shift(theta[2], SCALE.half_w, FRAME.last_w, RULES)
        y_1 = shift(theta[5], SCALE.half_h, FRAME.last_h, RULES)
        pixel_map = Affine(
            coefficient(theta[0], SCALE.ratio_xx, RULES),
            x_i,
            lifted(x_1, theta[0], FRAME.lift_w, RULES),
            y_j,
            coefficient(theta[4], SCALE.ratio_yy, RULES),
            lifted(y_1, theta[4], FRAME.lift_h, RULES),
        )
    else:
        x_i = coefficient(theta[1], SCALE.ratio_xy, RULES)
        x_k = coefficient(theta[2], SCALE.ratio_xz, RULES)
        y_j = coefficient(theta[4], SCALE.ratio_yx, RULES)
        y_k = coefficient(theta[6], SCALE.ratio_yz, RULES)
        z_j = coefficient(theta[8], SCALE.ratio_zx, RULES)
        z_i = coefficient(theta[9], SCALE.ratio_zy, RULES)
        x_1 = shift(theta[3], SCALE.half_w, FRAME.last_w, RULES)
        y_1 = shift(theta[7], SCALE.half_h, FRAME.last_h, RULES)
        z_1 = shift(theta[11], SCALE.half_d, FRAME.last_d, RULES)
        pixel_map = Affine3d(
            coefficient(theta[0], SCALE.ratio_xx, RULES),
            x_i,
            x_k,
            lifted(x_1, theta[0], FRAME.lift_w, RULES),
            y_j,
            coefficient(theta[5], SCALE.ratio_yy, RULES),
            y_k,
            lifted(y_1, theta[5], FRAME.lift_h, RULES),
            z_j,
            z_i,
            coefficient(theta[10], SCALE.ratio_zz, RULES),
            lifted(z_1, theta[10], FRAME.lift_d, RULES),
        )
    return pixel_map


@triton.jit
def theta_of(THETA, n, k):
    """Where the theta of map k of image n begins."""
    return THETA.ptr + n.to(tl.int64) * THETA.stride_n + k * THETA.stride_k


@triton.jit
def load_thetas(THETA, n, first, maps, RULES: tl.constexpr):
    """Which of 32 thetas of an image from ``first`` on there are, and their numbers."""
    k = first + tl.arange(0, MAPS_A_LOOK)
    there = k < maps
    return there, load_theta(THETA, n, k, there, RULES)


@triton.jit
def load_theta(THETA, n, k, mask, RULES: tl.constexpr):
    """The numbers of one theta, side by side; of a field or a spline none. k may be a tensor."""
    ptr = theta_of(THETA, n, k)
    AFFINE: tl.constexpr = 6 if RULES.ndim == 2 else 12
    OTHER: tl.constexpr = 9 if RULES.source == "projective" else 0
    COUNT: tl.constexpr = AFFINE if RULES.source == "affine" else OTHER
    theta = ()
    for place in tl.static_range(COUNT):
        theta = theta + (tl.load(ptr + place, mask=mask).to(RULES.dtype),)
    return theta


@triton.jit
def map_of(theta, FRAME, SCALE, RULES: tl.constexpr):
    """What `source` needs of the numbers of one theta."""
    if RULES.source == "affine":
        pixel_map = affine_map(theta, FRAME, SCALE, RULES)
    else:
        half = (number(SCALE.half_w, RULES), number(SCALE.half_h, RULES))
        middle = (number(FRAME.last_w, RULES) * 0.5, number(FRAME.last_h, RULES) * 0.5)
        if RULES.ndim == 3:
            half = half + (number(SCALE.half_d, RULES),)
            middle = middle + (number(FRAME.last_d, RULES) * 0.5,)
        pixel_map = Normalised(
            half,
            middle,
            number(SCALE.unit_w, RULES),
            number(SCALE.unit_h, RULES),
            theta,
        )
    return pixel_map


@triton.jit
def source_map(THETA, n, k, FRAME, SCALE, RULES: tl.constexpr):
    """What `source` needs of one theta, loaded once."""
    return map_of(load_theta(THETA, n, k, None, RULES), FRAME, SCALE, RULES)


@triton.jit
def fma3(a, b, c, j, i):
    """a·j + (b·i + c), the one rounding order that every kernel uses."""
    return tl.fma(a, j, tl.fma(b, i, c))


@triton.jit
def affine_2d(pixel_map, j, i):
    """(x, y) of a centred output pixel."""
    return fma3(pixel_map.x_j, pixel_map.x_i, pixel_map.x_1, j, i), fma3(
        pixel_map.y_j, pixel_map.y_i, pixel_map.y_1, j, i
    )


@triton.jit
def affine_3d(pixel_map, j, i, k):
    """(x, y, z) of a centred output voxel."""
    x = tl.fma(pixel_map.x_j, j, fma3(pixel_map.x_i, pixel_map.x_k, pixel_map.x_1, i, k))
    y = tl.fma(pixel_map.y_j, j, fma3(pixel_map.y_i, pixel_map.y_k, pixel_map.y_1, i, k))
    z = tl.fma(pixel_map.z_j, j, fma3(pixel_map.z_i, pixel_map.z_k, pixel_map.z_1, i, k))
    return x, y, z


@triton.jit
def matrix_place(pixel_map, j, i, k, RULES: tl.constexpr):
    """Where a matrix takes centred output pixels, in pixels of the input."""
    if RULES.source == "projective":
        x, y, _ = homography(pixel_map, j * pixel_map.unit_w, i * pixel_map.unit_h)
        place = to_pixels(pixel_map, (x, y))
    elif RULES.ndim == 2:
        place = affine_2d(pixel_map, j, i)
    else:
        place = affine_3d(pixel_map, j, i, k)
    return place


@triton.jit
def source(pixel_map, THETA, n, k, spot, CANVAS, FRAME, RULES: tl.constexpr):
    """The source coordinates of a tile's pixels, (x, y) or (x, y, z), in pixels of the input.

    RULES.source says what theta is: "affine" (2, 3), or (3, 4) of volumes; "projective" (3, 3);
    "spline" (T + 3, 4), rows of two coefficients and a control point, the last three for 1, X and
    Y; "grid", normalised source coordinates (H_out, W_out, 2); "flow", displacements in pixels
    (H_out, W_out, 2), both (D_out, H_out, W_out, 3) of volumes; "patch" (H_out, W_out, 6), a grid
    and its change across the pixel, dx/dj, dy/dj, dx/di and dy/di.
    """
    if RULES.source == "affine" or RULES.source == "projective":
        place = matrix_place(pixel_map, spot.j, spot.i, spot.k, RULES)
    elif RULES.source == "spline":
        ptr = theta_of(THETA, n, k)
        x, y = spline(ptr, THETA.points, spot.j * pixel_map.unit_w, spot.i * pixel_map.unit_h)
        place = to_pixels(pixel_map, (x, y))
    else:
        place = field_place(pixel_map, field_vector(THETA, n, k, spot, RULES), spot, FRAME, RULES)
    return place


@triton.jit
def field_place(pixel_map, vector, spot, FRAME, RULES: tl.constexpr):
    """Where the vectors of a field, (x, y[, z]), send a tile's pixels."""
    if RULES.source == "flow":
        place = (vector[0] + spot.columns.to(RULES.dtype), vector[1] + spot.rows.to(RULES.dtype))
        if RULES.ndim == 3:
            place = place + (vector[2] + spot.slices.to(RULES.dtype),)
    elif RULES.mode == "nearest":
        # PyTorch's own rounding, so that a tie falls where it does there.
        edge = number(FRAME.edge, RULES)
        place = ()
        for axis in tl.static_range(len(vector)):
            place = place + (tl.fma(vector[axis] + 1, pixel_map.half[axis], edge),)
    else:
        place = to_pixels(pixel_map, vector)
    return place


@triton.jit
def to_pixels(pixel_map, vector):
    """Normalised source coordinates -> pixels of the input."""
    place = ()
    for axis in tl.static_range(len(vector)):
        place = place + (tl.fma(vector[axis], pixel_map.half[axis], pixel_map.middle[axis]),)
    return place


@triton.jit
def field_vector(THETA, n, k, spot, RULES: tl.constexpr):
    """The first vector of a field at a tile's pixels."""
    NDIM: tl.constexpr = RULES.ndim
    ptrs = field_ptrs(THETA, n, k, spot, RULES)
    vector = ()
    for _ in tl.static_range(NDIM):
        vector = vector + (tl.load(ptrs, mask=spot.mask, other=0.0).to(RULES.dtype),)
        ptrs += THETA.stride_c
    return vector


@triton.jit
def field_ptrs(THETA, n, k, spot, RULES: tl.constexpr):
    """The first number of a field at a tile's pixels."""
    ptr = theta_of(THETA, n, k)
    offs = spot.rows.to(RULES.index) * THETA.stride_h
    offs += spot.columns.to(RULES.index) * THETA.stride_w
    if RULES.ndim == 3:
        offs += spot.slices.to(RULES.index) * THETA.stride_d
    return ptr + offs


@triton.jit
def source_gradient(pixel_map, spot, slopes, mask, RULES: tl.constexpr):
    """What an output pixel adds to each of grad_theta's sums.

    ``slopes``: the gradient of its coordinates, in pixels of the input, zero outside of ``mask``,
    where the map may not be finite. An affine map's sums are of the map in pixels.
    """
    NDIM: tl.constexpr = RULES.ndim
    terms = ()
    if RULES.source == "affine":
        for axis in tl.static_range(NDIM):
            s = slopes[axis]
            terms = terms + (s * spot.j, s * spot.i)
            if RULES.ndim == 3:
                terms = terms + (s * spot.k,)
            terms = terms + (s,)
    else:
        X = spot.j * pixel_map.unit_w
        Y = spot.i * pixel_map.unit_h
        x, y, over_w = homography(pixel_map, X, Y)
        s_x = tl.where(mask, slopes[0] * pixel_map.half[0] * over_w, 0.0)
        s_y = tl.where(mask, slopes[1] * pixel_map.half[1] * over_w, 0.0)
        s_w = tl.where(mask, -(s_x * x + s_y * y), 0.0)
        terms = (s_x * X, s_x * Y, s_x, s_y * X, s_y * Y, s_y, s_w * X, s_w * Y, s_w)
    return terms


@triton.jit
def homography(pixel_map, X, Y):
    """(x, y, 1/w), normalised; what lies behind the viewer is far out of view, with 1/w = 0."""
    h00, h01, h02, h10, h11, h12, h20, h21, h22 = pixel_map.h
    w = fma3(h20, h21, h22, X, Y)
    largest = tl.abs(h20) + tl.abs(h21) + tl.abs(h22)
    behind = w <= 1e-6 * largest  # backends.maps.MIN_W
    inverse = tl.where(behind, 0.0, 1 / tl.where(behind, 1.0, w))
    far = 1e4 + 0 * largest  # backends.maps.OUT_OF_VIEW; a NaN stays one
    x = tl.where(behind, far, fma3(h00, h01, h02, X, Y) * inverse)
    y = tl.where(behind, far, fma3(h10, h11, h12, X, Y) * inverse)
    return x, y, inverse


@triton.jit
def spline_basis(X, Y, c_x, c_y):
    """U(r) = r² log r² of the distance to a control point, 0 at 0."""
    across = X - c_x
    down = Y - c_y
    square = tl.fma(across, across, down * down)
    return square * tl.log(tl.where(square > 0, square, 1.0))


@triton.jit
def spline(ptr, points, X, Y):
    """(x, y), normalised, of a thin-plate spline with so many control points."""
    one = ptr + 4 * points
    dtype: tl.constexpr = X.dtype
    x = fma3(tl.load(one + 4).to(dtype), tl.load(one + 8).to(dtype), tl.load(one).to(dtype), X, Y)
    y = fma3(
        tl.load(one + 5).to(dtype), tl.load(one + 9).to(dtype), tl.load(one + 1).to(dtype), X, Y
    )
    for t in range(points):
        row = ptr + 4 * t
        u = spline_basis(X, Y, tl.load(row + 2).to(dtype), tl.load(row + 3).to(dtype))
        x = tl.fma(tl.load(row).to(dtype), u, x)
        y = tl.fma(tl.load(row + 1).to(dtype), u, y)
    return x, y
