"""A program's share of a launch: its map, its channels, the tiles that it walks, their pixels.

Every launch that samples, gathers or scatters has the grid

    (N·K·splits, programs that walk along W, programs that walk down the bands)

splits fastest. A band is a row of tiles; in volumes bands go down a slice of tiles, then on to the
next slice. A program walks ``WORK.tiles`` tiles of a band to the right, so that a sector that two
tiles touch, as at any shift by a part of a pixel, comes from L2 once; a backward of few channels
does so in ``WORK.bands`` bands.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from triton_stn.kernels.arguments import Image


class Share(NamedTuple):
    """Which map of which image, and which of its channels."""

    n: object
    k: object
    split: object
    first: object  # channel
    count: object  # of channels


class Tile(NamedTuple):
    """The pixels of a tile, [pixels, 1] each, and its channels, [1, block_c]."""

    slices: object
    rows: object
    columns: object
    channels: object
    mask: object  # which are pixels
    first_slice: object
    first_row: object
    first_column: object


class Spot(NamedTuple):
    """The output pixels of a tile and their centred coordinates (half-integers, exact)."""

    slices: object
    rows: object
    columns: object
    mask: object
    j: object
    i: object
    k: object


@triton.jit
def share(WORK, RULES: tl.constexpr, TILING: tl.constexpr):
    """The share of this program. Where a pass takes all channels there are no splits."""
    ALIGN: tl.constexpr = TILING.align
    program = tl.program_id(0)
    if TILING.one_pass:
        nk = program
        split = 0
        first = tl.zeros([], tl.int64)
        count = WORK.channels
    else:
        nk = program // WORK.splits
        split = program - nk * WORK.splits
        begin = split * WORK.channels_a_split
        first = tl.multiple_of(begin, ALIGN).to(tl.int64)
        count = tl.minimum(WORK.channels - begin, WORK.channels_a_split)
        count = tl.multiple_of(count, ALIGN)
    if RULES.several:
        n = nk // WORK.maps
        k = nk - n * WORK.maps
    else:
        n = nk
        k = tl.zeros([], tl.int32)
    return Share(n, k, split, first, count)


@triton.jit
def program_of_image():
    """Which of the programs that share an image's tiles this is."""
    return tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)


@triton.jit
def slot(program, part, WORK):
    """Where the partial sums of a map's ``program``-th program go, among those of the map."""
    return WORK.first_slot + program * WORK.splits + part.split


@triton.jit
def moved(IMAGE, ptr):
    """The same tensor, with its pointer elsewhere."""
    return Image(
        ptr,
        IMAGE.stride_n,
        IMAGE.stride_k,
        IMAGE.stride_c,
        IMAGE.stride_d,
        IMAGE.stride_h,
        IMAGE.stride_w,
    )


@triton.jit
def of_share(IMAGE, part):
    """A tensor from a share's first channel on."""
    ptr = IMAGE.ptr + part.n.to(tl.int64) * IMAGE.stride_n + part.k * IMAGE.stride_k
    return moved(IMAGE, ptr + part.first * IMAGE.stride_c)


@triton.jit
def of_tile(IMAGE, at, RULES: tl.constexpr):
    """A share's tensor, with pointers to the pixels and channels of a tile."""
    offs = tile_offsets(at, IMAGE, RULES) + at.channels * IMAGE.stride_c
    return moved(IMAGE, IMAGE.ptr + offs)


@triton.jit
def tile(t, SIZE, WORK, RULES: tl.constexpr, TILING: tl.constexpr):
    """The t-th tile that this program walks in its only band, of the extents of SIZE."""
    column = tl.program_id(1) * WORK.tiles + t
    return tile_at(tl.program_id(2), column, SIZE, WORK, RULES, TILING)


@triton.jit
def tile_of_band(b, t, SIZE, WORK, RULES: tl.constexpr, TILING: tl.constexpr):
    """The t-th tile that this program walks in the b-th of its bands."""
    band, column = first_tile(WORK.bands, WORK.tiles)
    return tile_at(band + b, column + t, SIZE, WORK, RULES, TILING)


@triton.jit
def first_tile(bands, tiles):
    """(band, column) of the first tile of this program, which walks so many in so many bands."""
    column = tl.program_id(1) * tiles
    return tl.program_id(2) * bands, column


@triton.jit
def tile_at(band, column, SIZE, WORK, RULES: tl.constexpr, TILING: tl.constexpr):
    """A tile by its band and its column of tiles.

    The pixels are one axis, so that no version of the compiler lays the threads out otherwise. In
    channels-last, threads lie along the channels first.
    """
    height, width = tile_extent(WORK, TILING)
    first_column = column * width
    pixels = tl.arange(0, TILING.pixels)[:, None]
    channels = tl.arange(0, TILING.block_c)[None, :]
    row, column = in_tile(pixels, WORK, RULES, TILING)
    columns = first_column + column
    if RULES.ndim == 2:
        first_slice = 0
        first_row = band * height
        slices = 0
        rows = first_row + row
        mask = (rows < SIZE.height) & (columns < SIZE.width)
    else:
        bands = tl.cdiv(SIZE.height, height)
        first_slice = band // bands * TILING.block_d
        first_row = band % bands * height
        slices = first_slice + pixels // (TILING.block_h * TILING.block_w)
        rows = first_row + row
        mask = (slices < SIZE.depth) & (rows < SIZE.height) & (columns < SIZE.width)
    return Tile(slices, rows, columns, channels, mask, first_slice, first_row, first_column)


@triton.jit
def tile_extent(WORK, TILING: tl.constexpr):
    """(height, width) of a tile."""
    if TILING.patches:
        height = WORK.tile_h
        width = WORK.tile_w
    else:
        height = TILING.block_h
        width = TILING.block_w
    return height, width


@triton.jit
def in_tile(pixel, WORK, RULES: tl.constexpr, TILING: tl.constexpr):
    """(row, column) of a pixel of a tile, by its number.

    Of an image in NCHW a warp's 32 threads lie over 32 / block_w rows of block_w pixels, a patch,
    and those of the warps one below the other or side by side, as fits the image.
    """
    row = pixel // TILING.block_w
    column = pixel % TILING.block_w
    if TILING.patches:
        warp = pixel // (TILING.patch_h * TILING.block_w)
        row = row % TILING.patch_h + warp * WORK.down
        column += warp * WORK.right
    elif RULES.ndim == 3:
        row = row % TILING.block_h
    return row, column


@triton.jit
def output_spot(at, CANVAS, RULES: tl.constexpr):
    """The output pixels of a tile."""
    j = at.columns.to(RULES.dtype) - CANVAS.centre_w
    i = at.rows.to(RULES.dtype) - CANVAS.centre_h
    if RULES.ndim == 2:
        k = 0.0
    else:
        k = at.slices.to(RULES.dtype) - CANVAS.centre_d
    return Spot(at.slices, at.rows, at.columns, at.mask, j, i, k)


@triton.jit
def tile_offsets(at, IMAGE, RULES: tl.constexpr):
    """Offsets of a tile's pixels in one plane."""
    offs = at.rows.to(RULES.index) * IMAGE.stride_h + at.columns.to(RULES.index) * IMAGE.stride_w
    if RULES.ndim == 3:
        offs += at.slices.to(RULES.index) * IMAGE.stride_d
    return offs


@triton.jit
def some(channels, left, MASK: tl.constexpr):
    """Which channels of a tile there are, with so many left."""
    return channels < left if MASK else True
