"""Derivatives of every order and kind: backward, forward, batched, of derivatives again.

On the PyTorch path the checks are PyTorch's own, against finite differences in float64; the kernels
are held to that path, for of a derivative's derivative they run but the parts that have the form of
a forward or a backward. Losses that are linear in the output are checked apart: there grad_output
wants no gradient, and what goes through input and theta is all that there is.
"""

from __future__ import annotations

import pytest
import torch
from conftest import PYTORCH, Place
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import triton_stn
from triton_stn.backends.pytorch_grid import Rules
from triton_stn.backends.taps import Weights
from triton_stn.backends.taps import sample as sample_by_taps
from triton_stn.backends.taps import splat as splat_by_taps

STEPS = dict(fast_mode=True, eps=1e-7, atol=1e-4)
PADDINGS = ["zeros", "border", "reflection"]
MODES = ["bilinear", "nearest", "bicubic"]


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sampler(**options):
    return lambda x, theta, **more: triton_stn.spatial_transform(
        x, theta, (2, 3), **options, **more
    )


SPLINE = triton_stn.ThinPlateSpline(2, 2)
FUNCTIONS = {
    "affine": sampler(),
    "maps": sampler(),
    "projective": sampler(transform="projective"),
    "spline": sampler(transform=SPLINE),
    "volume": lambda x, theta, **o: triton_stn.spatial_transform(x, theta, (2, 2, 3), **o),
    "grid": triton_stn.grid_sample,
    "flow": triton_stn.flow_warp,
    "volume_grid": triton_stn.grid_sample,
    "volume_flow": triton_stn.flow_warp,
    "splat": lambda x, theta, **o: triton_stn.splat(x, theta, (4, 3), **o),
    "grid_splat": lambda x, theta, **o: triton_stn.grid_splat(x, theta, (4, 3), **o),
}
SPECIAL = {
    "filled": sampler(fill_value=0.5),
    "antialiased": sampler(antialias=True),
    "normalized": lambda x, theta: triton_stn.splat(x, theta, (4, 3), normalize=True),
}


def arguments(name, device="cpu"):
    """input and θ near the identity, off every kink, both wanting a gradient."""
    size = (2, 3, 4) if "volume" in name else (3, 4)
    if "grid" in name:
        theta = 0.5 * noise(1, *size, len(size), seed=1)
    elif "flow" in name:
        theta = noise(1, len(size), *size, seed=1)
    else:
        transform = {"volume": triton_stn.transforms.Affine(3), "spline": SPLINE}.get(name)
        transform = transform or triton_stn.transforms.resolve(
            "projective" if name == "projective" else "affine"
        )
        still = transform.identity((1, 2) if name == "maps" else 1, dtype=torch.float64)
        theta = (1.7 if name == "antialiased" else 1) * still + 0.1 * noise(*still.shape, seed=1)
    return noise(1, 1, *size).to(device).requires_grad_(), theta.to(device).requires_grad_()


def check_all(function, tensors):
    """First derivatives backward and forward, second ones backward and forward, all batched."""
    assert gradcheck(function, tensors, check_forward_ad=True, check_batched_grad=True, **STEPS)
    assert gradgradcheck(
        function, tensors, check_fwd_over_rev=True, check_batched_grad=True, **STEPS
    )


@pytest.mark.thinned(rest="nightly")
@pytest.mark.parametrize("place", [PYTORCH])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_first_and_second_derivatives(place: Place, device, name, padding_mode, mode):
    options = dict(padding_mode=padding_mode, mode=mode)
    check_all(lambda *t: FUNCTIONS[name](*t, **options), arguments(name, device))


@pytest.mark.parametrize("place", [PYTORCH])
@pytest.mark.parametrize("name", SPECIAL)
def test_first_and_second_derivatives_of(place: Place, device, name):
    check_all(SPECIAL[name], arguments(name, device))


@pytest.mark.parametrize("place", [PYTORCH])
@pytest.mark.parametrize("name", ["affine", "projective", "splat"])
def test_third_derivatives(place: Place, device, name):
    def first(*tensors):
        return torch.autograd.grad(
            FUNCTIONS[name](*tensors).square().sum(), tensors, create_graph=True
        )

    assert gradgradcheck(first, arguments(name, device), **STEPS)


