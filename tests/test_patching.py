"""Existing code, patched, gives what PyTorch's functions give, and says what was fused."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import affine_grid, grid_sample  # by name, before anything is patched

import triton_stn
from triton_stn.patching.deferred import Deferred

SIZES = {"images": ((2, 3, 5, 6), (4, 7)), "volumes": ((2, 2, 4, 5, 3), (3, 4, 2))}
CLOSE = {torch.float32: 1e-4, torch.float64: 1e-12}  # grad_θ is a sum that cancels


@pytest.fixture(autouse=True)
def _quick_and_unpatched_afterwards():
    with triton_stn.use_backend("torch"):
        yield
    triton_stn.unpatch()


def is_lazy(grid) -> bool:
    return isinstance(grid, Deferred) and not grid.recipe.is_made


def operands(of="images", dtype=torch.float32, device="cpu", seed=0):
    """(input, θ, size for affine_grid), both of which want a gradient."""
    generator = torch.Generator().manual_seed(seed)
    shape, canvas = SIZES[of]
    n, d = shape[0], len(canvas)
    input = torch.rand(shape, generator=generator, dtype=torch.float64)
    theta = torch.eye(d, d + 1) + 0.2 * torch.randn(n, d, d + 1, generator=generator)
    leaves = [t.to(device, dtype).requires_grad_() for t in (input, theta)]
    return *leaves, (*shape[:2], *canvas)


def warp(input, theta, size, mode="bilinear", padding_mode="zeros", align_corners=False):
    grid = affine_grid(theta, size, align_corners=align_corners)
    return grid_sample(input, grid, mode, padding_mode, align_corners)


def results(function, *inputs):
    """The output and the gradients of the inputs, for a gradient of random numbers."""
    output = function(*inputs)
    weight = torch.linspace(-1, 2, output.numel(), dtype=output.dtype, device=output.device)
    wanted = [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad]
    return output, *torch.autograd.grad((output.flatten() * weight).sum(), wanted)


def check_alike(ours, theirs, tolerance=1e-5):
    for a, b in zip(ours, theirs, strict=True):
        assert (a.dtype, a.shape, a.device) == (b.dtype, b.shape, b.device)
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.thinned
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("of", SIZES)
def test_an_affine_warp_is_fused_and_gives_pytorchs_numbers(
    place, of, dtype, mode, padding_mode, align_corners
):
    if (of, mode) == ("volumes", "bicubic"):
        pytest.skip("PyTorch has none")
    if mode == "nearest":
        pytest.skip("is sampled at the grid, see the next test")
    options = operands(of, dtype, place.device), (mode, padding_mode, align_corners)
    theirs = results(warp, *options[0], *options[1])
    with triton_stn.use_backend(place.backend), triton_stn.patch() as patched:
        ours = results(warp, *options[0], *options[1])
    report = patched.report()
    assert (report.lazy_grids, report.spatial_transform, report.left) == (1, 1, {})
    check_alike(ours, theirs, CLOSE[dtype])


def test_what_is_nearest_the_grid_decides(place):
    """Halfway between two pixels θ's own arithmetic may come out on the other side."""
    angle = torch.tensor(-math.pi / 6, dtype=torch.float64, device=place.device)
    turn = torch.stack((angle.cos(), -angle.sin(), 0 * angle, angle.sin(), angle.cos(), 0 * angle))
    input = torch.rand(1, 1, 40, 40, dtype=torch.float64, device=place.device)
    options = turn.view(1, 2, 3), (1, 1, 53, 53), "nearest", "zeros", False
    theirs = warp(input, *options)
    with triton_stn.use_backend(place.backend), triton_stn.patch() as patched:
        ours = warp(input, *options)
    report = patched.report()
    assert (report.lazy_grids, report.spatial_transform, report.grid_sample) == (1, 0, 1)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("of", "mode"), [("images", "bilinear"), ("images", "bicubic"), ("volumes", "bilinear")]
)
def test_a_plain_grid_is_sampled_by_grid_sample(place, of, mode):
    input, theta, size = operands(of, device=place.device)
    grid = (F.affine_grid(theta, size, align_corners=False) + 0.01).detach().requires_grad_()
    theirs = results(F.grid_sample, input, grid, mode, "zeros", False)
    with triton_stn.use_backend(place.backend), triton_stn.patch() as patched:
        ours = results(grid_sample, input, grid, mode, "zeros", False)
    assert patched.report().grid_sample == 1
    check_alike(ours, theirs)


