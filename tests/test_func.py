"""`torch.func`, and gradients in batches: a mapped axis is folded into a launch, never looped."""

from __future__ import annotations

import pytest
import torch
from conftest import PYTORCH, Place
from torch.autograd.functional import hessian as plain_hessian
from torch.autograd.functional import jacobian as plain_jacobian
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vjp,
    vmap,
)
from torch.testing import assert_close

import triton_stn

SPLINE = triton_stn.ThinPlateSpline(2, 2)
TRANSFORMS = ["affine", "attention", "similarity", "projective", SPLINE]


def noise(*shape, seed=0, device="cpu"):
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made.to(device)


def images(device, batch=2):
    """(batch, N, C, H, W)."""
    return noise(batch, 2, 1, 3, 4, device=device)


def thetas(device, transform="affine", batch=2):
    """(batch, N, *)."""
    one = triton_stn.transforms.resolve(transform).identity((batch, 2), dtype=torch.float64)
    return (one + 0.1 * noise(*one.shape, seed=1)).to(device)


def sample(x, theta, size=(2, 3), **options):
    return triton_stn.spatial_transform(x, theta, size, **options)


def loss(x, theta, **options):
    return sample(x, theta, **options).square().sum()


def plain_gradients(function, *tensors):
    tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    return torch.autograd.grad(function(*tensors), tensors)


MAPPED = {"both": (0, 0), "theta": (None, 0), "input": (0, None)}


@pytest.mark.thinned
@pytest.mark.parametrize("mapped", MAPPED)
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: getattr(t, "name", t))
def test_vmap_is_a_loop(place: Place, device, transform, mapped):
    tensors = [
        tensor if dim == 0 else tensor[0]
        for tensor, dim in zip(
            (images(device), thetas(device, transform)), MAPPED[mapped], strict=True
        )
    ]

    def at(i, *tensors):
        return [t[i] if dim == 0 else t for t, dim in zip(tensors, MAPPED[mapped], strict=True)]

    def function(x, theta):
        return sample(x, theta, transform=transform)

    got = vmap(function, MAPPED[mapped])(*tensors)
    assert_close(got, torch.stack([function(*at(i, *tensors)) for i in range(2)]))
    got = vmap(grad(lambda *t: function(*t).square().sum(), (0, 1)), MAPPED[mapped])(*tensors)
    each = [
        plain_gradients(lambda *t: function(*t).square().sum(), *at(i, *tensors)) for i in range(2)
    ]
    assert_close(got, tuple(torch.stack(column) for column in zip(*each, strict=True)))


@pytest.mark.parametrize("mapped", MAPPED)
def test_a_mapped_call_is_one_launch(triton_device, launches, mapped):
    tensors = [
        tensor if dim == 0 else tensor[0]
        for tensor, dim in zip(
            (images(triton_device), thetas(triton_device)), MAPPED[mapped], strict=True
        )
    ]
    vmap(sample, MAPPED[mapped])(*tensors)
    assert [plan.kernel.__name__ for plan in launches] == ["forward"]
    launches.clear()
    vmap(grad(loss, (0, 1)), MAPPED[mapped])(*tensors)
    assert [plan.kernel.__name__ for plan in launches] == ["forward", "gather", "reduce"]


def test_mapped_axes_anywhere_and_maps_in_maps(place: Place, device):
    x, theta = images(device), thetas(device)
    each = torch.stack([torch.stack([sample(a, t) for t in theta]) for a in x])
    got = vmap(vmap(sample, (None, 0)), (0, None))(x, theta)
    assert_close(got, each)
    got = vmap(sample, (2, 1), 1)(x.movedim(0, 2), theta.movedim(0, 1))
    assert_close(got, torch.stack([each[i, i] for i in range(2)], 1))


@pytest.mark.parametrize("place", [PYTORCH])
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: getattr(t, "name", t))
def test_jacobians_and_hessians(place: Place, device, transform):
    x, theta = images(device)[0, :1], thetas(device, transform)[0, :1]

    def output(theta):
        return sample(x, theta, transform=transform, fill_value=0.3)

    expected = plain_jacobian(output, theta)
    assert_close(jacrev(output)(theta), expected)
    assert_close(jacfwd(output)(theta), expected)
    assert_close(plain_jacobian(output, theta, vectorize=True), expected)
    forward = dict(vectorize=True, strategy="forward-mode")
    assert_close(plain_jacobian(output, theta, **forward), expected)

    def penalty(theta):
        return output(theta).square().sum()

    expected = plain_hessian(penalty, theta)
    assert_close(hessian(penalty)(theta), expected)
    assert_close(jacrev(jacrev(penalty))(theta), expected)
    assert_close(plain_hessian(penalty, theta, vectorize=True), expected)


