"""Where an output pixel reads, and the padding rules, in pixels of the input.

With j' = j - (W_out-1)/2 and i' = i - (H_out-1)/2, and for either align_corners,

    x = a00·j' + a01·i' + b0        y = a10·j' + a11·i' + b1

is the source coordinate in pixels of the input. Centred coordinates are half-integers, exact in
float32, so identity, flips and quarter turns are exact. Forward and backward call the same
helpers, so they can not disagree about which pixel a coordinate falls on.
"""

import triton
import triton.language as tl

# Sources whose grad_theta is so many sums over the pixels, in the order of theta's numbers
# (`source_gradient`). Any other's is made from the gradient of each pixel's coordinates.
SUMS = {"affine": 6, "projective": 9}
# Sources whose theta is a field, so many numbers a pixel: (N, K, H_out, W_out, *), any strides.
FIELDS = {"grid": 2, "flow": 2, "patch": 6}


@triton.jit
def scalar(value, DTYPE: tl.constexpr):
    """A host number in DTYPE. A float64 arrives as its bits, for a float argument is float32."""
    if DTYPE == tl.float64:
        value = value.to(tl.float64, bitcast=True)
    return value


@triton.jit
def load_map(Theta_ptr, scales, DTYPE: tl.constexpr):
    """Normalised theta, six numbers side by side -> (a00, a01, b0, a10, a11, b1) in pixels.

    ``scales`` are the host's numbers (ratio_xx, ratio_xy, ratio_yx, ratio_yy, half_w, half_h,
    last_w, last_h): span of the input over extent of the output, half a span, size less one.
    """
    ratio_xx, ratio_xy, ratio_yx, ratio_yy, half_w, half_h, last_w, last_h = scales
    a00 = tl.load(Theta_ptr).to(DTYPE) * scalar(ratio_xx, DTYPE)
    a01 = tl.load(Theta_ptr + 1).to(DTYPE) * scalar(ratio_xy, DTYPE)
    b0 = tl.load(Theta_ptr + 2).to(DTYPE) * half_w + last_w * 0.5
    a10 = tl.load(Theta_ptr + 3).to(DTYPE) * scalar(ratio_yx, DTYPE)
    a11 = tl.load(Theta_ptr + 4).to(DTYPE) * scalar(ratio_yy, DTYPE)
    b1 = tl.load(Theta_ptr + 5).to(DTYPE) * half_h + last_h * 0.5
    return a00, a01, b0, a10, a11, b1


@triton.jit
def channel_range(C, SPLITS: tl.constexpr):
    """(first channel, how many) of this program, whose axis 0 counts the splits fastest."""
    per_split = tl.cdiv(C, SPLITS)
    first = (tl.program_id(0) % SPLITS) * per_split
    return first.to(tl.int64), tl.minimum(C - first, per_split)


