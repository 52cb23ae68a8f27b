"""Antialiased minification: the mean over what an output pixel covers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import Place
from oracle import assert_right, run

from triton_stn import Projective, spatial_transform

PADDINGS = ["zeros", "border", "reflection"]
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.float16]


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turn(degrees, scale_x, scale_y, x=0.037, y=-0.021):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [[c * scale_x, -s * scale_y, x], [s * scale_x, c * scale_y, y]]


# Two θ for each of two images: pixels that cover 2.2 x 1, 3.3 x 3.3, 1.6 x 0.5 and 0.7 x 0.7.
THETA = torch.tensor(
    [
        [turn(0, 0.9, 0.44), turn(30, 1.4, 1.5)],
        [turn(60, 0.65, 0.22), turn(10, 0.3, 0.3)],
    ],
    dtype=torch.float64,
)
SIZE, OUTPUT_SIZE = (11, 12), (5, 5)


def brute_force(input, theta, size, padding_mode, align_corners):
    """Supersampled by PyTorch's own calls, θ by θ, an output pixel's parts as a finer output."""
    h, w = input.shape[2:]
    less = 1 if align_corners else 0
    ends = torch.tensor([w - less, h - less], dtype=torch.float64)
    cells = torch.tensor([size[1] - less, size[0] - less], dtype=torch.float64)
    results = []
    for image, thetas in zip(input, theta, strict=True):
        for one in thetas:
            one = one.to(input.dtype)
            sides = (one.detach().double()[:, :2] * ends[:, None] / cells).norm(dim=0)
            across, down = (max(math.ceil(side - 0.01), 1) for side in sides.tolist())
            fine = (size[0] * down, size[1] * across)
            # With align_corners the finer output reaches beyond the corners.
            reach = [(fine[1] - less) / across, (fine[0] - less) / down]
            stretch = torch.cat((cells.new_tensor(reach) / cells, cells.new_ones(1))).to(one.dtype)
            shape = (1, input.shape[1], *fine)
            grid = F.affine_grid((one * stretch)[None], shape, align_corners=align_corners)
            options = dict(padding_mode=padding_mode, align_corners=align_corners)
            results.append(
                F.avg_pool2d(F.grid_sample(image[None], grid, **options), (down, across))
            )
    return torch.cat(results).unflatten(0, theta.shape[:2])


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("channels", [2, 8])
def test_value_and_gradients_are_right(place: Place, channels, padding_mode, align_corners):
    dtype = DTYPES[(PADDINGS.index(padding_mode) + 2 * align_corners + channels // 8) % 4]
    options = dict(padding_mode=padding_mode, align_corners=align_corners)
    input = noise(2, channels, *SIZE).to(dtype)
    if channels == 8:
        input = input.contiguous(memory_format=torch.channels_last)
    theta = THETA.to(torch.promote_types(dtype, torch.float32))
    grad = noise(2, 2, channels, *OUTPUT_SIZE, seed=1).to(dtype)

    def sample(x, t, size, **options):
        return place.sample(x, t, size, antialias=True, **options)

    exact = run(brute_force, input.double(), theta.double(), OUTPUT_SIZE, grad, **options)
    rival = run(brute_force, input.float(), theta.float(), OUTPUT_SIZE, grad, **options)
    tensors = (t.to(place.device) for t in (input, theta))
    got = run(sample, *tensors, OUTPUT_SIZE, grad.to(place.device), **options)
    assert_right(got, exact, rival)


def test_a_checkerboard_four_times_smaller_is_grey(place: Place):
    rows, columns = torch.arange(16)[:, None], torch.arange(16)
    board = ((rows + columns) % 2).float()[None, None].to(place.device)
    theta = torch.eye(2, 3, device=place.device)
    grey = place.sample(board, theta, 4, antialias=True)
    torch.testing.assert_close(grey, torch.full_like(grey, 0.5))
    assert (place.sample(board, theta, 4, mode="nearest") != 0.5).all()


def test_a_map_that_does_not_minify_is_sampled_as_ever(place: Place):
    input = noise(1, 3, 6, 6).float().to(place.device)
    theta = torch.tensor(turn(25, 1.0, 1.0), device=place.device)
    plain = place.sample(input, theta)
    torch.testing.assert_close(place.sample(input, theta, antialias=True), plain)


def test_gradients_match_finite_differences(device):
    input = noise(1, 1, 4, 4).to(device).requires_grad_()
    theta = THETA[:1, 1:].to(device).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, t: spatial_transform(x, t, 2, antialias=True),
        (input, theta),
        nondet_tol=1e-12,
    )


@pytest.mark.parametrize("value", [math.nan, 1e20])
def test_a_bad_number_stays_in_its_sample(place: Place, value):
    theta = THETA[:, 0].float().to(place.device)
    theta[1, 0, 0] = value
    input = noise(2, 2, 6, 6).float().to(place.device).requires_grad_()
    y = place.sample(input, theta, 3, antialias=True)
    assert torch.equal(y[:1], place.sample(input[:1], theta[:1], 3, antialias=True))
    assert y[1].isnan().any() == math.isnan(value)
    (grad,) = torch.autograd.grad(y, input, torch.ones_like(y))
    assert grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(mode="nearest"), "antialias needs mode='bilinear', got 'nearest'"),
        (dict(mode="bicubic"), "antialias needs mode='bilinear', got 'bicubic'"),
        (dict(transform=Projective()), r"antialias needs transform 'affine'.*got Projective\(\)"),
    ],
)
def test_what_can_not_be_antialiased_is_named(options, message):
    transform = options.get("transform")
    theta = torch.eye(3) if transform else torch.eye(2, 3)
    with pytest.raises(ValueError, match=message):
        spatial_transform(torch.zeros(1, 1, 4, 4), theta, antialias=True, **options)


def test_antialias_is_a_bool():
    with pytest.raises(TypeError, match="antialias must be a bool, got int"):
        spatial_transform(torch.zeros(1, 1, 4, 4), torch.eye(2, 3), antialias=1)
