"""The registered operators: torch.compile traces them whole, opcheck finds nothing."""

from __future__ import annotations

import pytest
import torch
from conftest import Place
from oracle import run

import triton_stn

PADDINGS = ["zeros", "border", "reflection"]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
OPTIONS = ("bilinear", "zeros", False)


def noise(*shape, seed=0, device="cpu"):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def theta_of(n, device="cpu"):
    return (torch.eye(2, 3) + 0.3 * noise(n, 2, 3, seed=7)).to(device)


def arguments(place, layout):
    """input (1, C, 4, 3), theta (1, 2, 2, 3), grad_output (1, 2, C, 3, 4); small and all cases."""
    c = 8 if layout == torch.channels_last else 2
    x = noise(1, c, 4, 3, device=place.device).contiguous(memory_format=layout)
    theta = theta_of(2, place.device).view(1, 2, 2, 3)
    return x, theta, noise(1, 2, c, 3, 4, seed=1, device=place.device)


@pytest.mark.thinned
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_traces_forward_and_backward_whole(place: Place, dynamic, padding_mode):
    torch._dynamo.reset()

    def loss(x, theta):
        y = triton_stn.spatial_transform(x.relu(), theta, (4, 5), padding_mode=padding_mode)
        return (y * y).sum()

    with triton_stn.use_backend(place.backend):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        for h in (5, 6):
            x = noise(2, 3, h, 6, device=place.device).requires_grad_()
            theta = theta_of(2, place.device).requires_grad_()
            expected = torch.autograd.grad(loss(x, theta), (x, theta))
            got = torch.autograd.grad(compiled(x, theta), (x, theta))
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("requires_grad", "padding_mode"),
    [
        ((False, False), "zeros"),
        ((True, True), "zeros"),
        ((False, True), "zeros"),
        ((True, False), "border"),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_forward_operator_passes_opcheck(kernels: Place, layout, padding_mode, requires_grad):
    x, theta, _ = arguments(kernels, layout)
    x.requires_grad_(requires_grad[0]), theta.requires_grad_(requires_grad[1])
    operator = torch.ops.triton_stn.sample.default
    torch.library.opcheck(operator, (x, theta, (3, 4), "bilinear", padding_mode, False))


@pytest.mark.parametrize(
    ("needs", "padding_mode"),
    [
        ((True, True), "zeros"),
        ((True, False), "zeros"),
        ((False, True), "zeros"),
        ((True, True), "border"),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_backward_operator_passes_opcheck(kernels: Place, layout, padding_mode, needs):
    x, theta, grad = arguments(kernels, layout)
    operator = torch.ops.triton_stn.sample_backward.default
    torch.library.opcheck(operator, (grad, x, theta, "bilinear", padding_mode, True, *needs))


def test_the_operator_differentiates_itself(kernels: Place):
    x, theta, grad = arguments(kernels, torch.contiguous_format)
    direct = run(operator, x, theta, (3, 4), grad)
    public = run(kernels.sample, x, theta, (3, 4), grad)
    for name in ("y", "grad_input", "grad_theta"):
        assert torch.equal(getattr(direct, name), getattr(public, name))


@pytest.mark.parametrize(
    ("input", "theta", "source", "said"),
    [
        (
            (3, 4, 5),
            (1, 1, 2, 3),
            "affine",
            r"input must have shape \(N, C, H, W\), got \(3, 4, 5\)",
        ),
        ((1, 3, 4, 5), (1, 2, 3), "affine", r"theta must have shape \(N, K, 2, 3\) of the source"),
        ((1, 3, 4, 5), (1, 1, 2, 3), "projective", r"\(N, K, 3, 3\) of the source 'projective'"),
        ((1, 3, 4, 5), (1, 3, 4, 2), "grid", r"\(N, K, H_out, W_out, 2\) of the source 'grid'"),
        ((1, 3, 4, 5), (1, 1, 2, 3), "tps", "source must name what theta is, got 'tps'"),
    ],
)
@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_operands_of_wrong_ranks_are_refused(input, theta, source, said, where):
    x, theta = torch.zeros(input, device=where), torch.zeros(theta, device=where)
    sample, backward = torch.ops.triton_stn.sample, torch.ops.triton_stn.sample_backward
    with pytest.raises(ValueError, match=said):
        sample(x, theta, (3, 4), *OPTIONS, source)
    if where == "cpu":
        grad = torch.zeros(1, 1, 3, 3, 4)
        with pytest.raises(ValueError, match=said):
            backward(grad, x, theta, *OPTIONS, True, True, source)


def operator(x, theta, size):
    return torch.ops.triton_stn.sample(x, theta, size, *OPTIONS)


def test_fake_outputs_have_the_strides_of_real_ones(kernels: Place):
    for layout in (torch.contiguous_format, torch.channels_last):
        for k in (1, 3):
            x = noise(2, 9, 4, 3, device=kernels.device).contiguous(memory_format=layout)
            theta = theta_of(2 * k, kernels.device).view(2, k, 2, 3)
            real = torch.ops.triton_stn.sample(x, theta, (3, 4), *OPTIONS)
            fake = torch.ops.triton_stn.sample(x.to("meta"), theta.to("meta"), (3, 4), *OPTIONS)
            assert real.shape == fake.shape and real.stride() == fake.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("leading", [(), (1,), (1, 2)], ids=["shared", "N", "NK"])
def test_compiled_output_has_the_numbers_and_strides_of_the_uncompiled(
    place: Place, leading, layout
):
    torch._dynamo.reset()
    x, theta = arguments(place, layout)[0], noise(*leading, 2, 3, seed=5, device=place.device)
    with triton_stn.use_backend(place.backend):
        compiled = torch.compile(triton_stn.spatial_transform, fullgraph=True, backend="aot_eager")
        got, plain = compiled(x, theta, 5), triton_stn.spatial_transform(x, theta, 5)
    assert got.stride() == plain.stride()
    torch.testing.assert_close(got, plain)


@pytest.mark.parametrize(
    "name", ["projective", "tps", "similarity", "grid", "flow", "fill", "splat"]
)
def test_compile_traces_every_source_whole(place: Place, name):
    torch._dynamo.reset()
    transform = triton_stn.ThinPlateSpline(2, 3) if name == "tps" else name
    if name in ("grid", "flow"):
        last = (4, 5, 2) if name == "grid" else (2, 5, 6)
        theta = noise(2, *last, seed=3, device=place.device)
    else:
        transform = "affine" if name in ("fill", "splat") else transform
        kind = triton_stn.transforms.resolve(transform)
        theta = kind.identity(2, device=place.device)
        theta = theta + 0.1 * noise(*theta.shape, seed=3, device=place.device)

    def loss(x, theta):
        if name == "grid":
            y = triton_stn.grid_sample(x, theta)
        elif name == "flow":
            y = triton_stn.flow_warp(x, theta)
        elif name == "splat":
            y = triton_stn.splat(x, theta, (4, 5), normalize=True)
        else:
            fill_value = 2.0 if name == "fill" else None
            y = triton_stn.spatial_transform(
                x, theta, (4, 5), transform=transform, fill_value=fill_value
            )
        return (y * y).sum()

    with triton_stn.use_backend(place.backend):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        # Scattered sums have no fixed order: in float64 that is no difference to speak of.
        x = noise(2, 3, 5, 6, device=place.device).double().requires_grad_()
        theta = theta.double().requires_grad_()
        expected = torch.autograd.grad(loss(x, theta), (x, theta))
        got = torch.autograd.grad(compiled(x, theta), (x, theta))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("source", ["grid", "flow"])
def test_the_operators_of_fields_of_volumes_pass_opcheck(kernels: Place, source):
    x, theta, grad = (
        noise(*shape, seed=seed, device=kernels.device)
        for seed, shape in enumerate([(1, 2, 3, 4, 3), (1, 2, 2, 3, 2, 3), (1, 2, 2, 2, 3, 2)])
    )
    operators = torch.ops.triton_stn
    torch.library.opcheck(operators.sample.default, (x, theta, (2, 3, 2), *OPTIONS, source))
    backward = (grad, x, theta, *OPTIONS, True, True, source)
    torch.library.opcheck(operators.sample_backward.default, backward)


@pytest.mark.parametrize("source", ["projective", "spline", "grid", "flow", "patch"])
def test_the_operators_of_every_source_pass_opcheck(kernels: Place, source):
    x, _, grad = arguments(kernels, torch.contiguous_format)
    last = {"projective": (3, 3), "spline": (6, 4), "patch": (3, 4, 6)}.get(source, (3, 4, 2))
    theta = noise(1, 2, *last, seed=4, device=kernels.device)
    operators = torch.ops.triton_stn
    rules = ("area" if source == "patch" else "bilinear", "zeros", False)
    torch.library.opcheck(operators.sample.default, (x, theta, (3, 4), *rules, source))
    backward = (grad, x, theta, *rules, True, True, source)
    torch.library.opcheck(operators.sample_backward.default, backward)
