"""Second derivatives and tangents: right or refused, never without what they lack.

The Triton path, and splat on any, are differentiable once. A gradient taken with create_graph=True
is as good as any until somebody differentiates it.
"""

from __future__ import annotations

import pytest
import torch
from conftest import PYTORCH, Place
from torch.autograd import forward_ad

import triton_stn

SIZES = {"volume": (3, 2, 4)}
NEEDS = [(True, False), (False, True), (True, True)]


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def affine(x, theta):
    return triton_stn.spatial_transform(x, theta, (3, 5))


def maps(x, theta):
    return triton_stn.spatial_transform(x, torch.stack([theta, 0.8 * theta], 1), (3, 5))


def border(x, theta):
    return triton_stn.spatial_transform(x, theta, padding_mode="border")


def bicubic(x, theta):
    return triton_stn.spatial_transform(x, theta, mode="bicubic")


def antialiased(x, theta):
    return triton_stn.spatial_transform(x, theta, (2, 2), antialias=True)


def projective(x, theta):
    return triton_stn.spatial_transform(x, theta, transform="projective")


def spline(x, theta):
    return triton_stn.spatial_transform(x, theta, transform=triton_stn.ThinPlateSpline(2, 2))


def volume(x, theta):
    return triton_stn.spatial_transform(x, theta)


def grid(x, theta):
    return triton_stn.grid_sample(x, theta)


def flow(x, theta):
    return triton_stn.flow_warp(x, theta)


def splat(x, theta):
    return triton_stn.splat(x, theta, (5, 4))


def grid_splat(x, theta):
    return triton_stn.grid_splat(x, theta, (5, 4))


SAMPLERS = [affine, maps, border, bicubic, antialiased, projective, spline, volume, grid, flow]
SPLATS = [splat, grid_splat]


def arguments(function, device):
    """input and θ near the identity, off every kink."""
    size = SIZES.get(function.__name__, (4, 5))
    transforms = {
        volume: triton_stn.transforms.resolve("affine", 3),
        projective: triton_stn.transforms.resolve("projective"),
        spline: triton_stn.ThinPlateSpline(2, 2),
    }
    if function in (grid, grid_splat):
        theta = 0.5 * noise(1, *size, 2, seed=1)
    elif function is flow:
        theta = noise(1, 2, *size, seed=1)
    else:
        still = transforms.get(function, triton_stn.transforms.resolve("affine")).identity(1)
        theta = still.double() + 0.1 * noise(*still.shape, seed=1)
    return noise(1, 2, *size).to(device), theta.to(device)


def leaves(function, device, needs):
    tensors = arguments(function, device)
    return [t.requires_grad_(n) for t, n in zip(tensors, needs, strict=True)]


def named(function):
    return function.__name__


def check_refused(function, device, needs):
    tensors = leaves(function, device, needs)
    wanted = [t for t in tensors if t.requires_grad]
    for leaf in wanted:
        (once,) = torch.autograd.grad(function(*tensors).sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match=r"use_backend\('torch'\)"):
            torch.autograd.grad(once.square().sum(), wanted, allow_unused=True)


@pytest.mark.parametrize("needs", NEEDS, ids=["input", "theta", "both"])
@pytest.mark.parametrize("function", SAMPLERS, ids=named)
def test_a_second_derivative_by_the_kernels_is_refused(triton_device, function, needs):
    """Of a sum, whose own gradient wants none."""
    check_refused(function, triton_device, needs)


@pytest.mark.parametrize("needs", NEEDS, ids=["input", "theta", "both"])
@pytest.mark.parametrize("function", SPLATS, ids=named)
def test_a_second_derivative_of_a_splat_is_refused(device, function, needs):
    check_refused(function, device, needs)


@pytest.mark.parametrize("function", SAMPLERS + SPLATS, ids=named)
def test_a_gradient_that_could_be_differentiated_is_the_plain_one(device, function):
    tensors = leaves(function, device, (True, True))
    plain = torch.autograd.grad(function(*tensors).sum(), tensors)
    kept = torch.autograd.grad(function(*tensors).sum(), tensors, create_graph=True)
    torch.testing.assert_close(kept, plain)


@pytest.mark.parametrize("place", [PYTORCH])
@pytest.mark.parametrize("function", [affine, maps, border, projective, grid, flow], ids=named)
def test_what_the_refusal_names_has_a_second_derivative(place: Place, function):
    tensors = leaves(function, place.device, (True, True))
    with triton_stn.use_backend("torch"):
        assert torch.autograd.gradgradcheck(
            lambda *t: function(*t).square(), tensors, fast_mode=True, eps=1e-7, atol=1e-4
        )


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode], ids=named)
@pytest.mark.parametrize("function", SAMPLERS + SPLATS, ids=named)
def test_without_gradients_the_output_is_the_same_and_wants_none(device, function, off):
    tensors = leaves(function, device, (True, True))
    y = function(*tensors)
    with off():
        quiet = function(*tensors)
        fresh = function(*(t.clone() for t in tensors))  # inference tensors, in that mode
    assert y.requires_grad and not quiet.requires_grad
    # Scattered sums have no fixed order.
    torch.testing.assert_close(quiet, y.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fresh, y.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("off", [torch.no_grad, torch.enable_grad], ids=named)
@pytest.mark.parametrize("place_of_tangent", [0, 1], ids=["input", "theta"])
@pytest.mark.parametrize("function", SAMPLERS + SPLATS, ids=named)
def test_a_tangent_is_right_or_refused(device, function, place_of_tangent, off):
    tensors = list(arguments(function, device))
    primal = tensors[place_of_tangent]
    tangent = noise(*primal.shape, seed=2).to(device)

    def at(value):
        tensors[place_of_tangent] = value
        return function(*tensors)

    with off(), forward_ad.dual_level():
        try:
            y = at(forward_ad.make_dual(primal, tangent))
        except (RuntimeError, NotImplementedError) as error:
            assert "forward" in str(error).lower() or "jvp" in str(error)
            return
        got = forward_ad.unpack_dual(y).tangent
    assert got is not None, "the tangent was dropped"
    step = 1e-6
    expected = (at(primal + step * tangent) - at(primal - step * tangent)) / (2 * step)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
