"""A plain call, kept: one look-up from its arguments to all that does not depend on values.

`spatial_transform` of plain tensors through an affine map is checked, planned and laid out once;
the same call again allocates and launches. Everything else, from a compiler that traces to a
spline, takes the way of the operators.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import torch
from torch.autograd import forward_ad

from triton_stn import autograd, backends
from triton_stn.backends import PLAIN, is_unwatched
from triton_stn.backends.batched import by_vmap, is_batched
from triton_stn.backends.layout import Layout, empty_output, layout

is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor

_kept: dict[tuple, Call] = {}
MOST = 4096  # calls; more are as many layouts, and begin anew


def key_of(input: torch.Tensor, theta: torch.Tensor, options: tuple[Hashable, ...]) -> tuple | None:
    """What a call is kept by; None where something watches it, or did, and of what is no call."""
    plain = (
        type(input) in PLAIN
        and type(theta) in PLAIN
        and is_unwatched()
        and forward_ad._current_level < 0
        and not (input.is_neg() or theta.is_neg())
        and not (is_wrapped(input) or is_wrapped(theta))  # by a transform that is over
    )
    return (
        input.shape, input.stride(), input.dtype, input.device,
        theta.shape, theta.stride(), theta.dtype, theta.device,
        backends._choice, options,
    ) if plain else None  # fmt: skip


def find(input: torch.Tensor, theta: torch.Tensor, options: tuple[Hashable, ...]) -> Call | None:
    """The call as it was kept."""
    if not _kept:  # as on the CPU, where none is
        return None
    try:
        return _kept.get(key_of(input, theta, options))
    except TypeError:  # an argument of a wrong type, which the checks will name
        return None


def keep(
    input: torch.Tensor, theta: torch.Tensor, options: tuple[Hashable, ...], *checked: Any
) -> Call | None:
    """Keep a call that has been checked, if it is one of those that can be.

    It serves from the first time on: a checkpoint compares what two calls save.
    """
    key = key_of(input, theta, options)
    if key is None or not Call.serves(input, theta, *checked):
        return None
    try:
        hash(key)  # a list as output_size has none
    except TypeError:
        return None
    if len(_kept) >= MOST:
        _kept.clear()
    _kept[key] = call = Call(input, theta, *checked)
    return call


def forget() -> None:
    _kept.clear()


class Call:
    """An affine map an image, or K: theta (N, 2, 3), (N, K, 2, 3), or of volumes."""

    @staticmethod
    def serves(input, theta, size, rules) -> bool:
        rows = theta.stride()[-2:] == (theta.shape[-1], 1)
        some = input.numel() > 0 and theta.numel() > 0
        alike = theta.ndim > 2 and theta.shape[0] == input.shape[0]
        floats = input.is_floating_point()
        return rules[0] == "bilinear" and rows and some and alike and floats

    def __init__(self, input, theta, size, rules):
        from triton_stn.backends import plans  # after `backends.uses_triton` has said yes

        self.plans = plans
        self.sampling = plans.Sampling(*rules)
        self.has_k = theta.ndim == 4
        self.theta = layout(theta if self.has_k else theta[:, None])
        self.input = layout(input)
        self.saved = input.stride(), theta.stride()
        output = empty_output(input.detach().to("meta"), self.theta.shape[1], *size)
        self.output = layout(output)
        shown = layout(output if self.has_k else output.squeeze(1))
        self.shape, self.strides = shown.shape, shown.strides
        like = torch.empty_like(input, device="meta")
        self.as_input = (like.shape, like.stride()) == (shown.shape, shown.strides)
        self.how = autograd.How(tuple(size), *rules, source="affine", triton=True)
        self.launches = plans.plan_forward(self.input, self.theta, self.output, self.sampling)
        self.backward_plans: dict[tuple, Any] = {}

    def __call__(self, input: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        if (input.requires_grad or theta.requires_grad) and torch.is_grad_enabled():
            return _apply(input, theta, self)
        return self.forward(input, theta)

    def forward(self, input: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        if self.as_input:
            output = torch.empty_like(input)
        else:
            output = input.new_empty_strided(self.shape, self.strides)
        tensors = {"X": input, "THETA": theta, "Y": output}
        autograd.fused.launch(self.launches, input.device, tensors)
        return output

    def planned(self, grad_output: torch.Tensor, needs_input: bool, needs_theta: bool):
        """A backward, as `autograd.fused.launch_backward` takes it."""
        deterministic = torch.are_deterministic_algorithms_enabled()
        key = grad_output.stride(), needs_input, needs_theta, deterministic
        found = self.backward_plans.get(key)
        if found is None:
            found = self.backward_plans[key] = self._plan_backward(*key)
        return found

    def gradients(self, grad_output, input, theta, needs_input: bool, needs_theta: bool):
        """Differentiable ones, None where they are not needed."""
        if not self.has_k:
            grad_output, theta = grad_output[:, None], theta[:, None]
        how = replace(self.how, needs=(needs_input, needs_theta))
        of_input, of_theta = autograd.gradients(grad_output, input, theta, None, how)
        of_theta = of_theta if self.has_k or not needs_theta else of_theta.squeeze(1)
        return of_input if needs_input else None, of_theta if needs_theta else None

    def _plan_backward(self, strides, needs_input, needs_theta, deterministic):
        strides = strides if self.has_k else (strides[0], 0, *strides[1:])
        plans = self.plans
        grad_output = Layout(self.output.shape, strides, self.output.dtype)
        wanted = plans.Wanted(needs_input, needs_theta, deterministic)
        return plans.plan_backward(grad_output, self.input, self.theta, self.sampling, wanted)


class Sample(torch.autograd.Function):
    """As `autograd.Sample`, of a kept call."""

    @staticmethod
    def forward(ctx, input, theta, call):
        ctx.save_for_backward(input, theta)
        ctx.call = call
        return call.forward(input, theta)

    @staticmethod
    def backward(ctx, grad_output):
        plain = type(grad_output) in PLAIN and not grad_output.is_meta and is_unwatched()
        if torch.is_grad_enabled() or is_batched(grad_output) or not plain or grad_output.is_neg():
            # create_graph=True, is_grads_batched=True
            return Sample.gradients(ctx, grad_output)
        input, theta = ctx.saved_tensors  # once: a checkpoint makes them anew
        needs_input, needs_theta, _ = ctx.needs_input_grad
        if (input.stride(), theta.stride()) != ctx.call.saved:  # by hooks on what is saved
            return *ctx.call.gradients(grad_output, input, theta, needs_input, needs_theta), None
        found = ctx.call.planned(grad_output, needs_input, needs_theta)
        launch = autograd.fused.launch_backward
        both = launch(found, grad_output, input, theta, needs_input, needs_theta)
        return both[0], both[1], None

    @staticmethod
    @by_vmap
    def gradients(ctx, grad_output):
        needs_input, needs_theta, _ = ctx.needs_input_grad
        grads = ctx.call.gradients(grad_output, *ctx.saved_tensors, needs_input, needs_theta)
        return *grads, None


# `Sample.apply` without what it does for functorch, which does not watch a plain call.
_apply = super(torch.autograd.Function, Sample).apply
