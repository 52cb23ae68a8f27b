"""The windows of the gather, by their kinds: what both of its kernels dispatch to."""

from typing import NamedTuple

import triton
import triton.language as tl

from triton_stn.kernels.gather.axis import axis_window, gather_axis
from triton_stn.kernels.gather.candidates import Gathered, Plane, plane_of
from triton_stn.kernels.gather.eight import eight_window, gather_eight
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
)
from triton_stn.kernels.gather.perspective import gather_perspective
from triton_stn.kernels.gather.straight import gather_straight
from triton_stn.kernels.gather.three import gather_three, three_window
from triton_stn.kernels.gather.volume import gather_volume
from triton_stn.kernels.gather.walk import gather_walk
from triton_stn.kernels.gather.wide import gather_wide


class Job(NamedTuple):
    """What a program's tiles have in common."""

    pixel_map: object
    inverse: object
    count: object  # of channels
    work: object
    canvas: object
    frame: object
    x: object  # X and dY from a share's first channel on
    dy: object
    out: object  # an `Output`


@triton.jit
def with_inverse(job, inverse):
    """The job, its map's inverse known."""
    work, canvas, frame, out = job.work, job.canvas, job.frame, job.out
    return Job(job.pixel_map, inverse, job.count, work, canvas, frame, job.x, job.dy, out)


@triton.jit
def open_window(job, pixels, KIND: tl.constexpr, RULES: tl.constexpr):
    """What a narrow window knows of every pixel whatever the channel; else nothing."""
    if KIND == UPRIGHT or KIND == ON_SIDE:
        window = axis_window(job.pixel_map, pixels, job.dy, job.canvas, KIND == ON_SIDE, RULES)
    elif KIND == THREE:
        window = three_window(job.pixel_map, job.inverse, pixels, job.dy, job.canvas, RULES)
    elif KIND == EIGHT:
        window = eight_window(job.pixel_map, pixels, job.dy, job.canvas, RULES)
    else:
        window = ()
    return window


@triton.jit
def first_candidate(job, window, pixels, KIND: tl.constexpr, RULES: tl.constexpr):
    """dY at the first candidate of a narrow window; of another at the first pixel."""
    if KIND == UPRIGHT or KIND == ON_SIDE or KIND == THREE or KIND == EIGHT:
        G = plane_of(job.dy, window.offs, pixels.channels, RULES)
        G = Plane(G.ptr, G.offs, G.stride_c, window.stride_p)
    else:
        G = plane_of(job.dy, 0, pixels.channels, RULES)
    return G


@triton.jit
def gather_pass(
    gathered,
    X, G, window, pixels, job, at,
    KIND: tl.constexpr, RULES: tl.constexpr, TILING: tl.constexpr,
):  # fmt: skip
    """What a window gives to the channels of a pass."""
    if KIND == UPRIGHT or KIND == ON_SIDE:
        acc, ts = gather_axis(gathered.acc, gathered.moments, X, G, window, pixels, RULES, TILING)
        gathered = Gathered(acc, ts)
    elif KIND == EIGHT:
        acc, ts = gather_eight(gathered.acc, gathered.moments, X, G, window, pixels, RULES, TILING)
        gathered = Gathered(acc, ts)
    elif KIND == STRAIGHT:
        gathered = gather_straight(gathered, X, G, job, pixels, RULES, TILING)
    else:
        acc = gather_alone(gathered.acc, G, window, pixels, job, at, KIND, RULES, TILING)
        gathered = Gathered(acc, gathered.moments)
    return gathered


@triton.jit
def gather_alone(
    acc, G, window, pixels, job, at, KIND: tl.constexpr, RULES: tl.constexpr, TILING: tl.constexpr
):
    """What a window gives to a pass that is not joint."""
    if KIND == THREE:
        acc = gather_three(acc, G, window, pixels, RULES, TILING)
    elif KIND == WALK:
        acc = gather_walk(acc, G, job, pixels, RULES, TILING)
    elif KIND == PERSPECTIVE:
        acc = gather_perspective(acc, G, job, pixels, RULES, TILING)
    elif KIND == VOLUME:
        acc = gather_volume(acc, G, job, at, pixels, RULES, TILING)
    elif KIND == WIDE:
        acc = gather_wide(acc, G, job, at, pixels.left, RULES, TILING)
    return acc
