"""The gather of several thetas an image: tiles, then passes of channels, then the maps.

The sums of a pass stay in registers over the maps, so every pass works every window out anew.
grad_theta is taken from the output's side: from the input's, every map would be reduced in every
tile. Where it has no launch of its own, each program has a share of one map's tiles of the output.
"""

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import MAPS_A_LOOK, load_thetas, source_map
from triton_stn.kernels.gather.candidates import (
    Gathered,
    Output,
    next_pass,
    plane_of,
    store_pass,
    tile_pixels,
    with_left,
    zero_pass,
)
from triton_stn.kernels.gather.eight import is_eight
from triton_stn.kernels.gather.inverse import (
    EIGHT,
    ON_SIDE,
    PERSPECTIVE,
    STRAIGHT,
    THREE,
    UPRIGHT,
    VOLUME,
    WALK,
    WIDE,
    crosses,
    inverse_map,
    is_axis,
    is_finite,
    theta_is_near,
    tile_box,
    window_kind,
)
from triton_stn.kernels.gather.perspective import inverse_homography
from triton_stn.kernels.gather.rest import image_leaves_rest, is_gathered
from triton_stn.kernels.gather.volume import inverse_3d
from triton_stn.kernels.gather.windows import (
    Job,
    first_candidate,
    gather_pass,
    open_window,
    with_inverse,
)
from triton_stn.kernels.moments import store_moments, zero_moments
from triton_stn.kernels.output_side import OutputJob, walk_some
from triton_stn.kernels.sums import into
from triton_stn.kernels.taps import fill_of
from triton_stn.kernels.tiles import (
    Share,
    moved,
    of_share,
    program_of_image,
    share,
    slot,
    tile,
    tile_offsets,
)


@triton.jit
def gather_maps(
    X,  # (N, C, [D,] H, W)
    THETA,  # (N, K, 2, 3), (N, K, 3, 4) of volumes, or (N, K, 3, 3)
    dY,  # (N, K, C, [D_out,] H_out, W_out)
    dX,  # (N, C, [D,] H, W)
    SUMS,  # see `sums.py`
    P,  # as of `grad_theta`
    FILL,  # as of `forward`
    WORK,
    OUTPUT,
    CANVAS,
    FRAME,
    SCALE,
    RULES: tl.constexpr,
    TILING: tl.constexpr,
):
    """Launch grid: see `tiles.py`, of the input."""
    PASS: tl.constexpr = TILING.channels_a_pass
    part = share(WORK, RULES, TILING)
    rest = False
    if RULES.into != "dX":
        rest = image_leaves_rest(THETA, part.n, WORK.maps, CANVAS, FRAME, SCALE, RULES)
    out = Output(of_share(dX, part), into(dX, SUMS, part, RULES), rest)
    for t in range(WORK.tiles):
        of_maps = of_share(dY, part)
        at = tile(t, FRAME, WORK, RULES, TILING)
        pixels = tile_pixels(at, part.count, FRAME, RULES)
        of_tile = plane_of(out.image, tile_offsets(at, out.image, RULES), pixels.channels, RULES)
        for _ in range(1 if TILING.one_pass else tl.cdiv(part.count, TILING.step)):
            acc = zero_pass(RULES, TILING)
            for first in range(0, WORK.maps, MAPS_A_LOOK):
                seen = in_sight(THETA, part.n, first, at, WORK, CANVAS, FRAME, SCALE, RULES, TILING)
                for k in range(first, tl.minimum(first + MAPS_A_LOOK, WORK.maps)):
                    if seen & 1 != 0:
                        pixel_map = source_map(THETA, part.n, k, FRAME, SCALE, RULES)
                        there = tl.cast(k, tl.int64) * of_maps.stride_k
                        of_k = moved(of_maps, of_maps.ptr + there)
                        job = Job(pixel_map, (), pixels.left, WORK, CANVAS, FRAME, X, of_k, out)
                        acc = gather_map(acc, job, pixels, at, RULES, TILING)
                    seen = seen >> 1
            store_pass(of_tile, acc, pixels, out, RULES, TILING)
            of_tile = next_pass(of_tile, RULES, TILING)
            for _ in tl.static_range(PASS):
                of_maps = moved(of_maps, of_maps.ptr + TILING.block_c * of_maps.stride_c)
            pixels = with_left(pixels, pixels.left - TILING.step)
    if RULES.sums > 0:
        sum_map(X, THETA, dY, P, FILL, part, WORK, OUTPUT, CANVAS, FRAME, SCALE, RULES, TILING)


