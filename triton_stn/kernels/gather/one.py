"""The gather of one theta an image: its window, then the tiles, then the passes of channels.

A window stands outside of the loops, where the compiler hoists what does not change; a narrow one
is worked out once a tile, and all passes go through it.

Where grad_theta is wanted too, a theta without rotation gathers jointly: its window has few
candidates beside the four that an output pixel reads, and shares loads and weights. Any other
gathers grad_input alone, and then the program takes grad_theta from the output's side, where an
output pixel is looked at once.
"""

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import source_map
from triton_stn.kernels.gather.axis import axis_moments
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
from triton_stn.kernels.gather.eight import eight_moments, is_eight
from triton_stn.kernels.gather.inverse import (
    EIGHT,
    NOTHING,
    ON_SIDE,
    PERSPECTIVE,
    STRAIGHT,
    THREE,
    UPRIGHT,
    VOLUME,
    WALK,
    WIDE,
    inverse_map,
    is_axis,
    is_finite,
    meets,
    tile_box,
    window_kind,
)
from triton_stn.kernels.gather.perspective import inverse_homography
from triton_stn.kernels.gather.rest import leaves_rest
from triton_stn.kernels.gather.volume import inverse_3d
from triton_stn.kernels.gather.windows import (
    Job,
    first_candidate,
    gather_pass,
    open_window,
    with_inverse,
)
from triton_stn.kernels.moments import store_moments, zero_moments
from triton_stn.kernels.output_side import OutputJob, walk_share
from triton_stn.kernels.sums import into
from triton_stn.kernels.taps import fill_of
from triton_stn.kernels.tiles import (
    of_share,
    program_of_image,
    share,
    slot,
    tile_of_band,
    tile_offsets,
)


