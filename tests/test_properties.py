"""What holds for any image and any map."""

from __future__ import annotations

import pytest
import torch
from conftest import Place
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import run, same, smooth

PADDINGS = ["zeros", "border", "reflection"]
few = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
fewer = settings(few, max_examples=4)
sizes = st.integers(1, 9)
# Multiples of 1/16 shrink well; 1/64 of a lattice step off them keeps coordinates off integers.
numbers = st.integers(-24, 24).map(lambda i: i / 16 + 1 / 64)
maps = st.lists(numbers, min_size=6, max_size=6).map(lambda six: torch.tensor(six).view(2, 3))
options = st.fixed_dictionaries(
    dict(padding_mode=st.sampled_from(PADDINGS), align_corners=st.booleans())
)


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@few
@given(theta=maps, h=sizes, w=sizes, options=options)
def test_sampling_is_linear_in_the_input(place: Place, theta, h, w, options):
    a, b = noise(1, 2, h, w).to(place.device), noise(1, 2, h, w, seed=1).to(place.device)
    theta = theta.to(place.device)
    together = place.sample(2 * a - 3 * b, theta, (5, 6), **options)
    apart = 2 * place.sample(a, theta, (5, 6), **options)
    apart = apart - 3 * place.sample(b, theta, (5, 6), **options)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-4)


@fewer
@given(theta=maps, h=sizes, w=sizes, options=options)
def test_the_backward_is_the_adjoint_of_the_forward(place: Place, theta, h, w, options):
    x, g = noise(1, 2, h, w).to(place.device), noise(1, 2, 7, 5, seed=1).to(place.device)
    got = run(place.sample, x, theta.to(place.device), (7, 5), g, **options)
    forward, backward = (g.double() * got.y).sum(), (got.grad_input.double() * x).sum()
    scale = (g.abs().double() * got.y.abs()).sum()
    torch.testing.assert_close(forward, backward, rtol=0, atol=1e-5 * float(scale) + 1e-5)


@few
@given(theta=maps, h=sizes, w=sizes, options=options)
def test_the_theta_gradient_is_the_slope_of_the_loss(place: Place, theta, h, w, options):
    """Σ dθ·θ is the derivative along θ, away from the kinks."""
    x = noise(1, 2, h, w, dtype=torch.float64).to(place.device)
    away = smooth(theta, h, w, (4, 5), options["align_corners"])
    g = (noise(1, 2, 4, 5, seed=1, dtype=torch.float64) * away).to(place.device)
    theta = theta.double().to(place.device)
    got = run(place.sample, x, theta, (4, 5), g, **options)
    step = 1e-7
    ahead = place.sample(x, theta * (1 + step), (4, 5), **options)
    behind = place.sample(x, theta * (1 - step), (4, 5), **options)
    slope = ((ahead - behind) * g).sum() / (2 * step)
    torch.testing.assert_close(slope, (got.grad_theta * theta).sum(), rtol=1e-4, atol=1e-4)


@few
@given(dx=st.integers(-9, 9), dy=st.integers(-9, 9), dtype=st.sampled_from(["float32", "float16"]))
def test_an_integer_shift_moves_every_pixel_by_as_much(kernels: Place, dx, dy, dtype):
    x = noise(1, 2, 8, 8, dtype=getattr(torch, dtype))
    theta = torch.tensor([[1, 0, dx / 4], [0, 1, dy / 4]])
    y = kernels.sample(x.to(kernels.device), theta.to(kernels.device)).cpu()
    wide = torch.nn.functional.pad(x, (9, 9, 9, 9))
    assert same(y, wide[..., 9 + dy : 17 + dy, 9 + dx : 17 + dx])


@few
@given(a=maps, b=maps)
def test_maps_compose_on_an_affine_image(place: Place, a, b):
    """Bilinear sampling reproduces an image that is affine in x and y, as far as it reaches."""
    a, b = a * 0.2, b * 0.2  # stays inside, where there is no padding
    size = 32
    pixels = (torch.arange(size) * 2 + 1) / size - 1
    image = (pixels[None, :] * 0.7 + pixels[:, None] * -0.4 + 0.1).view(1, 1, size, size)
    lift = torch.tensor([[0.0, 0.0, 1.0]])
    composed = torch.cat([a, lift]) @ torch.cat([b, lift])
    image, a, b = (t.to(place.device) for t in (image, a, b))
    twice = place.sample(place.sample(image, a), b, 6)
    once = place.sample(image, composed[:2].to(place.device), 6)
    torch.testing.assert_close(twice, once, rtol=1e-4, atol=1e-5)