@pytest.mark.thinned
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflection"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_kernels_derivatives(kernels: Place, name, padding_mode, mode):
    options = dict(padding_mode=padding_mode, mode=mode)
    check_kernels(kernels, name, lambda *t: FUNCTIONS[name](*t, **options))


@pytest.mark.parametrize("name", SPECIAL)
def test_the_kernels_derivatives_of(kernels: Place, name):
    check_kernels(kernels, name, SPECIAL[name])


def check_kernels(kernels, name, function):
    """The tangent, the second derivatives, of every tensor that is at hand, and a third one."""

    def derivatives(place):
        with triton_stn.use_backend(place.backend):
            tensors = arguments(name, place.device)
            tangents = [noise(*t.shape, seed=5).to(t.device) for t in tensors]
            slope = torch.func.jvp(function, tuple(t.detach() for t in tensors), tuple(tangents))[1]
            y = function(*tensors)
            up = noise(*y.shape, seed=6).to(y.device).requires_grad_()
            once = torch.autograd.grad(y, tensors, up, create_graph=True)
            total = sum((g * t).sum() for g, t in zip(once, tangents, strict=True))
            twice = torch.autograd.grad(total, (*tensors, up), create_graph=True)
            thrice = torch.autograd.grad(sum(g.square().sum() for g in twice), tensors)
            return [t.detach().cpu() for t in (slope, *once, *twice, *thrice)]

    expected = derivatives(Place("torch", "cpu"))
    torch.testing.assert_close(derivatives(kernels), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("through", ["grad", "backward"])
@pytest.mark.parametrize("place", [PYTORCH])
@pytest.mark.parametrize("name", [*FUNCTIONS, *SPECIAL])
def test_a_penalty_on_the_gradient_of_a_sum(place: Place, device, name, through):
    """Its grad_output has no gradient, so that all goes through input and θ."""
    function = (FUNCTIONS | SPECIAL)[name]

    def penalty(*tensors):
        once = torch.autograd.grad(function(*tensors).sum(), tensors, create_graph=True)
        return sum(gradient.square().sum() for gradient in once)

    x, theta = arguments(name, device)
    if through == "grad":
        got = torch.autograd.grad(penalty(x, theta), (x, theta))
    else:
        penalty(x, theta).backward()
        got = x.grad, theta.grad
    for at, (value, gradient) in enumerate(zip((x, theta), got, strict=True)):
        step = 1e-6 * noise(*value.shape, seed=3).to(device)
        moved = [[x, theta], [x, theta]]
        moved[0][at], moved[1][at] = (value - step).detach(), (value + step).detach()
        moved = [[t.detach().requires_grad_() for t in tensors] for tensors in moved]
        slope = penalty(*moved[1]) - penalty(*moved[0])
        torch.testing.assert_close((2 * step * gradient).sum(), slope, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", ["affine", "grid", "splat", "antialiased"])
def test_a_gradient_that_can_be_differentiated_is_the_plain_one(place: Place, device, name):
    function, tensors = (FUNCTIONS | SPECIAL)[name], arguments(name, device)
    plain = torch.autograd.grad(function(*tensors).sum(), tensors)
    kept = torch.autograd.grad(function(*tensors).sum(), tensors, create_graph=True)
    torch.testing.assert_close(kept, plain)


@pytest.mark.thinned
@pytest.mark.parametrize("needs", [(True, False), (False, True)], ids=["input", "theta"])
@pytest.mark.parametrize("name", ["affine", "grid", "splat"])
def test_one_that_is_not_wanted_is_left_alone(place: Place, device, name, needs):
    tensors = [t.requires_grad_(n) for t, n in zip(arguments(name, device), needs, strict=True)]
    (wanted,) = (t for t in tensors if t.requires_grad)
    function = (FUNCTIONS | SPECIAL)[name]
    (once,) = torch.autograd.grad(function(*tensors).square().sum(), wanted, create_graph=True)
    (twice,) = torch.autograd.grad(once.square().sum(), wanted)
    step = 1e-6 * noise(*wanted.shape, seed=3).to(device)
    sides = []
    for moved in (wanted - step, wanted + step):
        moved = moved.detach().requires_grad_()
        y = function(*(moved if t is wanted else t for t in tensors))
        (once,) = torch.autograd.grad(y.square().sum(), moved)
        sides.append(once.square().sum())
    slope = sides[1] - sides[0]
    torch.testing.assert_close((2 * step * twice).sum(), slope, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode], ids=lambda f: f.__name__)
@pytest.mark.thinned
@pytest.mark.parametrize("name", [*FUNCTIONS, *SPECIAL])
def test_without_gradients_the_output_is_the_same_and_wants_none(place, device, name, off):
    function, tensors = (FUNCTIONS | SPECIAL)[name], arguments(name, device)
    y = function(*tensors)
    with off():
        quiet = function(*tensors)
        fresh = function(*(t.clone() for t in tensors))  # inference tensors, in that mode
    assert y.requires_grad and not quiet.requires_grad
    # Scattered sums have no fixed order.
    torch.testing.assert_close(quiet, y.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fresh, y.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["projective", "spline"])
def test_autocast_leaves_derivatives_alone(place: Place, device, name):
    """A tangent is computed beside its output, under it."""
    tensors = [t.detach().float() for t in arguments(name, device)]
    tangents = [noise(*t.shape, seed=2).to(device, torch.float32) for t in tensors]

    def slope(enabled):
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            return torch.func.jvp(FUNCTIONS[name], tuple(tensors), tuple(tangents))[1]

    torch.testing.assert_close(slope(True), slope(False))


def test_a_tangent_without_a_gradient(place: Place, device):
    x, theta = (t.detach() for t in arguments("affine", device))
    tangent = noise(*theta.shape, seed=2).to(device)
    step = 1e-6 * tangent
    with torch.no_grad(), forward_ad.dual_level():
        y = place.sample(x, forward_ad.make_dual(theta, tangent))
        got = forward_ad.unpack_dual(y).tangent
    slope = (place.sample(x, theta + step) - place.sample(x, theta - step)) / 2e-6
    torch.testing.assert_close(got, slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_second_derivatives_in_other_dtypes(place: Place, device, dtype):
    """Near the float64 ones, in the dtypes of the arguments."""
    wide = arguments("affine", device)

    def second(x, theta):
        once = torch.autograd.grad(
            place.sample(x, theta).float().square().sum(), (x, theta), create_graph=True
        )
        return torch.autograd.grad(sum(g.float().square().sum() for g in once), (x, theta))

    theta = wide[1].detach().float().requires_grad_()
    got = second(wide[0].detach().to(dtype).requires_grad_(), theta)
    assert got[0].dtype == dtype and got[1].dtype == torch.float32
    near = dict(rtol=30 * torch.finfo(dtype).eps, atol=60 * torch.finfo(dtype).eps)
    for gradient, expected in zip(got, second(*wide), strict=True):
        scale = expected.abs().max()
        torch.testing.assert_close(gradient.double() / scale, expected / scale, **near)


@pytest.mark.thinned(rest="nightly")
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("extent", [(3, 4), (2, 3, 4)], ids=["image", "volume"])
def test_the_sums_over_taps(extent, mode, padding_mode, align_corners):
    """What all of the above is made of: values as PyTorch's where it has them, every derivative."""
    size = (1, 1, 2)[-len(extent) :]
    weights = Weights.of(Rules(size, mode, padding_mode, align_corners), extent)
    x, planes = noise(2, 1, *extent), noise(2, 2, 1, *size, seed=2)
    grid = 0.8 * noise(2, 2, *size, len(extent), seed=1)
    if mode != "bicubic" or len(extent) == 2:
        y = [
            torch.nn.functional.grid_sample(x, g, mode, padding_mode, align_corners)
            for g in grid.unbind(1)
        ]
        torch.testing.assert_close(sample_by_taps(x, grid, weights), torch.stack(y, 1))
    for tensor in (x, planes, grid):
        tensor.requires_grad_()
    check_all(lambda x, grid: sample_by_taps(x, grid, weights), (x, grid))
    check_all(lambda planes, grid: splat_by_taps(planes, grid, weights), (planes, grid))
    product = (planes * sample_by_taps(x, grid, weights)).sum()
    torch.testing.assert_close((splat_by_taps(planes, grid, weights) * x).sum(), product)
