"""The grid generator and the padding rules, in centred pixels.

With j' = j - (W_out-1)/2 and i' = i - (H_out-1)/2, and for either align_corners,

    x = a00·j' + a01·i' + b0        y = a10·j' + a11·i' + b1

is the source coordinate in pixels of the input. Centred coordinates are half-integers, exact in
float32, so identity, flips and quarter turns are exact. Forward and backward call the same
helpers, so they can not disagree about which pixel a coordinate falls on.
"""

import triton
import triton.language as tl


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
