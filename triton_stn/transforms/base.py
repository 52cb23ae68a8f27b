"""What every transform has: θ's shape, identity and grid, and what a kernel takes of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from numbers import Integral
from typing import Any, ClassVar

import torch

from triton_stn import checks
from triton_stn.backends.maps import pixels
from triton_stn.backends.numbers import vector
from triton_stn.transforms.inverse import solve
from triton_stn.types import Size


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
        batch: Size | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> torch.Tensor:
        """The θ that leaves an image as it is: ``(*batch, *theta_shape)``.

        ``batch`` is None for none, an int N or a tuple; ``dtype`` and ``device`` default to
        PyTorch's own. The tensor is new, and its elements are its own.

        Example:
            >>> triton_stn.Similarity().identity(2)
            tensor([[1., 0., 0., 0.],
                    [1., 0., 0., 0.]])
        """
        if isinstance(batch, str):
            raise TypeError(f"batch must be an int or a sequence of ints, got {batch!r}")
        batch = () if batch is None else (batch,) if isinstance(batch, int) else tuple(batch)
        device = torch.empty(0).device if device is None else torch.device(device)
        one = self._identity_on(device, dtype or torch.get_default_dtype())
        return one.repeat(*batch, *(1 for _ in self.theta_shape))

    def _identity_on(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return self._identity().to(device, dtype)
        with torch.device("cpu"):  # its numbers are read, whatever the default device is
            one = self._identity()
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
        output_size: Size,
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

        Example:
            >>> triton_stn.Affine().grid(torch.eye(2, 3), (1, 2)).tolist()
            [[[-0.5, 0.0], [0.5, 0.0]]]
        """
        arguments = self._checked(theta, output_size, align_corners)
        return self._grid(*arguments).unflatten(-2, arguments[1])

    def patches(
        self,
        theta: torch.Tensor,
        output_size: Size,
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

        Example:
            >>> triton_stn.Affine().patches(torch.eye(2, 3), (1, 2)).tolist()
            [[[-0.5, 0.0, 1.0, 0.0, 0.0, 2.0], [0.5, 0.0, 1.0, 0.0, 0.0, 2.0]]]
        """
        arguments = self._checked(theta, output_size, align_corners)
        centres, sides = self._linearised(*arguments)
        sides = torch.where(sides.isfinite(), sides, 0.0)
        return torch.cat((centres, sides), -1).unflatten(-2, arguments[1])

    def _checked(self, theta, output_size, align_corners) -> tuple[torch.Tensor, tuple, bool]:
        size = check_size("output_size", output_size, self.ndim)
        checks.check_bool("align_corners", align_corners)
        return self.check_theta(theta), size, align_corners

    def _grid(self, theta, size, align_corners) -> torch.Tensor:
        """(..., prod(size), ndim)."""
        return self.source(theta, pixels(size, align_corners, theta))

    def _linearised(self, theta, size, align_corners) -> tuple[torch.Tensor, torch.Tensor]:
        """The centres (..., P, 2) and sides (..., P, 4) of `patches`."""
        h, w = size
        across, down = (
            self.source(theta, pixels(size, align_corners, theta, edges)).unflatten(-2, shape)
            for edges, shape in (((0, 1), (h, w + 1)), ((1, 0), (h + 1, w)))
        )
        sides = torch.cat((across.diff(dim=-2), down.diff(dim=-3)), -1)
        return self._grid(theta, size, align_corners), sides.flatten(-3, -2)

    def kernel_theta(self, theta: torch.Tensor) -> tuple[str, torch.Tensor] | None:
        """(source, θ) as the kernels take it, ``kernels.coordinates.source`` says in what shape.

        None: the kernels can not evaluate the transform, and read its ``grid``.
        """
        return ("affine", self.matrix(theta)) if self.is_affine else None

    @abstractmethod
    def source(self, theta: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """The source coordinates ``(..., P, ndim)`` of output points ``(P, ndim)``, normalised.

        Points ``(..., P, ndim)``, whose leading dimensions broadcast with θ's, are asked for by
        `target`, `geometry.map_points` and `geometry.map_boxes` alone.
        """

    def target(self, theta: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """The output points ``(..., P, ndim)`` whose `source` is ``places``, normalised too.

        θ's leading dimensions and those of ``places`` ``(..., P, ndim)`` broadcast. What no output
        point reads is 1e4 in all coordinates, with a gradient of zero.

        Example:
            >>> theta = torch.tensor([[0.5, 0.0, 0.5], [0.0, 0.5, 0.0]])
            >>> triton_stn.Affine().target(theta, torch.tensor([[0.5, 0.25]])).tolist()
            [[0.0, 0.5]]
        """
        theta = self.check_theta(theta)
        leading = torch.broadcast_shapes(
            theta.shape[: theta.ndim - len(self.theta_shape)], places.shape[:-2]
        )
        places = places.expand(*leading, *places.shape[-2:])
        return solve(partial(self.source, theta), partial(self._tangent, theta), places)

    def _tangent(
        self, theta: torch.Tensor, points: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`source`, and its derivative (..., P, ndim, ndim), its coordinates in rows."""
        read, pull = torch.func.vjp(partial(self.source, theta), points)
        # A point's place is its own, so the gradient of a sum over them is a row of each.
        axes = torch.eye(points.shape[-1], dtype=points.dtype, device=points.device)
        return read, torch.stack([pull(axis.expand_as(read))[0] for axis in axes], -2)

    @abstractmethod
    def _identity(self) -> torch.Tensor:
        """float64, (*theta_shape,)."""

    def check_theta(self, theta: Any) -> torch.Tensor:
        """θ, its shape checked, in the dtype of its coordinates: float64 or float32."""
        checks.check_floating("theta", theta)
        if theta.shape[-len(self.theta_shape) :] != self.theta_shape:
            expected = ", ".join(map(str, self.theta_shape))
            raise ValueError(
                f"theta of {self!r} must have shape (..., {expected}), got {checks.shape_of(theta)}"
            )
        return theta if theta.dtype == torch.float64 else theta.float()


def check_size(name: str, size: Any, ndim: int) -> tuple[int, ...]:
    """``size``, an int or ``ndim`` ints, as a tuple."""
    sizes = tuple(size) if isinstance(size, Sequence) else (size,) * ndim
    if not all(isinstance(n, (Integral, torch.SymInt)) for n in sizes) or isinstance(size, bool):
        raise TypeError(f"{name} must be an int or {ndim} ints, got {size!r}")
    if len(sizes) != ndim or any(n < 1 for n in sizes):
        raise ValueError(f"{name} must be an int or {ndim} ints, all positive, got {size!r}")
    return sizes
