"""Bugs that others' samplers had or have, one test each, named by where it was reported.

Without a repository a number is PyTorch's.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import Place
from torch.testing import assert_close

import triton_stn
from triton_stn import flow_warp, geometry, grid_sample, spatial_transform
from triton_stn.backends.layout import Layout
from triton_stn.backends.plans import Sampling, Wanted, plan_backward, plan_forward

MODES, PADDINGS = ["bilinear", "nearest", "bicubic"], ["zeros", "border", "reflection"]
HALF_ULP = torch.finfo(torch.float16).eps / 2


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
def test_24823_nan_and_inf_in_a_grid_fault_nowhere_and_stay_where_they_are(
    device, mode, padding_mode
):
    x = noise(1, 2, 4, 5).to(device).requires_grad_()
    points = [0.1, math.nan, math.inf, -math.inf, 0.3, -1e20, 2.5e38]
    grid = torch.tensor([[p, 0.2] for p in points] + [[0.2, p] for p in points], device=device)
    y = grid_sample(x, grid.view(1, 2, 7, 2), mode, padding_mode)
    lost = torch.tensor([False, True, True, True, False, False], device=device).expand(1, 2, 2, 6)
    assert torch.equal(y[..., :6].isnan(), lost)
    if padding_mode == "zeros":
        assert (y[..., 5] == 0).all()
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert grad.isfinite().all()


def test_24823_a_huge_theta_is_out_of_view(place: Place):
    theta = -1e20 * torch.eye(2, 3, device=place.device)
    assert (place.sample(torch.ones(1, 1, 4, 4, device=place.device), theta) == 0).all()


@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_35202_coordinates_that_no_int32_holds_are_out_of_view(device, padding_mode):
    x = 1 + torch.rand(1, 1, 6, 8, generator=torch.Generator().manual_seed(0)).to(device)
    grid = torch.tensor([[-10059144.0, 67680944.0], [67680944.0, 67680944.0]], device=device)
    x, grid = x.requires_grad_(), grid.view(1, 1, 2, 2).requires_grad_()
    y = grid_sample(x, grid, padding_mode=padding_mode)
    grads = torch.autograd.grad(y, (x, grid), torch.ones_like(y))
    assert all(t.isfinite().all() for t in grads)
    if padding_mode == "zeros":
        assert (y == 0).all()
    elif padding_mode == "border":
        assert torch.equal(y.flatten(), x[0, 0, -1, [0, -1]])
    else:
        assert ((y >= x.amin()) & (y <= x.amax())).all()


def test_41656_an_image_of_more_than_2_31_pixels_is_read_to_its_last(device):
    """One row, as all of its rows."""
    x = torch.arange(65536.0, device=device).expand(1, 1, 32769, 65536)
    grid = torch.tensor([[[[-1.0, -1], [1, -1]], [[-1, 1], [1, 1]]]], device=device)
    expected = torch.tensor([0.0, 65535, 0, 65535], device=device)
    assert torch.equal(grid_sample(x, grid, align_corners=True).flatten(), expected)
    assert torch.equal(grid_sample(x, grid).flatten(), expected / 4)  # its three others are 0


@pytest.mark.parametrize("source", ["affine", "grid"])
def test_41656_an_image_of_more_than_2_31_pixels_has_int64_offsets(source):
    def indices(h):
        image = Layout((1, 1, h, 65536), (h * 65536, h * 65536, 65536, 1), torch.float32)
        output = Layout((1, 1, 1, 2, 2), (4, 4, 4, 2, 1), torch.float32)
        theta = {
            "affine": Layout((1, 1, 2, 3), (6, 6, 3, 1), torch.float32),
            "grid": Layout((1, 1, 2, 2, 2), (8, 8, 4, 2, 1), torch.float32),
        }[source]
        sampling = Sampling("bilinear", "zeros", False, source)
        plans = [*plan_forward(image, theta, output, sampling).plans]
        plans += plan_backward(output, image, theta, sampling, Wanted(True, False)).plans
        return {str(plan.constants["RULES"].index) for plan in plans}

    assert indices(32767) == {"int32"} and indices(32769) == {"int64"}


@pytest.mark.parametrize("padding_mode", ["border", "reflection"])
def test_23925_the_gradient_is_zero_at_the_edge_and_that_of_the_inside_beside_it(
    device, padding_mode
):
    x = torch.arange(5.0, device=device).expand(1, 1, 5, 5)
    grid = F.affine_grid(torch.eye(2, 3)[None], (1, 1, 5, 5), align_corners=True).to(device)
    theta = torch.eye(2, 3, device=device).requires_grad_()
    options = dict(padding_mode=padding_mode, align_corners=True)
    grid_sample(x, grid.requires_grad_(), **options).sum().backward()
    along_x = torch.tensor([0.0, 2, 2, 2, 0], device=device).expand(1, 5, 5)
    assert torch.equal(grid.grad, torch.stack((along_x, torch.zeros_like(along_x)), -1))
    spatial_transform(x, theta, **options).sum().backward()
    assert_close(theta.grad, torch.tensor([[0.0, 0, 30], [0, 0, 0]], device=device))


def test_89836_halves_at_half_coordinates_are_rounded_once(device):
    x = noise(2, 8, 16, 16).half()
    grid = (torch.rand(2, 8, 8, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1).half()
    exact = F.grid_sample(x.double(), grid.double(), align_corners=False)
    got = grid_sample(x.to(device), grid.to(device)).cpu()
    assert_close(got.double(), exact, rtol=1.01 * HALF_ULP, atol=2e-5)


@pytest.mark.parametrize("align_corners", [False, True])
def test_96429_half_coordinates_are_taken_to_pixels_in_float32(device, align_corners):
    x = noise(1, 3, 24, 24).half().to(device)
    identity = torch.eye(2, 3)[None]
    grid = F.affine_grid(identity, (1, 3, 14, 14), align_corners).half().to(device)
    wide = grid_sample(x.float(), grid.float(), align_corners=align_corners)
    assert torch.equal(grid_sample(x, grid, align_corners=align_corners), wide.half())


def test_94733_image_and_grid_may_have_two_dtypes(device):
    x, grid = noise(1, 2, 6, 300).to(device), noise(1, 4, 5, 2, seed=1).to(device)
    both = grid_sample(x.half(), grid)
    assert torch.equal(both, grid_sample(x.half().float(), grid).half())
    assert torch.equal(grid_sample(x, grid.half()), grid_sample(x, grid.half().float()))


def test_2307_an_expanded_image_and_gradient_are_taken(device):
    x = noise(1, 1, 8, 8).to(device).requires_grad_()
    grid = noise(2, 1, 1, 2, seed=1).to(device).clamp(-0.9, 0.9).requires_grad_()
    y = grid_sample(x.expand(2, 1, 8, 8), grid)
    grads = torch.autograd.grad(y.sum(), (x, grid), retain_graph=True)
    assert_close(grads, torch.autograd.grad(y, (x, grid), torch.ones_like(y).contiguous()))


def test_vision_9658_a_half_rotation_of_1024_pixels_is_finite_and_not_in_blocks(place: Place):
    x = noise(1, 1, 1024, 1024).half()
    c, s = math.cos(math.pi / 6), math.sin(math.pi / 6)
    theta = torch.tensor([[[c, -s, 0], [s, c, 0]]]).half()
    size = (12, 16) if place.interpreted else (1024, 1024)
    grid = F.affine_grid(theta.double(), (1, 1, *size), align_corners=False)
    exact = F.grid_sample(x.double(), grid, align_corners=False)
    got = place.sample(x.to(place.device), theta.to(place.device), size).cpu()
    # A float32 coordinate of 1,024 pixels is right to 1e-4, where neighbours differ by up to 10.
    assert_close(got.double(), exact, rtol=HALF_ULP, atol=2e-3)


@pytest.mark.parametrize(
    ("image", "grid"),
    [
        ((0, 2, 3, 4), (0, 2, 5, 2)),
        ((0, 2, 3, 4), (1, 0, 5, 2)),
        ((1, 2, 3, 4), (0, 2, 5, 2)),
        ((1, 2, 3, 4), (1, 0, 5, 2)),
        ((2, 2, 3, 4), (2, 3, 0, 2)),
        ((1, 2, 2, 3, 4), (1, 2, 0, 5, 3)),
    ],
)
def test_kornia_4354_an_empty_batch_or_canvas_is_an_empty_output(device, image, grid):
    x = torch.ones(image, device=device).requires_grad_()
    at = torch.zeros(grid, device=device).requires_grad_()
    y = grid_sample(x, at)
    n = 0 if 0 in (image[0], grid[0]) else image[0]
    assert y.shape == (n, 2, *grid[1:-1])
    for grad, like in zip(torch.autograd.grad(y.sum(), (x, at)), (x, at), strict=True):
        assert torch.equal(grad, torch.zeros_like(like))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("function", ["spatial_transform", "grid_sample", "flow_warp"])
def test_flaggems_bicubic_is_not_bilinear(device, function, ndim):
    """Of one pixel, one and a half beside it: -3/32 of it; bilinear has none."""
    x = torch.zeros(1, 1, *(5,) * ndim, device=device)
    x[(..., *(2,) * ndim)] = 32.0
    shift = 3 / 5  # normalised, of 1.5 pixels

    def read(mode):
        if function == "flow_warp":
            flow = torch.zeros(1, ndim, *x.shape[2:], device=device)
            flow[:, 0] = 1.5
            return flow_warp(x, flow, mode)[(0, 0, *(2,) * ndim)]
        if function == "grid_sample":
            at = torch.zeros(1, *(1,) * ndim, ndim, device=device)
            at[..., 0] = shift
            return grid_sample(x, at, mode).flatten()
        theta = torch.eye(ndim, ndim + 1, device=device)
        theta[0, -1] = shift
        return spatial_transform(x, theta, 1, mode=mode).flatten()

    assert_close(read("bicubic"), torch.full_like(read("bicubic"), -3), rtol=0, atol=1e-4)
    assert_close(read("bilinear"), torch.zeros_like(read("bilinear")), rtol=0, atol=1e-4)


@pytest.mark.parametrize("align_corners", [False, True])
def test_voxelmorph_and_aster_nothing_is_half_a_pixel_off(device, align_corners):
    """A flow of 0 and every identity return the image, whichever the corners are."""
    x = noise(1, 2, 6, 9).to(device)
    spline = triton_stn.ThinPlateSpline(3, 4)
    for transform in ("affine", "projective", spline):
        theta = triton_stn.transforms.resolve(transform).identity().to(device)
        got = spatial_transform(x, theta, transform=transform, align_corners=align_corners)
        assert_close(got, x, rtol=0, atol=1e-5)
    flow = torch.zeros(1, 2, 6, 9, device=device)
    assert_close(flow_warp(x, flow, align_corners=align_corners), x, rtol=0, atol=1e-5)


def test_torchvision_perspective_takes_the_pixels_that_it_names_to_one_another(device):
    """Its coefficients map pixels' indices, and it applies them to their centres, half a pixel on:
    between those, its picture is that of another matrix."""
    starts, ends = [(0, 0), (8, 1), (7, 6), (1, 5)], [(1, 1), (7, 0), (8, 6), (0, 5)]
    rows, right = [], []
    for (x, y), (u, v) in zip(starts, ends, strict=True):  # (x, y) of the output reads (u, v)
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    rows, right = (torch.tensor(t, dtype=torch.float64) for t in (rows, right))
    matrix = torch.cat((torch.linalg.solve(rows, right), right.new_ones(1))).view(3, 3)

    image = noise(1, 1, 7, 9).double()

    def picture(matrix):
        theta = geometry.from_pixel_matrix(matrix, (7, 9)).to(device)
        return spatial_transform(image.to(device), theta, transform="projective").cpu()

    got = picture(matrix)
    for (x, y), (u, v) in zip(starts, ends, strict=True):
        assert_close(got[..., y, x], image[..., v, u])

    # torchvision's own grid
    ys, xs = torch.meshgrid(torch.arange(7) + 0.5, torch.arange(9) + 0.5, indexing="ij")
    at = torch.stack((xs, ys, torch.ones_like(xs)), -1).double() @ matrix.T
    grid = at[..., :2] / at[..., 2:] / torch.tensor([4.5, 3.5]) - 1
    half = torch.tensor([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]], dtype=torch.float64)
    theirs = F.grid_sample(image, grid[None], align_corners=False)
    assert_close(picture(half.inverse() @ matrix @ half), theirs)
