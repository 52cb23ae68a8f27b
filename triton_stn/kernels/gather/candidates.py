"""One candidate of the gathering backward: what an output pixel gives to an input pixel.

A joint window sums t = dY · X of each of its candidates too, over the channels, of which the sums
of grad_theta are made; any other gathers grad_input alone (`one.py` has why).
"""

from typing import NamedTuple

import triton
import triton.language as tl

from triton_stn.kernels.sums import encoded
from triton_stn.kernels.taps import lines, round_half_even
from triton_stn.kernels.tiles import some

# Windows are wider by 1/64, more than rounding moves a candidate in images of up to 65,536 pixels a
# side.
SLACK = tl.constexpr(1.015625)


class Pixels(NamedTuple):
    """The input pixels of a tile that are gathered for, and the channels of a pass."""

    u: object  # [pixels, 1], in the dtype of coordinates
    v: object
    w: object  # of volumes
    lines: object  # of the image, along each axis
    mask: object
    channels: object  # [1, block_c]
    left: object  # channels, from the pass's first one


class Plane(NamedTuple):
    """Numbers of a tile, or one candidate of each of its pixels, at ptr + offs.

    The pointer is the same for all threads and the offset an integer, which a pass of channels
    moves on: the compiler keeps neither a pointer a thread nor one a candidate and channel.
    """

    ptr: object
    offs: object  # [pixels, block_c], in RULES.index
    stride_c: object
    step: object  # a column further


class Output(NamedTuple):
    """Where grad_input goes, from a share's first channel on."""

    image: object  # dX
    sums: object  # an `Into`: there instead
    rest: object  # where a scatter will add to it


class Gathered(NamedTuple):
    """What a window adds to, over its candidates."""

    acc: object  # grad_input of each channel of a pass, [pixels, block_c]
    moments: object  # of a joint window the sums of grad_theta, or first the t of its candidates


@triton.jit
def tile_pixels(at, left, FRAME, RULES: tl.constexpr):
    """The `Pixels` of a tile of the input."""
    u = at.columns.to(RULES.dtype)
    v = at.rows.to(RULES.dtype)
    if RULES.ndim == 3:
        w = at.slices.to(RULES.dtype)
    else:
        w = 0.0
    return Pixels(u, v, w, lines(FRAME, RULES), at.mask, at.channels, left)


@triton.jit
def with_left(pixels, left):
    """The same pixels, with so many channels left."""
    u, v, w = pixels.u, pixels.v, pixels.w
    return Pixels(u, v, w, pixels.lines, pixels.mask, pixels.channels, left)


@triton.jit
def load_pass(X, mask, pixels, RULES: tl.constexpr, TILING: tl.constexpr):
    """X at the given pixels for each channel of a pass; nothing where a window is not joint."""
    PASS: tl.constexpr = TILING.channels_a_pass
    values = ()
    if RULES.joint:
        ptrs = X.ptr + X.offs
        for c in tl.static_range(PASS):
            read = mask & some(pixels.channels + c, pixels.left, TILING.mask_channels)
            values = values + (tl.load(ptrs, mask=read, other=0.0).to(RULES.dtype),)
            ptrs += X.stride_c
    return values


@triton.jit
def zero_pass(RULES: tl.constexpr, TILING: tl.constexpr):
    """The sums of a pass's channels, before a window adds to them."""
    PASS: tl.constexpr = TILING.channels_a_pass
    PIXELS: tl.constexpr = TILING.pixels
    LANES: tl.constexpr = TILING.block_c
    acc = ()
    for _ in tl.static_range(PASS):
        acc = acc + (tl.zeros([PIXELS, LANES], RULES.dtype),)
    return acc


@triton.jit
def store_pass(dX, acc, pixels, out, RULES: tl.constexpr, TILING: tl.constexpr):
    """Store the sums of a pass's channels: in dX, or where a scatter will add to them."""
    if RULES.into != "dX" and out.rest:
        apart = Plane(out.sums.image.ptr, dX.offs, dX.stride_c, dX.step)
        store_sums(apart, acc, pixels, out.sums, True, RULES, TILING)
    else:
        store_sums(dX, acc, pixels, out.sums, False, RULES, TILING)


