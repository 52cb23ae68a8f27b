"""The gather of several thetas an image: tiles, then passes of channels, then the maps.

The sums of a pass stay in registers over the maps, so every pass works every window out anew.
grad_theta has a kernel of its own, from the output's side: here every map would be reduced in every
tile.
"""

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import source_map
from triton_stn.kernels.gather.candidates import (
    Gathered,
    next_pass,
    store_pass,
    tile_pixels,
    with_left,
    zero_pass,
)
from triton_stn.kernels.gather.inverse import (
    ON_SIDE,
    PERSPECTIVE,
    STRAIGHT,
    THREE,
    UPRIGHT,
    VOLUME,
    WALK,
    WIDE,
    inverse_map,
    meets,
    near,
    tile_box,
    window_kind,
)
from triton_stn.kernels.gather.perspective import inverse_homography
from triton_stn.kernels.gather.windows import Job, gather_pass, open_window
from triton_stn.kernels.moments import zero_moments
from triton_stn.kernels.tiles import moved, of_channels, of_share, of_tile, share, tile


@triton.jit
def gather_maps(
    X,  # (N, C, [D,] H, W): its layout alone
    THETA,  # (N, K, 2, 3), (N, K, 3, 4) of volumes, or (N, K, 3, 3)
    dY,  # (N, K, C, [D_out,] H_out, W_out)
    dX,  # (N, C, [D,] H, W)
    WORK,
    CANVAS,
    FRAME,
    SCALE,
    RULES: tl.constexpr,
    TILING: tl.constexpr,
):
    """Launch grid: see `tiles.py`, of the input."""
    part = share(WORK, RULES, TILING)
    of_image = of_share(dX, part)
    of_maps = of_share(dY, part)
    for t in range(WORK.tiles):
        at = tile(t, FRAME, WORK, RULES, TILING)
        pixels = tile_pixels(at, part.count, RULES)
        dX_tile = of_tile(of_image, at, RULES)
        G_pass = of_channels(of_maps, at)
        for _ in range(1 if TILING.one_pass else tl.cdiv(part.count, TILING.step)):
            acc = zero_pass(RULES, TILING)
            G = G_pass
            for k in range(WORK.maps):
                pixel_map = source_map(THETA, part.n, k, FRAME, SCALE, RULES)
                acc = gather_map(
                    acc, X, G, pixel_map, pixels, at, (WORK, CANVAS, FRAME), RULES, TILING
                )  # fmt: skip
                G = moved(G, G.ptr + G.stride_k)
            store_pass(dX_tile, acc, pixels, TILING)
            dX_tile = next_pass(dX_tile, TILING)
            G_pass = next_pass(G_pass, TILING)
            pixels = with_left(pixels, pixels.left - TILING.step)


@triton.jit
def gather_map(acc, X, G, pixel_map, pixels, at, call, RULES: tl.constexpr, TILING: tl.constexpr):
    """What one map gives to the channels of a pass."""
    WORK, CANVAS, FRAME = call
    if RULES.ndim == 3:
        job = Job(pixel_map, (), pixels.left, WORK, CANVAS, FRAME)
        acc = through(acc, X, G, job, pixels, at, VOLUME, RULES, TILING)
    elif RULES.source == "projective":
        inverse = inverse_homography(pixel_map, CANVAS, RULES)
        job = Job(pixel_map, inverse, pixels.left, WORK, CANVAS, FRAME)
        if RULES.every or inverse.gathered:
            acc = through(acc, X, G, job, pixels, at, PERSPECTIVE, RULES, TILING)
    else:
        inverse = inverse_map(pixel_map, RULES)
        job = Job(pixel_map, inverse, pixels.left, WORK, CANVAS, FRAME)
        box = tile_box(at, RULES, TILING)
        # Of several crops of an image most miss a tile.
        if near(pixel_map, box, CANVAS):
            kind = window_kind(pixel_map, inverse)
            if kind == UPRIGHT:
                acc = through(acc, X, G, job, pixels, at, UPRIGHT, RULES, TILING)
            elif kind == ON_SIDE:
                acc = through(acc, X, G, job, pixels, at, ON_SIDE, RULES, TILING)
            elif kind == WIDE:
                acc = through(acc, X, G, job, pixels, at, WIDE, RULES, TILING)
            # What is turned or magnified shows in part: a tile may be out of view.
            elif meets(pixel_map, inverse, box, CANVAS):
                if kind == THREE:
                    acc = through(acc, X, G, job, pixels, at, THREE, RULES, TILING)
                elif kind == STRAIGHT:
                    acc = through(acc, X, G, job, pixels, at, STRAIGHT, RULES, TILING)
                elif kind == WALK:
                    acc = through(acc, X, G, job, pixels, at, WALK, RULES, TILING)
    return acc


@triton.jit
def through(
    acc, X, G, job, pixels, at, KIND: tl.constexpr, RULES: tl.constexpr, TILING: tl.constexpr
):
    """acc and what comes through a window of a known kind."""
    window = open_window(job, pixels, G, KIND, RULES)
    sums = zero_moments(9 if KIND == THREE else 4, TILING, RULES)
    gathered = gather_pass(Gathered(acc, sums), X, G, window, pixels, job, at, KIND, RULES, TILING)
    return gathered.acc
