"""Numbers that depend on sizes and options alone, as tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from triton_stn.backends import is_plain

# Sizes and options that a program uses at a time. Each entry is a vector or two.
_KEPT = 64


def vector(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """``values`` (n,) in the dtype and on the device of ``like``, without a copy from the host.

    A copy would wait for the device, and a CUDA graph that is being captured refuses it. Who traces
    would see it detached in place, which `ExportedProgram.run_decompositions` refuses.
    """
    if like.device.type == "cpu" and is_plain():
        return like.new_tensor(values)
    return torch.stack([like.new_full((), value) for value in values])


def without_autocast(like: torch.Tensor) -> AbstractContextManager:
    """Where coordinates are computed, for which 8 bits are too few."""
    if like.is_meta:  # which autocast does not know
        return nullcontext()
    return torch.autocast(like.device.type, enabled=False)


def kept(make: Callable) -> Callable:
    """Keep the tensor or tensors that ``make(*numbers, dtype, device)`` gives on the CPU, where
    small ones take longer to make than to use.

    A GPU's are made anew: inside the capture of a CUDA graph they belong to that graph.
    """
    made: dict[tuple, torch.Tensor | tuple[torch.Tensor, ...]] = {}

    @functools.wraps(make)
    def get(*arguments):
        if arguments[-1].type != "cpu" or not is_plain():
            return make(*arguments)
        result = made.get(arguments)
        if result is None:
            with torch.inference_mode(False):  # else no later backward could save it
                result = make(*arguments)
            tensors = result if isinstance(result, tuple) else (result,)
            if all(type(tensor) is torch.Tensor for tensor in tensors):  # not a mode's fakes
                while len(made) >= _KEPT:
                    made.pop(next(iter(made), None), None)
                made[arguments] = result
        return result

    return get
