"""Volumes at grids and under flows, splatted, tricubic and antialiased, on both backends."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import Place
from torch.testing import assert_close

import triton_stn
from triton_stn import flow_warp, grid_sample, grid_splat, spatial_transform, splat

PADDINGS = ["zeros", "border", "reflection"]
SHAPE = (2, 2, 3, 4, 5)


def noise(*shape, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)


def gradients(output, up, *tensors):
    return torch.autograd.grad(output, tensors, up)


@pytest.mark.thinned
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_a_grid_reads_what_pytorch_reads(place: Place, device, mode, padding_mode, align_corners):
    x = noise(*SHAPE, device=device).requires_grad_()
    grids = noise(2, 3, 2, 3, 2, 3, seed=1, device=device).requires_grad_()
    options = dict(mode=mode, padding_mode=padding_mode, align_corners=align_corners)
    got = grid_sample(x, grids, **options)
    expected = torch.stack([F.grid_sample(x, g, **options) for g in grids.unbind(1)], 1)
    up = noise(*got.shape, seed=2, device=device)
    assert_close(got, expected)
    assert_close(gradients(got, up, x, grids), gradients(expected, up, x, grids))
    assert_close(grid_sample(x, grids[:, 0], **options), expected[:, 0])


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_tricubic_is_bicubic_of_slices_along_each_axis(
    place: Place, device, padding_mode, align_corners
):
    """Of a product of an image and a row, whose weights are products too."""
    image, row = noise(1, 1, 4, 5, device=device), noise(1, 1, 3, 1, device=device)
    volume = row[..., None] * image[:, :, None]
    grid = noise(1, 1, 1, 7, 3, seed=1, device=device)
    options = dict(mode="bicubic", padding_mode=padding_mode, align_corners=align_corners)
    flat = F.grid_sample(image, grid[:, 0, ..., :2], **options)
    # One column wide: PyTorch reads it at x = 0, where all of the weight is its own.
    along = torch.stack((torch.zeros_like(grid[:, 0, ..., 2]), grid[:, 0, ..., 2]), -1)
    if padding_mode == "zeros" or align_corners:
        row = row.expand(-1, -1, -1, 9)
    expected = flat * F.grid_sample(row, along, **options)
    assert_close(grid_sample(volume, grid, **options)[:, :, 0], expected)


def test_a_tricubic_affine_map_is_its_grid(place: Place, device):
    x = noise(*SHAPE, device=device).requires_grad_()
    theta = (torch.eye(3, 4) + 0.1 * noise(2, 2, 3, 4, seed=1)).to(device).requires_grad_()
    grid = triton_stn.transforms.Affine(3).grid(theta, (2, 3, 2))
    got = spatial_transform(x, theta, (2, 3, 2), mode="bicubic")
    expected = grid_sample(x, grid, "bicubic")
    up = noise(*got.shape, seed=2, device=device)
    assert_close(got, expected)
    assert_close(gradients(got, up, x, theta), gradients(expected, up, x, theta))


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["x", "y", "z"])
def test_a_flow_of_one_voxel_shifts(place: Place, device, axis):
    x = noise(*SHAPE, device=device)
    flow = torch.zeros(2, 3, 3, 4, 5, dtype=torch.float64, device=device)
    flow[:, axis] = 1
    dim = 4 - axis
    n = x.shape[dim]
    got = flow_warp(x, flow)
    assert_close(got.narrow(dim, 0, n - 1), x.narrow(dim, 1, n - 1))
    beyond = got.narrow(dim, n - 1, 1)
    assert_close(beyond, torch.zeros_like(beyond))


CALLS = {
    "grid": lambda x, place, **options: grid_sample(x, place, **options),
    "flow": lambda x, place, **options: flow_warp(x, place.movedim(-1, 1), **options),
    "splat": lambda x, place, **options: grid_splat(x, place, SHAPE[2:], **options),
}


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("name", CALLS)
def test_our_kernels_do_all_of_it(triton_device, launches, name, mode):
    """PyTorch's sampler is in no list of launches."""
    x = noise(2, 2, 2, 3, 4, device=triton_device).requires_grad_()
    place = noise(2, 2, 3, 4, 3, seed=1, device=triton_device).requires_grad_()
    y = CALLS[name](x, place, mode=mode)
    once, back = ("forward", "scatter") if name != "splat" else ("scatter", "forward")
    assert [plan.kernel.__name__ for plan in launches] == [once]
    y.sum().backward()
    slopes = ["grad_theta"] * (name == "splat" and mode == "bilinear")
    assert [plan.kernel.__name__ for plan in launches] == [once, back, *slopes]


@pytest.mark.parametrize("name", ["grid", "flow"])
def test_what_a_field_reads_is_told_by_its_strides(triton_device, name):
    """Numbers in planes, reversed axes, an expanded batch: the same bits."""
    x = noise(2, 2, 3, 4, 5, device=triton_device).float()
    field = noise(1, 2, 3, 4, 3, seed=1, device=triton_device).float()
    expected = CALLS[name](x, field.expand(2, -1, -1, -1, -1).contiguous())
    for order in ((0, 4, 1, 2, 3), (4, 3, 2, 1, 0), (0, 2, 4, 3, 1)):
        back = [order.index(axis) for axis in range(5)]
        there = field.permute(order).contiguous().permute(back)
        assert torch.equal(CALLS[name](x, there), expected)


