"""The public functions: check the arguments, bring them to one form, call a backend."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from triton_stn import autograd, backends, calls, checks, transforms
from triton_stn.backends.finish import Finish, finish_of
from triton_stn.backends.layout import memory_format, one_of
from triton_stn.backends.numbers import vector
from triton_stn.backends.pytorch_grid import flow_grid
from triton_stn.types import Fill, Mode, Normalize, PaddingMode, Size, TransformName


def spatial_transform(
    input: torch.Tensor,
    theta: torch.Tensor,
    output_size: Size | None = None,
    *,
    transform: TransformName | transforms.Transform = "affine",
    mode: Mode = "bilinear",
    padding_mode: PaddingMode = "zeros",
    fill_value: Fill | None = None,
    align_corners: bool = False,
    antialias: bool = False,
    output_dtype: torch.dtype | None = None,
    normalize: Normalize | None = None,
) -> torch.Tensor:
    """Sample ``input`` through the map ``theta``: grid generator and sampler in one kernel.

    For an affine map, equal to ``F.grid_sample(input, F.affine_grid(theta, size, align_corners),
    mode, padding_mode, align_corners)``; the grid is never stored.

    Args:
        input: images, ``(N, C, H, W)``, or volumes, ``(N, C, D, H, W)``, under an affine map;
            float16, bfloat16, float32 or float64, or uint8, which has no gradient; any strides.
            Frames that come as ``(N, H, W, C)`` are ``frames.permute(0, 3, 1, 2)``, of which
            nothing is copied.
        theta: maps normalised output coordinates to normalised input coordinates, in (x, y)
            order, (x, y, z) of a volume, both in [-1, 1] over the image. Its last dimensions are
            the transform's ``theta_shape``, ``(2, 3)`` for an affine map, ``(3, 4)`` for one of a
            volume; before them nothing, one map for the whole batch; ``(N,)``, one an image; or
            ``(N, K)``, K an image, without copying the image. A batch of one, of input or of theta,
            serves all of the other's, without a copy. Any floating dtype.
        output_size: ``(H_out, W_out)``, or ``(D_out, H_out, W_out)`` of a volume, an int for a
            square or a cube, or None for the input's size.
        transform: ``"affine"`` (2, 3), ``"attention"`` (3,), ``"similarity"`` (4,),
            ``"projective"`` (3, 3), or an object of `triton_stn.transforms`, such as
            ``ThinPlateSpline(rows, cols)``.
        mode: ``"bilinear"`` (trilinear on a volume), ``"nearest"`` (halves round to even; halfway
            between two pixels PyTorch may take the other, by how it rounds the coordinate) or
            ``"bicubic"`` (A = -0.75; tricubic on a volume), with PyTorch's results.
        padding_mode: what lies outside the image: ``"zeros"``, ``"border"`` (the nearest edge
            pixel) or ``"reflection"``.
        fill_value: with ``padding_mode="zeros"``, what lies outside instead of 0: a number, or one
            a channel, a list or a tensor ``(C,)``, which may want a gradient. That of ``theta``
            knows of it. In the units of ``input``: of uint8 from 0 to 255.
        align_corners: whether -1 and 1 are the centres of the corner pixels (True) or the outer
            edges of the image (False).
        antialias: where the map minifies, take the mean over what each output pixel covers instead
            of one sample: m x n bilinear samples, about one input pixel apart, at most 16 along
            each axis, counted per output pixel from the local scale of the map. With
            ``mode="bilinear"``. Any transform but affine, attention and similarity then stores
            six numbers an output pixel, its `Transform.patches`.
        output_dtype: of a uint8 ``input`` what is returned: uint8 (None), float32, float16 or
            bfloat16, still from 0 to 255.
        normalize: of a uint8 ``input``, ``(mean, std)``, each a number, or one a channel, a list or
            a tensor ``(C,)``: what is returned is ``(x / 255 - mean) / std``, in float32 where
            ``output_dtype`` is None.

    Returns:
        ``(N, C, H_out, W_out)``, or ``(N, K, C, H_out, W_out)`` when ``theta`` has K, with D_out
        before H_out for a volume, in the dtype and the memory format of ``input``. Coordinates,
        weights and sums are float32 (float64 for a float64 input) and are rounded once, at the
        store; to uint8 halves to even, between 0 and 255, and without a gradient of ``theta``. A
        finite source coordinate, however large, is out of view; a non-finite one gives NaN at that
        output, of uint8 0, and nowhere else.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape, a device, a size or a name that does not fit; the message says what
            came and what was expected.

    Example:
        >>> image = torch.arange(16.0).view(1, 1, 4, 4)
        >>> upper_right = torch.tensor([[0.5, 0.0, 0.5], [0.0, 0.5, -0.5]])
        >>> triton_stn.spatial_transform(image, upper_right, output_size=2)
        tensor([[[[2., 3.],
                  [6., 7.]]]])
        >>> theta = torch.tensor([0.5, 0.5, -0.5])  # the same as a scale and a translation
        >>> triton_stn.spatial_transform(image, theta, 2, transform="attention").tolist()
        [[[[2.0, 3.0], [6.0, 7.0]]]]
        >>> both = torch.stack((upper_right, torch.eye(2, 3)))[None]  # K = 2 crops of the image
        >>> triton_stn.spatial_transform(image, both, 2).shape
        torch.Size([1, 2, 1, 2, 2])
        >>> frames = torch.randint(0, 256, (8, 48, 64, 3), dtype=torch.uint8)  # of a camera
        >>> ready = triton_stn.spatial_transform(  # for a network; the frames are read once
        ...     frames.permute(0, 3, 1, 2), torch.eye(2, 3), 32, output_dtype=torch.bfloat16,
        ...     normalize=([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ... )
        >>> ready.shape, ready.dtype, ready.is_contiguous(memory_format=torch.channels_last)
        (torch.Size([8, 3, 32, 32]), torch.bfloat16, True)

    Source: Jaderberg et al., "Spatial Transformer Networks", 2015, arXiv 1506.02025, section 3.
    """
    options = (output_size, transform, mode, padding_mode, align_corners)
    usual = fill_value is None and antialias is False
    usual = usual and output_dtype is None and normalize is None
    if usual:
        call = calls.find(input, theta, options)
        if call is not None:
            return call(input, theta)
    checks.check_input(input)
    transform = transforms.resolve(transform, input.ndim - 2)
    checks.check_dimensions(transform, input)
    checks.check_options(mode, padding_mode, align_corners)
    checks.check_theta(theta, input, transform)
    checks.check_fill_value(fill_value, padding_mode, input)
    checks.check_finish(output_dtype, normalize, input)
    checks.check_antialias(antialias, mode)
    size = checks.check_output_size(output_size, input)
    if backends.is_sharded(input, theta):
        rules = dict(mode=mode, padding_mode=padding_mode, align_corners=align_corners)
        rules |= dict(antialias=antialias, output_dtype=output_dtype)
        call = partial(spatial_transform, output_size=size, transform=transform, **rules)
        leading = theta.ndim - len(transform.theta_shape)
        return _distributed().sample(call, input, theta, leading, fill_value, normalize)
    if usual and backends.uses_triton(input) and type(transform) is transforms.Affine:
        call = calls.keep(input, theta, options, size, (mode, padding_mode, align_corners))
        if call is not None:
            return call(input, theta)
    source, theta, has_k = _operand(transform, theta, input, size, align_corners, antialias)
    rules = ("area" if antialias else mode, padding_mode, align_corners, source)
    finish = _finish_of(output_dtype, normalize, input)
    return _sample(input, theta, size, rules, fill_value, has_k, finish)


def grid_sample(
    input: torch.Tensor,
    grid: torch.Tensor,
    mode: Mode = "bilinear",
    padding_mode: PaddingMode = "zeros",
    align_corners: bool | None = None,
    *,
    fill_value: Fill | None = None,
    output_dtype: torch.dtype | None = None,
    normalize: Normalize | None = None,
) -> torch.Tensor:
    """Sample ``input`` at the normalised coordinates of ``grid``, as ``F.grid_sample`` does.

    Args:
        input: images, ``(N, C, H, W)``, or volumes, ``(N, C, D, H, W)``; float16, bfloat16,
            float32, float64 or uint8; any strides.
        grid: source coordinates, (x, y) last, in [-1, 1] over the image: ``(N, H_out, W_out, 2)``,
            or ``(N, K, H_out, W_out, 2)`` for K grids an image, without copying the image; of a
            volume (x, y, z), ``(N, [K,] D_out, H_out, W_out, 3)``. Sparse points are a grid of one
            row. Any floating dtype: a float32 grid over a half-precision
            image loses nothing. Any strides.
        mode, padding_mode, align_corners, fill_value, output_dtype, normalize: as in
            `spatial_transform`; of ``align_corners`` None is False.

    Returns:
        ``(N, C, H_out, W_out)``, or ``(N, K, C, H_out, W_out)``, with D_out before H_out for a
        volume, in the memory format of ``input``, and its dtype or ``output_dtype``. Both arguments
        get a gradient, but for bytes.

    Raises:
        TypeError, ValueError: as in `spatial_transform`.

    Example:
        >>> image = torch.arange(16.0).view(1, 1, 4, 4)
        >>> points = torch.tensor([[-0.75, -0.75], [0.0, 0.0], [9.0, 0.0]])  # the last is outside
        >>> triton_stn.grid_sample(image, points.view(1, 1, 3, 2), fill_value=-1).tolist()
        [[[[0.0, 7.5, -1.0]]]]
        >>> triton_stn.grid_sample(image.byte(), points.view(1, 1, 3, 2), fill_value=9).tolist()
        [[[[0, 8, 9]]]]
    """
    align_corners = False if align_corners is None else align_corners
    checks.check_input(input)
    checks.check_options(mode, padding_mode, align_corners)
    checks.check_grid(grid, input)
    checks.check_fill_value(fill_value, padding_mode, input)
    checks.check_finish(output_dtype, normalize, input)
    has_k = grid.ndim > input.ndim
    if backends.is_sharded(input, grid):
        rules = dict(mode=mode, padding_mode=padding_mode, align_corners=align_corners)
        call = partial(grid_sample, output_dtype=output_dtype, **rules)
        return _distributed().sample(call, input, grid, 1 + has_k, fill_value, normalize)
    grids = grid if has_k else grid[:, None]
    rules = (mode, padding_mode, align_corners, "grid")
    finish = _finish_of(output_dtype, normalize, input)
    return _sample(input, grids, grids.shape[2:-1], rules, fill_value, has_k, finish)


def flow_warp(
    input: torch.Tensor,
    flow: torch.Tensor,
    mode: Mode = "bilinear",
    padding_mode: PaddingMode = "zeros",
    align_corners: bool = False,
    *,
    fill_value: Fill | None = None,
    output_dtype: torch.dtype | None = None,
    normalize: Normalize | None = None,
) -> torch.Tensor:
    """Backward warping by optical flow: the output at (i, j) is ``input`` at (i, j) + flow.

    Args:
        input: images, ``(N, C, H, W)``, or volumes, ``(N, C, D, H, W)``; float16, bfloat16,
            float32, float64 or uint8; any strides.
        flow: displacements in pixels of ``input``, ``(N, 2, H_out, W_out)``: along x (columns)
            first, then along y (rows), as optical-flow networks give it; of a volume
            ``(N, 3, D_out, H_out, W_out)``, along z (slices) last. Any floating dtype.
        mode, padding_mode, fill_value, output_dtype, normalize: as in `spatial_transform`.
        align_corners: whether ``"reflection"`` turns at the centres of the pixels at the edge or at
            their outer edges; displacements are pixels with either.

    Returns:
        ``(N, C, H_out, W_out)``, with D_out before H_out for a volume, in the memory format of
        ``input``, and its dtype or ``output_dtype``. Both arguments get a gradient, but for bytes.
        The kernels store no grid.

    Raises:
        TypeError, ValueError: as in `spatial_transform`.

    Example:
        >>> row = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
        >>> flow = torch.tensor([0.5, 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 4)  # along x
        >>> triton_stn.flow_warp(row, flow, padding_mode="border").tolist()
        [[[[1.5, 2.5, 3.5, 4.0]]]]
    """
    checks.check_input(input)
    checks.check_options(mode, padding_mode, align_corners)
    checks.check_flow(flow, input)
    checks.check_fill_value(fill_value, padding_mode, input)
    checks.check_finish(output_dtype, normalize, input)
    if backends.is_sharded(input, flow):
        rules = dict(mode=mode, padding_mode=padding_mode, align_corners=align_corners)
        call = partial(flow_warp, output_dtype=output_dtype, **rules)
        return _distributed().sample(call, input, flow, 1, fill_value, normalize)
    field, source = flow.movedim(1, -1)[:, None], "flow"
    align_corners = align_corners and padding_mode == "reflection"  # else it changes nothing
    if not backends.uses_triton(input):
        dtype = torch.promote_types(input.dtype, torch.float32)
        field, source = flow_grid(field.to(dtype), input.shape[2:], align_corners), "grid"
    rules = (mode, padding_mode, align_corners, source)
    finish = _finish_of(output_dtype, normalize, input)
    return _sample(input, field, flow.shape[2:], rules, fill_value, False, finish)


def splat(
    input: torch.Tensor,
    theta: torch.Tensor,
    output_size: Size | None = None,
    *,
    transform: TransformName | transforms.Transform = "affine",
    mode: Mode = "bilinear",
    padding_mode: PaddingMode = "zeros",
    align_corners: bool = False,
    normalize: bool = False,
) -> torch.Tensor:
    """Forward warping: every pixel of ``input`` is added where ``theta`` says it came from.

    The transpose of sampling: for x of shape (N, C, H, W),
    ``<input, spatial_transform(x, theta, (h, w))> = <splat(input, theta, (H, W)), x>``.

    Args:
        input: ``(N, C, h, w)``, or ``(N, K, C, h, w)`` when ``theta`` has K, whose K are added up;
            volumes with d before h.
        theta: as in `spatial_transform`: maps ``input``'s normalised coordinates to the output's.
        output_size: ``(H, W)``, ``(D, H, W)``, an int for all sides, or None for ``input``'s size.
        transform, mode, padding_mode, align_corners: as in `spatial_transform`.
        normalize: divide by the weight that fell on each pixel, the splat of ones: a weighted mean
            instead of a sum. A pixel that nothing fell on stays 0.

    Returns:
        ``(N, C, H, W)`` in the dtype of ``input``. Both arguments get a gradient. Bitwise
        reproducible for affine and most projective maps with ``padding_mode="zeros"``.

    Raises:
        TypeError, ValueError: as in `spatial_transform`.

    Example:
        >>> row = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
        >>> theta = torch.tensor([[1.0, 0.0, 0.25], [0.0, 1.0, 0.0]])  # half a pixel to the right
        >>> triton_stn.splat(row, theta).tolist()
        [[[[0.5, 1.5, 2.5, 3.5]]]]
        >>> triton_stn.splat(row, theta, normalize=True).tolist()
        [[[[1.0, 1.5, 2.5, 3.5]]]]
    """
    checks.check_options(mode, padding_mode, align_corners)
    checks.check_bool("normalize", normalize)
    planes = _planes(input, theta, len(transforms.resolve(transform).theta_shape) + 2)
    transform = transforms.resolve(transform, planes.ndim - 3)
    checks.check_theta(theta, input, transform)
    image = one_of(planes)
    checks.check_dimensions(transform, image)
    size = checks.check_output_size(output_size, image)
    if backends.is_sharded(input, theta):
        rules = dict(mode=mode, padding_mode=padding_mode, align_corners=align_corners)
        call = partial(splat, output_size=size, transform=transform, normalize=normalize, **rules)
        leading = theta.ndim - len(transform.theta_shape)
        return _distributed().splat(call, input, theta, leading)
    canvas = planes.shape[3:]
    source, theta, _ = _operand(transform, theta, image, canvas, align_corners)
    return _splat(planes, theta, size, (mode, padding_mode, align_corners, source), normalize)


def grid_splat(
    input: torch.Tensor,
    grid: torch.Tensor,
    output_size: Size | None = None,
    mode: Mode = "bilinear",
    padding_mode: PaddingMode = "zeros",
    align_corners: bool = False,
    *,
    normalize: bool = False,
) -> torch.Tensor:
    """Forward warping by a grid: the transpose of `grid_sample`, as `splat` is of sampling.

    Args:
        input: ``(N, C, h, w)``, or ``(N, K, C, h, w)``.
        grid: where each pixel goes, normalised coordinates of the output, ``(N, h, w, 2)`` or
            ``(N, K, h, w, 2)``; of volumes ``(N, [K,] d, h, w, 3)``.
        output_size, mode, padding_mode, align_corners, normalize: as in `splat`.

    Returns:
        ``(N, C, H, W)`` in the dtype of ``input``. Both arguments get a gradient.

    Raises:
        TypeError, ValueError: as in `spatial_transform`.

    Example:
        >>> row = torch.tensor([1.0, 2.0, 4.0]).view(1, 1, 1, 3)
        >>> grid = torch.tensor([[-0.75, 0.0], [-0.5, 0.0], [0.75, 0.0]]).view(1, 1, 3, 2)
        >>> triton_stn.grid_splat(row, grid, output_size=(1, 4)).tolist()
        [[[[2.0, 1.0, 0.0, 4.0]]]]
    """
    checks.check_options(mode, padding_mode, align_corners)
    checks.check_bool("normalize", normalize)
    checks.check_floating("grid", grid)
    fits = grid.ndim > 0 and grid.shape[-1] in (2, 3)
    checks.check_shape("grid", grid, fits, "(N, [K,] h, w, 2) or (N, [K,] d, h, w, 3)")
    ndim = grid.shape[-1]
    planes = _planes(input, grid, ndim + 3, ndim)
    image = one_of(planes)
    checks.check_grid(grid, image)
    grids = grid if grid.ndim == ndim + 3 else grid[:, None]
    if grids.shape[2:-1] != planes.shape[3:]:
        raise ValueError(
            f"grid must have the size of input, {tuple(planes.shape[3:])}, "
            f"got {tuple(grids.shape[2:-1])} in grid of shape {checks.shape_of(grid)}"
        )
    size = checks.check_output_size(output_size, image)
    if backends.is_sharded(input, grid):
        rules = dict(mode=mode, padding_mode=padding_mode, align_corners=align_corners)
        call = partial(grid_splat, output_size=size, normalize=normalize, **rules)
        return _distributed().splat(call, input, grid, grid.ndim - ndim - 1)
    return _splat(planes, grids, size, (mode, padding_mode, align_corners, "grid"), normalize)


for _function in (spatial_transform, grid_sample, flow_warp, splat, grid_splat):
    _function.__prepare_scriptable__ = checks.refuse_script


def _distributed():
    from triton_stn import distributed  # which imports PyTorch's

    return distributed


def _operand(
    transform, theta, input, size, align_corners, antialias=False
) -> tuple[str, torch.Tensor, bool]:
    """(source, theta of (N, K, *), it came with a K), as the operators take it."""
    leading = theta.ndim - len(transform.theta_shape)
    if input.dtype == torch.float64:
        theta = theta.double()
    of_kernel = None
    if antialias and not transform.is_affine:
        of_kernel = "patch", transform.patches(theta, size, align_corners)
    elif transform.is_affine or backends.uses_triton(input):
        of_kernel = transform.kernel_theta(theta)
    source, theta = of_kernel or ("grid", transform.grid(theta, size, align_corners))
    if leading == 0:
        theta = theta.expand(input.shape[0], 1, *theta.shape)
    elif leading == 1:
        theta = theta[:, None]
    return source, theta, leading == 2


def _finish_of(output_dtype, normalize, input) -> Finish | None:
    """Of a uint8 input what becomes of its samples."""
    return finish_of(output_dtype, normalize, input) if input.dtype == torch.uint8 else None


def _sample(input, theta, size, rules, fill_value, has_k, finish) -> torch.Tensor:
    """(N, K, C, *size), or without a K, by the backend of ``input``; a batch of one of input or of
    theta (N, K, *) serves all of the other's. ``rules`` as `autograd.How` has them."""
    n, k = theta.shape[:2]
    if input.shape[0] == 1 and n != 1:  # then all are maps of one image
        output = _sample_all(input, theta.flatten(0, 1)[None], size, rules, fill_value, finish)
        output = output.unflatten(1, (n, k)).squeeze(0)
    else:
        theta = theta.expand(input.shape[0], *theta.shape[1:])
        output = _sample_all(input, theta, size, rules, fill_value, finish)
    return output if has_k else output.squeeze(1)


def _sample_all(input, theta, size, rules, fill_value, finish=None) -> torch.Tensor:
    """(N, K, C, *size) of batches alike."""
    how = autograd.How(tuple(size), *rules, backends.uses_triton(input))
    sample = autograd.sample
    if finish is not None:
        wanted = (t for t in (fill_value, finish.table) if isinstance(t, torch.Tensor))
        if not _takes_numbers(how) or any(t.requires_grad for t in wanted):
            wide = input.to(torch.float32, memory_format=memory_format(input))
            return finish(_sample_all(wide, theta, size, rules, fill_value))
        how = replace(how, dtype=finish.dtype)
        sample = partial(autograd.sample_bytes, finish.table)
    if fill_value is None:
        return sample(input, theta, None, how)
    if isinstance(fill_value, (list, tuple)):
        dtype = torch.promote_types(input.dtype, torch.float32)
        fill_value = vector([float(value) for value in fill_value], input.new_empty(0, dtype=dtype))
    if _takes_numbers(how):
        if not isinstance(fill_value, torch.Tensor):
            return sample(input, theta, None, replace(how, fill=float(fill_value)))
        if not fill_value.requires_grad:
            fills = fill_value.to(torch.promote_types(input.dtype, torch.float32)).resolve_neg()
            return sample(input, theta, fills, how)
    # Sampling is linear: what lies outside has the weight that a plane of ones lacks. Both parts
    # are float32, so that a half-precision pixel is rounded once.
    wide = input.to(torch.promote_types(input.dtype, torch.float32))
    output = autograd.sample(wide, theta, None, how)
    ones = torch.ones((), dtype=wide.dtype, device=input.device).expand_as(input[:, :1])
    inside = autograd.sample(ones, theta, None, how)
    if not isinstance(fill_value, torch.Tensor):
        fill_value = torch.full((), float(fill_value), dtype=wide.dtype, device=input.device)
    fill = fill_value.to(wide.dtype).view(-1, *(1 for _ in size))
    # Rounding leaves up to 1e-6 outside where nothing is: there even an inf is not read.
    some = (inside - 1).abs() > 1e-6  # bicubic weights outside may be negative
    outside = torch.where(some, fill, 0.0) * (1 - inside)
    return (output + outside).to(input.dtype, memory_format=torch.preserve_format)


def _takes_numbers(how) -> bool:
    """Whether a kernel samples bytes, too, fills what lies outside, and finishes what it stores."""
    return how.triton and how.mode in ("bilinear", "nearest") and not backends.is_transformed()


def _planes(input, theta, with_k: int, ndim: int | None = None) -> torch.Tensor:
    """What is splatted, checked, as (N, K, C, h, w); ``with_k`` is theta's ndim where it has K."""
    has_k = isinstance(theta, torch.Tensor) and theta.ndim == with_k
    checks.check_splat_input(input, theta.shape[1] if has_k else None, ndim)
    return input if has_k else input[:, None]


def _splat(planes, theta, size, rules, normalize) -> torch.Tensor:
    """(N, K, C, h, w) -> (N, C, H, W)."""
    how = autograd.How(tuple(planes.shape[3:]), *rules, backends.uses_triton(planes))
    n = theta.shape[0] if planes.shape[0] == 1 else planes.shape[0]
    planes, theta = (t.expand(n, *t.shape[1:]) for t in (planes, theta))
    output = autograd.splat(planes, theta, size, how)
    if normalize:
        dtype = torch.promote_types(planes.dtype, torch.float32)
        ones = torch.ones((), dtype=dtype, device=planes.device).expand_as(planes[:, :, :1])
        weight = autograd.splat(ones, theta, size, how)
        fell = weight > 1e-6
        mean = output / torch.where(fell, weight, 1.0)
        output = torch.where(fell, mean, 0.0).to(planes.dtype)
    return output
