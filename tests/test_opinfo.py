"""PyTorch's own OpInfo of `F.grid_sample`, with `triton_stn.grid_sample` in its place.

Its samples go through the checks of PyTorch's ``test_ops``, ``test_ops_gradients``,
``test_ops_fwd_gradients``, ``test_vmap`` and ``test_fake_tensor`` that eager passes, and forward
mode besides, which eager has not.
"""

from __future__ import annotations

import functools

import pytest
import torch
from conftest import INTERPRETED, PYTORCH, Place
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

import triton_stn

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
STEPS = dict(fast_mode=True, eps=1e-7, atol=1e-4)
# On images and volumes, modes, paddings, align_corners; PyTorch has no tricubic.
COUNT = 3 * 3 * 2 + 2 * 3 * 2
PLACES = [
    PYTORCH,
    pytest.param(*INTERPRETED.values, marks=[*INTERPRETED.marks, pytest.mark.landing]),
]
of_each_sample = pytest.mark.parametrize("index", range(COUNT))
by_pytorch = pytest.mark.parametrize("place", [PYTORCH])


@functools.cache
def op_info():
    pytest.importorskip("expecttest")
    invocations = pytest.importorskip("torch.testing._internal.common_methods_invocations")
    return next(op for op in invocations.op_db if op.name == "nn.functional.grid_sample")


def sample(index, dtype=torch.float64, requires_grad=False):
    samples = list(op_info().sample_inputs("cpu", dtype, requires_grad=requires_grad))
    assert len(samples) == COUNT
    return samples[index]


def call(function, made, *tensors):
    input, grid = tensors or (made.input, made.args[0])
    return function(input, grid, *made.args[1:], **made.kwargs)


def leaves(made):
    return [t.detach().clone().requires_grad_() for t in (made.input, made.args[0])]


@of_each_sample
@pytest.mark.parametrize("place", PLACES)
def test_values_and_gradients(place: Place, device, index):
    made = sample(index)
    tensors = leaves(made)
    got, expected = (call(f, made, *tensors) for f in (triton_stn.grid_sample, op_info().op))
    assert_close(got, expected)
    up = torch.randn_like(expected)
    assert_close(*(torch.autograd.grad(y, tensors, up) for y in (got, expected)))


@pytest.mark.landing
@of_each_sample
@by_pytorch
@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_values_in_other_dtypes(place: Place, device, index, dtype):
    """Within twice eager's own error, of float64; nearest by the same pixels where both agree."""
    made = sample(index, dtype)
    exact = call(op_info().op, made, made.input.double(), made.args[0].double())
    got, eager = (call(f, made) for f in (triton_stn.grid_sample, op_info().op))
    assert got.dtype == dtype and got.shape == eager.shape
    error, allowed = ((y.double() - exact).abs().amax() for y in (got, eager))
    assert error <= 2 * allowed + 4 * torch.finfo(dtype).eps * exact.abs().amax()


@pytest.mark.landing
@of_each_sample
@by_pytorch
def test_derivatives(place: Place, device, index):
    """Backward, forward, of second order, batched, for undefined gradients."""
    made = sample(index)

    def function(*tensors):
        return call(triton_stn.grid_sample, made, *tensors)

    tensors = leaves(made)
    assert gradcheck(function, tensors, check_forward_ad=True, check_batched_grad=True, **STEPS)
    assert gradgradcheck(function, tensors, check_batched_grad=True, **STEPS)


@pytest.mark.landing
@of_each_sample
@pytest.mark.parametrize("place", PLACES)
def test_strides_of_every_kind(place: Place, device, index):
    made = sample(index)
    scattered = made.noncontiguous()
    assert_close(call(triton_stn.grid_sample, scattered), call(triton_stn.grid_sample, made))


@pytest.mark.landing
@of_each_sample
@by_pytorch
def test_fake_tensors(place: Place, device, index):
    from torch._subclasses.fake_tensor import FakeTensorMode

    made = sample(index)
    expected = call(triton_stn.grid_sample, made)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t).requires_grad_() for t in (made.input, made.args[0])]
        fake = call(triton_stn.grid_sample, made, *fakes)
        fake.sum().backward()
    assert (fake.shape, fake.dtype, fake.stride()) == (
        expected.shape,
        expected.dtype,
        expected.stride(),
    )
    assert [t.grad.shape for t in fakes] == [t.shape for t in fakes]


@pytest.mark.landing
@of_each_sample
@by_pytorch
@pytest.mark.parametrize("dims", [(0, 0), (0, None), (None, 0)])
def test_vmap(place: Place, device, index, dims):
    made = sample(index)
    tensors = [
        t if dim is None else torch.stack((t, t.flip(0), -t))
        for t, dim in zip((made.input, made.args[0]), dims, strict=True)
    ]

    def function(*tensors):
        return call(triton_stn.grid_sample, made, *tensors)

    each = [
        function(*(t if dim is None else t[i] for t, dim in zip(tensors, dims, strict=True)))
        for i in range(3)
    ]
    assert_close(torch.vmap(function, dims)(*tensors), torch.stack(each))


@pytest.mark.landing
@of_each_sample
@by_pytorch
def test_arguments_are_left_alone(place: Place, device, index):
    made = sample(index)
    before = made.input.clone(), made.args[0].clone()
    call(triton_stn.grid_sample, made)
    assert torch.equal(made.input, before[0]) and torch.equal(made.args[0], before[1])
