"""Bicubic sampling: 4 x 4 taps with Keys' kernel, A = -0.75, as PyTorch's; of volumes 4 x 4 x 4.

    w(d) = (A + 2)|d|³ - (A + 3)|d|² + 1           |d| <= 1
           A|d|³ - 5A|d|² + 8A|d| - 4A             1 < |d| < 2

The padding rule moves each tap, not the coordinate, so no derivative is cut at the edge. The slices
of a volume are a loop, and each of them as an image: unrolled, 64 taps would be too much code.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from triton_stn.kernels.sums import add
from triton_stn.kernels.taps import lines, pad
from triton_stn.kernels.tiles import some


class CubicTaps(NamedTuple):
    """Four taps along one axis, four of each."""

    pixels: object
    weights: object
    slopes: object  # derivatives of the weights
    inside: object  # the image


@triton.jit
def near_weight(d):
    """(w, dw/dd) at a distance of 0 to 1."""
    return (1.25 * d - 2.25) * d * d + 1, (3.75 * d - 4.5) * d


@triton.jit
def far_weight(d):
    """(w, dw/dd) at a distance of 1 to 2."""
    return ((3.75 - 0.75 * d) * d - 6) * d + 3, (7.5 - 2.25 * d) * d - 6


@triton.jit
def cubic_taps(x, line, edge, RULES: tl.constexpr):
    """`CubicTaps` of a coordinate. A tap of zero weight is read only for its derivative."""
    left = tl.floor(x)
    t = x - left
    w0, d0 = far_weight(t + 1)
    w1, d1 = near_weight(t)
    w2, d2 = near_weight(1 - t)
    w3, d3 = far_weight(2 - t)
    pixels = ()
    inside = ()
    for o in tl.static_range(4):
        pixel, _ = pad(left + (o - 1), line, edge, RULES)
        pixels = pixels + (pixel.to(tl.int32),)
        inside = inside + ((pixel >= 0) & (pixel <= line.last),)
    return CubicTaps(pixels, (w0, w1, w2, w3), (d0, d1, -d2, -d3), inside)


@triton.jit
def cubic_place(place, FRAME, RULES: tl.constexpr):
    """`CubicTaps` along each axis, x first."""
    line = lines(FRAME, RULES)
    along_x = cubic_taps(place[0], line[0], FRAME.edge, RULES)
    along_y = cubic_taps(place[1], line[1], FRAME.edge, RULES)
    if RULES.ndim == 2:
        along = (along_x, along_y)
    else:
        along = (along_x, along_y, cubic_taps(place[2], line[2], FRAME.edge, RULES))
    return along


@triton.jit
def cubic_tap(along, o):
    """The o-th tap along an axis: (pixel, weight, its derivative, it is inside the image)."""
    pixel = along.pixels[0]
    weight = along.weights[0]
    slope = along.slopes[0]
    inside = along.inside[0]
    for n in tl.static_range(1, 4):
        pixel = tl.where(o == n, along.pixels[n], pixel)
        weight = tl.where(o == n, along.weights[n], weight)
        slope = tl.where(o == n, along.slopes[n], slope)
        inside = tl.where(o == n, along.inside[n], inside)
    return pixel, weight, slope, inside


@triton.jit
def forward_bicubic(X, Y, place, at, count, FRAME, RULES: tl.constexpr, TILING: tl.constexpr):
    """The tile of `forward`, channel after channel."""
    along = cubic_place(place, FRAME, RULES)
    X_ptr = X.ptr + at.channels * X.stride_c
    Y_ptrs = Y.ptr
    for c in range(0, count, TILING.block_c):
        here = at.mask & some(at.channels, count - c, TILING.mask_channels)
        out = tl.zeros(Y.ptr.shape, RULES.dtype)
        if RULES.ndim == 2:
            out = read_slice(out, X, X_ptr, along, here, RULES)
        else:
            for o in range(4):
                pixel, weight, _, inside = cubic_tap(along[2], o)
                X_slice = X_ptr + pixel.to(RULES.index) * X.stride_d
                read = here & inside & (weight != 0)
                zero = tl.zeros(Y.ptr.shape, RULES.dtype)
                out = tl.fma(read_slice(zero, X, X_slice, along, read, RULES), weight, out)
        tl.store(Y_ptrs, out.to(Y.ptr.dtype.element_ty), mask=here)
        X_ptr += TILING.block_c * X.stride_c
        Y_ptrs += TILING.block_c * Y.stride_c


@triton.jit
def read_slice(out, X, X_ptr, along, here, RULES: tl.constexpr):
    """out and the sum of a slice's 4 x 4 taps."""
    along_x = along[0]
    along_y = along[1]
    for a in tl.static_range(4):
        X_row = X_ptr + along_y.pixels[a].to(RULES.index) * X.stride_h
        for b in tl.static_range(4):
            weight = along_y.weights[a] * along_x.weights[b]
            read = here & along_y.inside[a] & along_x.inside[b] & (weight != 0)
            ptrs = X_row + along_x.pixels[b].to(RULES.index) * X.stride_w
            value = tl.load(ptrs, mask=read, other=0.0)
            out = tl.fma(value.to(RULES.dtype), weight, out)
    return out


