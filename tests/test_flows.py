"""Flows composed, integrated, in view and folded, against matrices and against warping twice."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import Place, check_refusal
from torch.testing import assert_close

import triton_stn
from triton_stn import flow_warp
from triton_stn.geometry import compose_flows, flow_inside_mask, inside_mask, jacobian_determinant
from triton_stn.nn import integrate_velocity

SIZES = [(7, 9), (5, 4, 6)]
of_images_and_volumes = pytest.mark.parametrize("size", SIZES, ids=["2-D", "3-D"])


@pytest.fixture(autouse=True)
def pytorch_path():
    """Where a test asks for no place: the interpreted kernels are slow."""
    with triton_stn.use_backend("torch"):
        yield


def noise(*shape, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)


def pixels(size, device="cpu"):
    """(1, ndim, *size): where each pixel is, x first."""
    axes = [torch.arange(n, dtype=torch.float64, device=device) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1])[None]


def from_middle(size, device="cpu"):
    at = pixels(size, device)
    return at - at.flatten(2).mean(2).view(1, -1, *[1] * len(size))


def linear(matrix, size):
    """The flow that takes p, from the middle, to matrix @ p."""
    at = from_middle(size, matrix.device)
    return torch.einsum("ij,nj...->ni...", matrix, at) - at


def shrinking(ndim, seed=0, device="cpu"):
    """It leads no pixel out of the picture, and does not commute."""
    return (0.6 * torch.eye(ndim) + noise(ndim, ndim, seed=seed) / 20).to(device)


def waves(size, length, seed=0, device="cpu"):
    """Smooth fields of unit amplitude that vanish at the edge."""
    at, ndim = pixels(size, device), len(size)
    phase = noise(1, ndim, *[1] * ndim, seed=seed, device=device)
    last = torch.tensor(size[::-1], device=device).view(1, -1, *[1] * ndim) - 1
    window = torch.sin(math.pi * at / last).prod(1, keepdim=True).clamp(min=0)
    return window * torch.sin(at.roll(1, 1) / length + phase)


# compose_flows


@of_images_and_volumes
def test_constant_flows_add_up(place: Place, device, size):
    a, b = (noise(2, len(size), *[1] * len(size), seed=s, device=device) for s in (0, 1))
    a, b = a.expand(-1, -1, *size), b.expand(-1, -1, *size)
    assert_close(compose_flows(a, b), a + b, rtol=0, atol=1e-14)


@of_images_and_volumes
def test_linear_flows_multiply(place: Place, device, size):
    a, b = (shrinking(len(size), seed, device) for seed in (0, 1))
    a = 3 * a  # the second shrinks, so the first is asked inside alone
    assert_close(compose_flows(linear(a, size), linear(b, size)), linear(a @ b, size))
    assert (a @ b - b @ a).abs().max() > 1e-3


def test_warping_twice_by_whole_pixels_is_warping_once(place: Place, device):
    x = noise(2, 3, *SIZES[0], device=device)
    a, b = (
        torch.randint(-2, 3, (2, 2, *SIZES[0]), generator=torch.Generator().manual_seed(s)).to(x)
        for s in (0, 1)
    )
    for padding_mode in ("border", "zeros"):
        twice = flow_warp(flow_warp(x, a, padding_mode=padding_mode), b, padding_mode=padding_mode)
        once = flow_warp(x, compose_flows(a, b), padding_mode=padding_mode)
        inside = flow_inside_mask(b)[:, None]  # else the second warp has padding to show
        assert_close(once.where(inside, 0), twice.where(inside, 0))


@pytest.mark.parametrize("size", [(96, 80), (32, 28, 36)], ids=["2-D", "3-D"])
def test_warping_twice_is_warping_once_to_interpolation_error(size):
    x = waves(size, 7.0, seed=2)[:, :1]
    a, b = 2 * waves(size, 8.0), 2 * waves(size, 9.0, seed=1)
    twice = flow_warp(flow_warp(x, a), b)
    # The image is interpolated once more: h^2 / 8 of its curvature, an eighth of 1 / 7^2 an axis.
    bound = 3 * len(size) / 8 / 7**2
    assert (flow_warp(x, compose_flows(a, b)) - twice).abs().max() < bound
    assert (flow_warp(x, compose_flows(b, a)) - twice).abs().max() > 2 * bound


def test_a_flow_without_motion_composes_to_the_other():
    flow = noise(2, 2, 5, 6)
    assert_close(compose_flows(flow, torch.zeros_like(flow)), flow)
    assert torch.equal(compose_flows(torch.zeros_like(flow), flow), flow)


def test_the_second_flow_has_its_own_size_and_either_may_be_one_for_all():
    first, second = noise(1, 2, 5, 6), noise(3, 2, 4, 9, seed=1)
    each = [compose_flows(first, one[None]) for one in second]
    assert_close(compose_flows(first, second), torch.cat(each))
    assert compose_flows(noise(3, 2, 5, 6), second[:1]).shape == (3, 2, 4, 9)


# integrate_velocity


@of_images_and_volumes
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_constant_velocity_is_its_flow(place: Place, device, size, steps):
    velocity = noise(2, len(size), *[1] * len(size), device=device).expand(-1, -1, *size)
    assert_close(integrate_velocity(velocity, steps), velocity, rtol=0, atol=1e-13)


@of_images_and_volumes
def test_a_linear_velocity_gives_the_exponential_of_its_matrix(size):
    ndim = len(size)
    rate = 2 * (shrinking(ndim) - torch.eye(ndim))  # inwards
    velocity = linear(rate + torch.eye(ndim), size)
    got = integrate_velocity(velocity, 6)
    # Euler's first step is all that is not exact.
    powers = torch.linalg.matrix_power(torch.eye(ndim) + rate / 64, 64)
    assert_close(got, linear(powers, size))
    exact = linear(torch.matrix_exp(rate), size)
    errors = [(integrate_velocity(velocity, s) - exact).abs().max() for s in (6, 7, 8)]
    assert errors[0] < 0.05
    assert errors[1] / errors[0] == pytest.approx(0.5, abs=0.05)
    assert errors[2] / errors[1] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("size", [(48, 40), (24, 20, 28)], ids=["2-D", "3-D"])
def test_the_flow_of_the_opposite_velocity_undoes_it(size):
    velocity = 3 * waves(size, 6.0)
    there, back = integrate_velocity(velocity), integrate_velocity(-velocity)
    assert there.abs().max() > 1.5
    assert compose_flows(there, back).abs().max() < 0.1
    assert compose_flows(back, there).abs().max() < 0.1
    assert (there + back).abs().max() > 0.3  # which is no inverse


def test_what_folds_as_a_flow_does_not_as_a_velocity():
    velocity = 6 * waves((48, 40), 3.0)
    for differences in ("central", "corners"):
        assert jacobian_determinant(velocity, differences).min() < -0.5
        assert jacobian_determinant(integrate_velocity(velocity), differences).min() > 0


@of_images_and_volumes
def test_gradcheck_of_composing_and_integrating(size):
    size = [n - 1 for n in size]
    a, b = (0.8 * noise(1, len(size), *size, seed=s) for s in (0, 1))
    arguments = (a.requires_grad_(), b.requires_grad_())
    assert torch.autograd.gradcheck(compose_flows, arguments, fast_mode=True)
    assert torch.autograd.gradcheck(lambda v: integrate_velocity(v, 3), (a,), fast_mode=True)


@of_images_and_volumes
def test_both_backends_integrate_alike(triton_device, size):
    velocity = noise(2, len(size), *size, device=triton_device).requires_grad_()
    up = noise(*velocity.shape, seed=1, device=triton_device)
    flow = integrate_velocity(velocity, 3)
    (grad,) = torch.autograd.grad(flow, velocity, up)
    with triton_stn.use_backend("torch"):
        expected = integrate_velocity(velocity, 3)
        assert_close(flow, expected)
        assert_close(grad, torch.autograd.grad(expected, velocity, up)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_flows_of_halves_are_float32(dtype):
    half = noise(1, 2, 5, 6).to(dtype)
    assert torch.equal(integrate_velocity(half), integrate_velocity(half.float()))
    assert torch.equal(compose_flows(half, half), compose_flows(half.float(), half.float()))
    assert torch.equal(jacobian_determinant(half), jacobian_determinant(half.float()))
    assert compose_flows(half, half.double()).dtype == torch.float64


def test_strides_do_not_matter():
    flow = noise(2, 6, 5, 2).movedim(-1, 1)
    whole = flow.contiguous()
    for call in (integrate_velocity, jacobian_determinant, flow_inside_mask):
        assert torch.equal(call(flow), call(whole))


def test_a_compiler_and_vmap_take_them():
    def everything(flow):
        flow = integrate_velocity(flow, 2)
        inside = flow_inside_mask(flow)
        return jacobian_determinant(flow).where(inside, 0), jacobian_determinant(flow, "corners")

    flows = noise(3, 1, 2, 5, 6)
    compiled = torch.compile(everything, backend="eager", fullgraph=True)
    assert_close(compiled(flows[0]), everything(flows[0]))
    each = [everything(flow) for flow in flows]
    expected = tuple(torch.stack(results) for results in zip(*each, strict=True))
    assert_close(torch.func.vmap(everything)(flows), expected)


# flow_inside_mask


@of_images_and_volumes
@pytest.mark.parametrize("other", [False, True], ids=["its size", "another size"])
def test_inside_is_where_the_nearest_pixel_is_one_of_the_image(size, other):
    flow = 2 * noise(2, len(size), *size)
    input_size = tuple(n - 1 for n in size) if other else None
    ones = torch.ones(2, 1, *(input_size or size), dtype=torch.float64)
    expected = flow_warp(ones, flow, mode="nearest")[:, 0]
    assert torch.equal(flow_inside_mask(flow, input_size), expected == 1)
    assert 0.1 < expected.mean() < 0.9  # or nothing was tested


def test_the_mask_of_a_linear_flow_is_that_of_its_theta():
    size, matrix = SIZES[0], torch.tensor([[1.2, -0.4], [0.3, 0.9]]).double()
    scale = torch.tensor(size[::-1], dtype=torch.float64)
    theta = torch.cat((matrix * scale / scale[:, None], torch.zeros(2, 1)), 1)
    expected = inside_mask(theta, size)
    assert torch.equal(flow_inside_mask(linear(matrix, size))[0], expected)
    assert 0.1 < expected.double().mean() < 0.9


def test_the_outer_edge_is_inside_and_nan_is_not():
    flow = torch.zeros(1, 2, 1, 3)
    flow[0, 0, 0] = torch.tensor([-0.5, torch.nan, 0.5])
    assert flow_inside_mask(flow).tolist() == [[[True, False, True]]]
    assert not flow_inside_mask(flow * 1.01).any()


# jacobian_determinant


@of_images_and_volumes
@pytest.mark.parametrize("differences", ["central", "corners"])
def test_the_determinant_of_a_linear_flow_is_its_matrix_s(size, differences):
    matrix = noise(len(size), len(size))
    got = jacobian_determinant(linear(matrix, size), differences)
    whole, cells = size, tuple(n - 1 for n in size)
    shape = (1, *whole) if differences == "central" else (1, 2 ** len(size), *cells)
    assert_close(got, torch.linalg.det(matrix).expand(shape))


@of_images_and_volumes
def test_central_differences_are_torch_gradient_s(size):
    ndim = len(size)
    flow = noise(2, ndim, *size)
    columns = torch.gradient(flow, dim=list(range(ndim + 1, 1, -1)))
    jacobian = torch.stack(columns, -1).movedim(1, -2) + torch.eye(ndim)
    assert_close(jacobian_determinant(flow), torch.linalg.det(jacobian))


@of_images_and_volumes
def test_corners_are_the_interpolated_flow_s_derivatives(size):
    """Of each cell at each corner, read just inside the cell by `flow_warp`."""
    ndim, step = len(size), 1e-4
    flow = noise(1, ndim, *size)
    cells = tuple(n - 1 for n in size)
    got = jacobian_determinant(flow, "corners")
    for index in range(2**ndim):
        corner = [index >> k & 1 for k in range(ndim)]  # x first
        offset = [one - step if one else step for one in corner]

        def read(shift):
            at = torch.tensor(shift, dtype=torch.float64).view(1, -1, *[1] * ndim)
            return flow_warp(flow, at.expand(1, ndim, *cells))

        moved = [[o + step * (k == axis) * (1 - 2 * corner[k]) / 2 for k, o in enumerate(offset)]
                 for axis in range(ndim)]  # fmt: skip
        columns = [
            (read(shift) - read(offset)) / (step * (0.5 - corner[axis]))
            for axis, shift in enumerate(moved)
        ]
        jacobian = torch.stack(columns, -1).movedim(1, -2) + torch.eye(ndim)
        place = sum(one << (ndim - 1 - k) for k, one in enumerate(reversed(corner)))
        assert_close(got[:, place], torch.linalg.det(jacobian), rtol=0, atol=0.02)


def test_between_the_corners_of_a_cell_nothing_is_smaller():
    flow = noise(1, 2, *SIZES[0])
    cells = tuple(n - 1 for n in SIZES[0])
    smallest, largest = jacobian_determinant(flow, "corners").aminmax(dim=1)

    def inside(at):
        return flow_warp(flow, at.view(1, 2, 1, 1).expand(1, 2, *cells)) + at.view(1, 2, 1, 1)

    for seed in range(5):
        at = torch.rand(2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        x, y = torch.func.jacfwd(inside)(at).unbind(-1)  # each (1, 2, H - 1, W - 1)
        determinant = x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0]
        assert (determinant > smallest - 1e-9).all() and (determinant < largest + 1e-9).all()


def test_a_fold_that_alternates_is_seen_at_the_corners_alone():
    flow = torch.zeros(1, 2, 4, 6)
    flow[0, 0] = torch.tensor([0.0, 0.0, 1.5, 0.0, 0.0, 0.0])
    assert (jacobian_determinant(flow)[..., 1:-1] > 0).all()
    folded = (jacobian_determinant(flow, "corners") <= 0).any(1)
    assert folded[0, 0].tolist() == [False, False, True, False, False]


def test_gradcheck_of_the_determinant():
    for differences in ("central", "corners"):
        flow = noise(1, 3, 2, 3, 2).requires_grad_()
        assert torch.autograd.gradcheck(lambda f, d=differences: jacobian_determinant(f, d), flow)


# Wrong arguments

FLOW = torch.zeros(1, 2, 4, 4)
WRONG = {
    "first and second": (
        lambda: compose_flows(FLOW, torch.zeros(1, 3, 4, 4, 4)),
        ValueError,
        "got (1, 2, 4, 4) and (1, 3, 4, 4, 4)",
    ),
    "second": (lambda: compose_flows(FLOW, None), TypeError, "torch.Tensor, got NoneType"),
    "velocity": (
        lambda: integrate_velocity(FLOW[:, :1]),
        ValueError,
        "(N, 2, H, W) or (N, 3, D, H, W), got (1, 1, 4, 4)",
    ),
    "steps": (lambda: integrate_velocity(FLOW, -1), ValueError, "at least 0, got -1"),
    "input_size": (lambda: flow_inside_mask(FLOW, (1, 2, 3)), ValueError, "2 ints"),
    "flow": (lambda: jacobian_determinant(FLOW[:, :, :1]), ValueError, "W > 1"),
    "differences": (
        lambda: jacobian_determinant(FLOW, "forward"),
        ValueError,
        "'central', 'corners', got 'forward'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named(name):
    check_refusal(name, *WRONG[name])


def test_batches_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match=r"same .* batch size, got \(2, 2, 4, 4\) and \(3,"):
        compose_flows(FLOW.expand(2, -1, -1, -1), FLOW.expand(3, -1, -1, -1))
