"""uint8 images: read as they lie, and finished where they are stored.

A stored byte is the nearest to the exact value, but where that lies within float32's rounding of a
tie, where it may be either neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch
from conftest import PYTORCH, Place
from oracle import Results, assert_right, pytorch
from torch.autograd import forward_ad

import triton_stn

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# Sampled values up to 255 err by so much in float32: of coordinates up to 30 pixels, mostly.
ROUNDING = 2e-3
SIZE = (17, 22)


def frames(*shape, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def noise(*shape, seed=1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def maps(*leading, ndim=2) -> torch.Tensor:
    return torch.eye(ndim, ndim + 1) + 0.2 * noise(*leading, ndim, ndim + 1).clamp(-1.5, 1.5)


def in_floats(sampled: torch.Tensor, normalize) -> torch.Tensor:
    """What is documented, by PyTorch, of samples whose channels are third from last."""
    mean, std = (torch.as_tensor(value, dtype=sampled.dtype) for value in normalize)
    return (sampled / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)


def assert_bytes(got: torch.Tensor, exact: torch.Tensor) -> None:
    """``exact``: the float64 values."""
    assert got.dtype == torch.uint8 and got.shape == exact.shape
    exact = exact.clamp(0, 255)
    error = (got.double() - exact).abs()
    assert error.max() <= 0.5 + ROUNDING
    clear = (exact - exact.floor() - 0.5).abs() > ROUNDING
    assert clear.double().mean() > 0.9
    assert torch.equal(got[clear].double(), exact[clear].round())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("mode", "padding_mode"),
    [
        ("bilinear", "zeros"), ("bilinear", "border"), ("bilinear", "reflection"),
        ("nearest", "zeros"), ("bicubic", "border"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.thinned(2)
def test_bytes_are_the_nearest_to_the_float64_oracle(
    place: Place, k, mode, padding_mode, channels_last
):
    x, theta = frames(2, 3, 19, 13), maps(2) if k is None else maps(2, k)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    options = dict(mode=mode, padding_mode=padding_mode)
    got = place.sample(x.to(place.device), theta.to(place.device), SIZE, **options).cpu()
    exact = pytorch(x.double(), theta.double(), SIZE, **options)
    if mode == "nearest":
        assert torch.equal(got.double(), exact)
    else:
        assert_bytes(got, exact)


@dataclass(frozen=True)
class Case:
    """A call, its name, and what is launched for its two directions where kernels do it whole."""

    function: Any
    input: torch.Tensor
    theta: torch.Tensor
    options: dict[str, Any] = field(default_factory=dict)
    launched: tuple[str, ...] | None = ("forward", "grad_theta", "reduce")

    def __call__(self, input, theta, **options):
        return self.function(input, theta, **self.options, **options)


SPLINE = triton_stn.ThinPlateSpline(3, 3)
affine = partial(triton_stn.spatial_transform, output_size=SIZE)
IMAGES = frames(2, 3, 19, 13)
VOLUMES = frames(2, 3, 5, 9, 6)
GRID = 0.6 * noise(2, *SIZE, 2)
HOMOGRAPHY = torch.eye(3) + 0.15 * noise(2, 3, 3).clamp(-1, 1)
CASES = {
    "affine": Case(affine, IMAGES, maps(2)),
    "K": Case(affine, IMAGES, maps(2, 3)),
    "one image": Case(affine, IMAGES[:1], maps(3)),
    "border": Case(affine, IMAGES, maps(2), dict(padding_mode="border")),
    "fill": Case(affine, IMAGES, maps(2), dict(fill_value=200)),
    "fills": Case(affine, IMAGES, maps(2), dict(fill_value=[255, 0, 30.5])),
    "run of 24": Case(
        affine, frames(2, 24, 19, 13).contiguous(memory_format=torch.channels_last), maps(2)
    ),
    "run of 9 filled": Case(
        affine, frames(2, 9, 19, 13).contiguous(memory_format=torch.channels_last), maps(2),
        dict(fill_value=torch.arange(9)),
    ),
    "70 channels": Case(affine, frames(1, 70, 9, 8), maps(1)),
    "projective": Case(partial(affine, transform="projective"), IMAGES, HOMOGRAPHY),
    "spline": Case(
        partial(affine, transform=SPLINE), IMAGES, SPLINE.points + 0.1 * noise(2, 9, 2),
        launched=("forward", "grad_theta", "spline_gradient", "reduce"),
    ),
    "grid": Case(triton_stn.grid_sample, IMAGES, GRID, launched=("forward", "grad_theta")),
    "grid filled": Case(
        triton_stn.grid_sample, IMAGES, GRID, dict(fill_value=torch.tensor([1, 2, 255])),
        ("forward", "grad_theta"),
    ),
    "flow": Case(
        triton_stn.flow_warp, IMAGES, 2 * noise(2, 2, *SIZE), launched=("forward", "grad_theta")
    ),
    "volumes": Case(
        partial(triton_stn.spatial_transform, output_size=(6, 5, 7)), VOLUMES, maps(2, ndim=3)
    ),
    "bicubic": Case(affine, IMAGES, maps(2), dict(mode="bicubic"), None),
    "bicubic filled": Case(
        affine, IMAGES, maps(2), dict(mode="bicubic", fill_value=[255, 0, 30.5]), None
    ),
    "antialias": Case(affine, IMAGES, 2 * maps(2), dict(antialias=True), None),
    "volumes at a grid": Case(
        triton_stn.grid_sample, VOLUMES, 0.6 * noise(2, 3, 4, 5, 3), launched=None
    ),
}  # fmt: skip
every_case = pytest.mark.parametrize("name", CASES)


def normalize_of(case: Case):
    c = case.input.shape[1]
    return torch.linspace(0.3, 0.6, c).tolist(), torch.linspace(0.2, 0.3, c)


def exactly(case: Case, dtype, grad, normalize) -> Results:
    """The value of a case and its gradient of θ, by PyTorch from floats."""
    theta = case.theta.to(dtype, copy=True).requires_grad_()
    with triton_stn.use_backend("torch"):
        y = case(case.input.to(dtype), theta)
    shape = (-1, *(1 for _ in case.input.shape[2:]))
    mean, std = (torch.as_tensor(value).to(dtype).view(shape) for value in normalize)
    y = (y / 255 - mean) / std
    (grad_theta,) = torch.autograd.grad(y, theta, grad.to(dtype))
    return Results(y.detach(), torch.zeros(1, 1), grad_theta)


def normalized(backend: str, case: Case, normalize, grad, **options) -> Results:
    theta = case.theta.detach().requires_grad_()
    with triton_stn.use_backend(backend):
        y = case(case.input, theta, normalize=normalize, **options)
        (grad_theta,) = torch.autograd.grad(y, theta, grad.to(y.dtype))
    return Results(y.detach(), torch.zeros(1, 1), grad_theta)


def check_case(backend: str, case: Case, dtype=torch.float32) -> None:
    normalize = normalize_of(case)
    grad = noise(*case(case.input.float(), case.theta).shape, seed=3).to(dtype)
    exact, rival = (exactly(case, of, grad, normalize) for of in (torch.float64, torch.float32))
    got = normalized(backend, case, normalize, grad, output_dtype=dtype)
    assert got.y.dtype == dtype
    assert_right(got, exact, rival)
    with triton_stn.use_backend(backend):
        stored = case(case.input, case.theta)
    with triton_stn.use_backend("torch"):
        assert_bytes(stored, case(case.input.double(), case.theta.double()))


@every_case
@pytest.mark.parametrize("place", [PYTORCH])
def test_pytorch_is_right(place: Place, name):
    check_case(place.backend, CASES[name])


@every_case
def test_kernels_are_right_and_one_is_launched_a_direction(kernels: Place, launches, name):
    case = CASES[name]
    if kernels.device != "cpu":
        options = {
            key: value.to(kernels.device) if isinstance(value, torch.Tensor) else value
            for key, value in case.options.items()
        }
        case = replace(case, options=options)
    check_case(kernels.backend, case)
    if case.launched:
        kinds = [plan.kernel.__name__ for plan in launches]
        floats = kinds.index("forward") + 1  # of the shape alone
        assert tuple(kinds[floats:-1]) == case.launched and kinds[-1] == "forward"
        read = {plan.arguments["X"].ptr for plan in launches[floats:] if "X" in plan.arguments}
        assert read == {torch.uint8}


COMPILED = ("affine", "K", "fills", "run of 24", "run of 9 filled", "grid", "spline", "volumes")


@pytest.mark.compiled
@pytest.mark.parametrize(
    "name", [n if n in COMPILED[:4] else pytest.param(n, marks=pytest.mark.landing) for n in CASES]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.thinned
def test_compiled_kernels_are_right(name, dtype):
    check_case("triton", CASES[name], dtype)
