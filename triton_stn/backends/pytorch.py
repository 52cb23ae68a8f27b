"""Pure PyTorch: the CPU path and, in float64, the oracle. On images differentiable to any order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from triton_stn.backends import kinks
from triton_stn.backends.layout import empty_output, is_channels_last, memory_format
from triton_stn.backends.numbers import kept, vector

# F.grid_sample on the CPU faults on coordinates that no int32 holds. Under this bound a normalised
# coordinate times any image's width stays far inside.
_SAFE_COORDINATE = 1024.0
# From here on, sums of channels-last pixels beat F.grid_sample on planes (docs/performance.md).
_ROW_CHANNELS = 16
# F.grid_sample goes through the planes of a tensor point by point: with more planes at a time than
# this, of all tensors, their rows push one another out of the first-level cache.
_PLANES = 32
# A piece that is converted afterwards stays in the cache, and its memory is used again.
_PIECE_BYTES = 8 * 2**20


def sample(
    input: torch.Tensor,
    theta: torch.Tensor,
    size: Sequence[int],
    mode: str,
    padding_mode: str,
    align_corners: bool,
    source: str = "affine",
) -> torch.Tensor:
    """Sample input (N, C, H, W) -> (N, K, C, H_out, W_out), or (N, C, D, H, W) likewise.

    ``theta`` is (N, K, 2, 3), or (N, K, 3, 4) of volumes, for the source "affine"; or
    (N, K, H_out, W_out, 2), normalised coordinates for "grid", displacements in pixels for "flow";
    or (N, K, H_out, W_out, 6), `Transform.patches`, for "patch", of the mode "area".
    """
    size = tuple(size)
    n, c = input.shape[:2]
    k = theta.shape[1]
    if n * k * c == 0:
        return empty_of(input, theta, *size)
    if mode == "area":
        return _sample_area(input, theta, *size, padding_mode, align_corners, source)
    if source == "flow":
        theta = _flow_grid(theta, input, align_corners)
    options = size, mode, padding_mode, align_corners
    if not torch.is_grad_enabled():
        return _sampled(input, theta, *options)
    return _Sample.apply(input, theta, *options)


def empty_of(input: torch.Tensor, theta: torch.Tensor, *size: int) -> torch.Tensor:
    """An output without elements that keeps both arguments in the graph: their gradients are zeros,
    not None."""
    empty = input.new_empty(input.shape[0], theta.shape[1], input.shape[1], *size)
    return empty + (input.sum() * 0 + theta.sum().to(input.dtype) * 0)


def sample_backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    theta: torch.Tensor,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    needs_input: bool,
    needs_theta: bool,
    source: str = "affine",
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The gradients of input and theta, None for one that is not needed."""
    if grad_output.numel() == 0:
        return torch.zeros_like(input), torch.zeros_like(theta)
    grid = _flow_grid(theta, input, align_corners) if source == "flow" else theta
    rules = (mode, padding_mode, align_corners)
    wanted = (needs_input, needs_theta)
    grad_input, grad_theta = _gradients(
        grad_output, input, grid, grad_output.shape[3:], *rules, *wanted
    )
    if source == "flow" and needs_theta:
        extent = [n - 1 if align_corners else n for n in (input.shape[3], input.shape[2])]
        grad_theta = (grad_theta * (2 / vector(extent, grad_theta))).to(theta.dtype)
    return grad_input, grad_theta


class _Sample(torch.autograd.Function):
    """Keeps input and theta for backward, where autograd alone would keep a grid of its own."""

    @staticmethod
    def forward(ctx, input, theta, *options):
        ctx.save_for_backward(input, theta)
        ctx.options = options
        return _sampled(input, theta, *options)

    @staticmethod
    def backward(ctx, grad_output):
        input, theta = ctx.saved_tensors
        needs_input, needs_theta = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # create_graph=True: F.grid_sample has no second derivative, of images since torch 2.13.
            # Of aliases, for θ may depend on input, and that path is not this Function's.
            input, theta = input.view_as(input), theta.view_as(theta)
            if input.ndim == 4:
                output = _sample_rows(input, theta, *ctx.options, differentiable=True)
            else:
                output = _sample_planes(input, theta, *ctx.options, differentiable=True)
                output = output.to(input.dtype)
            wanted = [input] * needs_input + [theta] * needs_theta
            grads = torch.autograd.grad(
                output, wanted, grad_output, create_graph=True, materialize_grads=True
            )
            grad_input = grads[0] if needs_input else None
            grad_theta = grads[-1] if needs_theta else None
        else:
            grad_input, grad_theta = _gradients(
                grad_output, input, theta, *ctx.options, needs_input, needs_theta
            )
        return grad_input, grad_theta, None, None, None, None


