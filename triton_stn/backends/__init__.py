"""Which backend computes: Triton's kernels on a GPU, pure PyTorch elsewhere."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

import torch
from torch.autograd import forward_ad

from triton_stn.types import Backend

# The kernels are decorated, and Triton reads this variable, when the package is imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
NAMES = get_args(Backend)
TRITON_DEVICES = ("cuda", "xpu")  # ROCm calls itself cuda
# Looked up once, for `uses_triton` is on every call's way. PyTorch for Windows comes without.
HAS_TRITON = importlib.util.find_spec("triton") is not None

_choice: Backend = "auto"


@contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Force the backend of every call inside the ``with`` block, in every thread.

    Args:
        name: ``"triton"`` (the kernels: a GPU tensor, or a CPU tensor under
            ``TRITON_INTERPRET=1``), ``"torch"`` (pure PyTorch, any device, differentiable to any
            order), or ``"auto"``: Triton wherever it can run, else PyTorch.

    Raises:
        ValueError: another name, or ``"triton"`` where it is not installed; in the block, a tensor
            that Triton can not run on.

    Example:
        >>> with triton_stn.use_backend("torch"):
        ...     triton_stn.spatial_transform(torch.ones(1, 1, 1, 2), torch.eye(2, 3)).tolist()
        [[[[1.0, 1.0]]]]
    """
    global _choice
    if name not in NAMES:
        expected = ", ".join(map(repr, NAMES))
        raise ValueError(f"backend must be one of {expected}, got {name!r}")
    if name == "triton" and not HAS_TRITON:
        raise ValueError(
            "backend must be 'torch' or 'auto' where triton is not installed, got 'triton'"
        )
    previous, _choice = _choice, name
    try:
        yield
    finally:
        _choice = previous


def choice() -> Backend:
    """What `use_backend` has chosen."""
    return _choice


def uses_triton(input: torch.Tensor) -> bool:
    """Whether ``input`` is sampled by the Triton kernels.

    Raises:
        ValueError: Triton is forced on a tensor that it can not run on.
    """
    if _choice == "torch" or is_exported_to_onnx():
        return False
    device = input.device.type
    runs = HAS_TRITON and (device in TRITON_DEVICES or (INTERPRETED and device == "cpu"))
    if _choice == "triton" and not runs:
        raise ValueError(
            f"the triton backend needs input on one of {TRITON_DEVICES}, or a CPU tensor with "
            f"TRITON_INTERPRET=1 set before the import; got input on {input.device}"
        )
    return runs


def is_exported_to_onnx() -> bool:
    """Whether `torch.onnx.export` traces, whose operators are PyTorch's. It needs onnxscript."""
    return "onnxscript" in sys.modules and torch.onnx.is_in_onnx_export()


PLAIN = (torch.Tensor, torch.nn.Parameter)


def is_plain(*tensors: torch.Tensor) -> bool:
    """Whether nothing watches: no compiler, tracer, mode, transform or subclass, and there are
    numbers to work on, with their own signs (the imaginary part of a conjugate has others)."""
    for tensor in tensors:
        if type(tensor) not in PLAIN or tensor.is_meta:
            return False
    return is_unwatched() and not any(tensor.is_neg() for tensor in tensors)


def is_unwatched() -> bool:
    """No compiler, tracer, mode or transform."""
    return not (torch.compiler.is_compiling() or _modes() or _transforms() or _tracer() is not None)


_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._are_functorch_transforms_active
_tracer = torch._C._get_tracing_state


def is_sharded(input: torch.Tensor, theta: torch.Tensor) -> bool:
    """Whether one is a DTensor, whose module takes longer to import than this package."""
    if type(input) in PLAIN and type(theta) in PLAIN:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and module.DTensor in (type(input), type(theta))


def is_transformed() -> bool:
    """Whether functorch or forward mode watches, of which a compiler takes care itself."""
    return not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )
