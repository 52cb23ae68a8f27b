"""The oracle: PyTorch's own two calls in float64, and the one rule of how near is right."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

ROTATE = math.cos(math.pi / 4)
THETAS = {
    "random": [[0.83, -0.31, 0.12], [0.27, 1.13, -0.21]],
    "identity": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
    "flip": [[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
    "quarter_turn": [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]],
    "rotation_45": [[ROTATE, -ROTATE, 0.0], [ROTATE, ROTATE, 0.0]],
    "zoom_in_3": [[1 / 3, 0.0, 0.0], [0.0, 1 / 3, 0.0]],
    "zoom_out_2": [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]],
    "shear": [[1.0, 0.6, 0.0], [0.0, 1.0, 0.0]],
    "translation": [[1.0, 0.0, 0.4], [0.0, 1.0, -0.3]],
    "off_image": [[1.0, 0.0, 4.0], [0.0, 1.0, 0.0]],
}
# In pixels along x and y: moves the special maps off the lattice, where dθ has kinks.
NUDGE = (0.37, 0.13)
# Outputs this near to a kink, in pixels, get a gradient of zero. float32 errs by 1e-5 at 33 pixels.
MARGIN = 1e-3


@dataclass(frozen=True)
class Results:
    y: torch.Tensor
    grad_input: torch.Tensor
    grad_theta: torch.Tensor


def run(sample, input, theta, size, grad, **options) -> Results:
    """``sample``'s value and both gradients."""
    input = input.detach().requires_grad_()
    theta = theta.detach().requires_grad_()
    y = sample(input, theta, size, **options)
    grads = torch.autograd.grad(y, (input, theta), grad.to(y.dtype))
    return Results(y.detach(), *grads)


def pytorch(input, theta, size, mode="bilinear", padding_mode="zeros", align_corners=False):
    """``F.affine_grid`` + ``F.grid_sample`` for every shape of theta, in the dtype of input."""
    n = input.shape[0]
    k = theta.shape[1] if theta.ndim == 4 else 1
    maps = theta.to(input.dtype).expand(n, 2, 3) if theta.ndim == 2 else theta.to(input.dtype)
    images = input.repeat_interleave(k, 0)
    grid = F.affine_grid(maps.reshape(n * k, 2, 3), (*images.shape[:2], *size), align_corners)
    y = F.grid_sample(images, grid, mode, padding_mode, align_corners)
    return y.unflatten(0, (n, k)) if theta.ndim == 4 else y


def expected(input, theta, size, grad, **options) -> tuple[Results, Results]:
    """The float64 results, and those of float32 PyTorch, on the CPU."""
    return tuple(
        run(pytorch, input.cpu().to(dtype), theta.cpu().to(dtype), size, grad.cpu(), **options)
        for dtype in (torch.float64, torch.float32)
    )


def assert_right(got: Results, exact: Results, eager: Results) -> None:
    """At most twice eager float32's error, one rounding of the dtype, and 1e-5 of the largest.

    Sample by sample. A float64 result has to be right to 1e-10 of the largest.
    """
    for name in ("y", "grad_input", "grad_theta"):
        result, reference, rival = (getattr(r, name).cpu() for r in (got, exact, eager))
        assert result.shape == reference.shape
        samples = 1 if name == "grad_theta" and reference.ndim == 2 else len(reference)
        largest = partial(largest_of, samples)
        error = largest(result.double() - reference)
        if got.y.dtype == torch.float64:
            allowed = 1e-10 * largest(reference)
        else:
            relative = 1e-5 + torch.finfo(result.dtype).eps
            allowed = 2 * largest(rival.double() - reference) + relative * largest(reference)
        assert (error <= allowed).all(), f"{name}: error {error} where {allowed} is allowed"


def largest_of(samples: int, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.abs().reshape(samples, -1).amax(1)


def spline_by_basis(side):
    """The grid of a spline of side x side control points: solved in float64, evaluated in θ's."""
    ends = torch.linspace(-1, 1, side, dtype=torch.float64)
    points = torch.cartesian_prod(ends, ends).flip(1)

    def rows(at, points):  # U of every control point, 1, X, Y
        r2 = (at[:, None] - points).square().sum(-1)
        return torch.cat((torch.special.xlogy(r2, r2), torch.ones_like(at[:, :1]), at), 1)

    upper = rows(points, points)
    system = torch.cat((upper, F.pad(upper[:, -3:].T, (0, 3))))

    def grid(theta, size, align_corners):
        right = F.pad(theta.double(), (0, 0, 0, 3))
        coefficients = torch.linalg.solve(system, right).to(theta.dtype)
        one = torch.eye(2, 3, dtype=theta.dtype)[None]
        at = F.affine_grid(one, (1, 1, *size), align_corners).view(-1, 2)
        return (rows(at, points.to(theta.dtype)) @ coefficients).unflatten(-2, size)

    return grid


def slopes_agree(place, f, *tensors) -> bool:
    """Both gradients of ``f`` against finite differences, all in float64.

    Every entry of the Jacobian; of interpreted kernels, which are slow, a product of it each way.
    """
    return torch.autograd.gradcheck(f, tensors, fast_mode=place.interpreted, nondet_tol=1e-12)


def nudge(theta: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """Move by a fraction of an input pixel."""
    return theta + torch.tensor([[0, 0, 2 * NUDGE[0] / w], [0, 0, 2 * NUDGE[1] / h]])


def source(theta, h, w, size, align_corners) -> torch.Tensor:
    """Source coordinates in pixels, (..., H_out, W_out, 2), of theta (..., 2, 3)."""
    maps = theta.detach().cpu().double().reshape(-1, 2, 3)
    grid = F.affine_grid(maps, (len(maps), 1, *size), align_corners)
    extent = torch.tensor([w, h], dtype=torch.float64)
    pixels = (grid * (extent - 1 if align_corners else extent) + extent - 1) / 2
    return pixels.reshape(*theta.shape[:-2], *size, 2)


def smooth(theta, h, w, size, align_corners, step: float = 0.5) -> torch.Tensor:
    """1 where no source coordinate is near a multiple of ``step`` (a kink or a tie), else 0.

    An axis of one pixel under align_corners has no kinks: no θ moves its coordinate off 0.
    """
    pixels = source(theta, h, w, size, align_corners)
    distance = (pixels / step - (pixels / step).round()).abs() * step
    fixed = torch.tensor([w, h]) == 1 if align_corners else torch.tensor([False, False])
    return (distance.masked_fill(fixed, torch.inf).amin(-1) > MARGIN).float()


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal number for number, a NaN equal to a NaN."""
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and bool(((a == b) | (a.isnan() & b.isnan())).all())
    )
