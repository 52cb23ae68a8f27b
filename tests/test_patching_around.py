"""What stands around patched code sees what it always saw: compilers, transforms, modes, types."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_patching import affine_grid, check_alike, grid_sample, is_lazy, operands, results, warp
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import triton_stn
from triton_stn.patching.deferred import Deferred

PLAIN_SAMPLER, PLAIN_GENERATOR = torch.grid_sampler, torch.affine_grid_generator
LANDING = pytest.mark.landing
DOCS = Path(__file__).resolve().parent.parent / "docs" / "patching.md"


@pytest.fixture(autouse=True)
def _quick_and_unpatched_afterwards():
    with triton_stn.use_backend("torch"):
        yield
    triton_stn.unpatch()
    torch._dynamo.reset()


def lazy(theta, size):
    return F.affine_grid(theta, size, align_corners=False)


def sample(input, grid):
    return F.grid_sample(input, grid, align_corners=False)


def by_name(input, theta, size):
    return sample(input, lazy(theta, size))


def is_patched():
    return torch.grid_sampler is not PLAIN_SAMPLER


def test_patching_nests_and_ends():
    with triton_stn.patch(), triton_stn.patch() as patched:
        assert is_patched() and patched is triton_stn.patch
    assert not is_patched()
    triton_stn.patch()
    triton_stn.patch()
    with triton_stn.patch():
        pass
    assert is_patched()
    triton_stn.unpatch()
    triton_stn.unpatch()
    assert (torch.grid_sampler, torch.affine_grid_generator) == (PLAIN_SAMPLER, PLAIN_GENERATOR)
    block = triton_stn.patch()
    with pytest.raises(KeyError), block:
        raise KeyError
    assert not is_patched()


def test_a_report_counts_from_the_patch_and_says_why():
    input, theta, size = operands()
    with triton_stn.patch():
        warp(input, theta, size)
    with triton_stn.patch() as patched:
        warp(input, theta, size)
        grid = lazy(theta, size)
        sample(input, grid.flip(1))
        F.grid_sample(input, grid, align_corners=True)
        F.grid_sample(input[:, :, None], grid.new_zeros(2, 1, 1, 1, 3), align_corners=False)
        torch.func.vmap(lambda image: sample(image[None], grid[:1]))(input)
        sample(input[:0], grid[:0])
    report = patched.report()
    assert (report.lazy_grids, report.spatial_transform, report.grid_sample) == (2, 1, 3)
    left = {"grid_sample: torch.func": 1, "grid_sample: an empty tensor": 1}
    assert report.left == left
    assert str(report).splitlines() == [
        "2 lazy grids; fused: 1 by spatial_transform, 3 by grid_sample; left to PyTorch: 2",
        "       1  grid_sample: an empty tensor",
        "       1  grid_sample: torch.func",
    ]


def test_another_thread_is_patched_too():
    input, theta, size = operands()
    with triton_stn.patch() as patched:
        thread = threading.Thread(target=warp, args=(input, theta, size))
        thread.start()
        thread.join()
    assert patched.report().spatial_transform == 1


def test_a_lazy_grid_outlives_the_patch():
    input, theta, size = operands()
    theirs = results(by_name, input, theta, size)
    with triton_stn.patch():
        grid = lazy(theta, size)
    check_alike(results(lambda input, _: sample(input, grid), input, theta), theirs)


REFUSED = {
    "input of integers": lambda x, g: sample(x.long(), g),
    "half beside float": lambda x, g: sample(x.half(), g),
    "another batch": lambda x, g: sample(x[:1], g),
    "three dimensions": lambda x, g: sample(x[0], g),
    "a grid of volumes": lambda x, g: sample(x[:, :, None], g),
    "an unknown mode": lambda x, g: F.grid_sample(x, g, mode="cubic"),
    "an unknown padding": lambda x, g: F.grid_sample(x, g, padding_mode="wrap"),
    "a wrong align_corners": lambda x, g: F.grid_sample(x, g, align_corners="no"),
    "too few arguments": lambda x, g: F.grid_sample(x),
    "float64 under autocast": lambda x, g: _autocast(x.double(), g),
    "no image": lambda x, g: sample(x[..., :0], g),
    "no tensor": lambda x, g: sample([1.0], g),
    "two devices": lambda x, g: sample(x.to("meta"), g),
    "theta of integers": lambda x, g: lazy(torch.ones(1, 2, 3).long(), (1, 1, 2, 2)),
    "another theta": lambda x, g: lazy(torch.ones(1, 3, 3), (1, 1, 2, 2)),
    "a batch of two": lambda x, g: lazy(torch.ones(1, 2, 3), (2, 1, 2, 2)),
    "an empty size": lambda x, g: lazy(torch.ones(1, 2, 3), (1, 1, 0, 2)),
    "a size of floats": lambda x, g: lazy(torch.ones(1, 2, 3), (1, 1, 2.0, 2)),
    "a cubic volume": lambda x, g: F.grid_sample(
        x[:, :, None], g.new_zeros(2, 1, 1, 1, 3), mode="bicubic", align_corners=False
    ),
}


def _autocast(input, grid):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return sample(input, grid)


@pytest.mark.filterwarnings("ignore:Default grid_sample")
@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_what_pytorch_refuses_is_refused_in_its_words(call):
    input, theta, size = operands()
    with pytest.raises(Exception) as theirs:
        call(input, lazy(theta, size))
    with triton_stn.patch(), pytest.raises(type(theirs.value)) as ours:
        call(input, lazy(theta, size))
    assert str(ours.value) == str(theirs.value)


TAKEN = {
    "no batch": lambda x, t, size: sample(x[:0], lazy(t, size)[:0]),
    "meta": lambda x, t, size: sample(x.to("meta"), lazy(t.to("meta"), size)).shape,
    "a size that is torch's": lambda x, t, size: sample(x, lazy(t, torch.Size(size))),
    "a size that is a list": lambda x, t, size: sample(x, lazy(t, list(size))),
    "channels-last": lambda x, t, size: sample(
        x.contiguous(memory_format=torch.channels_last), lazy(t, size)
    ).view(2, -1),
    "expanded": lambda x, t, size: sample(
        x[:1].expand(2, -1, -1, -1), lazy(t[:1].expand(2, -1, -1), size)
    ),
    "by the numbers": lambda x, t, size: torch.grid_sampler(
        x, torch.affine_grid_generator(t, size, True), 1, 2, align_corners=True
    ),
    "grid and sampler that align unlike": lambda x, t, size: sample(
        x, F.affine_grid(t, size, align_corners=True)
    ),
    "a device's context": lambda x, t, size: _within(torch.device("cpu"), x, t, size),
    "inference": lambda x, t, size: _within(torch.inference_mode(), x, t, size),
    "a counter of operations": lambda x, t, size: _within(
        FlopCounterMode(display=False), x, t, size
    ),
    "a fake": lambda x, t, size: _within(
        FakeTensorMode(allow_non_fake_inputs=True), x, t, size
    ).shape,
    "make_fx": lambda x, t, size: make_fx(lambda x, t: by_name(x, t, size))(x, t)(x, t),
    "fx": lambda x, t, size: torch.fx.symbolic_trace(lambda x, t: by_name(x, t, size))(x, t),
    "trace": lambda x, t, size: torch.jit.trace(lambda x, t: by_name(x, t, size), (x, t))(2 * x, t),
    "vmap": lambda x, t, size: torch.func.vmap(
        lambda x, t: by_name(x[None], t[None], (1, *size[1:]))
    )(x, t),
    "vmap around": lambda x, t, size: _vmapped(x, lazy(t, size)),
    "func.grad": lambda x, t, size: torch.func.grad(
        lambda t: by_name(x, t, size).square().sum()
    )(t),
    "func.grad of a lazy grid": lambda x, t, size: torch.func.grad(
        lambda grid: sample(x, grid).square().sum()
    )(lazy(t.detach(), size)),
    "jacobian": lambda x, t, size: torch.autograd.functional.jacobian(
        lambda t: by_name(x, t, size), t.detach(), vectorize=True
    ),
}  # fmt: skip


def _within(context, input, theta, size):
    with context:
        return by_name(input, theta, size)


def _vmapped(input, grid):
    return torch.func.vmap(lambda image: sample(image, grid))(torch.stack([input, 2 * input]))


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("call", TAKEN.values(), ids=TAKEN)
def test_what_pytorch_takes_gives_its_result(call):
    input, theta, size = operands()
    theirs = call(input, theta, size)
    with triton_stn.patch():
        ours = call(input, theta, size)
    if isinstance(theirs, torch.Tensor):
        check_alike([ours], [theirs])
        assert ours.stride() == theirs.stride() and type(ours) is type(theirs)
    assert isinstance(theirs, torch.Tensor) or ours == theirs


def test_a_fake_does_not_become_the_grids_values():
    input, theta, size = operands()
    expected = lazy(theta, size)
    with triton_stn.patch():
        grid = lazy(theta, size)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert sample(mode.from_tensor(input), grid).shape == size
    assert torch.equal(grid, expected)


@pytest.mark.parametrize("as_int", [int, np.int64, torch.tensor], ids=["int", "NumPy", "tensor"])
def test_a_size_may_be_of_whatever_is_an_int(as_int):
    input, theta, size = operands()
    theirs = by_name(input, theta, size)
    with triton_stn.patch() as patched:
        ours = by_name(input, theta, [as_int(n) for n in size])
    assert patched.report().spatial_transform == 1
    check_alike([ours], [theirs])


@pytest.mark.parametrize("corners", [None, True], ids=["None", "a side of one"])
def test_pytorchs_warnings_come_from_the_callers_line(corners):
    input, theta, _ = operands()

    def warned():
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            grid = affine_grid(theta, (2, 3, 1, 7), align_corners=corners)
            grid_sample(input, grid, align_corners=corners)
        return [(str(one.message), one.filename, one.lineno) for one in seen]

    theirs = warned()
    with triton_stn.patch():
        assert warned() == theirs and theirs


@pytest.mark.parametrize("backend", [pytest.param("eager", marks=LANDING), "aot_eager"])
@pytest.mark.parametrize("made", ["inside", "outside", "across a break"])
def test_a_compiler_gets_pytorchs_result(backend, made):
    input, theta, size = operands()

    def across(input, theta):
        grid = lazy(theta, size)
        torch._dynamo.graph_break()
        return sample(input, grid)

    def run(input, theta):
        if made == "inside":
            whole = torch.compile(by_name, backend=backend, fullgraph=True)
            return whole(input, theta, size)
        if made == "outside":
            whole = torch.compile(sample, backend=backend, fullgraph=True)
            return whole(input, lazy(theta, size))
        return torch.compile(across, backend=backend)(input, theta)

    theirs = results(by_name, input, theta, size)
    with triton_stn.patch():
        check_alike(results(run, input, theta), theirs, 1e-4)


@pytest.mark.landing
def test_a_compiler_that_was_imported_under_the_patch_works_after_it():
    script = """
