"""The sums that make up grad_theta: kept a pixel, added over a program and stored at its end."""

import triton
import triton.language as tl


@triton.jit
def zero_moments(SUMS: tl.constexpr, TILING: tl.constexpr, RULES: tl.constexpr):
    """A zero a pixel of a tile for each of the sums that make up grad_theta."""
    PIXELS: tl.constexpr = TILING.pixels
    moments = ()
    for _ in tl.static_range(SUMS):
        moments = moments + (tl.zeros([PIXELS, 1], RULES.dtype),)
    return moments


@triton.jit
def store_moments(P, row, moments, swap):
    """Add the tiles of moments in a fixed order, six at a time; store them as a row of P.

    The last six are filled up with zeros. ``swap`` exchanges the moments along j and i.
    """
    zero = tl.zeros(moments[0].shape, moments[0].dtype)
    GROUPS: tl.constexpr = (len(moments) + 5) // 6
    for group in tl.static_range(GROUPS):
        six = ()
        for n in tl.static_range(6 * group, 6 * group + 6):
            six = six + (moments[n] if n < len(moments) else zero,)
        store_six(P.ptr + (row * GROUPS + group) * 6, six, swap)


@triton.jit
def store_six(ptr, six, swap):
    """Eight pixels inside a warp first; then stacked, so that one exchange between warps serves
    all."""
    m0 = sum_of_eights(six[0])
    m1 = sum_of_eights(six[1])
    m2 = sum_of_eights(six[2])
    m3 = sum_of_eights(six[3])
    m4 = sum_of_eights(six[4])
    m5 = sum_of_eights(six[5])
    zero = tl.zeros(m0.shape, m0.dtype)
    even = tl.join(tl.join(m0, m4), tl.join(m2, zero))
    odd = tl.join(tl.join(m1, m5), tl.join(m3, zero))
    stacked = tl.reshape(tl.join(even, odd), (m0.shape[0], 8))
    column = tl.arange(0, 8)
    swapped = tl.where(column % 3 < 2, column // 3 * 3 + 1 - column % 3, column)
    place = tl.where(swap, swapped, column)
    tl.store(ptr + place, tl.sum(stacked, 0), mask=column < 6)


@triton.jit
def sum_of_eights(x):
    """[pixels, 1] -> [pixels / 8]"""
    return tl.sum(tl.reshape(x, (x.shape[0] // 8, 8)), 1)
