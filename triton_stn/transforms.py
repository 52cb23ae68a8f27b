"""The transforms: what θ means, its identity, and the sampling grid it gives, in plain PyTorch.

Every transform maps normalised output coordinates (X, Y[, Z]) to normalised source coordinates in
the input, both in (x, y[, z]) order and in [-1, 1] over the image, as ``F.affine_grid`` does. θ's
last dimensions are the transform's ``theta_shape``; the leading ones are free and are kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from triton_stn import checks
from triton_stn.backends.numbers import vector

# A point is out of view where the homogeneous coordinate w is at most this share of the largest |w|
# that θ gives in the square |X|, |Y| <= 1. A float32 w that small is one tenth rounding error.
MIN_W = 1e-6
# The normalised coordinate, along both axes, of a point that has none: far outside of any padding.
OUT_OF_VIEW = 1e4
# Control points nearer than this share of their extent are one point, or lie on one line.
_DEGENERATE = 1e-6
# Elements of a spline's matrix for one output size, up to which it is kept.
_KEPT = 2**24


class Transform(ABC):
    """The base of every transform.

    Attributes:
        name: ``"affine"``, ``"attention"``, ``"similarity"``, ``"projective"`` or ``"tps"``.
        ndim: the image's spatial dimensions, 2 or 3.
        theta_shape: the last dimensions of θ.
        is_affine: whether θ amounts to a matrix (ndim, ndim + 1), which ``matrix(theta)`` gives.
    """

    name: ClassVar[str]
    ndim: int = 2
    theta_shape: tuple[int, ...]
    is_affine: ClassVar[bool] = False

    def identity(
        self,
        batch: int | Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> torch.Tensor:
        """The θ that leaves an image as it is: ``(*batch, *theta_shape)``.

        ``batch`` is None for none, an int N or a tuple; ``dtype`` and ``device`` default to
        PyTorch's own. The tensor is new, and its elements are its own.
        """
        batch = () if batch is None else (batch,) if isinstance(batch, int) else tuple(batch)
        device = torch.get_default_device() if device is None else torch.device(device)
        one = self._identity_on(device, dtype or torch.get_default_dtype())
        return one.repeat(*batch, *(1 for _ in self.theta_shape))

    def _identity_on(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        one = self._identity()
        if device.type == "cpu" or torch.compiler.is_compiling():
            return one.to(device, dtype)
        like = torch.empty((), dtype=dtype, device=device)
        return vector(one.flatten().tolist(), like).view(one.shape)

    def matrix(self, theta: torch.Tensor) -> torch.Tensor:
        """θ as the matrix ``(..., ndim, ndim + 1)`` of ``F.affine_grid``, differentiable.

        Raises:
            TypeError: the transform has none (``is_affine`` is False).
        """
        raise TypeError(f"transform must be affine, attention or similarity, got {self!r}")

    def grid(
        self,
        theta: torch.Tensor,
        output_size: int | Sequence[int],
        align_corners: bool = False,
    ) -> torch.Tensor:
        """The sampling grid: the normalised source coordinates of every output pixel.

        Args:
            theta: ``(..., *theta_shape)``.
            output_size: ``(H_out, W_out)`` or ``(D_out, H_out, W_out)``, or an int for all.
            align_corners: whether -1 and 1 are the centres of the corner pixels or the outer edges.

        Returns:
            ``(..., *output_size, ndim)``, (x, y[, z]) last, differentiable, float64 for a float64 θ
            and float32 otherwise. Non-finite where a θ that is not finite reaches.
        """
        size = check_size("output_size", output_size, self.ndim)
        checks.check_bool("align_corners", align_corners)
        theta = self.check_theta(theta)
        return self.source(theta, _pixels(size, align_corners, theta)).unflatten(-2, size)

    def patches(
        self,
        theta: torch.Tensor,
        output_size: int | Sequence[int],
        align_corners: bool = False,
    ) -> torch.Tensor:
        """What every output pixel covers, a parallelogram: its centre and its sides, normalised.

        The sides are those of an affine map near the pixel: the differences of `source` between
        opposite edges, which may lie beyond [-1, 1], or its derivative. A number of them that is
        not finite becomes 0. In 2-D.

        Args:
            theta, output_size, align_corners: as in `grid`.

        Returns:
            ``(..., H_out, W_out, 6)``: the source coordinates (x, y) of the centre, then their
            change over one pixel along j (to the right), and along i (downwards), differentiable.
        """
        size = check_size("output_size", output_size, self.ndim)
        checks.check_bool("align_corners", align_corners)
        centres, sides = self._linearised(self.check_theta(theta), size, align_corners)
        sides = torch.where(sides.isfinite(), sides, 0.0)
        return torch.cat((centres, sides), -1).unflatten(-2, size)

    def _linearised(self, theta, size, align_corners) -> tuple[torch.Tensor, torch.Tensor]:
        """The centres (..., P, 2) and sides (..., P, 4) of `patches`."""
        h, w = size
        across, down = (
            self.source(theta, _pixels(size, align_corners, theta, edges)).unflatten(-2, shape)
            for edges, shape in (((0, 1), (h, w + 1)), ((1, 0), (h + 1, w)))
        )
        sides = torch.cat((across.diff(dim=-2), down.diff(dim=-3)), -1)
        return self.grid(theta, size, align_corners).flatten(-3, -2), sides.flatten(-3, -2)

    def kernel_theta(self, theta: torch.Tensor) -> tuple[str, torch.Tensor] | None:
        """(source, θ) as the kernels take it, ``kernels.coordinates.source`` says in what shape.

        None: the kernels can not evaluate the transform, and read its ``grid``.
        """
        return ("affine", self.matrix(theta)) if self.is_affine else None

    @abstractmethod
    def source(self, theta: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """The source coordinates ``(..., P, ndim)`` of output points ``(P, ndim)``, normalised."""

    @abstractmethod
    def _identity(self) -> torch.Tensor:
        """float64, (*theta_shape,)."""

    def check_theta(self, theta: Any) -> torch.Tensor:
        """θ, its shape checked, in the dtype of its coordinates: float64 or float32."""
        checks.check_tensor("theta", theta)
        checks.check_dtype("theta", theta)
        if theta.shape[-len(self.theta_shape) :] != self.theta_shape:
            expected = ", ".join(map(str, self.theta_shape))
            raise ValueError(
                f"theta of {self!r} must have shape (..., {expected}), got {checks.shape_of(theta)}"
            )
        return theta if theta.dtype == torch.float64 else theta.float()


class _ToMatrix(Transform):
    """What amounts to an affine map."""

    is_affine = True

    def source(self, theta, points):
        matrix = self.matrix(theta)[..., None, :, :]
        return matrix[..., -1] + sum(matrix[..., d] * points[:, d, None] for d in range(self.ndim))


@dataclass(frozen=True)
class Affine(_ToMatrix):
    """θ (2, 3), or (3, 4) with ``ndim=3``: the matrix of ``F.affine_grid``.

    Source: Jaderberg et al. 2015, arXiv 1506.02025, equation 1.
    """

    ndim: int = 2
    name: ClassVar[str] = "affine"

    def __post_init__(self):
        if self.ndim not in (2, 3):
            raise ValueError(f"ndim must be 2 or 3, got {self.ndim!r}")

    @property
    def theta_shape(self):
        return self.ndim, self.ndim + 1

    def matrix(self, theta):
        return self.check_theta(theta)

    def _identity(self):
        return torch.eye(*self.theta_shape, dtype=torch.float64)


@dataclass(frozen=True)
class Attention(_ToMatrix):
    """θ (3,) = (s, t_x, t_y): isotropic scale and translation, the matrix [s 0 t_x; 0 s t_y].

    Source: Jaderberg et al. 2015, arXiv 1506.02025, equation 2.
    """

    name: ClassVar[str] = "attention"
    theta_shape: ClassVar[tuple[int, ...]] = (3,)

    def matrix(self, theta):
        s, t_x, t_y = self.check_theta(theta).unbind(-1)
        zero = torch.zeros_like(s)
        return torch.stack((s, zero, t_x, zero, s, t_y), -1).unflatten(-1, (2, 3))

    def _identity(self):
        return torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)


@dataclass(frozen=True)
class Similarity(_ToMatrix):
    """θ (4,) = (scale, angle in radians, t_x, t_y): [s·cos −s·sin t_x; s·sin s·cos t_y].

    The rotation is of normalised coordinates: of an image that is not square it shears the pixels
    (``geometry.affine`` does not).
    """

    name: ClassVar[str] = "similarity"
    theta_shape: ClassVar[tuple[int, ...]] = (4,)

    def matrix(self, theta):
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

    Source: Hartley and Zisserman, "Multiple View Geometry", 2004, section 2.3.
    """

    name: ClassVar[str] = "projective"
    theta_shape: ClassVar[tuple[int, ...]] = (3, 3)

    def source(self, theta, points):
        return self._view(self.check_theta(theta), points)[0]

    def _view(self, theta, points) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The source coordinates (..., P, 2); those in view, else 0; w (..., P, 1), else inf."""
        rows = theta[..., None, :, :]
        place = rows[..., 0] * points[:, 0, None] + rows[..., 1] * points[:, 1, None] + rows[..., 2]
        xy, w = place.split((2, 1), -1)
        largest = theta.detach()[..., None, 2:, :].abs().sum(-1)  # (..., 1, 1)
        out = w <= MIN_W * largest
        lost = ~place.isfinite().all(-1, keepdim=True)
        # Safe operands first: the branch not taken has a gradient too. 0·θ carries NaN.
        w = torch.where(out | lost, torch.inf, w)
        near = torch.where(lost, 0.0, xy) / w
        far = torch.where(lost & ~out, torch.nan, OUT_OF_VIEW + 0.0 * largest)
        return torch.where(out | lost, far, near), near, w

    def _linearised(self, theta, size, align_corners):
        # By the derivative: a pixel whose edge is behind the viewer has one too.
        centres, near, w = self._view(theta, _pixels(size, align_corners, theta))
        rows = theta[..., None, :, :]
        along_j, along_i = (
            (rows[..., :2, d] - near * rows[..., 2:, d]) / w * (2 / _extent(n, align_corners))
            for d, n in enumerate(reversed(size))
        )
        return centres, torch.cat((along_j, along_i), -1)

    def kernel_theta(self, theta):
        return "projective", self.check_theta(theta)

    def _identity(self):
        return torch.eye(3, dtype=torch.float64)


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
    ):
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
        # What is kept, here and below, outlives the caller's mode: a later backward saves it.
        with torch.inference_mode(False):
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

    def source(self, theta, points):
        # (..., T + 3, 2)
        weights, affine = self.coefficients(theta).split((len(self.points), 3), -2)
        basis = _kernel(points, self._on(points.device)[1].to(points.dtype))  # (P, T)
        a0, a1, a2 = affine.split(1, -2)
        with torch.autocast(points.device.type, enabled=False):
            return basis @ weights + (a0 + a1 * points[:, :1] + a2 * points[:, 1:])

    def grid(self, theta, output_size, align_corners=False):
        size = check_size("output_size", output_size, self.ndim)
        checks.check_bool("align_corners", align_corners)
        theta = self.check_theta(theta)
        matrix = self._grid_matrix(size, align_corners, theta)
        with torch.autocast(theta.device.type, enabled=False):
            planes = theta.transpose(-1, -2) @ matrix.T  # (..., 2, prod(size)), one product
        return planes.transpose(-1, -2).unflatten(-2, size)

    def _grid_matrix(self, size, align_corners, like) -> torch.Tensor:
        """(prod(size), T): the grid is this times θ. The last ones, unless huge, are kept."""
        wanted = (size, align_corners, like.dtype, like.device)
        if torch.compiler.is_compiling():
            return self._new_grid_matrix(*wanted)
        if wanted in self._matrices:
            return self._matrices[wanted]
        with torch.inference_mode(False):
            matrix = self._new_grid_matrix(*wanted)
        if matrix.numel() <= _KEPT:
            while len(self._matrices) >= 4:
                del self._matrices[next(iter(self._matrices))]
            self._matrices[wanted] = matrix
        return matrix

    def _new_grid_matrix(self, size, align_corners, dtype, device) -> torch.Tensor:
        inverse, centres = self._on(device)
        points = _pixels(size, align_corners, inverse)
        weights, one, along = inverse.split((len(centres), 1, 2))
        return (_kernel(points, centres) @ weights + one + points @ along).to(dtype)

    def kernel_theta(self, theta):
        coefficients = self.coefficients(theta)  # (..., T + 3, 2)
        points = self._on(theta.device)[1].to(coefficients.dtype)
        points = torch.nn.functional.pad(points, (0, 0, 0, 3))
        return "spline", torch.cat((coefficients, points.expand_as(coefficients)), -1)

    def _on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """L⁻¹ and the control points on ``device``, copied there once."""
        if torch.compiler.is_compiling():
            return self._inverse.to(device), self.points.to(device)
        if device not in self._copies:
            with torch.inference_mode(False):
                self._copies[device] = self._inverse.to(device), self.points.to(device)
        return self._copies[device]

    def _solve(self) -> torch.Tensor:
        """The columns of L⁻¹ that meet θ, (T + 3, T), for L = [K + ridge, P; Pᵀ, 0]."""
        count = len(self.points)
        system = self.points.new_zeros(count + 3, count + 3)
        system[:count, :count] = _kernel(self.points, self.points)
        system[:count, :count].diagonal().add_(self.ridge)
        system[:count, count] = system[count, :count] = 1.0
        system[:count, count + 1 :] = self.points
        system[count + 1 :, :count] = self.points.T
        return torch.linalg.inv(system)[:, :count].contiguous()

    def _identity(self):
        return self.points

    def _identity_on(self, device, dtype):
        return self._on(device)[1].to(dtype)

    def __eq__(self, other):
        if not isinstance(other, ThinPlateSpline):
            return NotImplemented
        return self.ridge == other.ridge and torch.equal(self.points, other.points)

    def __hash__(self):
        return hash((self.theta_shape, self.ridge, *self.points[0].tolist()))

    def __repr__(self):
        made_of = (
            f"points=<{len(self.points)} points>"
            if self.rows is None
            else f"rows={self.rows}, cols={self.cols}"
        )
        return f"ThinPlateSpline({made_of}{f', ridge={self.ridge}' * (self.ridge > 0)})"


_BY_NAME = {kind.name: kind for kind in (Affine, Attention, Similarity, Projective)}


def resolve(transform: str | Transform, ndim: int = 2) -> Transform:
    """The transform of that name for ``ndim`` spatial dimensions; a Transform object is returned.

    Raises:
        TypeError: neither a name nor a Transform object.
        ValueError: a name that is unknown, needs arguments, or does not exist in 3-D.
    """
    if isinstance(transform, Transform):
        return transform
    names = ", ".join(map(repr, _BY_NAME))
    if not isinstance(transform, str):
        raise TypeError(
            f"transform must be one of {names} or a Transform object, got {transform!r}"
        )
    if transform == ThinPlateSpline.name:
        raise ValueError(
            "transform must be an object for a thin-plate spline, ThinPlateSpline(rows, cols), "
            f"got {transform!r}"
        )
    if transform not in _BY_NAME:
        raise ValueError(
            f"transform must be one of {names} or a Transform object, got {transform!r}"
        )
    if transform == Affine.name:
        return Affine(ndim)
    if ndim != 2:
        raise ValueError(f"transform must be 'affine' in {ndim}-D, got {transform!r}")
    return _BY_NAME[transform]()


def check_size(name: str, size: Any, ndim: int) -> tuple[int, ...]:
    """``size``, an int or ``ndim`` ints, as a tuple."""
    sizes = tuple(size) if isinstance(size, Sequence) else (size,) * ndim
    if not all(isinstance(n, (int, torch.SymInt)) for n in sizes) or isinstance(size, bool):
        raise TypeError(f"{name} must be an int or {ndim} ints, got {size!r}")
    if len(sizes) != ndim or any(n < 1 for n in sizes):
        raise ValueError(f"{name} must be an int or {ndim} ints, all positive, got {size!r}")
    return sizes


def _extent(n: int, align_corners: bool) -> int:
    """Pixels of an axis of ``n`` that lie between -1 and 1."""
    return max(n - 1, 1) if align_corners else n


def _pixels(
    size: Sequence[int],
    align_corners: bool,
    like: torch.Tensor,
    edges: Sequence[int] = (0, 0, 0),
) -> torch.Tensor:
    """Normalised coordinates of the pixel centres, row by row: (prod(size), ndim), x first.

    ``edges`` is 1 for an axis along which to take the n + 1 edges of the pixels instead.
    """
    axes = []
    for n, edge in zip(size, edges, strict=False):
        # An axis of one pixel lies at 0, with either align_corners.
        last = (n - 1 + edge) / _extent(n, align_corners)
        axes.append(torch.linspace(-last, last, n + edge, dtype=like.dtype, device=like.device))
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1).flatten(0, -2)


def _kernel(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """U(r) = r² log r², 0 at 0, of points (P, 2) around centres (T, 2): (P, T)."""
    x, y = (points[:, None, d] - centres[:, d] for d in (0, 1))
    square = x.square_().add_(y.square_())
    return torch.xlogy(square, square)


def _lattice(rows: int, cols: int) -> torch.Tensor:
    for name, value in (("rows", rows), ("cols", cols)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
        if value < 2:
            raise ValueError(f"{name} must be at least 2, got {value}")
    return _pixels((rows, cols), True, torch.empty(0, dtype=torch.float64))


def _check_points(points: Any) -> torch.Tensor:
    checks.check_tensor("points", points)
    checks.check_dtype("points", points)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3:
        raise ValueError(
            f"points must have shape (T, 2) with T at least 3, got {checks.shape_of(points)}"
        )
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
