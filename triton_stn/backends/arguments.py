"""Layouts -> the named arguments of kernels (`kernels/arguments.py`).

Images are volumes of depth one here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton.language as tl

from triton_stn.backends.launch import INT32_MAX
from triton_stn.backends.layout import Layout, channels_lie_last
from triton_stn.kernels import configs
from triton_stn.kernels.arguments import (
    Canvas,
    Fill,
    Finish,
    Frame,
    Image,
    Rules,
    Scale,
    Theta,
    Walk,
    Work,
)
from triton_stn.kernels.coordinates import FIELDS

# Fewer channels than this in a channels-last image fill no 16-byte run worth a kernel of its own:
# the NCHW kernel reads them from the same sectors.
MIN_RUN = 8


class Sampling(NamedTuple):
    """What of a call decides its launches beside the layouts.

    ``source`` says what theta is: "affine", "projective", "spline", "grid", "flow" or "patch"
    (`coordinates.source` has their shapes).
    """

    mode: str
    padding_mode: str
    align_corners: bool
    source: str = "affine"
    # What lies outside: a number, or the dtype and stride of a tensor of one a channel.
    fill: float | tuple[torch.dtype, int] | None = None
    # The strides of the tensor that scales and shifts samples, of channels and from its gains to
    # its biases.
    finish: tuple[int, int] | None = None

    @property
    def gathers(self) -> bool:
        """Whether grad_input is gathered, what `leaves_rest` leaves apart; else it is scattered."""
        return self.mode in ("nearest", "bilinear") and self.source in ("affine", "projective")


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of coordinates, weights and sums for an image of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def tl_dtype(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


def problem_of(images: int, channels: int, size, input: Layout, *others: Layout) -> configs.Problem:
    run = run_length(input, *others)
    align = alignment(channels, input, *others) if run > 1 else 1
    return configs.Problem(images, channels, deep(size), run, align)


def run_length(input: Layout, *others: Layout) -> int:
    """Channels that a program reads of one pixel at a time: 1 in NCHW, a line in channels-last."""
    run = configs.RUN_BYTES // input.dtype.itemsize
    channel = 1 - len(input.shape)  # counted from the end: others may have a K
    near = all(run * other.strides[channel] <= INT32_MAX for other in others)
    last = channels_lie_last(input.shape, input.strides)
    return run if last and input.shape[1] >= MIN_RUN and near else 1


def alignment(channels: int, *images: Layout) -> int:
    """The power of two, up to 16 bytes, that divides the channels and every stride but theirs."""
    align = 16 // images[0].dtype.itemsize
    for image in images:
        channel = len(image.shape) - len(images[0].shape) + 1
        for axis, stride in enumerate(image.strides):
            while axis != channel and stride % align:
                align //= 2
    while channels % align:
        align //= 2
    return align


def image_of(layout: Layout, ndim: int) -> Image:
    """Strides by name; of an axis of one, which has none to speak of, 0, and of columns 1."""
    strides = [0 if size == 1 else s for size, s in zip(layout.shape, layout.strides, strict=True)]
    *n_k, c = strides[:-ndim]
    n, k = n_k if len(n_k) == 2 else (*n_k, 0)
    d, h, w = (*(0,) * (3 - ndim), *strides[-ndim:])
    return Image(layout.dtype, n, k, c, d, h, 1 if layout.shape[-1] == 1 else w)


def theta_of(layout: Layout, sampling: Sampling) -> Theta:
    n, k, *inner = layout.strides
    d, h, w, c = (0,) * 4
    if sampling.source in FIELDS:
        d, h, w, c = (*(0,) * (4 - len(inner)), *inner)
    points = layout.shape[2] - 3 if sampling.source == "spline" else 0
    return Theta(layout.dtype, n, k, d, h, w, c, points)


def fill_of(sampling: Sampling, dtype: torch.dtype) -> Fill:
    """What a call says lies outside. A number has no tensor; the image stands in its place."""
    if isinstance(sampling.fill, tuple):
        return Fill(*sampling.fill, 0.0)
    return Fill(dtype, 0, sampling.fill or 0.0)


def finish_of(sampling: Sampling) -> Finish | None:
    return None if sampling.finish is None else Finish(torch.float32, *sampling.finish)


def numbers_of(
    input: Layout,
    output: Layout,
    sampling: Sampling,
    config: configs.Config,
    slots: int = 0,
    first_slot: int = 0,
) -> dict[str, NamedTuple]:
    k, c, *size = output.shape[1:]
    tile_h, tile_w = config.tile
    down, right = config.next_warp
    work = Work(
        maps=k,
        channels=c,
        splits=config.splits,
        channels_a_split=config.channels_a_split,
        bands=config.bands,
        tiles=config.tiles,
        tile_h=tile_h,
        tile_w=tile_w,
        half_h=(tile_h - 1) / 2,
        half_w=(tile_w - 1) / 2,
        down=down,
        right=right,
        slots=slots,
        first_slot=first_slot,
    )
    return dict(
        WORK=work,
        OUTPUT=walk_of(k, deep(size), config),
        CANVAS=canvas_of(size),
        FRAME=frame_of(input, size, sampling),
        SCALE=scale_of(input, size, sampling.align_corners),
    )


def walk_of(maps: int, size: tuple[int, int, int], config: configs.Config) -> Walk:
    """Programs lie over the output as over the input, or where maps share them, as fits a map."""
    depth, height, width = size
    tile_h, tile_w = config.tile
    bands = configs.cdiv(depth, config.tiling.block_d) * configs.cdiv(height, tile_h)
    columns = configs.cdiv(width, tile_w)
    programs = config.programs // maps
    across, down = config.grid[1:]
    if maps > 1:
        across = max(programs // bands, 1)
        down = max(programs // across, 1)
    bands_each, tiles = configs.cdiv(bands, down), configs.cdiv(columns, across)
    across, down = configs.cdiv(columns, tiles), configs.cdiv(bands, bands_each)  # some have none
    return Walk(programs, across, down, bands_each, tiles)


def deep(size) -> tuple[int, int, int]:
    """(D, H, W); an image has depth one."""
    return (*(1,) * (3 - len(size)), *size)


def canvas_of(size) -> Canvas:
    sizes = deep(size)
    return Canvas(*sizes, *((extent - 1) / 2 for extent in sizes))


def frame_of(input: Layout, size, sampling: Sampling) -> Frame:
    sizes = deep(input.shape[2:])
    lasts = (float(extent - 1) for extent in sizes)
    less = 1 if sampling.align_corners else 0
    # Over half an image the rounding of their ratio moves a coordinate by up to half of this.
    eps = torch.finfo(sum_dtype(input.dtype)).eps
    sloped = sampling.source == "affine" and sampling.mode == "bilinear"
    lifts = (
        0.0 if _is_exact(span - less, extent - less) or not sloped else eps * span / 2
        for span, extent in zip(sizes, deep(size), strict=True)
    )
    return Frame(*sizes, *lasts, 0.0 if sampling.align_corners else -0.5, *lifts)


def _is_exact(span: int, extent: int) -> bool:
    """Whether their ratio is a floating-point number: the denominator a power of two."""
    denominator = extent // (math.gcd(span, extent) or 1)
    return denominator & (denominator - 1) == 0


def scale_of(input: Layout, size, align_corners: bool) -> Scale:
    less = 1 if align_corners else 0
    spans = [extent - less for extent in reversed(deep(input.shape[2:]))]  # x first
    extents = [max(extent - less, 1) for extent in reversed(deep(size))]
    ratios = (span / extent for span in spans for extent in extents)
    return Scale(*ratios, *(span / 2 for span in spans), *(2 / extent for extent in extents[:2]))


def rules_of(input: Layout, sampling: Sampling, *tensors: Layout) -> Rules:
    """What every launch of a call has in common. ``tensors``: all that offsets reach into."""
    inner = 1 - len(input.shape)  # all but N, and K
    far = max(
        sum((size - 1) * s for size, s in zip(t.shape[inner:], t.strides[inner:], strict=True))
        for t in tensors
    )
    return Rules(
        ndim=len(input.shape) - 2,
        source=sampling.source,
        mode=sampling.mode,
        padding=sampling.padding_mode,
        dtype=tl_dtype(input.dtype),
        index=tl.int32 if far <= INT32_MAX else tl.int64,
    )
