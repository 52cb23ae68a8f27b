"""Antialiased sampling: the mean of bilinear samples over an output pixel's area.

An output pixel covers a parallelogram of the input, whose sides are the change of the source
coordinate along one step of j and one of i. It is sampled at m_i x m_j points, the centres of as
many equal parts, no further than about one input pixel apart: m_j = ceil(|dx/dj, dy/dj|), likewise
m_i, both 1 to 16. A pixel that is not minified has m = 1, which is the plain sampler. An affine map
has the same sides everywhere; any other brings those of each pixel, the source "patch".
"""

from typing import NamedTuple

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import field_ptrs, fma3
from triton_stn.kernels.sums import add
from triton_stn.kernels.taps import (
    corner,
    corner_masks,
    corner_weights,
    left_index,
    nonfinite,
    offsets,
    slope_along,
    taps,
)
from triton_stn.kernels.tiles import some


class Sides(NamedTuple):
    """Change of the source, in pixels of the input a pixel of the output, and samples along it."""

    x_j: object
    y_j: object
    x_i: object
    y_i: object
    along_j: object  # m_j, a whole number in the dtype of coordinates
    along_i: object


class AreaSlopes(NamedTuple):
    """What an output pixel gives to the gradient of its centre and of its sides."""

    x: object
    y: object
    x_j: object
    y_j: object
    x_i: object
    y_i: object


@triton.jit
def pixel_sides(pixel_map, THETA, part, spot, RULES: tl.constexpr):
    """`Sides` of a tile's pixels, [pixels, 1] each, or [1, 1] of an affine map."""
    if RULES.source == "affine":
        one = tl.full([1, 1], 1.0, RULES.dtype)
        x_j, y_j, x_i, y_i = (
            pixel_map.x_j * one,
            pixel_map.y_j * one,
            pixel_map.x_i * one,
            pixel_map.y_i * one,
        )
    else:
        ptrs = field_ptrs(THETA, part.n, part.k, spot, RULES) + 2 * THETA.stride_c
        x_j = tl.load(ptrs, mask=spot.mask, other=0.0).to(RULES.dtype) * pixel_map.half[0]
        ptrs += THETA.stride_c
        y_j = tl.load(ptrs, mask=spot.mask, other=0.0).to(RULES.dtype) * pixel_map.half[1]
        ptrs += THETA.stride_c
        x_i = tl.load(ptrs, mask=spot.mask, other=0.0).to(RULES.dtype) * pixel_map.half[0]
        ptrs += THETA.stride_c
        y_i = tl.load(ptrs, mask=spot.mask, other=0.0).to(RULES.dtype) * pixel_map.half[1]
    return Sides(x_j, y_j, x_i, y_i, samples_along(x_j, y_j), samples_along(x_i, y_i))


@triton.jit
def samples_along(d_x, d_y):
    """Samples along a side (d_x, d_y): 1 to 16, and 1 where it is not finite.

    A hair's tolerance: rounding does not turn a zoom by 2 into 3 samples.
    """
    length = tl.sqrt(d_x * d_x + d_y * d_y) - 0.01
    minified = (length > 1) & (tl.abs(d_x) + tl.abs(d_y) < float("inf"))
    return tl.where(minified, tl.where(length < 16, tl.ceil(length), 16.0), 1.0)


@triton.jit
def sample_offset(s, sides):
    """Where sample ``s`` lies from the centre of its pixel, (along j, along i), in pixels."""
    half_j = 0.5 / sides.along_j
    half_i = 0.5 / sides.along_i
    row = tl.floor((2 * s + 1) * half_j)
    column = s - row * sides.along_j
    return (2 * column + 1 - sides.along_j) * half_j, (2 * row + 1 - sides.along_i) * half_i


@triton.jit
def sample_place(place, sides, dj, di):
    """The source coordinate of a sample."""
    x = fma3(sides.x_j, sides.x_i, place[0], dj, di)
    y = fma3(sides.y_j, sides.y_i, place[1], dj, di)
    return x, y


