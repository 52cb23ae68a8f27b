"""Bicubic sampling: 4 x 4 taps with Keys' kernel, A = -0.75, as PyTorch's.

    w(d) = (A + 2)|d|³ - (A + 3)|d|² + 1           |d| <= 1
           A|d|³ - 5A|d|² + 8A|d| - 4A             1 < |d| < 2

The padding rule moves each tap, not the coordinate, so no derivative is cut at the edge.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from triton_stn.kernels.sums import add
from triton_stn.kernels.taps import lasts, pad
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
def cubic_taps(x, last, edge, RULES: tl.constexpr):
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
        pixel, _ = pad(left + (o - 1), last, edge, RULES)
        pixels = pixels + (pixel.to(tl.int32),)
        inside = inside + ((pixel >= 0) & (pixel <= last),)
    return CubicTaps(pixels, (w0, w1, w2, w3), (d0, d1, -d2, -d3), inside)


@triton.jit
def cubic_place(place, FRAME, RULES: tl.constexpr):
    """`CubicTaps` along x and y."""
    last = lasts(FRAME, RULES)
    along_x = cubic_taps(place[0], last[0], FRAME.edge, RULES)
    along_y = cubic_taps(place[1], last[1], FRAME.edge, RULES)
    return along_x, along_y


@triton.jit
def forward_bicubic(X, Y, place, at, count, FRAME, RULES: tl.constexpr, TILING: tl.constexpr):
    """The tile of `forward`, channel after channel."""
    along_x, along_y = cubic_place(place, FRAME, RULES)
    X_ptr = X.ptr + at.channels * X.stride_c
    Y_ptrs = Y.ptr
    for c in range(0, count, TILING.block_c):
        here = at.mask & some(at.channels, count - c, TILING.mask_channels)
        out = tl.zeros(Y.ptr.shape, RULES.dtype)
        for a in tl.static_range(4):
            X_row = X_ptr + along_y.pixels[a].to(RULES.index) * X.stride_h
            for b in tl.static_range(4):
                weight = along_y.weights[a] * along_x.weights[b]
                read = here & along_y.inside[a] & along_x.inside[b] & (weight != 0)
                ptrs = X_row + along_x.pixels[b].to(RULES.index) * X.stride_w
                value = tl.load(ptrs, mask=read, other=0.0)
                out = tl.fma(value.to(RULES.dtype), weight, out)
        tl.store(Y_ptrs, out.to(Y.ptr.dtype.element_ty), mask=here)
        X_ptr += TILING.block_c * X.stride_c
        Y_ptrs += TILING.block_c * Y.stride_c


@triton.jit
def backward_bicubic(
    X, INTO, G, place, at, mask, count, FRAME, RULES: tl.constexpr, TILING: tl.constexpr
):
    """The tile of a backward from the output's side: adds to INTO, returns (dY/dx, dY/dy) summed
    over the channels."""
    dX = INTO.image
    along_x, along_y = cubic_place(place, FRAME, RULES)
    X_ptr = X.ptr + at.channels * X.stride_c
    dX_ptr = dX.ptr + at.channels * dX.stride_c
    G_ptrs = G.ptr
    s_x = tl.zeros(G_ptrs.shape, RULES.dtype)
    s_y = tl.zeros(G_ptrs.shape, RULES.dtype)
    for c in range(0, count, TILING.block_c):
        here = mask & some(at.channels, count - c, TILING.mask_channels)
        g = tl.load(G_ptrs, mask=here, other=0.0).to(RULES.dtype)
        for a in tl.static_range(4):
            row = along_y.pixels[a].to(RULES.index)
            for b in tl.static_range(4):
                column = along_x.pixels[b].to(RULES.index)
                read = here & along_y.inside[a] & along_x.inside[b]
                if RULES.scatters:
                    weight = along_y.weights[a] * along_x.weights[b]
                    written = read & (weight != 0)
                    ptrs = dX_ptr + (row * dX.stride_h + column * dX.stride_w)
                    add(INTO, ptrs, g * weight, written, RULES)
                if RULES.needs_theta:
                    ptrs = X_ptr + (row * X.stride_h + column * X.stride_w)
                    value = g * tl.load(ptrs, mask=read, other=0.0).to(RULES.dtype)
                    s_x = tl.fma(value, along_y.weights[a] * along_x.slopes[b], s_x)
                    s_y = tl.fma(value, along_y.slopes[a] * along_x.weights[b], s_y)
        X_ptr += TILING.block_c * X.stride_c
        dX_ptr += TILING.block_c * dX.stride_c
        G_ptrs += TILING.block_c * G.stride_c
    if RULES.needs_theta and TILING.block_c > 1:
        s_x = tl.sum(s_x, 1, keep_dims=True)
        s_y = tl.sum(s_y, 1, keep_dims=True)
    return s_x, s_y