@triton.jit
def tile(
    first_row,
    first_column,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """(rows, columns, channels) of a tile: [BLOCK_H·BLOCK_W, 1] twice and [1, BLOCK_C].

    In NCHW (BLOCK_C = 1) a warp's 32 threads lie over 32 / BLOCK_W rows of BLOCK_W pixels, a patch.
    The pixels are one axis, so that no version of the compiler lays the threads out otherwise. In
    channels-last, threads lie along the channels first.
    """
    pixels = tl.arange(0, BLOCK_H * BLOCK_W)[:, None]
    channels = tl.arange(0, BLOCK_C)[None, :]
    return first_row + pixels // BLOCK_W, first_column + pixels % BLOCK_W, channels


@triton.jit
def centred(offs, centre, DTYPE: tl.constexpr):
    """Pixel indices -> centred coordinates (half-integers, exact)."""
    return offs.to(DTYPE) - centre


@triton.jit
def affine(a, b, c, j, i):
    """a·j + (b·i + c), the one rounding order that every kernel uses."""
    return tl.fma(a, j, tl.fma(b, i, c))


@triton.jit
def source_map(Theta_ptr, scales, units, SOURCE: tl.constexpr, DTYPE: tl.constexpr):
    """What `source` needs of one theta, loaded once.

    ``units``: normalised output coordinates a pixel (unit_w, unit_h), and the T of a spline.
    """
    unit_w, unit_h, T = units
    if SOURCE == "affine":
        map = load_map(Theta_ptr, scales, DTYPE)
    else:
        # (half_w, half_h, middle_w, middle_h) takes normalised source coordinates to pixels.
        map = (scales[4], scales[5], scales[6] * 0.5, scales[7] * 0.5)
        if SOURCE == "projective" or SOURCE == "spline":
            map = map + (scalar(unit_w, DTYPE), scalar(unit_h, DTYPE))
        if SOURCE == "projective":
            for n in tl.static_range(9):
                map = map + (tl.load(Theta_ptr + n).to(DTYPE),)
        if SOURCE == "spline":
            map = map + (T,)
    return map


@triton.jit
def source(
    map,
    Theta_ptr,
    theta_strides,
    offs_i,
    offs_j,
    centre_h,
    centre_w,
    mask,
    SOURCE: tl.constexpr,
    DTYPE: tl.constexpr,
    INDEX: tl.constexpr,
):
    """The source coordinates (x, y) of output pixels, [pixels, 1] each, in pixels of the input.

    SOURCE says what theta is: "affine" (2, 3); "projective" (3, 3); "spline" (T + 3, 4), rows of
    two coefficients and a control point, the last three for 1, X and Y; "grid", normalised source
    coordinates (H_out, W_out, 2); "flow", displacements in pixels (H_out, W_out, 2); "patch"
    (H_out, W_out, 6), a grid and its change across the pixel, dx/dj, dy/dj, dx/di and dy/di.
    """
    i = centred(offs_i, centre_h, DTYPE)
    j = centred(offs_j, centre_w, DTYPE)
    if SOURCE == "affine":
        a00, a01, b0, a10, a11, b1 = map
        x = affine(a00, a01, b0, j, i)
        y = affine(a10, a11, b1, j, i)
    elif SOURCE == "projective":
        x, y, _ = homography(map, j * map[4], i * map[5])
        x = tl.fma(x, map[0], map[2])
        y = tl.fma(y, map[1], map[3])
    elif SOURCE == "spline":
        x, y = spline(Theta_ptr, map[6], j * map[4], i * map[5])
        x = tl.fma(x, map[0], map[2])
        y = tl.fma(y, map[1], map[3])
    else:
        stride_ti, stride_tj, stride_tc = theta_strides
        ptrs = Theta_ptr + (offs_i.to(INDEX) * stride_ti + offs_j.to(INDEX) * stride_tj)
        x = tl.load(ptrs, mask=mask, other=0.0).to(DTYPE)
        y = tl.load(ptrs + stride_tc, mask=mask, other=0.0).to(DTYPE)
        if SOURCE == "flow":
            x += offs_j.to(DTYPE)
            y += offs_i.to(DTYPE)
        else:
            x = tl.fma(x, map[0], map[2])
            y = tl.fma(y, map[1], map[3])
    return x, y


@triton.jit
def source_gradient(map, i, j, s_x, s_y, mask, SOURCE: tl.constexpr):
    """What an output pixel adds to each of grad_theta's sums.

    ``s_x``, ``s_y``: the gradient of its coordinates, in pixels of the input, zero outside of
    ``mask``, where the map may not be finite. An affine map's sums are of the map in pixels.
    """
    if SOURCE == "affine":
        terms = (s_x * j, s_x * i, s_x, s_y * j, s_y * i, s_y)
    elif SOURCE == "projective":
        X = j * map[4]
        Y = i * map[5]
        x, y, over_w = homography(map, X, Y)
        s_x = tl.where(mask, s_x * map[0] * over_w, 0.0)
        s_y = tl.where(mask, s_y * map[1] * over_w, 0.0)
        s_w = tl.where(mask, -(s_x * x + s_y * y), 0.0)
        terms = (s_x * X, s_x * Y, s_x, s_y * X, s_y * Y, s_y, s_w * X, s_w * Y, s_w)
    return terms


@triton.jit
def homography(map, X, Y):
    """(x, y, 1/w), normalised; what lies behind the viewer is far out of view, with 1/w = 0."""
    w = affine(map[12], map[13], map[14], X, Y)
    largest = tl.abs(map[12]) + tl.abs(map[13]) + tl.abs(map[14])
    behind = w <= 1e-6 * largest  # transforms.MIN_W
    inverse = tl.where(behind, 0.0, 1 / tl.where(behind, 1.0, w))
    far = 1e4 + 0 * largest  # transforms.OUT_OF_VIEW; a NaN stays one
    x = tl.where(behind, far, affine(map[6], map[7], map[8], X, Y) * inverse)
    y = tl.where(behind, far, affine(map[9], map[10], map[11], X, Y) * inverse)
    return x, y, inverse


@triton.jit
def spline_basis(X, Y, c_x, c_y):
    """U(r) = r² log r² of the distance to a control point, 0 at 0."""
    square = (X - c_x) * (X - c_x) + (Y - c_y) * (Y - c_y)
    return square * tl.log(tl.where(square > 0, square, 1.0))


@triton.jit
def number(ptr, like):
    """A number of theta, in the dtype of ``like``."""
    return tl.load(ptr).to(like.dtype)


@triton.jit
def spline(Theta_ptr, T, X, Y):
    """(x, y), normalised, of a thin-plate spline with T control points."""
    one, along_x, along_y = Theta_ptr + 4 * T, Theta_ptr + 4 * T + 4, Theta_ptr + 4 * T + 8
    x = affine(number(along_x, X), number(along_y, X), number(one, X), X, Y)
    y = affine(number(along_x + 1, X), number(along_y + 1, X), number(one + 1, X), X, Y)
    for t in range(T):
        Row_ptr = Theta_ptr + 4 * t
        u = spline_basis(X, Y, number(Row_ptr + 2, X), number(Row_ptr + 3, X))
        x = tl.fma(number(Row_ptr, X), u, x)
        y = tl.fma(number(Row_ptr + 1, X), u, y)
    return x, y


@triton.jit
def pad(x, last, edge, PADDING: tl.constexpr):
    """Apply the padding rule to a source coordinate: (coordinate, its derivative).

    ``edge`` is where reflection turns: 0 (align_corners) or -1/2. The derivative is PyTorch's:
    zero at and beyond the edge. A NaN becomes some coordinate in range; `taps` restores it.
    """
    slope = tl.full(x.shape, 1.0, x.dtype)
    if PADDING == "reflection":
        span = last - 2 * edge
        t = tl.abs(x - edge)
        flips = tl.floor(t / tl.maximum(span, 1e-9))
        rest = tl.fma(-flips, span, t)  # distance past the last turn
        odd = flips - 2 * tl.floor(flips * 0.5) > 0.5
        slope = tl.where((x < edge) != odd, -1.0, 1.0).to(x.dtype)
        x = tl.where(odd, span - rest, rest) + edge
    if PADDING != "zeros":
        slope = tl.where((x > 0) & (x < last), slope, 0.0)
        x = tl.where(x > 0, x, 0.0)
        x = tl.where(x < last, x, last)
    return x, slope


@triton.jit
def nonfinite(x):
    """0 where x is finite, NaN elsewhere."""
    return x - x


@triton.jit
def taps(x, last, edge, PADDING: tl.constexpr):
    """The two pixels that a source coordinate lies between, along one axis.

    Returns (index of the left one, weight of the right one, left is in the image, right is in it,
    derivative of the coordinate). Bounds are compared in floating point, before the cast; the
    weight is NaN where x is not finite.
    """
    padded, slope = pad(x, last, edge, PADDING)
    left = tl.floor(padded)
    weight = padded - left
    in_left = (left >= 0) & (left <= last)
    in_right = (left >= -1) & (left < last)
    if PADDING != "zeros":
        weight += nonfinite(x)
    return left.to(tl.int32), weight, in_left, in_right, slope


@triton.jit
def round_half_even(x):
    """The nearest integer, halves to even, as PyTorch's nearbyint."""
    if x.dtype == tl.float64:
        magic = 6755399441055744.0  # 1.5·2^52: no fraction is left beside it
    else:
        magic = 12582912.0  # 1.5·2^23
    return (x + magic) - magic


@triton.jit
def nearest(x, last, edge, PADDING: tl.constexpr):
    """The pixel that "nearest" reads along one axis: (index, it is in the image)."""
    padded, _ = pad(x, last, edge, PADDING)
    pixel = round_half_even(padded)
    return pixel.to(tl.int32), (pixel >= 0) & (pixel <= last)
