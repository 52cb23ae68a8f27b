"""Fused spatial transformers: sample an image through a learned transformation in one kernel."""

from triton_stn._version import __version__
from triton_stn.backends import use_backend
from triton_stn.functional import spatial_transform

__all__ = ["__version__", "spatial_transform", "use_backend"]
