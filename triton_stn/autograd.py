"""Sampling and its transpose as autograd knows them: derivatives of every order and kind.

Sampling y = S(x, θ) is linear in x, and so is its transpose, x = Sᵀ(y, θ), which makes grad_input
and is what `splat` does. `Sample` is the one; `Gradients` is the other, with grad_θ beside it. The
derivatives of both are

* the two themselves, of other tensors, by whichever backend is at work: one kernel each;
* what a move of θ does to either: of the points that θ reads at (`backends.maps`), with weights
  that are derived once more (`backends.taps`).

So they come out differentiable again. The registered operators ``triton_stn::sample`` and
``triton_stn::sample_backward`` run the Triton backend on whatever device the tensors are on; their
fake kernels let torch.compile trace through them. A plain eager call does without the dispatcher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from triton_stn import backends, checks
from triton_stn.backends import area, maps, pytorch, taps
from triton_stn.backends.batched import by_vmap
from triton_stn.backends.layout import empty_gradients, empty_output, one_of
from triton_stn.backends.pytorch_grid import Rules, in_float

try:
    from triton_stn.backends import fused
except ImportError:  # without Triton: the operators exist, and `use_backend` never calls them
    fused = None


@dataclass(frozen=True)
class How:
    """A call without its tensors. (No tuple, which functorch would take for several arguments.)"""

    size: tuple[int, ...]  # of the output
    mode: str
    padding_mode: str
    align_corners: bool
    source: str
    triton: bool  # the backend
    fill: float | None = None  # what lies outside: this, or the tensor ``fills``, or zeros
    needs: tuple[bool, bool] = (True, True)  # grad_input and grad_theta, of `Gradients`
    dtype: torch.dtype | None = None  # of the output of a uint8 input

    @property
    def options(self) -> tuple[str, str, bool]:
        return self.mode, self.padding_mode, self.align_corners

    @property
    def rules(self) -> Rules:
        return Rules(self.size, *self.options)

    @property
    def linear(self) -> How:
        """Without what lies outside."""
        return replace(self, fill=None)

    def points(self, input: torch.Tensor) -> tuple[maps.Map, taps.Weights]:
        extent = input.shape[2:]
        at = maps.map_of(self.source, self.rules, extent)
        return at, taps.Weights.of(self.rules, extent)


def sample(input, theta, fills, how: How) -> torch.Tensor:
    """S: input (N, C, *), theta (N, K, *) -> (N, K, C, *size), of images and of volumes."""
    transformed, plain = backends.is_transformed(), backends.is_plain(input, theta)
    composed = how.mode == "area" if transformed else plain and _is_composed(input, how.mode)
    if composed and input.numel() > 0 and theta.numel() > 0:
        return _mean_of_samples(input, theta, how)
    if transformed:
        return TransformedSample.apply(input, theta, fills, how)
    if not plain and (how.triton or how.mode == "area"):  # whose samples values decide
        options = (how.size, *how.options, how.source, how.fill, fills)
        return torch.ops.triton_stn.sample(input, theta, *options)
    wanted = torch.is_grad_enabled() and (input.requires_grad or theta.requires_grad)
    if wanted and (how.triton or torch._C._get_tracing_state() is None):
        return Sample.apply(input, theta, fills, how)
    return _sampled(input, theta, fills, how)  # by PyTorch's operators, which torch.jit.trace keeps


def sample_bytes(finish, input, theta, fills, how: How) -> torch.Tensor:
    """cast(gain · S + bias) of a uint8 input, by the kernels; ``finish`` as `kernels.Finish`."""
    if not backends.is_plain(input, theta):
        return torch.ops.triton_stn.sample(*_of_bytes(input, theta, fills, finish, how))
    if torch.is_grad_enabled() and theta.requires_grad and how.dtype.is_floating_point:
        return SampleBytes.apply(input, theta, fills, finish, how)
    return _run_sample(*_of_bytes(input, theta, fills, finish, how))


def gradients(grad, input, theta, fills, how: How) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of input, Sᵀ(grad, θ), and of theta; without elements where not needed."""
    if backends.is_transformed():
        return TransformedGradients.apply(grad, input, theta, fills, how)
    if how.triton and not backends.is_plain(grad, input, theta):
        options = (*how.options, *how.needs, how.source, how.fill, fills)
        return torch.ops.triton_stn.sample_backward(grad, input, theta, *options)
    some = grad.requires_grad or input.requires_grad or theta.requires_grad
    if torch.is_grad_enabled() and some:
        return Gradients.apply(grad, input, theta, fills, how)
    return _both_gradients(grad, input, theta, fills, how)


