"""Sampling at a grid as sums over taps, in PyTorch alone: any dimension, derived to any order.

W_a(x, p) samples x at p with weights that are derived a_d times along axis d; W_a^T, its transpose,
adds planes up instead. Both are linear in x, and along a coordinate both go from a to a + 1:

    d W_a(x, p) / d p_d = W_{a + e_d}(x, p)

So the two are closed under derivatives of every order and kind, and what a kernel's own derivatives
lack is made of them (`autograd.py`). Nothing here looks at a value.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from triton_stn.backends.batched import by_vmap
from triton_stn.backends.pytorch_grid import Rules, in_float, safe_coordinates

# How many times a weight can be derived before nothing is left of it.
_DEGREE = {"nearest": 0, "bilinear": 1, "bicubic": 3}
_CUBIC = -0.75  # Keys' A, PyTorch's


@dataclass(frozen=True)
class Weights:
    """W_a without its tensors. (No tuple, which functorch would take for several arguments.)"""

    rules: Rules
    extent: tuple[int, ...]  # the image's size
    order: tuple[int, ...]  # a, x first

    @classmethod
    def of(cls, rules: Rules, extent: Sequence[int]) -> Weights:
        """Those of sampling itself."""
        return cls(rules, tuple(extent), (0,) * len(extent))

    @property
    def each_derived(self) -> list[Weights]:
        """Once more, along each axis, x first."""
        axes = range(len(self.order))
        orders = [tuple(a + (d == axis) for d, a in enumerate(self.order)) for axis in axes]
        return [replace(self, order=order) for order in orders]


def sample(input: torch.Tensor, grid: torch.Tensor, weights: Weights) -> torch.Tensor:
    """W: input (N, C, *extent), grid (N, K, *size, ndim) -> (N, K, C, *size), in float32 or
    float64."""
    input = in_float(input)
    return _Sample.apply(input, grid.to(input.dtype), weights)


def splat(planes: torch.Tensor, grid: torch.Tensor, weights: Weights) -> torch.Tensor:
    """The transpose of W: planes (N, K, C, *size) -> (N, C, *extent), in float32 or float64."""
    planes = in_float(planes)
    return _Splat.apply(planes, grid.to(planes.dtype), weights)


class _Linear(torch.autograd.Function):
    """In its first argument, values; the second is the grid."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx, inputs, output):
        values, grid, ctx.weights = inputs
        ctx.save_for_backward(values, grid)
        ctx.save_for_forward(values, grid)

    @staticmethod
    def tangent(ctx, values_t, grid_t, linear, moved) -> torch.Tensor:
        """Of ``linear``, W_a or its transpose; ``moved``, its derivative along the grid."""
        values, grid = ctx.saved_tensors
        parts = []
        if values_t is not None:
            parts.append(linear(values_t, grid, ctx.weights))
        if grid_t is not None:
            parts.append(moved(values, grid, grid_t, ctx.weights))
        return sum(parts)


class _Sample(_Linear):
    @staticmethod
    def forward(input, grid, weights):
        flat = input.flatten(2)
        total = flat.new_zeros(*flat.shape[:2], grid[0, ..., 0].numel())
        for index, weight in _taps(grid, weights):
            pixels = flat.gather(2, index.expand(-1, flat.shape[1], -1))
            # What is not read may be an inf.
            total = total + torch.where(weight != 0, pixels * weight, 0.0)
        if sum(weights.order) == 0:
            total = torch.where(_holes(grid)[:, None], torch.nan, total)
        return total.unflatten(2, grid.shape[1:-1]).transpose(1, 2)

    @staticmethod
    @by_vmap
    def backward(ctx, grad):
        input, grid = ctx.saved_tensors
        grad_input = splat(grad, grid, ctx.weights) if ctx.needs_input_grad[0] else None
        grad_grid = slopes(grad, input, grid, ctx.weights) if ctx.needs_input_grad[1] else None
        return grad_input, grad_grid, None

    @staticmethod
    @by_vmap
    def jvp(ctx, input_t, grid_t, _):
        return _Linear.tangent(ctx, input_t, grid_t, sample, along)


class _Splat(_Linear):
    @staticmethod
    def forward(planes, grid, weights):
        flat = planes.transpose(1, 2).flatten(2)
        total = flat.new_zeros(*flat.shape[:2], math.prod(weights.extent))
        for index, weight in _taps(grid, weights):
            part = torch.where(weight != 0, flat * weight, 0.0)
            total = total.scatter_add(2, index.expand(-1, flat.shape[1], -1), part)
        return total.unflatten(2, weights.extent)

    @staticmethod
    @by_vmap
    def backward(ctx, grad):
        planes, grid = ctx.saved_tensors
        grad_planes = sample(grad, grid, ctx.weights) if ctx.needs_input_grad[0] else None
        grad_grid = slopes(planes, grad, grid, ctx.weights) if ctx.needs_input_grad[1] else None
        return grad_planes, grad_grid, None

    @staticmethod
    @by_vmap
    def jvp(ctx, planes_t, grid_t, _):
        return _Linear.tangent(ctx, planes_t, grid_t, splat, splat_along)