@triton.jit
def forward_area(X, Y, place, sides, at, count, FRAME, RULES: tl.constexpr, TILING: tl.constexpr):
    """The tile of `forward`, channel after channel."""
    samples = sides.along_j * sides.along_i
    most = tl.max(samples).to(tl.int32)
    X_offs = at.channels.to(RULES.index) * X.stride_c
    Y_ptrs = Y.ptr
    step = tl.full([1, 1], TILING.block_c, RULES.index)
    for c in range(0, count, TILING.block_c):
        here = at.mask & some(at.channels, count - c, TILING.mask_channels)
        total = tl.zeros(Y_ptrs.shape, RULES.dtype)
        for s in range(most):
            dj, di = sample_offset(s, sides)
            along = taps(sample_place(place, sides, dj, di), FRAME, RULES)
            weights = corner_weights(along)
            masks = corner_masks(along, here & (s < samples), True)
            offs = X_offs + offsets(left_index(along), X, RULES)
            for n in tl.static_range(4):
                value = tl.load(corner(X, offs, n), mask=masks[n], other=0.0)
                total = tl.fma(value.to(RULES.dtype), weights[n], total)
        # Of a coordinate that is not finite no tap is read, and a weight is NaN.
        tl.store(Y_ptrs, (total / samples).to(Y.ptr.dtype.element_ty), mask=here)
        X_offs += step * X.stride_c
        Y_ptrs += TILING.block_c * Y.stride_c


@triton.jit
def backward_area(
    X, INTO, G, place, sides, at, mask, count, FRAME, RULES: tl.constexpr, TILING: tl.constexpr
):
    """The tile of a backward from the output's side: adds to INTO, returns `AreaSlopes`."""
    dX = INTO.image
    samples = sides.along_j * sides.along_i
    most = tl.max(samples).to(tl.int32)
    share = 1 / samples
    X_offs = at.channels.to(RULES.index) * X.stride_c
    dX_offs = at.channels.to(RULES.index) * dX.stride_c
    G_ptrs = G.ptr
    zero = tl.zeros(place[0].shape, RULES.dtype)
    slopes = AreaSlopes(zero, zero, zero, zero, zero, zero)
    step = tl.full([1, 1], TILING.block_c, RULES.index)
    for c in range(0, count, TILING.block_c):
        here = mask & some(at.channels, count - c, TILING.mask_channels)
        g = tl.load(G_ptrs, mask=here, other=0.0).to(RULES.dtype) * share
        for s in range(most):
            dj, di = sample_offset(s, sides)
            where = sample_place(place, sides, dj, di)
            along = taps(where, FRAME, RULES)
            read = here & (s < samples) & (nonfinite(where) == 0)
            index = left_index(along)
            if RULES.scatters:
                weights = corner_weights(along)
                written = corner_masks(along, read, True)
                offs = dX_offs + offsets(index, dX, RULES)
                for n in tl.static_range(4):
                    add(INTO, corner(dX, offs, n), g * weights[n], written[n], RULES)
            if RULES.needs_theta:
                masks = corner_masks(along, read, False)
                offs = X_offs + offsets(index, X, RULES)
                values = ()
                for n in tl.static_range(4):
                    value = tl.load(corner(X, offs, n), mask=masks[n], other=0.0)
                    values = values + (value.to(RULES.dtype),)
                s_x = tl.where(read, g * slope_along(values, along, 0), 0.0)
                s_y = tl.where(read, g * slope_along(values, along, 1), 0.0)
                if TILING.block_c > 1:  # here, for six sums a channel would not fit the registers
                    s_x = tl.sum(s_x, 1, keep_dims=True)
                    s_y = tl.sum(s_y, 1, keep_dims=True)
                slopes = AreaSlopes(
                    slopes.x + s_x,
                    slopes.y + s_y,
                    slopes.x_j + s_x * dj,
                    slopes.y_j + s_y * dj,
                    slopes.x_i + s_x * di,
                    slopes.y_i + s_y * di,
                )
        X_offs += step * X.stride_c
        dX_offs += step * dX.stride_c
        G_ptrs += TILING.block_c * G.stride_c
    return slopes
