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
# Sampled values up to 255 err by so much in float32, mostly by their coordinates.
ROUNDING = 2e-3
IMAGE, SIZE = (9, 7), (8, 11)


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
    x, theta = frames(2, 3, *IMAGE), maps(2) if k is None else maps(2, k)
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
IMAGES = frames(2, 3, *IMAGE)
VOLUMES = frames(2, 3, 3, 5, 4)
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
        affine, frames(1, 24, *IMAGE).contiguous(memory_format=torch.channels_last), maps(1)
    ),
    "run of 9 filled": Case(
        affine, frames(1, 9, *IMAGE).contiguous(memory_format=torch.channels_last), maps(1),
        dict(fill_value=torch.arange(9)),
    ),
    "70 channels": Case(partial(affine, output_size=(4, 6)), frames(1, 70, 5, 4), maps(1)),
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
        partial(triton_stn.spatial_transform, output_size=(3, 4, 5)), VOLUMES, maps(2, ndim=3)
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
SLOW = ("bicubic", "antialias", "70 channels", "run of 24", "spline", "K")
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


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.landing) if n in SLOW else n for n in CASES]
)
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


COMPILED = ("fills", "run of 9 filled")


@pytest.mark.compiled
@pytest.mark.parametrize(
    "name", [n if n in COMPILED else pytest.param(n, marks=pytest.mark.landing) for n in CASES]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.thinned
def test_compiled_kernels_are_right(name, dtype):
    check_case("triton", CASES[name], dtype)


def test_ties_go_to_the_even_byte(place: Place):
    row = torch.tensor([0, 1, 2, 3, 4, 254, 255, 251], dtype=torch.uint8, device=place.device)
    half = torch.tensor([[1.0, 0, 1 / 8], [0, 1, 0]], device=place.device)  # of a pixel
    got = place.sample(row.view(1, 1, 1, 8), half).flatten().tolist()
    assert got == [0, 2, 2, 4, 129, 254, 253, 126]  # 0.5, 1.5, 2.5, 3.5, 129, 254.5, 253, 125.5


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_flipped_frames_are_the_bytes_that_they_were(place: Place, mode):
    x = torch.arange(256, dtype=torch.uint8, device=place.device).view(1, 1, 16, 16)
    flip = torch.tensor([[-1.0, 0, 0], [0, 1, 0]], device=place.device)
    got = place.sample(x, flip, mode=mode)
    assert got.dtype == torch.uint8 and torch.equal(got, x.flip(3))


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_what_is_no_byte_becomes_one(place: Place, mode):
    """A NaN 0; what lies outside of 0 to 255, the nearer end."""
    x = torch.full((4, 1, 2, 2), 7, dtype=torch.uint8, device=place.device)
    theta = torch.eye(2, 3, device=place.device).repeat(4, 1, 1)
    theta[0, 0, 2] = torch.nan
    theta[1:, 0, 2] = 9
    fills = torch.tensor([0, 0, 300, -300], device=place.device)
    got = [place.sample(x[i : i + 1], theta[i], mode=mode, fill_value=fills[i]) for i in range(4)]
    assert [int(y.unique()) for y in got] == [0, 0, 255, 0]
    floats = place.sample(x[:1], theta[0], mode=mode, output_dtype=torch.float32)
    assert floats.isnan().all()


@pytest.mark.parametrize("output_dtype", [None, torch.float16])
def test_frames_of_a_camera_stay_channels_last(place: Place, output_dtype):
    frames_hwc = frames(2, *IMAGE, 3).to(place.device)  # (N, H, W, C), as they come
    options = dict(output_dtype=output_dtype) if output_dtype else {}
    x, theta = frames_hwc.permute(0, 3, 1, 2), maps(2).to(place.device)
    y = place.sample(x, theta, SIZE, **options)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert y.dtype == (output_dtype or torch.uint8)
    assert torch.equal(y, place.sample(x.contiguous(), theta, SIZE, **options))


def test_a_dtype_alone_changes_no_unit(place: Place):
    x = frames(1, 1, *IMAGE).to(place.device)
    y = place.sample(x, torch.eye(2, 3, device=place.device), output_dtype=torch.bfloat16)
    torch.testing.assert_close(y.float(), x.float(), rtol=2**-7, atol=0)


def test_numbers_are_given_in_any_form(place: Place):
    x, theta = IMAGES.to(place.device), maps(2).to(place.device)
    mean, std = (torch.tensor(value, device=place.device) for value in (MEAN, STD))
    expected = in_floats(place.sample(x.float(), theta, SIZE), (mean, std))
    for normalize in ((MEAN, STD), (tuple(MEAN), std), (mean.double(), STD), [mean, std]):
        got = place.sample(x, theta, SIZE, normalize=normalize)
        torch.testing.assert_close(got, expected)
    same = place.sample(x, theta, SIZE, normalize=(0.5, 0.25))
    for normalize in ((mean.new_full((), 0.5), 0.25), ([0.5] * 3, 0.25), (0.5, std * 0 + 0.25)):
        torch.testing.assert_close(place.sample(x, theta, SIZE, normalize=normalize), same)


def test_numbers_that_want_a_gradient_get_one(place: Place):
    mean = torch.tensor(MEAN, device=place.device, requires_grad=True)
    theta = maps(2).to(place.device).requires_grad_()
    y = place.sample(IMAGES.to(place.device), theta, SIZE, normalize=(mean, 0.5))
    of_mean, of_theta = torch.autograd.grad(y.sum(), (mean, theta))
    torch.testing.assert_close(of_mean, torch.full_like(mean, -2.0 * y[:, 0].numel()))
    assert of_theta.abs().sum() > 0


def test_bytes_have_no_gradient(place: Place):
    theta = maps(2).to(place.device).requires_grad_()
    assert not place.sample(IMAGES.to(place.device), theta, SIZE).requires_grad
    assert place.sample(IMAGES.to(place.device), theta, SIZE, normalize=(0, 1)).requires_grad


def both(place: Place, theta):
    """The same values: of bytes, and made of floats."""
    x = IMAGES.to(place.device)
    normalize = MEAN, torch.tensor(STD, device=place.device)
    yield place.sample(x, theta, SIZE, normalize=normalize, fill_value=9)
    floats = place.sample(x.float(), theta, SIZE, fill_value=9)
    yield in_floats(floats, (torch.tensor(MEAN, device=place.device), normalize[1]))


def test_derivatives_of_every_kind_are_those_of_floats(place: Place):
    theta = maps(2).to(place.device)
    moved, grad = noise(2, 2, 3, seed=5).to(place.device), noise(2, 3, *SIZE).to(place.device)
    made = []
    for which in (0, 1):

        def f(theta, which=which):
            return list(both(place, theta))[which]

        leaf = theta.clone().requires_grad_()
        (first,) = torch.autograd.grad(f(leaf), leaf, grad, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf)
        rows = torch.autograd.grad(
            f(leaf), leaf, torch.stack((grad, 2 * grad)), is_grads_batched=True
        )
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(theta, moved))).tangent
        mapped = torch.func.vmap(f)(torch.stack((theta, theta + 0.1 * moved)))
        of_func = torch.func.grad(lambda theta: (f(theta) * grad).sum())(theta)
        made.append([first, second, *rows, tangent, mapped, of_func])
    for got, expected in zip(*made, strict=True):
        torch.testing.assert_close(
            got, expected, rtol=2e-4, atol=2e-4 * float(expected.detach().abs().max())
        )


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.uint8, marks=pytest.mark.landing), torch.float16], ids=str
)
def test_the_operators_pass_opcheck(kernels: Place, dtype):
    x, theta = frames(1, 3, 4, 3).to(kernels.device), maps(1, 2).to(kernels.device)
    finish = noise(2, 3).to(kernels.device) if dtype == torch.float16 else None
    theta.requires_grad_(dtype == torch.float16)
    options = "bilinear", "zeros", False
    arguments = (x, theta, (3, 4), *options, "affine", 7.0, None, dtype, finish)
    torch.library.opcheck(torch.ops.triton_stn.sample.default, arguments)
    if dtype.is_floating_point:
        grad = noise(1, 2, 3, 3, 4).to(kernels.device, dtype)
        arguments = (grad, x, theta.detach(), *options, False, True, "affine", 7.0, None, finish)
        torch.library.opcheck(torch.ops.triton_stn.sample_backward.default, arguments)


