"""triton_stn's launches on CPU tensors: compiled as for a GPU, and run as PTX."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from triton.backends.compiler import GPUTarget

from triton_stn import backends
from triton_stn.backends import fused
from triton_stn.backends.launch import Launches, Plan, compile_plan

from . import Counts, run

SM_90 = GPUTarget("cuda", 90, 32)
# A program of the largest case takes 60,000; one that walks what it should not takes far more.
MAX_STEPS = 5_000_000


class Launched(NamedTuple):
    """A launch that has run."""

    plan: Plan
    counts: Counts

    tensors: list[str]  # that are there

    @property
    def kernel(self) -> str:
        return self.plan.kernel.__name__

    def sectors(self, name: str) -> int:
        """Of 32 bytes, that are loaded of a tensor, see `Counts`."""
        return self.counts.sectors[self.tensors.index(name)]


_logs: list[list[Launched]] = []
_orders: np.random.Generator | None = None


def leaves(value: Any, kind: Any) -> Iterator[Any]:
    """What a compiled kernel takes of an argument: named tuples flat, without their constants."""
    if isinstance(kind, tuple):
        for part, of_part in zip(value, kind, strict=True):
            yield from leaves(part, of_part)
    elif kind != "constexpr":
        yield value


def launch(launches: Launches, device: torch.device, tensors: dict[str, torch.Tensor]) -> None:
    """`triton_stn.backends.launch.launch` on CPU tensors, as on an H100."""
    for plan in launches.plans:
        launch_one(plan, launches.aligned(tensors), tensors)


def launch_one(plan: Plan, aligned: bool, tensors: dict[str, torch.Tensor]) -> None:
    compiled = compile_plan(plan, SM_90, aligned=aligned)
    arguments = plan.filled(tensors) | plan.constants
    signature = compiled.src.signature.items()
    passed = [leaf for name, kind in signature for leaf in leaves(arguments[name], kind)]
    order = _orders.permutation(math.prod(plan.grid)) if _orders else None
    counts = run(compiled, passed, plan.grid, max_steps=MAX_STEPS, order=order, sectors=bool(_logs))
    there = [name for name in plan.tensors if tensors[name] is not None]
    for log in _logs:
        log.append(Launched(plan, counts, there))


@contextmanager
def shuffled(seed: int) -> Iterator[None]:
    """The programs of a launch run in a random order inside the ``with`` block."""
    global _orders
    _orders = np.random.default_rng(seed)
    try:
        yield
    finally:
        _orders = None


@contextmanager
def recorded() -> Iterator[list[Launched]]:
    """Yields what `launch` runs inside the ``with`` block, in order."""
    log: list[Launched] = []
    _logs.append(log)
    try:
        yield log
    finally:
        _logs.remove(log)


def substitute() -> None:
    """Have the Triton backend take CPU tensors, in this process, and launch here."""
    fused.launch = launch
    backends.INTERPRETED = True
