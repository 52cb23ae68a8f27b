"""Both gradients against finite differences, in float64."""

from __future__ import annotations

import pytest
import torch
from conftest import Place
from oracle import slopes_agree

from triton_stn import (
    ThinPlateSpline,
    flow_warp,
    grid_sample,
    grid_splat,
    spatial_transform,
    splat,
    transforms,
)

# In normalised coordinates: none puts an output of these canvases within 1e-3 pixel of the lattice.
THETAS = [
    [[0.71, -0.32, 0.13], [0.27, 0.83, -0.11]],
    [[-0.93, 0.41, 0.17], [0.52, 1.21, 0.07]],
]
PADDINGS = ["zeros", "border", "reflection"]


def check(place: Place, input, theta, output_size, **options) -> bool:
    input = input.to(place.device).requires_grad_()
    theta = theta.to(place.device).requires_grad_()
    return slopes_agree(
        place, lambda x, t: place.sample(x, t, output_size, **options), input, theta
    )


def noise(*shape) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_gradients_match_finite_differences(place: Place, padding_mode, align_corners):
    theta = torch.tensor(THETAS[:1], dtype=torch.float64)
    options = dict(padding_mode=padding_mode, align_corners=align_corners)
    assert check(place, noise(1, 2, 4, 5), theta, (3, 4), **options)


@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_two_transforms_of_one_image(place: Place, padding_mode):
    theta = torch.tensor([THETAS], dtype=torch.float64)
    assert check(place, noise(1, 1, 3, 4), theta, (3, 4), padding_mode=padding_mode)


@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_channels_last(place: Place, padding_mode):
    input = noise(1, 8, 2, 3).contiguous(memory_format=torch.channels_last)
    theta = torch.tensor(THETAS[:1], dtype=torch.float64)
    assert check(place, input, theta, (2, 2), padding_mode=padding_mode)


def test_one_theta_for_the_whole_batch(place: Place):
    theta = torch.tensor(THETAS[1], dtype=torch.float64)
    assert check(place, noise(2, 1, 3, 3), theta, (3, 2))


@pytest.mark.parametrize("zoom", [1 / 4, 1 / 20], ids=["walk", "wide"])
def test_a_theta_that_magnifies(kernels: Place, zoom):
    theta = torch.tensor(THETAS[:1], dtype=torch.float64) * zoom
    assert check(kernels, noise(1, 1, 3, 3), theta, (2, 2))


SIZE, OUTPUT_SIZE = (3, 4), (2, 2)
SPLINE = ThinPlateSpline(2, 2)
SOURCES = ["affine", "attention", "similarity", "projective", SPLINE, "grid", "flow"]


def warp(source, **options):
    """(f of (input, θ), θ): θ is a transform's, a grid or a flow, off the lattice."""
    if source == "grid":
        return lambda x, t: grid_sample(x, t, **options), 0.7 * noise(1, *OUTPUT_SIZE, 2)
    if source == "flow":
        return lambda x, t: flow_warp(x, t, **options), 0.7 * noise(1, 2, *OUTPUT_SIZE)
    options["transform"] = transforms.resolve(source)
    return lambda x, t: spatial_transform(x, t, OUTPUT_SIZE, **options), theta_of(source)


def theta_of(source):
    transform = transforms.resolve(source)
    off = 0.2 * noise(1, *transform.theta_shape).clamp(-1, 1)
    return transform.identity(1, dtype=torch.float64) + off


@pytest.mark.thinned(rest="nightly")
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda s: getattr(s, "name", s))
def test_every_source_in_every_mode(place: Place, device, source, mode, padding_mode):
    """With respect to the image and to θ, the grid or the flow."""
    f, theta = warp(source, mode=mode, padding_mode=padding_mode)
    input = noise(1, 1, *SIZE).to(device).requires_grad_()
    assert slopes_agree(place, f, input, theta.to(device).requires_grad_())


@pytest.mark.thinned
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda s: getattr(s, "name", s))
def test_the_image_of_a_nearest_sample(place: Place, device, source, padding_mode):
    """It is constant in θ."""
    f, theta = warp(source, mode="nearest", padding_mode=padding_mode)
    input, theta = noise(1, 1, *SIZE).to(device).requires_grad_(), theta.to(device)
    assert slopes_agree(place, lambda x: f(x, theta), input)
    theta.requires_grad_()
    (grad,) = torch.autograd.grad(f(input, theta).sum(), theta)
    assert (grad == 0).all()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    "source", ["projective", SPLINE, "grid"], ids=["projective", "tps", "grid"]
)
def test_splats(place: Place, device, source, normalize):
    """With respect to what is splatted and to θ or the grid."""
    theta = 0.7 * noise(1, *OUTPUT_SIZE, 2) if source == "grid" else theta_of(source)

    def f(g, t):
        if source == "grid":
            return grid_splat(g, t, SIZE, normalize=normalize)
        return splat(g, t, SIZE, transform=source, normalize=normalize)

    input = noise(1, 1, *OUTPUT_SIZE).to(device).requires_grad_()
    assert slopes_agree(place, f, input, theta.to(device).requires_grad_())


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(dict(fill_value=2.0), id="fill"),
        pytest.param(dict(antialias=True), id="zeros"),
        *(
            pytest.param(dict(antialias=True, padding_mode=p), id=p, marks=pytest.mark.landing)
            for p in PADDINGS[1:]
        ),
    ],
)
def test_a_fill_and_an_area_of_a_homography(place: Place, device, options):
    """The area has 3 to 5 samples along each axis, some of them outside."""
    zoom = 1.7 if "antialias" in options else 1.3
    f, theta = warp("projective", **options)
    theta = theta * torch.tensor([[zoom], [zoom], [1.0]])
    input = noise(1, 1, *SIZE).to(device).requires_grad_()
    assert slopes_agree(place, f, input, theta.to(device).requires_grad_())