def test_the_grid_is_never_made_where_only_theta_and_input_are_wanted(place):
    input, theta, size = operands(device=place.device)
    with triton_stn.use_backend(place.backend), triton_stn.patch():
        grid = F.affine_grid(theta, size, align_corners=False)
        F.grid_sample(input, grid, align_corners=False).sum().backward()
        F.grid_sample(input, grid, mode="bicubic", align_corners=False).sum().backward()
        assert is_lazy(grid) and theta.grad.any() and input.grad.any()


class Tutorial(nn.Module):
    """The transformer of PyTorch's tutorial, as it is written there."""

    def __init__(self):
        super().__init__()
        self.localization = nn.Sequential(
            nn.Conv2d(1, 8, kernel_size=7), nn.MaxPool2d(2, stride=2), nn.ReLU(True),
            nn.Conv2d(8, 10, kernel_size=5), nn.MaxPool2d(2, stride=2), nn.ReLU(True),
        )  # fmt: skip
        self.fc_loc = nn.Sequential(nn.Linear(10 * 3 * 3, 32), nn.ReLU(True), nn.Linear(32, 3 * 2))
        self.conv = nn.Conv2d(1, 4, kernel_size=5)
        self.fc = nn.Linear(4 * 24 * 24, 10)

    def stn(self, x):
        xs = self.localization(x)
        xs = xs.view(-1, 10 * 3 * 3)
        theta = self.fc_loc(xs)
        theta = theta.view(-1, 2, 3)
        grid = F.affine_grid(theta, x.size())
        return F.grid_sample(x, grid)

    def forward(self, x):
        return self.fc(F.relu(self.conv(self.stn(x))).flatten(1))


@pytest.mark.filterwarnings("ignore:Default grid_sample")
def test_the_tutorials_network_trains_to_the_same_weights(small_and_quick):
    torch.manual_seed(0)
    network, images = Tutorial(), torch.rand(4, 1, 28, 28)

    def train(network):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
        for _ in range(5):
            optimizer.zero_grad()
            F.cross_entropy(network(images), torch.arange(4)).backward()
            optimizer.step()
        return list(network.parameters())

    theirs = train(copy.deepcopy(network))
    with triton_stn.patch() as patched:
        ours = train(copy.deepcopy(network))
    assert patched.report().spatial_transform == 5 and not patched.report().left
    check_alike(ours, theirs)


def gradients_of_grid(how, input, theta, size):
    """(what was asked of the grid, grad_θ, grad_input), in one of the ways to ask."""
    grid = F.affine_grid(theta, size, align_corners=False)
    seen = []
    if how == "retain_grad":
        grid.retain_grad()
    elif how == "hook":
        grid.register_hook(seen.append)
    elif how == "a hook that changes it":
        grid.register_hook(lambda grad: seen.append(grad) or 2 * grad)
    elif how == "a hook that changes it in place":
        grid.register_hook(lambda grad: seen.append(grad.mul_(2)))
    output = F.grid_sample(input, grid, align_corners=False)
    if how == "twice":
        output = output * F.grid_sample(input**2, grid, padding_mode="border", align_corners=False)
    loss = output.square().sum() + (grid.square().sum() if how == "read beside" else 0)
    if how in ("grad", "twice"):
        (asked,) = torch.autograd.grad(loss, grid, retain_graph=True)
        seen.append(asked)
    loss.backward()
    seen.append(grid.grad if how == "retain_grad" else theta.grad)
    return *(t + 0 for t in seen), theta.grad, input.grad


WAYS = ["retain_grad", "hook", "a hook that changes it", "a hook that changes it in place", "grad"]


