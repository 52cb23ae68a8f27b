"""The addresses that warps touch: L1 lines, L1 cycles and L2 sectors of a pass.

Counted with the true source coordinates of a random sample of programs (thread blocks), each at a
random place, image and channel, in NCHW: for our kernels, whose warps lie over 4 x 8 pixels, and
for PyTorch's, whose thread owns an output pixel of the flattened (N, H_out, W_out), so that a
warp lies over a row. Both loop over channels inside a thread.

L1 is taken to keep what one program reads of one channel, and nothing between programs; stores
and atomics go to L2 warp by warp. Zeros padding, bilinear, align_corners=False.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from bench.model.launches import sums_apart
from bench.suite.cases import Case, theta_of
from triton_stn.kernels import configs
from triton_stn.kernels.gather.inverse import MOST_CANDIDATES

LINE, SECTOR, WARP = 128, 32, 32  # bytes, bytes, threads
SIZE = 4  # bytes of a float32
SAMPLE = 256  # programs; two samples differ by a few percent
EAGER_THREADS = 256  # a block of PyTorch's aten/src/ATen/native/cuda/GridSampler.cu
# How far the general windows are widened: `inverse_map` in kernels/gather/inverse.py.
SLACK = 1 / 64
EXACT = ("UPRIGHT", "ON_SIDE")  # windows of maps that are not widened


class Touched(NamedTuple):
    """Sums over all warps of a pass. Parts of it are arrays in this order."""

    lines: float  # 128-byte lines, over loads, stores and atomics
    cycles: float  # of one L1, which looks up a few lines a cycle and one access at a time
    sectors: float  # 32 bytes, between L1 and L2


@dataclass(frozen=True)
class Programs:
    """A sample: place (i, j) of each thread, [programs, threads]; image and channel broadcast."""

    image: np.ndarray
    channel: np.ndarray
    i: np.ndarray
    j: np.ndarray
    inside: np.ndarray  # the thread has a pixel of the canvas
    weight: float  # programs x channels of the pass that one program of the sample stands for

    def address(self, image: np.ndarray, i: np.ndarray, j: np.ndarray, case: tuple, on) -> list:
        """Element addresses in (images, C, H, W), -1 outside, and where ``on`` is false."""
        c, h, w = case
        on = on & (i >= 0) & (i < h) & (j >= 0) & (j < w)
        return np.where(on, ((image * c + self.channel) * h + i) * w + j, -1).astype(np.int64)

    def own(self, case: tuple) -> np.ndarray:
        """``address`` of the threads' own pixels."""
        return self.address(self.image, self.i, self.j, case, self.inside)


