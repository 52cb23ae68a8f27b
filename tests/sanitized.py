"""Small calls that between them take every backward path: what a memory checker is run over.

    compute-sanitizer --tool memcheck python tests/sanitized.py

Compiled kernels on a GPU, else interpreted ones on the CPU. Sizes are odd, so that every tile has
an edge; results are checked elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

if not torch.cuda.is_available():
    # Triton reads it when a kernel is decorated, so before triton_stn is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import triton_stn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
UPRIGHT = ((1.1, 0.0, 0.05), (0.0, 1.2, -0.1))
TURNED = ((0.95, -0.35, 0.02), (0.35, 0.95, -0.03))
MAGNIFIED = ((0.7, 0.1, 0.0), (-0.1, 0.7, 0.1))
SINGULAR = ((0.6, 0.3, 0.0), (0.4, 0.2, 0.1))
TILTED = ((1.0, 0.1, 0.0), (-0.1, 0.9, 0.1), (0.2, 0.1, 1.0))
BLOCK = ((0.9, -0.2, 0.1, 0.0), (0.2, 0.8, 0.0, 0.1), (0.0, 0.1, 0.9, -0.1))
BLOCK_MAGNIFIED = ((0.1, 0.0, 0.0, 0.1), (0.0, 0.1, 0.02, 0.0), (0.0, 0.0, 0.1, 0.0))
SPLINE = triton_stn.ThinPlateSpline(3, 3)


def sliced(x: torch.Tensor) -> torch.Tensor:
    """The same numbers in the middle of a larger buffer, every second column of it."""
    big = x.new_zeros(*x.shape[:-2], x.shape[-2] + 2, 2 * x.shape[-1] + 1)
    view = big[..., 1:-1, 1::2]
    return view.copy_(x)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    last = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    return x.contiguous(memory_format=last)


@dataclass(frozen=True)
class Call:
    """``spatial_transform`` of (N, C, *extent) and its backward, for both gradients."""

    shape: tuple[int, ...]
    size: tuple[int, ...]
    theta: tuple  # of every image, K times
    k: int = 1
    transform: str | triton_stn.transforms.Transform = "affine"
    mode: str = "bilinear"
    padding_mode: str = "zeros"
    dtype: torch.dtype = torch.float32
    layout: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.contiguous


CALLS = {
    "axis": Call((2, 3, 19, 23), (17, 21), UPRIGHT),
    "three, K maps": Call((2, 1, 21, 13), (19, 11), TURNED, k=3),
    "walk, channels-last halves": Call(
        (1, 11, 7, 9), (9, 11), MAGNIFIED, dtype=torch.float16, layout=channels_last
    ),
    "wide, strided": Call((1, 2, 19, 21), (23, 19), SINGULAR, layout=sliced),
    "border": Call((2, 5, 17, 13), (15, 19), TURNED, padding_mode="border"),
    "reflection, halves": Call(
        (1, 3, 13, 17), (19, 15), TURNED, padding_mode="reflection", dtype=torch.float16
    ),
    "bicubic, channels-last": Call(
        (1, 9, 7, 9), (9, 5), TURNED, mode="bicubic", layout=channels_last
    ),
    "projective, strided": Call((2, 2, 19, 21), (17, 23), TILTED, 1, "projective", layout=sliced),
    "spline": Call((2, 3, 17, 19), (19, 15), tuple(map(tuple, SPLINE.points.tolist())), 1, SPLINE),
    "volume": Call((1, 3, 5, 7, 9), (7, 5, 3), BLOCK),
    "volume scattered, channels-last": Call(
        (1, 9, 5, 3, 7), (5, 7, 3), BLOCK_MAGNIFIED, layout=channels_last
    ),
}


def run(call: Call) -> None:
    """Forward, and backward for both gradients."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE, call.dtype)

    n, c = call.shape[:2]
    several = (call.k,) if call.k > 1 else ()
    input = call.layout(noise(*call.shape)).requires_grad_()
    theta = torch.tensor(call.theta, dtype=torch.float32, device=DEVICE)
    theta = theta.expand(n, *several, *theta.shape).clone().requires_grad_()
    options = dict(transform=call.transform, mode=call.mode, padding_mode=call.padding_mode)
    y = triton_stn.spatial_transform(input, theta, call.size, **options)
    grad = noise(n * call.k, c, *call.size)
    grad = call.layout(grad).view(y.shape) if several else call.layout(grad)
    for gradient in torch.autograd.grad(y, (input, theta), grad):
        assert gradient.isfinite().all()


def main() -> None:
    with triton_stn.use_backend("triton"):
        for name, call in CALLS.items():
            run(call)
            print(f"{name}: ran on {DEVICE}", flush=True)


if __name__ == "__main__":
    main()
