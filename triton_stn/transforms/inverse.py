"""Where a map reads a given place: inverses that look at no value."""

from __future__ import annotations

from collections.abc import Callable

import torch

from triton_stn.backends.maps import OUT_OF_VIEW, pixels
from triton_stn.backends.numbers import without_autocast

# The steps begin at the best of a lattice of output points, so many along an axis.
_LATTICE = 17
# Each doubles the figures: 4 bring a spline that does not fold to float32's rounding.
_STEPS = 8
# Normalised. A step from where the map hardly moves would lead out of sight.
_LONGEST = 0.5
# Normalised. What is not read so near after the steps has no place in the output.
TOLERANCE = 1e-4
# Steps that autograd sees. One from a root has the first derivative of the implicit function, and
# each doubles the order and adds one: two are right to the third.
_SEEN = 2

Source = Callable[[torch.Tensor], torch.Tensor]
Tangent = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def inverse(matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of matrices (..., n, n), n 2 or 3, and whether one is singular, (..., 1, 1); 0 of those.

    By cofactors: a library's factorisation takes 30 µs for each of them on a CPU.
    """
    rows = matrices.unbind(-2)
    if len(rows) == 2:
        (a, b), (c, d) = (row.unbind(-1) for row in rows)
        adjugate = torch.stack((d, -b, -c, a), -1).unflatten(-1, (2, 2))
    else:
        pairs = ((1, 2), (2, 0), (0, 1))
        crosses = [torch.linalg.cross(rows[i], rows[j]) for i, j in pairs]
        adjugate = torch.stack(crosses, -1)
    determinant = (rows[0] * adjugate[..., 0]).sum(-1)[..., None, None]
    singular = determinant == 0
    # Safe operands first: the branch that is not taken has a gradient too.
    return torch.where(singular, 0.0, adjugate) / torch.where(singular, 1.0, determinant), singular


def solve(source: Source, tangent: Tangent, places: torch.Tensor) -> torch.Tensor:
    """The output points (..., P, ndim) that ``source`` takes to ``places``, by Newton's method.

    ``tangent`` gives the source and its derivative, (..., P, ndim, ndim), a row a coordinate.
    The steps are as many for every point. Where they end more than ``TOLERANCE`` away the point is
    out of view, as what is behind a homography's viewer, with a gradient of zero; a place of NaN
    gives NaN. Differentiable, by the implicit function theorem, in ``places`` and all that
    ``source`` is made of, to the third order.
    """
    with torch.no_grad():
        points = _nearest(source, places)
        for _ in range(_STEPS):
            read, slope = tangent(points)
            points = points + _step(places - read, slope).clamp(-_LONGEST, _LONGEST)
        found = _reads(source, points, places)
        unplaced = torch.where(places.isnan(), places, OUT_OF_VIEW)
        points = torch.where(found, points, 0.0)
    for _ in range(_SEEN):
        read, slope = tangent(points)
        points = points + _step(torch.where(found, places - read, 0.0), slope)
    with torch.no_grad():  # beside a fold even a last step may lead away
        found = found & _reads(source, points, places)
    return torch.where(found, points, unplaced)


def _reads(source: Source, points: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Whether each point is found, (..., P, 1)."""
    return ((places - source(points)).abs() <= TOLERANCE).all(-1, keepdim=True)


def _nearest(source: Source, places: torch.Tensor) -> torch.Tensor:
    """Of a lattice over the output, the point that is read nearest to each place."""
    lattice = pixels((_LATTICE,) * places.shape[-1], True, places)  # (L, ndim)
    read = source(lattice)  # (..., L, ndim)
    with without_autocast(places):
        distance = read.square().sum(-1)[..., None, :] - 2 * places @ read.transpose(-1, -2)
    return lattice[distance.argmin(-1)]


def _step(missed: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    return (inverse(slope)[0] * missed[..., None, :]).sum(-1)
