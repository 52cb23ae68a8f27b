"""Block shapes, warps and channel splits of every kernel, chosen by shape and dtype, never timed.

No choice here has been measured on a GPU yet: each line says what it was reasoned from.
``python -m bench tune`` tries others.
"""

import math
from dataclasses import dataclass

from triton_stn.kernels.arguments import Tiling

WARPS = 4
# A warp covers 4 x 8 pixels: 5 to 9 cache lines a load at any angle, where a 1 x 32 row touches 32
# at 90° (simulated), and 8 floats still fill a 32-byte sector at the store.
PATCH_H, PATCH_W = 16, 8
# What a channels-last program reads of one pixel at a time: a whole line, 8 lanes of 16 bytes.
RUN_BYTES = 128
RUN_PATCH_H, RUN_PATCH_W = 4, 4  # 16 pixels x 8 lanes are the threads of a program
# A list of points is a row or two, of which a warp covers 1 x 32: 4 x 8 leave most threads idle.
FEW_ROWS, ROW_W = 2, 32
# 2 x 4 x 4 voxels a warp: like 4 x 8 pixels, a patch as nearly as wide as it is high.
CUBE = (8, 4, 4)
RUN_CUBE = (2, 2, 4)
# With few channels the tiles of a program share theta's set-up, and in L1 the sectors that two of
# them touch: at a shift by a part of a pixel 8 tiles read 1.2 numbers of X a pixel, 2 tiles 1.55.
# With many a tile's rows of all channels push one another out.
FORWARD_TILES = 8
# With few channels the tiles of a program share one set-up and one reduction of the six sums, which
# take as long as SET_UP tiles (static report). As many programs as run at once, or a few whole
# waves, do all: of 1.3 waves the last would leave most multiprocessors idle. Of a scatter after a
# gather, when most programs are idle, likewise.
BACKWARD_TILES, SET_UP = 64, 2
MULTIPROCESSORS, REGISTERS = 132, 65536  # of an H100 or H200; the registers of one
OUTPUT_REGISTERS = 40  # of a thread of `grad_theta`
REST_REGISTERS = 64  # of `settle`; left alone, the compiler takes 40 for volumes, and spills
FEW_CHANNELS = 4
# A pass has all its loads under way at once, 16 a thread.
FORWARD_PASS = 4
# Channels a pass share the window's weights. With the sums of one theta 8 at once spill registers;
# of several, whose windows every pass makes anew, they fit.
GATHER_PASS, GATHER_PASS_OF_MANY = 4, 8
# Pixels of a thread that gathers few channels of several thetas, which share what every map is
# loaded, moved to pixels and looked at for.
PIXELS_OF_MANY = 2
WIDE_GATHER_PASS = 2  # in float64, whose numbers take two registers
MASKED_GATHER_PASS = 3  # where 4 do not come out even, and masks take registers too
HALF_GATHER_PASS = 2  # of 16-bit images, which spill one or two registers on sm_80 with 3
# Channels of a pixel at a time where they lie in no 16-byte lanes: 64 spill a hundred registers.
UNALIGNED_RUN, LANES = 32, 8
VOLUME_FORWARD_PASS = 3  # eight loads a channel
# Enough programs for every multiprocessor of the largest GPUs (132 to 160) to hold about 16 warps.
ENOUGH_PROGRAMS = 1024
# A split repeats the set-up and the window, which cost as much as 4 to 8 channels: few where they
# are needed to fill half of the multiprocessors, more each beyond that.
MIN_CHANNELS_A_SPLIT, CHANNELS_A_SPLIT = 8, 16
# 80 leave 6 programs a multiprocessor, 24 warps, and spill nothing where there are few channels of
# one theta, and 96 leave 5 and do with several; with two pixels a thread, a pass of many channels,
# or a volume of three channels or of several thetas 128 do, which leave 4.
FEW_REGISTERS, FEW_OF_MANY_REGISTERS, GATHER_REGISTERS = 80, 96, 128
# Before sm_90 some kernel of several thetas spills under 128; they take up to 168.
OLDER_GATHER_REGISTERS = 184
# 0: what the compiler settles on; before sm_90 it settles on 72 for some `grad_theta`, and spills.
SETTLED_REGISTERS, OLDER_SETTLED_REGISTERS = 0, 96
# A run's thread holds four or eight channels of each candidate; under 255 some case spills.
GATHER_RUN_REGISTERS = 255
MAX_GRID = 65535  # of the launch grid's axes y and z


@dataclass(frozen=True)
class Config:
    """How a launch is cut into programs (`tiles.py`)."""

    grid: tuple[int, int, int]
    tiling: Tiling
    splits: int  # programs that share the channels of a tile
    channels_a_split: int
    bands: int  # that a program walks
    tiles: int  # in each of them
    abreast: bool  # a tile's warps lie side by side, not one below the other
    num_warps: int
    maxnreg: int | None = None  # registers a thread, on NVIDIA

    @property
    def tile(self) -> tuple[int, int]:
        """(height, width)"""
        return self.tiling.tile(self.abreast)

    @property
    def next_warp(self) -> tuple[int, int]:
        """(rows, columns) from a warp's pixels to the next one's."""
        return (0, self.tiling.block_w) if self.abreast else (self.tiling.patch_h, 0)

    @property
    def programs(self) -> int:
        """That share the tiles of a canvas."""
        return self.grid[1] * self.grid[2]


