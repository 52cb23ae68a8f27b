"""The thin-plate spline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._guards import detect_fake_mode

from triton_stn import checks
from triton_stn.backends import is_plain, is_transformed
from triton_stn.backends.maps import pixels, radial
from triton_stn.backends.numbers import without_autocast
from triton_stn.transforms.base import Transform

# Control points nearer than this share of their extent are one point, or lie on one line.
_DEGENERATE = 1e-6
# Elements of a spline's matrix for one output size, up to which it is kept.
_KEPT = 2**24


class ThinPlateSpline(Transform):
    """θ (T, 2): where each of T control points of the output is read in the input, (x, y).

    The spline is the smoothest map that takes the control points c_k to θ:
    x = a0 + a1·X + a2·Y + Σ_k w_k·U(|p − c_k|), U(r) = r² log r², and likewise y.

    Args:
        rows, cols: control points on a regular grid from -1 to 1 of the output, row by row, x
            fastest. At least 2 each.
        points: instead of these, the control points themselves, a tensor ``(T, 2)`` of normalised
            output coordinates (x, y): at least 3, all different and not on one line.
        ridge: added to the diagonal of the kernel block, >= 0. Above zero the spline smooths: it
            passes near θ and not through it. An affine θ stays exact.

    Attributes:
        points: the control points, float64 on the CPU, ``(T, 2)``; also the identity θ.

    Raises:
        TypeError: rows, cols, points or ridge of the wrong type.
        ValueError: points that give no spline; the message says what was expected.

    Example:
        >>> spline = triton_stn.ThinPlateSpline(2, 2)
        >>> theta = spline.identity()
        >>> theta.tolist()  # the corners of the image
        [[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]
        >>> theta[0] += 0.5  # the upper left one is pulled in, and the centre follows
        >>> spline.grid(theta, 1).round(decimals=4).tolist()
        [[[0.125, 0.125]]]

    Source: Bookstein, "Principal Warps", IEEE TPAMI 11(6), 1989; Jaderberg et al. 2015, arXiv
    1506.02025, section 3.
    """

    name = "tps"

    def __init__(
        self,
        rows: int | None = None,
        cols: int | None = None,
        *,
        points: torch.Tensor | None = None,
        ridge: float = 0.0,
    ) -> None:
        if (rows is None) != (cols is None) or (rows is None) == (points is None):
            raise ValueError(
                "ThinPlateSpline must be given rows and cols, or points, "
                f"got rows={rows!r}, cols={cols!r} and {'no ' * (points is None)}points"
            )
        if isinstance(ridge, bool) or not isinstance(ridge, (int, float)):
            raise TypeError(f"ridge must be a float, got {type(ridge).__name__}")
        if not 0 <= ridge < float("inf"):
            raise ValueError(f"ridge must be finite and at least 0, got {ridge!r}")
        self.rows, self.cols, self.ridge = rows, cols, float(ridge)
        with torch.inference_mode(False):  # as in `_once`
            self.points = _lattice(rows, cols) if points is None else _check_points(points)
            self._inverse = self._solve()
        self.theta_shape = tuple(self.points.shape)
        self._matrices: dict[tuple, torch.Tensor] = {}
        self._copies: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def coefficients(self, theta: torch.Tensor) -> torch.Tensor:
        """The spline's coefficients ``(..., T + 3, 2)``: w_1 … w_T, a0 (constant), a1 (X), a2 (Y).

        L⁻¹ times θ ``(..., T, 2)``, in float64 whatever the dtype of θ, since L is ill-conditioned,
        and rounded once: to float64 for a float64 θ and to float32 otherwise. Differentiable.
        """
        theta = self.check_theta(theta)
        return (self._on(theta.device)[0] @ theta.double()).to(theta.dtype)

    def source(self, theta: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        # (..., T + 3, 2)
        weights, affine = self.coefficients(theta).split((len(self.points), 3), -2)
        basis = radial(points, self._on(points.device)[1].to(points.dtype))  # (P, T)
        a0, a1, a2 = affine.split(1, -2)
        with without_autocast(points):
            return basis @ weights + (a0 + a1 * points[..., :1] + a2 * points[..., 1:])

    def _tangent(self, theta, points):
        weights, affine = self.coefficients(theta).split((len(self.points), 3), -2)
        along = points[..., None, :] - self._on(points.device)[1].to(points.dtype)  # (..., P, T, 2)
        square = along.square().sum(-1, keepdim=True)
        of_basis = 2 * along * (1 + torch.where(square > 0, square, 1.0).log())  # of r² log r²
        weights, affine = (part.transpose(-1, -2)[..., None, :, :] for part in (weights, affine))
        with without_autocast(points):
            return self.source(theta, points), weights @ of_basis + affine[..., 1:]

    def _grid(self, theta, size, align_corners):
        matrix = self._matrix(size, align_corners, theta.dtype, theta.device)
        rows = theta.transpose(-1, -2)
        with without_autocast(theta):  # one product of matrices, not one an image
            planes = rows.reshape(-1, rows.shape[-1]) @ matrix.T
        return planes.view(*rows.shape[:-1], matrix.shape[0]).transpose(-1, -2)

    def _matrix(self, *wanted) -> torch.Tensor:
        """(prod(size), T): the grid is this times θ. The last ones, unless huge, are kept."""
        if not is_plain():  # a compiler would guard how many there are
            return self._new_matrix(*wanted)
        matrix = _once(self._matrices, wanted, lambda: self._new_matrix(*wanted))
        if matrix.numel() > _KEPT:
            self._matrices.pop(wanted, None)
        while len(self._matrices) > 4:
            del self._matrices[next(iter(self._matrices))]
        return matrix

    def _new_matrix(self, size, align_corners, dtype, device) -> torch.Tensor:
        inverse, centres = self._on(device)
        points = pixels(size, align_corners, inverse)
        weights, one, along = inverse.split((len(centres), 1, 2))
        return (radial(points, centres) @ weights + one + points @ along).to(dtype)

    def kernel_theta(self, theta: torch.Tensor) -> tuple[str, torch.Tensor]:
        coefficients = self.coefficients(theta)  # (..., T + 3, 2)
        points = self._on(theta.device)[1].to(coefficients.dtype)
        points = torch.nn.functional.pad(points, (0, 0, 0, 3))
        return "spline", torch.cat((coefficients, points.expand_as(coefficients)), -1)

    def _on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """L⁻¹ and the control points on ``device``, copied there once."""
        both = self._inverse, self.points
        mode = None if torch.compiler.is_compiling() else detect_fake_mode()
        if mode is not None and not mode.allow_non_fake_inputs:
            return tuple(mode.from_tensor(one).to(device) for one in both)
        return _once(self._copies, device, lambda: tuple(one.to(device) for one in both))

    def _solve(self) -> torch.Tensor:
        """The columns of L⁻¹ that meet θ, (T + 3, T), for L = [K + ridge, P; Pᵀ, 0]."""
        count = len(self.points)
        system = self.points.new_zeros(count + 3, count + 3)
        system[:count, :count] = radial(self.points, self.points)
        system[:count, :count].diagonal().add_(self.ridge)
        system[:count, count] = system[count, :count] = 1.0
        system[:count, count + 1 :] = self.points
        system[count + 1 :, :count] = self.points.T
        return torch.linalg.inv(system)[:, :count].contiguous()

    def _identity(self):
        return self.points

    def _identity_on(self, device, dtype):
        return self._on(device)[1].to(dtype)

    def __getstate__(self):
        return {**self.__dict__, "_matrices": {}, "_copies": {}}  # made anew where they are needed

    def __eq__(self, other):
        if not isinstance(other, ThinPlateSpline):
            return NotImplemented
        return self.ridge == other.ridge and torch.equal(self.points, other.points)

    def __hash__(self):
        return hash((self.theta_shape, self.ridge, *self.points[0].tolist()))

    def __repr__(self):
        made_of = f"rows={self.rows}, cols={self.cols}"
        if self.rows is None:
            made_of = f"points=<{len(self.points)} points>"
        return f"ThinPlateSpline({made_of}{f', ridge={self.ridge}' * (self.ridge > 0)})"


def _once(kept: dict, key: Any, make: Callable[[], Any]) -> Any:
    """What ``make()`` gives, once for each key, and anew where somebody watches.

    It outlives the caller's mode: a later backward saves it. To a transform of ``torch.func`` what
    there is is a constant.
    """
    if not is_plain():
        watched = not is_transformed() or torch._C._len_torch_dispatch_stack()
        return make() if watched or key not in kept else kept[key]
    if key not in kept:
        with torch.inference_mode(False):
            kept[key] = make()
    return kept[key]


def _lattice(rows: int, cols: int) -> torch.Tensor:
    checks.check_count("rows", rows, 2)
    checks.check_count("cols", cols, 2)
    with torch.device("cpu"):  # its numbers are read, whatever the default device is
        return pixels((rows, cols), True, torch.empty(0, dtype=torch.float64))


def _check_points(points: Any) -> torch.Tensor:
    checks.check_floating("points", points)
    fits = points.ndim == 2 and points.shape[1] == 2 and len(points) >= 3
    checks.check_shape("points", points, fits, "(T, 2) with T at least 3")
    points = points.detach().to("cpu", torch.float64, copy=True).contiguous()
    if not points.isfinite().all():
        raise ValueError("points must be finite, got NaN or inf among them")
    extent = (points.amax(0) - points.amin(0)).amax()
    distance = torch.pdist(points)
    if distance.min() <= _DEGENERATE * extent:
        pairs = torch.triu_indices(len(points), len(points), 1)
        i, j = pairs[:, distance.argmin()].tolist()
        raise ValueError(
            f"points must all be different, got {points[i].tolist()} at {i} and at {j}"
        )
    spread = torch.linalg.svdvals(points - points.mean(0))
    if spread[1] <= _DEGENERATE * spread[0]:
        raise ValueError(f"points must not lie on one line, got {len(points)} collinear points")
    return points
