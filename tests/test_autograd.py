"""Forward and backward: what is launched, what repeats; empty and very large batches."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from conftest import GPU, Place
from oracle import THETAS, pytorch, run, same

import triton_stn
from triton_stn.backends import fused
from triton_stn.kernels import configs

PADDINGS = ["zeros", "border", "reflection"]
OPTIONS = ("bilinear", "zeros", False)


def noise(*shape, seed=0, device="cpu"):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def theta_of(n, device="cpu"):
    return (torch.eye(2, 3) + 0.3 * noise(n, 2, 3, seed=7)).to(device)


def backward(place, x, theta, needs_input, needs_theta, **options):
    x, theta = x.clone().requires_grad_(needs_input), theta.clone().requires_grad_(needs_theta)
    y = place.sample(x, theta, (4, 5), **options)
    wanted = [t for t in (x, theta) if t.requires_grad]
    grads = torch.autograd.grad(y, wanted, torch.ones_like(y)) if wanted else ()
    return y, dict(zip([id(t) for t in wanted], grads, strict=True)), (id(x), id(theta))


@pytest.mark.thinned(2)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("needs_theta", [False, True])
@pytest.mark.parametrize("needs_input", [False, True])
def test_what_needs_no_gradient_is_not_computed(
    kernels: Place, launches, needs_input, needs_theta, padding_mode, mode
):
    x, theta = noise(2, 3, 5, 6, device=kernels.device), theta_of(2, kernels.device)
    options = dict(padding_mode=padding_mode, mode=mode)
    y, grads, names = backward(kernels, x, theta, needs_input, needs_theta, **options)
    assert y.requires_grad == (needs_input or needs_theta)
    forward, *rest = launches
    assert forward.kernel.__name__ == "forward"
    sums_theta = needs_theta and mode == "bilinear"
    of_input = ["gather"] if padding_mode == "zeros" else ["gather", "scatter"]
    launched = of_input if needs_input else ["grad_theta"] * sums_theta
    launched = launched + ["reduce"] * sums_theta
    assert [plan.kernel.__name__ for plan in rest] == launched
    if rest:
        rules = rest[0].constants["RULES"]
        assert rules.needs_theta == sums_theta
    # What is computed is what the joint backward computes.
    _, joint, (joint_x, joint_theta) = backward(kernels, x, theta, True, True, **options)
    for name, all_name in zip(names, (joint_x, joint_theta), strict=True):
        if name in grads:
            torch.testing.assert_close(grads[name], joint[all_name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_forward_is_one_launch_and_joint_backward_two(kernels: Place, launches, layout):
    x = noise(2, 16, 5, 6, device=kernels.device).contiguous(memory_format=layout)
    backward(kernels, x, theta_of(2, kernels.device), True, True)
    assert [plan.kernel.__name__ for plan in launches] == ["forward", "gather", "reduce"]


@pytest.mark.parametrize("fill", [2.5, torch.tensor(1), torch.tensor([1.0, -2, 3])])
def test_a_fill_is_in_the_one_launch_and_its_backward_in_two(kernels: Place, launches, fill):
    x = noise(2, 3, 5, 6, device=kernels.device)
    fill = fill.to(kernels.device) if isinstance(fill, torch.Tensor) else fill
    backward(kernels, x, theta_of(2, kernels.device), True, True, fill_value=fill)
    names = [plan.kernel.__name__ for plan in launches]
    assert names == ["forward", "gather", "reduce"]
    assert launches[1].constants["RULES"].fill and not launches[1].constants["RULES"].joint


@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_the_gather_of_several_maps_takes_grad_theta_where_it_has_programs_for_each(
    kernels: Place, launches, padding_mode, channels
):
    # Six programs for four maps: two are left over. Of the small image there is one for three.
    for size, k, joint in ((33, 9), 4, True), ((5, 6), 3, False):
        launches.clear()
        x = noise(2, channels, *size, seed=k).to(kernels.device)
        theta = theta_of(2 * k).view(2, k, 2, 3)
        grad = noise(2, k, channels, 4, 5, seed=1).to(kernels.device)
        options = dict(padding_mode=padding_mode)
        got = run(kernels.sample, x, theta.to(kernels.device), (4, 5), grad, **options)
        rest = ["scatter"] if padding_mode != "zeros" else []
        apart = ["grad_theta"] if not joint else []
        names = [plan.kernel.__name__ for plan in launches]
        assert names == ["forward", "gather_maps", *rest, *apart, "reduce"]
        # As of each map by itself.
        for m in range(k):
            one = run(
                kernels.sample, x, theta[:, m].to(kernels.device), (4, 5), grad[:, m], **options
            )
            torch.testing.assert_close(got.grad_theta[:, m], one.grad_theta, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("needs", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_pytorch_path_gives_only_what_is_needed(needs, padding_mode):
    place = Place("torch", "cpu")
    x, theta = noise(2, 3, 5, 6), theta_of(2)
    _, grads, names = backward(place, x, theta, *needs, padding_mode=padding_mode)
    _, joint, all_names = backward(place, x, theta, True, True, padding_mode=padding_mode)
    for name, all_name, needed in zip(names, all_names, needs, strict=True):
        assert (name in grads) == needed
        assert not needed or torch.equal(grads[name], joint[all_name])


@pytest.mark.parametrize("shape", [(0, 3, 5, 6), (2, 0, 5, 6)])
@pytest.mark.parametrize("k", [None, 0, 2])
def test_an_empty_batch_gives_an_empty_output_and_zero_gradients(place: Place, launches, shape, k):
    n, c = shape[:2]
    x = noise(*shape, device=place.device).requires_grad_()
    theta = noise(*((n, 2, 3) if k is None else (n, k, 2, 3)), device=place.device).requires_grad_()
    y = place.sample(x, theta, (4, 7))
    assert y.shape == ((n, c, 4, 7) if k is None else (n, k, c, 4, 7))
    y.sum().backward()
    assert same(x.grad, torch.zeros_like(x)) and same(theta.grad, torch.zeros_like(theta))
    assert launches == []


def test_no_maps_give_an_empty_output_and_a_zero_gradient(place: Place, launches):
    x = noise(2, 3, 5, 6, device=place.device).requires_grad_()
    theta = torch.zeros(2, 0, 2, 3, device=place.device, requires_grad=True)
    y = place.sample(x, theta, 4)
    assert y.shape == (2, 0, 3, 4, 4)
    y.sum().backward()
    assert same(x.grad, torch.zeros_like(x)) and theta.grad.shape == theta.shape
    assert launches == []


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_more_maps_than_a_launch_grid_axis_holds(place: Place, padding_mode):
    n = 70_000 if not place.interpreted else 3
    k = 1 if not place.interpreted else 2
    # The interpreter walks programs one by one; there the axis that holds N·K is looked at.
    x, theta = noise(n, 1, 1, 2, device=place.device), theta_of(n * k, place.device)
    theta = theta.view(n, k, 2, 3)
    grad = torch.ones(n, k, 1, 1, 1, device=place.device)
    got = run(place.sample, x, theta, 1, grad, padding_mode=padding_mode)
    part = slice(n - 2, n)
    last = run(place.sample, x[part], theta[part], 1, grad[part], padding_mode=padding_mode)
    for name in ("y", "grad_input", "grad_theta"):
        torch.testing.assert_close(getattr(got, name)[part], getattr(last, name))


def test_maps_go_on_the_grid_axis_without_a_limit(kernels: Place, monkeypatch):
    plans = []
    monkeypatch.setattr(fused, "launch", lambda launches, *_: plans.extend(launches.plans))
    x, theta = noise(70_000, 1, 1, 1), noise(70_000, 1, 2, 3)
    fused.sample(x, theta, (1, 1), *OPTIONS)
    for padding in PADDINGS:
        rules = ("bilinear", padding, False)
        fused.sample_backward(x[:, None], x, theta, *rules, True, True)
    assert len(plans) == 9
    for plan in plans:
        assert plan.grid[0] >= 70_000 and max(plan.grid[1:]) <= 65_535


@pytest.mark.parametrize("size", [(2**21, 1), (1, 2**20), (2**24, 1)])
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_tiles_cover_a_tall_or_wide_canvas_within_the_grids_limit(monkeypatch, padding_mode, size):
    plans = []
    monkeypatch.setattr(fused, "launch", lambda launches, *_: plans.extend(launches.plans))
    theta = torch.zeros(1, 1, 2, 3)
    x = torch.zeros(1, 1, 1, 1).expand(1, 1, *size)
    rules = ("bilinear", padding_mode, False)
    fused.sample(x[..., :1, :1], theta, size, *rules)
    fused.sample_backward(x[:, None], x, theta, *rules, True, True)
    plans = [plan for plan in plans if plan.kernel.__name__ != "reduce"]
    assert len(plans) == (2 if padding_mode == "zeros" else 3)
    for plan in plans:
        _, columns, rows = plan.grid
        assert max(columns, rows) <= 65_535
        work = plan.arguments["WORK"]
        assert columns * work.tile_w * work.tiles >= size[1]
        assert rows * work.tile_h * work.bands >= size[0]


@pytest.mark.parametrize(
    ("size", "tile", "tiles"),
    [
        ((28, 28), (4, 32), 7),
        ((20, 20), (4, 32), 5),
        ((42, 42), (16, 8), 18),
        ((124, 124), (16, 8), 128),  # 124 of 4 x 32 are not a tenth fewer
        ((1, 1000), (1, 128), 8),
    ],
)
def test_the_warps_of_a_tile_lie_as_few_tiles_cover_the_image(size, tile, tiles):
    problem = configs.Problem(64, 64, (1, *size))
    for config in configs.forward(problem), configs.gather(problem, one_theta=True, itemsize=4):
        assert config.tile == tile and math.prod(config.grid[1:]) == tiles


@pytest.mark.parametrize("shape", [(16, 3, 512, 512), (16, 1, 256, 256), (256, 1, 42, 42)])
def test_the_programs_of_a_gather_are_as_many_as_run_at_once(shape):
    n, c, h, w = shape
    config = configs.gather(configs.Problem(n, c, (1, h, w)), one_theta=True, itemsize=4)
    images, walkers, downwards = config.grid
    resident = configs.MULTIPROCESSORS * (65536 // (128 * config.maxnreg))
    assert 0.75 * resident <= images * walkers * downwards <= resident
    assert walkers * config.tiles >= w / 8 and downwards * config.bands >= h / 16


@pytest.mark.parametrize("theta_dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_have_the_dtypes_of_their_tensors(place: Place, dtype, theta_dtype):
    x, grad = noise(2, 3, 5, 6).to(place.device, dtype), noise(2, 3, 5, 6, seed=1).to(place.device)
    theta = theta_of(2, place.device).half()  # the same numbers in both dtypes
    got = run(place.sample, x, theta.to(theta_dtype), None, grad)
    single = run(place.sample, x, theta.float(), None, grad)
    assert got.y.dtype == got.grad_input.dtype == dtype and got.grad_theta.dtype == theta_dtype
    assert torch.equal(got.y, single.y) and torch.equal(got.grad_input, single.grad_input)
    assert torch.equal(got.grad_theta, single.grad_theta.to(theta_dtype))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_zeros_padding_repeats_bit_for_bit(place: Place, layout):
    shape = (2, 9, 6, 7) if place.interpreted else (2, 9, 60, 70)
    x = noise(*shape, device=place.device).contiguous(memory_format=layout)
    grad = noise(*shape, seed=1, device=place.device)
    theta = theta_of(2, place.device)
    first = run(place.sample, x, theta, None, grad)
    for _ in range(2):
        again = run(place.sample, x, theta, None, grad)
        for name in ("y", "grad_input", "grad_theta"):
            assert torch.equal(getattr(again, name), getattr(first, name))


@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_atomics_honour_deterministic_algorithms(kernels: Place, padding_mode):
    x, theta = noise(1, 1, 4, 4, device=kernels.device).double(), theta_of(1, kernels.device)
    grad = torch.ones_like(x)
    torch.use_deterministic_algorithms(True)
    try:
        run(kernels.sample, x.float(), theta, None, grad, padding_mode=padding_mode)
        if padding_mode == "zeros":
            run(kernels.sample, x, theta, None, grad)
            return
        with pytest.raises(RuntimeError, match="deterministic"):
            run(kernels.sample, x, theta, None, grad, padding_mode=padding_mode)
        torch.use_deterministic_algorithms(True, warn_only=True)
        with pytest.warns(UserWarning, match="deterministic"):
            run(kernels.sample, x, theta, None, grad, padding_mode=padding_mode)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_autocast_leaves_the_dtype_alone(place: Place, dtype):
    x, grad = noise(2, 3, 5, 6).to(place.device, dtype), noise(2, 3, 5, 6).to(place.device, dtype)
    theta = theta_of(2, place.device)
    plain = run(place.sample, x, theta, None, grad)
    with torch.autocast(place.device, dtype=torch.bfloat16):
        cast = run(place.sample, x, theta, None, grad)
    assert cast.y.dtype == cast.grad_input.dtype == dtype
    assert cast.grad_theta.dtype == torch.float32
    for name in ("y", "grad_input", "grad_theta"):
        assert torch.equal(getattr(plain, name), getattr(cast, name))


def test_use_backend_chooses_and_restores(launches):
    device = GPU or "cpu"
    if GPU is None and not triton_stn.backends.INTERPRETED:
        pytest.skip("neither a GPU nor the interpreter")
    x, theta = noise(1, 1, 3, 3, device=device), theta_of(1, device)
    used = Counter()
    for name in ("torch", "triton", "auto"):
        before = len(launches)
        with triton_stn.use_backend(name):
            triton_stn.spatial_transform(x, theta)
        used[name] = len(launches) - before
    assert used == {"torch": 0, "triton": 1, "auto": 1}
    with triton_stn.use_backend("torch"):
        with triton_stn.use_backend("triton"):
            triton_stn.spatial_transform(x, theta)
        count = len(launches)
        triton_stn.spatial_transform(x, theta)
        assert len(launches) == count
    with pytest.raises(KeyError), triton_stn.use_backend("torch"):
        raise KeyError
    triton_stn.spatial_transform(x, theta)
    assert len(launches) == count + 1


def test_create_graph_counts_a_theta_made_of_the_input_once(place: Place):
    """As every spatial transformer has it: θ depends on the image that it samples."""
    x = noise(1, 2, 6, 6).double().requires_grad_()
    head = 0.01 * noise(72, 6, seed=4).double()

    def loss(x):
        theta = (x.flatten() @ head).view(1, 2, 3) + torch.eye(2, 3, dtype=torch.float64)
        return place.sample(x, theta).square().sum()

    (once,) = torch.autograd.grad(loss(x), x)
    (twice,) = torch.autograd.grad(loss(x), x, create_graph=True)
    torch.testing.assert_close(twice, once)
    assert torch.autograd.gradgradcheck(loss, (0.1 * x.detach().requires_grad_(),), fast_mode=True)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(7, 1), (1, 7), (1, 1)])
def test_an_output_of_one_column_or_row(place: Place, size, layout):
    x = noise(2, 16, 8, 8).double().contiguous(memory_format=layout)
    theta = torch.tensor(THETAS["random"], dtype=torch.float64).expand(2, 2, 2, 3).contiguous()
    tensors = [t.to(place.device).requires_grad_() for t in (x, theta)]
    y = place.sample(*tensors, size)
    torch.testing.assert_close(y.detach().cpu(), pytorch(x, theta, size))
    torch.autograd.grad(y.sum(), tensors, create_graph=True)