def ours(case: Case, theta_kind: str, pass_name: str, tags: int) -> Touched:
    """What triton_stn's forward or backward(both) touches; ``tags``: lines looked up a cycle.

    Raises:
        ValueError: θ takes the wide window, whose threads share pixels.
    """
    maps = pixel_maps(case, theta_kind)
    source, target = (case.c, case.h, case.w), (case.c, case.h_out, case.w_out)
    if pass_name == "forward":
        at = _tiles(configs.forward(output_problem(case)), case.n * case.k, *target)
        reads = _taps(at, maps[at.image % case.k], at.image // case.k, source, target, True)
        return Touched(*(_loads(reads, tags) + _writes([at.own(target)], tags)) * at.weight)
    at, k = _gather_tiles(case)
    reads = _candidates(at, maps[k], at.image * case.k + k, window(maps[0]), target)
    touched = _loads(reads, tags) * case.k + _writes([at.own(source)], tags)
    if from_input(case, theta_kind):
        here = np.where(_seen(at, maps[k], case)[1], at.own(source), -1)
        return Touched(*(touched + _loads([here], tags)) * at.weight)
    cut = configs.output_side(output_problem(case), scatters=False, rest=False)
    out = _tiles(cut, case.n * case.k, *target)
    taps = _taps(out, maps[out.image % case.k], out.image // case.k, source, target, False)
    of_theta = _loads(taps, tags) + _loads([out.own(target)], tags)
    return Touched(*touched * at.weight + of_theta * out.weight)


def from_input(case: Case, theta_kind: str) -> bool:
    """Whether the gather makes grad_theta, too; else it comes from the output's side."""
    return case.k == 1 and window(pixel_maps(case, theta_kind)[0]) in (*EXACT, "STRAIGHT")


def output_problem(case: Case) -> configs.Problem:
    return configs.Problem(case.n * case.k, case.c, (1, case.h_out, case.w_out))


def met(case: Case, theta_kind: str) -> tuple[float, float]:
    """The share of (tile, map) that the gather does not pass over, as out of view.

    And the share that it looks at twice, for the boxes around the tile and the image meet.
    """
    at, k = _gather_tiles(case)
    near, met = _seen(at, pixel_maps(case, theta_kind)[k], case)
    return float(met.mean()), float(near.mean())


def eager(case: Case, theta_kind: str, pass_name: str, tags: int, streamed: float = 0.0) -> Touched:
    """What PyTorch's sampling kernel touches, its grid included, but not the grid's making.

    K maps of an image are K copies of it, as one grid an image demands. Besides, other kernels move
    ``streamed`` bytes in order, every thread the next number.
    """
    maps = pixel_maps(case, theta_kind)
    source, target = (case.c, case.h, case.w), (case.c, case.h_out, case.w_out)
    at = _rows(case.n * case.k, *target)
    taps = _taps(at, maps[at.image % case.k], at.image, source, target, False)
    here = [at.own(target)]
    pixel = np.where(at.inside, (at.image * case.h_out + at.i) * case.w_out + at.j, -1)
    grid = [np.where(at.inside, 2 * pixel + xy, -1) for xy in (0, 1)]
    channels, once = _loads(taps, tags), _loads(grid, tags)
    if pass_name == "forward":
        channels = channels + _writes(here, tags)
    else:
        channels = channels + _loads(here, tags) + _writes(taps, tags)  # the last: atomics
        once = once + _writes(grid, tags)
    beside = streamed / np.array([LINE, LINE, SECTOR])
    return Touched(*(channels + once * (1 / case.c)) * at.weight + beside)


def pixel_maps(case: Case, theta_kind: str) -> np.ndarray:
    """(K, 6): a00, a01, b0, a10, a11, b1 from centred output pixels to input pixels."""
    theta = theta_of(theta_kind, case.k).double().numpy()
    scale = [[case.w / case.w_out, case.w / case.h_out, case.w / 2],
             [case.h / case.w_out, case.h / case.h_out, case.h / 2]]  # fmt: skip
    maps = theta * scale
    maps[:, :, 2] += [(case.w - 1) / 2, (case.h - 1) / 2]
    return maps.reshape(-1, 6)


def reach(map: np.ndarray, slack: float) -> tuple[float, float]:
    """Half the window of candidates along j and i, in output pixels, widened by ``slack``."""
    a00, a01, _, a10, a11, _ = (float(x) for x in map)
    det = a00 * a11 - a01 * a10
    if det == 0:
        return np.inf, np.inf
    half = (abs(a11) + abs(a01)) / abs(det), (abs(a10) + abs(a00)) / abs(det)
    return half[0] * (1 + slack) + slack, half[1] * (1 + slack) + slack


def window(map: np.ndarray) -> str:
    """The gathering window that a map takes: `window_kind` in kernels/gather/inverse.py."""
    a00, a01, _, a10, a11, _ = (abs(float(x)) for x in map)
    if a01 == a10 == 0 and min(a00, a11) >= 1:
        return "UPRIGHT"
    if a00 == a11 == 0 and min(a01, a10) >= 1:
        return "ON_SIDE"
    j, i = reach(map, SLACK)
    if max(j, i) <= 1.5:
        return "THREE"
    if (2 * j + 1) * (2 * i + 1) > MOST_CANDIDATES.value:
        return "WIDE"
    return "STRAIGHT" if a01 == a10 == 0 else "WALK"


def walked(map: np.ndarray) -> tuple[int, int]:
    """Rows, and candidates in each, that a thread looks at in the window of kind WALK."""
    j, i = reach(map, SLACK)
    return int(2 * i + 1), int(2 * j + 1)


def _loads(accesses: list[np.ndarray], tags: int) -> np.ndarray:
    """What loads of one tensor, one array an instruction, touch on average, a program and channel.

    What a program read once stays in L1.
    """
    return _touched(accesses, distinct(np.concatenate(accesses, 1) // (SECTOR // SIZE)), tags)


def _writes(accesses: list[np.ndarray], tags: int) -> np.ndarray:
    """Likewise stores or atomics."""
    return _touched(accesses, distinct(_by_warp(accesses) // (SECTOR // SIZE)), tags)


def _touched(accesses: list[np.ndarray], sectors: np.ndarray, tags: int) -> np.ndarray:
    lines = distinct(_by_warp(accesses) // (LINE // SIZE))
    sums = [lines.sum(), np.ceil(lines / tags).sum(), sectors.sum()]
    return np.array(sums) / len(accesses[0])


def _by_warp(accesses: list[np.ndarray]) -> np.ndarray:
    """[accesses, programs, warps, 32]"""
    return np.stack([a.reshape(len(a), -1, WARP) for a in accesses])


def distinct(numbers: np.ndarray) -> np.ndarray:
    """How many different numbers ≥ 0 the last axis holds."""
    ordered = np.sort(np.maximum(numbers, -1), -1)
    return (np.diff(ordered, axis=-1, prepend=-1) != 0).sum(-1)


def _tiles(config: configs.Config, images: int, c: int, height: int, width: int) -> Programs:
    """Tiles of our kernels, wherever the launch grid has one."""
    random = np.random.default_rng(0)
    (tile_h, tile_w), (down, right), tiling = config.tile, config.next_warp, config.tiling
    columns, rows = config.grid[1] * config.tiles, config.grid[2] * config.bands
    image, channel, column, row = (
        random.integers(n, size=(SAMPLE, 1)) for n in (images, c, columns, rows)
    )
    warp, lane = np.divmod(np.arange(tiling.pixels), WARP)
    i = row * tile_h + warp * down + lane // tiling.block_w
    j = column * tile_w + warp * right + lane % tiling.block_w
    weight = images * c * columns * rows
    return Programs(image, channel, i, j, (i < height) & (j < width), weight)


def _gather_tiles(case: Case) -> tuple[Programs, np.ndarray]:
    """Tiles of the gather, and one of the K maps for each."""
    source = case.c, case.h, case.w
    problem = configs.Problem(case.n, case.c, (1, case.h, case.w))
    at = _tiles(configs.gather(problem, case.k == 1, 4, apart=sums_apart(case)), case.n, *source)
    return at, np.random.default_rng(1).integers(case.k, size=at.image.shape)


def _seen(at: Programs, map: np.ndarray, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Which tiles a map's image of the output meets, by the tests in kernels/gather/inverse.py.

    By the boxes around them, and by all tests. All tiles where the gather does not ask: for one map
    without rotation.
    """
    kind = window(map.reshape(-1, 6)[0])  # the K maps differ by translation alone
    if case.k == 1 and kind in EXACT:
        return (np.ones(at.image.shape, bool),) * 2
    a00, a01, b0, a10, a11, b1 = np.moveaxis(map, -1, 0)
    j, i = (case.w_out - 1) / 2, (case.h_out - 1) / 2
    du, half_w = _middle(at.j, b0)
    dv, half_h = _middle(at.i, b1)
    slack = 1 + SLACK
    near = np.abs(du) <= half_w + slack * (1 + np.abs(a00) * j + np.abs(a01) * i)
    near &= np.abs(dv) <= half_h + slack * (1 + np.abs(a10) * j + np.abs(a11) * i)
    if kind in EXACT:
        return near, near
    x, y, det = half_w + slack, half_h + slack, slack * np.abs(a00 * a11 - a01 * a10)
    met = near & (np.abs(a00 * dv - a10 * du) <= y * np.abs(a00) + x * np.abs(a10) + det * i)
    met &= np.abs(a01 * dv - a11 * du) <= y * np.abs(a01) + x * np.abs(a11) + det * j
    return near, met


def _middle(offsets: np.ndarray, origin: np.ndarray) -> tuple[np.ndarray, float]:
    """The middle of each program's offsets, from the origin, and half their extent."""
    first, last = (f(1, keepdims=True) for f in (offsets.min, offsets.max))
    return (first + last) / 2 - origin, float((last - first)[0, 0]) / 2


def _rows(images: int, c: int, height: int, width: int) -> Programs:
    """Blocks of PyTorch's kernel, with one thread a pixel of (images, height, width), flattened."""
    random = np.random.default_rng(0)
    pixels = images * height * width
    blocks = -(-pixels // EAGER_THREADS)
    pixel = random.integers(blocks, size=(SAMPLE, 1)) * EAGER_THREADS + np.arange(EAGER_THREADS)
    channel = random.integers(c, size=(SAMPLE, 1))
    i, j = pixel // width % height, pixel % width
    return Programs(pixel // (height * width), channel, i, j, pixel < pixels, blocks * c)


def _source(map: np.ndarray, i: np.ndarray, j: np.ndarray, target: tuple) -> tuple:
    """Source coordinates x, y in pixels of output pixels (i, j)."""
    a00, a01, b0, a10, a11, b1 = np.moveaxis(map, -1, 0)
    i, j = i - (target[1] - 1) / 2, j - (target[2] - 1) / 2
    return a00 * j + (a01 * i + b0), a10 * j + (a11 * i + b1)


def _taps(
    at: Programs, map: np.ndarray, image: np.ndarray, source: tuple, target: tuple, sparing: bool
) -> list[np.ndarray]:
    """The four taps of each output pixel; ``sparing`` skips those of zero weight."""
    x, y = _source(map, at.i, at.j, target)
    u, v = np.floor(x), np.floor(y)
    found = []
    for dv, du in product((0, 1), (0, 1)):
        on = at.inside
        if sparing:
            on = on & ((du == 0) | (x > u)) & ((dv == 0) | (y > v))
        found.append(at.address(image, v + dv, u + du, source, on))
    return found


def _candidates(
    at: Programs, map: np.ndarray, image: np.ndarray, kind: str, target: tuple
) -> list[np.ndarray]:
    """The output pixels in the cell of each input pixel, a list entry a place in the window."""
    if kind == "WIDE":
        raise ValueError("the wide window is shared by the threads of a program: not modelled")
    _, h_out, w_out = target
    a00, a01, b0, a10, a11, b1 = np.moveaxis(map, -1, 0)
    det = a00 * a11 - a01 * a10
    dx, dy = at.j - b0, at.i - b1
    slack = 0.0 if kind in (*EXACT, "STRAIGHT") else SLACK
    reach_j, reach_i = reach(map.reshape(-1, 6)[0], slack)  # the maps differ by translation alone
    first_j = np.ceil((a11 * dx - a01 * dy) / det + (w_out - 1) / 2 - reach_j)
    first_i = np.ceil((a00 * dy - a10 * dx) / det + (h_out - 1) / 2 - reach_i)
    found = []
    for di, dj in product(range(int(2 * reach_i) + 1), range(int(2 * reach_j) + 1)):
        i, j = first_i + di, first_j + dj
        x, y = _source(map, i, j, target)
        on = at.inside & (x - at.j >= -1) & (x - at.j < 1) & (y - at.i >= -1) & (y - at.i < 1)
        found.append(at.address(image, i, j, target, on))
    return found
