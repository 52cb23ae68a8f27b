"""Block shapes, warps and channel splits of every kernel, chosen by shape and dtype, never timed.

No choice here has been measured on a GPU yet: each line says what it was reasoned from.
``python -m bench tune`` tries others.
"""

from dataclasses import dataclass

WARPS = 4
# A warp covers 4 x 8 pixels: 5 to 9 cache lines a load at any angle, where a 1 x 32 row touches 32
# at 90° (simulated), and 8 floats still fill a 32-byte sector at the store.
PATCH_H, PATCH_W = 16, 8
# What a channels-last program reads of one pixel at a time: a whole line, 8 lanes of 16 bytes.
RUN_BYTES = 128
RUN_PATCH_H, RUN_PATCH_W = 4, 4  # 16 pixels x 8 lanes are the threads of a program
# With few channels the set-up is the kernel: several tiles a program share theta's part of it.
FORWARD_TILES_TO_2, FORWARD_TILES_TO_4 = 4, 2  # with 1 and 2 channels, with 3 and 4
# With few channels several tiles a program share one set-up and one reduction of the six sums, 250
# instructions.
GATHER_TILES = 32
# Of the scatter with few channels, or after a gather, when most programs are idle, likewise.
SCATTER_TILES = 32
FEW_CHANNELS = 4
# A pass has all its loads under way at once, 16 a thread.
FORWARD_PASS = 4
# Channels a pass share the window's weights. With the sums of one theta 8 at once spill registers;
# of several, whose windows every pass makes anew, they fit.
GATHER_PASS, GATHER_PASS_OF_MANY = 4, 8
# Of volumes: channels whose eight loads are under way at once, and that share a window's weights.
VOLUME_FORWARD_PASS, VOLUME_GATHER_PASS = 3, 4
# Enough programs for every multiprocessor of the largest GPUs (132 to 160) to hold about 16 warps.
ENOUGH_PROGRAMS = 1024
# A split repeats the set-up, which costs as much as about 4 channels.
MIN_CHANNELS_A_SPLIT = 8
# Left alone, ptxas settles on 96 registers and spills one or two; 168 still leaves 3 programs a
# multiprocessor, as 136 would, and spills none (static report).
GATHER_REGISTERS = 168
# A run's thread holds four or eight channels of each candidate; under 255 some case spills.
GATHER_RUN_REGISTERS = 255
MAX_GRID = 65535  # of the launch grid's axes y and z


@dataclass(frozen=True)
class Config:
    """How a kernel is cut into programs. ``constants`` are its constexpr arguments."""

    grid: tuple[int, int, int]
    constants: dict[str, int]
    slots: int  # partial sums a theta


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def forward(images: int, channels: int, height: int, width: int, run: int) -> Config:
    """``images`` is N·K and the canvas is the output's; ``run`` is 1, or in channels-last the
    channels of a line."""
    tiles = FORWARD_TILES_TO_2 if channels <= 2 else FORWARD_TILES_TO_4 if channels <= 4 else 1
    channels_a_pass = 1 if run > 1 else min(channels, FORWARD_PASS)
    config = _cut(images, channels, height, width, run, tiles, channels_a_pass)
    step = channels_a_pass * config.constants["BLOCK_C"]
    config.constants.update(PASS=channels_a_pass, ONE_PASS=channels == step)
    return config


def gather(
    images: int, channels: int, height: int, width: int, run: int, one_theta: bool
) -> Config:
    """``images`` is N and the canvas is the input's."""
    most = GATHER_PASS if one_theta else GATHER_PASS_OF_MANY
    channels_a_pass = 1 if run > 1 else min(channels, most)
    tiles = GATHER_TILES if one_theta and channels <= FEW_CHANNELS else 1
    config = _cut(images, channels, height, width, run, tiles, channels_a_pass)
    step = channels_a_pass * config.constants["BLOCK_C"]
    config.constants.update(PASS=channels_a_pass, ONE_PASS=channels == step, ONE_THETA=one_theta)
    return config


def scatter(
    images: int, channels: int, height: int, width: int, run: int, rest: bool = False
) -> Config:
    """``images`` is N·K and the canvas is the output's; ``rest``: most programs may be idle."""
    few = channels <= FEW_CHANNELS
    tiles = SCATTER_TILES if rest or few else 1
    config = _cut(images, channels, height, width, run, tiles, 1)
    config.constants.update(FEW=channels if few and run == 1 else 0)
    return config


