"""What computes on a device takes no numbers from the host: on a GPU such a copy waits for it, and
the capture of a CUDA graph refuses it.

Without a GPU, "meta" stands for one.
"""

from __future__ import annotations

import pytest
import torch
from torch.overrides import TorchFunctionMode

import triton_stn
from triton_stn import geometry, nn
from triton_stn.backends import numbers
from triton_stn.backends.finish import finish_of
from triton_stn.transforms import Affine, Attention, Projective, Similarity, ThinPlateSpline

AWAY = torch.device("meta")
FROM_NUMBERS = (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)
EVERY = [
    Affine(),
    Affine(ndim=3),
    Attention(),
    Similarity(),
    Projective(),
]
every_transform = pytest.mark.parametrize("transform", EVERY, ids=repr)


class HostCopies(TorchFunctionMode):
    """Lists the calls that bring numbers or a tensor of the host to AWAY."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device == AWAY:
            tensors = [a for a in args if isinstance(a, torch.Tensor)]
            if function in FROM_NUMBERS:
                copies = function == torch.Tensor.new_tensor or not tensors
            else:
                copies = function in (torch.Tensor.to, torch.Tensor.copy_)
                copies = copies and any(a.device != AWAY for a in tensors)
            if copies:
                self.found.append(function.__name__)
        return result


@pytest.fixture
def host_copies():
    mode = HostCopies()
    yield mode
    assert mode.found == []


def test_a_copy_is_found():
    with HostCopies() as mode:
        torch.tensor([1.0], device=AWAY)
        torch.empty(1, device=AWAY).new_tensor([1.0])
        torch.ones(1).to(AWAY)
    assert mode.found == ["tensor", "new_tensor", "to"]


def test_a_vector_is_filled_in(host_copies):
    with host_copies:
        got = numbers.vector([0.5, 2], torch.empty((), dtype=torch.float64, device=AWAY))
    assert got.shape == (2,)
    assert got.dtype == torch.float64


@pytest.mark.parametrize("std", [0.25, [0.2, 0.3, 0.4], torch.ones(3, device=AWAY)], ids=str)
def test_bytes_are_normalised_by_numbers_of_the_device(std, host_copies):
    x = torch.empty(2, 3, 4, 5, dtype=torch.uint8, device=AWAY)
    theta = torch.empty(2, 2, 3, device=AWAY)
    with host_copies:
        y = triton_stn.spatial_transform(x, theta, 6, normalize=([0.5, 0.4, 0.3], std))
    assert y.dtype == torch.float32 and y.device == AWAY


def test_the_numbers_of_a_call_are_made_once():
    like = torch.empty(1, 3, 2, 2, dtype=torch.uint8)
    first, again, other = (
        finish_of(None, (0.5, std), like).table for std in (0.25, 0.25, [0.25, 0.5, 0.125])
    )
    assert first is again and first.shape == (2,) and other.shape == (2, 3)


def theta_of(transform):
    return torch.empty(2, *transform.theta_shape, device=AWAY)


@every_transform
def test_a_penalty_is_computed_on_the_device(transform, host_copies):
    theta = theta_of(transform)
    with host_copies:
        assert nn.identity_penalty(theta, transform).device == AWAY
        size = (5,) * transform.ndim
        assert nn.out_of_view_penalty(theta, size, transform).device == AWAY


@every_transform
def test_grids_and_identities_are_made_on_the_device(transform, host_copies):
    theta = theta_of(transform)
    with host_copies:
        assert transform.grid(theta, 6).device == AWAY
        assert transform.identity(3, device=AWAY).shape == (3, *transform.theta_shape)
        if transform.ndim == 2:
            transform.patches(theta, 4)
        transform.kernel_theta(theta)


def test_a_spline_is_copied_to_the_device_once(host_copies):
    transform = ThinPlateSpline(3, 4)
    theta = theta_of(transform)
    transform.kernel_theta(theta)
    with host_copies:
        transform.kernel_theta(theta)
        assert transform.identity(3, device=AWAY).shape == (3, 12, 2)
        assert nn.identity_penalty(theta, transform).device == AWAY


@pytest.mark.parametrize("dtype", [None, torch.float64], ids=str)
def test_theta_is_built_of_numbers_on_the_device(dtype, host_copies):
    scale = torch.empty(4, 1, device=AWAY)
    with host_copies:
        mixed = geometry.affine((5, 6), 7, scale=scale, rotation=0.5, shear=(0.1, 0), dtype=dtype)
        alone = geometry.affine(5, scale=2, translation=(0.5, 0), dtype=dtype, device=AWAY)
    assert mixed.shape == (4, 2, 3)
    assert alone.dtype == (dtype or torch.get_default_dtype())


@pytest.mark.parametrize("align_corners", [False, True])
def test_geometry_is_computed_on_the_device(align_corners, host_copies):
    theta = torch.empty(2, 2, 3, device=AWAY)
    sizes = (5, 6), (7, 8), align_corners
    with host_copies:
        assert geometry.from_pixel_matrix(theta, *sizes).device == AWAY
        assert geometry.to_pixel_matrix(theta, *sizes).device == AWAY
        assert geometry.quadrilateral(theta, *sizes).device == AWAY
        assert geometry.inside_mask(theta, *sizes).device == AWAY
        assert geometry.valid_fraction(theta, *sizes).device == AWAY
        assert geometry.compose(theta, theta).device == AWAY
