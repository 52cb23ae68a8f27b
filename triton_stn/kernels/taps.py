"""The pixels that a source coordinate reads, axis by axis: padding rules, weights, derivatives."""

from typing import NamedTuple

import triton
import triton.language as tl

from triton_stn.kernels.arguments import Fill
from triton_stn.kernels.coordinates import number


class Taps(NamedTuple):
    """The two pixels that a source coordinate lies between, along one axis."""

    index: object  # of the left one
    weight: object  # of the right one, NaN where the coordinate is not finite
    in_left: object  # the left one is in the image
    in_right: object
    slope: object  # the derivative of the padded coordinate


class Line(NamedTuple):
    """The image along an axis: its pixels lie from 0 to ``last``."""

    low: object  # a coordinate up to here lies on the first pixel, see `coordinates.lifted`
    high: object  # and from here on the last
    last: object


@triton.jit
def pad(x, line, edge, RULES: tl.constexpr):
    """Apply the padding rule to a source coordinate: (coordinate, its derivative).

    ``edge`` is where reflection turns: 0 (align_corners) or -1/2. The derivative is PyTorch's:
    zero at and beyond the edge. A NaN becomes some coordinate in range; `axis_taps` restores it.
    """
    last = line.last
    slope = tl.full(x.shape, 1.0, x.dtype)
    if RULES.padding == "reflection":
        span = last - 2 * edge
        t = tl.abs(x - edge)
        flips = tl.floor(t / tl.maximum(span, 1e-9))
        rest = tl.fma(-flips, span, t)  # distance past the last turn
        odd = flips - 2 * tl.floor(flips * 0.5) > 0.5
        slope = tl.where((x < edge) != odd, -1.0, 1.0).to(x.dtype)
        x = tl.where(odd, span - rest, rest) + edge
    if RULES.padding != "zeros":
        slope = tl.where((x > line.low) & (x < line.high), slope, 0.0)
        x = tl.where(x > 0, x, 0.0)
        x = tl.where(x < last, x, last)
    return x, slope


@triton.jit
def nonfinite(place):
    """0 where all coordinates of a place are finite, NaN elsewhere."""
    total = place[0] - place[0]
    for axis in tl.static_range(1, len(place)):
        total += place[axis] - place[axis]
    return total


@triton.jit
def axis_taps(x, line, edge, RULES: tl.constexpr):
    """`Taps` of a coordinate. Bounds are compared in floating point, before the cast."""
    padded, slope = pad(x, line, edge, RULES)
    left = tl.floor(padded)
    weight = padded - left
    in_left = (left >= 0) & (left <= line.last)
    in_right = (left >= -1) & (left < line.last)
    if RULES.padding != "zeros":
        weight += x - x
    return Taps(left.to(tl.int32), weight, in_left, in_right, slope)


@triton.jit
def round_half_even(x):
    """The nearest integer, halves to even, as PyTorch's nearbyint."""
    # No number from here on has a fraction, nor has a lesser one that it is added to.
    magic: tl.constexpr = 2.0**52 if x.dtype == tl.float64 else 2.0**23
    size = tl.abs(x)
    whole = tl.where(size < magic, (size + magic) - magic, size)
    return tl.where(x < 0, -whole, whole)


@triton.jit
def axis_nearest(x, line, edge, RULES: tl.constexpr):
    """The pixel that "nearest" reads along one axis: (index, it is in the image)."""
    padded, _ = pad(x, line, edge, RULES)
    pixel = round_half_even(padded)
    return pixel.to(tl.int32), (pixel >= 0) & (pixel <= line.last)


@triton.jit
def line_of(lift, last, RULES: tl.constexpr):
    """The `Line` of an axis of `Frame`; its bounds need the digits of coordinates."""
    edge = 4 * number(lift, RULES)
    return Line(edge, number(last, RULES) - edge, last)


@triton.jit
def lines(FRAME, RULES: tl.constexpr):
    """The `Line` along each axis, x first."""
    x = line_of(FRAME.lift_w, FRAME.last_w, RULES)
    y = line_of(FRAME.lift_h, FRAME.last_h, RULES)
    if RULES.ndim == 2:
        along = (x, y)
    else:
        along = (x, y, line_of(FRAME.lift_d, FRAME.last_d, RULES))
    return along


@triton.jit
def in_view(place, FRAME, RULES: tl.constexpr):
    """Whether a place is strictly inside the image, where no padding rule moves it.

    Of "nearest" whether the pixel that it is nearest to is in the image.
    """
    NDIM: tl.constexpr = RULES.ndim
    along = lines(FRAME, RULES)
    seen = True
    for axis in tl.static_range(NDIM):
        if RULES.mode == "nearest":
            pixel = round_half_even(place[axis])
            seen &= (pixel >= 0) & (pixel <= along[axis].last)
        else:
            seen &= (place[axis] > along[axis].low) & (place[axis] < along[axis].high)
    return seen


