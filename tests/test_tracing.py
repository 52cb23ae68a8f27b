"""Values are never looked at under tracing: compilers, fakes, meta tensors, tracers."""

from __future__ import annotations

import shutil
from functools import partial

import pytest
import torch
from conftest import PYTORCH, Place
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

import triton_stn
from triton_stn import geometry, spatial_transform

SPLINE = triton_stn.ThinPlateSpline(2, 2)
CALLS = {
    "affine": ("affine", {}),
    "antialiased": ("affine", dict(antialias=True)),
    "spline": (SPLINE, {}),
    "antialiased spline": (SPLINE, dict(antialias=True)),
    "filled": ("projective", dict(fill_value=[1.0, 2.0])),
}
needs_a_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
by_pytorch = pytest.mark.parametrize("place", [PYTORCH])
of_each = pytest.mark.parametrize("name", CALLS)


def loss(name):
    transform, options = CALLS[name]

    def call(x, theta):
        return spatial_transform(x, theta, (2, 3), transform=transform, **options).square().sum()

    return call


def arguments(name, size=(5, 6)):
    transform = triton_stn.transforms.resolve(CALLS[name][0])
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 2, *size, generator=generator)
    theta = 1.3 * transform.identity(2)
    return x.requires_grad_(), (theta + 0.05 * torch.rand_like(theta)).requires_grad_()


@by_pytorch
@of_each
def test_a_compiler_traces_it_whole(place: Place, device, name):
    torch._dynamo.reset()
    function = loss(name)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for size in ((5, 6), (7, 4)):
        tensors = arguments(name, size)
        expected = torch.autograd.grad(function(*tensors), tensors)
        assert_close(torch.autograd.grad(compiled(*tensors), tensors), expected)


def tensor(*shape):
    return torch.rand(*shape).requires_grad_()


# (call, its second argument for an image or a volume of (n, h, w))
DYNAMIC = {
    "affine": (spatial_transform, lambda n, h, w: tensor(n, h - 2, 2, 3)),
    "spline": (partial(spatial_transform, transform=SPLINE), lambda n, h, w: tensor(n, 4, 2)),
    "antialiased": (partial(spatial_transform, antialias=True), lambda n, h, w: tensor(n, 2, 3)),
    "grid": (triton_stn.grid_sample, lambda n, h, w: tensor(n, w, h, 2)),
    "volume": (spatial_transform, lambda n, h, w: tensor(n, 3, 4)),
}


@by_pytorch
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.nightly] * (name not in ("affine", "grid")))
        for name in DYNAMIC
    ],
)
def test_a_third_shape_compiles_nothing(place: Place, device, name):
    torch._dynamo.reset()
    call, second = DYNAMIC[name]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(call, fullgraph=True, backend=counter)
    for n, c, h, w in ((2, 2, 5, 6), (3, 4, 4, 3), (4, 3, 7, 8)):
        size = (w, h, w) if name == "volume" else (h, w)
        x, other = tensor(n, c, *size), second(n, h, w)
        expected = torch.autograd.grad(call(x, other).square().sum(), (x, other))
        assert_close(torch.autograd.grad(compiled(x, other).square().sum(), (x, other)), expected)
    assert counter.frame_count <= 2


@by_pytorch
@of_each
def test_a_compiler_reads_channels_last_images(place: Place, device, name):
    torch._dynamo.reset()
    x, theta = arguments(name)
    x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    function = loss(name)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(function(x, theta), (x, theta))
    assert_close(torch.autograd.grad(compiled(x, theta), (x, theta)), expected)


@of_each
def test_tensors_without_numbers(place: Place, device, name):
    """Of FakeTensorMode, and on the meta device."""
    tensors = [t.detach() for t in arguments(name)]
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t).requires_grad_() for t in tensors]
        loss(name)(*fakes).backward()
        assert [fake.grad.shape for fake in fakes] == [t.shape for t in tensors]
    if place.backend == "torch":  # no other is there for a meta tensor
        fakes = [t.to("meta").requires_grad_() for t in tensors]
        loss(name)(*fakes).backward()
        assert [fake.grad.shape for fake in fakes] == [t.shape for t in tensors]


