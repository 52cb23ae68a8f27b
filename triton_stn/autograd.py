"""The registered operators, their fake kernels and their derivatives.

``triton_stn::sample`` and ``triton_stn::sample_backward`` run the Triton backend, on images and on
volumes, on whatever device the tensors are on; their fake kernels let torch.compile trace through
them. A plain eager call does without the dispatcher: `sample` goes straight to the Function, or
where no gradient is wanted to the launcher.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

from triton_stn.backends.layout import empty_gradients, empty_output

try:
    from triton_stn.backends import fused
except ImportError:  # without Triton: the operators exist, and `use_backend` never calls them
    fused = None

_library = torch.library.Library("triton_stn", "DEF")
_library.define(
    "sample(Tensor input, Tensor theta, SymInt[] size, str mode, str padding_mode, "
    'bool align_corners, str source="affine", float? fill=None, Tensor? fills=None) -> Tensor',
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "sample_backward(Tensor grad_output, Tensor input, Tensor theta, str mode, "
    "str padding_mode, bool align_corners, bool needs_input, bool needs_theta, "
    'str source="affine", float? fill=None, Tensor? fills=None) -> (Tensor, Tensor)',
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl(_library, "sample", "CompositeExplicitAutograd")
def _sample(*args):
    return fused.sample(*args)


@torch.library.register_fake("triton_stn::sample", lib=_library)
def _sample_fake(input, theta, size, *options):
    return empty_output(input, theta.shape[1], *size)


@torch.library.impl(_library, "sample_backward", "CompositeExplicitAutograd")
def _sample_backward(*args):
    return fused.sample_backward(*args)


@torch.library.register_fake("triton_stn::sample_backward", lib=_library)
def _sample_backward_fake(
    grad_output, input, theta, mode, padding_mode, align_corners, needs_input, needs_theta, *options
):
    return empty_gradients(input, theta, needs_input, needs_theta)


class Sample(torch.autograd.Function):
    """input (N, C, *), theta (N, K, *) -> (N, K, C, *size), of images and of volumes.

    ``options`` are mode, padding_mode, align_corners, the source, and what lies outside: a number
    and a tensor, or None. Saves its two inputs.
    """

    @staticmethod
    def forward(ctx, input, theta, size, *options):
        *ctx.options, fills = options
        ctx.save_for_backward(input, theta, fills)
        return _below_autograd("sample", input, theta, size, *options)

    @staticmethod
    def backward(ctx, grad_output):
        input, theta, fills = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        needs_input, needs_theta = needs
        *rules, source, fill = ctx.options
        grads = _below_autograd(
            "sample_backward", grad_output, input, theta, *rules, *needs, source, fill, fills
        )
        grads = (grads[0] if needs_input else None, grads[1] if needs_theta else None)
        if torch.is_grad_enabled():  # create_graph=True
            grads = once(*grads, grad_output, input, theta)
        return (*grads, *(None,) * (2 + len(ctx.options)))


class Splat(torch.autograd.Function):
    """grad_output (N, K, C, h, w), theta (N, K, *) -> (N, C, H, W): the transpose of sampling.

    ``rules`` are (mode, padding_mode, align_corners, source). ``backend`` has ``sample`` and
    ``sample_backward``: this module, or ``backends.pytorch``.
    """

    @staticmethod
    def forward(ctx, planes, theta, size, rules, backend):
        ctx.save_for_backward(planes, theta)
        ctx.rules, ctx.backend = rules, backend
        *options, source = rules
        # Its values are not read, its layout is.
        image = empty_output(planes[:, 0], 1, *size).squeeze(1)
        return backend.sample_backward(planes, image, theta, *options, True, False, source)[0]

    @staticmethod
    def backward(ctx, grad):
        planes, theta = ctx.saved_tensors
        *options, source = ctx.rules
        grad_planes = grad_theta = None
        with torch.no_grad():
            if ctx.needs_input_grad[0]:
                grad_planes = ctx.backend.sample(grad, theta, planes.shape[3:], *ctx.rules)
            if ctx.needs_input_grad[1]:
                grad_theta = ctx.backend.sample_backward(
                    planes, grad, theta, *options, False, True, source
                )[1]
        if torch.is_grad_enabled():
            grad_planes, grad_theta = once(grad_planes, grad_theta, grad, planes, theta)
        return grad_planes, grad_theta, None, None, None


def once(grad_input, grad_theta, *behind):
    """The gradients, or None, as they are, and a refusal where they would be differentiated again.

    Without it a second derivative would silently lack what goes through the tensors behind.
    """
    wrapped = iter(Once.apply(*(g for g in (grad_input, grad_theta) if g is not None), *behind))
    return tuple(None if g is None else next(wrapped) for g in (grad_input, grad_theta))


class Once(torch.autograd.Function):
    """See `once`: the last three tensors are those behind the gradients."""

    @staticmethod
    def forward(ctx, *tensors):
        return tuple(gradient.view_as(gradient) for gradient in tensors[:-3])

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(
            "the Triton backend of triton_stn, and splat, are differentiable once; for second "
            "derivatives sample with triton_stn.use_backend('torch')"
        )


def _below_autograd(name, *args):
    """An operator past its Autograd kernel; of plain tensors past the dispatcher too."""
    if is_plain(*(arg for arg in args[:3] if isinstance(arg, torch.Tensor))):
        return getattr(fused, name)(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return getattr(torch.ops.triton_stn, name)(*args)


@torch.library.impl(_library, "sample", "Autograd")
def _sample_autograd(
    input, theta, size, mode, padding_mode, align_corners, source="affine", fill=None, fills=None
):
    options = (mode, padding_mode, align_corners, source, fill, fills)
    return Sample.apply(input, theta, size, *options)


PLAIN = (torch.Tensor, torch.nn.Parameter)


def is_plain(*tensors: torch.Tensor) -> bool:
    """Whether nothing watches the operators: no compiler, tracer, mode, transform or subclass, and
    there are numbers to work on."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or any(type(tensor) not in PLAIN or tensor.is_meta for tensor in tensors)
    )


def sample(
    input, theta, size, mode, padding_mode, align_corners, source="affine", fill=None, fills=None
):
    """(N, K, C, *size), by the Triton backend, differentiable once, and not in ``fills``."""
    arguments = (input, theta, size, mode, padding_mode, align_corners, source, fill, fills)
    if not is_plain(input, theta, *(() if fills is None else (fills,))):
        return torch.ops.triton_stn.sample(*arguments)
    wanted = torch.is_grad_enabled() and (input.requires_grad or theta.requires_grad)
    if wanted or forward_ad._current_level >= 0:  # which the Function refuses
        return Sample.apply(*arguments)
    return fused.sample(*arguments)


sample_backward = torch.ops.triton_stn.sample_backward
