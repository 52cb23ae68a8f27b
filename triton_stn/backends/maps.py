"""What θ means, in PyTorch alone: the grid that each source reads at, and the derivatives of it.

Every map has, of theta (N, K, *) and of points p (N, K, *size, ndim),

* ``grid(theta)``: p, normalised coordinates;
* ``push(theta, theta_t)``: how p moves when theta moves by ``theta_t``;
* ``pull(theta, grad)``: the transpose of ``push``, which makes a gradient of p one of theta;
* ``bend(theta, theta_t, grad)``: how ``pull`` changes when theta moves, unless p is ``linear``.

All are made of operations that PyTorch differentiates, and look at no value but on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from triton_stn.backends import is_plain
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
        return self._shown(view(theta, self.points(theta)).places)

    def push(self, theta, theta_t):
        return self._shown(self._moving(theta, theta_t)[2])

    def pull(self, theta, grad):
        at = view(theta, self.points(theta))
        grad = _planes(grad) / at.w  # of x' and y'
        return self._sum(grad, -(grad * at.near).sum(-2, keepdim=True))

    def bend(self, theta, theta_t, grad):
        at, w_t, near_t = self._moving(theta, theta_t)
        grad = _planes(grad) / at.w
        moved = -grad * w_t / at.w
        return self._sum(moved, -(moved * at.near + grad * near_t).sum(-2, keepdim=True))

    def _moving(self, theta, theta_t):
        """(`View`, how w moves, how x and y do (N, K, 2, P)); nothing does where w is infinite."""
        at = view(theta, self.points(theta))
        xy, w_t = homogeneous(theta_t, self.points(theta)).split((2, 1), -2)
        w_t = torch.where(at.w.isinf(), 0.0, w_t)
        return at, w_t, (xy - at.near * w_t) / at.w

    def _sum(self, of_xy, of_w):
        """The gradient of theta, from those of x', y' and w: (N, K, 2, P), (N, K, 1, P)."""
        points = torch.nn.functional.pad(self.points(of_xy), (0, 1), value=1.0)  # (P, 3)
        return _product(torch.cat((of_xy, of_w), -2), points)

    def _shown(self, planes):
        """(N, K, 2, P) -> (N, K, *size, 2)."""
        return planes.unflatten(-1, self.rules.size).movedim(2, -1)


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


def _planes(grad: torch.Tensor) -> torch.Tensor:
    """(N, K, *size, 2) -> (N, K, 2, P)."""
    return grad.movedim(-1, 2).flatten(3)


@dataclass(frozen=True)
class View:
    """Points under a homography, in planes: a CPU is ten times as fast along them as over pairs."""

    places: torch.Tensor  # (..., 2, P), where they are read
    near: torch.Tensor  # the same, 0 out of view
    w: torch.Tensor  # (..., 1, P), infinite there


def view(theta: torch.Tensor, points: torch.Tensor) -> View:
    """Where the homographies (..., 3, 3) read the points (..., P, 2)."""
    planes = homogeneous(theta, points)
    xy, w = planes.split((2, 1), -2)
    largest = theta.detach()[..., 2:, :].abs().sum(-1, keepdim=True)  # (..., 1, 1)
    if _all_in_view(planes.detach(), MIN_W * largest):
        places = xy / w
        return View(places, places, w)
    out = w <= MIN_W * largest
    lost = ~(xy.isfinite().all(-2, keepdim=True) & w.isfinite())
    # Safe operands first: the branch not taken has a gradient too. 0·θ carries NaN.
    w = torch.where(out | lost, torch.inf, w)
    near = torch.where(lost, 0.0, xy) / w
    far = torch.where(lost & ~out, torch.nan, OUT_OF_VIEW + 0.0 * largest)
    return View(torch.where(out | lost, far, near), near, w)


def _all_in_view(planes: torch.Tensor, least_w: torch.Tensor) -> bool:
    """Whether all of (x', y', w) is known to be finite, and in view: on a CPU, which may look."""
    if planes.device.type != "cpu" or not is_plain(planes) or planes.numel() == 0:
        return False
    in_view = planes[..., 2:, :].amin(-1, keepdim=True) > least_w  # of NaN: not
    return bool(in_view.all() and planes.amax() < torch.inf and planes.amin() > -torch.inf)


def homogeneous(theta: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """(x', y', w) of points (..., P, 2) under homographies (..., 3, 3): (..., 3, P)."""
    of_x, of_y, of_one = theta.split(1, -1)  # (..., 3, 1)
    x, y = points.transpose(-1, -2).contiguous().split(1, -2)  # (..., 1, P)
    return of_x * x + of_y * y + of_one


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
