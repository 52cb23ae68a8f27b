"""A θ that is not finite, or huge: no fault, NaN where it must be, and no other sample notices."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import Place
from oracle import Results, run, same, source

PADDINGS = ["zeros", "border", "reflection"]
VALUES = [math.nan, math.inf, -math.inf, 1e20, 3e38, 2.0**31]
SLOTS = [(row, column) for row in range(2) for column in range(3)]
SIZE = (8, 8)  # a power of two: the good samples' coordinates and sums are exact in float32
FLOAT32_MAX = torch.finfo(torch.float32).max
# Dyadic numbers, so that the order in which atomics add changes no bit.
GOOD = [[[0.5, 0.0, 0.25], [0.0, -0.75, 0.125]], [[1.0, 0.25, 0.0], [-0.5, 0.75, -0.25]]]


def batch(n: int, channels: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and output gradients, whole numbers."""
    generator = torch.Generator().manual_seed(5)
    shape = (2, n, channels, *SIZE)
    return torch.randint(-8, 9, shape, generator=generator).float().unbind()


def transform(place: Place, images, theta, grads, **options) -> Results:
    tensors = (t.to(place.device) for t in (images, theta))
    return on_cpu(run(place.sample, *tensors, None, grads.to(place.device), **options))


def on_cpu(results: Results) -> Results:
    return Results(results.y.cpu(), results.grad_input.cpu(), results.grad_theta.cpu())


def read_clamped(image, pixels):
    """Bilinear values (C, H_out, W_out) at the nearest coordinates inside the image."""
    h, w = image.shape[-2:]
    x, y = pixels[..., 0].clamp(0, w - 1), pixels[..., 1].clamp(0, h - 1)
    left, top = x.floor().clamp(max=w - 2).long(), y.floor().clamp(max=h - 2).long()
    x, y = x - left, y - top
    upper = image[:, top, left] * (1 - x) + image[:, top, left + 1] * x
    lower = image[:, top + 1, left] * (1 - x) + image[:, top + 1, left + 1] * x
    return upper * (1 - y) + lower * y


def assert_output(y, image, theta, padding_mode, align_corners):
    """y (C, H, W): NaN where a coordinate is not finite, else zeros, edge or reflected values.

    Where θ is finite but a coordinate in pixels leaves float32 either is right: it is finite in
    normalised coordinates.
    """
    pixels = source(theta, *SIZE, SIZE, align_corners)  # float64
    finite = pixels.isfinite().all(-1)
    certain = (pixels.abs() <= FLOAT32_MAX / 4).all(-1) | ~finite
    assert same(y.isnan()[:, certain], (~finite)[certain].expand(len(y), -1))
    known = finite & ~y[0].isnan()
    last = torch.tensor([SIZE[1] - 1, SIZE[0] - 1])
    if padding_mode == "zeros":
        out_of_view = known & ((pixels <= -1) | (pixels >= last + 1)).any(-1)
        assert (y[:, out_of_view] == 0).all()
    elif padding_mode == "border":
        torch.testing.assert_close(
            y[:, known], read_clamped(image.double(), pixels.nan_to_num())[:, known].float()
        )
    else:
        lowest, highest = image.amin((1, 2))[:, None], image.amax((1, 2))[:, None]
        assert ((y[:, known] >= lowest) & (y[:, known] <= highest)).all()


@pytest.mark.thinned(rest="nightly")
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("slot", SLOTS, ids=lambda slot: "theta{}{}".format(*slot))
def test_one_bad_number_stays_in_its_sample(place: Place, slot, value, padding_mode):
    align_corners = slot[1] == 1
    options = dict(padding_mode=padding_mode, align_corners=align_corners)
    images, grads = batch(3)
    theta = torch.tensor([GOOD[0], GOOD[1], GOOD[1]])
    theta[1][slot] = value
    got = transform(place, images, theta, grads, **options)
    good = [0, 2]
    alone = transform(place, images[good], theta[good], grads[good], **options)
    assert torch.equal(got.y[good], alone.y)
    assert torch.equal(got.grad_input[good], alone.grad_input)
    assert torch.equal(got.grad_theta[good], alone.grad_theta)
    assert_output(got.y[1], images[1], theta[1], padding_mode, align_corners)
    assert got.grad_input.isfinite().all()
    if not math.isfinite(value):  # no output is
        assert (got.grad_input[1] == 0).all() and (got.grad_theta[1] == 0).all()