@pytest.mark.thinned
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: getattr(t, "name", t))
def test_jacobians_and_hessians_by_the_kernels(kernels: Place, transform):
    def derivatives(place):
        with triton_stn.use_backend(place.backend):
            x, theta = (
                t[0, :1].to(place.device) for t in (images("cpu"), thetas("cpu", transform))
            )

            def output(theta):
                return sample(x, theta, (1, 2), transform=transform)

            made = jacrev(output)(theta), hessian(lambda t: output(t).square().sum())(theta)
            return [tensor.cpu() for tensor in made]

    assert_close(derivatives(kernels), derivatives(Place("torch", "cpu")))


@pytest.mark.thinned
@pytest.mark.parametrize("size", [(3, 4), (2, 3, 4)], ids=["images", "volumes"])
@pytest.mark.parametrize("name", ["grid_sample", "flow_warp", "splat", "grid_splat"])
def test_the_other_functions(place: Place, device, name, size):
    ndim = len(size)
    x = noise(2, 2, 1, *size, device=device)
    function = getattr(triton_stn, name)
    if name == "flow_warp":
        theta = noise(2, 2, ndim, *size, seed=1, device=device)
    elif name == "splat":
        theta = thetas(device, triton_stn.Affine(ndim))
    else:
        theta = 0.5 * noise(2, 2, *size, ndim, seed=1, device=device)
    assert_close(
        vmap(function)(x, theta), torch.stack([function(*t) for t in zip(x, theta, strict=True)])
    )

    def penalty(theta):
        return function(x[0], theta).square().sum()

    assert_close(grad(penalty)(theta[0]), plain_gradients(penalty, theta[0])[0])
    tangent = torch.ones_like(theta[0])
    slope = jvp(penalty, (theta[0],), (tangent,))[1]
    assert_close(slope, (grad(penalty)(theta[0]) * tangent).sum())


@pytest.mark.parametrize("place", [PYTORCH])
def test_antialiased(place: Place, device):
    """Maps that take different numbers of samples."""
    x, theta = (
        images(device),
        thetas(device) * torch.tensor([1.3, 2.4], device=device)[:, None, None, None],
    )

    def function(x, theta):
        return sample(x, theta, (1, 2), antialias=True)

    assert_close(
        vmap(function)(x, theta), torch.stack([function(*t) for t in zip(x, theta, strict=True)])
    )
    got = vmap(grad(lambda *t: function(*t).square().sum(), 1))(x, theta)
    each = [
        plain_gradients(lambda *t: function(*t).square().sum(), *t)[1]
        for t in zip(x, theta, strict=True)
    ]
    assert_close(got, torch.stack(each))
    assert_close(jacfwd(function, 1)(x[0], theta[0]), jacrev(function, 1)(x[0], theta[0]))


def test_a_pullback_outlives_its_transform(place: Place, device):
    x, theta = images(device)[0], thetas(device)[0]
    y, pull = vjp(sample, x, theta)
    expected = plain_gradients(lambda *t: sample(*t).sum(), x, theta)
    assert_close(pull(torch.ones_like(y)), expected)


def test_batched_gradients_of_a_plain_graph(place: Place, device):
    x, theta = images(device)[0], thetas(device)[0].requires_grad_()
    y = sample(x, theta, (1, 2))
    basis = torch.eye(y.numel(), dtype=y.dtype, device=device).view(-1, *y.shape)
    (got,) = torch.autograd.grad(y, theta, basis, is_grads_batched=True)
    assert_close(got, jacrev(sample, 1)(x, theta.detach(), (1, 2)).flatten(0, y.ndim - 1))


def test_ensembles_and_gradients_a_sample(place: Place, device):
    x = images(device)[0]
    nets = [triton_stn.nn.SpatialTransformer(torch.nn.Flatten(), 12) for _ in range(2)]
    for seed, net in enumerate(nets):
        net.double().to(device).head.weight.data = 0.02 * noise(6, 12, seed=seed, device=device)
    weights, _ = stack_module_state(nets)

    def run(weights, x):
        return functional_call(nets[0], weights, (x,))

    got = vmap(run, (0, None))(weights, x)
    assert_close(got, torch.stack([net(x) for net in nets]))
    of_each = vmap(grad(lambda w, x: run(w, x[None]).square().sum()), (None, 0))(
        dict(nets[0].named_parameters()), x
    )
    for i, image in enumerate(x):
        nets[0].zero_grad()
        nets[0](image[None]).square().sum().backward()
        for name, weight in nets[0].named_parameters():
            assert_close(of_each[name][i], weight.grad)


def test_what_leaks_out_of_a_transform_is_sampled_afterwards(place: Place):
    leaked = []

    def of(x):
        leaked.append(2 * x)
        return x.sum()

    x = images(place.device)[0]
    grad(of)(x)
    for _ in range(2):  # the second call would be a kept one
        theta = thetas(place.device)[0].requires_grad_()
        sample(leaked[0], theta).sum().backward()
        expected = thetas(place.device)[0].requires_grad_()
        sample(2 * x, expected).sum().backward()
        assert_close(theta.grad, expected.grad)
