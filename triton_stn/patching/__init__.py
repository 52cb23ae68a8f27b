"""Existing code, fused: what `torch.nn.functional`'s affine_grid and grid_sample call is replaced.

Both check their arguments and call ``torch.affine_grid_generator`` and ``torch.grid_sampler``,
which they look up then. So whoever imported the two by name is reached, and the checks, the errors
and the warnings are PyTorch's own.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from triton_stn import functional
from triton_stn.backends.pytorch_samplers import PYTORCH_MODES, PYTORCH_PADDING_MODES
from triton_stn.patching import lazy, reasons
from triton_stn.patching.deferred import Deferred

_torchs_generator = torch.affine_grid_generator
_torchs_sampler = torch.grid_sampler
_fused: Counter[str] = Counter()
_left: Counter[str] = Counter()


@dataclass(frozen=True)
class Report:
    """What became of the calls since they were replaced; those of compiled code are not counted.

    Attributes:
        lazy_grids: grids that `F.affine_grid` has not made.
        spatial_transform: samplings of a lazy grid, by `triton_stn.spatial_transform`.
        grid_sample: samplings of a plain one, by `triton_stn.grid_sample`.
        left: what PyTorch did, ``"function: reason"``, and how often.

    Example:
        >>> with triton_stn.patch() as patched:
        ...     grid = torch.nn.functional.affine_grid(torch.eye(2, 3)[None], (1, 1, 2, 2), False)
        ...     half = torch.nn.functional.grid_sample(
        ...         torch.ones(1, 1, 4, 4), grid, align_corners=False
        ...     )
        >>> print(patched.report())
        1 lazy grid; fused: 1 by spatial_transform, 0 by grid_sample; left to PyTorch: 0
    """

    lazy_grids: int
    spatial_transform: int
    grid_sample: int
    left: Mapping[str, int]

    def __str__(self) -> str:
        first = (
            f"{self.lazy_grids} lazy grid{'s' * (self.lazy_grids != 1)}; "
            f"fused: {self.spatial_transform} by spatial_transform, "
            f"{self.grid_sample} by grid_sample; left to PyTorch: {sum(self.left.values())}"
        )
        by_count = sorted(self.left.items(), key=lambda item: (-item[1], item[0]))
        return "\n".join([first, *(f"{count:8d}  {reason}" for reason, count in by_count)])


class Patch:
    """Run code that calls ``F.affine_grid`` and ``F.grid_sample`` by triton_stn, unchanged.

    ``triton_stn.patch()`` holds until `triton_stn.unpatch`, in every thread; as
    ``with triton_stn.patch():`` to the end of the block, which puts back what was before. Patching
    twice is patching once.

    ``F.affine_grid`` then returns a lazy grid: a tensor that keeps θ, and whose values are made
    when anything but ``F.grid_sample`` reads them. ``F.grid_sample`` of it is
    `triton_stn.spatial_transform`, of a plain grid `triton_stn.grid_sample`, with
    PyTorch's dtype and layout; a non-finite coordinate gives NaN in every mode and padding.

    Both functions are reached wherever they were imported to;
    ``torch.affine_grid_generator`` and ``torch.grid_sampler`` are where they are looked up in
    ``torch``. Not reached are C++, ``torch.ops.aten``, ``torch.cudnn_grid_sampler``,
    ``torch.grid_sampler_2d`` and what torch.jit.script made. PyTorch's own does what a compiler, a
    tracer, ``torch.func``, forward mode or a dispatch mode sees, subclasses that dispatch, and
    all that it refuses, with its errors.

    Returns:
        A context manager, which need not be entered; it gives this object, for `report`.

    Example:
        >>> import torch.nn.functional as F
        >>> image, theta = torch.ones(1, 1, 4, 4), torch.eye(2, 3)[None]
        >>> with triton_stn.patch() as patched:
        ...     grid = F.affine_grid(theta, (1, 1, 2, 2), align_corners=False)
        ...     F.grid_sample(image, grid, align_corners=False).tolist()
        [[[[1.0, 1.0], [1.0, 1.0]]]]
        >>> patched.report().spatial_transform
        1
    """

    def __call__(self) -> _Block:
        block = _Block(_is_on())
        _switch(True)
        return block

    @staticmethod
    def report() -> Report:
        """What became of the calls since they were replaced, last or now."""
        made = (_fused[name] for name in ("lazy_grids", "spatial_transform", "grid_sample"))
        return Report(*made, dict(_left))


class _Block:
    """What `patch` returns: a ``with`` block that puts back what was before."""

    def __init__(self, was_on: bool) -> None:
        self._was_on = was_on

    def __enter__(self) -> Patch:
        _switch(True)
        return patch

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _switch(self._was_on)


patch = Patch()


def unpatch() -> None:
    """End what `triton_stn.patch` began. A lazy grid that is left is made when it is sampled.

    Example:
        >>> block = triton_stn.patch()
        >>> triton_stn.unpatch()
        >>> type(torch.grid_sampler).__name__  # PyTorch's again
        'builtin_function_or_method'
    """
    _switch(False)


def _affine_grid_generator(theta: Any, size: Any, align_corners: Any) -> torch.Tensor:
    """``torch.affine_grid_generator``, of which a lazy grid comes where that is safe."""
    if torch.compiler.is_compiling():
        return _torchs_generator(theta, size, align_corners)
    reason = reasons.against_lazy_grid(theta, size, align_corners)
    if reason is not None:
        _left[f"affine_grid: {reason}"] += 1
        return _torchs_generator(theta, size, align_corners)
    _fused["lazy_grids"] += 1
    dtype, kind = theta.dtype, theta.device.type
    if dtype != torch.float64 and torch.is_autocast_enabled(kind):  # which reaches its product
        dtype = torch.get_autocast_dtype(kind)
    return lazy.affine_grid(theta, reasons.ints(size), align_corners, dtype)


def _grid_sampler(
    input: Any, grid: Any, interpolation_mode: Any, padding_mode: Any, align_corners: Any
) -> torch.Tensor:
    """``torch.grid_sampler``, fused where that is safe."""
    arguments = input, grid, interpolation_mode, padding_mode, align_corners
    if torch.compiler.is_compiling():
        return _torchs_sampler(*arguments)
    reason = reasons.against_sampling(*arguments)
    if reason is not None:
        _left[f"grid_sample: {reason}"] += 1
        return _torchs_sampler(*arguments)
    input, grid = _autocast(reasons.as_plain(input), reasons.as_plain(grid))
    options = PYTORCH_MODES[interpolation_mode], PYTORCH_PADDING_MODES[padding_mode], align_corners
    # Which pixel is the nearest a grid's rounding decides: it is made.
    if options[0] != "nearest" and reasons.is_lazy(grid, align_corners):
        _fused["spatial_transform"] += 1
        return lazy.sample(input, grid, options)
    _fused["grid_sample"] += 1
    grid = grid.plain() if isinstance(grid, Deferred) else grid
    return functional.grid_sample(input, grid, *options).contiguous()


def _autocast(input: torch.Tensor, grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as PyTorch's autocast gives them to its sampler; a lazy grid stays what it is."""
    kind = input.device.type
    if torch.is_autocast_enabled(kind):
        widest = torch.promote_types(input.dtype, grid.dtype)
        dtype = torch.float32 if kind == "cpu" else widest
        return input.to(dtype), grid if isinstance(grid, Deferred) else grid.to(dtype)
    return input, grid


def _is_on() -> bool:
    return torch.grid_sampler is _grid_sampler


def _switch(on: bool) -> None:
    if on == _is_on():
        return
    if on:
        _fused.clear()
        _left.clear()
    for name, ours, theirs in (
        ("affine_grid_generator", _affine_grid_generator, _torchs_generator),
        ("grid_sampler", _grid_sampler, _torchs_sampler),
    ):
        # torch.jit.script finds PyTorch's functions in a table, which is made here if it was not.
        torch.jit._builtins._register_builtin(ours, f"aten::{name}")
        setattr(torch, name, ours if on else theirs)
    rules = sys.modules.get("torch._dynamo.trace_rules")
    if rules is not None:  # a compiler knows PyTorch's functions by identity, as it found them
        rules.get_torch_obj_rule_map.cache_clear()