def slopes(planes, input, grid, weights) -> torch.Tensor:
    """The derivative of <planes, W_a(input, p)> along p: (N, K, *size, ndim)."""
    each = (sample(input, grid, derived) for derived in weights.each_derived)
    return torch.stack([(planes * slope).sum(2) for slope in each], -1)


def along(input, grid, grid_t, weights) -> torch.Tensor:
    """The derivative of W_a(input, p) while p moves by ``grid_t``: (N, K, C, *size)."""
    moves = grid_t[:, :, None].unbind(-1)
    each = zip(weights.each_derived, moves, strict=True)
    return sum(sample(input, grid, derived) * move for derived, move in each)


def splat_along(planes, grid, grid_t, weights) -> torch.Tensor:
    """The derivative of the transpose, likewise: (N, C, *extent)."""
    moves = grid_t[:, :, None].unbind(-1)
    each = zip(weights.each_derived, moves, strict=True)
    return sum(splat(planes * move, grid, derived) for derived, move in each)


def slopes_along(planes, input, grid, grid_t, weights) -> torch.Tensor:
    """The derivative of `slopes`, likewise: (N, K, *size, ndim)."""
    each = zip(weights.each_derived, grid_t.split(1, -1), strict=True)
    return sum(slopes(planes, input, grid, derived) * move for derived, move in each)


def _holes(grid) -> torch.Tensor:
    """Points without a place, (N, P): their samples are NaN, and have no derivative."""
    return ~grid.isfinite().all(-1).flatten(1)


def _taps(grid, weights) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Tap after tap (index in an image, weight) of the pixel that each point reads, (N, 1, P)."""
    rules, extent = weights.rules, weights.extent
    if any(times > _DEGREE[rules.mode] for times in weights.order):
        return
    places = safe_coordinates(grid, rules.padding_mode).flatten(1, -2)
    hole = _holes(grid)
    axes = [
        axis_taps(places[..., axis], n, rules, times)
        for axis, (n, times) in enumerate(zip(reversed(extent), weights.order, strict=True))
    ]
    for taps in itertools.product(*axes):
        index, stride, weight = 0, 1, torch.where(hole, 0.0, 1.0).to(places.dtype)
        for (pixel, share), n in zip(taps, reversed(extent), strict=True):
            index, stride, weight = index + pixel * stride, stride * n, weight * share
        yield index[:, None], weight[:, None]


def axis_taps(place, n, rules, times) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(pixel, weight derived ``times`` along ``place``) of each tap along an axis of n pixels.

    A pixel that does not exist has the weight 0 and the index of one at the edge.
    """
    _, mode, padding_mode, align_corners = rules
    last, half = n - 1, (n - align_corners) / 2
    x = last / 2 + place * half  # in pixels
    chain = half**times
    low = 0.0 if align_corners else -0.5
    if padding_mode == "reflection" and mode != "bicubic":
        x, odd = _reflect(x, 2 * half, low)
        chain = torch.where(odd, -chain, chain) if times % 2 else chain
    if padding_mode != "zeros" and mode != "bicubic":
        if times:  # PyTorch's derivative is zero at and beyond the edge
            chain = torch.where((x > 0) & (x < last), chain, 0.0)
        x = x.clamp(0, last)
    if mode == "nearest":
        taps = [(x.round(), torch.ones_like(x))]
    elif mode == "bilinear":
        left = x.floor()
        share = x - left
        weights = (1 - share, share) if times == 0 else (-torch.ones_like(x), torch.ones_like(x))
        taps = [(left, weights[0]), (left + 1, weights[1])]
    else:
        left = x.floor()
        taps = [(left + offset, _cubic(x - left - offset, times)) for offset in (-1, 0, 1, 2)]
        if padding_mode == "reflection":
            taps = [(_reflect(tap, 2 * half, low)[0], weight) for tap, weight in taps]
        if padding_mode != "zeros":
            taps = [(tap.clamp(0, last), weight) for tap, weight in taps]
    near = [tap.clamp(0, last) for tap, _ in taps]
    return [
        (pixel.long(), torch.where(pixel == tap, weight * chain, 0.0))
        for pixel, (tap, weight) in zip(near, taps, strict=True)
    ]


def _cubic(s, times):
    """Keys' kernel, derived ``times``, at signed distances of up to 2."""
    a, d = _CUBIC, s.abs()
    if times == 0:
        near, far = ((a + 2) * d - (a + 3)) * d * d + 1, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    elif times == 1:
        near = (3 * (a + 2) * d - 2 * (a + 3)) * d
        far = (3 * a * d - 10 * a) * d + 8 * a
    elif times == 2:
        near, far = 6 * (a + 2) * d - 2 * (a + 3), 6 * a * d - 10 * a
    else:
        near, far = torch.full_like(d, 6 * (a + 2)), torch.full_like(d, 6 * a)
    derivative = torch.where(d <= 1, near, far)
    return torch.where(s < 0, -derivative, derivative) if times % 2 else derivative


def _reflect(x, span, low):
    """(x reflected into [low, low + span], whether it runs backwards there)."""
    if span <= 0:  # an axis of one place
        return x * 0.0, torch.zeros_like(x, dtype=torch.bool)
    flips = ((x - low) / span).floor()
    rest = x - low - flips * span  # in [0, span)
    odd = flips.remainder(2) != 0
    return torch.where(odd, span - rest, rest) + low, odd