@triton.jit
def taps(place, FRAME, RULES: tl.constexpr):
    """`Taps` along each axis, x first."""
    # Written out, for in Triton 3.6 a sum of tuples loses the names of those inside.
    line = lines(FRAME, RULES)
    along_x = axis_taps(place[0], line[0], FRAME.edge, RULES)
    along_y = axis_taps(place[1], line[1], FRAME.edge, RULES)
    if RULES.ndim == 2:
        along = (along_x, along_y)
    else:
        along = (along_x, along_y, axis_taps(place[2], line[2], FRAME.edge, RULES))
    return along


@triton.jit
def nearest(place, FRAME, RULES: tl.constexpr):
    """(index along each axis, x first; the pixel is in the image) that "nearest" reads."""
    NDIM: tl.constexpr = RULES.ndim
    line = lines(FRAME, RULES)
    inside = True
    index = ()
    for axis in tl.static_range(NDIM):
        pixel, here = axis_nearest(place[axis], line[axis], FRAME.edge, RULES)
        index = index + (pixel,)
        inside &= here
    return index, inside


@triton.jit
def left_index(along):
    """The index of the left tap along each axis, x first."""
    index = ()
    for axis in tl.static_range(len(along)):
        index = index + (along[axis].index,)
    return index


@triton.jit
def corner_weights(along):
    """The weight of each of the 4 or 8 taps, x fastest."""
    weights = (1.0,)
    for back in tl.static_range(len(along)):
        weight = along[len(along) - 1 - back].weight
        before = weights
        weights = ()
        for n in tl.static_range(len(before)):
            if back == 0:
                weights = weights + (1 - weight, weight)
            else:
                weights = weights + (before[n] * (1 - weight), before[n] * weight)
    return weights


@triton.jit
def corner_masks(along, mask, WEIGHED: tl.constexpr):
    """Which of the 4 or 8 taps are in the image, x fastest.

    ``WEIGHED``: and have a weight, so that an inf next door to a whole coordinate is not read.
    """
    masks = (mask,)
    for back in tl.static_range(len(along)):
        axis = along[len(along) - 1 - back]
        right = axis.in_right & (axis.weight > 0) if WEIGHED else axis.in_right
        before = masks
        masks = ()
        for n in tl.static_range(len(before)):
            masks = masks + (before[n] & axis.in_left, before[n] & right)
    return masks


@triton.jit
def offsets(index, IMAGE, RULES: tl.constexpr):
    """Offsets of pixels, an index along each axis, x first, in one image's plane."""
    offs = index[1].to(RULES.index) * IMAGE.stride_h + index[0].to(RULES.index) * IMAGE.stride_w
    if RULES.ndim == 3:
        offs += index[2].to(RULES.index) * IMAGE.stride_d
    return offs


@triton.jit
def corner(IMAGE, offs, TAP: tl.constexpr):
    """Pointers to a tap, x fastest, where the first one has offsets.

    Slices and rows move the pointer that all threads have in common. Step by step: sums of strides
    could overflow.
    """
    ptr = IMAGE.ptr
    if TAP // 4 == 1:
        ptr += IMAGE.stride_d
    if TAP // 2 % 2 == 1:
        ptr += IMAGE.stride_h
    ptrs = ptr + offs
    if TAP % 2 == 1:
        ptrs += IMAGE.stride_w
    return ptrs


@triton.jit
def fill_of(FILL, part, RULES: tl.constexpr):
    """The `Fill` of a share, from its first channel on; or ()."""
    fill = ()
    if RULES.fill != "":
        fill = Fill(FILL.ptr + part.first * FILL.stride_c, FILL.stride_c, FILL.number)
    return fill


@triton.jit
def filled(value, outside, FILL, channels, here, RULES: tl.constexpr):
    """The values of a tap; where it lies outside, what is there."""
    if RULES.fill != "":
        if RULES.fill == "channels":
            ptrs = FILL.ptr + channels * FILL.stride_c
            fill = tl.load(ptrs, mask=here, other=0.0).to(RULES.dtype)
        else:
            fill = tl.full([], FILL.number, RULES.dtype)
        value = tl.where(outside, fill, value)
    return value


@triton.jit
def slope_along(sums, along, AXIS: tl.constexpr):
    """The derivative along an axis of the weighted sum of 4 or 8 taps, x fastest.

    Differences first: of two taps alike nothing is left to round.
    """
    low: tl.constexpr = 2**AXIS
    rest = ()
    for n in tl.static_range(len(sums) // 2):
        right = sums[n // low * (2 * low) + n % low + low]
        rest = rest + (right - sums[n // low * (2 * low) + n % low],)
    for axis in tl.static_range(len(along)):
        if axis != AXIS:
            weight = along[axis].weight
            before = rest
            rest = ()
            for n in tl.static_range(len(before) // 2):
                rest = rest + (before[2 * n] * (1 - weight) + before[2 * n + 1] * weight,)
    return along[AXIS].slope * rest[0]