@fewer
@given(seed=st.integers(0, 99), k=st.integers(1, 3), options=options)
def test_k_maps_are_a_stack_of_single_calls(place: Place, seed, k, options):
    x = noise(2, 3, 5, 6, seed=seed).to(place.device)
    theta = noise(2, k, 2, 3, seed=seed + 1).to(place.device)
    grad = noise(2, k, 3, 4, 5, seed=seed + 2).to(place.device)
    all_k = run(place.sample, x, theta, (4, 5), grad, **options)
    singles = [run(place.sample, x, theta[:, i], (4, 5), grad[:, i], **options) for i in range(k)]
    assert torch.equal(all_k.y, torch.stack([one.y for one in singles], 1))
    torch.testing.assert_close(all_k.grad_input, sum(one.grad_input for one in singles))
    torch.testing.assert_close(
        all_k.grad_theta, torch.stack([one.grad_theta for one in singles], 1), rtol=1e-4, atol=1e-4
    )


@fewer
@given(seed=st.integers(0, 99), options=options)
def test_samples_of_a_batch_do_not_depend_on_each_other(place: Place, seed, options):
    x = noise(2, 2, 5, 7, seed=seed).to(place.device)
    theta, grad = noise(2, 2, 3, seed=seed + 1), noise(2, 2, 5, 7, seed=seed + 2)
    theta, grad = theta.to(place.device), grad.to(place.device)
    batch = run(place.sample, x, theta, None, grad, **options)
    for i in range(2):
        one = slice(i, i + 1)
        alone = run(place.sample, x[one], theta[one], None, grad[one], **options)
        assert torch.equal(alone.y, batch.y[one])
        torch.testing.assert_close(alone.grad_input, batch.grad_input[one])
        torch.testing.assert_close(alone.grad_theta, batch.grad_theta[one], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_nothing_in_one_sample_touches_another(place: Place, padding_mode):
    """Bit for bit, whatever its neighbours hold."""
    x, theta, grad = noise(3, 2, 5, 7), noise(3, 2, 3, seed=1), noise(3, 2, 5, 7, seed=2)
    plain = [t.to(place.device) for t in (x, theta, grad)]
    alone = run(place.sample, *plain[:2], None, plain[2], padding_mode=padding_mode)
    x[0], theta[2], grad[0] = torch.nan, torch.inf, torch.inf
    mixed = [t.to(place.device) for t in (x, theta, grad)]
    among = run(place.sample, *mixed[:2], None, mixed[2], padding_mode=padding_mode)
    for name in ("y", "grad_input", "grad_theta"):
        assert torch.equal(getattr(among, name)[1], getattr(alone, name)[1]), name
    assert among.y[0].isnan().any() and among.y[2].isnan().all()


@fewer
@given(order=st.permutations(range(5)), theta=maps, options=options)
def test_channels_are_alike(place: Place, order, theta, options):
    """Permuting them permutes the results, bit for bit; a sum over them may round differently."""
    x, grad = noise(1, 5, 6, 7).to(place.device), noise(1, 5, 4, 9, seed=1).to(place.device)
    theta = theta[None].to(place.device)
    first = run(place.sample, x, theta, (4, 9), grad, **options)
    other = run(place.sample, x[:, order], theta, (4, 9), grad[:, order], **options)
    assert torch.equal(other.y, first.y[:, order])
    if place.device == "cpu" or options["padding_mode"] == "zeros":  # atomics have no order
        assert torch.equal(other.grad_input, first.grad_input[:, order])
    torch.testing.assert_close(other.grad_theta, first.grad_theta, rtol=1e-4, atol=1e-4)


def test_one_shared_theta_is_that_theta_for_every_image(place: Place):
    x, theta = noise(3, 2, 5, 7).to(place.device), noise(2, 3).to(place.device)
    grad = noise(3, 2, 5, 7, seed=1).to(place.device)
    shared = run(place.sample, x, theta, None, grad)
    each = run(place.sample, x, theta.expand(3, 2, 3), None, grad)
    assert torch.equal(shared.y, each.y)
    assert torch.equal(shared.grad_input, each.grad_input)
    torch.testing.assert_close(shared.grad_theta, each.grad_theta.sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("theta_dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("k", [None, 2])
def test_the_output_has_the_dtype_and_memory_format_of_the_input(
    place: Place, k, layout, dtype, theta_dtype
):
    x = noise(2, 16, 4, 3, dtype=dtype).contiguous(memory_format=layout).to(place.device)
    theta = noise(*(2, 2, 3) if k is None else (2, k, 2, 3), dtype=theta_dtype).to(place.device)
    y = place.sample(x, theta, (3, 2))
    assert y.dtype == dtype
    assert y.shape == ((2, 16, 3, 2) if k is None else (2, k, 16, 3, 2))
    assert y.flatten(0, -4).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("output_size, expected", [(None, (4, 3)), (5, (5, 5)), ([2, 7], (2, 7))])
def test_output_size_is_none_an_int_or_a_pair(place: Place, output_size, expected):
    x, theta = noise(1, 2, 4, 3).to(place.device), noise(2, 3).to(place.device)
    assert place.sample(x, theta, output_size).shape == (1, 2, *expected)
