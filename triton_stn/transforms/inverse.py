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


def inverse(matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of matrices (..., n, n), and whether one is singular, (..., 1, 1); the identity of those."""
    singular = torch.linalg.inv_ex(matrices.detach()).info[..., None, None] != 0
    # Safe operands first: the branch that is not taken has a gradient too.
    eye = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    return torch.linalg.inv_ex(torch.where(singular, eye, matrices)).inverse, singular


def solve(source: Source, places: torch.Tensor) -> torch.Tensor:
    """The output points (..., P, ndim) that ``source`` takes to ``places``, by Newton's method.

    The steps are as many for every point. Where they end more than ``TOLERANCE`` away the point is
    out of view, as what is behind a homography's viewer, with a gradient of zero; a place of NaN
    gives NaN. Differentiable, by the implicit function theorem, in ``places`` and all that
    ``source`` is made of, to the third order.
    """
    with torch.no_grad():
        points = _nearest(source, places)
        for _ in range(_STEPS):
            missed, slope = _linearised(source, points, places)
            points = points + _step(missed, slope).clamp(-_LONGEST, _LONGEST)
        missed = places - source(points)
        found = (missed.abs() <= TOLERANCE).all(-1, keepdim=True)
        unplaced = torch.where(places.isnan(), places, OUT_OF_VIEW)
        points = torch.where(found, points, 0.0)
    for _ in range(_SEEN):
        missed, slope = _linearised(source, points, places)
        points = points + _step(torch.where(found, missed, 0.0), slope)
    return torch.where(found, points, unplaced)


def _nearest(source: Source, places: torch.Tensor) -> torch.Tensor:
    """Of a lattice over the output, the point that is read nearest to each place."""
    lattice = pixels((_LATTICE,) * places.shape[-1], True, places)  # (L, ndim)
    read = source(lattice)  # (..., L, ndim)
    with without_autocast(places):
        distance = read.square().sum(-1)[..., None, :] - 2 * places @ read.transpose(-1, -2)
    return lattice[distance.argmin(-1)]


def _linearised(source: Source, points: torch.Tensor, places: torch.Tensor):
    """What is missing to the places (..., P, ndim), and the derivative (..., P, ndim, ndim)."""
    count, ndim = points.shape[-2:]
    # One pass for all columns of the derivative: the points again for each axis.
    axes = torch.eye(ndim, dtype=points.dtype, device=points.device).repeat_interleave(count, 0)
    again = torch.cat((points,) * ndim, -2)
    read, moved = torch.func.jvp(source, (again,), (axes.expand_as(again).contiguous(),))
    slope = torch.stack(moved.split(count, -2), -1)
    return places - read[..., :count, :], slope


def _step(missed: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    undo, singular = inverse(slope)
    return (torch.where(singular, 0.0, undo) * missed[..., None, :]).sum(-1)
