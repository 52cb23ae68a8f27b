"""Forward: a program owns tiles of output pixels of one theta and loops over channels.

    Y[n, k, c, i, j] = sum over the taps (v, u) of X[n, c, v, u] · wx · wy        (· wz of volumes)

Coordinates, weights and masks are computed once a tile and serve every channel.
Launch grid: see `tiles.py`, of the output.
"""

import triton
import triton.language as tl

from triton_stn.kernels.area import forward_area, pixel_sides
from triton_stn.kernels.bicubic import forward_bicubic
from triton_stn.kernels.coordinates import source, source_map
from triton_stn.kernels.finish import finish_of, store
from triton_stn.kernels.taps import (
    corner_masks,
    corner_weights,
    fill_of,
    filled,
    left_index,
    nearest,
    nonfinite,
    offsets,
    taps,
)
from triton_stn.kernels.tiles import of_share, of_tile, output_spot, share, some, tile


@triton.jit
def forward(
    X,  # (N, C, [D,] H, W)
    THETA,  # (N, K, *), see `coordinates.source`
    Y,  # (N, K, C, [D_out,] H_out, W_out)
    FILL,  # what lies outside, see `Fill`; None of zeros
    FINISH,  # see `Finish`; None where samples are stored as they are
    WORK,
    CANVAS,
    FRAME,
    SCALE,
    RULES: tl.constexpr,
    TILING: tl.constexpr,
):
    part = share(WORK, RULES, TILING)
    FILL = fill_of(FILL, part, RULES)
    FINISH = finish_of(FINISH, part, RULES)
    pixel_map = source_map(THETA, part.n, part.k, FRAME, SCALE, RULES)
    X = of_share(X, part)
    Y = of_share(Y, part)
    for t in range(WORK.tiles):
        at = tile(t, CANVAS, WORK, RULES, TILING)
        spot = output_spot(at, CANVAS, RULES)
        place = source(pixel_map, THETA, part.n, part.k, spot, CANVAS, FRAME, RULES)
        Y_tile = of_tile(Y, at, RULES)
        if RULES.mode == "nearest":
            forward_nearest(X, Y_tile, FILL, FINISH, place, at, part.count, FRAME, RULES, TILING)
        elif RULES.mode == "bilinear":
            forward_linear(X, Y_tile, FILL, FINISH, place, at, part.count, FRAME, RULES, TILING)
        elif RULES.mode == "bicubic":
            forward_bicubic(X, Y_tile, place, at, part.count, FRAME, RULES, TILING)
        else:
            sides = pixel_sides(pixel_map, THETA, part, spot, RULES)
            forward_area(X, Y_tile, place, sides, at, part.count, FRAME, RULES, TILING)


@triton.jit
def forward_nearest(
    X, Y, FILL, FINISH, place, at, count, FRAME, RULES: tl.constexpr, TILING: tl.constexpr
):
    """One tap a pixel, unweighted."""
    PASS: tl.constexpr = TILING.channels_a_pass
    index, inside = nearest(place, FRAME, RULES)
    finite = nonfinite(place) == 0
    X_ptrs = X.ptr + offsets(index, X, RULES) + at.channels * X.stride_c
    Y_ptrs = Y.ptr
    read = at.mask & inside
    for c in range(0, 1 if TILING.one_pass else count, TILING.step):
        values = ()
        for s in tl.static_range(PASS):
            here = some(at.channels + s * TILING.block_c, count - c, TILING.mask_channels)
            values = values + (tl.load(X_ptrs, mask=read & here, other=0.0),)
            X_ptrs += TILING.block_c * X.stride_c
        for s in tl.static_range(PASS):
            here = some(at.channels + s * TILING.block_c, count - c, TILING.mask_channels)
            channels = at.channels + (c + s * TILING.block_c)
            value = values[s].to(RULES.dtype)
            value = filled(value, inside == 0, FILL, channels, here, RULES)
            value = tl.where(finite, value, float("nan"))
            store(Y_ptrs, value, at.mask & here, FINISH, channels, here, RULES)
            Y_ptrs += TILING.block_c * Y.stride_c


@triton.jit
def forward_linear(
    X, Y, FILL, FINISH, place, at, count, FRAME, RULES: tl.constexpr, TILING: tl.constexpr
):
    """Four taps a pixel, or eight a voxel."""
    PASS: tl.constexpr = TILING.channels_a_pass
    along = taps(place, FRAME, RULES)
    weights = corner_weights(along)
    masks = corner_masks(along, at.mask, True)
    offs = offsets(left_index(along), X, RULES) + at.channels * X.stride_c
    step = tl.full([1, 1], TILING.block_c, RULES.index) * X.stride_c
    Y_ptrs = Y.ptr
    bases = (X.ptr, X.ptr + X.stride_h)  # of the taps in pairs along x
    if RULES.ndim == 3:
        behind = X.ptr + X.stride_d
        bases = bases + (behind, behind + X.stride_h)
    # Where a tap is not read it keeps what it was before, so that a loop over channels sets a
    # register to zero once, not at every load.
    zero = tl.zeros(offs.shape, X.ptr.dtype.element_ty)
    values = ()
    for _ in tl.static_range(PASS * len(weights)):
        values = values + (zero,)
    for c in range(0, 1 if TILING.one_pass else count, TILING.step):
        # The loads of a whole pass come before its stores, which the compiler keeps in order.
        before = values
        values = ()
        for s in tl.static_range(PASS):
            here = some(at.channels + s * TILING.block_c, count - c, TILING.mask_channels)
            for n in tl.static_range(len(weights)):
                ptrs = bases[n // 2] + offs
                if n % 2 == 1:
                    ptrs += X.stride_w
                other = before[s * len(weights) + n]
                values = values + (tl.load(ptrs, mask=masks[n] & here, other=other),)
            offs += step
        for s in tl.static_range(PASS):
            here = some(at.channels + s * TILING.block_c, count - c, TILING.mask_channels)
            channels = at.channels + (c + s * TILING.block_c)
            for n in tl.static_range(len(weights)):
                value = values[s * len(weights) + n].to(RULES.dtype)
                outside = (masks[n] == 0) & (weights[n] > 0)
                value = filled(value, outside, FILL, channels, here, RULES)
                if n == 0:
                    out = value * weights[0]
                else:
                    out = tl.fma(value, weights[n], out)
            store(Y_ptrs, out, at.mask & here, FINISH, channels, here, RULES)
            Y_ptrs += TILING.block_c * Y.stride_c
