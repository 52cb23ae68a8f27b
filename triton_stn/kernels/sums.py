"""Where grad_input is added up, and how a term is added.

``RULES.into`` says where:

    "dX"     in dX: what is gathered, and float atomics on images of float32 and float64
    "float"  in SUMS, float32: atomics on a half image
    "fixed"  in SUMS, 64-bit integers, whose sum is the same in any order: under deterministic
             algorithms

A fixed-point word is 2^61 + the sum of term · 2^e, each rounded towards zero. A pixel's terms add
up to at most so many times the largest |dY| of its image, and e, even, keeps that below 2^60: no
carry reaches bits 62 and 63, which an infinite or undefined term sets.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from triton_stn.kernels.tiles import moved, of_share, of_tile, share, some, tile

FIXED_BITS = 60  # of a sum
ZERO = tl.constexpr(2**61)
POSITIVE = tl.constexpr(2**62)  # +inf is among the terms
NEGATIVE = tl.constexpr(-(2**63))  # -inf is
UNDEFINED = tl.constexpr(-(2**62))  # both bits


class Unit(NamedTuple):
    """What a fixed-point number of an image counts in."""

    root: object  # the square root of units of 1, a power of two: their number may leave float32
    back: object  # 1 over that
    odd: object  # some of dY is not finite


class Into(NamedTuple):
    """What a share adds to: the image, and its unit where that is fixed-point."""

    image: object
    unit: object


@triton.jit
def into(dX, SUMS, part, RULES: tl.constexpr):
    """The `Into` of a share; SUMS is laid out as dX."""
    if RULES.into == "dX":
        found = Into(of_share(dX, part), ())
    elif RULES.into == "float":
        found = Into(of_share(moved(dX, SUMS.ptr), part), ())
    else:
        found = Into(of_share(moved(dX, SUMS.ptr), part), unit_of(SUMS, part.n))
    return found


@triton.jit
def unit_of(SUMS, n):
    """The `Unit` of an image, from its largest |dY|."""
    ptr = SUMS.ptr + SUMS.elements + 2 * n.to(tl.int64)
    above = (tl.load(ptr).to(tl.int32) >> 23) - 126  # log2 of a power of two above the largest
    half = (SUMS.room - above) >> 1
    return Unit(power_of_two(half), power_of_two(-half), tl.load(ptr + 1) != 0)


@triton.jit
def power_of_two(e):
    """2^e in float32, e from -126 to 126."""
    return ((e + 127).to(tl.int32) << 23).to(tl.float32, bitcast=True)


@triton.jit
def in_units(value, unit):
    """Finite terms, in units."""
    finite = tl.abs(value) < float("inf")
    return tl.where(finite, value * unit.root * unit.root, 0.0).to(tl.int64)


@triton.jit
def marks(value):
    """The bits that a term sets which is not finite; of one that is, none."""
    mark = tl.where(value > 0, POSITIVE, tl.where(value < 0, NEGATIVE, UNDEFINED))
    return tl.where(tl.abs(value) < float("inf"), 0, mark)


@triton.jit
def add(INTO, ptrs, value, mask, RULES: tl.constexpr):
    """Add a term a pixel, by atomics."""
    if RULES.into == "fixed":
        tl.atomic_add(ptrs, in_units(value, INTO.unit), mask=mask, sem="relaxed")
        if INTO.unit.odd:
            odd = mask & (marks(value) != 0)
            tl.atomic_or(ptrs, marks(value), mask=odd, sem="relaxed")
    else:
        tl.atomic_add(ptrs, value, mask=mask, sem="relaxed")


@triton.jit
def encoded(value, INTO, RULES: tl.constexpr):
    """A sum as it is kept."""
    if RULES.into == "fixed":
        value = (in_units(value, INTO.unit) + ZERO) | marks(value)
    return value


@triton.jit
def decoded(word, INTO, RULES: tl.constexpr):
    """A sum as a number again."""
    if RULES.into == "fixed":
        units = (word & (POSITIVE - 1)) - ZERO
        value = units.to(tl.float32) * INTO.unit.back * INTO.unit.back
        mark = word & UNDEFINED
        value = tl.where(mark == POSITIVE, float("inf"), value)
        value = tl.where(mark == NEGATIVE, float("-inf"), value)
        word = tl.where(mark == UNDEFINED, float("nan"), value)
    return word


@triton.jit
def largest(
    dY,  # (N, K, C, [D_out,] H_out, W_out)
    SUMS,  # behind its words two an image: bits of the largest |dY|, and 1 if some is not finite
    WORK,
    CANVAS,
    RULES: tl.constexpr,
    TILING: tl.constexpr,
):
    """Launch grid: see `tiles.py`, of the output."""
    PASS: tl.constexpr = TILING.channels_a_pass
    PIXELS: tl.constexpr = TILING.pixels
    LANES: tl.constexpr = TILING.block_c
    part = share(WORK, RULES, TILING)
    dY = of_share(dY, part)
    most = tl.zeros([PIXELS, LANES], tl.float32)
    odd = tl.zeros([PIXELS, LANES], tl.int64)
    for t in range(WORK.tiles):
        at = tile(t, CANVAS, WORK, RULES, TILING)
        ptrs = of_tile(dY, at, RULES).ptr
        for c in range(0, 1 if TILING.one_pass else part.count, TILING.step):
            for s in tl.static_range(PASS):
                here = some(at.channels + s * TILING.block_c, part.count - c, TILING.mask_channels)
                size = tl.abs(tl.load(ptrs, mask=at.mask & here, other=0.0).to(tl.float32))
                finite = size < float("inf")
                most = tl.maximum(most, tl.where(finite, size, 0.0))
                odd |= tl.where(finite, 0, 1)
                ptrs += TILING.block_c * dY.stride_c
    ptr = SUMS.ptr + SUMS.elements + 2 * part.n.to(tl.int64)
    bits = tl.max(most).to(tl.int32, bitcast=True)  # in the order of the numbers
    tl.atomic_max(ptr, bits.to(tl.int64), sem="relaxed")
    tl.atomic_max(ptr + 1, tl.max(odd), sem="relaxed")
