"""Who is measured: one entry of ``PROVIDERS`` a provider, one function for its call."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import triton_stn
from bench.passes import Forward

YARDSTICK = "eager"  # the provider that speedups are against


@dataclass(frozen=True)
class Provider:
    """Something that samples images.

    ``build()`` is called once a case, dtype and layout and returns the forward
    ``f(input, theta, output_size, padding_mode, align_corners)``, with input (N, C, H, W), theta
    (N, 2, 3) or (N, K, 2, 3) in float32, and the result (N, C, H_out, W_out) or (N, K, C, H_out,
    W_out). ``why_not(device_type, dtype)`` gives the reason to skip it, or "".
    ``half_coordinates`` says that it computes coordinates in the image's dtype.
    """

    name: str
    build: Callable[[], Forward]
    why_not: Callable[[str, str], str] = lambda device_type, dtype: ""
    half_coordinates: bool = False


def ours(
    input: torch.Tensor,
    theta: torch.Tensor,
    size: tuple[int, int],
    padding_mode: str,
    align_corners: bool,
) -> torch.Tensor:
    """The library's public function; on a CPU that is its pure-PyTorch path."""
    return triton_stn.spatial_transform(
        input, theta, size, padding_mode=padding_mode, align_corners=align_corners
    )


def eager(
    input: torch.Tensor,
    theta: torch.Tensor,
    size: tuple[int, int],
    padding_mode: str,
    align_corners: bool,
) -> torch.Tensor:
    """``F.affine_grid`` + ``F.grid_sample``, which want θ in the image's dtype."""
    k = theta.shape[1] if theta.ndim == 4 else 0
    if k:
        # grid_sample takes one grid an image: K maps cost K copies.
        input = input.repeat_interleave(k, 0)
        theta = theta.flatten(0, 1)
    theta = theta.to(input.dtype)
    grid = F.affine_grid(theta, (*input.shape[:2], *size), align_corners)
    y = F.grid_sample(input, grid, "bilinear", padding_mode, align_corners)
    return y.unflatten(0, (-1, k)) if k else y


def build_compiled() -> Forward:
    """``torch.compile`` of the same two calls, for one shape."""
    from torch._functorch import config

    # Donated buffers forbid retain_graph, by which the backward passes are repeated.
    config.donated_buffer = False
    return torch.compile(eager, dynamic=False, fullgraph=True)


def missing(module: str) -> str:
    """The reason to skip a provider that needs ``module``, or ""."""
    return "" if importlib.util.find_spec(module) else f"{module} is not installed"


def _why_not_eager(device_type: str, dtype: str) -> str:
    if device_type == "cpu" and dtype != "float32":
        return "F.grid_sample on the CPU gives NaN or crashes in half precision"
    return ""


def _why_not_compiled(device_type: str, dtype: str) -> str:
    if device_type == "cpu":
        return "torch.compile on the CPU is 3-5x slower than eager, and slow to compile"
    return ""


PROVIDERS = (
    Provider("triton_stn", lambda: ours),
    Provider("eager", lambda: eager, _why_not_eager, half_coordinates=True),
    Provider("compiled", build_compiled, _why_not_compiled, half_coordinates=True),
)
