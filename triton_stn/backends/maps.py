"""What θ means, in PyTorch alone: the grid that each source reads at, and the derivatives of it.

Every map has, of theta (N, K, *) and of points p (N, K, *size, ndim),

* ``grid(theta)``: p, normalised coordinates;
* ``push(theta, theta_t)``: how p moves when theta moves by ``theta_t``;
* ``pull(theta, grad)``: the transpose of ``push``, which makes a gradient of p one of theta;
* ``bend(theta, theta_t, grad)``: how ``pull`` changes when theta moves, unless p is ``linear``.

All are made of operations that PyTorch differentiates, and look at no value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from triton_stn.backends.numbers import without_autocast
from triton_stn.backends.pytorch_grid import (
    Rules,
    affine_grid,
    centred,
    flow_extent,
    flow_grid,
    theta_gradient,
)

# A point is out of view where the homogeneous coordinate w is at most this share of the largest |w|
# that θ gives in the square |X|, |Y| <= 1. A float32 w that small is one tenth rounding error.
MIN_W = 1e-6
# The normalised coordinate, along both axes, of a point that has none: far outside of any padding.
OUT_OF_VIEW = 1e4


def map_of(source: str, rules: Rules, extent: Sequence[int]) -> Map:
    """The map of a source of the kernels, of an output and an input of a size."""
    return _MAPS[source](rules, tuple(extent))


@dataclass(frozen=True)
class Map:
    """A grid of its own: theta is p."""

    rules: Rules
    extent: tuple[int, ...]  # the input's size
    linear: ClassVar[bool] = True  # p, in theta

    def grid(self, theta):
        return theta

    def push(self, theta, theta_t):
        return theta_t

    def pull(self, theta, grad):
        return grad

    def points(self, like: torch.Tensor) -> torch.Tensor:
        """The output's pixels, (prod(size), ndim)."""
        return pixels(self.rules.size, self.rules.align_corners, like)


class _Flow(Map):
    """theta (N, K, H_out, W_out, 2): displacements in pixels."""

    def grid(self, theta):
        return flow_grid(theta, self.extent, self.rules.align_corners)

    def push(self, theta, theta_t):
        return theta_t * (2 / flow_extent(self.extent, self.rules.align_corners, theta_t))

    def pull(self, theta, grad):
        return self.push(theta, grad)


class _Affine(Map):
    """theta (N, K, 2, 3) or (N, K, 3, 4)."""

    def grid(self, theta):
        at_kinks = self.rules.mode == "bilinear"
        grid = affine_grid(theta, self.rules, self.extent if at_kinks else None)
        return grid.unflatten(1, (theta.shape[1], self.rules.size[0]))

    def push(self, theta, theta_t):
        grid = affine_grid(theta_t, self.rules)
        return grid.unflatten(1, (theta_t.shape[1], self.rules.size[0]))

    def pull(self, theta, grad):
        return theta_gradient(grad.flatten(1, 2), theta, self.rules)


class _Spline(Map):
    """theta (N, K, T + 3, 4): coefficients (x, y), and the control points, which stand still."""

    def grid(self, theta):
        return self.push(theta, theta)

    def push(self, theta, theta_t):
        planes = _product(self._basis(theta), theta_t[..., :2])
        return planes.unflatten(2, self.rules.size)

    def pull(self, theta, grad):
        grad = _product(self._basis(theta).transpose(-1, -2), grad.flatten(2, 3))
        return torch.cat((grad, torch.zeros_like(grad)), -1)

    def _basis(self, theta):
        """(N, K, P, T + 3)."""
        points = self.points(theta)
        centres = theta[..., :-3, 2:].detach()
        affine = torch.cat((torch.ones_like(points[:, :1]), points), -1)
        affine = affine.expand(*theta.shape[:2], *affine.shape)
        return torch.cat((radial(points, centres), affine), -1)


