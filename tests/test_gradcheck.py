"""Both gradients against finite differences, in float64, entry by entry of the Jacobian."""

from __future__ import annotations

import pytest
import torch
from conftest import PYTORCH, Place

# In normalised coordinates: none puts an output of these canvases within 1e-3 pixel of the lattice.
THETAS = [
    [[0.71, -0.32, 0.13], [0.27, 0.83, -0.11]],
    [[-0.93, 0.41, 0.17], [0.52, 1.21, 0.07]],
]
PADDINGS = ["zeros", "border", "reflection"]


def check(place: Place, input, theta, output_size, **options) -> bool:
    """Slow mode perturbs every number of input and theta."""
    input = input.to(place.device).requires_grad_()
    theta = theta.to(place.device).requires_grad_()
    # Atomics add in no fixed order: two calls differ by a rounding.
    atomics = place.device != "cpu" and options.get("padding_mode", "zeros") != "zeros"
    return torch.autograd.gradcheck(
        lambda x, t: place.sample(x, t, output_size, **options),
        (input, theta),
        fast_mode=False,
        nondet_tol=1e-12 if atomics else 0.0,
    )


def noise(*shape) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_gradients_match_finite_differences(place: Place, padding_mode, align_corners):
    channels, output_size = (1, (2, 3)) if place.interpreted else (2, (3, 4))
    theta = torch.tensor(THETAS[:1], dtype=torch.float64)
    options = dict(padding_mode=padding_mode, align_corners=align_corners)
    assert check(place, noise(1, channels, 4, 5), theta, output_size, **options)


@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_two_transforms_of_one_image(place: Place, padding_mode):
    theta = torch.tensor([THETAS], dtype=torch.float64)
    output_size = (1, 2) if place.interpreted else (3, 4)
    assert check(place, noise(1, 1, 3, 4), theta, output_size, padding_mode=padding_mode)


@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_channels_last(place: Place, padding_mode):
    input = noise(1, 8, 2, 3).contiguous(memory_format=torch.channels_last)
    theta = torch.tensor(THETAS[:1], dtype=torch.float64)
    output_size = (1, 2) if place.interpreted else (2, 2)
    assert check(place, input, theta, output_size, padding_mode=padding_mode)


def test_one_theta_for_the_whole_batch(place: Place):
    theta = torch.tensor(THETAS[1], dtype=torch.float64)
    assert check(place, noise(2, 1, 3, 3), theta, (2, 1) if place.interpreted else (3, 2))


@pytest.mark.parametrize("zoom", [1 / 4, 1 / 20], ids=["walk", "wide"])
def test_a_theta_that_magnifies(kernels: Place, zoom):
    theta = torch.tensor(THETAS[:1], dtype=torch.float64) * zoom
    assert check(kernels, noise(1, 1, 3, 3), theta, (2, 2))


@pytest.mark.parametrize("place", [PYTORCH])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_the_pytorch_path_has_second_derivatives(place: Place, padding_mode, align_corners):
    theta = torch.tensor([THETAS], dtype=torch.float64).requires_grad_()
    input = noise(1, 1, 3, 4).requires_grad_()
    options = dict(padding_mode=padding_mode, align_corners=align_corners)
    assert torch.autograd.gradgradcheck(
        lambda x, t: place.sample(x, t, (2, 3), **options), (input, theta)
    )
