"""The tile of a backward from the output's side, which every kernel of the backward shares.

With the taps of its coordinate each output pixel has, summed over the channels,

    S_x = sum of dY · (dY/dx)        S_y likewise

and grad_theta is made from these; and it adds dY · wx · wy to the taps of grad_input.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from triton_stn.kernels.area import backward_area, pixel_sides
from triton_stn.kernels.bicubic import backward_bicubic
from triton_stn.kernels.coordinates import source, source_gradient
from triton_stn.kernels.finish import sampled_gradient
from triton_stn.kernels.gather.rest import box_in_view
from triton_stn.kernels.moments import store_moments, zero_moments
from triton_stn.kernels.sums import add
from triton_stn.kernels.taps import (
    corner,
    corner_masks,
    corner_weights,
    filled,
    in_view,
    left_index,
    nearest,
    nonfinite,
    offsets,
    slope_along,
    taps,
)
from triton_stn.kernels.tiles import (
    first_tile,
    of_tile,
    output_spot,
    program_of_image,
    slot,
    some,
    tile_at,
    tile_extent,
)


class OutputJob(NamedTuple):
    """What a program's tiles have in common."""

    part: object
    pixel_map: object
    theta: object
    work: object
    canvas: object
    frame: object
    scale: object
    fill: object  # `Fill` of the share's channels, or ()
    finish: object  # `Finish` of them, or ()
    everything: object  # of a theta that no gather takes a scatter takes pixels in view, too


@triton.jit
def backward_program(X, dY, INTO, P, JOB, bands, RULES: tl.constexpr, TILING: tl.constexpr):
    """Every tile of a program, or with 0 bands none, and its partial sums of grad_theta.

    Tensors are from its share on.
    """
    tiles = JOB.work.tiles
    moments = zero_moments(RULES.sums, TILING, RULES)
    first = first_tile(bands, tiles)
    moments = backward_tiles(moments, first, X, dY, INTO, P, JOB, bands, tiles, RULES, TILING)
    if RULES.sums > 0:
        nk = JOB.part.n.to(tl.int64) * JOB.work.maps + JOB.part.k
        at = slot(program_of_image(), JOB.part, JOB.work)
        store_moments(P, nk, at, JOB.work.slots, moments)


@triton.jit
def walk_share(moments, X, dY, JOB, OUTPUT, RULES: tl.constexpr, TILING: tl.constexpr):
    """moments and what the output gives to them that a program of the input's side has a share in.

    The programs of an image share the output's tiles as they do the input's. Tensors are of its
    share of the channels.
    """
    first = first_tile(OUTPUT.bands, OUTPUT.tiles)
    return backward_tiles(
        moments, first, X, dY, (), (), JOB, OUTPUT.bands, OUTPUT.tiles, RULES, TILING
    )


@triton.jit
def walk_some(moments, X, dY, JOB, OUTPUT, program, RULES: tl.constexpr, TILING: tl.constexpr):
    """moments and what the output gives to them that one of a map's programs has a share in."""
    row = program // OUTPUT.across
    first = (row * OUTPUT.bands, (program - row * OUTPUT.across) * OUTPUT.tiles)
    bands = tl.where(row < OUTPUT.down, OUTPUT.bands, 0)
    return backward_tiles(moments, first, X, dY, (), (), JOB, bands, OUTPUT.tiles, RULES, TILING)


@triton.jit
def backward_tiles(
    moments, first, X, dY, INTO, P, JOB, bands, tiles, RULES: tl.constexpr, TILING: tl.constexpr
):
    """`backward_tile` of so many tiles in each of so many bands, from (band, column) on."""
    for b in range(bands):
        for t in range(tiles):
            at = tile_at(first[0] + b, first[1] + t, JOB.canvas, JOB.work, RULES, TILING)
            if RULES.scatters and RULES.rest and RULES.padding != "zeros":
                if JOB.everything | (tile_in_view(at, JOB, RULES, TILING) == 0):
                    moments = backward_tile(moments, at, X, dY, INTO, P, JOB, RULES, TILING)
            else:
                moments = backward_tile(moments, at, X, dY, INTO, P, JOB, RULES, TILING)
    return moments


