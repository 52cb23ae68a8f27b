"""Where the warps of ``python -m bench probe`` go, and what one access of theirs touches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.model.addresses import LINE, SECTOR, SIZE, WARP, distinct

BANKS = 32  # words of an L1 that are delivered side by side, were it banked as shared memory is
# 2^16 over the golden ratio: the places of programs and steps that follow each other lie far
# apart; odd, so that every position, and with it every place in a line, is visited.
STRIDE = 40503


@dataclass(frozen=True, eq=False)
class Walk:
    """The accesses of a launch: a program is one warp, its threads keep their distances.

    In its step s, program p stands at position (p + s · programs) · ``STRIDE`` modulo
    ``positions``, ``unit`` elements each. There its warp touches ``places``, one after the other;
    thread t does so ``offsets``[p, t] elements further on.
    """

    offsets: np.ndarray  # [programs, 32]
    places: tuple[int, ...]
    positions: int  # a power of two
    unit: int

    def __post_init__(self) -> None:
        if self.positions & (self.positions - 1) or self.positions < 1:
            raise ValueError(f"positions: a power of two expected, {self.positions} given")
        if self.numel >= 2**31:
            raise ValueError("the kernels count elements in 32 bits")

    @property
    def numel(self) -> int:
        """Elements that the buffer must have."""
        return int(self.offsets.max() + (self.positions - 1) * self.unit + max(self.places) + 1)

    def addresses(self, steps: int, programs: int | None = None) -> np.ndarray:
        """[programs, steps, places, 32]: what the first ``programs`` of all touch, in elements."""
        p, s = np.ogrid[: programs or len(self.offsets), :steps]
        position = ((p + s * len(self.offsets)) * STRIDE) & (self.positions - 1)
        starts = position[:, :, None] * self.unit + np.array(self.places)
        return starts[..., None] + self.offsets[:programs, None, None]


@dataclass(frozen=True)
class Touched:
    """The mean over the accesses of a warp."""

    lines: float  # of 128 bytes
    sectors: float  # of 32 bytes
    banks: float  # different words in the fullest of 32 banks


def touched(walk: Walk) -> Touched:
    """Counted over a sample: 4,096 accesses of 256 programs, whose mean is off by 1% or so."""
    places = np.sort(walk.addresses(1, min(256, len(walk.offsets))), -1)
    first = np.diff(places, axis=-1, prepend=-1) != 0  # threads at one address are one word
    fullest = np.max([((places % BANKS == b) & first).sum(-1) for b in range(BANKS)], 0)
    lines, sectors = (distinct(places // (n // SIZE)).mean() for n in (LINE, SECTOR))
    return Touched(float(lines), float(sectors), float(fullest.mean()))


def patch(rows: int, columns: int, degrees: float, pitch: int, programs: int) -> np.ndarray:
    """Offsets of warps of rows x columns pixels, turned, in an image of ``pitch`` elements a row.

    Each program's patch lies at a place of its own, in fractions of a pixel and in a line.
    """
    random = np.random.default_rng(0)
    fraction_x, fraction_y = random.uniform(size=(2, programs, 1))
    column = random.integers(LINE // SIZE, size=(programs, 1))
    # The rounding makes a quarter turn exact, as in `bench.suite.cases.theta_of`.
    cos, sin = np.round([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], 15)
    i, j = np.arange(WARP) // columns, np.arange(WARP) % columns
    x = np.floor(cos * j - sin * i + fraction_x).astype(np.int64)
    y = np.floor(sin * j + cos * i + fraction_y).astype(np.int64)
    x, y = x - x.min(1, keepdims=True), y - y.min(1, keepdims=True)
    return y * pitch + x + column
