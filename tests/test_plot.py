"""The pictures: what is drawn where, in which colour, and what is refused."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
import torch

import triton_stn
from triton_stn.transforms import ThinPlateSpline

pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from triton_stn import plot


@pytest.fixture(autouse=True)
def pytorch_path():
    with triton_stn.use_backend("torch"):
        yield


def batch(n=2, c=1, h=6, w=8) -> torch.Tensor:
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(0))


def render(figure) -> np.ndarray:
    """The figure's pixels, (height, width, 4)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def panels(figure):
    """(those with an outline, those without), in the order drawn."""
    with_outline = [axes for axes in figure.axes if axes.lines]
    return with_outline, [axes for axes in figure.axes if not axes.lines]


def outline_of(axes, j: int = 0) -> np.ndarray:
    """The j-th outline (P, 2); each is a line and its dot."""
    return axes.lines[2 * j].get_xydata()


def test_show_draws_each_input_with_its_outline_beside_its_output():
    images = batch()
    theta = torch.tensor([[[0.5, 0.0, 0.25], [0.0, 0.5, 0.0]], [[1.0, 0, 0], [0, 1, 0]]])
    output = triton_stn.spatial_transform(images, theta, (3, 4))
    figure = plot.show(images, theta, output)
    inputs, outputs = panels(figure)
    assert len(inputs) == len(outputs) == 2
    corners = {(2.5, 1.0), (6.5, 1.0), (6.5, 4.0), (2.5, 4.0)}  # x - 0.5 in [2.5, 6.5] by hand
    assert corners <= {tuple(point) for point in outline_of(inputs[0]).round(6).tolist()}
    whole = outline_of(inputs[1])
    assert whole.min(0).tolist() == [-0.5, -0.5] and whole.max(0).tolist() == [7.5, 5.5]
    for axes, image in zip((*inputs, *outputs), (*images, *output), strict=True):
        (shown,) = axes.images
        assert shown.get_array().shape == (*image.shape[1:], 3)
        np.testing.assert_allclose(shown.get_array()[..., 0], image[0].numpy())
    assert all(axes.get_xlim() == inputs[0].get_xlim() for axes in inputs)
    assert inputs[0].get_ylim()[0] > inputs[0].get_ylim()[1]  # y points down
    assert render(figure).std() > 0


def test_the_outline_of_a_thin_plate_spline_is_curved_and_closed():
    spline = ThinPlateSpline(3, 3)
    theta = spline.identity()
    theta[1] += torch.tensor([0.0, 0.4])  # the middle of the upper edge sinks
    images = batch(1)
    figure = plot.show(
        images,
        theta,
        triton_stn.spatial_transform(images, theta, transform=spline),
        transform=spline,
    )
    outline = outline_of(panels(figure)[0][0])
    assert len(outline) > 20
    assert outline[0].tolist() == outline[-1].tolist()
    upper = outline[np.abs(outline[:, 0] - 3.5).argsort()][:2, 1].min()  # above the middle, x = 3.5
    assert upper > outline[0, 1] + 0.5


def test_parallel_transforms_have_a_colour_each_and_frames_in_it():
    images = batch(2, 3)
    theta = torch.tensor([[0.5, -0.5, 0.0], [0.5, 0.5, 0.0]]).expand(2, 2, 3)
    output = triton_stn.spatial_transform(images, theta, 4, transform="attention")
    inputs, outputs = panels(plot.show(images, theta, output, "attention"))
    assert len(inputs) == 2 and len(outputs) == 4
    colors = [line.get_color() for line in inputs[0].lines[::2]]
    assert len(set(colors)) == 2
    frames = [to_hex(axes.spines["left"].get_edgecolor()) for axes in outputs]
    assert frames == colors * 2
    assert outline_of(inputs[1], 0)[:, 0].max() == outline_of(inputs[1], 1)[:, 0].min() == 3.5


def test_one_theta_serves_every_image_and_the_first_are_drawn():
    images = batch(5)
    theta = torch.eye(2, 3)
    figure = plot.show(images, theta, images, limit=3, columns=3)
    assert [len(p) for p in panels(figure)] == [3, 3]
    left = [axes.get_subplotspec().rowspan.start for axes in figure.axes]
    assert left == [0] * 6  # three columns: one row


def test_each_image_has_its_title():
    x, theta = batch(3), torch.eye(2, 3).expand(3, 2, 3)
    sources, _ = panels(plot.show(x, theta, x, titles=["a", "b", "c"], limit=2))
    assert [axes.get_title() for axes in sources] == ["a", "b"]
    with pytest.raises(ValueError, match="titles must be 3, one an image, got 2"):
        plot.show(x, theta, x, titles=["a", "b"])
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        plot.show(x, theta, x, limit=0)


def test_what_lies_far_outside_is_cut_off():
    images = batch(1)
    figure = plot.show(images, torch.tensor([50.0, 0, 0]), images, "attention")
    (axes,) = panels(figure)[0]
    assert axes.get_xlim() == pytest.approx((-4.5 - 0.24, 11.5 + 0.24))
    assert axes.get_ylim() == pytest.approx((8.5 + 0.18, -3.5 - 0.18))


