"""Volumes: value and both gradients against float64 PyTorch, exactness, windows, bad numbers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import Place
from oracle import MARGIN, assert_right, run, same, slopes_agree

from triton_stn.backends.layout import Layout
from triton_stn.backends.plans import Sampling, Wanted, plan_backward, plan_forward

PADDINGS = ["zeros", "border", "reflection"]
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.float16]
LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]
#          K  C  D  H  W  D_out H_out W_out; K = 0: one (3, 4) for the batch
SHAPES = [
    (1, 1, 1, 1, 1, 1, 1, 1),
    (1, 3, 3, 4, 5, 3, 4, 5),
    (0, 1, 3, 4, 5, 4, 3, 6),
    (1, 9, 4, 2, 3, 2, 3, 3),
    (2, 3, 4, 3, 2, 2, 4, 3),
    (3, 17, 1, 3, 4, 1, 4, 3),
    (1, 1, 9, 5, 6, 8, 5, 5),
]
guarded = pytest.mark.usefixtures("guarded")
pytestmark = pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid:UserWarning")


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near_identity(*leading, seed=3, spread=0.25):
    """θ off the lattice."""
    eye = torch.eye(3, 4, dtype=torch.float64)
    return eye + spread * noise(*leading, 3, 4, seed=seed).clamp(-1.5, 1.5)


def pytorch(input, theta, size, mode="bilinear", padding_mode="zeros", align_corners=False):
    """``F.affine_grid`` + ``F.grid_sample`` for every shape of theta, in the dtype of input."""
    n = len(input)
    k = theta.shape[1] if theta.ndim == 4 else 1
    maps = theta.to(input.dtype).expand(n, 3, 4) if theta.ndim == 2 else theta.to(input.dtype)
    grid = F.affine_grid(maps.reshape(n * k, 3, 4), (n * k, 1, *size), align_corners)
    y = F.grid_sample(input.repeat_interleave(k, 0), grid, mode, padding_mode, align_corners)
    return y.unflatten(0, (n, k)) if theta.ndim == 4 else y


def smooth(theta, shape, size, align_corners, step=0.5):
    """1 where no source coordinate is near a multiple of ``step``, else 0: (..., *size)."""
    maps = theta.double().reshape(-1, 3, 4)
    grid = F.affine_grid(maps, (len(maps), 1, *size), align_corners)
    extent = torch.tensor(shape[::-1], dtype=torch.float64)
    voxels = (grid * (extent - 1 if align_corners else extent) + extent - 1) / 2
    distance = (voxels / step - (voxels / step).round()).abs() * step
    fixed = (extent == 1) & align_corners  # no θ moves it off 0, so it has no kinks
    keep = distance.masked_fill(fixed, torch.inf).amin(-1) > MARGIN
    return keep.double().reshape(*theta.shape[:-2], *size)


def check(place, input, theta, size, mode="bilinear", padding_mode="zeros", align_corners=False):
    """Value and gradients are as near to float64 as `oracle.assert_right` demands."""
    options = dict(mode=mode, padding_mode=padding_mode, align_corners=align_corners)
    leading = theta.shape[:-2] or input.shape[:1]
    keep = smooth(theta, input.shape[2:], size, align_corners).unsqueeze(-4)
    assert keep.mean() > 0.7
    grad = (keep * noise(*leading, input.shape[1], *size, seed=9)).to(input.dtype)
    exact, rival = (
        run(pytorch, input.to(dtype), theta.to(dtype), size, grad, **options)
        for dtype in (torch.float64, torch.float32)
    )
    tensors = (t.to(place.device) for t in (input, theta))
    got = run(place.sample, *tensors, size, grad.to(place.device), **options)
    assert got.y.dtype == got.grad_input.dtype == input.dtype
    assert got.grad_theta.dtype == theta.dtype
    assert_right(got, exact, rival)
    return got


def cases():
    """Every shape under every padding; corners, dtypes and layouts take turns."""
    for i, (shape, padding_mode) in enumerate(itertools.product(SHAPES, PADDINGS)):
        yield shape, padding_mode, bool(i // 2 % 2), DTYPES[(i + i // 4) % 4], LAYOUTS[i // 3 % 2]


@pytest.mark.thinned
@guarded
@pytest.mark.parametrize("shape, padding_mode, align_corners, dtype, layout", list(cases()))
def test_value_and_gradients_are_right(
    place: Place, shape, padding_mode, align_corners, dtype, layout
):
    k, c, *sides = shape
    leading = ((), (2,), (2, k))[min(k, 2)]
    theta = near_identity(*leading).to(torch.promote_types(dtype, torch.float32))
    input = noise(2, c, *sides[:3]).to(dtype).contiguous(memory_format=layout)
    options = dict(padding_mode=padding_mode, align_corners=align_corners)
    got = check(place, input, theta, tuple(sides[3:]), **options)
    y = got.y.flatten(0, 1) if k > 1 else got.y
    assert y.is_contiguous(memory_format=layout)


@guarded
@pytest.mark.thinned
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("align_corners", [False, True])
def test_nearest_reads_what_pytorch_reads_away_from_ties(place: Place, padding_mode, align_corners):
    size, theta = (3, 4, 5), near_identity(2).float()
    input = noise(2, 9, 4, 3, 5).float()
    if align_corners:
        input = input.contiguous(memory_format=torch.channels_last_3d)
    options = dict(mode="nearest", padding_mode=padding_mode, align_corners=align_corners)
    keep = smooth(theta, input.shape[2:], size, align_corners).unsqueeze(1).float()
    grad = keep * noise(2, 9, *size, seed=4).float()
    exact = run(pytorch, input, theta, size, grad, **options)
    tensors = (t.to(place.device) for t in (input, theta))
    got = run(place.sample, *tensors, size, grad.to(place.device), **options)
    assert torch.equal(got.y.cpu() * keep, exact.y * keep)
    torch.testing.assert_close(got.grad_input.cpu(), exact.grad_input)
    assert (got.grad_theta == 0).all()


def test_nearest_rounds_halves_to_even(kernels: Place):
    input = torch.arange(8.0).view(1, 1, 8, 1, 1).to(kernels.device)
    theta = torch.eye(3, 4)
    theta[2, 3] = 1 / 8  # half a voxel
    y = kernels.sample(input, theta.to(kernels.device), mode="nearest")
    assert y.flatten().tolist() == [0, 2, 2, 4, 4, 6, 6, 0]


@pytest.mark.parametrize(
    "padding_mode, scale", [("zeros", 1), ("zeros", 1 / 30), ("border", 1), ("reflection", 1)]
)
def test_gradients_match_finite_differences(place: Place, padding_mode, scale):
    theta = (near_identity(1, seed=8) * scale).to(place.device).requires_grad_()
    input = noise(1, 1, 2, 2, 2).to(place.device).requires_grad_()
    options = dict(padding_mode=padding_mode, align_corners=scale < 1)
    assert slopes_agree(place, lambda x, t: place.sample(x, t, (1, 2, 1), **options), input, theta)


TURNS = {
    "identity": ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], lambda v: v),
    "flip_x": ([[-1, 0, 0], [0, 1, 0], [0, 0, 1]], lambda v: v.flip(-1)),
    "flip_yz": ([[1, 0, 0], [0, -1, 0], [0, 0, -1]], lambda v: v.flip(-2, -3)),
    "turn_about_z": ([[0, -1, 0], [1, 0, 0], [0, 0, 1]], lambda v: v.rot90(1, (-2, -1))),
    "axes_in_a_ring": ([[0, 0, 1], [1, 0, 0], [0, 1, 0]], lambda v: v.permute(0, 1, 4, 2, 3)),
}


def with_holes(voxels):
    voxels = voxels.clone()
    voxels[..., 0, 0, 0], voxels[..., -1, -1, -1] = torch.inf, -torch.inf
    voxels[..., 1, 0, 1] = torch.nan
    return voxels


@guarded
@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("align_corners", [False, True])
def test_flips_and_quarter_turns_permute_the_voxels(kernels: Place, turn, align_corners):
    matrix, permute = TURNS[turn]
    index = list(TURNS).index(turn) + align_corners
    dtype, mode = DTYPES[index % 4], ("bilinear", "nearest")[index // 2 % 2]
    size = (3, 4, 5) if index < 3 else (4, 4, 4)
    image, grad = (with_holes(noise(1, 2, *size, seed=s)).to(dtype) for s in (0, 1))
    theta = F.pad(torch.tensor(matrix, dtype=torch.float32), (0, 1)).to(kernels.device)
    image, grad = image.to(kernels.device), grad.to(kernels.device)
    got = run(kernels.sample, image, theta, None, grad, align_corners=align_corners, mode=mode)
    assert same(got.y, permute(image))
    assert same(permute(got.grad_input), grad)  # the adjoint of a permutation is its inverse


@guarded
@pytest.mark.parametrize("padding_mode", PADDINGS[1:])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_identity_returns_the_input(kernels: Place, padding_mode, layout):
    image, grad = (with_holes(noise(1, 9, 3, 4, 3, seed=s)).float() for s in (0, 1))
    image = image.contiguous(memory_format=layout).to(kernels.device)
    grad = grad.to(kernels.device)
    theta = torch.eye(3, 4, device=kernels.device)
    got = run(kernels.sample, image, theta, None, grad, padding_mode=padding_mode)
    assert same(got.y, image) and same(got.grad_input, grad)


def test_a_tap_of_zero_weight_is_not_read(kernels: Place):
    image = torch.ones(1, 1, 4, 4, 4)
    image[..., 2, 2, 2] = torch.inf
    theta = torch.eye(3, 4)
    theta[0, 3] = 1 / 4  # half a voxel along x, none along y and z
    y = kernels.sample(image.to(kernels.device), theta.to(kernels.device))[0, 0].cpu()
    assert (~y.isfinite()).nonzero().tolist() == [[2, 2, 1], [2, 2, 2]]


@pytest.mark.thinned
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize(
    "slot, mode", [((0, 0), "bilinear"), ((2, 1), "nearest"), ((1, 3), "bilinear")], ids=str
)
def test_one_bad_number_stays_in_its_sample(place: Place, slot, mode, padding_mode):
    values = [math.nan, -math.inf, 1e20, 2.0**31]
    theta = near_identity(6).float()
    for n, value in enumerate(values, start=1):
        theta[(n, *slot)] = value
    options = dict(mode=mode, padding_mode=padding_mode)
    images = noise(6, 1, 2, 2, 4).float().to(place.device)
    grads, theta = noise(6, 1, 2, 2, 4, seed=1).float().to(place.device), theta.to(place.device)
    got = run(place.sample, images, theta, None, grads, **options)
    good = [0, 5]
    alone = run(place.sample, images[good], theta[good], None, grads[good], **options)
    for name in ("y", "grad_input", "grad_theta"):
        torch.testing.assert_close(getattr(got, name)[good], getattr(alone, name))
    assert got.y[1].isnan().all()
    # inf times a centred coordinate that is 0 is NaN too; no coordinate of these sizes is 0.
    assert got.y[2].isnan().all()
    assert got.y[3:5].isfinite().all()
    if padding_mode == "zeros" and slot[1] == 3:
        assert (got.y[3:5] == 0).all()
    assert got.grad_input.isfinite().all() and (got.grad_input[1] == 0).all()


# Voxel maps of every window: the last three are shared by a program, the others walked by a thread.
WINDOWS = {
    "rotated": near_identity(seed=5),
    "magnified": near_identity(seed=5) * torch.tensor([0.4, 0.5, 0.6])[:, None],
    "shrunk": near_identity(seed=5) * 2.3,
    "sheared": torch.tensor([[1.0, 2.3, 0.1, 0.07], [0, 1, 0, 0.1], [0, 0.3, 1, 0.13]]),
    "far_away": near_identity(seed=5) + torch.tensor([0, 0, 0, 9.0]),
    "upright": torch.tensor([[1.3, 0, 0, 0.07], [0, 1.0, 0, 0.1], [0, 0, 1.6, 0.13]]),
    "mirrored": torch.tensor([[-1.3, 0, 0, 0.07], [0, 1.1, 0, 0.1], [0, 0, -1, 0.13]]),
    "magnified_a_lot": near_identity(seed=5) / 30,
    "a_plane": torch.tensor([[0.7, 0.1, 0, 0.1], [0.2, 0.8, 0, 0.2], [0.3, 0, 0, 0.1]]),
    "a_line": torch.tensor([[0.7, 0.35, 0, 0.1], [0.2, 0.1, 0, 0.2], [0.4, 0.2, 0, 0.1]]),
    "a_point": torch.tensor([[0, 0, 0, 0.13], [0, 0, 0, 0.26], [0, 0, 0, 0.31]]),
}


@guarded
@pytest.mark.parametrize("name", WINDOWS)
def test_every_window_is_right(kernels: Place, name):
    theta = WINDOWS[name].double()
    check(kernels, noise(1, 2, 4, 5, 3), theta[None], (4, 3, 5))


@guarded
@pytest.mark.parametrize("name", ["rotated", "magnified_a_lot", "a_plane", "a_point"])
def test_every_window_is_right_under_deterministic_algorithms(kernels: Place, name):
    theta, input = WINDOWS[name].float()[None], noise(1, 2, 3, 4, 3).float()
    torch.use_deterministic_algorithms(True)
    try:
        check(kernels, input, theta, (4, 3, 4))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", WINDOWS)
def test_every_theta_is_gathered_and_twice_the_same(kernels: Place, launches, name):
    theta = WINDOWS[name].float()[None].to(kernels.device).requires_grad_()
    input = noise(1, 2, 3, 4, 3).float().to(kernels.device).requires_grad_()
    y = kernels.sample(input, theta, (4, 3, 5))
    once, twice = (torch.autograd.grad(y.sum(), (input, theta), retain_graph=True) for _ in "ab")
    names = [plan.kernel.__name__ for plan in launches]
    assert names == ["forward", "gather", "reduce", "gather", "reduce"]
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


@guarded
@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_what_needs_no_gradient_is_not_computed(place: Place, padding_mode):
    input, theta = noise(1, 3, 2, 3, 4).to(place.device), near_identity(1, 2).to(place.device)
    grad = noise(1, 2, 3, 3, 2, 3, seed=1).to(place.device)
    y, *both = run_needing(place, input, theta, grad, (True, True), padding_mode)
    for needs in itertools.product([False, True], repeat=2):
        got = run_needing(place, input, theta, grad, needs, padding_mode)
        assert torch.equal(got[0], y)
        for gradient, whole, needed in zip(got[1:], both, needs, strict=True):
            assert (gradient is None) == (not needed)
            if needed:
                torch.testing.assert_close(gradient, whole)


def run_needing(place, input, theta, grad, needs, padding_mode):
    input, theta = (t.clone().requires_grad_(n) for t, n in zip((input, theta), needs, strict=True))
    y = place.sample(input, theta, (3, 2, 3), padding_mode=padding_mode)
    if any(needs):
        y.backward(grad)
    return y.detach(), input.grad, theta.grad


def test_any_strides_are_read_as_they_are(place: Place):
    theta = near_identity(2, seed=6).to(place.device)
    big = noise(2, 3, 8, 5, 9).to(place.device)
    views = {
        "sliced": big[:, :, 1:7:2, :4, 2:5],
        "transposed": big[..., :5].transpose(2, 4)[:, :, :3, :4, :3],
        "expanded": big[:1, :1, :3, :4, :3].expand(2, 3, 3, 4, 3),
    }
    for view in views.values():
        leaf = view.detach().requires_grad_()
        packed = view.detach().contiguous().requires_grad_()
        y, plain = place.sample(leaf, theta, 2), place.sample(packed, theta, 2)
        torch.testing.assert_close(y, plain, rtol=0, atol=1e-14)
        # The strides of the output's gradient are free as well.
        grad = noise(2, 3, 2, 2, 2, seed=2).to(place.device).transpose(2, 4)
        for pair in zip(
            torch.autograd.grad(y, leaf, grad), torch.autograd.grad(plain, packed, grad),
            strict=True,
        ):  # fmt: skip
            torch.testing.assert_close(*pair)


@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_the_gradient_is_the_adjoint(place: Place, padding_mode):
    theta = near_identity(2, 2, seed=7).to(place.device)
    x = noise(2, 2, 3, 2, 4).to(place.device).requires_grad_()
    y = place.sample(x, theta, (2, 3, 3), padding_mode=padding_mode)
    g = noise(*y.shape, seed=1).to(place.device)
    (transposed,) = torch.autograd.grad(y, x, g)
    torch.testing.assert_close((g * y).sum(), (transposed * x).sum())


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_an_empty_batch_has_empty_results_and_zero_gradients(place: Place, shape):
    x = torch.zeros(*shape, 2, 3, 4, device=place.device, requires_grad=True)
    theta = torch.zeros(shape[0], 2, 3, 4, device=place.device, requires_grad=True)
    y = place.sample(x, theta, (1, 2, 3))
    assert y.shape == (shape[0], 2, shape[1], 1, 2, 3)
    y.sum().backward()
    assert x.grad.shape == x.shape and (theta.grad == 0).all()


@pytest.mark.parametrize("warn_only", [False, True])
def test_atomics_honour_deterministic_algorithms(kernels: Place, warn_only):
    x = torch.ones(1, 1, 2, 2, 2, device=kernels.device).double().requires_grad_()
    y = kernels.sample(x, torch.eye(3, 4, device=kernels.device), padding_mode="border")
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    message = "float64 input does not have a deterministic"
    try:
        expected = pytest.warns(UserWarning, match=message)
        with expected if warn_only else pytest.raises(RuntimeError, match=message):
            y.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_compile_traces_forward_and_backward_whole(place: Place, padding_mode):
    torch._dynamo.reset()

    def loss(x, theta):
        return place.sample(x.relu(), theta, (2, 2, 3), padding_mode=padding_mode).square().sum()

    x = noise(1, 2, 3, 2, 3).to(place.device).requires_grad_()
    theta = near_identity(1).to(place.device).requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(x, theta), (x, theta))
    torch.testing.assert_close(got, torch.autograd.grad(loss(x, theta), (x, theta)))


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_operators_pass_opcheck(kernels: Place, layout, padding_mode):
    x = noise(1, 8, 2, 2, 3).float().to(kernels.device).contiguous(memory_format=layout)
    theta = near_identity(1, 1).float().to(kernels.device)
    options = ("bilinear", padding_mode, False)
    operators = torch.ops.triton_stn
    arguments = (x.requires_grad_(), theta.requires_grad_(), (2, 1, 2), *options)
    torch.library.opcheck(operators.sample.default, arguments)
    grad = noise(1, 1, 8, 2, 1, 2).float().to(kernels.device)
    arguments = (grad, x.detach(), theta.detach(), *options, True, True)
    torch.library.opcheck(operators.sample_backward.default, arguments)


def test_an_image_beyond_2_31_elements_has_int64_offsets():
    def plans(side):
        strides = (side**3, side**3, side**2, side, 1)
        volume_of = Layout((1, 1, side, side, side), strides, torch.float32)
        output = Layout((1, *volume_of.shape), (side**3, *strides), torch.float32)
        theta = Layout((1, 1, 3, 4), (12, 12, 4, 1), torch.float32)
        sampling = Sampling("bilinear", "zeros", False)
        yield from plan_forward(volume_of, theta, output, sampling).plans
        wanted = Wanted(True, True)
        *sampled, _ = plan_backward(output, volume_of, theta, sampling, wanted).plans
        yield from sampled  # and not the reduction, which sees no image

    assert {str(plan.constants["RULES"].index) for plan in plans(1290)} == {"int32"}
    assert {str(plan.constants["RULES"].index) for plan in plans(1291)} == {"int64"}
    for plan in plans(1291):
        assert plan.grid[0] < 2**31 and max(plan.grid[1:]) <= 65_535


@pytest.mark.parametrize("fill_value", [2.5, torch.tensor([1.0, -3.0])], ids=["one", "a channel"])
def test_what_lies_outside_can_be_filled(place: Place, fill_value):
    """Equal to zeros outside of an image that is lower by the fill."""
    theta = (near_identity(2, seed=6) * 1.4).to(place.device)
    x = noise(2, 2, 3, 2, 4).to(place.device)
    y = place.sample(x, theta, (2, 3, 2), fill_value=fill_value)
    fill = torch.as_tensor(fill_value).double().view(-1, 1, 1, 1).to(place.device)
    torch.testing.assert_close(y, place.sample(x - fill, theta, (2, 3, 2)) + fill)