def spline_gradient(images: int, pixels: int, coefficients: int) -> Config:
    """``images`` is N·K, ``coefficients`` T + 3."""
    block_t = min(16, next_power_of_2(coefficients))  # 16 accumulators a thread and coordinate
    blocks = cdiv(coefficients, block_t)
    # A chunk of at least 1,024 pixels repays its reduction.
    chunks = min(cdiv(pixels, 1024), cdiv(ENOUGH_PROGRAMS, images * blocks), 64)
    return Config(
        grid=(images, chunks, blocks),
        constants=dict(CHUNKS=chunks, BLOCK_P=128, BLOCK_T=block_t),
        slots=chunks,
    )


def volume(
    images: int, channels: int, size: tuple[int, int, int], run: int, most_channels_a_pass: int
) -> Config:
    """``images`` is N·K and ``size`` (D, H, W) the output's; of the gather, N and the input's."""
    d, h, w = size
    if run > 1:
        aligned = channels % (run // 8) == 0
        block_d, block_h, block_w = 1 if d == 1 or not aligned else 2, 2, 4
        block_c = min(next_power_of_2(channels), run)
    else:
        # 2 x 4 x 4 voxels a warp: like 4 x 8 pixels, a patch as nearly as wide as it is high.
        block_d = min(8, next_power_of_2(d))
        block_w = 8 if d == 1 else 4
        block_h, block_c = PATCH_H * PATCH_W // (block_d * block_w), 1
    channels_a_pass = 1 if run > 1 else min(channels, most_channels_a_pass)
    step = channels_a_pass * block_c
    tiles = cdiv(d, block_d) * cdiv(h, block_h) * cdiv(w, block_w)
    least = max(step, MIN_CHANNELS_A_SPLIT)
    splits = 1
    while 2 * splits * least <= channels and images * tiles * splits < ENOUGH_PROGRAMS:
        splits *= 2
    return Config(
        grid=(images * tiles * splits, 1, 1),
        constants=dict(
            BLOCK_D=block_d,
            BLOCK_H=block_h,
            BLOCK_W=block_w,
            BLOCK_C=block_c,
            SPLITS=splits,
            PASS=channels_a_pass,
            MASK_CHANNELS=channels % (splits * step) != 0,
        ),
        slots=tiles * splits,
    )


def volume_registers(channels: int, itemsize: int, needs_theta: bool) -> int | None:
    """The register cap of the gather on volumes, where ptxas spills one or two if left alone."""
    if itemsize == 8:
        return GATHER_RUN_REGISTERS  # it settles on 168
    return 64 if channels == 1 and not needs_theta else None  # it settles on 48, on sm_80


def walk(config: Config, images: int) -> Config:
    """The same tiles for fewer programs, which share the set-up and one reduction of the sums."""
    splits = config.constants["SPLITS"]
    tiles = config.slots // splits
    walkers = min(tiles, cdiv(4 * ENOUGH_PROGRAMS, images * splits))
    return Config((images * walkers * splits, 1, 1), config.constants, walkers * splits)


def _cut(
    images: int,
    channels: int,
    height: int,
    width: int,
    run: int,
    tiles: int,
    channels_a_pass: int,
) -> Config:
    if run > 1:
        # Where runs are not aligned a thread reads one channel, so half the pixels keep it busy.
        aligned = channels % (run // 8) == 0
        block_h, block_w = RUN_PATCH_H if aligned else RUN_PATCH_H // 2, RUN_PATCH_W
        block_c = min(next_power_of_2(channels), run)
    else:
        block_h = min(PATCH_H, next_power_of_2(height))  # a list of points is one row
        block_w, block_c = PATCH_H * PATCH_W // block_h, 1
    while cdiv(width, block_w) > MAX_GRID:
        block_w *= 2
    while cdiv(height, block_h) > MAX_GRID:
        block_h *= 2
    columns = cdiv(width, block_w)
    while tiles > 1 and (
        block_h * tiles >= 2 * height
        or images * columns * cdiv(height, block_h * tiles) < ENOUGH_PROGRAMS
    ):
        tiles //= 2
    rows = cdiv(height, block_h * tiles)
    step = channels_a_pass * block_c
    least = max(step, MIN_CHANNELS_A_SPLIT)
    splits = 1
    while 2 * splits * least <= channels and images * columns * rows * splits < ENOUGH_PROGRAMS:
        splits *= 2
    return Config(
        grid=(images * splits, columns, rows),
        constants=dict(
            BLOCK_H=block_h,
            BLOCK_W=block_w,
            BLOCK_C=block_c,
            SPLITS=splits,
            TILES=tiles,
            MASK_CHANNELS=channels % (splits * step) != 0,
        ),
        slots=columns * rows * splits,
    )