@dataclass(frozen=True)
class Problem:
    """What is cut: ``images`` canvases of ``channels`` x ``size`` (D, H, W), D = 1 of images.

    ``run`` is 1, or in channels-last the channels of a line, whose pixels lie at multiples of
    ``align``.
    """

    images: int
    channels: int
    size: tuple[int, int, int]
    run: int = 1
    align: int = 1


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def register_cap(maxnreg: int, arch: int) -> int:
    """Of a plan, on NVIDIA's sm_``arch``; 0 for none."""
    older = {
        FEW_OF_MANY_REGISTERS: OLDER_GATHER_REGISTERS,
        GATHER_REGISTERS: OLDER_GATHER_REGISTERS,
        SETTLED_REGISTERS: OLDER_SETTLED_REGISTERS,
    }
    return older.get(maxnreg, maxnreg) if arch < 90 else maxnreg


def forward(problem: Problem) -> Config:
    """Of the output."""
    tiles = FORWARD_TILES if problem.channels <= FEW_CHANNELS else 1
    return _cut(problem, VOLUME_FORWARD_PASS if problem.size[0] > 1 else FORWARD_PASS, tiles)


def is_large(problem: Problem) -> bool:
    """Whether there are enough programs of `PIXELS_OF_MANY` pixels a thread."""
    pixels = problem.images * math.prod(problem.size)
    return pixels >= ENOUGH_PROGRAMS * PIXELS_OF_MANY * PATCH_H * PATCH_W


def gather(
    problem: Problem, one_theta: bool, itemsize: int, folds: bool = False, apart: bool = False
) -> Config:
    """Of the input.

    ``folds``: under a padding rule whose comparisons take registers too; ``apart``: the gradient of
    several thetas has a launch of its own, which is where most of the time goes.
    """
    few = problem.channels <= FEW_CHANNELS
    a_pass = GATHER_PASS if one_theta or problem.size[0] > 1 else GATHER_PASS_OF_MANY
    if itemsize == 8 and problem.channels >= FEW_CHANNELS:
        a_pass = 1 if one_theta and problem.channels % WIDE_GATHER_PASS else WIDE_GATHER_PASS
    elif itemsize == 2 and one_theta and not few:
        a_pass = HALF_GATHER_PASS
    elif one_theta and problem.channels % GATHER_PASS and not few:
        a_pass = MASKED_GATHER_PASS
    pixels = 1
    if few and not one_theta and not folds and (apart or is_large(problem)):
        pixels = PIXELS_OF_MANY
    maxnreg = GATHER_REGISTERS
    if problem.run > 1 or itemsize == 8:
        maxnreg = GATHER_RUN_REGISTERS
    elif few and one_theta and (problem.size[0] == 1 or problem.channels < 3):
        maxnreg = FEW_REGISTERS
    elif few and pixels == 1 and problem.size[0] == 1:
        maxnreg = FEW_OF_MANY_REGISTERS
    tiles = BACKWARD_TILES if few and one_theta else 1
    return _cut(problem, a_pass, tiles, maxnreg, pixels, maxnreg if tiles > 1 else None)


def output_side(problem: Problem, scatters: bool, rest: bool) -> Config:
    """Of the output; ``rest``: most programs may be idle."""
    few = problem.channels <= FEW_CHANNELS
    maxnreg = None if few or scatters else SETTLED_REGISTERS
    if problem.run == RUN_BYTES // 8:
        maxnreg = GATHER_REGISTERS
    tiles = BACKWARD_TILES if few or rest else 1
    a_pass = FEW_CHANNELS if few else 1
    return _cut(problem, a_pass, tiles, maxnreg, registers=OUTPUT_REGISTERS if tiles > 1 else None)


def spline_gradient(images: int, pixels: int, coefficients: int) -> tuple[tuple, int, int]:
    """(launch grid, pixels and coefficients of a block), of N·K images and T + 3 coefficients."""
    block_t = min(16, next_power_of_2(coefficients))  # 16 accumulators a thread and coordinate
    blocks = cdiv(coefficients, block_t)
    # A chunk of at least 1,024 pixels repays its reduction.
    chunks = min(cdiv(pixels, 1024), cdiv(ENOUGH_PROGRAMS, images * blocks), 64)
    return (images, chunks, blocks), 128, block_t