@triton.jit
def tile_in_view(at, JOB, RULES: tl.constexpr, TILING: tl.constexpr):
    """Whether all pixels of a tile read strictly inside the image."""
    canvas = JOB.canvas
    height, width = tile_extent(JOB.work, TILING)
    j = at.first_column.to(RULES.dtype) - canvas.centre_w
    i = at.first_row.to(RULES.dtype) - canvas.centre_h
    k = at.first_slice - canvas.centre_d
    # A last tile reaches beyond the canvas, whose last pixel is where centred indices end.
    last_j = tl.minimum(j + (width - 1), canvas.centre_w)
    last_i = tl.minimum(i + (height - 1), canvas.centre_h)
    last_k = tl.minimum(k + (TILING.block_d - 1), canvas.centre_d)
    return box_in_view(JOB.pixel_map, (j, i, k), (last_j, last_i, last_k), JOB.frame, RULES)


@triton.jit
def backward_tile(moments, at, X, dY, INTO, P, JOB, RULES: tl.constexpr, TILING: tl.constexpr):
    """Adds to INTO; returns the moments with this tile's, or stores each pixel's gradient in P."""
    spot = output_spot(at, JOB.canvas, RULES)
    part, frame = JOB.part, JOB.frame
    place = source(JOB.pixel_map, JOB.theta, part.n, part.k, spot, JOB.canvas, frame, RULES)
    # An output that is not finite gives nothing to any gradient.
    mask = at.mask & (nonfinite(place) == 0)
    if RULES.rest and RULES.padding != "zeros":
        gathered = in_view(place, frame, RULES)
        mask &= (JOB.everything | (gathered == 0)) if RULES.scatters else gathered
    G = of_tile(dY, at, RULES)
    slopes = ()
    if RULES.mode == "nearest":
        scatter_nearest(INTO, G, place, at, mask, part.count, frame, RULES, TILING)
    elif RULES.mode == "bilinear":
        slopes = backward_linear(X, INTO, G, JOB, place, at, mask, part.count, frame, RULES, TILING)
    elif RULES.mode == "bicubic":
        slopes = backward_bicubic(X, INTO, G, place, at, mask, part.count, frame, RULES, TILING)
    else:
        sides = pixel_sides(JOB.pixel_map, JOB.theta, part, spot, RULES)
        slopes = backward_area(X, INTO, G, place, sides, at, mask, part.count, frame, RULES, TILING)
    if RULES.needs_theta:
        if RULES.sums > 0:
            moments = add_terms(moments, JOB.pixel_map, spot, slopes, mask, RULES)
        else:
            store_field(P, JOB, spot, slopes, mask, RULES)
    return moments


@triton.jit
def add_terms(moments, pixel_map, spot, slopes, mask, RULES: tl.constexpr):
    """moments and what a tile adds to the sums of grad_theta."""
    NDIM: tl.constexpr = RULES.ndim
    of_place = ()
    for axis in tl.static_range(NDIM):
        of_place = of_place + (tl.where(mask, slopes[axis], 0.0),)
    terms = source_gradient(pixel_map, spot, of_place, mask, RULES)
    if RULES.mode == "area":  # of an affine map: x = x_j·j + x_i·i + x_1 at every sample
        x_j, x_i, x_1, y_j, y_i, y_1 = terms
        terms = (
            x_j + slopes.x_j, x_i + slopes.x_i, x_1, y_j + slopes.y_j, y_i + slopes.y_i, y_1,
        )  # fmt: skip
    out = ()
    for n in tl.static_range(len(moments)):
        out = out + (moments[n] + terms[n],)
    return out


@triton.jit
def store_field(P, JOB, spot, slopes, mask, RULES: tl.constexpr):
    """Each pixel's gradient, (N, K, splits, [D_out,] H_out, W_out, 2 or 3), or 6 of a patch."""
    NUMBERS: tl.constexpr = len(slopes)
    NDIM: tl.constexpr = RULES.ndim
    canvas = JOB.canvas
    nk = JOB.part.n.to(tl.int64) * JOB.work.maps + JOB.part.k
    first = nk * JOB.work.splits + JOB.part.split
    half = (JOB.scale.half_w, JOB.scale.half_h)
    if RULES.ndim == 3:
        first = first * canvas.depth + spot.slices
        half = half + (JOB.scale.half_d,)
    row = first * canvas.height * canvas.width
    ptrs = P.ptr + (row + spot.rows.to(tl.int64) * canvas.width + spot.columns) * NUMBERS
    for n in tl.static_range(NUMBERS):
        # A flow is in pixels of the input, everything else is normalised.
        factor = 1.0 if RULES.source == "flow" else half[n % NDIM]
        tl.store(ptrs + n, tl.where(mask, slopes[n] * factor, 0.0), mask=spot.mask)