def _sampled(input, theta, size, mode, padding_mode, align_corners):
    """The output, by whichever way suits the layout, in pieces where it is converted."""
    options = size, mode, padding_mode, align_corners
    n, c = input.shape[:2]
    k = theta.shape[1]
    channels_last = is_channels_last(input)
    of_rows = channels_last and c >= _ROW_CHANNELS and input.ndim == 4
    rows = of_rows and mode != "bicubic"
    sample = _sample_rows if rows else _sample_planes
    whole = k == 1 and rows == channels_last and input.dtype in (torch.float32, torch.float64)
    if whole and not torch.compiler.is_compiling():
        return sample(input, theta, *options)
    if torch.compiler.is_compiling():  # which knows neither values, sizes nor exact strides
        # (and, in torch 2.11, loses the gradient of an output that is copied into)
        output = sample(input, theta, *options).to(input.dtype).flatten(0, 1)
        return output.clone(memory_format=memory_format(input)).unflatten(0, (n, k))
    output = empty_output(input, k, *size)
    each = 4 * (input[0].numel() + (c + len(size)) * k * math.prod(size))
    piece = max(_PIECE_BYTES // each, torch.get_num_threads())
    for i in range(0, n, piece):
        part = slice(i, i + piece)
        output[part] = sample(input[part], theta[part], *options)
    return output


def _sample_planes(input, theta, size, mode, padding_mode, align_corners, differentiable=False):
    """By F.grid_sample, which reads plane by plane and parallelises over the batch alone.

    ``differentiable``: for its derivatives, not for its value.
    """
    n, c, *extent = input.shape
    k = theta.shape[1]
    x = _in_float(input)
    at_kinks = differentiable and mode == "bilinear"
    grid, hole = _safe_grid(theta, x, size, padding_mode, align_corners, at_kinks)
    canvas = grid.shape[1:-1]
    groups = _channel_groups(n, c, _PLANES // 2)
    if groups > 1 or math.prod(canvas) >= math.prod(extent):
        x = x.contiguous()  # reading planes repays cutting them out
    if n * c == 1:  # rows serve as the batch
        blocks = _row_blocks(canvas[0])
        x = x.expand(blocks, *x.shape[1:])
        grid = grid.reshape(blocks, canvas[0] // blocks, *grid.shape[2:])
    elif groups > 1:
        x = x.view(n * groups, c // groups, *extent)
        grid = _for_each_group(grid, groups)
    y = F.grid_sample(x, grid, mode, padding_mode, align_corners).view(n, c, *canvas)
    return _finish(y, hole, k)


def _sample_rows(input, theta, size, mode, padding_mode, align_corners, differentiable=False):
    """By weighted sums of channels-last pixels, C numbers at a time.

    ``differentiable``: by operations that all are, to any order.
    """
    n, c, h, w = input.shape
    x = _in_float(input)
    at_kinks = differentiable and mode == "bilinear"
    grid, hole = _safe_grid(theta, x, size, padding_mode, align_corners, at_kinks)
    index, weight = _taps(grid, h, w, mode, padding_mode, align_corners, differentiable)
    index += torch.arange(0, n * h * w, h * w, device=x.device)[:, None, None, None, None]
    index = index.reshape(-1, index.shape[-1] ** 2)
    weight = weight.reshape(index.shape)
    pixels = x.permute(0, 2, 3, 1).reshape(-1, c)
    if differentiable:
        weight = weight[..., None]
        y = torch.where(weight != 0, pixels[index] * weight, 0.0).sum(1)
    else:
        y = F.embedding_bag(index, pixels, mode="sum", per_sample_weights=weight)
        unread = (weight == 0).all(-1)  # such a point names pixels, and may meet an inf there
        if torch.compiler.is_compiling() or unread.any():
            y[unread] = 0.0
    y = y.view(*grid.shape[:3], c).permute(0, 3, 1, 2)
    y = _finish(y, hole, theta.shape[1])
    return y.to(input.dtype) if differentiable else y


def _finish(y, hole, k):
    """Restore the NaNs; (N, C, K·H_out, W_out) -> (N, K, C, H_out, W_out), or of volumes."""
    if hole is not None:
        y = y.masked_fill(hole[:, None], torch.nan)
    n, c, rows, *rest = y.shape
    return y.view(n, c, k, rows // k, *rest).transpose(1, 2)


def _taps(grid, h, w, mode, padding_mode, align_corners, differentiable):
    """The pixels that each point of a grid (..., 2) reads: (index in an image, weight).

    Both (..., taps along y, taps along x). A tap outside the image has weight 0 and the index of a
    pixel at its edge.
    """
    last = vector([w - 1, h - 1], grid)
    extent = last if align_corners else last + 1
    x = torch.addcmul(last / 2, grid, extent / 2)  # in pixels
    low = 0.0 if align_corners else -0.5
    if padding_mode == "reflection" and mode != "bicubic":
        x = _reflect(x, extent, low)
    if padding_mode != "zeros" and mode != "bicubic":
        # PyTorch's derivative is zero at and beyond the edge.
        x = torch.where((x > 0) & (x < last), x, torch.minimum(x.detach().clamp(min=0), last))
    left = x.detach().floor()
    if mode == "nearest":
        tap = x.detach().round().unsqueeze(-2)
        weight = torch.ones_like(tap)
    elif mode == "bilinear":
        # Without derivatives, a tap whose weight is 0 is the other one: no inf next door leaks in.
        right = left + 1 if differentiable else x.ceil()
        tap = torch.stack((left, right), -2)
        share = x - left
        if differentiable:  # a weight of exactly 0 has no derivative in `_sample_rows`
            share = share + torch.finfo(x.dtype).eps ** 2
        weight = torch.stack((1 - share, share), -2)
    else:
        tap = torch.stack([left + o for o in (-1, 0, 1, 2)], -2)
        weight = _cubic((x.unsqueeze(-2) - tap.detach()).abs())
        if padding_mode == "reflection":
            tap = _reflect(tap, extent, low)
        if padding_mode != "zeros":
            tap = torch.minimum(tap.clamp(min=0), last)
    near = torch.minimum(tap.clamp(min=0), last)
    weight = torch.where(near == tap, weight, 0.0)
    column, row = near.long().unbind(-1)
    index = torch.add(column[..., None, :], row[..., :, None], alpha=w)
    return index, weight[..., None, :, 0] * weight[..., :, None, 1]


def _cubic(d):
    """Keys' kernel with A = -0.75 at distances of 0 to 2."""
    a = -0.75
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    return torch.where(d <= 1, near, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a)


def _reflect(x, span, low):
    """Reflect into [low, low + span]; an axis whose span is 0 has one place."""
    distance = x - low
    flips = (distance.detach() / span.clamp(min=1e-9)).floor()
    rest = distance - flips * span  # in [0, span)
    place = torch.where(flips % 2 == 0, rest, span - rest) + low
    return torch.where(span > 0, place, x * 0.0)


def _gradients(
    grad_output, input, theta, size, mode, padding_mode, align_corners, needs_input, needs_theta
):
    """The gradients of input and of theta or the grid, by F.grid_sample's own backward."""
    n, c, *extent = input.shape
    x = _in_float(input)
    at_kinks = needs_theta and mode == "bilinear"
    grid, hole = _safe_grid(theta, x, size, padding_mode, align_corners, at_kinks)
    grad = grad_output.to(x.dtype).transpose(1, 2).flatten(2, 3)  # (N, C, K·H_out, W_out)
    if hole is not None:
        grad = grad.masked_fill(hole[:, None], 0.0)
    groups = _channel_groups(n, c, _PLANES // 4)  # grad_input and grad_output too
    if groups > 1:
        x = x.reshape(n * groups, c // groups, *extent)
        grad = grad.reshape(n * groups, c // groups, *grad.shape[2:])
        grid = _for_each_group(grid, groups)
    of_images = torch.ops.aten.grid_sampler_2d_backward
    backward = of_images if len(extent) == 2 else torch.ops.aten.grid_sampler_3d_backward
    grad_input, grad_grid = backward(
        grad,
        x,
        grid,
        ("bilinear", "nearest", "bicubic").index(mode),
        ("zeros", "border", "reflection").index(padding_mode),
        align_corners,
        (needs_input, True),
    )
    grad_input = grad_input.view(input.shape).to(input.dtype) if needs_input else None
    if needs_input and torch.compiler.is_compiling():
        # A compiled `splat` returns it; in torch 2.11 what is written in place has no gradient.
        grad_input = grad_input.clone()
    if not needs_theta:
        return grad_input, None
    if groups > 1:
        grad_grid = grad_grid.view(n, groups, *grad_grid.shape[1:]).sum(1)
    if theta.ndim == 5:
        return grad_input, grad_grid.view(theta.shape).to(theta.dtype)
    return grad_input, _theta_gradient(grad_grid, theta, size, align_corners)


def _channel_groups(n: int, c: int, most: int) -> int:
    """Into how many equal groups of at most ``most`` to cut the channels of each image, which then
    serve as the batch: the planes of one stay in the cache, and one image occupies all threads."""
    if torch.compiler.is_compiling():  # which does not trace the number of threads
        return 1
    if n == 1:
        most, least = min(most, c // torch.get_num_threads()), 1
    else:
        least = most // 2  # smaller groups would not repay the copies of the grid
    return c // next((size for size in range(most, least - 1, -1) if c % size == 0), c)


def _for_each_group(grid: torch.Tensor, groups: int) -> torch.Tensor:
    """(N, *, ndim) -> (N·groups, *, ndim), without a copy where N = 1."""
    planes = grid.movedim(-1, 1)
    planes = planes[:, None].expand(-1, groups, *planes.shape[1:])
    return planes.flatten(0, 1).movedim(1, -1)


def _row_blocks(rows: int) -> int:
    """Into how many equal blocks of rows to cut one output, to occupy the threads."""
    if torch.compiler.is_compiling():
        return 1
    return next(b for b in range(torch.get_num_threads(), 0, -1) if rows % b == 0)


def affine_grid(
    theta: torch.Tensor,
    size: tuple[int, ...],
    align_corners: bool,
    extent: Sequence[int] | None = None,
    padding_mode: str = "zeros",
) -> torch.Tensor:
    """The sampling grid (N, K·H_out, W_out, 2) of theta (N, K, 2, 3), the K one below another.

    Of (N, K, 3, 4) it is (N, K·D_out, H_out, W_out, 3). With the ``extent`` of the input it is the
    one to differentiate at (`kinks`).
    """
    # The coordinates are kept in planes of their own: the CPU sampler reads both layouts equally
    # well, and a plane is written by one broadcast addition (an addcmul is not vectorised there).
    theta = theta.transpose(1, 2).contiguous()  # (N, ndim, K, ndim + 1)
    terms = [
        theta[..., -axis, None] * _centred(n, align_corners, theta.dtype, theta.device)
        for axis, n in enumerate(size, 2)
    ]
    shift = theta[..., -1:]
    if extent is not None:
        terms, shift = kinks.settle(terms, shift, theta, extent, padding_mode, align_corners)
    planes = shift + terms[0]
    for axis, along in enumerate(terms[1:], 1):
        # (N, ndim, K, D_out, H_out, ...)
        planes = along.view(*theta.shape[:3], *[1] * axis, -1) + planes[..., None]
    return planes.flatten(2, 3).movedim(1, -1)


def _sample_area(input, theta, h_out, w_out, padding_mode, align_corners, source):
    """The mean of bilinear samples over each output pixel's area, those of ``kernels.area``."""
    x = _in_float(input)
    theta = theta.to(x.dtype)
    less = 1 if align_corners else 0
    spans = vector([input.shape[3] - less, input.shape[2] - less], theta)
    # slopes (N, K, H_out, W_out, (x, y), (j, i)), alike for all pixels of an affine map
    if source == "patch":
        centres = theta[..., :2]
        slopes = theta[..., 2:].unflatten(-1, (2, 2)).transpose(-1, -2)
        extents = vector([2, 2], theta)  # a pixel's change, where an affine map's is that of 1
    else:
        centres, slopes = theta[:, :, None, None, :, 2], theta[:, :, None, None, :, :2]
        extents = vector([max(w_out - less, 1), max(h_out - less, 1)], theta)
    sides = slopes.detach() * spans[:, None] / extents  # pixels
    count = (sides.square().sum(-2).sqrt() - 0.01).clamp(max=16).ceil()
    count = torch.where(count > 1, count, 1.0)  # (N, K, H_out, W_out, (j, i)); 1 where NaN
    most_j, most_i = count.flatten(0, 3).amax(0).int().tolist()
    total = 0.0
    for index in itertools.product(range(most_j), range(most_i)):
        part = vector(index, theta)
        used = (part < count).all(-1)  # (N, K, H_out, W_out)
        if not used.any():
            continue
        shift = torch.where(used[..., None], (2 * part + 1 - count) / count / extents, 0.0)
        place = centres + (slopes * shift[..., None, :]).sum(-1)
        if source == "affine":
            place = torch.cat((slopes, place[..., None]), -1)[:, :, 0, 0]
        of = source if source == "affine" else "grid"
        sampled = sample(x, place, (h_out, w_out), "bilinear", padding_mode, align_corners, of)
        total = total + torch.where(used[:, :, None], sampled, 0.0)
    mean = total / count.prod(-1)[:, :, None]
    return mean.to(input.dtype, memory_format=torch.preserve_format)


def _flow_grid(flow, input, align_corners):
    """The grid of displacements in pixels (N, K, H_out, W_out, 2)."""
    flow = flow.to(_in_float(input).dtype)
    h_out, w_out = flow.shape[2:4]
    x = torch.arange(w_out, dtype=flow.dtype, device=flow.device)
    y = torch.arange(h_out, dtype=flow.dtype, device=flow.device)[:, None]
    last = vector([input.shape[3] - 1, input.shape[2] - 1], flow)
    extent = last if align_corners else last + 1
    centred = torch.stack((flow[..., 0] + x, flow[..., 1] + y), -1) - last / 2
    return centred * (2 / extent)


def _theta_gradient(grad_grid, theta, size, align_corners):
    """The adjoint of affine_grid: (N, K·H_out, W_out, 2) -> (N, K, 2, 3), or of volumes.

    Axis by axis, the slowest first: a product takes the rest to its moment and its sum.
    """
    n, k, ndim = theta.shape[:3]
    moments = []
    rest = grad_grid
    with torch.autocast(rest.device.type, enabled=False):
        for extent in size:
            basis = _moment_and_sum(extent, align_corners, rest.dtype, rest.device)
            both = basis @ rest.reshape(n, k, extent, -1)  # (N, K, (moment, sum), the rest)
            moment, rest = both.unbind(2)
            moments.append(moment.unflatten(-1, (-1, ndim)).sum(2))
    return torch.stack((*reversed(moments), rest), -1).to(theta.dtype)


@kept
def _centred(size: int, align_corners: bool, dtype: torch.dtype, device) -> torch.Tensor:
    """Normalised coordinates of ``size`` pixels, from -1 to 1 or from half a pixel inside."""
    last = (size - 1) / (max(size - 1, 1) if align_corners else size)
    return torch.linspace(-last, last, size, dtype=dtype, device=device)


@kept
def _moment_and_sum(size: int, align_corners: bool, dtype: torch.dtype, device) -> torch.Tensor:
    """(2, size), whose product with the numbers of an axis is their moment and their sum."""
    coordinate = _centred(size, align_corners, dtype, device)
    return torch.stack((coordinate, torch.ones_like(coordinate)))


def _in_float(input: torch.Tensor) -> torch.Tensor:
    """The image in the dtype of coordinates, weights and sums."""
    return input if input.dtype == torch.float64 else input.float()


def _safe_grid(theta, x, size, padding_mode, align_corners, at_kinks=False):
    """(grid, hole): coordinates that F.grid_sample takes, and where they are not finite.

    ``hole`` (N, K·H_out, W_out) is None where all is known to be well. To know costs a look at
    θ's values, so on the CPU alone; a coordinate of an affine map is at most the sum of four.
    ``at_kinks``: the grid is for a derivative along the coordinates (`kinks`).
    """
    theta = theta.to(x.dtype)
    if theta.ndim == 5:
        grid = theta.flatten(1, 2)
    else:
        extent = x.shape[2:] if at_kinks else None
        grid = affine_grid(theta, size, align_corners, extent, padding_mode)
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        bound = _SAFE_COORDINATE / 4
        values = theta.detach()
        # Not the infinity norm, which takes seven times as long (docs/performance.md).
        if float(values.amax()) < bound and float(values.amin()) > -bound:  # no NaN either
            return grid, None
    return safe_coordinates(grid, padding_mode)


def safe_coordinates(grid, padding_mode):
    """(grid, hole): the grid with every coordinate near, and where it was not finite."""
    finite = grid.isfinite().all(-1)
    grid = torch.where(finite[..., None], grid, 0.0)
    if padding_mode == "reflection":  # has period 4 in normalised coordinates
        grid = torch.where(grid.abs() < _SAFE_COORDINATE, grid, grid.remainder(4.0))
    else:
        grid = grid.clamp(-_SAFE_COORDINATE, _SAFE_COORDINATE)
    return grid, ~finite
