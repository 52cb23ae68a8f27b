"""The gathering backward of homographies: bounded windows, and the scatter of what has none."""

from __future__ import annotations

import pytest
import torch
from conftest import Place
from oracle import assert_right, run
from test_sources import noise, sampled_by_pytorch

from triton_stn import Projective
from triton_stn.backends import fused
from triton_stn.backends.launch import Launches

# On an image of 12 x 10 and an output of 11 x 9.
GATHERED = {
    "tilted": [[0.9, -0.3, 0.12], [0.2, 1.1, -0.21], [0.25, -0.15, 1.0]],
    "mirrored": [[-1.1, 0.1, 0.05], [0.0, 0.8, 0.1], [-0.1, 0.2, 0.9]],
    "scaled": [
        [0.117, -0.039, 0.0157],
        [0.026, 0.143, -0.0273],
        [0.0325, -0.0195, 0.13],
    ],  # θ has no scale
    "zoomed_in": [[0.31, 0.02, 0.1], [-0.03, 0.29, 0.2], [0.1, 0.05, 1.0]],
    "off_image": [[1.0, 0.0, 7.0], [0.0, 1.0, 0.0], [0.2, 0.0, 1.0]],
}
SCATTERED = {
    "horizon_in_view": [[1.0, 0.3, 0.1], [0.1, 1.0, -0.1], [6.0, 2.0, 1.0]],
    "singular": [[0.93, 0.31, 0.107], [1.86, 0.62, 0.214], [0.23, 0.11, 1.0]],
    "zoomed_far_in": [[0.011, 0.0, 0.21], [0.0, 0.013, 0.13], [0.1, 0.05, 1.0]],
    "behind": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0]],
}
THETAS = GATHERED | SCATTERED
SIZE = (11, 9)
pytestmark = pytest.mark.usefixtures("guarded")


@pytest.fixture(params=[False, True], ids=["", "deterministic"])
def deterministic(request):
    torch.use_deterministic_algorithms(request.param)
    yield request.param
    torch.use_deterministic_algorithms(False)


def sample(place: Place):
    def of_place(input, theta, size, **options):
        return place.sample(input, theta, size, transform="projective", **options)

    return of_place


def case(names, dtype=torch.float32, channels=3, layout=torch.contiguous_format):
    """Images (1, C, 12, 10), one map a name for each of them, and a grad_output."""
    theta = torch.tensor([[THETAS[name] for name in names]], dtype=torch.float64)
    input = noise(1, channels, 12, 10).to(dtype).contiguous(memory_format=layout)
    grad = noise(1, len(names), channels, *SIZE, seed=9).to(dtype)
    return input, theta.to(torch.promote_types(dtype, torch.float32)), grad


def check(place: Place, input, theta, grad, **options):
    exact_sample = sampled_by_pytorch(Projective().grid)
    options = dict(mode="bilinear", padding_mode="zeros", align_corners=False) | options
    exact = run(exact_sample, input.double(), theta.double(), SIZE, grad, **options)
    rival = run(exact_sample, input.float(), theta.float(), SIZE, grad, **options)
    tensors = (t.to(place.device) for t in (input, theta))
    got = run(sample(place), *tensors, SIZE, grad.to(place.device), **options)
    assert_right(got, exact, rival)
    return got


@pytest.mark.thinned(2)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("name", THETAS)
def test_every_homography_is_right(place: Place, deterministic, name, mode, align_corners):
    input, theta, grad = case([name])
    check(place, input, theta, grad, mode=mode, align_corners=align_corners)


@pytest.mark.thinned
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_maps_of_one_image_are_gathered_and_scattered_side_by_side(kernels: Place, layout, dtype):
    names = ["tilted", "horizon_in_view", "zoomed_in"]
    check(kernels, *case(names, dtype, channels=9, layout=layout))


@pytest.mark.parametrize("name", THETAS)
def test_the_scatter_leaves_alone_what_is_gathered(kernels: Place, monkeypatch, name):
    """Without the gather, the scatter adds what it takes to zeros."""
    real = fused.launch

    def without_gather(launches, device, tensors):
        first, *others = launches.plans
        if first.kernel.__name__ == "gather":
            tensors["dX"].zero_()
            tensors["P"].zero_()
            launches = Launches(tuple(others))
        real(launches, device, tensors)

    monkeypatch.setattr(fused, "launch", without_gather)
    input, theta, grad = case([name])
    rules = dict(padding_mode="zeros", align_corners=False, mode="bilinear")
    tensors = (t.to(kernels.device) for t in (input, theta))
    got = run(sample(kernels), *tensors, SIZE, grad.to(kernels.device), **rules)
    left = bool((got.grad_input != 0).any() or (got.grad_theta != 0).any())
    # What looks at nothing has nothing to scatter, gathered or not.
    assert left == (name in SCATTERED and name != "behind")


@pytest.mark.parametrize("name", GATHERED)
def test_a_gathered_homography_gives_the_same_bits(kernels: Place, name):
    input, theta, grad = (t.to(kernels.device) for t in case([name]))
    rules = dict(padding_mode="zeros", align_corners=False, mode="bilinear")
    first, second = (run(sample(kernels), input, theta, SIZE, grad, **rules) for _ in range(2))
    assert torch.equal(first.grad_input, second.grad_input)
    assert torch.equal(first.grad_theta, second.grad_theta)


@pytest.mark.thinned
@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (1, 1), (3, 2)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_small_images(place: Place, deterministic, shape, align_corners):
    """Where a cell spans much of the image, and its w' changes several times over."""
    theta = torch.tensor([[THETAS["tilted"]]]) * torch.tensor([1.0, 1.0, 1.0])
    theta[..., 2, 0] = 0.8
    grad = noise(1, 1, 2, *SIZE, seed=9).float()
    check(place, noise(1, 2, *shape).float(), theta, grad, align_corners=align_corners)
