"""Fields of displacements: composed, integrated from a velocity, in view or not, folded or not.

A field is ``(N, 2, H, W)`` of an image or ``(N, 3, D, H, W)`` of a volume, in pixels, along x
first, as `triton_stn.flow_warp` takes it: it stands for the map p -> p + flow(p). Results are
float64 where an argument is, and float32 otherwise. Users meet these functions as
``triton_stn.geometry``'s and ``triton_stn.nn``'s.
"""

from __future__ import annotations

from itertools import product
from typing import get_args

import torch

from triton_stn import checks
from triton_stn.backends.numbers import vector
from triton_stn.functional import flow_warp
from triton_stn.transforms.base import check_size
from triton_stn.types import Differences, Size

DIFFERENCES = get_args(Differences)


def compose_flows(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The flow of warping by ``first`` and then warping that by ``second``.

    ``flow_warp(flow_warp(x, first), second)`` is ``flow_warp(x, compose_flows(first, second))``, of
    which the latter interpolates x once: a pixel p of the last output is read at p + second(p) of
    what ``first`` gave, so at p + second(p) + first(p + second(p)) of x. ``first`` is read there
    bilinearly, exact where it is constant or linear, and beyond its edge is that of the edge.

    Args:
        first: ``(N, 2, H, W)`` or ``(N, 3, D, H, W)``, pixels, along x first.
        second: ``(N, 2, H_out, W_out)`` or ``(N, 3, D_out, H_out, W_out)``, pixels of ``first``'s
            output. A batch of one, of either, serves all of the other's.

    Returns:
        the shape of ``second``, with a gradient for both.

    Raises:
        TypeError, ValueError: not such tensors, or of different dimensions or batch sizes.

    Example:
        >>> first = torch.tensor([0.0, 2.0, 4.0, 6.0]).expand(1, 2, 1, 4)
        >>> second = torch.full((1, 2, 1, 4), 0.5)
        >>> triton_stn.geometry.compose_flows(first, second)[0, 0].tolist()
        [[1.5, 3.5, 5.5, 6.5]]
    """
    first, second = _field("first", first), _field("second", second)
    if first.ndim != second.ndim or 1 not in _batches(first, second):
        raise ValueError(
            "first and second must be of the same dimensions and batch size, "
            f"got {checks.shape_of(first)} and {checks.shape_of(second)}"
        )
    dtype = torch.promote_types(first.dtype, second.dtype)
    second = second.to(dtype)
    return second + flow_warp(first.to(dtype), second, padding_mode="border")


def integrate_velocity(velocity: torch.Tensor, steps: int = 7) -> torch.Tensor:
    """The flow of following a stationary velocity field for one unit of time.

    By scaling and squaring: the flow of a time of 2^-steps is the velocity times it, and ``steps``
    times the flow is composed with itself, which doubles the time. A smooth velocity gives a map
    that does not fold, and the same of ``-velocity`` undoes it, both to the accuracy of the grid.

    Args:
        velocity: ``(N, 2, H, W)`` or ``(N, 3, D, H, W)``, pixels a unit of time, along x first.
        steps: enough that the velocity times 2^-steps moves a pixel by less than about half of one;
            0 takes the velocity for the flow.

    Returns:
        the flow, in pixels, in ``velocity``'s shape, with a gradient. No grid is stored; the
        backward pass keeps the ``steps`` flows.

    Raises:
        TypeError, ValueError: not such a tensor, or no such number of steps.

    Example:
        >>> velocity = torch.tensor([0.0, 1.0, 2.0, 3.0]).expand(1, 2, 4, 4) * torch.tensor(
        ...     [-1.0, 0.0]
        ... ).view(1, 2, 1, 1)  # towards x = 0, the faster the farther: x decays to x / e
        >>> flow = triton_stn.nn.integrate_velocity(velocity)
        >>> (torch.arange(4) + flow[0, 0, 0]).mul(torch.e).round(decimals=1).tolist()
        [0.0, 1.0, 2.0, 3.0]

    Source: Arsigny et al., "A Log-Euclidean Framework for Statistics on Diffeomorphisms", MICCAI
    2006, algorithm 2; as a layer: Dalca et al., "Unsupervised Learning for Fast Probabilistic
    Diffeomorphic Registration", MICCAI 2018, arXiv 1805.04605, section 2.
    """
    flow = _field("velocity", velocity)
    checks.check_count("steps", steps, 0)
    flow = flow * 2.0**-steps
    for _ in range(steps):
        flow = compose_flows(flow, flow)
    return flow


def flow_inside_mask(flow: torch.Tensor, input_size: Size | None = None) -> torch.Tensor:
    """Which output pixels of `triton_stn.flow_warp` read inside the image, as ``inside_mask`` of θ.

    Inside is on a pixel: -0.5 <= x <= W - 0.5 in pixels, and likewise y and z. A displacement of
    NaN is outside.

    Args:
        flow: ``(N, 2, H_out, W_out)`` or ``(N, 3, D_out, H_out, W_out)``, pixels, along x first.
        input_size: the image's ``(H, W)``, ``(D, H, W)`` or an int; None: the flow's.

    Returns:
        bool ``(N, H_out, W_out)``, or ``(N, D_out, H_out, W_out)``.

    Raises:
        TypeError, ValueError: a flow or a size that does not fit.

    Example:
        >>> flow = torch.tensor([1.5, 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 4)
        >>> triton_stn.geometry.flow_inside_mask(flow).tolist()
        [[[True, True, True, False]]]
    """
    flow = _field("flow", flow).detach()
    out_size = flow.shape[2:]
    size = out_size if input_size is None else check_size("input_size", input_size, len(out_size))
    axes = [torch.arange(n, dtype=flow.dtype, device=flow.device) for n in out_size]
    at = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1) + flow.movedim(1, -1)
    return ((at >= -0.5) & (at <= vector(size[::-1], at) - 0.5)).all(-1)


def jacobian_determinant(flow: torch.Tensor, differences: Differences = "central") -> torch.Tensor:
    """How much p -> p + flow(p) enlarges a pixel: det(I + d flow / dp); folded where it is not > 0.

    Args:
        flow: ``(N, 2, H, W)`` or ``(N, 3, D, H, W)``, pixels, along x first, each side at least 2.
        differences: ``"central"``: half the difference of the two neighbours, one-sided at the
            edge; the literature's, blind to what alternates from pixel to pixel. ``"corners"``: at
            each corner of each cell between neighbouring pixels, the differences along the cell's
            edges that meet there, which are the derivatives of the flow as it is interpolated. In
            2-D that interpolated map folds nowhere if and only if all of them are above 0; in 3-D
            this is necessary.

    Returns:
        ``(N, H, W)`` or ``(N, D, H, W)``; for ``"corners"`` ``(N, 4, H - 1, W - 1)`` or
        ``(N, 8, D - 1, H - 1, W - 1)``. Differentiable.

    Raises:
        TypeError, ValueError: a flow or ``differences`` that does not fit.

    Example:
        >>> flow = torch.zeros(1, 2, 2, 4)
        >>> flow[0, 0] = torch.tensor([0.0, 0.5, 1.0, -1.0])  # pixels 2 and 3 change places
        >>> triton_stn.geometry.jacobian_determinant(flow)[0, 0].tolist()
        [1.5, 1.5, 0.25, -1.0]
        >>> folded = triton_stn.geometry.jacobian_determinant(flow, "corners").amin(1) <= 0
        >>> folded.tolist()
        [[[False, False, True]]]

    Source: of the corners, Liu et al., "On Finite Difference Jacobian Computation in Deformable
    Image Registration", IJCV 2024, arXiv 2212.06060.
    """
    flow = _field("flow", flow)
    checks.check_choice("differences", differences, DIFFERENCES)
    fits = min(flow.shape[2:]) > 1
    checks.check_shape("flow", flow, fits, "(N, 2, H > 1, W > 1) or (N, 3, D > 1, H > 1, W > 1)")
    axes = range(flow.ndim - 1, 1, -1)  # x first
    if differences == "central":
        return _determinant([_central(flow, axis) for axis in axes])
    edges = {axis: flow.diff(dim=axis) for axis in axes}
    corners = []
    for corner in product((0, 1), repeat=flow.ndim - 2):  # which edge, along each axis
        columns = []
        for axis in axes:
            column = edges[axis]
            for other in axes:
                if other != axis:
                    n = flow.shape[other] - 1
                    column = column.narrow(other, corner[other - 2], n)
            columns.append(column)
        corners.append(_determinant(columns))
    return torch.stack(corners, 1)


def _field(name: str, field: torch.Tensor) -> torch.Tensor:
    """At least float32: 8 bits are too few for coordinates."""
    checks.check_field(name, field)
    return field.to(torch.promote_types(field.dtype, torch.float32))


def _batches(first: torch.Tensor, second: torch.Tensor) -> tuple[int, ...]:
    n, m = first.shape[0], second.shape[0]
    return (1,) if n == m else (n, m)


def _central(flow: torch.Tensor, axis: int) -> torch.Tensor:
    """The derivative of a field along a dimension of it."""
    step = flow.diff(dim=axis)
    n = flow.shape[axis]
    first, last = step.narrow(axis, 0, 1), step.narrow(axis, n - 2, 1)
    inner = (step.narrow(axis, 0, n - 2) + step.narrow(axis, 1, n - 2)) / 2
    return torch.cat((first, inner, last), axis)


def _determinant(columns: list[torch.Tensor]) -> torch.Tensor:
    """det(I + J) of J's columns (N, ndim, ...), the derivatives along x, y[, z]."""
    rows = [list(column.unbind(1)) for column in columns]  # transposed, of the same determinant
    for i, row in enumerate(rows):
        row[i] = row[i] + 1
    if len(rows) == 2:
        (a, b), (c, d) = rows
        return a * d - b * c
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
