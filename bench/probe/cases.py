"""The rows of ``python -m bench probe``: which walks, and which calls of the library."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch

import triton_stn
from bench.probe import kernels
from bench.probe.kernels import WARP, Launch, Walk, patch
from bench.suite import passes
from bench.suite.cases import theta_of
from bench.suite.passes import Call

WARPS_AN_SM = 32  # of one program each: Hopper holds no more programs, and all are there at once
FOOTPRINTS = ((1, 32), (2, 16), (4, 8), (8, 4))
ANGLES = (0, 10, 30, 45, 60, 90)
# Far enough apart that the accesses of a step share no line of a row, odd so that they begin
# anywhere in one; 16 loads keep the loop's own instructions few.
PLACES = tuple(101 * place for place in range(16))
# Positions, and elements between rows: odd, so that a column of pixels meets 32 different banks
# and the lines alone are asked after. 23 to 39 KB are held by every L1, 17 MB by L2 and by no L1.
LEVELS = {"L1": (2**12, 131), "L2": (2**22, 2051)}
# Of a buffer of 128-byte lines: 17 MB, or 1 GB, which no L2 holds.
ADDED = {"L2": 2**17, "memory": 2**23}
ADD_PITCH = 1032  # whole sectors, and no power of two
GROUPS = tuple(288 * group for group in range(16))  # 9 lines: no two places share a sector
WIDTHS = (248, 256, 264, 504, 512, 520, 1016, 1024, 1032)
# 256 positions, 75 rows more, two to three lines of each: 100 KB, which L1 holds unless the lines
# of rows a power of two apart compete for few of its sets.
BAND, ROWS_APART = 2**8, 5
IMAGE_PIXELS, CHANNELS = 32 * 1024 * 1024, 3  # 400 MB: past L2, and longer than a call's host side


@dataclass(frozen=True, eq=False)
class Case:
    """A row to measure: ``labels`` are its first columns, ``start`` makes it ready."""

    labels: dict[str, object]
    start: Callable[[str], Launch | Call]  # of a device
    kernel: str = ""  # of bench.probe.kernels, with its walk; "": a call of the library
    walk: Walk | None = None


def every(sms: int) -> list[Case]:
    """All rows, for a GPU of so many multiprocessors."""
    programs = sms * WARPS_AN_SM
    return [*load_cases(programs), *add_cases(programs), *band_cases(programs), *library_cases()]


def load_cases(programs: int) -> list[Case]:
    """Footprints x angles, from L1 and from L2."""
    found = []
    for (level, (positions, pitch)), (rows, columns), degrees in product(
        LEVELS.items(), FOOTPRINTS, ANGLES
    ):
        offsets = patch(rows, columns, degrees, pitch, programs)
        labels = dict(pattern=f"{rows}x{columns}", degrees=degrees, level=level, pitch=pitch)
        found.append(_walk("loads", "loads", labels, Walk(offsets, PLACES, positions, 1)))
    return found


def add_cases(programs: int) -> list[Case]:
    """Patterns of atomic adds on a buffer that L2 holds, on one that it does not, on few floats."""
    thread = np.arange(WARP)
    square = thread // 8 * ADD_PITCH + thread % 8
    taps = tuple(g + t for g in GROUPS[:4] for t in (0, 1, ADD_PITCH, ADD_PITCH + 1))
    spread = {
        "1x32": (thread, GROUPS),
        "4x8": (square, GROUPS),
        "4x8, four taps": (square, taps),
        "one a sector": (8 * thread, GROUPS),
    }
    few = {"512 floats in all": (thread, GROUPS), "16 floats in all": (0 * thread, GROUPS)}
    found = []
    for level, positions, patterns in (
        *((level, positions, spread) for level, positions in ADDED.items()),
        ("L2", 1, few),
    ):
        for name, (offsets, places) in patterns.items():
            labels = dict(pattern=name, level=level, pitch=ADD_PITCH)
            walk = Walk(np.tile(offsets, (programs, 1)), places, positions, 32)
            found.append(_walk("adds", "adds", labels, walk))
    return found


def band_cases(programs: int) -> list[Case]:
    """4 x 8 patches up and down a band, a line or two wide, of rows so many floats apart."""
    found = []
    for width, degrees in product(WIDTHS, (0, 30)):
        places = tuple(ROWS_APART * width * place for place in range(len(PLACES)))
        labels = dict(pattern="4x8", degrees=degrees, level="L1", pitch=width)
        walk = Walk(patch(4, 8, degrees, width, programs), places, BAND, width)
        found.append(_walk("rows", "loads", labels, walk))
    return found


def library_cases(pixels: int = IMAGE_PIXELS) -> list[Case]:
    """The library's own passes over square images of these widths, about as many pixels each."""
    found = []
    for width, pass_name, kind in product(
        WIDTHS, ("forward", "backward"), ("identity", "rotation_30")
    ):
        shape = (round(pixels / width**2), CHANNELS, width, width)
        labels = {"question": "rows", "pattern": "triton_stn", "pitch": width}
        labels |= {"pass": pass_name, "theta_kind": kind, "elements": math.prod(shape)}
        found.append(Case(labels, partial(_library, shape, pass_name, kind)))
    return found


def _walk(question: str, kernel: str, labels: dict[str, object], walk: Walk) -> Case:
    start = partial(kernels.STARTS[kernel], walk)
    return Case({"question": question, **labels}, start, kernel, walk)


def _library(shape: tuple[int, ...], pass_name: str, kind: str, device: str) -> Call:
    input, grad = torch.rand(shape, device=device), torch.rand(shape, device=device)
    theta = theta_of(kind).repeat(len(input), 1, 1).to(device)
    return passes.prepare(pass_name, triton_stn.spatial_transform, input, theta, grad)
