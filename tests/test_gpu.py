"""What only a GPU can show: real sizes, 64-bit offsets, streams, graphs, the inductor."""

from __future__ import annotations

import pytest
import torch
from conftest import GPU, Place
from oracle import THETAS, assert_right, expected, nudge, run, smooth

import triton_stn

pytestmark = pytest.mark.gpu
PLACE = Place("triton", GPU or "cuda")
ROTATION = [[0.866, -0.5, 0.02], [0.5, 0.866, -0.03]]
#             N    C    H    W   H_out W_out
REAL_SIZES = [
    (256, 1, 60, 60, 60, 60),
    (128, 3, 128, 128, 128, 128),
    (16, 3, 512, 512, 512, 512),
    (64, 64, 56, 56, 56, 56),
    (32, 256, 28, 28, 28, 28),
    (32, 3, 448, 448, 224, 224),
    (1, 3, 4096, 4096, 4096, 4096),
]
RESULTS = ("y", "grad_input", "grad_theta")


def arguments(n, c, h, w, h_out, w_out, dtype=torch.float32, layout=torch.contiguous_format):
    generator = torch.Generator(GPU).manual_seed(0)
    x = torch.randn(n, c, h, w, device=GPU, generator=generator).to(dtype)
    grad = torch.randn(n, c, h_out, w_out, device=GPU, generator=generator).to(dtype)
    theta = torch.tensor(ROTATION, device=GPU) + 0.1 * torch.randn(
        n, 2, 3, device=GPU, generator=generator
    )
    return x.contiguous(memory_format=layout), theta, grad.contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", REAL_SIZES)
def test_ten_repeats_give_the_same_bits(size, dtype, layout):
    x, theta, grad = arguments(*size, dtype, layout)
    first = run(PLACE.sample, x, theta, size[4:], grad)
    for _ in range(9):
        again = run(PLACE.sample, x, theta, size[4:], grad)
        for name in RESULTS:
            assert torch.equal(getattr(again, name), getattr(first, name)), name


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
def test_a_real_size_is_right(padding_mode, layout):
    """By the rule of the oracle, with its float64 on the device."""
    size = (4, 16, 200, 300)
    theta = nudge(torch.tensor([THETAS[kind] for kind in list(THETAS)[:4]]), *size[2:])
    keep = smooth(theta, *size[2:], size[2:], False)
    x, _, grad = arguments(*size, *size[2:], layout=layout)
    grad = grad * keep.unsqueeze(1).to(GPU)
    got = run(PLACE.sample, x, theta.to(GPU), None, grad, padding_mode=padding_mode)
    exact, eager = expected(x, theta, size[2:], grad, padding_mode=padding_mode)
    assert_right(got, exact, eager)


@pytest.mark.parametrize(
    "n, c, h, w, layout",
    [
        (3, 1, 30_000, 30_000, torch.contiguous_format),
        (1, 1, 50_000, 50_000, torch.contiguous_format),
        (1, 40, 8_000, 8_000, torch.contiguous_format),
        (1, 40, 8_000, 8_000, torch.channels_last),
    ],
    ids=["batch", "plane", "channels", "channels_last"],
)
def test_more_than_2_to_the_31_elements(n, c, h, w, layout):
    free = torch.get_device_module(GPU).mem_get_info()[0]
    need = 6 * 2 * n * c * h * w
    if free < need:
        pytest.skip(f"needs {need / 2**30:.0f} GiB of free GPU memory")
    assert n * c * h * w > 2**31
    x = torch.empty(n, c, h, w, dtype=torch.float16, device=GPU, memory_format=layout)
    for image in x:  # the generator's own temporaries stay small
        for plane in image:
            plane.copy_(torch.randint(-8, 9, plane.shape, dtype=torch.int8, device=GPU))
    theta = torch.tensor([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], device=GPU)
    theta = theta.expand(n, 2, 3).clone().requires_grad_()
    x.requires_grad_()
    y = PLACE.sample(x, theta)
    for i in range(n):
        for j in range(c):
            assert torch.equal(y[i, j], x.detach()[i, j].flip(-1))
    # Its own output is the gradient: its adjoint flips it back.
    grad_input, grad_theta = torch.autograd.grad(y, (x, theta), y.detach())
    del y
    for i in range(n):
        for j in range(c):
            assert torch.equal(grad_input[i, j], x.detach()[i, j])
    assert grad_theta.isfinite().all()


