"""Splatting is the exact transpose of sampling; a fill value is what lies outside."""

from __future__ import annotations

import os

import pytest
import torch
from conftest import Place
from oracle import THETAS, nudge, slopes_agree

import triton_stn
from triton_stn import (
    Projective,
    ThinPlateSpline,
    grid_sample,
    grid_splat,
    spatial_transform,
    splat,
)

PADDINGS = ["zeros", "border", "reflection"]
SIZE, OUTPUT_SIZE = (6, 5), (4, 7)
TRANSFORMS = {
    "affine": triton_stn.Affine(),
    "projective": Projective(),
    "tps": ThinPlateSpline(2, 3),
}


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def theta_of(transform, *leading):
    shape = (*leading, *transform.theta_shape)
    return transform.identity(leading) + 0.13 * noise(*shape, seed=3).clamp(-1.5, 1.5)


@pytest.mark.thinned
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_splat_is_the_transpose_of_sampling(device, name, mode, padding_mode):
    transform = TRANSFORMS[name]
    theta = theta_of(transform, 2, 3).to(device)
    x, g = noise(2, 3, *SIZE).to(device), noise(2, 3, 3, *OUTPUT_SIZE, seed=1).to(device)
    options = dict(transform=transform, mode=mode, padding_mode=padding_mode)
    sampled = spatial_transform(x, theta, OUTPUT_SIZE, **options)
    spread = splat(g, theta, SIZE, **options)
    assert spread.shape == x.shape and spread.dtype == g.dtype
    torch.testing.assert_close((g * sampled).sum(), (spread * x).sum())


def test_grid_splat_is_the_transpose_of_grid_sample(device):
    grid = (0.7 * noise(2, *OUTPUT_SIZE, 2)).to(device)
    x, g = noise(2, 3, *SIZE).to(device), noise(2, 3, *OUTPUT_SIZE, seed=1).to(device)
    spread = grid_splat(g, grid, SIZE)
    torch.testing.assert_close((g * grid_sample(x, grid)).sum(), (spread * x).sum())


def test_a_splat_of_no_maps_is_zero(device):
    planes = torch.ones(2, 0, 3, *OUTPUT_SIZE, device=device)
    zero = torch.zeros(2, 3, *SIZE, device=device)
    assert torch.equal(splat(planes, torch.ones(2, 0, 2, 3, device=device), SIZE), zero)
    grid = torch.ones(2, 0, *OUTPUT_SIZE, 2, device=device)
    assert torch.equal(grid_splat(planes, grid, SIZE), zero)


def test_one_pixel_by_hand(device):
    """A pixel of 8 that came from (1.25, 0.5): shares of 3/4 and 1/4, halves up and down."""
    grid = torch.tensor([[[[1.25, 0.5]]]], dtype=torch.float64, device=device)
    grid = grid / torch.tensor([1.5, 1.0], device=device) - 1  # align_corners: 4 x 3 pixels
    got = grid_splat(torch.full((1, 1, 1, 1), 8.0, device=device), grid, (3, 4), align_corners=True)
    expected = torch.zeros(3, 4, device=device)
    expected[:2, 1], expected[:2, 2] = 3, 1
    torch.testing.assert_close(got[0, 0], expected)


@pytest.mark.thinned
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("normalize", [False, True])
def test_gradients_match_finite_differences(place, device, normalize, padding_mode):
    theta = nudge(torch.tensor(THETAS["random"], dtype=torch.float64), 4, 3).to(device)
    g = noise(1, 1, 2, 3).to(device).requires_grad_()
    theta = theta[None].requires_grad_()

    def f(g, theta):
        return splat(g, theta, (4, 3), padding_mode=padding_mode, normalize=normalize)

    assert slopes_agree(place, f, g, theta)


def test_a_normalized_splat_of_a_constant_is_that_constant(device):
    theta = torch.tensor(THETAS["random"], device=device)
    got = splat(torch.full((1, 2, 5, 5), 3.0, device=device), theta, 6, normalize=True)
    assert ((got - 3).abs() < 1e-5).any() and (((got - 3).abs() < 1e-5) | (got == 0)).all()


