"""The transforms: what θ means, its identity, and the sampling grid it gives, in plain PyTorch.

Every transform maps normalised output coordinates (X, Y[, Z]) to normalised source coordinates in
the input, both in (x, y[, z]) order and in [-1, 1] over the image, as ``F.affine_grid`` does. θ's
last dimensions are the transform's ``theta_shape``; the leading ones are free and are kept.
"""

from __future__ import annotations

from triton_stn.transforms.base import Transform
from triton_stn.transforms.matrices import (
    Affine,
    Attention,
    MatrixTransform,
    Projective,
    Similarity,
)
from triton_stn.transforms.spline import ThinPlateSpline
from triton_stn.types import TransformName

__all__ = [
    "Affine",
    "Attention",
    "MatrixTransform",
    "Projective",
    "Similarity",
    "ThinPlateSpline",
    "Transform",
    "resolve",
]

_BY_NAME = {kind.name: kind for kind in (Affine, Attention, Similarity, Projective)}


def resolve(transform: TransformName | Transform, ndim: int = 2) -> Transform:
    """The transform of that name for ``ndim`` spatial dimensions; a Transform object is returned.

    Raises:
        TypeError: neither a name nor a Transform object.
        ValueError: a name that is unknown, needs arguments, or does not exist in 3-D.

    Example:
        >>> triton_stn.transforms.resolve("affine", 3)
        Affine(ndim=3)
    """
    if isinstance(transform, Transform):
        return transform
    if transform == ThinPlateSpline.name:
        raise ValueError(
            "transform must be an object for a thin-plate spline, ThinPlateSpline(rows, cols), "
            f"got {transform!r}"
        )
    if not isinstance(transform, str) or transform not in _BY_NAME:
        names = ", ".join(map(repr, _BY_NAME))
        error = ValueError if isinstance(transform, str) else TypeError
        raise error(f"transform must be one of {names} or a Transform object, got {transform!r}")
    if transform == Affine.name:
        return Affine(ndim)
    if ndim != 2:
        raise ValueError(f"transform must be 'affine' in {ndim}-D, got {transform!r}")
    return _BY_NAME[transform]()
