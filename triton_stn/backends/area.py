"""The mean over each output pixel's area, as bilinear samples: the antialiased PyTorch path.

The same samples as `kernels.area` takes, each of them by ``sample``, whose derivatives are the
whole's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch

from triton_stn.backends import is_plain
from triton_stn.backends.numbers import vector
from triton_stn.backends.pytorch_grid import Rules, in_float

MOST = 16  # samples along an axis
_SOURCES = {"affine": "affine", "patch": "grid"}  # of a sample


def mean_of_samples(
    sample: Callable, input: torch.Tensor, theta: torch.Tensor, rules: Rules, source: str
) -> torch.Tensor:
    """input (N, C, *) -> (N, K, C, *size), of images and of volumes.

    theta is (N, K, 2, 3) of the source "affine", (N, K, 3, 4) of volumes, or of images
    (N, K, H_out, W_out, 6), `Transform.patches`, of "patch". ``sample(input, theta, source)``
    samples bilinearly, "affine" or at a "grid".
    """
    x = in_float(input)
    count, parts = _samples(theta.to(x.dtype), x.shape[2:], rules, source)
    total = 0.0
    for used, _, place in parts:
        total = total + torch.where(used[:, :, None], sample(x, place, _SOURCES[source]), 0.0)
    mean = total / count.prod(-1)[:, :, None]
    return mean.to(input.dtype, memory_format=torch.preserve_format)


def gradients(
    backward: Callable,
    grad: torch.Tensor,
    input: torch.Tensor,
    theta: torch.Tensor,
    rules: Rules,
    source: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of input and theta, without autograd: ``backward(grad, input, theta, source)``
    gives those of a bilinear sample."""
    x = in_float(input)
    count, parts = _samples(theta.to(x.dtype), x.shape[2:], rules, source)
    each = grad.to(x.dtype) / count.prod(-1)[:, :, None]
    grad_input, grad_theta = 0.0, 0.0
    for used, shift, place in parts:
        planes = torch.where(used[:, :, None], each, 0.0)
        of_input, of_place = backward(planes, x, place, _SOURCES[source])
        grad_input = grad_input + of_input
        if source == "affine":  # the place is its last column, moved along the others by `shift`
            shift = shift.flatten(1, 1 + len(rules.size))[:, :, None]
            of_slopes = of_place[..., :-1] + of_place[..., -1:] * shift
            grad_theta = grad_theta + torch.cat((of_slopes, of_place[..., -1:]), -1)
        else:
            of_slopes = shift[..., None] * of_place[..., None, :]  # ((j, i), (x, y))
            grad_theta = grad_theta + torch.cat((of_place, of_slopes.flatten(-2)), -1)
    return grad_input.to(input.dtype), grad_theta.to(theta.dtype)


def _samples(theta, extent, rules, source) -> tuple[torch.Tensor, Iterator]:
    """How many samples each pixel takes, (N, K, *size, (j, i)), and of each of them

    * which pixels take it, (N, K, *size),
    * how far it is from the centre, in the units of the slopes, (N, K, *size, (j, i)),
    * the theta to sample by.
    """
    less, ndim = int(rules.align_corners), len(rules.size)
    spans = vector([n - less for n in reversed(extent)], theta)
    # slopes (N, K, *size, (x, y), (j, i)), alike for all pixels of an affine map
    if source == "patch":
        centres = theta[..., :2]
        slopes = theta[..., 2:].unflatten(-1, (2, 2)).transpose(-1, -2)
        extents = vector([2, 2], theta)  # a pixel's change, where an affine map's is that of 1
    else:
        alike = theta.unflatten(1, (-1, *[1] * ndim))
        centres, slopes = alike[..., -1], alike[..., :-1]
        extents = vector([max(n - less, 1) for n in reversed(rules.size)], theta)
    sides = slopes.detach() * spans[:, None] / extents  # pixels
    count = (sides.square().sum(-2).sqrt() - 0.01).clamp(max=MOST).ceil()
    count = torch.where(count > 1, count, 1.0)  # 1 where NaN

    def each():
        for index in itertools.product(*map(range, Most.apply(count).int().tolist())):
            part = vector(index, theta)
            used = (part < count).all(-1)
            if is_plain(used) and not used.any():
                continue
            shift = torch.where(used[..., None], (2 * part + 1 - count) / count / extents, 0.0)
            place = centres + (slopes * shift[..., None, :]).sum(-1)
            if source == "affine":
                place = torch.cat((slopes, place[..., None]), -1).flatten(1, 1 + ndim)
            yield used, shift, place

    return count, each()


class Most(torch.autograd.Function):
    """The largest count along each axis, (ndim,), of all that vmap maps over too."""

    @staticmethod
    def forward(count):
        return count.flatten(0, -2).amax(0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx, grad):
        return None

    @staticmethod
    def jvp(ctx, count_t):
        return None

    @staticmethod
    def vmap(info, in_dims, count):
        return Most.apply(count.movedim(in_dims[0], 0)), None