@pytest.mark.parametrize("fill_value", [2.5, [1.0, -2.0]], ids=["number", "channels"])
def test_what_lies_outside_is_filled(place: Place, device, fill_value):
    """As in a volume that has it around it."""
    x, grid = noise(*SHAPE, device=device), 1.5 * noise(2, 2, 3, 2, 3, seed=1, device=device)
    grid = grid.requires_grad_()
    around = torch.as_tensor(fill_value, dtype=x.dtype, device=device).view(-1, 1, 1, 1)
    padded = torch.ones(2, 2, 13, 14, 15, dtype=x.dtype, device=device) * around
    padded[:, :, 5:8, 5:9, 5:10] = x
    extent = torch.tensor([5.0, 4, 3], dtype=x.dtype, device=device)
    got = grid_sample(x, grid, fill_value=fill_value)
    expected = F.grid_sample(
        padded, grid * extent / (extent + 10), padding_mode="border", align_corners=False
    )
    up = noise(*got.shape, seed=2, device=device)
    assert_close(got, expected)
    assert_close(gradients(got, up, grid), gradients(expected, up, grid))


@pytest.mark.thinned
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("k", [None, 2])
def test_a_splat_is_the_transpose(place: Place, device, k, padding_mode):
    ks = () if k is None else (k,)
    theta = (torch.eye(3, 4) + 0.1 * noise(2, *ks, 3, 4, seed=1)).to(device)
    grid = noise(2, *ks, 2, 3, 4, 3, seed=2, device=device)
    planes, x = noise(2, *ks, 2, 2, 3, 4, device=device), noise(*SHAPE, seed=3, device=device)
    for splatted, sampled in (
        (
            splat(planes, theta, SHAPE[2:], padding_mode=padding_mode),
            spatial_transform(x, theta, (2, 3, 4), padding_mode=padding_mode),
        ),
        (
            grid_splat(planes, grid, SHAPE[2:], padding_mode=padding_mode),
            grid_sample(x, grid, padding_mode=padding_mode),
        ),
    ):
        assert_close((splatted * x).sum(), (planes * sampled).sum())


def test_half_the_size_antialiased_is_the_mean_of_eight(place: Place, device):
    x = noise(1, 2, 4, 4, 4, device=device).requires_grad_()
    theta = torch.eye(3, 4, dtype=torch.float64, device=device)[None]
    got = spatial_transform(x, theta, (2, 2, 2), antialias=True)
    assert_close(got, F.avg_pool3d(x, 2))
    (grad,) = gradients(got, torch.ones_like(got), x)
    assert_close(grad, torch.full_like(x, 1 / 8))


def test_halves_are_rounded_once(place: Place, device):
    x = noise(*SHAPE, device=device).half()
    grid = noise(2, 2, 3, 2, 3, seed=1, device=device)
    for mode in ("bilinear", "bicubic"):
        got = grid_sample(x, grid.float(), mode)
        assert got.dtype == torch.float16
        assert_close(got.double(), grid_sample(x.double(), grid, mode), rtol=1e-3, atol=1e-3)


@pytest.mark.thinned
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e20, -(2.0**31)])
@pytest.mark.parametrize("name", ["grid", "flow"])
def test_one_bad_coordinate_stays_in_its_voxel(
    place: Place, device, name, value, padding_mode, mode
):
    """One that is not finite gives NaN there, and nothing to any gradient; a finite one is far."""
    x = noise(1, 1, 2, 2, 2, device=device).float().requires_grad_()
    field = noise(1, 2, 2, 2, 3, seed=1, device=device).float()
    options = dict(padding_mode=padding_mode, mode=mode)
    up = torch.ones(1, 1, 2, 2, 2, device=device)
    up[0, 0, 0, 1, 0] = 0.0
    without = gradients(CALLS[name](x, field.requires_grad_(), **options), up, x, field)
    for axis in range(3):
        bad = field.detach().clone()
        bad[0, 0, 1, 0, axis] = value
        y = CALLS[name](x, bad.requires_grad_(), **options)
        here = y[0, 0, 0, 1, 0]
        finite = abs(value) < torch.inf
        assert y.isnan().sum() == (not finite) and here.isnan() == (not finite)
        assert here == 0 or padding_mode != "zeros" or not finite
        of_x, of_field = gradients(y, torch.ones_like(y) if not finite else up, x, bad)
        assert_close(of_x, without[0])
        assert (of_field[0, 0, 1, 0] == 0).all()
        of_field[0, 0, 1, 0] = without[1][0, 0, 1, 0]
        assert_close(of_field, without[1])


def test_a_deterministic_gradient_is_fixed_point_and_right(triton_device, launches):
    """Of a point where many voxels fall, as float atomics would not add up alike."""
    x = noise(*SHAPE, device=triton_device).half().requires_grad_()
    grid = 0.1 * noise(2, 4, 8, 9, 3, seed=1, device=triton_device).float()
    y = grid_sample(x, grid)
    up = noise(*y.shape, seed=2, device=triton_device).half()
    torch.use_deterministic_algorithms(True)
    try:
        (got,) = gradients(y, up, x)
    finally:
        torch.use_deterministic_algorithms(False)
    names = [plan.kernel.__name__ for plan in launches]
    assert names == ["forward", "largest", "scatter", "settle"]
    exact = x.detach().double().requires_grad_()
    y = F.grid_sample(exact, grid.double(), align_corners=False)
    assert_close(got.double(), gradients(y, up.double(), exact)[0], rtol=1e-3, atol=1e-3)
