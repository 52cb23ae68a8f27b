"""Which calls of affine_grid and grid_sample `triton_stn.patch` leaves to PyTorch, and why."""

from __future__ import annotations

import numbers
import operator
from typing import Any

import torch
from torch.autograd import forward_ad

from triton_stn import backends, checks
from triton_stn.patching.deferred import Deferred
from triton_stn.patching.lazy import LazyGrid, recipe_of

_REFUSED = "what PyTorch refuses"
# On others PyTorch has kernels and we have none.
_DEVICES = ("cpu", *backends.TRITON_DEVICES)


def against_lazy_grid(theta: Any, size: Any, align_corners: Any) -> str | None:
    """Why PyTorch makes the grid; None where it need not be made."""
    reason = _watched() or _strange("theta", theta)
    if reason is not None:
        return reason
    if type(theta) not in backends.PLAIN:
        return f"theta is a {type(theta).__name__}"
    size = ints(size)
    ndim = len(size) - 2
    fits = ndim in (2, 3) and theta.shape == (size[0], ndim, ndim + 1)
    return None if fits and type(align_corners) is bool else _REFUSED


def against_sampling(
    input: Any, grid: Any, mode: Any, padding_mode: Any, align_corners: Any
) -> str | None:
    """Why PyTorch samples; None where the package does."""
    reason = _watched() or _strange("input", input) or _strange("grid", grid)
    if reason is not None:
        return reason
    ndim = input.ndim - 2
    fits = ndim in (2, 3) and grid.ndim == input.ndim and grid.shape[-1] == ndim
    if not fits or grid.shape[0] != input.shape[0] or grid.device != input.device:
        return _REFUSED
    if type(align_corners) is not bool or mode not in (0, 1, 2) or padding_mode not in (0, 1, 2):
        return _REFUSED
    if ndim == 3 and mode == 2:
        return _REFUSED
    if torch.is_autocast_enabled(input.device.type):
        if torch.float64 in (input.dtype, grid.dtype):
            return "float64 under autocast"
    elif input.dtype != grid.dtype:
        return _REFUSED
    if input.numel() == 0 or grid.numel() == 0:
        return "an empty tensor"
    return None


def ints(size: Any) -> tuple[int, ...]:
    """The positive ints of a size, NumPy's and tensors of one too; empty if it has others."""
    if not isinstance(size, (tuple, list)):
        return ()
    whole = all(isinstance(n, (numbers.Integral, torch.Tensor)) for n in size)
    try:
        size = tuple(operator.index(n) for n in size) if whole else ()
    except (TypeError, ValueError, RuntimeError):  # a tensor of floats, or of several
        return ()
    return size if all(n > 0 for n in size) else ()


def is_lazy(grid: torch.Tensor, align_corners: bool) -> bool:
    """Whether θ serves: nothing has read the grid, and grid and sampler align alike."""
    recipe = recipe_of(grid)
    return isinstance(recipe, LazyGrid) and recipe.how[1] is align_corners


def as_plain(tensor: torch.Tensor) -> torch.Tensor | None:
    """The tensor without its type, if an operator would not look at that.

    Of a subclass with a ``__torch_function__`` that is so once this has run and has called
    PyTorch's function again, as most do; what becomes of the output's type is its business.
    """
    kind = type(tensor)
    if kind in backends.PLAIN or isinstance(tensor, Deferred):
        return tensor
    if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return None
    silent = kind.__torch_function__ is torch._C._disabled_torch_function_impl
    if silent or not torch._C._is_torch_function_enabled():
        return tensor.as_subclass(torch.Tensor)
    return None


def _watched() -> str | None:
    """What would miss PyTorch's operator where it looks for it."""
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace"
    if torch._C._are_functorch_transforms_active():
        return "torch.func"
    if forward_ad._current_level >= 0:
        return "forward mode"
    if torch._C._len_torch_dispatch_stack():
        return "a dispatch mode"
    return None


def _strange(name: str, tensor: Any) -> str | None:
    """What makes a tensor one for PyTorch."""
    if not isinstance(tensor, torch.Tensor) or as_plain(tensor) is None:
        return f"{name} is a {type(tensor).__name__}"
    if tensor.device.type not in _DEVICES:
        return f"{name} on {tensor.device.type}"
    if tensor.layout is not torch.strided:
        return f"{name} is {tensor.layout}"
    return None if tensor.dtype in checks.DTYPES else f"{name} is {tensor.dtype}"