def reduce(slots: int, columns: int) -> tuple[int, int, int]:
    """(rows, columns, warps) of a block: up to 32 loads a thread are under way at once, 4,096 slots
    of an affine map in eight rounds; of few slots one warp has them all, and needs no barrier."""
    if columns <= 16:
        wide = next_power_of_2(columns)
        return (4096 // wide, wide, WARPS) if slots > 64 else (64, wide, 1)
    block = 128
    while cdiv(columns, block) > MAX_GRID:  # the field of a large volume
        block *= 2
    return max(1024 // block, 1), block, WARPS


def _block(problem: Problem) -> tuple[int, int, int]:
    """(block_d, block_h, block_w)"""
    depth, height, _ = problem.size
    if problem.run > 1:
        # Where runs are not aligned a thread reads one channel, so half the pixels keep it busy; of
        # a whole line in float64, two registers a number, that is as much as fits.
        wide = problem.run == RUN_BYTES // 8 and problem.channels > problem.run // 2
        aligned = problem.align > 1 and not wide
        if depth > 1 and aligned:
            return RUN_CUBE
        return 1, RUN_PATCH_H if aligned else RUN_PATCH_H // 2, RUN_PATCH_W
    if depth > 1:
        return CUBE
    return (1, WARPS, ROW_W) if height <= FEW_ROWS else (1, PATCH_H, PATCH_W)


def _abreast(height: int, width: int, tiling: Tiling) -> bool:
    """Whether the warps of a tile lie side by side: 4 x 32 pixels cover 28 x 28 in 7 tiles, 16 x 8
    in 8. High tiles, of which a walk's next one shares the sectors, unless they are a tenth more.
    """
    high, wide = (
        cdiv(height, tile_h) * cdiv(width, tile_w)
        for tile_h, tile_w in map(tiling.tile, (False, True))
    )
    return 10 * wide <= 9 * high


def _walk(images: int, bands: int, columns: int, most: int, registers: int) -> tuple[int, int]:
    """(bands, tiles in each) that a program walks, for the least time.

    In tiles: waves of programs that run at once, by their registers a thread, times what one does.
    Fewer programs than three quarters of a wave would leave too few warps under way.
    """
    resident = MULTIPROCESSORS * (REGISTERS // (32 * WARPS * registers))

    def time(walk: tuple[int, int]) -> float:
        programs = images * cdiv(bands, walk[0]) * cdiv(columns, walk[1])
        idle = walk != (1, 1) and 4 * programs < 3 * resident
        return math.inf if idle else cdiv(programs, resident) * (walk[0] * walk[1] + SET_UP)

    walks = (
        (b, t)
        for b in range(1, min(most, bands) + 1)
        for t in range(1, min(most // b, columns) + 1)
    )
    return min(walks, key=time)  # the first of equals: along a band rather than across


def _cut(
    problem: Problem,
    most_channels_a_pass: int,
    most_tiles: int,
    maxnreg: int | None = None,
    pixels: int = 1,
    registers: int | None = None,
) -> Config:
    images, channels = problem.images, problem.channels
    depth, height, width = problem.size
    block_d, block_h, block_w = _block(problem)
    while cdiv(depth, block_d) > MAX_GRID:
        block_d *= 2
    while cdiv(depth, block_d) * cdiv(height, block_h) > MAX_GRID:
        block_h *= 2
    in_lanes = problem.align == problem.run // LANES
    run = problem.run if in_lanes else min(problem.run, UNALIGNED_RUN)
    block_c = min(next_power_of_2(channels), run)
    channels_a_pass = 1 if problem.run > 1 else min(channels, most_channels_a_pass)
    step = channels_a_pass * block_c
    if (block_d, block_h, block_w) == (1, PATCH_H, PATCH_W):
        block_h *= pixels
    tiling = Tiling(
        block_d=block_d,
        block_h=block_h,
        block_w=block_w,
        block_c=block_c,
        channels_a_pass=channels_a_pass,
        one_pass=channels == step,
        mask_channels=channels % step != 0,
        align=problem.align,
    )
    abreast = tiling.patches and _abreast(height, width, tiling)
    tile_h, tile_w = tiling.tile(abreast)
    columns = cdiv(width, tile_w)
    bands = cdiv(depth, block_d) * cdiv(height, tile_h)
    if registers:
        bands_each, tiles = _walk(images, bands, columns, most_tiles, registers)
    else:
        # Tiles are shared by fewer programs as long as enough of them remain.
        bands_each, tiles = 1, max(1, min(most_tiles, images * columns * bands // ENOUGH_PROGRAMS))
    walkers = min(cdiv(columns, tiles), MAX_GRID)
    bands = cdiv(bands, bands_each)
    programs = images * bands * walkers
    splits = 1
    while programs * splits < ENOUGH_PROGRAMS:
        filled = programs * splits >= ENOUGH_PROGRAMS // 2
        least = max(step, CHANNELS_A_SPLIT if filled else MIN_CHANNELS_A_SPLIT)
        if 2 * splits * least > channels:
            break
        splits *= 2
    a_split = cdiv(cdiv(channels, splits), step) * step
    splits = cdiv(channels, a_split)
    return Config(
        grid=(images * splits, walkers, bands),
        tiling=tiling,
        splits=splits,
        channels_a_split=a_split,
        bands=bands_each,
        tiles=cdiv(columns, walkers),
        abreast=abreast,
        num_warps=WARPS,
        maxnreg=maxnreg,
    )