def splat(planes, theta, extent, how: How) -> torch.Tensor:
    """Sᵀ: planes (N, K, C, *size), theta (N, K, *) -> (N, C, *extent)."""
    # Its values are not read, its layout is.
    image = empty_output(one_of(planes).detach(), 1, *extent).squeeze(1)
    return gradients(planes, image, theta, None, replace(how, needs=(True, False)))[0]


class Sample(torch.autograd.Function):
    """See `sample`. Saves its inputs."""

    @staticmethod
    def forward(ctx, *inputs):
        _remember(ctx, inputs, None)
        return _sampled(*inputs)

    @staticmethod
    @by_vmap
    def backward(ctx, grad):
        needs = ctx.needs_input_grad[:2]
        grads = gradients(grad, *_saved(ctx), replace(ctx.how, needs=needs))
        return (
            *(g if needed else None for g, needed in zip(grads, needs, strict=True)),
            None,
            None,
        )


class SampleBytes(torch.autograd.Function):
    """See `sample_bytes`. Forward mode and functorch do not come here."""

    @staticmethod
    def forward(ctx, *inputs):
        _remember(ctx, inputs, None)
        arguments = _of_bytes(*inputs)
        if backends.is_plain(*inputs[:2]):
            return _run_sample(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.triton_stn.sample(*arguments)

    @staticmethod
    @by_vmap
    def backward(ctx, grad):
        input, theta, fills, finish = _saved(ctx)
        how = replace(ctx.how, needs=(False, True), dtype=None)
        if torch.is_grad_enabled() or backends.is_transformed():  # differentiable, and mapped
            made = gradients(*_of_samples(grad, input, finish), theta, fills, how)
        else:
            arguments = (grad, input, theta, *how.options, *how.needs, how.source)
            plain = backends.is_plain(grad, input, theta)
            run = _run_sample_backward if plain else torch.ops.triton_stn.sample_backward
            made = run(*arguments, how.fill, fills, finish)
        return None, made[1], None, None, None


def _of_samples(grad, input, finish) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of samples that were not finished, and the floats that they are of."""
    grad = grad.float()
    if finish is not None:
        grad = grad * finish[0].reshape(-1, *(1 for _ in input.shape[2:]))
    return grad, in_float(input)


class Transformed:
    """What functorch and forward mode want of a Function (a compiler takes none with these)."""

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        _remember(ctx, inputs, outputs)
        ctx.save_for_forward(*inputs[:-1])


class TransformedSample(Transformed, Sample):
    @staticmethod
    def forward(*inputs):
        return _sampled(*inputs)

    @staticmethod
    @by_vmap
    def jvp(ctx, input_t, theta_t, *_):
        input, theta, fills = ctx.saved_tensors
        parts = []
        if input_t is not None:
            parts.append(sample(input_t, theta, None, ctx.how.linear))
        if theta_t is not None:
            parts.append(_along(input, theta, theta_t, fills, ctx.how).to(input.dtype))
        return sum(parts)

    @staticmethod
    def vmap(info, in_dims, input, theta, fills, how):
        _, theta_dim, _, _ = in_dims
        batch = info.batch_size
        if in_dims[0] is None:  # more maps of each image
            theta = theta.movedim(theta_dim, 1).flatten(1, 2)
            return sample(input, theta, fills, how).unflatten(1, (batch, -1)), 1
        input, theta = _folded(batch, in_dims, input, theta)
        return sample(input, theta, fills, how).unflatten(0, (batch, -1)), 0


class Gradients(torch.autograd.Function):
    """See `gradients`. Saves its inputs."""

    @staticmethod
    def forward(ctx, *inputs):
        outputs = _both_gradients(*inputs)
        _remember(ctx, inputs, outputs)
        return outputs

    @staticmethod
    @by_vmap
    def backward(ctx, up_input, up_theta):
        grad, input, theta, fills = _saved(ctx)
        how, needs = ctx.how, ctx.needs_input_grad
        up_input = up_input if how.needs[0] else None
        up_theta = up_theta if how.needs[1] else None
        if how.mode == "area":
            return *_area_again(grad, input, theta, how, up_input, up_theta), None, None
        of_grad, of_input, of_theta = [], [], []
        if up_input is not None:
            if needs[0]:
                of_grad.append(sample(up_input, theta, None, how.linear))
            if needs[2]:
                of_theta.append(_theta_gradient(grad, up_input, theta, how.linear))
        if up_theta is not None:
            if needs[0]:
                of_grad.append(_along(input, theta, up_theta, fills, how).to(grad.dtype))
            if needs[1]:
                of_input.append(_splat_along(grad, input, theta, up_theta, how))
            if needs[2]:
                of_theta.append(_bent(grad, input, theta, up_theta, fills, how))
        return (
            *(sum(parts) if parts else None for parts in (of_grad, of_input, of_theta)),
            None,
            None,
        )


class TransformedGradients(Transformed, Gradients):
    @staticmethod
    def forward(*inputs):
        return _both_gradients(*inputs)

    @staticmethod
    @by_vmap
    def jvp(ctx, grad_t, input_t, theta_t, *_):
        grad, input, theta, fills = ctx.saved_tensors
        how, (needs_input, needs_theta) = ctx.how, ctx.how.needs
        of_input, of_theta = [torch.zeros_like(input)], [torch.zeros_like(theta)]
        if grad_t is not None:
            both = gradients(grad_t, input, theta, fills, how)
            of_input, of_theta = [both[0]], [both[1]]
        if input_t is not None and needs_theta:
            of_theta.append(_theta_gradient(grad, input_t, theta, how.linear))
        if theta_t is not None:
            if needs_input:
                of_input.append(_splat_along(grad, input, theta, theta_t, how))
            if needs_theta:
                of_theta.append(_bent(grad, input, theta, theta_t, fills, how))
        return sum(of_input) if needs_input else None, sum(of_theta) if needs_theta else None

    @staticmethod
    def vmap(info, in_dims, grad, input, theta, fills, how):
        grad, input, theta = _folded(info.batch_size, in_dims, grad, input, theta)
        both = gradients(grad, input, theta, fills, how)
        made = [
            gradient.unflatten(0, (info.batch_size, -1)) if needed else gradient
            for gradient, needed in zip(both, how.needs, strict=True)
        ]
        return tuple(made), tuple(0 if needed else None for needed in how.needs)


def _theta_gradient(grad, input, theta, how) -> torch.Tensor:
    return gradients(grad, input, theta, None, replace(how, needs=(False, True)))[1]


def _mean_of_samples(input, theta, how) -> torch.Tensor:
    def bilinear(x, place, source):
        return sample(x, place, None, replace(how, mode="bilinear", source=source))

    return area.mean_of_samples(bilinear, input, theta, how.rules, how.source)


def _gradients_of_mean(grad, input, theta, how) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of `_mean_of_samples`, differentiable again."""

    def bilinear(planes, x, place, source):
        return gradients(planes, x, place, None, replace(how, mode="bilinear", source=source))

    return area.gradients(bilinear, grad, input, theta, how.rules, how.source)


def _area_again(grad, input, theta, how, up_input, up_theta):
    """What `Gradients.backward` gives, of the mode "area": by samples one by one."""
    how = replace(how, needs=(True, True))

    def both(grad, input, theta):
        return _gradients_of_mean(grad, input, theta, how)

    ups = (
        torch.zeros_like(tensor) if up is None else up
        for tensor, up in ((input, up_input), (theta, up_theta))
    )
    return torch.func.vjp(both, grad, input, theta)[1](tuple(ups))


def _remember(ctx, inputs, outputs) -> None:
    *tensors, ctx.how = inputs
    ctx.save_for_backward(*tensors)
    if isinstance(outputs, tuple):
        both = zip(outputs, ctx.how.needs, strict=True)
        ctx.mark_non_differentiable(*(gradient for gradient, needed in both if not needed))


def _saved(ctx) -> Sequence[torch.Tensor | None]:
    """What was saved, without the wrappings of ``torch.func.vjp`` when it is over."""
    if torch.compiler.is_compiling():
        return ctx.saved_tensors
    unwrap = torch._C._functorch.unwrap_if_dead
    return [tensor if tensor is None else unwrap(tensor) for tensor in ctx.saved_tensors]


def _folded(batch: int, in_dims, *tensors) -> list[torch.Tensor]:
    """Each (*) or (batch, *), by its mapped dimension, as (batch·N, *)."""
    mapped = [
        tensor.expand(batch, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, in_dims, strict=False)
    ]
    return [tensor.flatten(0, 1) for tensor in mapped]


def _moving(input, theta, theta_t, fills, how):
    """(image without what lies outside, points, how they move, their map, weights)."""
    image = in_float(input)
    if how.fill is not None:
        image = image - how.fill
    elif fills is not None:
        image = image - fills.to(image.dtype).view(-1, *(1 for _ in how.size))
    theta, theta_t = theta.to(image.dtype), theta_t.to(image.dtype)
    at, weights = how.points(input)
    return image, at.grid(theta), at.push(theta, theta_t), at, weights


def _along(input, theta, theta_t, fills, how) -> torch.Tensor:
    """The derivative of S(input, θ) while θ moves by ``theta_t``."""
    image, grid, grid_t, _, weights = _moving(input, theta, theta_t, fills, how)
    return taps.along(image, grid, grid_t, weights)


def _splat_along(grad, input, theta, theta_t, how) -> torch.Tensor:
    """The derivative of Sᵀ(grad, θ), likewise."""
    _, grid, grid_t, _, weights = _moving(input, theta, theta_t, None, how.linear)
    return taps.splat_along(grad, grid, grid_t, weights).to(input.dtype)


def _bent(grad, input, theta, theta_t, fills, how) -> torch.Tensor:
    """The derivative of grad_θ, likewise."""
    image, grid, grid_t, at, weights = _moving(input, theta, theta_t, fills, how)
    wide = theta.to(image.dtype)
    bent = at.pull(wide, taps.slopes_along(grad, image, grid, grid_t, weights))
    if not at.linear:
        slopes = taps.slopes(grad, image, grid, weights)
        bent = bent + at.bend(wide, theta_t.to(image.dtype), slopes)
    return bent.to(theta.dtype)


def _sampled(input, theta, fills, how) -> torch.Tensor:
    """S below autograd; of plain tensors past the dispatcher too."""
    if not how.triton:
        return pytorch.sample(input, theta, how.size, *how.options, how.source)
    arguments = (input, theta, how.size, *how.options, how.source, how.fill, fills)
    if backends.is_plain(input, theta):
        return _run_sample(*arguments)  # checked by the public function
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.triton_stn.sample(*arguments)


def _of_bytes(input, theta, fills, finish, how) -> tuple:
    """The operator's arguments."""
    options = (how.size, *how.options, how.source, how.fill, fills)
    return input, theta, *options, how.dtype, finish


def _both_gradients(grad, input, theta, fills, how) -> tuple[torch.Tensor, torch.Tensor]:
    """`gradients` below autograd."""
    arguments = (grad, input, theta, *how.options, *how.needs, how.source)
    if not how.triton:
        return pytorch.sample_backward(*arguments)
    if backends.is_plain(grad, input, theta):
        return _run_sample_backward(*arguments, how.fill, fills)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.triton_stn.sample_backward(*arguments, how.fill, fills)


_library = torch.library.Library("triton_stn", "DEF")
_library.define(
    "sample(Tensor input, Tensor theta, SymInt[] size, str mode, str padding_mode, "
    'bool align_corners, str source="affine", float? fill=None, Tensor? fills=None, '
    "ScalarType? dtype=None, Tensor? finish=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "sample_backward(Tensor grad_output, Tensor input, Tensor theta, str mode, "
    "str padding_mode, bool align_corners, bool needs_input, bool needs_theta, "
    'str source="affine", float? fill=None, Tensor? fills=None, Tensor? finish=None) '
    "-> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl(_library, "sample", "CompositeExplicitAutograd")
def _sample_operator(input, theta, size, mode, padding_mode, corners, source="affine", *outside):
    checks.check_operands(input, theta, len(size), source)
    checks.check_bytes(input, mode, outside[2:])
    return _run_sample(input, theta, size, mode, padding_mode, corners, source, *outside)


def _run_sample(input, theta, size, mode, padding_mode, align_corners, source, *outside):
    options = mode, padding_mode, align_corners, source
    if not _is_composed(input, mode):
        return fused.sample(input, theta, size, *options, *outside)
    how = How(tuple(size), *options, backends.uses_triton(input))
    return empty_output(input, theta.shape[1], *size).copy_(_mean_of_samples(input, theta, how))


@torch.library.register_fake("triton_stn::sample", lib=_library)
def _sample_fake(
    input, theta, size, mode, padding_mode, align_corners, source="affine", fill=None, fills=None,
    dtype=None, finish=None,
):  # fmt: skip
    checks.check_operands(input, theta, len(size), source)
    checks.check_bytes(input, mode, (dtype, finish))
    return empty_output(input, theta.shape[1], *size, dtype=dtype)


@torch.library.impl(_library, "sample", "Autograd")
def _sample_autograd(
    input, theta, size, mode, padding_mode, align_corners, source="affine", fill=None, fills=None,
    dtype=None, finish=None,
):  # fmt: skip
    checks.check_operands(input, theta, len(size), source)
    checks.check_bytes(input, mode, (dtype, finish))
    how = How(tuple(size), mode, padding_mode, align_corners, source, True, fill)
    if input.dtype == torch.uint8:
        how = replace(how, dtype=dtype or torch.uint8)
        return SampleBytes.apply(input, theta, fills, finish, how)
    return Sample.apply(input, theta, fills, how)


@torch.library.impl(_library, "sample_backward", "CompositeExplicitAutograd")
def _sample_backward_operator(
    grad, input, theta, mode, padding_mode, corners, needs_input, needs_theta,
    source="affine", *outside,
):  # fmt: skip
    checks.check_operands(input, theta, grad.ndim - 3, source)
    checks.check_bytes(input, mode, outside[2:], needs_input)
    options = mode, padding_mode, corners, needs_input, needs_theta, source
    return _run_sample_backward(grad, input, theta, *options, *outside)


def _run_sample_backward(
    grad, input, theta, mode, padding_mode, align_corners, needs_input, needs_theta, source,
    *outside,
):  # fmt: skip
    size, needs = grad.shape[3:], (needs_input, needs_theta)
    options = mode, padding_mode, align_corners
    if not _is_composed(input, mode):
        return fused.sample_backward(grad, input, theta, *options, *needs, source, *outside)
    how = How(tuple(size), *options, source, backends.uses_triton(input))
    with torch.no_grad():
        made = _gradients_of_mean(grad, input, theta, how)
    both = empty_gradients(input, theta, *needs)
    return tuple(
        empty.copy_(gradient) if needed else empty
        for empty, gradient, needed in zip(both, made, needs, strict=True)
    )


def _is_composed(input, mode) -> bool:
    """Whether an operator stands for a mean of samples, to whom values are hidden."""
    return mode == "area" and not (input.ndim == 4 and backends.uses_triton(input))


@torch.library.register_fake("triton_stn::sample_backward", lib=_library)
def _sample_backward_fake(
    grad_output, input, theta, mode, padding_mode, align_corners, needs_input, needs_theta, *options
):
    return empty_gradients(input, theta, needs_input, needs_theta)


@torch.library.impl(_library, "sample_backward", "Autograd")
def _sample_backward_autograd(
    grad, input, theta, mode, padding_mode, align_corners, needs_input, needs_theta,
    source="affine", fill=None, fills=None, finish=None,
):  # fmt: skip
    needs = needs_input, needs_theta
    size = tuple(grad.shape[3:])
    checks.check_operands(input, theta, len(size), source)
    checks.check_bytes(input, mode, (finish,), needs_input)
    how = How(size, mode, padding_mode, align_corners, source, True, fill, needs)
    if input.dtype == torch.uint8:
        if torch.is_grad_enabled() and (grad.requires_grad or theta.requires_grad):
            return Gradients.apply(*_of_samples(grad, input, finish), theta, fills, how)
        with torch._C._AutoDispatchBelowAutograd():
            arguments = (grad, input, theta, *how.options, *needs, source, fill, fills, finish)
            return torch.ops.triton_stn.sample_backward(*arguments)
    return Gradients.apply(grad, input, theta, fills, how)