@triton.jit
def sum_map(
    X, THETA, dY, P, FILL, part, WORK, OUTPUT, CANVAS, FRAME, SCALE,
    RULES: tl.constexpr, TILING: tl.constexpr,
):  # fmt: skip
    """A share of grad_theta of one map: as many programs of an image serve each of its maps."""
    program = program_of_image()
    k = program // OUTPUT.programs
    if k < WORK.maps:
        mine = program - k * OUTPUT.programs
        of_map = Share(part.n, k, part.split, part.first, part.count)
        pixel_map = source_map(THETA, part.n, k, FRAME, SCALE, RULES)
        moments = zero_moments(RULES.sums, TILING, RULES)
        if is_gathered(pixel_map, CANVAS, RULES):
            fill = fill_of(FILL, of_map, RULES)
            job = OutputJob(of_map, pixel_map, THETA, WORK, CANVAS, FRAME, SCALE, fill, (), False)
            x, dy = of_share(X, of_map), of_share(dY, of_map)
            moments = walk_some(moments, x, dy, job, OUTPUT, mine, RULES, TILING)
        nk = part.n.to(tl.int64) * WORK.maps + k
        store_moments(P, nk, slot(mine, part, WORK), WORK.slots, moments)


@triton.jit
def in_sight(
    THETA, n, first, at, WORK, CANVAS, FRAME, SCALE, RULES: tl.constexpr, TILING: tl.constexpr
):
    """A bit for each of 32 maps from ``first`` on, set where the map may meet a tile.

    Of several crops of an image most miss a tile. The lanes of a warp look at a map each.
    """
    seen = tl.full([], -1, tl.int32)
    if RULES.ndim == 2 and RULES.source == "affine":
        there, theta = load_thetas(THETA, n, first, WORK.maps, RULES)
        there &= theta_is_near(theta, tile_box(at, WORK, RULES), CANVAS, FRAME, SCALE, RULES)
        seen = tl.sum(tl.where(there, 1 << tl.arange(0, MAPS_A_LOOK), 0), 0)
    return seen


@triton.jit
def gather_map(acc, job, pixels, at, RULES: tl.constexpr, TILING: tl.constexpr):
    """What one map gives to the channels of a pass."""
    if RULES.ndim == 3:
        inverse = inverse_3d(job.pixel_map, job.canvas, RULES)
        if is_finite(job.pixel_map):
            if is_eight(job.pixel_map):
                acc = through(acc, inverse, job, pixels, at, EIGHT, RULES, TILING)
            elif inverse.walked:
                acc = through(acc, inverse, job, pixels, at, VOLUME, RULES, TILING)
            else:
                acc = through(acc, inverse, job, pixels, at, WIDE, RULES, TILING)
    elif RULES.source == "projective":
        inverse = inverse_homography(job.pixel_map, job.canvas, RULES)
        if inverse.gathered:
            acc = through(acc, inverse, job, pixels, at, PERSPECTIVE, RULES, TILING)
    else:
        if is_axis(job.pixel_map, False):
            acc = through(acc, (), job, pixels, at, UPRIGHT, RULES, TILING)
        elif is_axis(job.pixel_map, True):
            acc = through(acc, (), job, pixels, at, ON_SIDE, RULES, TILING)
        else:
            box = tile_box(at, job.work, RULES)
            acc = gather_turned(acc, job, pixels, at, box, RULES, TILING)
    return acc


@triton.jit
def gather_turned(acc, job, pixels, at, box, RULES: tl.constexpr, TILING: tl.constexpr):
    """What an affine map that is turned or magnifies gives: a tile may be out of view."""
    inverse = inverse_map(job.pixel_map, RULES)
    kind = window_kind(job.pixel_map, inverse)
    if kind == WIDE:
        acc = through(acc, inverse, job, pixels, at, WIDE, RULES, TILING)
    elif crosses(job.pixel_map, inverse, box, job.canvas):
        if kind == THREE:
            acc = through(acc, inverse, job, pixels, at, THREE, RULES, TILING)
        elif kind == STRAIGHT:
            acc = through(acc, inverse, job, pixels, at, STRAIGHT, RULES, TILING)
        elif kind == WALK:
            acc = through(acc, inverse, job, pixels, at, WALK, RULES, TILING)
    return acc


@triton.jit
def through(
    acc, inverse, job, pixels, at, KIND: tl.constexpr, RULES: tl.constexpr, TILING: tl.constexpr
):
    """acc and what comes through a window of a known kind."""
    job = with_inverse(job, inverse)
    window = open_window(job, pixels, KIND, RULES)
    G = first_candidate(job, window, pixels, KIND, RULES)
    X = plane_of(job.x, 0, pixels.channels, RULES)  # not read
    sums = zero_moments(8 if KIND == EIGHT else 4, TILING, RULES)  # left alone
    gathered = gather_pass(Gathered(acc, sums), X, G, window, pixels, job, at, KIND, RULES, TILING)
    return gathered.acc
