"""Homographies, splines, grids and flows: value and both gradients against float64 PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import Place
from oracle import assert_right, run, slopes_agree, spline_by_basis

import triton_stn
from triton_stn import Projective, ThinPlateSpline

PADDINGS = ["zeros", "border", "reflection"]
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.float16]
TRANSFORMS = {
    "projective": Projective(),
    "tps": ThinPlateSpline(3, 4),
    "tps_ridge": ThinPlateSpline(4, 4, ridge=0.1),
    "attention": triton_stn.Attention(),
    "similarity": triton_stn.Similarity(),
}
# Channels, the input's size, the grid's.
GRIDS = {
    "dense": (3, (7, 6), (6, 5)),
    "sparse": (3, (7, 6), (1, 37)),
    "volume": (3, (3, 5, 4), (9, 2, 5)),
    "sparse in a volume": (2, (3, 5, 4), (1, 1, 37)),
    "channels-last volume": (9, (3, 5, 4), (2, 3, 5)),
}
pytestmark = pytest.mark.usefixtures("guarded")


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near_identity(transform, *leading, seed=3):
    """A θ off the lattice; the homographies keep w > 0.5."""
    shape = (*leading, *transform.theta_shape)
    return transform.identity(leading) + 0.13 * noise(*shape, seed=seed).clamp(-1.5, 1.5)


def sampled_by_pytorch(grid_of):
    """``F.grid_sample`` on the grids (N, K, H_out, W_out, 2) of ``grid_of(theta)``."""

    def sample(input, theta, size, **options):
        grids = grid_of(theta.to(input.dtype), size, options["align_corners"])
        n, k = grids.shape[:2]
        images = input.repeat_interleave(k, 0)
        return F.grid_sample(images, grids.flatten(0, 1), **options).unflatten(0, (n, k))

    return sample


def check(sample, exact_sample, input, theta, size, dtype, device, **options):
    options = dict(mode="bilinear") | options
    input = input.to(dtype)
    grad = noise(*theta.shape[:2], input.shape[1], *size, seed=9).to(dtype)
    exact = run(exact_sample, input.double(), theta.double(), size, grad, **options)
    rival = run(exact_sample, input.float(), theta.float(), size, grad, **options)
    tensors = (t.to(device) for t in (input, theta))
    assert_right(run(sample, *tensors, size, grad.to(device), **options), exact, rival)


@pytest.mark.thinned(rest="nightly")
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_are_right(place: Place, name, padding_mode, align_corners):
    """Dtypes and layouts take turns."""
    transform = TRANSFORMS[name]
    turn = list(TRANSFORMS).index(name) + PADDINGS.index(padding_mode) + 2 * align_corners
    dtype, channels = DTYPES[turn % 4], (3, 9)[turn // 2 % 2]
    theta = near_identity(transform, 2, 2).to(torch.promote_types(dtype, torch.float32))
    input = noise(2, channels, 7, 6)
    if channels == 9:
        input = input.contiguous(memory_format=torch.channels_last)

    def sample(x, t, size, **options):
        return place.sample(x, t, size, transform=transform, **options)

    options = dict(padding_mode=padding_mode, align_corners=align_corners)
    exact = sampled_by_pytorch(transform.grid)
    check(sample, exact, input, theta, (5, 9), dtype, place.device, **options)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("side", [2, 16])
def test_splines_of_few_and_many_points_are_right(kernels: Place, side, align_corners):
    """4 and 256 control points, by another route: no inverse, no matrix from θ to the grid."""
    transform = ThinPlateSpline(side, side)
    theta = near_identity(transform, 2, 2).float()

    def sample(x, t, size, **options):
        return kernels.sample(x, t, size, transform=transform, **options)

    options = dict(padding_mode="zeros", align_corners=align_corners)
    exact = sampled_by_pytorch(spline_by_basis(side))
    check(sample, exact, noise(2, 3, 7, 6), theta, (5, 9), torch.float32, kernels.device, **options)


@pytest.mark.thinned
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("name", GRIDS)
def test_grids_are_right(place: Place, name, padding_mode, align_corners):
    """Of any strides: the numbers lie in planes of their own, and are every second ones."""
    channels, extent, size = GRIDS[name]
    dtype = DTYPES[(PADDINGS.index(padding_mode) + 2 * align_corners) % 4]
    planes = 0.7 * noise(2, 2, len(size), *size[:-1], 2 * size[-1], seed=5)
    planes = planes.to(torch.promote_types(dtype, torch.float32))
    grid = planes[..., ::2].movedim(2, -1)
    input = noise(2, channels, *extent)
    if channels > 8:
        last = torch.channels_last if len(extent) == 2 else torch.channels_last_3d
        input = input.contiguous(memory_format=last)

    def sample(x, g, size, **options):
        with triton_stn.use_backend(place.backend):
            return triton_stn.grid_sample(x, g, **options)

    options = dict(padding_mode=padding_mode, align_corners=align_corners)
    exact = sampled_by_pytorch(lambda grid, *_: grid)
    check(sample, exact, input, grid, size, dtype, place.device, **options)


@pytest.mark.thinned
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("name", ["affine", "projective", "grid"])
def test_bicubic_is_right(place: Place, name, padding_mode, align_corners):
    turn = ["affine", "projective", "grid"].index(name) + PADDINGS.index(padding_mode)
    dtype, channels = DTYPES[(turn + 2 * align_corners) % 4], (3, 9)[turn % 2]
    input, size = noise(2, channels, 7, 6), (5, 4)
    if channels == 9:
        input = input.contiguous(memory_format=torch.channels_last)
    options = dict(mode="bicubic", padding_mode=padding_mode, align_corners=align_corners)
    wide = torch.promote_types(dtype, torch.float32)
    if name == "grid":
        theta, grid_of = (0.8 * noise(2, 2, *size, 2, seed=5)).to(wide), lambda grid, *_: grid
    else:
        transform = triton_stn.transforms.resolve(name)
        theta, grid_of = near_identity(transform, 2, 2).to(wide), transform.grid

    def sample(x, t, size, **options):
        if name != "grid":
            return place.sample(x, t, size, transform=name, **options)
        with triton_stn.use_backend(place.backend):
            return triton_stn.grid_sample(x, t, **options)

    exact = sampled_by_pytorch(grid_of)
    check(sample, exact, input, theta, size, dtype, place.device, **options)


def test_bicubic_weights_by_hand(place: Place):
    """Half a pixel right of 1: (-3, 19, 19, -3) / 32."""
    image = torch.tensor([[[[2.0, 4.0, 8.0, 16.0]]]], device=place.device)
    theta = torch.tensor([[0.25, 0, 0], [0, 1, 0]], device=place.device)
    got = place.sample(image, theta, (1, 1), mode="bicubic", align_corners=True)
    torch.testing.assert_close(got.item(), (-3 * 2 + 19 * 4 + 19 * 8 - 3 * 16) / 32)


def test_bicubic_at_the_identity_is_exact_and_reads_no_inf_next_door(kernels: Place):
    image = noise(1, 3, 5, 6).float().to(kernels.device)
    image[0, 0, 2, 2] = torch.inf
    theta = torch.eye(2, 3, device=kernels.device)
    assert torch.equal(kernels.sample(image, theta, mode="bicubic"), image)


def test_bicubic_has_second_derivatives_on_the_pytorch_path():
    theta = near_identity(Projective(), 1).requires_grad_()
    input = noise(1, 1, 4, 5).requires_grad_()

    def f(input, theta):
        options = dict(transform="projective", mode="bicubic", padding_mode="reflection")
        return triton_stn.spatial_transform(input, theta, (2, 3), **options)

    with triton_stn.use_backend("torch"):
        assert torch.autograd.gradgradcheck(f, (input, theta))


@pytest.mark.thinned(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("theta_dtype", DTYPES)
@pytest.mark.parametrize("name", ["flow", "affine"])
def test_theta_and_its_gradient_may_have_another_dtype(device, name, theta_dtype, dtype):
    def call(x, theta):
        if name == "flow":
            return triton_stn.flow_warp(x, theta)
        return triton_stn.spatial_transform(x, theta)

    theta = noise(1, 2, 3, 4) if name == "flow" else near_identity(triton_stn.Affine(), 1)
    x, theta = noise(1, 2, 3, 4, seed=1).to(dtype), theta.to(theta_dtype)
    exact, got = theta.double().requires_grad_(), theta.to(device).requires_grad_()
    with triton_stn.use_backend("torch"):
        call(x.double(), exact).sum().backward()
    call(x.to(device), got).sum().backward()
    assert got.grad.dtype == theta_dtype
    rounding = torch.finfo(theta_dtype).eps + 1e-5
    torch.testing.assert_close(got.grad.cpu().double(), exact.grad, rtol=rounding, atol=1e-5)


@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("size", [(6, 7), (4, 3, 5)], ids=["image", "volume"])
def test_a_flow_moves_by_pixels(place: Place, size, padding_mode):
    input = noise(2, 3, *size).float()
    flow = 2 * noise(2, len(size), *size, seed=4).float()

    def grid_of(flow, size, _):
        axes = [torch.arange(float(n)).to(flow) for n in size]
        pixels = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)
        return (2 * (flow.movedim(2, -1) + pixels) + 1) / flow.new_tensor(size[::-1]) - 1

    def sample(x, flow, size, align_corners, **options):
        with triton_stn.use_backend(place.backend):
            return triton_stn.flow_warp(x, flow[:, 0], **options)[:, None]

    options = dict(padding_mode=padding_mode, align_corners=False)
    exact = sampled_by_pytorch(grid_of)
    check(sample, exact, input, flow[:, None], size, torch.float32, place.device, **options)


def test_a_flow_of_whole_pixels_is_exact(kernels: Place):
    input = noise(1, 2, 5, 6).float().to(kernels.device)
    flow = torch.tensor([2.0, -1.0], device=kernels.device).view(1, 2, 1, 1).expand(1, 2, 5, 6)
    with triton_stn.use_backend(kernels.backend):
        got = triton_stn.flow_warp(input, flow)
    assert torch.equal(got[:, :, 1:, :-2], input[:, :, :-1, 2:])
    assert (got[:, :, 0] == 0).all() and (got[..., -2:] == 0).all()


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("name", ["projective", "tps"])
def test_gradients_match_finite_differences(place: Place, name, align_corners):
    transform = TRANSFORMS[name]
    theta = near_identity(transform, 1, 1, seed=8).to(place.device).requires_grad_()
    input = noise(1, 1, 3, 4).to(place.device).requires_grad_()

    def f(input, theta):
        options = dict(transform=transform, align_corners=align_corners)
        return place.sample(input, theta, (2, 3), **options)

    assert slopes_agree(place, f, input, theta)


def test_a_rough_spline_of_many_points_is_off_by_little(place: Place):
    """docs/support.md has the figure: 1e-2 of a pixel, where 256 terms are added in float32."""
    transform, side = ThinPlateSpline(16, 16), 64
    identity = transform.identity(dtype=torch.float64)
    theta = (0.6 * identity + 0.3 * noise(*identity.shape, seed=1)).float()
    exact = transform.grid(theta.double(), side, False)[..., 0]
    exact = (exact + 1) * side / 2 - 0.5
    ramp = torch.arange(float(side)).expand(1, 1, side, side).contiguous().to(place.device)
    read = place.sample(ramp, theta.to(place.device), transform=transform, padding_mode="border")
    error = (read.cpu()[0, 0] - exact.clamp(0, side - 1)).abs().max()
    assert error < (1e-2 if place.backend == "triton" else 1e-4)


def test_what_lies_behind_the_viewer_is_out_of_view(place: Place):
    """w = X: the left half of the output lies behind, the right half reads x = 1."""
    theta = torch.tensor([[1.0, 0, 0], [0, 0, 0], [1.0, 0, 0]], device=place.device)
    theta.requires_grad_()
    input = torch.ones(1, 1, 3, 5, device=place.device)
    y = place.sample(input, theta, (3, 4), transform="projective", align_corners=True)
    assert (y[..., :2] == 0).all() and (y[..., 2:] == 1).all()
    y.sum().backward()
    assert theta.grad.isfinite().all()
    behind = place.sample(input, -theta, (3, 4), transform="projective", align_corners=True)
    assert (behind[..., 2:] == 0).all() and (behind[..., :2] == 1).all()


@pytest.mark.parametrize("name", ["projective", "tps"])
def test_a_bad_number_stays_in_its_sample(place: Place, name):
    transform = TRANSFORMS[name]
    theta = near_identity(transform, 3).float().to(place.device)
    theta[1, 0, 0] = torch.nan
    input = noise(3, 2, 6, 6).float().to(place.device).requires_grad_()
    y = place.sample(input, theta, transform=transform)
    good = place.sample(input[[0, 2]], theta[[0, 2]], transform=transform)
    assert y[1].isnan().any() and torch.equal(y[[0, 2]], good)
    (grad,) = torch.autograd.grad(y, input, torch.ones_like(y))
    assert grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("along", ["W", "H"])
@pytest.mark.parametrize("n", [10, 9])
def test_nearest_picks_pytorchs_pixel_at_and_beside_every_tie(
    device, n, along, align_corners, dtype
):
    """PyTorch's own test of it: test_grid_sample_nearest_neighbor_rounding_mode_consistency."""
    line = torch.arange(n, dtype=dtype).view(1, 1, 1, n)
    unnormalised = torch.arange(0, 91).to(dtype) / 10  # 0 to 9 by 0.1
    x = 2 * unnormalised / (n - 1) - 1 if align_corners else (2 * unnormalised + 1) / n - 1
    grid = torch.stack((x, torch.zeros_like(x)), -1).view(1, 1, -1, 2)
    if along == "H":
        line, grid = line.mT, grid.flip(-1).transpose(1, 2)
    for padding_mode in ("zeros", "border", "reflection"):
        options = dict(mode="nearest", padding_mode=padding_mode, align_corners=align_corners)
        expected = F.grid_sample(line, grid, **options)
        got = triton_stn.grid_sample(line.to(device), grid.to(device), **options)
        assert torch.equal(got.cpu(), expected)
