"""Fused spatial transformers: sample an image through a learned transformation in one kernel."""

from triton_stn import augment, geometry, nn, plot, transforms, types
from triton_stn._version import __version__
from triton_stn.backends import use_backend
from triton_stn.functional import (
    flow_warp,
    grid_sample,
    grid_splat,
    spatial_transform,
    splat,
)
from triton_stn.patching import patch, unpatch
from triton_stn.transforms import Affine, Attention, Projective, Similarity, ThinPlateSpline

__all__ = [
    "Affine",
    "Attention",
    "Projective",
    "Similarity",
    "ThinPlateSpline",
    "__version__",
    "augment",
    "flow_warp",
    "geometry",
    "grid_sample",
    "grid_splat",
    "nn",
    "patch",
    "plot",
    "spatial_transform",
    "splat",
    "transforms",
    "types",
    "unpatch",
    "use_backend",
]
