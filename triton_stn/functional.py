"""The public functions: check the arguments, bring them to one form, call a backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from triton_stn import autograd, backends, checks, transforms
from triton_stn.backends import pytorch


def spatial_transform(
    input: torch.Tensor,
    theta: torch.Tensor,
    output_size: int | Sequence[int] | None = None,
    *,
    transform: str | transforms.Transform = "affine",
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> torch.Tensor:
    """Sample ``input`` through the map ``theta``: grid generator and sampler in one kernel.

    For an affine map, equal to ``F.grid_sample(input, F.affine_grid(theta, size, align_corners),
    mode, padding_mode, align_corners)``; the grid is never stored.

    Args:
        input: images, ``(N, C, H, W)``; float16, bfloat16, float32 or float64; any strides.
        theta: maps normalised output coordinates to normalised input coordinates, in (x, y)
            order, both in [-1, 1] over the image. Its last dimensions are the transform's
            ``theta_shape``, ``(2, 3)`` for an affine map; before them nothing, one map for the
            whole batch; ``(N,)``, one an image; or ``(N, K)``, K an image, without copying the
            image. Any floating dtype.
        output_size: ``(H_out, W_out)``, an int for a square, or None for the input's size.
        transform: ``"affine"`` (2, 3), ``"attention"`` (3,), ``"similarity"`` (4,),
            ``"projective"`` (3, 3), or an object of `triton_stn.transforms`, such as
            ``ThinPlateSpline(rows, cols)``.
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
    transform = transforms.resolve(transform)
    checks.check_choice("mode", mode, checks.MODES)
    checks.check_choice("padding_mode", padding_mode, checks.PADDING_MODES)
    checks.check_bool("align_corners", align_corners)
    checks.check_theta(theta, input, transform)
    size = checks.check_output_size(output_size, input)

    leading = theta.ndim - len(transform.theta_shape)
    if input.dtype == torch.float64:
        theta = theta.double()
    uses_triton = backends.uses_triton(input)
    of_kernel = transform.kernel_theta(theta) if uses_triton or transform.is_affine else None
    source, theta = of_kernel or ("grid", transform.grid(theta, size, align_corners))
    last = theta.shape[leading:]
    if leading == 0:
        theta = theta.expand(input.shape[0], 1, *last)
    elif leading == 1:
        theta = theta[:, None]

    sample = autograd.sample if uses_triton else pytorch.sample
    output = sample(input, theta, *size, mode, padding_mode, align_corners, source)
    return output if leading == 2 else output.squeeze(1)


def grid_sample(
    input: torch.Tensor,
    grid: torch.Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> torch.Tensor:
    """Sample ``input`` at the normalised coordinates of ``grid``, as ``F.grid_sample`` does.

    Args:
        input: images, ``(N, C, H, W)``; float16, bfloat16, float32 or float64; any strides.
        grid: source coordinates, (x, y) last, in [-1, 1] over the image: ``(N, H_out, W_out, 2)``,
            or ``(N, K, H_out, W_out, 2)`` for K grids an image, without copying the image. Sparse
            points are a grid of one row. Any floating dtype: a float32 grid over a half-precision
            image loses nothing. Any strides.
        mode, padding_mode, align_corners: as in `spatial_transform`.

    Returns:
        ``(N, C, H_out, W_out)``, or ``(N, K, C, H_out, W_out)``, in the dtype and the memory format
        of ``input``. Both arguments get a gradient.

    Raises:
        TypeError, ValueError: as in `spatial_transform`.
    """
    checks.check_input(input)
    checks.check_choice("mode", mode, checks.MODES)
    checks.check_choice("padding_mode", padding_mode, checks.PADDING_MODES)
    checks.check_bool("align_corners", align_corners)
    checks.check_grid(grid, input)
    has_k = grid.ndim == 5
    grids = grid if has_k else grid[:, None]
    sample = autograd.sample if backends.uses_triton(input) else pytorch.sample
    output = sample(input, grids, *grid.shape[-3:-1], mode, padding_mode, align_corners, "grid")
    return output if has_k else output.squeeze(1)


def flow_warp(
    input: torch.Tensor,
    flow: torch.Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
) -> torch.Tensor:
    """Backward warping by optical flow: the output at (i, j) is ``input`` at (i, j) + flow.

    Args:
        input: images, ``(N, C, H, W)``; float16, bfloat16, float32 or float64; any strides.
        flow: displacements in pixels of ``input``, ``(N, 2, H_out, W_out)``: along x (columns)
            first, then along y (rows), as optical-flow networks give it. Any floating dtype.
        mode, padding_mode: as in `spatial_transform`.

    Returns:
        ``(N, C, H_out, W_out)`` in the dtype and the memory format of ``input``. Both arguments get
        a gradient. No grid is stored.

    Raises:
        TypeError, ValueError: as in `spatial_transform`.
    """
    checks.check_input(input)
    checks.check_choice("mode", mode, checks.MODES)
    checks.check_choice("padding_mode", padding_mode, checks.PADDING_MODES)
    checks.check_flow(flow, input)
    field = flow.permute(0, 2, 3, 1)[:, None]
    sample = autograd.sample if backends.uses_triton(input) else pytorch.sample
    # In pixels -1 and 1 mean nothing: the edges of reflection alone depend on align_corners.
    return sample(input, field, *flow.shape[2:], mode, padding_mode, False, "flow").squeeze(1)