@pytest.mark.parametrize("how", [*WAYS, "twice", "read beside"])
@pytest.mark.parametrize("of", SIZES)
def test_the_grid_has_the_gradient_that_pytorchs_has(how, of):
    theirs = gradients_of_grid(how, *operands(of, torch.float64))
    with triton_stn.patch() as patched:
        ours = gradients_of_grid(how, *operands(of, torch.float64))
    assert patched.report().spatial_transform >= (how != "read beside")
    check_alike(ours, theirs, 1e-11)


def test_a_lazy_grid_that_is_a_leaf_learns():
    input, theta, size = operands()

    def learned():
        grid = F.affine_grid(theta.detach(), size, align_corners=False).requires_grad_()
        optimizer = torch.optim.SGD([grid], lr=0.1)
        for _ in range(3):
            F.grid_sample(input.detach(), grid, align_corners=False).square().sum().backward()
            optimizer.step()
        return grid.detach() + 0, grid.grad

    theirs = learned()
    with triton_stn.patch():
        check_alike(learned(), theirs)


def test_theta_changed_in_place_leaves_the_grid_as_it_was():
    input, theta, size = operands()

    def moved():
        theta_ = theta.detach().clone().requires_grad_()
        grid = F.affine_grid(theta_, size, align_corners=False)
        with torch.no_grad():
            theta_.zero_()
        output = F.grid_sample(input, grid, align_corners=False)
        output.square().sum().backward()
        return output, theta_.grad, grid + 0

    theirs = moved()
    with triton_stn.patch():
        check_alike(moved(), theirs)


def _set_a_part(grid):
    grid[..., 0] = 0.25


def _change_a_view(grid):
    grid[:, 1:].mul_(0.5)


def _change_what_is_detached(grid):
    grid.detach().mul_(0.5)


def _change_in_numpy(grid):
    grid.detach().numpy()[:] = 0.125


