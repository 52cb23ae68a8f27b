"""Tensors whose values are made when something asks for them, as `triton_stn.patch` hands out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

# What hands out a tensor's memory past the dispatcher, or goes by its type.
_READERS = (
    "__array__", "__deepcopy__", "__dlpack__", "__reduce_ex__", "_typed_storage", "data_ptr",
    "is_shared", "numpy", "share_memory_", "storage", "tolist", "untyped_storage",
)  # fmt: skip


class Recipe:
    """What is known of a contiguous tensor, and how its values are made."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self._values: torch.Tensor | None = None
        self.holds = True  # the values are what `make` gives: nobody has been handed their memory

    @classmethod
    def of(cls, values: torch.Tensor) -> Recipe:
        """Of a tensor that is there."""
        recipe = Recipe(values.shape, values.dtype, values.device)
        recipe._values, recipe.holds = values, False
        return recipe

    def make(self) -> torch.Tensor:
        """The values; called once at most."""
        raise NotImplementedError

    @property
    def is_made(self) -> bool:
        """Whether something has asked for the values."""
        return self._values is not None

    @property
    def values(self) -> torch.Tensor:
        """A plain tensor without a history."""
        if self._values is None:
            # Of whatever asks, be it a transform or a mode that counts operations.
            with (
                torch.no_grad(),
                torch._C._DisableFuncTorch(),
                _disable_current_modes(),
                torch.autocast(self.device.type, enabled=False),
            ):
                self._values = self.make()
        return self._values


class Deferred(torch.Tensor):
    """The tensor that a recipe makes, to every operation, with a history of its own.

    The first operation has it made; shapes and the like are none. A view of it, as all that shares
    its memory, may change it without a word; then the recipe does not hold any more. It has no
    ``__torch_function__``: that of another subclass would meet an unknown type beside its own.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    recipe: Recipe

    @staticmethod
    def __new__(cls, recipe: Recipe) -> Deferred:
        made = torch.Tensor._make_wrapper_subclass(
            cls, recipe.shape, dtype=recipe.dtype, device=recipe.device
        )
        made.recipe = recipe
        return made

    def plain(self) -> torch.Tensor:
        """A plain tensor in the same memory, made of this one as autograd has it."""
        return torch.ops.aten.alias.default(self)

    def alone(self) -> torch.Tensor:
        """The same, but a leaf where this is one."""
        if not self.is_leaf:
            return self.plain()
        with torch.no_grad():
            return self.plain().requires_grad_(self.requires_grad)

    def as_subclass(self, cls: type[torch.Tensor]) -> torch.Tensor:
        return self.plain().as_subclass(cls)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten.detach.default:  # `Parameter` wants the type again
            return cls(args[0].recipe)
        changes_shape = torch.Tag.inplace_view in func.tags
        reads = not any(argument.alias_info for argument in func._schema.arguments)
        shown = {}

        def show(value):
            if not isinstance(value, Deferred):
                return value
            if changes_shape:  # which others of this recipe keep
                value.recipe = Recipe.of(value.recipe.values.detach())
            values = value.recipe.values
            value.recipe.holds &= reads
            shown[id(values)] = value
            return values

        made = func(*tree_map(show, args), **tree_map(show, kwargs))
        if changes_shape:
            with torch._C._DisableTorchDispatch():
                func(*args, **kwargs)
        # What works in place returns its argument.
        return tree_map(lambda value: shown.get(id(value), value), made)

    def __repr__(self, *, tensor_contents: str | None = None) -> str:
        text = self.alone().__repr__(tensor_contents=tensor_contents)
        return text.replace("AliasBackward0", type(self.grad_fn).__name__)

    # To a compiler, which takes tensors apart, it is a box with its values.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["values"], None

    @property
    def values(self) -> torch.Tensor:
        return self.recipe.values

    @staticmethod
    def __tensor_unflatten__(inner, meta, outer_size, outer_stride) -> Deferred:
        return Deferred(Recipe.of(inner["values"]))


def _reader(name: str) -> Callable[..., Any]:
    def read(self, *args, **kwargs):
        if name == "untyped_storage" and torch._guards.TracingContext.try_get() is not None:
            return torch.Tensor.untyped_storage(self)  # a compiler's: it takes the box apart
        return getattr(self.alone(), name)(*args, **kwargs)

    read.__name__ = name
    return read


for _name in _READERS:
    setattr(Deferred, _name, _reader(_name))