@triton.jit
def store_sums(
    plane, acc, pixels, sums, APART: tl.constexpr, RULES: tl.constexpr, TILING: tl.constexpr
):
    """Store the sums of a pass's channels in a plane, as dX has them or as they are kept apart."""
    PASS: tl.constexpr = TILING.channels_a_pass
    ptrs = plane.ptr + plane.offs
    for c in tl.static_range(PASS):
        written = pixels.mask & some(pixels.channels + c, pixels.left, TILING.mask_channels)
        value = encoded(acc[c], sums, RULES) if APART else acc[c]
        tl.store(ptrs, value.to(plane.ptr.dtype.element_ty), mask=written)
        ptrs += plane.stride_c


@triton.jit
def next_pass(plane, RULES: tl.constexpr, TILING: tl.constexpr):
    """The same pixels a pass of channels further."""
    PASS: tl.constexpr = TILING.channels_a_pass
    step = tl.full([1, 1], PASS * TILING.block_c, RULES.index) * plane.stride_c
    return at_offset(plane, plane.offs + step)


@triton.jit
def at_offset(plane, offs):
    """The plane somewhere else."""
    return Plane(plane.ptr, offs, plane.stride_c, plane.step)


@triton.jit
def at_row(plane, ptr):
    """The plane some rows further, which move the pointer."""
    return Plane(ptr, plane.offs, plane.stride_c, plane.step)


@triton.jit
def plane_of(IMAGE, offs, channels, RULES: tl.constexpr):
    """A `Plane` of a share's tensor: its channels, at given offsets."""
    of_channels = channels.to(RULES.index) * IMAGE.stride_c
    return Plane(IMAGE.ptr, offs + of_channels, IMAGE.stride_c, IMAGE.stride_w)


@triton.jit
def hat(x, u, line, RULES: tl.constexpr):
    """Weight of pixel u at coordinate x, x's distance from u, and whether x lies in u's cell.

    Where the padding rule folds what is outside, a coordinate in view alone does. The weight is
    meant inside the cell only. Its derivative is -1 with the distance's sign.
    """
    distance = x - u
    if RULES.mode == "nearest":
        inside = round_half_even(x) == u
        weight = tl.where(inside, 1.0, 0.0).to(x.dtype)
    else:
        # Of u = 1 and 2 a distance just below -1 rounds to it, so the coordinate is compared.
        inside = (x >= u - 1) & (distance < 1)
        if RULES.padding != "zeros":
            inside &= (x > line.low) & (x < line.high)
        weight = 1 - tl.abs(distance)
    return weight, distance, inside


