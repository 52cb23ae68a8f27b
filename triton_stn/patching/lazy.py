"""A sampling grid that is only θ, sampled without being made; and its gradient, likewise.

The graph is PyTorch's: θ, then the grid, then the output, so hooks, `retain_grad` and
`torch.autograd.grad` find the grid where it is in PyTorch's. What goes back from the output to the
grid is a `LazyGradient`, which brings grad_θ along. Unless something reads it on the way, its
values, those of the grid's gradient, are never made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from triton_stn import autograd, backends, calls, functional
from triton_stn.backends.batched import by_vmap
from triton_stn.patching.deferred import Deferred, Recipe

Options = tuple[str, str, bool]  # mode, padding_mode, align_corners


class LazyGrid(Recipe):
    """What ``F.affine_grid(theta, size, align_corners)`` returns, in ``dtype``.

    θ is copied: a step of an optimizer after this does not move the grid.
    """

    def __init__(self, theta: torch.Tensor, size: Sequence[int], align_corners: bool, dtype):
        super().__init__((size[0], *size[2:], len(size) - 2), dtype, theta.device)
        self.theta = theta.detach().clone(memory_format=torch.contiguous_format)
        self.how = tuple(size), align_corners

    def make(self) -> torch.Tensor:
        cast = self.dtype != self.theta.dtype  # by autocast
        with torch.autocast(self.device.type, self.dtype if cast else None, enabled=cast):
            return torch.ops.aten.affine_grid_generator.default(self.theta, *self.how)


class LazyGradient(Recipe):
    """The gradient of a lazy grid that was sampled; it brings that of θ along."""

    def __init__(self, grid: LazyGrid, grad_theta, grad_output, input, how: autograd.How):
        super().__init__(grid.shape, grid.dtype, grid.device)
        self.grad_theta = grad_theta
        self.grid_how = grid.how
        self._of = grad_output, input, grid, how

    def make(self) -> torch.Tensor:
        grad_output, input, grid, how = self._of
        del self._of
        return _at_grid(grad_output, input, grid.values, how, (False, True))[1]


def recipe_of(tensor: torch.Tensor) -> Recipe | None:
    """What makes the values that a tensor has, None if it is a plain one or may have changed."""
    if isinstance(tensor, Deferred) and tensor.recipe.holds:
        return tensor.recipe
    return None


def affine_grid(theta: torch.Tensor, size: Sequence[int], align_corners: bool, dtype) -> Deferred:
    """A `LazyGrid` with the history that PyTorch's grid has."""
    if torch.is_grad_enabled() and theta.requires_grad:
        return AffineGridGenerator.apply(theta, size, align_corners, dtype)
    return Deferred(LazyGrid(theta, size, align_corners, dtype))


def sample(input: torch.Tensor, grid: Deferred, options: Options) -> torch.Tensor:
    """``F.grid_sample(input, grid, *options)``; ``options`` has the grid's ``align_corners``."""
    if torch.is_grad_enabled() and (input.requires_grad or grid.requires_grad):
        return GridSampler.apply(input, grid, options)
    return _sample(input, grid, options)


class AffineGridGenerator(torch.autograd.Function):
    """θ to the grid."""

    @staticmethod
    def forward(ctx, theta, size, align_corners, dtype):
        recipe = LazyGrid(theta, size, align_corners, dtype)
        ctx.how = recipe.how
        ctx.set_materialize_grads(False)
        return Deferred(recipe)

    @staticmethod
    def backward(ctx, grad):
        if grad is None:
            return None, None, None, None
        recipe = recipe_of(grad)
        brings = isinstance(recipe, LazyGradient) and not grad.requires_grad
        if brings and recipe.grid_how == ctx.how:  # all that the map of one to the other knows
            return recipe.grad_theta, None, None, None
        backward = torch.ops.aten.affine_grid_generator_backward
        return backward(grad, *ctx.how), None, None, None


class GridSampler(torch.autograd.Function):
    """Input and grid to the output."""

    @staticmethod
    def forward(ctx, input, grid, options):
        ctx.save_for_backward(input, grid)
        by_kernels = backends.uses_triton(input)
        ctx.how = autograd.How(tuple(grid.shape[1:-1]), *options, "affine", by_kernels)
        return _sample(input, grid, options)

    @staticmethod
    @by_vmap
    def backward(ctx, grad):
        input, grid = ctx.saved_tensors  # which looks whether they have been changed
        needs = needs_input, needs_grid = ctx.needs_input_grad[:2]
        # Hooks on what is saved may return a plain grid. create_graph=True and vmap want the
        # gradient of the grid itself, and so does a grid that is a leaf.
        fused = isinstance(grid, Deferred) and not (needs_grid and grid.is_leaf)
        if not fused or torch.is_grad_enabled() or not backends.is_plain(grad, input):
            return *_at_grid(grad, input, grid, ctx.how, needs), None
        recipe = grid.recipe
        grad_input, grad_theta = _gradients(grad, input, recipe.theta, ctx.how, needs)
        grad_grid = None
        if needs_grid:
            grad_grid = Deferred(LazyGradient(recipe, grad_theta, grad, input, ctx.how))
        return grad_input if needs_input else None, grad_grid, None


def _sample(input, grid: Deferred, options: Options) -> torch.Tensor:
    size = tuple(grid.shape[1:-1])
    mode, padding_mode, align_corners = options
    rules = dict(mode=mode, padding_mode=padding_mode, align_corners=align_corners)
    output = functional.spatial_transform(input, grid.recipe.theta, size, **rules)
    return output.contiguous()  # as PyTorch's, whatever the layout of the input


def _gradients(grad, input, theta, how: autograd.How, needs):
    """(grad_input, grad_theta), of plain tensors, as `spatial_transform` has them."""
    call = calls.find(input, theta, (how.size, "affine", *how.options))
    if call is not None:
        found = call.planned(grad, *needs)
        return autograd.fused.launch_backward(found, grad, input, theta, *needs)
    theta = theta[:, None].to(torch.promote_types(theta.dtype, input.dtype))
    how = replace(how, needs=needs)
    grad_input, grad_theta = autograd.gradients(grad[:, None], input, theta, None, how)
    return grad_input, grad_theta.squeeze(1) if needs[1] else None


def _at_grid(grad, input, grid, how: autograd.How, needs):
    """(grad_input, grad_grid), None where not needed; with a history where that is wanted."""
    by_kernels = backends.uses_triton(input)
    how = replace(how, source="grid", triton=by_kernels, needs=needs)
    if isinstance(grid, Deferred) and not torch.is_grad_enabled():
        grid = grid.recipe.values  # of which no view is left behind
    made = autograd.gradients(grad[:, None], input, grid[:, None], None, how)
    return made[0] if needs[0] else None, made[1].squeeze(1) if needs[1] else None