import torch, torch.nn.functional as F, triton_stn
def warp(x, theta):
    grid = torch.affine_grid_generator(theta, (1, 1, 2, 2), False)
    return torch.grid_sampler(x, grid, 0, 0, False) + F.grid_sample(x, grid, align_corners=False)
x, theta = torch.rand(1, 1, 3, 3), torch.eye(2, 3)[None]
expected = warp(x, theta)
for turn in (triton_stn.patch, triton_stn.unpatch):
    turn()
    torch._dynamo.reset()
    made = torch.compile(warp, backend="aot_eager", fullgraph=True)(x, theta)
    torch.testing.assert_close(made, expected)
    torch.testing.assert_close(torch.jit.script(F.grid_sample)(x, x.new_zeros(1, 1, 1, 2)),
                               F.grid_sample(x, x.new_zeros(1, 1, 1, 2)))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)


@pytest.mark.parametrize("strict", [False, True])
def test_what_is_exported_has_pytorchs_operators(strict):
    class Network(torch.nn.Module):
        def forward(self, input, theta):
            return by_name(input, theta, (2, 3, 4, 7))

    input, theta, size = operands()
    with triton_stn.patch():
        program = torch.export.export(Network(), (input, theta), strict=strict)
    names = [str(node.target) for node in program.graph.nodes]
    assert any("grid_sampler" in name for name in names)
    check_alike([program.module()(input, theta)], [by_name(input, theta, size)])


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_script_compiles_and_has_pytorchs_operators():
    input, theta, size = operands()
    with triton_stn.patch():
        scripted = torch.jit.script(F.grid_sample)
        made = scripted(input, lazy(theta, size), align_corners=False)
    assert "torch.grid_sampler" in scripted.code
    check_alike([made], [by_name(input, theta, size)])


