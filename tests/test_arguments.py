"""Forms of arguments that PyTorch's users try: broadcast batches, lists, numpy's numbers, None."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import Place
from torch.testing import assert_close

import triton_stn
from triton_stn import flow_warp, grid_sample, spatial_transform, splat

SPLINE = triton_stn.ThinPlateSpline(2, 2)


def noise(*shape, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)


def gradients(output, *tensors):
    up = noise(*output.shape, seed=9, device=output.device)
    return torch.autograd.grad(output, tensors, up)


@pytest.mark.thinned
@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize("transform", ["affine", "projective", SPLINE], ids=["affine", "h", "tps"])
@pytest.mark.parametrize("one", ["theta", "input"])
def test_a_batch_of_one_serves_all(place: Place, device, one, transform, k):
    """Its gradient is the sum over what it served."""
    ks = () if k is None else (k,)
    still = triton_stn.transforms.resolve(transform).identity((3, *ks), dtype=torch.float64)
    theta = (still + 0.1 * noise(*still.shape, seed=1)).to(device)
    x = noise(3, 1, 4, 5, device=device)
    x, theta = (x[:1], theta) if one == "input" else (x, theta[:1])
    x, theta = x.requires_grad_(), theta.requires_grad_()
    got = spatial_transform(x, theta, (2, 3), transform=transform, fill_value=0.5)
    whole = x.expand(3, -1, -1, -1), theta.expand(3, *theta.shape[1:])
    expected = spatial_transform(*whole, (2, 3), transform=transform, fill_value=0.5)
    assert_close(got, expected)
    assert_close(gradients(got, x, theta), gradients(expected, x, theta))


@pytest.mark.parametrize("stacked", [1, 2], ids=["maps_first", "rows_apart"])
def test_maps_in_any_order_of_memory(place: Place, device, stacked):
    """Again too, when the call is kept."""
    x = noise(3, 1, 4, 5, device=device).requires_grad_()
    theta = torch.eye(2, 3, dtype=torch.float64) + 0.1 * noise(3, 2, 2, 3, seed=1)
    theta = theta.to(device)
    lies = theta.movedim(0, stacked).contiguous().movedim(stacked, 0).requires_grad_()
    assert lies.stride() != theta.stride()
    theta.requires_grad_()
    expected = spatial_transform(x, theta, (2, 3))
    grads = gradients(expected, x, theta)
    for _ in range(2):
        got = spatial_transform(x, lies, (2, 3))
        assert_close(got, expected)
        assert_close(gradients(got, x, lies), grads)


def test_an_image_that_serves_all_is_not_copied(triton_device, launches):
    x = noise(1, 1, 4, 5, device=triton_device)
    theta = torch.eye(2, 3, dtype=torch.float64, device=triton_device).repeat(3, 1, 1)
    assert spatial_transform(x, theta).shape == (3, 1, 4, 5)
    (plan,) = launches
    # K = 3 maps of one image: it has no stride from one of a batch to the next.
    assert plan.arguments["X"].stride_n == 0 and plan.arguments["THETA"].stride_k == 6


@pytest.mark.parametrize("function", ["grid_sample", "flow_warp", "splat"])
@pytest.mark.parametrize("one", [0, 1], ids=["input", "field"])
def test_a_batch_of_one_of_the_other_functions(place: Place, device, function, one):
    fields = {
        "grid_sample": 0.5 * noise(3, 4, 5, 2, seed=1),
        "flow_warp": noise(3, 2, 4, 5, seed=1),
        "splat": torch.eye(2, 3) + 0.1 * noise(3, 2, 3, seed=1),
    }
    tensors = [noise(3, 2, 4, 5, device=device), fields[function].to(device)]
    tensors[one] = tensors[one][:1]
    tensors = [t.requires_grad_() for t in tensors]
    call = getattr(triton_stn, function)
    got, expected = call(*tensors), call(*(t.expand(3, *t.shape[1:]) for t in tensors))
    assert_close(got, expected)
    assert_close(gradients(got, *tensors), gradients(expected, *tensors))


@pytest.mark.parametrize("batch", [(1, 0), (0, 1)])
def test_an_empty_batch_beside_one(place: Place, device, batch):
    x = torch.zeros(batch[0], 2, 4, 5, device=device)
    assert spatial_transform(x, torch.zeros(batch[1], 2, 3, device=device)).shape == (0, 2, 4, 5)


def test_a_fill_value_is_any_number_or_a_list(place: Place, device):
    x = noise(2, 3, 4, 5, device=device)
    theta = torch.eye(2, 3, dtype=torch.float64, device=device) * 1.5
    for given, meant in (
        (np.float32(0.5), 0.5),
        (np.int64(2), 2.0),
        ([1, 2.5, -1], torch.tensor([1.0, 2.5, -1.0], device=device)),
        ((0.0, 1.0, 2.0), torch.tensor([0.0, 1.0, 2.0], device=device)),
    ):
        expected = spatial_transform(x, theta, fill_value=meant)
        assert_close(spatial_transform(x, theta, fill_value=given), expected)


@pytest.mark.parametrize(
    "size", [torch.Size((3, 2)), [3, 2], (np.int64(3), np.int32(2)), torch.tensor([3, 2]).tolist()]
)
def test_a_size_is_anything_that_holds_integers(place: Place, device, size):
    x, theta = torch.ones(1, 1, 4, 5, device=device), torch.eye(2, 3, device=device)
    assert spatial_transform(x, theta, size).shape == (1, 1, 3, 2)
    assert spatial_transform(x, theta, np.int64(3)).shape == (1, 1, 3, 3)


def test_align_corners_of_a_grid_may_be_none(place: Place, device):
    x, grid = noise(1, 1, 4, 5, device=device), 0.5 * noise(1, 2, 3, 2, seed=1, device=device)
    expected = grid_sample(x, grid, align_corners=False)
    assert torch.equal(grid_sample(x, grid, align_corners=None), expected)
    assert torch.equal(grid_sample(x, grid), expected)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5), (1, 5)])
def test_a_flow_is_in_pixels_with_either_align_corners(place: Place, device, shape, align_corners):
    """And reflection turns where it says."""
    x = noise(1, 1, *shape, device=device)
    flow = torch.zeros(1, len(shape), *shape, dtype=torch.float64, device=device)
    flow[:, 0] = 1
    options = dict(padding_mode="reflection", align_corners=align_corners)
    got = flow_warp(x, flow, **options)
    at = 3 if align_corners else 4
    assert_close(got, x[..., [1, 2, 3, 4, at]])


def test_a_flow_may_have_a_fill_value(place: Place, device):
    x = noise(1, 2, 4, 5, device=device)
    flow = torch.full((1, 2, 4, 5), 100.0, device=device)
    assert (
        flow_warp(x, flow, fill_value=[1.0, 2.0]).mean((0, 2, 3)).cpu() == torch.tensor([1.0, 2.0])
    ).all()


def test_a_module_takes_what_its_function_takes(place: Place, device):
    net = triton_stn.nn.SpatialTransformer(
        torch.nn.Flatten(), 32, output_size=2, fill_value=torch.tensor([1.0, 2.0]), antialias=True
    ).to(device)
    x = torch.randn(2, 2, 4, 4, device=device)
    assert_close(net(x), torch.nn.functional.avg_pool2d(x, 2))
    assert net.fill_value.device == x.device and "fill_value" not in net.state_dict()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(antialias=True, mode="nearest"), ValueError, "antialias"),
        (dict(antialias=1), TypeError, "antialias"),
        (dict(fill_value=1.0, padding_mode="border"), ValueError, "fill_value"),
        (dict(fill_value="1"), TypeError, "fill_value"),
        (dict(output_size=(3, 3, 3)), ValueError, "output_size"),
        (dict(output_size=0), ValueError, "output_size"),
    ],
)
def test_a_module_checks_its_arguments_when_it_is_made(options, error, message):
    with pytest.raises(error, match=message):
        triton_stn.nn.SpatialTransformer(torch.nn.Flatten(), 32, **options)


@pytest.mark.parametrize("start", [None, torch.tensor([[0.5, 0, 0], [0, 1, 0.25]])])
@pytest.mark.parametrize("filled", ["reset", "loaded"])
def test_a_module_made_on_the_meta_device_is_filled_in_later(start, filled):
    options = dict(localization=torch.nn.Flatten(), features=20, num_transforms=2, theta=start)
    source = triton_stn.nn.SpatialTransformer(**options)
    with torch.device("meta"):
        net = triton_stn.nn.SpatialTransformer(**options)
    net = net.to_empty(device="cpu")
    net.load_state_dict(source.state_dict()) if filled == "loaded" else net.reset_parameters()
    x = torch.randn(1, 1, 4, 5)
    assert_close(net(x), source(x))
    assert_close(net.predict(x)[0, 1], torch.eye(2, 3) if start is None else start)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_script_is_told_what_to_use():
    net = torch.nn.Sequential(triton_stn.nn.SpatialTransformer(torch.nn.Flatten(), 20))
    for wanted in (spatial_transform, triton_stn.grid_sample, splat, net):
        with pytest.raises(RuntimeError, match=r"use torch\.compile, torch\.export or torch\.jit"):
            torch.jit.script(wanted)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 3, 3), "transform='projective'"), ((2, 6), r"theta.unflatten\(-1, \(2, 3\)\)")],
)
def test_a_theta_that_does_not_fit_is_told_what_to_do(shape, message):
    with pytest.raises(ValueError, match=message):
        spatial_transform(torch.zeros(2, 1, 4, 5), torch.zeros(shape))


def test_splat_of_one_plane_under_many_maps_counts_each(place: Place, device):
    theta = torch.eye(2, 3, device=device).repeat(3, 1, 1)
    assert splat(torch.ones(1, 1, 4, 5, device=device), theta).shape == (3, 1, 4, 5)
