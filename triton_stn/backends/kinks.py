"""The derivative at a pixel's centre, where an interpolant has two: the right-hand one.

In exact arithmetic F.grid_sample takes it too, by rounding down to a coordinate's left pixel. But
its coordinates are rounded, so at the identity it takes either one, pixel by pixel, and a training
that starts there would take another first step than the kernels do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from triton_stn.backends import is_plain
from triton_stn.backends.numbers import kept, vector

# In units of eps, of a normalised coordinate. A coordinate this little below a pixel's centre was
# meant to lie on it: θ is rounded, and so are a product and a sum.
_BELOW = 8.0
# What the rounding of a reflection needs, times how often the coordinate is reflected.
_NUDGE = 2.5
# Of eps / 4, to where no rounding leads below a pixel: rounded are the place and the 1 it gains.
_STEPS = 8


def settle(
    terms: Sequence[torch.Tensor],
    shift: torch.Tensor,
    theta: torch.Tensor,
    extent: Sequence[int],
    padding_mode: str,
    align_corners: bool,
) -> tuple[Sequence[torch.Tensor], torch.Tensor]:
    """Move an affine grid's coordinates from the pixels' centres to the side of their derivative.

    Args:
        terms: what each axis of the output, the slowest first, adds to the coordinates,
            ``(N, ndim, K, its size)``.
        shift: what every output pixel has, ``(N, ndim, K, 1)``.
        theta: ``(N, ndim, K, ndim + 1)``, x first.
        extent: the input's size, x last.

    Returns:
        (terms, shift), of the same derivative along theta. Moved is what depends on one axis of the
        output: by the identity, shifts, flips, quarter turns and scales. These are few numbers, so
        it costs little; elsewhere few pixels read at a centre.
    """
    used = theta[..., :-1] != 0
    alone = used.sum(-1, keepdim=True) == 1
    known = theta.device.type == "cpu" and is_plain(theta)
    if known and not alone.any():
        return terms, shift
    places = torch.cat([term + shift for term in terms], -1)
    settled = _beside(places.detach(), extent, padding_mode, align_corners, known)
    if places.requires_grad:
        settled = places + (settled - places.detach())
    settled = settled.split([term.shape[-1] for term in terms], -1)
    used = used & alone
    terms = [
        torch.where(used[..., -axis, None], place, term)
        for axis, (term, place) in enumerate(zip(terms, settled, strict=True), 1)
    ]
    return terms, torch.where(alone, 0.0, shift)


def _beside(places, extent, padding_mode, align_corners, known):
    """Coordinates (N, ndim, K, *), moved where their derivative is the one wanted."""
    axes = _axes(tuple(extent), align_corners, places.dtype, places.device)
    if padding_mode != "reflection" or (known and bool((places.abs() <= 1).all())):
        return _beside_once(places, axes, padding_mode)
    # The image and its reflections have a length of 2, and every other one runs backwards.
    turns = (places / 2).round()
    direction = 1 - 2 * turns.remainder(2)
    inside = (places - 2 * turns) * direction
    nudge = torch.where(turns == 0, 0.0, _NUDGE * torch.finfo(places.dtype).eps * turns.abs())
    moved = _beside_once(inside, axes, padding_mode, nudge)
    return torch.where(moved == inside, places, moved * direction + 2 * turns)


def _beside_once(places, axes, padding_mode, nudge=None):
    """The same, without reflections. ``nudge``: what the rounding of theirs needs besides."""
    half, lifted, first, centres = axes
    n, _, k, _ = places.shape
    # Whatever a NaN becomes as an index, the maximum is NaN.
    index = torch.addcmul(lifted, places, half).long().clamp_(0, centres.shape[-1] - 1)
    least = centres.expand(n, -1, k, -1).gather(-1, index)
    moved = torch.maximum(places, least if nudge is None else least + nudge)
    if padding_mode == "zeros":
        return moved
    # The derivative is zero at the edge and outside. With ±1 it is, whatever else is rounded.
    edge = first + _BELOW * torch.finfo(places.dtype).eps
    # What is not finite stays so: it gives nothing to any gradient.
    moved = torch.where((places <= edge) & (places > -torch.inf), -1.0, moved)
    return torch.where((places >= -edge) & (places < torch.inf), 1.0, moved)


@kept
def _axes(extent, align_corners, dtype, device):
    """(half, lifted, first, centres) of the input's axes, x first: (ndim, 1, 1) and (ndim, 1, *).

    half · place + lifted is a coordinate in pixels, lifted by what it may be too low, and by 2.
    ``first`` is the coordinate of the first pixel; ``centres`` the least that PyTorch brings to
    pixel -2 (none: -inf), -1, 0, ... or to its right.
    """
    like = torch.empty((), dtype=dtype, device=device)
    middle = [(n - 1) / 2 for n in reversed(extent)]
    # An axis without extent gets some: its coordinates mean nothing.
    half = [(m if align_corners else m + 0.5) or 1.0 for m in middle]
    below = _BELOW * torch.finfo(dtype).eps
    lifted = [m + 2 + h * below for m, h in zip(middle, half, strict=True)]
    first = [-m / h for m, h in zip(middle, half, strict=True)]
    centres = torch.full((len(extent), 1, max(extent) + 4), -torch.inf, dtype=dtype, device=device)
    for row, n in enumerate(reversed(extent)):
        centres[row, 0, 1 : n + 3] = _centres(n, half[row], align_corners, like)
    lengths = torch.stack([vector(v, like) for v in (half, lifted, first)])[..., None, None]
    return *lengths, centres


def _centres(n, half, align_corners, like):
    """The pixels -1, 0, ..., n: the least normalised coordinates that do not lead below them.

    To a pixel leads half·(place + 1) - 1/2, or without the 1/2, in F.grid_sample, whichever of the
    operations are fused; in `pytorch_samplers._taps` half·place + middle.
    """
    wide = torch.float32 if like.device.type == "mps" else torch.float64  # which has no float64
    pixel = torch.arange(-1, n + 1, dtype=wide, device=like.device)
    centre = (pixel - (n - 1) / 2) / half
    above = pixel / half if align_corners else (pixel + 0.5) / half  # 1 above the centre
    # The quotients are rounded, unless half is a power of two. (A tensor, as n may be symbolic.)
    twice = torch.full((), n - align_corners, dtype=torch.int64, device=like.device)
    exact, up = twice & (twice - 1) == 0, torch.full_like(pixel, torch.inf)
    centre, above = (torch.where(exact, q, torch.nextafter(q, up)) for q in (centre, above))
    steps = torch.arange(_STEPS + 1, dtype=like.dtype, device=like.device)[:, None]
    places = centre.to(like.dtype) + steps * (torch.finfo(like.dtype).eps / 4)
    below = (places < centre) | ((places + 1).to(wide) < above)
    # The first that is not; and the last is none. (Place by place they would be a chain of which
    # Inductor writes each link out in the next three times, and so without end.)
    below[-1] = False
    return torch.where(below, torch.inf, places).amin(0)