class Named(torch.Tensor):
    """A subclass of the usual kind: PyTorch's functions keep its type."""


@pytest.mark.parametrize("which", ["input", "theta", "both"])
def test_a_subclass_keeps_its_type(which):
    input, theta, size = operands()
    theirs = results(by_name, input, theta, size)

    def named(input, theta):
        image = input.as_subclass(Named) if which != "theta" else input
        matrix = theta.as_subclass(Named) if which != "input" else theta
        return by_name(image, matrix, size)

    with triton_stn.patch() as patched:
        ours = results(named, input, theta)
    assert isinstance(ours[0], Named)
    assert patched.report().spatial_transform == (which == "input")
    assert patched.report().grid_sample == (which != "input")
    check_alike([t.as_subclass(torch.Tensor) for t in ours], theirs)


def test_a_lazy_grid_becomes_another_subclass():
    input, theta, size = operands()
    theirs = results(by_name, input, theta, size)
    with triton_stn.patch():
        ours = results(lambda x, t: sample(x, lazy(t, size).as_subclass(Named)), input, theta)
    assert isinstance(ours[0], Named)
    check_alike([t.as_subclass(torch.Tensor) for t in ours], theirs)


@pytest.mark.parametrize("again", ["of theta", "of the grid"])
def test_second_derivatives_are_right(again):
    input, theta, size = operands(dtype=torch.float64)

    def twice():
        grid = lazy(theta, size)
        leaves = [input, theta if again == "of theta" else grid]
        loss = sample(input, grid).square().sum()
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    theirs = twice()
    with triton_stn.patch():
        check_alike(twice(), theirs, 1e-9)