@pytest.mark.parametrize("k", [1, 3])
def test_an_affine_splat_repeats_bit_for_bit(device, k):
    theta = theta_of(TRANSFORMS["affine"], 2, k).float().to(device)
    g = noise(2, k, 3, 9, 8, dtype=torch.float32).to(device)
    first = splat(g, theta, SIZE)
    assert all(torch.equal(splat(g, theta, SIZE), first) for _ in range(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("fill", [2.5, "a channel"])
def test_a_fill_value_is_what_lies_outside(device, fill, dtype):
    """The same as sampling an image that is framed with it, as far as the frame reaches."""
    x = noise(2, 3, *SIZE).to(dtype)
    theta = nudge(torch.tensor([THETAS["rotation_45"], THETAS["zoom_out_2"]]), *SIZE)
    value = torch.tensor([1.0, -2.0, 3.0]) if fill == "a channel" else torch.tensor(fill)
    frame = value.view(-1, 1, 1).to(dtype).expand(3, 1, 1)
    pad = 8
    framed = frame.expand(2, 3, SIZE[0] + 2 * pad, SIZE[1] + 2 * pad).clone()
    framed[..., pad:-pad, pad:-pad] = x
    scale = torch.tensor([SIZE[1] / framed.shape[3], SIZE[0] / framed.shape[2]])[:, None]
    fill_value = value.to(device) if fill == "a channel" else fill
    got = spatial_transform(x.to(device), theta.to(device), 7, fill_value=fill_value).cpu()
    exact = spatial_transform(framed.double(), (theta * scale).double(), 7)
    one_rounding = max(torch.finfo(dtype).eps / 2, 1e-5)
    if dtype == torch.bfloat16 and os.environ.get("TRITON_INTERPRET") == "1":
        one_rounding *= 2  # the interpreter's store truncates
    torch.testing.assert_close(got.double(), exact, rtol=1.01 * one_rounding, atol=1e-5)


def test_a_fill_value_has_a_theta_gradient(place, device):
    x = noise(1, 2, 4, 5).to(device).requires_grad_()
    theta = nudge(torch.tensor(THETAS["zoom_out_2"], dtype=torch.float64), 4, 5).to(device)
    theta = theta[None].requires_grad_()
    assert slopes_agree(
        place, lambda x, t: spatial_transform(x, t, (3, 4), fill_value=2.0), x, theta
    )


def test_a_fill_that_is_not_finite_stays_outside(device):
    x = noise(1, 1, 5, 5, dtype=torch.float32).to(device)
    theta = torch.tensor([[1.0, 0, 0.4], [0, 1.0, 0]], device=device)  # one pixel to the right
    got = spatial_transform(x, theta, fill_value=float("nan"))
    assert got[..., -1].isnan().all() and torch.equal(got[..., :-1], x[..., 1:])


WRONG = {
    "fill and border": (
        lambda x, t: spatial_transform(x, t, padding_mode="border", fill_value=1.0),
        ValueError,
        "fill_value needs padding_mode='zeros', got 'border'",
    ),
    "fill of 2 channels": (
        lambda x, t: spatial_transform(x, t, fill_value=torch.zeros(2)),
        ValueError,
        r"fill_value must be .* \(C,\) = \(3,\), got \(2\)",
    ),
    "fill is text": (
        lambda x, t: spatial_transform(x, t, fill_value="white"),
        TypeError,
        "fill_value must be a number, numbers or a tensor, got str",
    ),
    "a map of images, volumes": (
        lambda x, t: splat(x[:, None], t),
        ValueError,
        r"shape \(3, 4\), .* for an input of shape \(2, 1, 3, 6, 5\), got \(2, 2, 3\)",
    ),
    "splat of 6-D": (
        lambda x, t: splat(x[:, None, None], t),
        ValueError,
        r"shape \(N, C, h, w\) or \(N, C, d, h, w\), got \(2, 1, 1, 3, 6, 5\)",
    ),
    "splat of another K": (
        lambda x, t: splat(x[:, None], t[:, None].expand(2, 4, 2, 3)),
        ValueError,
        r"input must have shape \(N, 4, C, h, w\)",
    ),
    "a grid of another size": (
        lambda x, t: grid_splat(x, torch.zeros(2, 3, 3, 2)),
        ValueError,
        r"grid must have the size of input, \(6, 5\), got \(3, 3\)",
    ),
    "normalize is an int": (
        lambda x, t: splat(x, t, normalize=1),
        TypeError,
        "normalize must be a bool",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_argument_is_named(wrong):
    call, error, message = WRONG[wrong]
    with pytest.raises(error, match=message):
        call(noise(2, 3, *SIZE), triton_stn.Affine().identity(2))


def test_half_precision_splats_sum_in_float32(device, place: Place):
    theta = torch.zeros(1, 2, 3, device=device)  # everything falls between the four middle pixels
    g = torch.full((1, 1, 64, 64), 0.1, dtype=torch.float16, device=device)
    got = splat(g, theta, 4)
    torch.testing.assert_close(got.sum().item(), g.double().sum().item(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_a_fill_value_is_a_frame_in_every_mode(device, mode):
    x = noise(1, 2, 6, 6, dtype=torch.float64)
    theta = torch.tensor([[[1.03, 0.1, 0.21], [-0.07, 1.1, 0.13]]], dtype=torch.float64)
    framed = torch.nn.functional.pad(x, (6,) * 4, value=5.0)
    exact = spatial_transform(framed, theta / 3, 6, mode=mode)
    got = spatial_transform(x.to(device), theta.to(device), mode=mode, fill_value=5.0)
    torch.testing.assert_close(got.cpu(), exact)


@pytest.mark.parametrize("fill", [float("nan"), float("inf")])
def test_a_fill_that_is_not_finite_leaves_theta_its_gradient_in_view(device, fill):
    x = noise(1, 2, 6, 6, dtype=torch.float32).to(device)
    theta = torch.tensor([[[0.5, 0.0, 0.013], [0.0, 0.5, 0.017]]], device=device)
    grads = []
    for value in (fill, 1.0):
        leaf = theta.clone().requires_grad_()
        spatial_transform(x, leaf, fill_value=value).sum().backward()
        grads.append(leaf.grad)
    assert grads[0].isfinite().all() and torch.equal(*grads)


def test_a_grid_of_no_coordinates_is_named():
    with pytest.raises(ValueError, match=r"grid must have shape .*got \(2, 2, 4, 5\)"):
        triton_stn.grid_splat(torch.zeros(2, 3, 4, 5), torch.zeros(2, 2, 4, 5))
