"""The transforms whose θ is, or becomes, a matrix: affine maps and homographies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from triton_stn.backends.maps import OUT_OF_VIEW, pixels, view
from triton_stn.transforms.base import Transform
from triton_stn.transforms.inverse import inverse


class MatrixTransform(Transform):
    """What amounts to an affine map."""

    is_affine = True

    def source(self, theta: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        *columns, shift = self.matrix(theta)[..., None, :, :].unbind(-1)
        return shift + _combine(columns, points)

    def target(self, theta: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        square, shift = self.matrix(theta).split((self.ndim, 1), -1)
        undo, singular = inverse(square)
        points = _combine(undo[..., None, :, :].unbind(-1), places - shift.transpose(-1, -2))
        return torch.where(singular, OUT_OF_VIEW, points)


@dataclass(frozen=True)
class Affine(MatrixTransform):
    """θ (2, 3), or (3, 4) with ``ndim=3``: the matrix of ``F.affine_grid``.

    Example:
        >>> triton_stn.Affine().identity().tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]

    Source: Jaderberg et al. 2015, arXiv 1506.02025, equation 1.
    """

    ndim: int = 2
    name: ClassVar[str] = "affine"

    def __post_init__(self):
        if self.ndim not in (2, 3):
            raise ValueError(f"ndim must be 2 or 3, got {self.ndim!r}")

    @property
    def theta_shape(self) -> tuple[int, ...]:
        return self.ndim, self.ndim + 1

    def matrix(self, theta: torch.Tensor) -> torch.Tensor:
        return self.check_theta(theta)

    def _identity(self):
        return torch.eye(*self.theta_shape, dtype=torch.float64)


@dataclass(frozen=True)
class Attention(MatrixTransform):
    """θ (3,) = (s, t_x, t_y): isotropic scale and translation, the matrix [s 0 t_x; 0 s t_y].

    Example:
        >>> triton_stn.Attention().matrix(torch.tensor([0.5, 0.25, -0.25])).tolist()
        [[0.5, 0.0, 0.25], [0.0, 0.5, -0.25]]

    Source: Jaderberg et al. 2015, arXiv 1506.02025, equation 2.
    """

    name: ClassVar[str] = "attention"
    theta_shape: ClassVar[tuple[int, ...]] = (3,)

    def matrix(self, theta: torch.Tensor) -> torch.Tensor:
        s, t_x, t_y = self.check_theta(theta).unbind(-1)
        zero = torch.zeros_like(s)
        return torch.stack((s, zero, t_x, zero, s, t_y), -1).unflatten(-1, (2, 3))

    def _identity(self):
        return torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)


@dataclass(frozen=True)
class Similarity(MatrixTransform):
    """θ (4,) = (scale, angle in radians, t_x, t_y): [s·cos −s·sin t_x; s·sin s·cos t_y].

    The rotation is of normalised coordinates: of an image that is not square it shears the pixels
    (``geometry.affine`` does not).

    Example:
        >>> quarter_turn = torch.tensor([2.0, torch.pi / 2, 0.0, 0.5])
        >>> triton_stn.Similarity().matrix(quarter_turn).round(decimals=3) + 0.0
        tensor([[ 0.0000, -2.0000,  0.0000],
                [ 2.0000,  0.0000,  0.5000]])
    """

    name: ClassVar[str] = "similarity"
    theta_shape: ClassVar[tuple[int, ...]] = (4,)

    def matrix(self, theta: torch.Tensor) -> torch.Tensor:
        scale, angle, t_x, t_y = self.check_theta(theta).unbind(-1)
        c, s = scale * angle.cos(), scale * angle.sin()
        return torch.stack((c, -s, t_x, s, c, t_y), -1).unflatten(-1, (2, 3))

    def _identity(self):
        return torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)


@dataclass(frozen=True)
class Projective(Transform):
    """θ (3, 3): a homography; x = (θ00·X + θ01·Y + θ02)/w, y likewise, w = θ20·X + θ21·Y + θ22.

    θ and c·θ are the same map for c > 0. A point lies behind the viewer, and is out of view, where
    w <= 1e-6·(|θ20| + |θ21| + |θ22|), a share of the largest |w| in the square |X|, |Y| <= 1. Its
    coordinates are then 1e4 in both, with a gradient of zero.

    Example:
        >>> theta = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.5, 1.0]])
        >>> corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0]])
        >>> triton_stn.Projective().source(theta, corners).round(decimals=3)
        tensor([[-2.0000, -2.0000],
                [ 2.0000, -2.0000],
                [ 0.6670,  0.6670]])

    Source: Hartley and Zisserman, "Multiple View Geometry", 2004, section 2.3.
    """

    name: ClassVar[str] = "projective"
    theta_shape: ClassVar[tuple[int, ...]] = (3, 3)

    def source(self, theta: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        return view(self.check_theta(theta), points).places.transpose(-1, -2)

    def target(self, theta: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        # w of the inverse is 1/w, so it is negative for what lies behind the viewer.
        undo, singular = inverse(self.check_theta(theta))
        return torch.where(singular, OUT_OF_VIEW, view(undo, places).places.transpose(-1, -2))

    def _linearised(self, theta, size, align_corners):
        # By the derivative: a pixel whose edge is behind the viewer has one too.
        at = view(theta, pixels(size, align_corners, theta))
        rows, last = theta.split((2, 1), -2)  # (..., 2, 3), (..., 1, 3)
        along_j, along_i = (
            (rows[..., d, None] - at.near * last[..., d, None]) / at.w * step
            for d, step in enumerate(2 / max(n - align_corners, 1) for n in reversed(size))
        )
        sides = torch.cat((along_j, along_i), -2)
        return at.places.transpose(-1, -2), sides.transpose(-1, -2)

    def kernel_theta(self, theta: torch.Tensor) -> tuple[str, torch.Tensor]:
        return "projective", self.check_theta(theta)

    def _identity(self):
        return torch.eye(3, dtype=torch.float64)


def _combine(columns: Sequence[torch.Tensor], points: torch.Tensor) -> torch.Tensor:
    """Σ of columns (..., 1, n) times the coordinates of points (..., P, ndim)."""
    return sum(column * x for column, x in zip(columns, points.split(1, -1), strict=True))