@by_pytorch
@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python:torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@of_each
def test_jit_trace_passes_its_own_check(place: Place, device, name):
    tensors = [t.detach() for t in arguments(name)]
    traced = torch.jit.trace(loss(name), tuple(tensors), check_trace=True)
    assert_close(traced(*tensors), loss(name)(*tensors))


@by_pytorch
@pytest.mark.parametrize("name", ["affine", "spline", "filled"])
def test_make_fx_of_a_gradient(place: Place, device, name):
    tensors = [t.detach() for t in arguments(name)]
    gradient = torch.func.grad(loss(name), (0, 1))
    assert_close(make_fx(gradient)(*tensors)(*tensors), gradient(*tensors))


@by_pytorch
def test_a_compiler_maps(place: Place, device):
    torch._dynamo.reset()
    x, theta = (t.detach() for t in arguments("affine"))
    function = torch.func.vmap(loss("affine"))
    tensors = torch.stack((x, x.flip(0))), torch.stack((theta, 0.9 * theta))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_close(compiled(*tensors), function(*tensors))


@pytest.mark.landing
@needs_a_compiler
@by_pytorch
def test_inductor_compiles_forward_and_backward(place: Place, device):
    torch._dynamo.reset()
    tensors, function = arguments("affine"), loss("affine")
    compiled = torch.compile(function, fullgraph=True)
    expected = torch.autograd.grad(function(*tensors), tensors)
    assert_close(torch.autograd.grad(compiled(*tensors), tensors), expected)


@pytest.mark.landing
@needs_a_compiler
def test_a_package_of_aot_inductor_calls_the_operator(triton_device, kernels: Place, tmp_path):
    class Sampler(torch.nn.Module):
        def forward(self, x, theta):
            return 2 * spatial_transform(x, theta)

    x, theta = (t.detach().to(triton_device) for t in arguments("affine"))
    n = torch.export.Dim("n", min=1)
    exported = torch.export.export(Sampler(), (x, theta), dynamic_shapes=({0: n}, {0: n}))
    assert "triton_stn.sample" in str(exported.graph)
    file = torch._inductor.aoti_compile_and_package(exported, package_path=f"{tmp_path}/made.pt2")
    other = x[:1], theta[1:]
    assert_close(torch._inductor.aoti_load_package(file)(*other), Sampler()(*other))


def test_a_compiler_traces_geometry_whole():
    torch._dynamo.reset()
    theta = arguments("affine")[1].detach()

    def both(theta):
        return geometry.invert(theta), geometry.from_pixel_matrix(theta, (5, 6))

    assert_close(torch.compile(both, fullgraph=True, backend="aot_eager")(theta), both(theta))


@by_pytorch
@pytest.mark.parametrize("size", [(5, 6), (3, 4, 5)], ids=["image", "volume"])
def test_the_operators_of_means_pass_opcheck(place: Place, device, size):
    """Which a compiler calls on the CPU too, for their samples are as many as values say."""
    ndim = len(size)
    x = torch.rand(1, 2, *size).requires_grad_()
    theta = (1.6 * torch.eye(ndim, ndim + 1)).expand(1, 2, -1, -1).clone().requires_grad_()
    size = (2,) * ndim
    operators = torch.ops.triton_stn
    torch.library.opcheck(operators.sample.default, (x, theta, size, "area", "zeros", False))
    grad = torch.rand(1, 2, 2, *size)
    options = ("area", "zeros", False, True, True)
    arguments = (grad, x.detach(), theta.detach(), *options)
    torch.library.opcheck(operators.sample_backward.default, arguments)
    y = operators.sample(x, theta, size, "area", "zeros", False)
    plain = torch.stack([spatial_transform(x, t, size, antialias=True) for t in theta.unbind(1)], 1)
    assert_close(y, plain)
    assert_close(*(torch.autograd.grad(made, (x, theta), grad) for made in (y, plain)))
