"""``is_grads_batched=True`` and ``jacobian(vectorize=True)``, which map by an older vmap."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

is_batched = torch._C._functorch.is_legacy_batchedtensor


def by_vmap(derivative: Callable) -> Callable:
    """A Function's backward or jvp, by ``torch.func.vmap`` where the older one maps it, which knows
    no rule for a Function and few for operators."""

    @functools.wraps(derivative)
    def mapped(ctx, *grads):
        if torch.compiler.is_compiling():
            return derivative(ctx, *grads)
        dims = tuple(0 if grad is not None and is_batched(grad) else None for grad in grads)
        if all(dim is None for dim in dims):
            return derivative(ctx, *grads)
        level = _level()
        plain = [
            grad if dim is None else torch._remove_batch_dim(grad, level, 0, 0)
            for grad, dim in zip(grads, dims, strict=True)
        ]
        whole = []  # what came, of which vmap takes the tensors alone

        def of_tensors(*grads):
            made = derivative(ctx, *grads)
            whole[:] = made if isinstance(made, tuple) else (made,)
            return tuple(tensor for tensor in whole if tensor is not None)

        made = iter(torch.func.vmap(of_tensors, in_dims=dims)(*plain))
        batched = tuple(
            part if part is None else torch._add_batch_dim(next(made), 0, level) for part in whole
        )
        return batched if len(batched) > 1 else batched[0]

    return mapped


def _level() -> int:
    """Of the older vmap that is at work; a thread of the engine may not know of it."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    return max(level, 1)
