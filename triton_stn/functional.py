"""The public functions: check the arguments, bring them to one form, call a backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from triton_stn import backends, checks
from triton_stn.autograd import affine_sample
from triton_stn.backends import pytorch


def spatial_transform(
    input: torch.Tensor,
    theta: torch.Tensor,
    output_size: int | Sequence[int] | None = None,
    *,
    transform: str = "affine",
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> torch.Tensor:
    """Sample ``input`` through the affine map ``theta``: grid generator and sampler in one kernel.

    Equal to ``F.grid_sample(input, F.affine_grid(theta, size, align_corners), mode,
    padding_mode, align_corners)``; the grid is never stored.

    Args:
        input: images, ``(N, C, H, W)``; float16, bfloat16, float32 or float64; any strides.
        theta: maps normalised output coordinates to normalised input coordinates, in (x, y)
            order, both in [-1, 1] over the image. ``(2, 3)``: one map for the whole batch;
            ``(N, 2, 3)``: one an image; ``(N, K, 2, 3)``: K an image, without copying the image.
            Any floating dtype.
        output_size: ``(H_out, W_out)``, an int for a square, or None for the input's size.
        transform: ``"affine"``.
        mode: ``"bilinear"``, or ``"nearest"`` (halves round to even, as in PyTorch).
        padding_mode: what lies outside the image: ``"zeros"``, ``"border"`` (the nearest edge
            pixel) or ``"reflection"``.
        align_corners: whether -1 and 1 are the centres of the corner pixels (True) or the outer
            edges of the image (False).

    Returns:
        ``(N, C, H_out, W_out)``, or ``(N, K, C, H_out, W_out)`` when ``theta`` has K, in the dtype
        and the memory format of ``input``. Coordinates, weights and sums are float32 (float64 for a
        float64 input) and are rounded once, at the store. A finite source coordinate, however
        large, is out of view; a non-finite one gives NaN at that output and nowhere else.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape, a device, a size or a name that does not fit; the message says what
            came and what was expected.

    Source: Jaderberg et al., "Spatial Transformer Networks", 2015, arXiv 1506.02025, section 3.
    """
    checks.check_input(input)
    checks.check_choice("transform", transform, checks.TRANSFORMS)
    checks.check_choice("mode", mode, checks.MODES)
    checks.check_choice("padding_mode", padding_mode, checks.PADDING_MODES)
    checks.check_bool("align_corners", align_corners)
    checks.check_affine_theta(theta, input)
    h_out, w_out = checks.check_output_size(output_size, input)

    n = input.shape[0]
    has_k = theta.ndim == 4
    if theta.ndim == 2:
        theta = theta.expand(n, 1, 2, 3)
    elif theta.ndim == 3:
        theta = theta[:, None]

    sample = affine_sample if backends.uses_triton(input) else pytorch.affine_sample
    output = sample(input, theta, h_out, w_out, mode, padding_mode, align_corners)
    return output if has_k else output.squeeze(1)
