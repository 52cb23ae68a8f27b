"""The types of the public functions' arguments: names that they take, sizes, numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch

Mode: TypeAlias = Literal["nearest", "bilinear", "bicubic"]
PaddingMode: TypeAlias = Literal["zeros", "border", "reflection"]
TransformName: TypeAlias = Literal["affine", "attention", "similarity", "projective"]
Direction: TypeAlias = Literal["output_to_input", "input_to_output"]
Differences: TypeAlias = Literal["central", "corners"]
Backend: TypeAlias = Literal["triton", "torch", "auto"]
# A str is a sequence of str: no type checker takes it for one of int.
Size: TypeAlias = int | Sequence[int]
Fill: TypeAlias = float | Sequence[float] | torch.Tensor
Normalize: TypeAlias = tuple[Fill, Fill]  # mean, std
