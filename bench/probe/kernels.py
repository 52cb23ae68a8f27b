"""What ``python -m bench probe`` runs: a `Walk` of loads, one of atomic adds, and a clock.

A program is one warp, of which thread t takes the t-th offset: the footprint is the host's choice,
not the compiler's. The position is computed anew every step, so that no load can leave the loop;
the places of a step are compile-time constants, so that an access is one instruction with an
immediate offset, next to one addition of what was loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import globaltimer

from bench.model.addresses import LINE, SECTOR, SIZE, WARP, distinct

BANKS = 32  # words of an L1 that are delivered side by side, were it banked as shared memory is
# 2^16 over the golden ratio: the places of programs and steps that follow each other lie far
# apart; odd, so that every position, and with it every place in a line, is visited.
STRIDE = 40503
LEAP = tl.constexpr(STRIDE)
LANES = tl.constexpr(WARP)
# One machine code for all walks: no argument is 1, or divisible by 16, at compile time.
NUMBERS = ("steps", "positions", "unit")
SPIN = 1_000_000  # cycles, half a millisecond: globaltimer may tick only once a microsecond

Launch = Callable[[int], torch.Tensor]  # of a number of steps


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


@triton.jit
def _stand(X_ptr, offset, step, positions, unit):
    """The pointers of a warp in a step: `Walk`."""
    # What overflows 32 bits wraps around, and its low bits are right all the same.
    position = ((tl.program_id(0) + step * tl.num_programs(0)) * LEAP) & (positions - 1)
    return X_ptr + (offset + position * unit)


@triton.jit(do_not_specialize=NUMBERS)
def loads(X_ptr, Offsets_ptr, Sum_ptr, steps, positions, unit, PLACES: tl.constexpr):
    """Sum[p, t] = Σ over steps and places of X[place of thread t]; a program a warp."""
    thread = tl.program_id(0) * LANES + tl.arange(0, LANES)[:, None]  # [32, 1]
    offset = tl.load(Offsets_ptr + thread)
    total = tl.zeros([LANES, 1], tl.float32)
    for step in range(steps):
        X_ptrs = _stand(X_ptr, offset, step, positions, unit)
        for place in tl.static_range(len(PLACES)):
            total += tl.load(X_ptrs + PLACES[place])
    tl.store(Sum_ptr + thread, total)


@triton.jit(do_not_specialize=NUMBERS)
def adds(X_ptr, Offsets_ptr, steps, positions, unit, PLACES: tl.constexpr):
    """X[place of thread t] += 1 for all steps and places; a program a warp."""
    thread = tl.program_id(0) * LANES + tl.arange(0, LANES)[:, None]  # [32, 1]
    offset = tl.load(Offsets_ptr + thread)
    for step in range(steps):
        X_ptrs = _stand(X_ptr, offset, step, positions, unit)
        for place in tl.static_range(len(PLACES)):
            tl.atomic_add(X_ptrs + PLACES[place], 1.0, sem="relaxed")


@triton.jit
def _cycles():
    return tl.inline_asm_elementwise(
        "mov.u64 $0, %clock64;", "=l", [], dtype=tl.int64, is_pure=False, pack=1
    )


@triton.jit(do_not_specialize=("spin",))
def clock(Ticks_ptr, spin):
    """Ticks = (cycles of the multiprocessor, nanoseconds) that ``spin`` cycles or more took."""
    first, start = _cycles(), globaltimer()
    now = first
    while now - first < spin:
        now = _cycles()
    tl.store(Ticks_ptr + 1, globaltimer() - start)
    tl.store(Ticks_ptr, now - first)


def start_loads(walk: Walk, device: str) -> Launch:
    """A function that loads for a number of steps and returns the sums, [programs, 32].

    Raises:
        RuntimeError: one step over ones does not count its places.
    """
    x = torch.ones(walk.numel, device=device)
    sums = torch.empty(walk.offsets.shape, device=device)
    launch = launcher(loads, walk, x, sums)
    if not (launch(1) == len(walk.places)).all():
        raise RuntimeError("a sum of ones is no count of loads")
    return launch


def start_adds(walk: Walk, device: str) -> Launch:
    """A function that adds for a number of steps and returns the buffer.

    Raises:
        RuntimeError: the buffer does not hold what one step added.
    """
    launch = launcher(adds, walk, torch.zeros(walk.numel, device=device))
    added = walk.offsets.size * len(walk.places)
    if launch(1).sum(dtype=torch.float64).item() != added:
        raise RuntimeError(f"the buffer does not hold the {added} ones that were added")
    return launch


STARTS = {"loads": start_loads, "adds": start_adds}


def launcher(kernel: Callable, walk: Walk, x: torch.Tensor, *sums: torch.Tensor) -> Launch:
    """A function that runs the kernel for a number of steps and returns the sums, else x."""
    offsets = torch.from_numpy(walk.offsets.astype(np.int32)).to(x.device)

    def launch(steps: int) -> torch.Tensor:
        numbers = (steps, walk.positions, walk.unit, walk.places)
        kernel[(len(walk.offsets),)](x, offsets, *sums, *numbers, num_warps=1)
        return (x, *sums)[-1]

    return launch


def sm_hz(device: str) -> float:
    """The multiprocessors' clock at this moment, cycles a second by their own counter."""
    ticks = torch.empty(2, dtype=torch.int64, device=device)
    clock[(1,)](ticks, SPIN, num_warps=1)
    cycles, ns = ticks.tolist()
    return 1e9 * cycles / ns