@triton.jit
def backward_bicubic(
    X, INTO, G, place, at, mask, count, FRAME, RULES: tl.constexpr, TILING: tl.constexpr
):
    """The tile of a backward from the output's side: adds to INTO, returns the slopes along each
    axis, summed over the channels."""
    NDIM: tl.constexpr = RULES.ndim
    dX = INTO.image
    along = cubic_place(place, FRAME, RULES)
    X_ptr = X.ptr + at.channels * X.stride_c
    dX_ptr = dX.ptr + at.channels * dX.stride_c
    G_ptrs = G.ptr
    sums = ()
    for _axis in tl.static_range(NDIM):
        sums = sums + (tl.zeros(G_ptrs.shape, RULES.dtype),)
    for c in range(0, count, TILING.block_c):
        here = mask & some(at.channels, count - c, TILING.mask_channels)
        g = tl.load(G_ptrs, mask=here, other=0.0).to(RULES.dtype)
        if RULES.ndim == 2:
            s_x, s_y = sums
            s_x, s_y, value = slice_slopes(
                s_x, s_y, X, X_ptr, INTO, dX_ptr, g, along, here, here, RULES
            )
            sums = (s_x, s_y)
        else:
            s_x, s_y, s_z = sums
            for o in range(4):
                pixel, weight, slope, inside = cubic_tap(along[2], o)
                read = here & inside
                X_slice = X_ptr + pixel.to(RULES.index) * X.stride_d
                dX_slice = dX_ptr + pixel.to(RULES.index) * dX.stride_d
                written = read & (weight != 0)
                s_x, s_y, value = slice_slopes(
                    s_x, s_y, X, X_slice, INTO, dX_slice, g * weight, along, read, written, RULES
                )
                s_z = tl.fma(g * slope, value, s_z)
            sums = (s_x, s_y, s_z)
        X_ptr += TILING.block_c * X.stride_c
        dX_ptr += TILING.block_c * dX.stride_c
        G_ptrs += TILING.block_c * G.stride_c
    if RULES.needs_theta and TILING.block_c > 1:
        before = sums
        sums = ()
        for axis in tl.static_range(NDIM):
            sums = sums + (tl.sum(before[axis], 1, keep_dims=True),)
    return sums


@triton.jit
def slice_slopes(s_x, s_y, X, X_ptr, INTO, dX_ptr, g, along, here, written, RULES: tl.constexpr):
    """(s_x, s_y) with a slice's part in them, and of a volume the sum of its 4 x 4 taps; adds to
    INTO where ``written``."""
    dX = INTO.image
    along_x = along[0]
    along_y = along[1]
    total = tl.zeros(s_x.shape, RULES.dtype)
    for a in tl.static_range(4):
        row = along_y.pixels[a].to(RULES.index)
        for b in tl.static_range(4):
            column = along_x.pixels[b].to(RULES.index)
            inside = along_y.inside[a] & along_x.inside[b]
            weight = along_y.weights[a] * along_x.weights[b]
            if RULES.scatters:
                ptrs = dX_ptr + (row * dX.stride_h + column * dX.stride_w)
                add(INTO, ptrs, g * weight, written & inside & (weight != 0), RULES)
            if RULES.needs_theta:
                ptrs = X_ptr + (row * X.stride_h + column * X.stride_w)
                tap = tl.load(ptrs, mask=here & inside, other=0.0).to(RULES.dtype)
                value = g * tap
                s_x = tl.fma(value, along_y.weights[a] * along_x.slopes[b], s_x)
                s_y = tl.fma(value, along_y.slopes[a] * along_x.weights[b], s_y)
                if RULES.ndim == 3:
                    total = tl.fma(tap, weight, total)
    return s_x, s_y, total