class _Projective(Map):
    """theta (N, K, 3, 3): x = x'/w, y = y'/w, all linear in theta. What is out of view stays."""

    linear: ClassVar[bool] = False

    def grid(self, theta):
        return view(theta, self.points(theta)).places.unflatten(2, self.rules.size)

    def push(self, theta, theta_t):
        _, _, near_t = self._moving(theta, theta_t)
        return near_t.unflatten(2, self.rules.size)

    def pull(self, theta, grad):
        at = view(theta, self.points(theta))
        grad = grad.flatten(2, 3) / at.w  # of x' and y'
        return self._sum(grad, -(grad * at.near).sum(-1, keepdim=True))

    def bend(self, theta, theta_t, grad):
        at, w_t, near_t = self._moving(theta, theta_t)
        grad = grad.flatten(2, 3) / at.w
        moved = -grad * w_t / at.w
        return self._sum(moved, -(moved * at.near + grad * near_t).sum(-1, keepdim=True))

    def _moving(self, theta, theta_t):
        """(`View`, how w moves, how x and y do (N, K, P, 2)); nothing does where w is infinite."""
        at = view(theta, self.points(theta))
        *xy, w_t = homogeneous(theta_t, self.points(theta)).split(1, -1)
        w_t = torch.where(at.w.isinf(), 0.0, w_t)
        return at, w_t, (torch.cat(xy, -1) - at.near * w_t) / at.w

    def _sum(self, of_xy, of_w):
        """The gradient of theta, from those of x', y' and w: (N, K, P, 2), (N, K, P, 1)."""
        points = torch.nn.functional.pad(self.points(of_xy), (0, 1), value=1.0)  # (P, 3)
        return _product(torch.cat((of_xy, of_w), -1).transpose(-1, -2), points)


_MAPS = {
    "grid": Map,
    "flow": _Flow,
    "affine": _Affine,
    "spline": _Spline,
    "projective": _Projective,
}


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of matrices, whatever autocast says."""
    with without_autocast(a):
        return a @ b


@dataclass(frozen=True)
class View:
    """Points under a homography."""

    places: torch.Tensor  # (..., P, 2), where they are read
    near: torch.Tensor  # the same, 0 out of view
    w: torch.Tensor  # (..., P, 1), infinite there


def view(theta: torch.Tensor, points: torch.Tensor) -> View:
    """Where the homographies (..., 3, 3) read the points (..., P, 2)."""
    xy, w = homogeneous(theta, points).split((2, 1), -1)
    largest = theta.detach()[..., None, 2:, :].abs().sum(-1)  # (..., 1, 1)
    out = w <= MIN_W * largest
    lost = ~(xy.isfinite().all(-1, keepdim=True) & w.isfinite())
    # Safe operands first: the branch not taken has a gradient too. 0·θ carries NaN.
    w = torch.where(out | lost, torch.inf, w)
    near = torch.where(lost, 0.0, xy) / w
    far = torch.where(lost & ~out, torch.nan, OUT_OF_VIEW + 0.0 * largest)
    return View(torch.where(out | lost, far, near), near, w)


def homogeneous(theta: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """(x', y', w) of points (..., P, 2) under homographies (..., 3, 3): (..., P, 3)."""
    rows = theta[..., None, :, :]
    x, y = points.split(1, -1)
    return rows[..., 0] * x + rows[..., 1] * y + rows[..., 2]


def radial(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """U(r) = r² log r², 0 at 0, of points (..., P, 2) around centres (..., T, 2): (..., P, T)."""
    x, y = (points[..., None, d] - centres[..., None, :, d] for d in (0, 1))
    square = x.square().add(y.square())
    square = torch.where(square > 0, square, 1.0)  # U too is 0 there, and has a derivative
    return torch.xlogy(square, square)


def pixels(
    size: Sequence[int],
    align_corners: bool,
    like: torch.Tensor,
    edges: Sequence[int] = (0, 0, 0),
) -> torch.Tensor:
    """Normalised coordinates of the pixel centres, row by row: (prod(size), ndim), x first.

    ``edges`` is 1 for an axis along which to take the n + 1 edges of the pixels instead.
    """
    axes = [
        centred(n, edge, align_corners, like.dtype, like.device)
        for n, edge in zip(size, edges, strict=False)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1).flatten(0, -2)