def test_gradcheck_passes():
    input, theta, size = operands(dtype=torch.float64)
    with triton_stn.patch():
        function = lambda x, t: warp(x, t, size, padding_mode="border")  # noqa: E731
        assert torch.autograd.gradcheck(function, (input, theta), check_batched_grad=True)


def test_a_gradient_of_the_grid_serves_as_any_gradient():
    input, theta, size = operands(dtype=torch.float64)

    def through():
        grid = lazy(theta, size)
        (up,) = torch.autograd.grad(sample(input, grid).square().sum(), grid)
        (plain,) = torch.autograd.grad(grid, theta, up, retain_graph=True)
        up = up.detach().requires_grad_()
        (linear,) = torch.autograd.grad(grid, theta, up, create_graph=True)
        other = F.affine_grid(theta, size, align_corners=True)
        (of_other,) = torch.autograd.grad(other, theta, up)
        return plain, *torch.autograd.grad(linear.square().sum(), up), of_other

    theirs = through()
    with triton_stn.patch():
        check_alike(through(), theirs, 1e-10)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("what", ["the warp", "the sampler"])
def test_checkpoints_recompute_it(what, reentrant):
    input, theta, size = operands()

    def run(input, theta):
        if what == "the warp":
            return checkpoint(by_name, input, theta, size, use_reentrant=reentrant)
        grid = lazy(theta, size)
        once = checkpoint(sample, input, grid, use_reentrant=reentrant)
        return once + 0 * grid.sum()  # which is read before the second run

    def backward():
        input.grad = theta.grad = None
        run(input, theta).square().sum().backward()
        return input.grad, theta.grad

    theirs = backward()
    with triton_stn.patch():
        check_alike(backward(), theirs, 1e-4)


def test_what_is_saved_may_be_moved():
    input, theta, size = operands()
    theirs = results(by_name, input, theta, size)
    with triton_stn.patch(), torch.autograd.graph.save_on_cpu():
        check_alike(results(by_name, input, theta, size), theirs, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_under_autocast_the_dtypes_are_pytorchs_and_the_coordinates_are_better(dtype):
    input, theta, size = operands()
    exact = by_name(input.double(), theta.double(), size)

    def cast():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            grid = lazy(theta, size)
            return grid, sample(input.to(dtype), grid)

    grid, theirs = cast()
    with triton_stn.patch():
        lazy_grid, ours = cast()
    assert is_lazy(lazy_grid)
    assert (ours.dtype, lazy_grid.dtype) == (theirs.dtype, grid.dtype)
    assert torch.equal(lazy_grid + 0, grid + 0)  # outside of autocast
    assert (ours - exact).abs().max() <= (theirs - exact).abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_rounds_no_coordinate(dtype):
    input, theta, size = operands(dtype=dtype)
    exact = by_name(input.double(), theta.double(), size)
    theirs = by_name(input, theta, size)
    with triton_stn.patch():
        ours = by_name(input, theta, size)
    assert ours.dtype == dtype
    assert (ours - exact).abs().max() <= (theirs - exact).abs().max()


def test_a_lazy_grid_is_a_deferred_tensor_to_isinstance_alone():
    _, theta, size = operands()
    with triton_stn.patch():
        grid = lazy(theta, size)
    assert isinstance(grid, (torch.Tensor, Deferred)) and type(grid + 0) is torch.Tensor


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) or [""])
def test_an_example_of_the_docs_runs_and_prints_what_it_says(code, capsys):
    exec(compile(code, str(DOCS), "exec"), {})
    said = "\n".join(re.findall(r"^# (.*)$", code, re.M))
    assert capsys.readouterr().out.strip() == said.strip()
