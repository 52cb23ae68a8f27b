"""The registered operators, their fake kernels and their derivatives.

``triton_stn::sample`` and ``triton_stn::sample_backward`` run the Triton backend on
whatever device the tensors are on; their fake kernels let torch.compile trace through them.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from triton_stn.backends.layout import empty_gradients, empty_output

_library = torch.library.Library("triton_stn", "DEF")
_library.define(
    "sample(Tensor input, Tensor theta, SymInt h_out, SymInt w_out, str mode, "
    'str padding_mode, bool align_corners, str source="affine") -> Tensor',
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "sample_backward(Tensor grad_output, Tensor input, Tensor theta, str mode, "
    "str padding_mode, bool align_corners, bool needs_input, bool needs_theta, "
    'str source="affine") -> (Tensor, Tensor)',
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl(_library, "sample", "CompositeExplicitAutograd")
def _sample(input, theta, h_out, w_out, mode, padding_mode, align_corners, source="affine"):
    from triton_stn.backends import fused  # here, so that the package imports without triton

    return fused.sample(input, theta, h_out, w_out, mode, padding_mode, align_corners, source)


@torch.library.register_fake("triton_stn::sample", lib=_library)
def _sample_fake(input, theta, h_out, w_out, mode, padding_mode, align_corners, source="affine"):
    return empty_output(input, theta.shape[1], h_out, w_out)


@torch.library.impl(_library, "sample_backward", "CompositeExplicitAutograd")
def _sample_backward(
    grad_output,
    input,
    theta,
    mode,
    padding_mode,
    align_corners,
    needs_input,
    needs_theta,
    source="affine",
):
    from triton_stn.backends import fused

    return fused.sample_backward(
        grad_output,
        input,
        theta,
        mode,
        padding_mode,
        align_corners,
        needs_input,
        needs_theta,
        source,
    )


@torch.library.register_fake("triton_stn::sample_backward", lib=_library)
def _sample_backward_fake(
    grad_output,
    input,
    theta,
    mode,
    padding_mode,
    align_corners,
    needs_input,
    needs_theta,
    source="affine",
):
    return empty_gradients(input, theta, needs_input, needs_theta)


class Sample(torch.autograd.Function):
    """input (N, C, *), theta (N, K, *) -> (N, K, C, *size), of images and of volumes.

    ``arguments`` are those of the operator after theta. Saves its two inputs.
    """

    @staticmethod
    def forward(ctx, input, theta, *arguments):
        ctx.save_for_backward(input, theta)
        ctx.arguments = arguments
        operator = sample if input.ndim == 4 else sample_3d
        with torch._C._AutoDispatchBelowAutograd():  # past this Function, to the kernel
            return operator(input, theta, *arguments)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        input, theta = ctx.saved_tensors
        needs_input, needs_theta = ctx.needs_input_grad[:2]
        operator = sample_backward if input.ndim == 4 else sample_3d_backward
        # mode, padding_mode and align_corners follow the size; of an image, the source comes last.
        mode, padding_mode, align_corners, *source = ctx.arguments[input.ndim - 2 :]
        options = (mode, padding_mode, align_corners, needs_input, needs_theta, *source)
        grad_input, grad_theta = operator(grad_output, input, theta, *options)
        return (
            grad_input if needs_input else None,
            grad_theta if needs_theta else None,
            *(None,) * len(ctx.arguments),
        )


@torch.library.impl(_library, "sample", "Autograd")
def _sample_autograd(*args):
    return Sample.apply(*args)


sample = torch.ops.triton_stn.sample
sample_backward = torch.ops.triton_stn.sample_backward


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
    @once_differentiable
    def backward(ctx, grad):
        planes, theta = ctx.saved_tensors
        *options, source = ctx.rules
        grad_planes = grad_theta = None
        if ctx.needs_input_grad[0]:
            grad_planes = ctx.backend.sample(grad, theta, *planes.shape[3:], *ctx.rules)
        if ctx.needs_input_grad[1]:
            grad_theta = ctx.backend.sample_backward(
                planes, grad, theta, *options, False, True, source
            )[1]
        return grad_planes, grad_theta, None, None, None


_library.define(
    "sample_3d(Tensor input, Tensor theta, SymInt d_out, SymInt h_out, SymInt w_out, str mode, "
    "str padding_mode, bool align_corners) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "sample_3d_backward(Tensor grad_output, Tensor input, Tensor theta, str mode, "
    "str padding_mode, bool align_corners, bool needs_input, bool needs_theta) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl(_library, "sample_3d", "CompositeExplicitAutograd")
def _sample_3d(*args):
    from triton_stn.backends import volume

    return volume.sample(*args)


@torch.library.register_fake("triton_stn::sample_3d", lib=_library)
def _sample_3d_fake(input, theta, d_out, h_out, w_out, mode, padding_mode, align_corners):
    return empty_output(input, theta.shape[1], d_out, h_out, w_out)


@torch.library.impl(_library, "sample_3d_backward", "CompositeExplicitAutograd")
def _sample_3d_backward(*args):
    from triton_stn.backends import volume

    return volume.sample_backward(*args)


@torch.library.register_fake("triton_stn::sample_3d_backward", lib=_library)
def _sample_3d_backward_fake(
    grad_output, input, theta, mode, padding_mode, align_corners, needs_input, needs_theta
):
    return empty_gradients(input, theta, needs_input, needs_theta)


@torch.library.impl(_library, "sample_3d", "Autograd")
def _sample_3d_autograd(*args):
    return Sample.apply(*args)


sample_3d = torch.ops.triton_stn.sample_3d
sample_3d_backward = torch.ops.triton_stn.sample_3d_backward