@triton.jit
def gather(
    X,  # (N, C, [D,] H, W)
    THETA,  # (N, 1, 2, 3), (N, 1, 3, 4) of volumes, or (N, 1, 3, 3)
    dY,  # (N, 1, C, [D_out,] H_out, W_out)
    dX,  # (N, C, [D,] H, W)
    SUMS,  # see `sums.py`
    P,  # (N, sums filled up to a multiple of six, slots): partial sums of grad_theta
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
    part = share(WORK, RULES, TILING)
    pixel_map = source_map(THETA, part.n, part.k, FRAME, SCALE, RULES)
    X = of_share(X, part)
    dY = of_share(dY, part)
    rest = False
    if RULES.into != "dX":
        rest = leaves_rest(pixel_map, CANVAS, FRAME, RULES)
    out = Output(of_share(dX, part), into(dX, SUMS, part, RULES), rest)
    moments = zero_moments(RULES.sums, TILING, RULES)
    job = Job(pixel_map, (), part.count, WORK, CANVAS, FRAME, X, dY, out)
    if RULES.ndim == 3:
        moments, apart = gather_voxels(moments, job, RULES, TILING)
    elif RULES.source == "projective":
        moments, apart = gather_homography(moments, job, RULES, TILING)
    else:
        moments, apart = gather_affine(moments, job, RULES, TILING)
    if RULES.sums > 0:
        if apart:
            fill = fill_of(FILL, part, RULES)
            output = OutputJob(part, pixel_map, THETA, WORK, CANVAS, FRAME, SCALE, fill, (), False)
            moments = walk_share(moments, X, dY, output, OUTPUT, RULES, TILING)
        at = slot(program_of_image(), part, WORK)
        store_moments(P, part.n.to(tl.int64), at, WORK.slots, moments)


@triton.jit
def gather_affine(moments, job, RULES: tl.constexpr, TILING: tl.constexpr):
    """Every tile of a program: (moments, whether grad_theta is still to be taken)."""
    pixel_map = job.pixel_map
    apart = tl.full([], RULES.joint == 0, tl.int1)
    if is_axis(pixel_map, False):
        moments = gather_tiles(moments, job, UPRIGHT, RULES, TILING)
    elif is_axis(pixel_map, True):
        moments = gather_tiles(moments, job, ON_SIDE, RULES, TILING)
    else:
        inverse = inverse_map(pixel_map, RULES)
        turned = with_inverse(job, inverse)
        kind = window_kind(pixel_map, inverse)
        apart |= kind != STRAIGHT
        if kind == THREE:
            moments = gather_tiles(moments, turned, THREE, RULES, TILING)
        elif kind == STRAIGHT:
            moments = gather_tiles(moments, turned, STRAIGHT, RULES, TILING)
        elif kind == WALK:
            moments = gather_tiles(moments, turned, WALK, RULES, TILING)
        elif kind == WIDE:
            moments = gather_tiles(moments, turned, WIDE, RULES, TILING)
        else:
            moments = gather_tiles(moments, turned, NOTHING, RULES, TILING)
    return moments, apart


@triton.jit
def gather_homography(moments, job, RULES: tl.constexpr, TILING: tl.constexpr):
    """As `gather_affine`, of a homography."""
    job = with_inverse(job, inverse_homography(job.pixel_map, job.canvas, RULES))
    apart = job.inverse.gathered
    if apart:
        moments = gather_tiles(moments, job, PERSPECTIVE, RULES, TILING)
    else:
        moments = gather_tiles(moments, job, NOTHING, RULES, TILING)
    return moments, apart


@triton.jit
def gather_voxels(moments, job, RULES: tl.constexpr, TILING: tl.constexpr):
    """As `gather_affine`, of an affine map of volumes."""
    job = with_inverse(job, inverse_3d(job.pixel_map, job.canvas, RULES))
    finite = is_finite(job.pixel_map)
    eight = is_eight(job.pixel_map)
    if finite == 0:
        moments = gather_tiles(moments, job, NOTHING, RULES, TILING)
    elif eight:
        moments = gather_tiles(moments, job, EIGHT, RULES, TILING)
    elif job.inverse.walked:
        moments = gather_tiles(moments, job, VOLUME, RULES, TILING)
    else:
        moments = gather_tiles(moments, job, WIDE, RULES, TILING)
    apart = (eight == 0) | tl.full([], RULES.joint == 0, tl.int1)
    return moments, finite & apart


@triton.jit
def gather_tiles(moments, job, KIND: tl.constexpr, RULES: tl.constexpr, TILING: tl.constexpr):
    """Every tile of a program through a window of one kind; returns the moments."""
    for b in range(job.work.bands):
        for t in range(job.work.tiles):
            at = tile_of_band(b, t, job.frame, job.work, RULES, TILING)
            # What is turned or magnified shows in part: a tile may be out of view.
            if KIND == THREE or KIND == STRAIGHT or KIND == WALK:
                box = tile_box(at, job.work, RULES)
                if meets(job.pixel_map, job.inverse, box, job.canvas):
                    moments = gather_tile(moments, job, at, KIND, RULES, TILING)
                else:
                    moments = gather_tile(moments, job, at, NOTHING, RULES, TILING)
            else:
                moments = gather_tile(moments, job, at, KIND, RULES, TILING)
    return moments


@triton.jit
def gather_tile(moments, job, at, KIND: tl.constexpr, RULES: tl.constexpr, TILING: tl.constexpr):
    """All passes of channels of a tile; returns the moments with its own."""
    pixels = tile_pixels(at, job.count, job.frame, RULES)
    window = open_window(job, pixels, KIND, RULES)
    G = first_candidate(job, window, pixels, KIND, RULES)
    X = plane_of(job.x, tile_offsets(at, job.x, RULES), pixels.channels, RULES)
    dX = plane_of(job.out.image, tile_offsets(at, job.out.image, RULES), pixels.channels, RULES)
    if KIND == UPRIGHT or KIND == ON_SIDE:
        sums = zero_moments(4, TILING, RULES)
    elif KIND == EIGHT:
        sums = zero_moments(8, TILING, RULES)
    else:
        sums = moments
    for _ in range(1 if TILING.one_pass else tl.cdiv(job.count, TILING.step)):
        gathered = Gathered(zero_pass(RULES, TILING), sums)
        gathered = gather_pass(gathered, X, G, window, pixels, job, at, KIND, RULES, TILING)
        store_pass(dX, gathered.acc, pixels, job.out, RULES, TILING)
        sums = gathered.moments
        X = next_pass(X, RULES, TILING)
        dX = next_pass(dX, RULES, TILING)
        G = next_pass(G, RULES, TILING)
        pixels = with_left(pixels, pixels.left - TILING.step)
    if RULES.joint:
        if KIND == UPRIGHT or KIND == ON_SIDE:
            moments = axis_moments(moments, sums, window, KIND == ON_SIDE)
        elif KIND == EIGHT:
            moments = eight_moments(moments, sums, window)
        else:
            moments = sums
    return moments