CHANGES = [
    lambda grid: grid.add_(0.1),
    lambda grid: grid.unsqueeze_(0).squeeze_(0),
    lambda grid: grid.transpose_(1, 2),
    lambda grid: torch.add(grid, 1, out=grid),
    lambda grid: torch._foreach_mul_([grid], 0.5),
    lambda grid: grid.data.mul_(2),
    _set_a_part,
    _change_a_view,
    _change_what_is_detached,
    _change_in_numpy,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_grid_that_is_changed_in_place_is_plain(change):
    input, theta, size = operands()

    def changed():
        grid = F.affine_grid(theta.detach(), size, align_corners=False)
        change(grid)
        return grid, F.grid_sample(input, grid, align_corners=False)

    theirs = changed()
    with triton_stn.patch() as patched:
        ours = changed()
    assert (patched.report().spatial_transform, patched.report().grid_sample) == (0, 1)
    check_alike([t + 0 for t in ours], theirs)
    assert [t.stride() for t in ours] == [t.stride() for t in theirs]


@pytest.mark.parametrize("change", [CHANGES[0], _set_a_part, _change_a_view])
def test_a_change_in_place_has_its_derivative(change):
    input, theta, size = operands()

    def changed(input, theta):
        grid = F.affine_grid(theta, size, align_corners=False)
        change(grid)
        return F.grid_sample(input, grid, align_corners=False)

    theirs = results(changed, input, theta)
    with triton_stn.patch():
        check_alike(results(changed, input, theta), theirs)


@pytest.mark.parametrize("what", ["input", "grid"])
def test_what_is_changed_before_backward_is_named_as_by_pytorch(what):
    input, theta, size = operands()
    with triton_stn.patch():
        grid = F.affine_grid(theta, size, align_corners=False)
        image = input * 1
        output = F.grid_sample(image, grid, align_corners=False)
        (image if what == "input" else grid).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


UNREAD = {
    "shape": lambda g: g.shape, "dtype": lambda g: g.dtype, "device": lambda g: g.device,
    "requires_grad": lambda g: g.requires_grad, "ndim": lambda g: g.ndim,
    "size": lambda g: g.size(),
    "stride": lambda g: g.stride(), "is_contiguous": lambda g: g.is_contiguous(),
    "len": len, "numel": lambda g: g.numel(), "is_leaf": lambda g: g.is_leaf,
    "nbytes": lambda g: g.nbytes, "layout": lambda g: g.layout, "version": lambda g: g._version,
    "contiguous": lambda g: g.contiguous() is g, "float": lambda g: g.float() is g,
    "to": lambda g: g.to("cpu") is g, "isinstance": lambda g: isinstance(g, torch.Tensor),
    "grad": lambda g: g.grad if g.is_leaf else None, "is_floating": lambda g: g.is_floating_point(),
    "detach": lambda g: g.detach().requires_grad, "data": lambda g: g.data.shape,
}  # fmt: skip


@pytest.mark.parametrize("wanted", [False, True], ids=["constant", "with a gradient"])
@pytest.mark.parametrize("name", UNREAD)
def test_what_is_known_does_not_make_the_grid(name, wanted):
    _, theta, size = operands()
    theta.requires_grad_(wanted)
    theirs = UNREAD[name](F.affine_grid(theta, size, align_corners=False))
    with triton_stn.patch():
        grid = F.affine_grid(theta, size, align_corners=False)
    assert UNREAD[name](grid) == theirs and is_lazy(grid)


def _saved(grid):
    file = io.BytesIO()
    torch.save(grid, file)
    file.seek(0)
    return torch.load(file)  # a tensor alone: weights_only


READ = {
    "repr": repr, "str": str, "format": lambda g: f"{g}", "tolist": lambda g: g.tolist(),
    "numpy": lambda g: g.numpy(), "asarray": np.asarray, "deepcopy": copy.deepcopy,
    "copy": copy.copy, "pickle": lambda g: pickle.loads(pickle.dumps(g)), "save": _saved,
    "dlpack": lambda g: torch.from_dlpack(g), "item": lambda g: g[0, 0, 0, 0].item(),
    "storage": lambda g: g.untyped_storage().nbytes(), "list": list, "tensor": torch.as_tensor,
    "bool": lambda g: bool(g), "shared": lambda g: g.is_shared(), "double": lambda g: g.double(),
    "parameter": lambda g: nn.Parameter(g) + 0,
    "state_dict": lambda g: _saved(_module(g).state_dict()),
    "moved": lambda g: _module(g).double().grid, "hash": lambda g: hash(g) == id(g),
    "equal": lambda g: torch.equal(g, g), "stack": lambda g: torch.stack([g, g]),
}  # fmt: skip


def _module(grid):
    module = nn.Module()
    module.register_buffer("grid", grid)
    module.weight = nn.Parameter(grid)
    return module


def _outcome(function, grid):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(grid)
        except Exception as error:
            return type(error), str(error)[:60]


@pytest.mark.parametrize("wanted", [False, True], ids=["constant", "with a gradient"])
@pytest.mark.parametrize("name", READ)
def test_a_lazy_grid_reads_as_a_plain_one_does(name, wanted):
    _, theta, size = operands()
    theta.requires_grad_(wanted)
    theirs = _outcome(READ[name], F.affine_grid(theta, size, align_corners=False))
    with triton_stn.patch():
        ours = _outcome(READ[name], F.affine_grid(theta, size, align_corners=False))
    if name in ("repr", "str", "format"):  # PyTorch's node is a class in C++
        theirs = theirs.replace("Backward0", "Backward")
    if isinstance(theirs, torch.Tensor):
        check_alike([ours + 0], [theirs + 0], 0)
        assert ours.requires_grad == theirs.requires_grad
    elif isinstance(theirs, (list, dict)):
        assert str(ours) == str(theirs).replace("Backward0", "Backward") or name == "list"
        assert len(ours) == len(theirs)
    else:
        assert type(ours) is type(theirs) and np.array_equal(ours, theirs)


def test_what_is_pickled_needs_no_triton_stn():
    _, theta, size = operands()
    with triton_stn.patch():
        data = pickle.dumps(F.affine_grid(theta.detach(), size, align_corners=False))
    assert b"triton_stn" not in data
