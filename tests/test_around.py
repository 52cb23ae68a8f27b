"""What stands around a call and changes its tensors unseen: lazy signs, checkpoints, hooks."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import triton_stn
from triton_stn import geometry, grid_sample, spatial_transform
from triton_stn.kernels import configs

THETA = torch.tensor([[[0.9, 0.1, 0.05], [-0.1, 1.1, 0.0]]])
CLOSE = dict(rtol=1e-4, atol=1e-4)


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def negated(*shape, device):
    """A tensor whose memory has the other sign."""
    made = noise(*shape, dtype=torch.complex64).to(device).conj().imag
    assert made.is_neg()
    return made


@pytest.mark.parametrize("what", ["image", "theta", "grid", "fill_value", "splat", "spline"])
def test_a_lazy_negation_is_seen(what, device):
    image, theta = noise(2, 3, 5, 6).to(device), THETA.to(device)

    def run(tensor):
        if what == "image":
            return spatial_transform(tensor(2, 3, 5, 6), theta)
        if what == "theta":
            return spatial_transform(image, tensor(2, 2, 3))
        if what == "grid":
            return grid_sample(image, tensor(2, 4, 4, 2))
        if what == "fill_value":
            return spatial_transform(image, 2 * theta, fill_value=tensor(3))
        if what == "splat":
            return triton_stn.splat(tensor(2, 3, 5, 6), theta)
        return spatial_transform(image, tensor(2, 9, 2), transform=triton_stn.ThinPlateSpline(3, 3))

    for _ in range(2):  # the second may be kept
        got = run(lambda *shape: negated(*shape, device=device))
        assert_close(got, run(lambda *shape: negated(*shape, device=device).resolve_neg()))


def test_a_lazy_negation_of_the_gradient_is_seen(device):
    image = noise(1, 1, 4, 4).to(device).requires_grad_()
    theta = THETA.to(device).requires_grad_()
    grad = negated(1, 1, 4, 4, device=device)
    for _ in range(2):
        output = spatial_transform(image, theta)
        got = torch.autograd.grad(output, (image, theta), grad, retain_graph=True)
        assert_close(got, torch.autograd.grad(output, (image, theta), grad.resolve_neg()))


@pytest.mark.parametrize("size", [4, 3])
def test_the_first_call_of_its_kind_may_be_under_a_checkpoint(size, device):
    triton_stn.calls.forget()
    image = noise(2, 3, 5, 5).to(device).requires_grad_()
    theta = THETA.expand(2, 2, 3).to(device).requires_grad_()

    def run(*arguments):
        return spatial_transform(*arguments, size).square().sum()

    kept = torch.autograd.grad(checkpoint(run, image, theta, use_reentrant=False), (image, theta))
    assert_close(kept, torch.autograd.grad(run(image, theta), (image, theta)))


def test_hooks_may_give_saved_tensors_another_layout(device):
    image = noise(2, 3, 5, 5).to(device).contiguous(memory_format=torch.channels_last)
    theta = (THETA + 0.2 * noise(2, 2, 3)).to(device)
    image, theta = image.requires_grad_(), theta.requires_grad_()
    grad = noise(2, 3, 4, 4, seed=1).to(device)

    def pack(tensor):
        return tensor.detach().clone(memory_format=torch.contiguous_format)

    for _ in range(2):
        plain = torch.autograd.grad(spatial_transform(image, theta, 4), (image, theta), grad)
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            output = spatial_transform(image, theta, 4)
        assert_close(torch.autograd.grad(output, (image, theta), grad), plain, **CLOSE)


@pytest.mark.parametrize("shape", [(2, 9, 1, 2), (2, 3, 9, 1, 2), (2, 9, 1, 1, 3), (2, 3, 4, 1, 3)])
def test_a_column_of_points_is_read_as_a_row_is(shape, device):
    ndim = shape[-1]
    # (2, 3, 4, 1, 3) is of a volume, (2, 3, 9, 1, 2) three grids of an image.
    image = noise(2, 3, *(4, 6, 7)[-ndim:]).to(device).requires_grad_()
    grid = noise(*shape, seed=1).tanh().to(device).requires_grad_()
    row = grid.transpose(-2, -3)
    got, expected = grid_sample(image, grid), grid_sample(image, row)
    assert_close(got, expected.transpose(-1, -2))
    grad = noise(*got.shape, seed=2).to(device)
    grads = torch.autograd.grad(got, (image, grid), grad)
    assert_close(grads, torch.autograd.grad(expected, (image, grid), grad.transpose(-1, -2)))
    assert got.is_contiguous() and grads[1].is_contiguous()


@pytest.mark.parametrize("size", [(600_000, 1, 1), (600_000, 70, 3), (1, 10_000_000, 1)])
def test_an_output_of_any_size_is_cut(size):
    """More slices or rows than a launch may have programs: it used to look for ever."""
    for run in (1, configs.RUN_BYTES // 4):
        cut = configs.forward(configs.Problem(1, 32, size, run, 1))
        assert max(cut.grid[1:]) <= configs.MAX_GRID


def test_nearest_reads_the_pixels_of_a_line_of_millions(device):
    width = 6_000_001
    line = torch.arange(width, dtype=torch.float32, device=device).view(1, 1, 1, width)
    pixels = torch.arange(5_000_000, 5_000_008, dtype=torch.float64)
    x = (2 * pixels / (width - 1) - 1).float().to(device)
    grid = torch.stack((x, torch.zeros_like(x)), -1).view(1, 1, -1, 2)
    got = grid_sample(line, grid, "nearest", align_corners=True).flatten().double().cpu()
    place = (x.cpu().double() + 1) / 2 * (width - 1)
    assert (got - place).abs().max() <= 0.75  # the coordinate itself is a half rounded
    assert len(got.unique()) == 8


def test_a_shift_of_millions_of_pixels_is_as_exact_as_its_number(device):
    width = 12_000_001
    line = torch.arange(width, dtype=torch.float32, device=device).view(1, 1, 1, width)
    x = torch.linspace(-0.9, 0.9, 64, dtype=torch.float64).float()
    theta = torch.tensor([[0.0, 0, 0], [0, 1, 0]]).repeat(64, 1, 1)
    theta[:, 0, 2] = x
    got = spatial_transform(line, theta.to(device), 1, align_corners=True).flatten().double().cpu()
    place = (x.double() + 1) / 2 * (width - 1)
    assert (got - place).abs().max() <= 1.0  # a float32 of 12 million is a whole number


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


@pytest.mark.parametrize("exported, other", [(28, 40), (64, 20)])
def test_an_exported_module_takes_sizes_that_speed_would_tell_apart(exported, other):
    module = triton_stn.nn.SpatialTransformer(Mean(), 1, output_size=28).eval()
    sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=2)}
    sizes |= {3: torch.export.Dim("w", min=2)}
    with triton_stn.use_backend("torch"):
        image = noise(2, 1, exported, exported)
        program = torch.export.export(module, (image,), dynamic_shapes=(sizes,))
        image = noise(3, 1, other, other)
        assert_close(program.module()(image), module(image))


@pytest.mark.parametrize("grads", [False, True])
def test_jit_trace_keeps_a_module_whose_parameters_learn(grads):
    module = triton_stn.nn.SpatialTransformer(nn.Flatten(), 36)
    image = noise(2, 1, 6, 6).requires_grad_(grads)
    with triton_stn.use_backend("torch"):
        traced = torch.jit.trace(module, (image,))
        other = noise(2, 1, 6, 6, seed=1)
        assert_close(traced(other), module(other))
        traced(other).sum().backward()
    assert module.head.bias.grad.abs().max() > 0


def test_the_points_of_a_spline_are_mapped_under_a_checkpoint():
    spline = triton_stn.ThinPlateSpline(3, 3)
    theta = (spline.identity(1) + 0.05 * noise(1, 9, 2)).requires_grad_()
    points = torch.tensor([[[3.0, 4.0], [10.0, 2.0]]])

    def run(theta):
        return geometry.map_points(theta, points, (12, 16), transform=spline).square().sum()

    kept = torch.autograd.grad(checkpoint(run, theta, use_reentrant=False), theta)
    assert_close(kept, torch.autograd.grad(run(theta), theta))


def test_the_slope_of_a_spline_is_its_derivative():
    spline = triton_stn.ThinPlateSpline(3, 3)
    theta = spline.identity(2).double() + 0.1 * noise(2, 9, 2, dtype=torch.float64)
    points = torch.cat((noise(2, 4, 2, dtype=torch.float64), spline.points.expand(2, 9, 2)), 1)
    assert_close(
        spline._tangent(theta, points), super(type(spline), spline)._tangent(theta, points)
    )


def test_a_spline_is_pickled_without_what_it_keeps():
    spline = triton_stn.ThinPlateSpline(4, 4)
    small = len(pickle.dumps(spline))
    spatial_transform(noise(1, 1, 64, 64), spline.identity(1), transform=spline)
    assert len(pickle.dumps(spline)) == small
    for other in (pickle.loads(pickle.dumps(spline)), copy.deepcopy(spline)):
        assert other == spline
        assert torch.equal(*(each.grid(spline.identity(), (5, 6)) for each in (other, spline)))


def test_a_module_made_without_memory_starts_as_another():
    def make():
        return (
            triton_stn.nn.SpatialTransformer(
                nn.Flatten(), 4, num_transforms=4, theta=triton_stn.nn.tiles(2, 2), fill_value=fill
            ),
            triton_stn.nn.SpatialTransformer(nn.Flatten(), 4, triton_stn.ThinPlateSpline(3, 3)),
            triton_stn.augment.RandomTransform(elastic=1.0),
        )

    fill = torch.tensor([5.0])
    with torch.device("meta"):
        made = make()
    for module, other in zip(made, make(), strict=True):
        module.to_empty(device="cpu")
        assert module.transform == other.transform
        if isinstance(module, triton_stn.nn.SpatialTransformer):
            module.reset_parameters()
            assert torch.equal(module.head.bias, other.head.bias)
    assert torch.equal(made[0].fill_value, fill)


@pytest.mark.parametrize("kind", [triton_stn.nn.SpatialTransformer, None])
def test_what_is_given_as_tensors_goes_where_the_module_goes(kind):
    options = dict(fill_value=torch.ones(3), normalize=(torch.ones(3), torch.ones(3)))
    if kind is None:
        module = triton_stn.augment.RandomTransform(**options)
    else:
        module = kind(nn.Flatten(), 4, **options)
    module.to("meta")
    assert module.fill_value.is_meta and module.mean.is_meta and module.std.is_meta
    assert not any(name.endswith(("fill_value", "mean", "std")) for name in module.state_dict())


def test_a_start_that_is_a_parameter_is_none_of_the_modules():
    start = nn.Parameter(torch.eye(2, 3))
    module = triton_stn.nn.SpatialTransformer(nn.Flatten(), 4, theta=start)
    assert [name for name, _ in module.named_parameters()] == ["head.weight", "head.bias"]


def test_identity_and_tiles_are_compiled():
    for make in (lambda: triton_stn.Affine().identity(2), lambda: triton_stn.nn.tiles(2, 2)):
        assert torch.equal(torch.compile(make, fullgraph=True, backend="eager")(), make())