@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("slot", [(0, 0), (1, 2)], ids=["theta00", "theta12"])
def test_nearest_gives_nan_at_a_nonfinite_coordinate_and_nowhere_else(
    place: Place, slot, padding_mode
):
    images, grads = batch(2 + len(VALUES), channels=1)
    theta = torch.tensor([GOOD[0]] + [GOOD[1]] * (1 + len(VALUES)))
    for i, value in enumerate(VALUES):
        theta[1 + i][slot] = value
    got = transform(place, images, theta, grads, mode="nearest", padding_mode=padding_mode)
    good = [0, -1]
    alone = transform(
        place, images[good], theta[good], grads[good], mode="nearest", padding_mode=padding_mode
    )
    assert torch.equal(got.y[good], alone.y)
    assert torch.equal(got.grad_input[good], alone.grad_input)
    for y, image, value in zip(got.y[1:-1], images[1:-1], VALUES, strict=True):
        if not math.isfinite(value):
            assert y.isnan().all()
        elif padding_mode == "zeros":
            assert ((y == 0) | (y.isnan() & (value == 3e38))).all()
        else:
            assert (torch.isin(y, image) | (y.isnan() & (value == 3e38))).all()
    assert got.grad_input.isfinite().all()
    assert (got.grad_theta == 0).all()


def test_one_bad_transform_of_an_image_leaves_the_others_of_that_image_alone(place: Place):
    images, grads = batch(3)
    theta = torch.tensor([[GOOD[0], GOOD[1], GOOD[0]]])
    theta[0, 1, 0, 1] = math.nan
    got = transform(place, images[:1], theta, grads[None])
    good = [0, 2]
    alone = transform(place, images[:1], theta[:, good], grads[None, good])
    assert got.y[0, 1].isnan().all()
    assert torch.equal(got.y[:, good], alone.y)
    assert torch.equal(got.grad_input, alone.grad_input)
    assert torch.equal(got.grad_theta[:, good], alone.grad_theta)


@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_channels_last_half_precision_with_every_bad_slot_at_once(place: Place, padding_mode):
    images, grads = batch(2, channels=8)
    images = images.half().contiguous(memory_format=torch.channels_last)
    theta = torch.tensor([GOOD[0], [[math.nan, math.inf, 1e20], [3e38, -math.inf, 2.0**31]]])
    got = transform(place, images, theta, grads, padding_mode=padding_mode)
    alone = transform(place, images[:1], theta[:1], grads[:1], padding_mode=padding_mode)
    assert torch.equal(got.y[:1], alone.y)
    assert torch.equal(got.grad_input[:1], alone.grad_input)
    assert torch.equal(got.grad_theta[:1], alone.grad_theta)
    assert got.y[1].isnan().all()
    assert (got.grad_input[1] == 0).all()


@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("value", [1e200, math.nan])
def test_float64_takes_what_float32_would_not(place: Place, value, padding_mode):
    images, grads = (t.double() for t in batch(2))
    theta = torch.tensor(GOOD, dtype=torch.float64)
    theta[0, 0, 2] = value
    got = transform(place, images, theta, grads, padding_mode=padding_mode)
    assert got.y[0].isnan().all() == math.isnan(value)
    assert got.y[0].isnan().any() == math.isnan(value)
    assert not got.y[1].isnan().any()
    assert got.grad_input.isfinite().all()


@pytest.mark.parametrize("slot", [(0, 0), (1, 2), (2, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("case", ["deterministic", "antialias", "antialias affine"])
def test_a_nan_of_a_homography_or_an_antialiased_map_stays_in_its_sample(place: Place, case, slot):
    images, grads = batch(3)
    rows = 2 if case == "antialias affine" else 3
    if slot[0] >= rows:
        pytest.skip("an affine θ has two rows")
    good_theta = torch.tensor([GOOD[0], GOOD[1], GOOD[1]])
    theta = torch.cat((good_theta, torch.tensor([0.0, 0, 1]).expand(3, 1, 3)), 1)[:, :rows].clone()
    theta[1][slot] = math.nan
    options = dict(
        transform="projective" if rows == 3 else "affine", antialias=case.startswith("antialias")
    )
    good = [0, 2]
    torch.use_deterministic_algorithms(case == "deterministic")
    try:
        got = transform(place, images, theta, grads, **options)
        alone = transform(place, images[good], theta[good], grads[good], **options)
    finally:
        torch.use_deterministic_algorithms(False)
    # A last row is in every coordinate, any other in x or in y alone; a pixel needs both.
    assert got.y[1].isnan().all()
    assert (got.grad_input[1] == 0).all()
    assert torch.equal(got.y[good], alone.y)
    torch.testing.assert_close(got.grad_input[good], alone.grad_input)
    torch.testing.assert_close(got.grad_theta[good], alone.grad_theta)
    assert not got.grad_theta[good].isnan().any() and not got.grad_input.isnan().any()
