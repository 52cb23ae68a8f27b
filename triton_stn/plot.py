"""Pictures of what a spatial transformer looks at. Needs matplotlib: the extra ``bench`` has it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from triton_stn.checks import shape_of
from triton_stn.geometry import quadrilateral
from triton_stn.transforms import Transform, resolve
from triton_stn.types import TransformName

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_MATPLOTLIB = "pictures need matplotlib; use pip install triton_stn[bench]"
COLORS = ("#e8178a", "#2ca02c", "#ff7f0e", "#1f77b4", "#9467bd", "#bcbd22", "#17becf", "#8c564b")


def show(
    input: torch.Tensor,
    theta: torch.Tensor,
    output: torch.Tensor,
    transform: TransformName | Transform = "affine",
    align_corners: bool = False,
    *,
    titles: Sequence[str] | None = None,
    limit: int = 16,
    columns: int | None = None,
    panel: float = 1.3,
) -> Figure:
    """Draw images with the outlines of what θ reads, each beside what was read.

    The outline is where the border of the output lies in the input, curved for a thin-plate spline;
    the dot marks the output's upper left corner. With K transforms of an image each has a colour,
    and its output a frame in it. An outline is cut off half an image outside.

    Args:
        input: ``(N, C, H, W)``, C = 1 or 3. Shown as it is where all lies in [0, 1], else stretched
            from its least to its greatest value.
        theta: ``theta_shape``, ``(N, *theta_shape)`` or ``(N, K, *theta_shape)``.
        output: ``(N, C, H_out, W_out)``, or ``(N, K, C, H_out, W_out)`` for K.
        transform, align_corners: what the output was sampled with.
        titles: one an image, written above it, such as what a classifier made of it.
        limit: only so many images are drawn, the first.
        columns: images beside each other; None: about as many as make the figure square.
        panel: width of a panel, in inches.

    Returns:
        a matplotlib Figure of its own, unknown to pyplot; ``figure.savefig(path)`` writes it.

    Raises:
        ImportError: matplotlib is not installed; the message says how to install it.
        ValueError: a shape that does not fit, or a limit below 1; the message says what came and
            what was expected.

    Example:
        >>> image, theta = torch.rand(1, 1, 8, 8), torch.eye(2, 3) / 2
        >>> output = triton_stn.spatial_transform(image, theta)
        >>> len(triton_stn.plot.show(image, theta, output).axes)
        2

    Source: Jaderberg et al., "Spatial Transformer Networks", 2015, arXiv 1506.02025, figure 1.
    """
    transform = resolve(transform)
    theta, output = _per_transform(input, theta, output, transform)
    if titles is not None and len(titles) != len(input):
        raise ValueError(f"titles must be {len(input)}, one an image, got {len(titles)}")
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    n, k = min(len(input), limit), theta.shape[1]
    value_range = _value_range(input)
    sources = _to_rgb(input[:n], value_range)
    samples = _to_rgb(output[:n].flatten(0, 1), value_range).unflatten(0, (n, k))
    outlines = quadrilateral(
        theta[:n].detach().double().cpu(),
        input.shape[-2:],
        output.shape[-2:],
        align_corners,
        transform=transform,
        points_per_edge=1 if transform.is_affine else 32,
    )  # (n, K, P, 2)
    limits = _limits(outlines, input.shape[-2:])

    (x0, x1), (y1, y0) = limits.values()
    tall = max((y1 - y0) / (x1 - x0), output.shape[-2] / output.shape[-1])  # of a panel one wide
    columns = columns or math.ceil(math.sqrt(n * tall / (1 + k)))
    rows = math.ceil(n / columns)
    widths = ([1.0] * (1 + k) + [0.15]) * columns  # a gap after each image's panels
    height = panel * tall + (0.15 * panel if titles is not None else 0.0)
    figure = _new_figure((panel * sum(widths), height * rows), layout="constrained")
    grid = figure.add_gridspec(rows, len(widths), width_ratios=widths)
    for i in range(n):
        row, column = divmod(i, columns)
        column *= 2 + k
        axes = figure.add_subplot(grid[row, column])
        _draw(axes, sources[i])
        axes.set(**limits, facecolor="0.9")
        if titles is not None:
            axes.set_title(titles[i], fontsize=6 * panel, pad=2)
        for j in range(k):
            color = COLORS[j % len(COLORS)]
            outline = outlines[i, j]
            closed = torch.cat((outline, outline[:1])).numpy()
            axes.plot(*closed.T, color=color, linewidth=1.5)
            axes.plot(*closed[0], "o", color=color, markersize=3)
            axes_out = figure.add_subplot(grid[row, column + 1 + j])
            _draw(axes_out, samples[i, j])
            if k > 1:
                axes_out.spines[:].set(color=color, linewidth=2)
    return figure


def grid_image(batch: torch.Tensor, columns: int | None = None, *, inches: float = 6.0) -> Figure:
    """Draw a batch of images as one, row by row.

    Args:
        batch: ``(N, C, H, W)``, C = 1 or 3; values as in ``show``.
        columns: images beside each other; None: about as many as rows.
        inches: the longer side of the figure.

    Returns:
        a matplotlib Figure of its own, unknown to pyplot.

    Raises:
        ImportError: matplotlib is not installed; the message says how to install it.
        ValueError: a shape that does not fit; the message says what came and what was expected.

    Example:
        >>> figure = triton_stn.plot.grid_image(torch.rand(6, 1, 8, 16), columns=3)
        >>> figure.get_size_inches().round(2).tolist()  # 3 x 2 images with a pixel between
        [6.0, 2.04]
    """
    _check_images("batch", batch)
    columns = columns or math.ceil(math.sqrt(len(batch)))
    rows = math.ceil(len(batch) / columns)
    images = _to_rgb(batch, _value_range(batch))
    gap = max(1, batch.shape[-1] // 16)
    images = F.pad(images, (0, 0, 0, gap, 0, gap), value=1.0)
    images = F.pad(images, (0,) * 7 + (rows * columns - len(batch),), value=1.0)
    image = images.unflatten(0, (rows, columns)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
    image = image[:-gap, :-gap]
    h, w, _ = image.shape
    figure = _new_figure((inches * w / max(h, w), inches * h / max(h, w)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(image.numpy())
    return figure


def log_figure(writer: Any, tag: str, figure: Figure, step: int | None = None) -> None:
    """Log a figure to TensorBoard.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``, or whatever has its ``add_figure``.
        tag: the figure's name there.
        figure: of ``show`` or ``grid_image``.
        step: the training step.
    """
    writer.add_figure(tag, figure, global_step=step)


def _new_figure(size: tuple[float, float], layout: str | None = None) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(NO_MATPLOTLIB) from error
    return Figure(size, layout=layout)


def _per_transform(input, theta, output, transform):
    """theta as (N, K, *theta_shape) and output as (N, K, C, H_out, W_out), all shapes checked."""
    _check_images("input", input)
    (n, c), shape = input.shape[:2], tuple(transform.theta_shape)
    leading, last = tuple(theta.shape[: -len(shape)]), tuple(theta.shape[-len(shape) :])
    if last != shape or len(leading) > 2 or leading[:1] not in ((), (n,)) or 0 in leading:
        raise ValueError(
            f"theta of {transform!r} must end in {shape}, after nothing, (N,) or (N, K) with "
            f"N = {n}, got {shape_of(theta)}"
        )
    expected = (*(leading or (n,)), c)
    if tuple(output.shape[:-2]) != expected:
        expected = ", ".join(map(str, expected))
        raise ValueError(
            f"output must have shape ({expected}, H_out, W_out), got {shape_of(output)}"
        )
    if len(leading) == 2:
        return theta, output
    return theta.expand(n, *shape)[:, None], output[:, None]


def _check_images(name: str, images: torch.Tensor) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
        raise ValueError(
            f"{name} must have shape (N, C, H, W) with C = 1 or 3 and nothing empty, "
            f"got {shape_of(images)}"
        )


def _value_range(images: torch.Tensor) -> tuple[float, float]:
    values = images.detach()[images.isfinite()].float()
    if values.numel() == 0 or (values.min() >= 0 and values.max() <= 1):
        return 0.0, 1.0
    return values.min().item(), values.max().item()


def _to_rgb(images: torch.Tensor, value_range: tuple[float, float]) -> torch.Tensor:
    """(N, C, H, W) of any dtype and device -> (N, H, W, 3) in [0, 1], on the CPU."""
    low, high = value_range
    images = (images.detach().float().cpu() - low) / max(high - low, 1e-12)
    return images.nan_to_num(0.0).clamp(0, 1).permute(0, 2, 3, 1).expand(-1, -1, -1, 3)


def _limits(outlines: torch.Tensor, size: tuple[int, int]) -> dict[str, tuple[float, float]]:
    """Room for the image and its outlines, at most half an image on each side; y points down."""
    extent = torch.tensor([size[1], size[0]], dtype=torch.float64)  # (x, y)
    points = outlines.flatten(0, -2)
    points = points[points.isfinite().all(-1)]
    points = torch.cat((points, torch.stack((0 * extent, extent)) - 0.5))
    low = points.amin(0).maximum(-0.5 - extent / 2) - 0.03 * extent
    high = points.amax(0).minimum(1.5 * extent - 0.5) + 0.03 * extent
    return {"xlim": (low[0].item(), high[0].item()), "ylim": (high[1].item(), low[1].item())}


def _draw(axes, image: torch.Tensor) -> None:
    axes.imshow(image.numpy())
    axes.set(xticks=[], yticks=[])
