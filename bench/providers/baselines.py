"""What the providers call: the library, eager PyTorch, and what else samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F

import triton_stn
from bench.suite import sources
from bench.suite.passes import Forward
from triton_stn.transforms.base import pixels


def ours(
    input: torch.Tensor,
    theta: torch.Tensor,
    size: tuple[int, ...],
    padding_mode: str,
    align_corners: bool,
    transform: str = "affine",
    mode: str = "bilinear",
) -> torch.Tensor:
    """The library's public functions; on a CPU that is its pure-PyTorch path."""
    if transform == "grid":
        return triton_stn.grid_sample(input, theta, mode, padding_mode, align_corners)
    if transform == "flow":
        return triton_stn.flow_warp(input, theta, mode, padding_mode)
    return triton_stn.spatial_transform(
        input,
        theta,
        size,
        transform=sources.spline(transform) if transform.startswith("tps") else transform,
        mode=mode,
        padding_mode=padding_mode,
        align_corners=align_corners,
    )


def eager(input: torch.Tensor, theta: torch.Tensor, *how: object) -> torch.Tensor:
    """A grid and ``F.grid_sample``, which wants the grid in the image's dtype."""
    return one_map_an_image(_eager, input, theta, *how)


def one_map_an_image(
    sample: Forward, input: torch.Tensor, theta: torch.Tensor, *how: object
) -> torch.Tensor:
    """``sample`` of what takes one θ an image: K maps (N, K, *) cost K copies of the image."""
    *_, transform, _ = how
    if theta.ndim == 3 or transform in sources.FIELDS:  # no case has K grids an image
        return sample(input, theta, *how)
    k = theta.shape[1]
    y = sample(input.repeat_interleave(k, 0), theta.flatten(0, 1), *how)
    return y.unflatten(0, (-1, k))


def _eager(input, theta, size, padding_mode, align_corners, transform, mode):
    if transform == "affine":  # affine_grid needs no other dtype; the other grids are rounded last
        theta = theta.to(input.dtype)
    grid = sources.grid(transform, theta, input.shape[2:], size, align_corners).to(input.dtype)
    return F.grid_sample(input, grid, mode, padding_mode, align_corners)


def eager_spline(input, theta, size, padding_mode, align_corners, transform, mode):
    """``eager`` of a spline evaluated anew, with the roundings that a kernel has too: the measure
    of errors. The matrix that ``eager`` keeps is rounded from float64.
    """
    grid = sources.spline(transform).source(theta, pixels(size, align_corners, theta))
    grid = grid.unflatten(-2, tuple(size)).to(input.dtype)
    return F.grid_sample(input, grid, mode, padding_mode, align_corners)


def build_eager() -> Forward:
    """Eager once more, for another ``context``: a function of its own, whose errors are its own."""
    return partial(one_map_an_image, _eager)


def build_compiled(mode: str) -> Forward:
    """``torch.compile`` of the same calls, for one shape."""
    from torch._dynamo import config as dynamo
    from torch._functorch import config as functorch

    # Donated buffers forbid retain_graph, by which the backward passes are repeated.
    functorch.donated_buffer = False
    # Two modes, gradients wanted or not, two align_corners: more than 8 and it would run eagerly.
    dynamo.recompile_limit = 64
    return torch.compile(eager, dynamic=False, fullgraph=True, mode=mode)


def build_kornia() -> Forward:
    """kornia's ``homography_warp``, whose normalised homography maps as θ does."""
    from kornia.geometry.transform import homography_warp

    def sample(input, theta, size, padding_mode, align_corners, transform, mode):
        theta = theta.to(input.dtype)
        if transform == "affine":
            last = torch.tensor([0.0, 0.0, 1.0], dtype=theta.dtype, device=theta.device)
            theta = torch.cat((theta, last.expand(len(theta), 1, 3)), 1)
        how = dict(padding_mode=padding_mode, align_corners=align_corners)
        return homography_warp(input, theta, size, **how)

    return partial(one_map_an_image, sample)


def build_fireants() -> Forward:
    """FireANTs' fused affine samplers (CUDA C++). They take channels first alone."""
    from fireants.interpolator import fused_grid_sample

    def sample(input, theta, size, padding_mode, align_corners, transform, mode):
        sampler = getattr(fused_grid_sample, f"fused_grid_sampler_{len(size)}d")
        how = dict(padding_mode=padding_mode, align_corners=align_corners, out_shape=size)
        return sampler(input.contiguous(), theta.to(input.dtype).contiguous(), **how)

    return partial(one_map_an_image, sample)


@contextmanager
def tf32() -> Iterator[None]:
    """Matrix products of float32 may be computed in TF32; by default PyTorch's may not."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