@triton.jit
def with_sign(value, distance):
    """value, negated where distance is negative: one logical operation on the sign bits."""
    if value.dtype == tl.float64:
        sign = distance.to(tl.int64, bitcast=True) & -(2**63)
        value = (value.to(tl.int64, bitcast=True) ^ sign).to(tl.float64, bitcast=True)
    else:
        sign = distance.to(tl.int32, bitcast=True) & -(2**31)
        value = (value.to(tl.int32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)
    return value


@triton.jit
def weight_at(place, pixels, RULES: tl.constexpr):
    """The weight of each pixel at a place; 0, or less, out of its cell."""
    weight = along_axis(place[0], pixels.u, pixels.lines[0], RULES)
    if RULES.ndim == 3:
        weight = saturated(weight) * along_axis(place[2], pixels.w, pixels.lines[2], RULES)
    # Of several negative factors one at most is left.
    return saturated(weight) * along_axis(place[1], pixels.v, pixels.lines[1], RULES)


@triton.jit
def weight_where(here, place, pixels, RULES: tl.constexpr):
    """`weight_at`; 0 elsewhere, and of a coordinate that overflows."""
    weight = weight_at(place, pixels, RULES)
    return tl.where(here & (weight > 0), weight, 0.0)


@triton.jit
def saturated(weight):
    """Between 0 and 1: on NVIDIA a modifier of the addition that made a weight."""
    return tl.minimum(tl.maximum(weight, 0.0), 1.0)


@triton.jit
def along_axis(x, u, line, RULES: tl.constexpr):
    """`weight_at` along one axis, negative out of the cell."""
    if RULES.mode == "nearest":
        weight = tl.where(round_half_even(x) == u, 1.0, 0.0).to(x.dtype)
    else:
        weight = 1 - tl.abs(x - u)
        if RULES.padding != "zeros":
            weight = tl.where((x > line.low) & (x < line.high), weight, 0.0)
    return weight


@triton.jit
def load_candidate(
    G,  # dY at the c-th channel of a pass of one candidate a pixel, or
    COLUMN: tl.constexpr,  # so many columns before it
    c: tl.constexpr,
    mask,
    pixels,
    RULES: tl.constexpr,
    TILING: tl.constexpr,
):
    """dY where the mask is, else zeros."""
    ptrs = G.ptr + G.offs
    for _ in tl.static_range(COLUMN):
        ptrs += G.step
    mask &= some(pixels.channels + c, pixels.left, TILING.mask_channels)
    return tl.load(ptrs, mask=mask, other=0.0).to(RULES.dtype)


@triton.jit
def add_candidate(
    acc,
    G,  # dY at one candidate a pixel, or
    COLUMN: tl.constexpr,  # so many columns before it
    weight,
    pixels,
    RULES: tl.constexpr,
    TILING: tl.constexpr,
):
    """Add one candidate to grad_input, for every channel of the pass, where its weight is over 0;
    it is finite everywhere."""
    PASS: tl.constexpr = TILING.channels_a_pass
    out = ()
    for c in tl.static_range(PASS):
        g = load_candidate(G, COLUMN, c, weight > 0, pixels, RULES, TILING)
        out = out + (tl.fma(g, weight, acc[c]),)
        G = at_offset(G, G.offs + G.stride_c)
    return out


@triton.jit
def add_joint(
    acc,
    t,
    values,  # the pass's X at the tile's pixels
    G,
    COLUMN: tl.constexpr,
    weight,
    inside,
    pixels,
    RULES: tl.constexpr,
    TILING: tl.constexpr,
):
    """`add_candidate`, and to its t: (acc, t). On the edge of a cell t has what weighs nothing."""
    if not RULES.joint:
        acc = add_candidate(acc, G, COLUMN, weight, pixels, RULES, TILING)
    else:
        PASS: tl.constexpr = TILING.channels_a_pass
        total = t if TILING.block_c == 1 else tl.zeros(acc[0].shape, RULES.dtype)
        out = ()
        for c in tl.static_range(PASS):
            g = load_candidate(G, COLUMN, c, inside, pixels, RULES, TILING)
            # A tap with zero weight adds nothing, even of an inf.
            out = out + (tl.where(weight > 0, tl.fma(g, weight, acc[c]), acc[c]),)
            total = tl.fma(g, values[c], total)
            G = at_offset(G, G.offs + G.stride_c)
        acc = out
        t = total if TILING.block_c == 1 else t + tl.sum(total, 1, keep_dims=True)
    return acc, t


@triton.jit
def output_offsets(G, j, i, CANVAS, RULES: tl.constexpr):
    """Offsets in dY of centred output pixels (j, i)."""
    return pixel_offsets(G, j + CANVAS.centre_w, i + CANVAS.centre_h, RULES)


@triton.jit
def pixel_offsets(G, column, row, RULES: tl.constexpr):
    """Offsets in dY of output pixels, given as floats."""
    return row.to(RULES.index) * G.stride_h + column.to(RULES.index) * G.stride_w


@triton.jit
def in_output(j, i, CANVAS):
    """Whether centred indices are pixels of the output."""
    return (tl.abs(i) <= CANVAS.centre_h) & (tl.abs(j) <= CANVAS.centre_w)