def test_a_homography_seen_from_behind_is_drawn():
    theta = torch.tensor([[1.0, 0, 0], [0, 1, 0], [2, 0, 1]])  # the left half lies behind
    images = batch(1)
    output = triton_stn.spatial_transform(images, theta, transform="projective")
    assert np.isfinite(render(plot.show(images, theta, output, "projective"))).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.uint8])
def test_values_outside_0_and_1_are_stretched(dtype):
    images = torch.tensor([[[[50.0, 100.0], [150.0, 250.0]]]]).to(dtype)
    figure = plot.show(images, torch.eye(2, 3), images)
    for axes in figure.axes:
        shown = axes.images[0].get_array()[..., 2]
        np.testing.assert_allclose(shown, [[0, 0.25], [0.5, 1]], atol=1e-6)


def test_show_takes_tensors_that_need_gradients():
    images, theta = batch().requires_grad_(), torch.eye(2, 3).requires_grad_()
    assert plot.show(images, theta, triton_stn.spatial_transform(images, theta)).axes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((batch(c=2), torch.eye(2, 3), batch(c=2)), r"input .* C = 1 or 3 .* got \(2, 2, 6, 8\)"),
        ((batch(0), torch.eye(2, 3), batch(0)), r"nothing empty, got \(0, 1, 6, 8\)"),
        ((batch()[0], torch.eye(2, 3), batch()), r"input must .* got \(1, 6, 8\)"),
        ((batch(), torch.zeros(3), batch()), r"theta of Affine.* \(2, 3\).* N = 2, got \(3\)"),
        ((batch(), torch.zeros(3, 2, 3), batch()), r"N = 2, got \(3, 2, 3\)"),
        ((batch(), torch.zeros(2, 1, 1, 2, 3), batch()), r"got \(2, 1, 1, 2, 3\)"),
        ((batch(), torch.eye(2, 3), batch(3)), r"\(2, 1, H_out, W_out\), got \(3, 1, 6, 8\)"),
        ((batch(), torch.zeros(2, 4, 2, 3), batch()), r"\(2, 4, 1, H_out, W_out\), got \(2, 1, "),
    ],
)
def test_show_names_a_shape_that_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot.show(*arguments)


@pytest.mark.parametrize("c", [1, 3])
def test_grid_image_lays_a_batch_out_row_by_row(c):
    images = batch(5, c)
    (axes,) = plot.grid_image(images, columns=2).axes
    shown = axes.images[0].get_array()
    assert shown.shape == (3 * 6 + 2, 2 * 8 + 1, 3)  # a pixel between neighbours
    for i, image in enumerate(images):
        top, left = 7 * (i // 2), 9 * (i % 2)
        piece = shown[top : top + 6, left : left + 8]
        np.testing.assert_allclose(piece, image.permute(1, 2, 0).expand(-1, -1, 3).numpy())
    assert (shown[6] == 1).all() and (shown[14:, 9:] == 1).all()  # the gap, and the empty place


def test_grid_image_keeps_the_proportions():
    figure = plot.grid_image(batch(4, 1, 10, 30), inches=6)
    width, height = figure.get_size_inches()
    assert width == 6 and height == pytest.approx(6 * 21 / 61)
    assert render(figure).shape[1] == 600


def test_grid_image_names_a_shape_that_does_not_fit():
    with pytest.raises(ValueError, match=r"batch must have shape .* got \(2, 2, 3\)"):
        plot.grid_image(torch.zeros(2, 2, 3))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot.show(batch(), torch.eye(2, 3), batch()),
        lambda: plot.grid_image(batch()),
        lambda: importlib.import_module("bench.output.plots"),
    ],
    ids=["show", "grid_image", "bench"],
)
def test_without_matplotlib_the_error_says_what_to_install(monkeypatch, draw):
    monkeypatch.delitem(sys.modules, "bench.output.plots", raising=False)
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"matplotlib; use pip install triton_stn\[bench\]"):
        draw()


def test_the_figures_are_unknown_to_pyplot():
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    plot.show(batch(), torch.eye(2, 3), batch())
    plot.grid_image(batch())
    assert pyplot.get_fignums() == before


def test_log_figure_hands_the_figure_to_the_writer():
    class Writer:
        def add_figure(self, tag, figure, global_step=None):
            self.logged = tag, render(figure).shape[2], global_step

    writer = Writer()
    plot.log_figure(writer, "transformer", plot.grid_image(batch()), 7)
    assert writer.logged == ("transformer", 4, 7)


def test_log_figure_writes_what_tensorboard_reads(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        plot.log_figure(writer, "transformer", plot.grid_image(batch()), 7)
    events = EventAccumulator(str(tmp_path)).Reload().Images("transformer")
    assert [event.step for event in events] == [7]