@pytest.mark.parametrize("arguments", [(True, "bilinear"), (False, "bicubic")])
def test_the_operators_refuse_what_no_kernel_does_of_bytes(kernels: Place, arguments):
    needs_input, mode = arguments
    x, theta = frames(1, 3, 4, 3), maps(1, 1)
    backward = torch.ops.triton_stn.sample_backward
    with pytest.raises(ValueError, match=r"input of torch.uint8 needs mode .*has no gradient"):
        backward(noise(1, 1, 3, 3, 4), x, theta, mode, "zeros", False, needs_input, True)
    with pytest.raises(ValueError, match=r"finish need an input of torch.uint8, got torch.float"):
        torch.ops.triton_stn.sample(
            x.float(), theta, (3, 4), "bilinear", "zeros", False, dtype=torch.float16
        )


@pytest.mark.parametrize(
    "options",
    [
        dict(normalize=(MEAN, STD)),
        pytest.param(dict(mode="bicubic"), marks=pytest.mark.landing),
        pytest.param({}, marks=pytest.mark.landing),
    ],
)
def test_compile_traces_it_whole(place: Place, options):
    torch._dynamo.reset()
    x, theta = IMAGES.to(place.device), maps(2).to(place.device).requires_grad_()

    def f(x, theta):
        return triton_stn.spatial_transform(x, theta, SIZE, **options).float() * 2

    with triton_stn.use_backend(place.backend):
        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        got, expected = compiled(x, theta), f(x, theta)
        torch.testing.assert_close(got, expected)
        if "normalize" in options:
            grads = (torch.autograd.grad(y.sin().sum(), theta)[0] for y in (got, expected))
            torch.testing.assert_close(*grads)


def test_a_module_hands_frames_on_ready_for_a_network(place: Place):
    class InFloats(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1).float() / 255

    module = triton_stn.nn.SpatialTransformer(
        InFloats(), 3 * 9 * 7, output_size=SIZE,
        output_dtype=torch.bfloat16, normalize=(torch.tensor(MEAN), STD),
    ).to(place.device)  # fmt: skip
    assert module.mean.device.type == place.device and "mean" not in module.state_dict()
    with triton_stn.use_backend(place.backend):
        y = module(IMAGES.to(place.device))
        y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16 and module.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5)])
def test_nothing_is_made_of_nothing(place: Place, shape):
    x = torch.zeros(shape, dtype=torch.uint8, device=place.device)
    theta = torch.eye(2, 3, device=place.device).expand(shape[0], 2, 3)
    assert place.sample(x, theta, SIZE).dtype == torch.uint8
    y = place.sample(x, theta, SIZE, output_dtype=torch.float16, normalize=(0.5, 0.5))
    assert y.shape == (*shape[:2], *SIZE) and y.dtype == torch.float16
