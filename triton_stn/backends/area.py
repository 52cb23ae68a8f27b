"""The mean over each output pixel's area, as bilinear samples: the antialiased PyTorch path.

The same samples as `kernels.area` takes, each of them by ``sample``, whose derivatives are the
whole's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

from triton_stn.backends import is_plain
from triton_stn.backends.numbers import vector
from triton_stn.backends.pytorch_grid import Rules, in_float

MOST = 16  # samples along an axis


def mean_of_samples(
    sample: Callable, input: torch.Tensor, theta: torch.Tensor, rules: Rules, source: str
) -> torch.Tensor:
    """input (N, C, *) -> (N, K, C, *size), of images and of volumes.

    theta is (N, K, 2, 3) of the source "affine", (N, K, 3, 4) of volumes, or of images
    (N, K, H_out, W_out, 6), `Transform.patches`, of "patch". ``sample(input, theta, source)``
    samples bilinearly, "affine" or at a "grid".
    """
    x = in_float(input)
    theta = theta.to(x.dtype)
    less, ndim = int(rules.align_corners), len(rules.size)
    spans = vector([n - less for n in reversed(input.shape[2:])], theta)
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
    count = torch.where(count > 1, count, 1.0)  # (N, K, *size, (j, i)); 1 where NaN
    most = Most.apply(count).int().tolist()
    total = 0.0
    for index in itertools.product(*map(range, most)):
        part = vector(index, theta)
        used = (part < count).all(-1)  # (N, K, *size)
        if is_plain(used) and not used.any():
            continue
        shift = torch.where(used[..., None], (2 * part + 1 - count) / count / extents, 0.0)
        place = centres + (slopes * shift[..., None, :]).sum(-1)
        if source == "affine":
            place = torch.cat((slopes, place[..., None]), -1).flatten(1, 1 + ndim)
        of_place = "affine" if source == "affine" else "grid"
        total = total + torch.where(used[:, :, None], sample(x, place, of_place), 0.0)
    mean = total / count.prod(-1)[:, :, None]
    return mean.to(input.dtype, memory_format=torch.preserve_format)


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
