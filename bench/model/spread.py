"""The calls whose kernels the static report compiles: a spread of them, and a sweep of channels."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache

import torch

from bench.model.launches import BOTH, EVERY, Specialisation, passes

HALF, SINGLE, DOUBLE = torch.bfloat16, torch.float32, torch.float64
NCHW, LAST, LAST_3D = torch.contiguous_format, torch.channels_last, torch.channels_last_3d
CHANNELS = (*range(1, 67), 96, 128, 255, 256)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@lru_cache(maxsize=2)
def spread(full: bool) -> list[Specialisation]:
    """What the launcher chooses for a spread of calls, each specialisation once.

    ``full`` is for the target whose instructions have budgets; else it is a third of that.
    """
    return _each_once(_calls(full))


@lru_cache(maxsize=2)
def sweep(sample: int | None = None, seed: int = 0) -> list[Specialisation]:
    """For affine maps of images: all channels to 66 and a few more, layouts, dtypes, one map and
    several, each specialisation once; or ``sample`` of them, drawn at random.
    """
    calls = ((c, dtype, last, k) for c in CHANNELS for dtype in DTYPES for last in (NCHW, LAST)
             for k in (1, 3))  # fmt: skip
    found = _each_once(
        spec
        for c, dtype, last, k in calls
        for spec in passes((8, c, 56, 56), dtype, last, BOTH, k=k)
    )
    return found if sample is None else random.Random(seed).sample(found, sample)


def _each_once(specs: Iterator[Specialisation]) -> list[Specialisation]:
    found = {}
    for spec in specs:
        found.setdefault(spec.key, spec)
    return list(found.values())


def _calls(full: bool) -> Iterator[Specialisation]:
    """Few channels are one pass, many a loop; 17 need masks."""
    large, deep = (16, 3, 512, 512), (64, 64, 56, 56)
    yield from passes((64, 3, 512, 512), SINGLE, NCHW, EVERY)
    yield from passes(deep, HALF, LAST, BOTH)
    yield from passes((8, 3, 512, 512), SINGLE, NCHW, BOTH, k=3)
    yield from passes(large, SINGLE, NCHW, BOTH, "bilinear", "border")
    yield from passes((4, 1, 128, 128, 128), SINGLE, NCHW, BOTH)
    if not full:
        return
    yield from passes((64, 1, 512, 512), SINGLE, NCHW, EVERY)
    yield from passes(deep, SINGLE, NCHW, EVERY)
    yield from passes(deep, HALF, NCHW, BOTH)
    yield from passes(deep, SINGLE, LAST, BOTH)
    yield from passes((8, 17, 31, 33), SINGLE, LAST, BOTH)
    yield from passes((8, 3, 64, 64), DOUBLE, NCHW, BOTH)
    yield from passes((8, 64, 56, 56), SINGLE, LAST, BOTH, k=3)
    yield from passes((1, 1, 65536, 65536), SINGLE, NCHW, BOTH)  # offsets beyond int32
    yield from passes(large, SINGLE, NCHW, BOTH, "nearest")
    yield from passes(deep, HALF, LAST, BOTH, "nearest", "reflection")
    yield from passes(large, SINGLE, NCHW, BOTH, source="projective")
    yield from passes(large, SINGLE, NCHW, BOTH, source="projective", deterministic=True)
    yield from passes(large, SINGLE, NCHW, BOTH, source="spline")
    yield from passes(deep, HALF, LAST, BOTH, "bilinear", "border", source="grid")
    yield from passes(large, SINGLE, NCHW, BOTH, "bicubic")
    yield from passes(large, SINGLE, NCHW, BOTH, "area", source="patch")
    yield from passes((8, 32, 64, 64, 64), HALF, LAST_3D, BOTH)
