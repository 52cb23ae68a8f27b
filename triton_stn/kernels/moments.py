"""The sums that make up grad_theta: kept a pixel, added over a program and stored at its end."""

import triton
import triton.language as tl


@triton.jit
def zero_moments(SUMS: tl.constexpr, TILING: tl.constexpr, RULES: tl.constexpr):
    """A zero a pixel of a tile for each of the sums that make up grad_theta.

    At least one, for a branch that hands on nothing does not compile.
    """
    PIXELS: tl.constexpr = TILING.pixels
    COUNT: tl.constexpr = SUMS if SUMS > 0 else 1
    moments = ()
    for _ in tl.static_range(COUNT):
        moments = moments + (tl.zeros([PIXELS, 1], RULES.dtype),)
    return moments


@triton.jit
def store_moments(P, nk, slot, slots, moments):
    """Add the tiles of moments in a fixed order, six at a time; store them in P (N·K, sums, slots).

    The last six are filled up with zeros.
    """
    zero = tl.zeros(moments[0].shape, moments[0].dtype)
    GROUPS: tl.constexpr = (len(moments) + 5) // 6
    for group in tl.static_range(GROUPS):
        six = ()
        for n in tl.static_range(6 * group, 6 * group + 6):
            six = six + (moments[n] if n < len(moments) else zero,)
        store_six(P.ptr + (nk * GROUPS + group) * 6 * slots + slot, six, slots)


@triton.jit
def store_six(ptr, six, stride):
    """The sums of six tiles of moments, so far apart.

    Through shared memory: a thread takes its pixels' six numbers there and brings one number of
    eight pixels back, so that it adds most of a sum by itself, and shuffles serve one sum, not six.
    The first of the lanes that then have it stores it: numbers side by side would go through shared
    memory once more, to be stored by neighbours.
    """
    PIXELS: tl.constexpr = six[0].shape[0]
    EIGHTH: tl.constexpr = PIXELS // 8
    zero = tl.zeros(six[0].shape, six[0].dtype)
    even = tl.join(tl.join(six[0], six[4]), tl.join(six[2], zero))
    odd = tl.join(tl.join(six[1], six[5]), tl.join(six[3], zero))
    table = tl.reshape(tl.join(even, odd), (PIXELS * 8,))  # eight columns, row by row
    at = tl.arange(0, PIXELS * 8)
    column = at % PIXELS // EIGHTH
    pixel = at // PIXELS * EIGHTH + at % EIGHTH
    turned = tl.reshape(tl.gather(table, pixel * 8 + column, 0), (8, PIXELS))
    total = tl.sum(tl.reshape(tl.sum(turned, 0), (8, EIGHTH)), 1, keep_dims=True)
    place = tl.arange(0, 8)[:, None]
    lane = tl.arange(0, EIGHTH)[None, :]
    ptrs = ptr + (place * stride + lane * 0)
    tl.store(ptrs, tl.broadcast_to(total, (8, EIGHTH)), mask=(place < 6) & (lane == 0))