@pytest.mark.parametrize(
    "shape", [(3, 1, 30_000, 30_000), (1, 1, 65_536, 40_000)], ids=["batch", "plane"]
)
def test_a_rotation_is_right_in_the_corners_of_more_than_2_to_the_31_elements(shape):
    """In crops: the oracle's own float64 interpolation, at pixels that are far from the start."""
    n, _, h, w = shape
    x = torch.randint(-8, 9, shape, dtype=torch.int8, device=GPU).half().requires_grad_()
    theta = torch.tensor([[[0.96, -0.02, 0.01], [0.03, 0.95, -0.01]]], device=GPU)
    theta = theta.repeat(n, 1, 1).requires_grad_()
    y = PLACE.sample(x, theta)
    grad = torch.zeros_like(y)
    wanted_theta = torch.zeros(n, 2, 3, dtype=torch.float64, device=GPU)
    for top, left in ((0, 0), (h // 2, w // 2), (h - 64, 0), (h - 64, w - 64)):
        i = torch.arange(top, top + 64, dtype=torch.float64, device=GPU)[:, None]
        j = torch.arange(left, left + 64, dtype=torch.float64, device=GPU)
        exact = theta.detach()[-1].double().requires_grad_()
        rows = (2 * j + 1) / w - 1, (2 * i + 1) / h - 1
        u, v = (row[0] * rows[0] + row[1] * rows[1] + row[2] for row in exact)
        u, v = (u + 1) * w / 2 - 0.5, (v + 1) * h / 2 - 0.5
        reference = interpolate(x.detach()[-1, 0], u, v)
        here = y.detach()[-1, 0, top : top + 64, left : left + 64].double()
        # float32 coordinates are good to some 2⁻²⁴ of the size; neighbours differ by 16 at most.
        atol = 64 * max(h, w) * 2**-24
        torch.testing.assert_close(here, reference.detach(), rtol=2**-10, atol=atol)
        off_lattice = ((u - u.round()).abs() > 0.02) & ((v - v.round()).abs() > 0.02)
        weight = (torch.randn(64, 64, device=GPU) * off_lattice).half()
        grad[-1, 0, top : top + 64, left : left + 64] = weight
        wanted_theta[-1] += torch.autograd.grad(reference, exact, weight.double())[0]
    grad_input, grad_theta = torch.autograd.grad(y, (x, theta), grad)
    # ⟨g, Sx⟩ = ⟨Sᵀg, x⟩, row by row so that no temporary is large
    forward = sum(
        (g * r.double()).sum() for g, r in zip(grad[-1, 0], y.detach()[-1, 0], strict=True)
    )
    adjoint = sum(
        (d * r.double()).sum() for d, r in zip(grad_input[-1, 0], x.detach()[-1, 0], strict=True)
    )
    torch.testing.assert_close(forward, adjoint, rtol=0, atol=1e-3 * 4 * 64 * 64)
    assert grad_theta[:-1].eq(0).all()
    error = (grad_theta.double() - wanted_theta).abs().amax()
    assert error <= 1e-2 * wanted_theta.abs().amax()


def interpolate(image, u, v):
    """Bilinear, zeros outside, at pixel coordinates (u, v); differentiable in them."""
    h, w = image.shape
    total = 0
    for du in (0, 1):
        for dv in (0, 1):
            x, y = u.detach().floor() + du, v.detach().floor() + dv
            inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
            tap = image[y.clamp(0, h - 1).long(), x.clamp(0, w - 1).long()].double()
            total = total + (1 - (u - x).abs()) * (1 - (v - y).abs()) * tap * inside
    return total


SINGULAR = {
    "zero": [[0.0, 0.0, 0.1], [0.0, 0.0, -0.2]],
    "one column": [[0.9, 0.0, 0.0], [0.3, 0.0, 0.1]],
    "rank one": [[0.6, 0.3, 0.0], [0.4, 0.2, 0.1]],
    "nearly singular": [[0.6, 0.3, 0.0], [0.4, 0.2001, 0.1]],
    "zoom in 300 times": [[0.0033, 0.001, 0.1], [-0.001, 0.0033, 0.2]],
    "zoom out 300 times": [[300.0, 20.0, 0.0], [-20.0, 300.0, 0.0]],
    "anisotropic": [[40.0, 0.1, 0.0], [0.1, 0.02, 0.0]],
}


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("kind", SINGULAR)
def test_a_singular_or_extreme_theta_is_right(kind, padding_mode):
    size = (256, 256)
    theta = nudge(torch.tensor([SINGULAR[kind]]), *size)
    x, _, grad = arguments(1, 3, *size, *size)
    grad = grad * smooth(theta, *size, size, False).unsqueeze(1).to(GPU)
    got = run(PLACE.sample, x, theta.to(GPU), None, grad, padding_mode=padding_mode)
    assert_right(got, *expected(x, theta, size, grad, padding_mode=padding_mode))


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_a_side_stream_is_used(padding_mode):
    device = torch.get_device_module(GPU)
    size = (8, 3, 256, 256, 256, 256)
    x, theta, grad = arguments(*size)
    expected = run(PLACE.sample, x, theta, None, grad, padding_mode=padding_mode)
    stream = device.Stream()
    late = torch.zeros_like(x)
    device.synchronize()
    with device.stream(stream):
        if GPU == "cuda":
            torch.cuda._sleep(50_000_000)  # a kernel on another stream would read zeros
        late.copy_(x)
        got = run(PLACE.sample, late, theta, None, grad, padding_mode=padding_mode)
    stream.synchronize()
    for name in RESULTS:
        torch.testing.assert_close(getattr(got, name), getattr(expected, name))


@pytest.mark.skipif(GPU != "cuda", reason="CUDA graphs")
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_a_cuda_graph_captures_and_replays(padding_mode):
    size = (8, 3, 64, 64, 64, 64)
    x, theta, grad = arguments(*size)
    x.requires_grad_(), theta.requires_grad_()

    def step():
        y = PLACE.sample(x, theta, padding_mode=padding_mode)
        return y, *torch.autograd.grad(y, (x, theta), grad)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.normal_()
        theta.add_(0.1)
    graph.replay()
    replayed = [t.clone() for t in captured]
    for got, wanted in zip(replayed, step(), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_inductor_compiles_without_a_graph_break(layout, padding_mode):
    torch._dynamo.reset()
    x, theta, _ = arguments(4, 8, 32, 32, 16, 16, layout=layout)
    x.requires_grad_(), theta.requires_grad_()

    def loss(x, theta):
        y = triton_stn.spatial_transform(x.relu(), theta, 16, padding_mode=padding_mode)
        return (y * y).sum()

    compiled = torch.compile(loss, fullgraph=True)
    wanted = torch.autograd.grad(loss(x, theta), (x, theta))
    torch.testing.assert_close(
        torch.autograd.grad(compiled(x, theta), (x, theta)), wanted, rtol=1e-4, atol=1e-4
    )


def test_another_device_than_the_current_one_is_used():
    device = torch.get_device_module(GPU)
    if device.device_count() < 2:
        pytest.skip("needs two GPUs")
    x, theta, _ = arguments(2, 3, 16, 16, 16, 16)
    far = f"{GPU}:1"
    assert torch.equal(PLACE.sample(x.to(far), theta.to(far)).cpu(), PLACE.sample(x, theta).cpu())


def test_the_pytorch_path_runs_on_the_gpu():
    x, theta, grad = arguments(2, 3, 16, 17, 12, 11)
    theta[1, 0, 0] = torch.nan
    slow = run(Place("torch", GPU).sample, x, theta, (12, 11), grad)
    fast = run(PLACE.sample, x, theta, (12, 11), grad)
    torch.testing.assert_close(slow.y, fast.y, equal_nan=True, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(slow.grad_input, fast.grad_input, rtol=1e-3, atol=1e-3)