@triton.jit
def scatter_nearest(
    INTO, G, place, at, mask, count, FRAME, RULES: tl.constexpr, TILING: tl.constexpr
):
    """dY goes whole to the one pixel that was read."""
    dX = INTO.image
    index, inside = nearest(place, FRAME, RULES)
    written = mask & inside
    dX_ptrs = dX.ptr + offsets(index, dX, RULES) + at.channels * dX.stride_c
    G_ptrs = G.ptr
    for c in range(0, count, TILING.block_c):
        here = written & some(at.channels, count - c, TILING.mask_channels)
        g = tl.load(G_ptrs, mask=here, other=0.0).to(RULES.dtype)
        add(INTO, dX_ptrs, g, here, RULES)
        G_ptrs += TILING.block_c * G.stride_c
        dX_ptrs += TILING.block_c * dX.stride_c


@triton.jit
def backward_linear(
    X, INTO, G, JOB, place, at, mask, count, FRAME, RULES: tl.constexpr, TILING: tl.constexpr
):
    """Four taps a pixel, or eight a voxel: adds to INTO, returns the slopes along each axis."""
    PASS: tl.constexpr = TILING.channels_a_pass
    along = taps(place, FRAME, RULES)
    weights = corner_weights(along)
    masks = corner_masks(along, mask, False)
    index = left_index(along)
    offs = offsets(index, X, RULES) + at.channels * X.stride_c
    step = tl.full([1, 1], TILING.block_c, RULES.index)
    if RULES.scatters:
        dX = INTO.image
        written = corner_masks(along, mask, True)
        dX_offs = offsets(index, dX, RULES) + at.channels * dX.stride_c
    G_ptrs = G.ptr
    sums = ()  # over the channels, dY times each tap
    values = ()  # a tap that is not read keeps the zero that it was before the loop
    for _ in tl.static_range(len(weights)):
        sums = sums + (tl.zeros(G_ptrs.shape, RULES.dtype),)
    for _ in tl.static_range(PASS * len(weights)):
        values = values + (tl.zeros(offs.shape, X.ptr.dtype.element_ty),)
    for c in range(0, 1 if TILING.one_pass else count, TILING.step):
        kept = values
        values = ()
        for s in tl.static_range(PASS):
            here = some(at.channels + s * TILING.block_c, count - c, TILING.mask_channels)
            channels = at.channels + (c + s * TILING.block_c)
            g = tl.load(G_ptrs, mask=mask & here, other=0.0).to(RULES.dtype)
            g = sampled_gradient(g, JOB.finish, channels, here, RULES)
            before = sums
            sums = ()
            for n in tl.static_range(len(weights)):
                if RULES.scatters:
                    ptrs = corner(dX, dX_offs, n)
                    add(INTO, ptrs, g * weights[n], written[n] & here, RULES)
                if RULES.needs_theta:
                    # Of a channel that there is not, it may be an inf.
                    other = 0.0 if TILING.mask_channels else kept[s * len(weights) + n]
                    value = tl.load(corner(X, offs, n), mask=masks[n] & here, other=other)
                    values = values + (value,)
                    value = value.to(RULES.dtype)
                    if RULES.fill != "":
                        there = filled(value, masks[n] == 0, JOB.fill, channels, here, RULES)
                        # For the derivative alone, beside a whole coordinate, no inf is read.
                        read = (weights[n] > 0) | (tl.abs(there) < float("inf"))
                        value = tl.where(read, there, value)
                    sums = sums + (tl.fma(g, value, before[n]),)
                else:
                    values = values + (kept[s * len(weights) + n],)
                    sums = sums + (before[n],)
            G_ptrs += TILING.block_c * G.stride_c
            offs += step * X.stride_c
            if RULES.scatters:
                dX_offs += step * dX.stride_c
    return slopes_of(sums, along, RULES, TILING)


@triton.jit
def slopes_of(sums, along, RULES: tl.constexpr, TILING: tl.constexpr):
    """Along each axis, from the sums of dY times each tap; nothing where dtheta is not wanted."""
    NDIM: tl.constexpr = RULES.ndim
    slopes = ()
    if RULES.needs_theta:
        if TILING.block_c > 1:
            before = sums
            sums = ()
            for n in tl.static_range(len(before)):
                sums = sums + (tl.sum(before[n], 1, keep_dims=True),)
        for axis in tl.static_range(NDIM):
            slopes = slopes + (slope_along(sums, along, axis),)
    return slopes
