"""Value and both gradients against float64 PyTorch, over shapes, paddings, dtypes and θ."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import INTERPRETED, ON_GPU, PYTORCH
from oracle import THETAS, assert_right, expected, nudge, run, smooth

#          K  C   H   W   H_out W_out; K = 0: one (2, 3) for the batch
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (1, 3, 1, 9, 1, 9),
    (1, 1, 9, 1, 9, 1),
    (1, 1, 7, 13, 7, 13),
    (1, 3, 7, 13, 7, 13),
    (0, 3, 13, 7, 13, 7),
    (1, 17, 7, 13, 5, 4),
    (1, 64, 6, 5, 6, 5),
    (1, 3, 31, 33, 31, 33),
    (1, 1, 31, 33, 12, 10),
    (1, 3, 8, 8, 20, 16),
    (1, 3, 1, 1, 5, 4),
    (3, 3, 9, 8, 6, 7),
    (3, 1, 7, 13, 7, 13),
    (3, 17, 4, 5, 3, 4),
    (0, 1, 16, 16, 16, 16),
]
PADDINGS = ["zeros", "border", "reflection"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
LAYOUTS = [torch.contiguous_format, torch.channels_last]

pytestmark = pytest.mark.usefixtures("guarded")


def name(case):
    (k, c, h, w, h_out, w_out), padding, align_corners, dtype, kinds, layout = case
    parts = [f"{k}x{c}x{h}x{w}to{h_out}x{w_out}", padding, "corners" if align_corners else "edges"]
    parts += [str(dtype)[6:], kinds[0] if len(kinds) == 1 else "all", str(layout)[6:]]
    return "-".join(parts)


def every_case():
    """The full product; the layouts take turns, each case holds every θ."""
    product = itertools.product(SHAPES, PADDINGS, [False, True], DTYPES)
    for i, (shape, padding, align_corners, dtype) in enumerate(product):
        layout = LAYOUTS[(i // 4 + i) % 2]
        yield shape, padding, align_corners, dtype, list(THETAS), layout


def covering_cases():
    """For the interpreter: each shape under each padding, the rest in turns of coprime lengths."""
    thetas = list(THETAS)
    for i, (shape, padding) in enumerate(itertools.product(SHAPES, PADDINGS)):
        dtype = DTYPES[(i + i // 4) % 4]
        align_corners = (i + i // 2) % 2 == 0
        kinds = thetas if shape[0] != 1 else [thetas[(3 * i + i // 10) % 10]]
        yield shape, padding, align_corners, dtype, kinds, LAYOUTS[(i + i // 8) % 2]


def make_theta(k: int, kinds: list[str]) -> torch.Tensor:
    if k == 0:
        return torch.tensor(THETAS["random"])
    maps = [THETAS[kind] for kind in kinds]
    if k == 1:
        return torch.tensor(maps)
    n = max(len(maps) // k, 1)
    return torch.tensor(maps[: n * k]).view(n, k, 2, 3)


def check(place, case, mode="bilinear"):
    (k, c, h, w, *size), padding_mode, align_corners, dtype, kinds, layout = case
    generator = torch.Generator().manual_seed(sum(case[0]))
    options = dict(mode=mode, padding_mode=padding_mode, align_corners=align_corners)
    theta = nudge(make_theta(k, kinds if not place.interpreted else kinds[:6]), h, w)
    n = len(theta) if k else 2
    if dtype == torch.float64:
        theta = theta.double()
    input = torch.randn(n, c, h, w, generator=generator).to(dtype)
    input = input.contiguous(memory_format=layout)
    shape = (n, k, c, *size) if k > 1 else (n, c, *size)
    keep = smooth(theta, h, w, size, align_corners)
    assert keep.mean() > 0.9
    grad = (torch.randn(shape, generator=generator) * keep.unsqueeze(-3)).to(dtype)

    device = place.device
    got = run(place.sample, input.to(device), theta.to(device), size, grad.to(device), **options)
    exact, eager = expected(input, theta, size, grad, **options)
    assert got.y.dtype == got.grad_input.dtype == dtype
    assert got.grad_theta.dtype == theta.dtype
    return got, exact, eager, keep


@pytest.mark.parametrize("place", [PYTORCH, ON_GPU])
@pytest.mark.parametrize("case", list(every_case()), ids=name)
def test_value_and_gradients_are_right(place, case):
    assert_right(*check(place, case)[:3])


@pytest.mark.parametrize("place", [INTERPRETED])
@pytest.mark.parametrize("case", list(covering_cases()), ids=name)
def test_interpreted_value_and_gradients_are_right(place, case):
    assert_right(*check(place, case)[:3])


@pytest.mark.thinned(2)
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nearest_reads_what_pytorch_reads_away_from_ties(
    place, padding_mode, align_corners, layout
):
    kinds = ["random", "rotation_45", "zoom_out_2", "off_image"]
    case = ((1, 17, 7, 9, 6, 8), padding_mode, align_corners, torch.float32, kinds, layout)
    got, exact, _, keep = check(place, case, mode="nearest")
    away = keep.unsqueeze(1).bool().expand(exact.y.shape)
    assert away.float().mean() > 0.9
    assert torch.equal(got.y.cpu()[away], exact.y.float()[away])
    torch.testing.assert_close(got.grad_input.cpu(), exact.grad_input.float())
    assert (got.grad_theta == 0).all()


@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("channels", [2, 17])
@pytest.mark.parametrize("align_corners", [False, True])
def test_far_out_of_view_is_right(place, channels, padding_mode, align_corners):
    """So far that the PyTorch path folds its coordinates, not so far that float64 loses them."""
    h, w, size = 4, 5, (3, 4)
    theta = torch.tensor([[900.3, -700.1, 1234.5], [1.1, 0.2, -4321.7]], dtype=torch.float64)
    theta = theta.expand(2, 2, 3).clone()
    theta[0] = torch.tensor(THETAS["random"])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, h, w, generator=generator, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last)
    keep = smooth(theta, h, w, size, align_corners).unsqueeze(1)
    assert keep.mean() > 0.8
    grad = keep * torch.randn(2, channels, *size, generator=generator, dtype=torch.float64)
    options = dict(padding_mode=padding_mode, align_corners=align_corners)
    device = place.device
    got = run(place.sample, x.to(device), theta.to(device), size, grad.to(device), **options)
    exact, _ = expected(x, theta, size, grad, **options)
    # The coordinates reach 1e4 pixels: 1e-12 of them is 1e-8 of a pixel.
    for name in ("y", "grad_input", "grad_theta"):
        result, reference = getattr(got, name).cpu(), getattr(exact, name)
        assert (result - reference).abs().amax() <= 1e-7 * reference.abs().amax(), name


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_many_channels_last_are_nan_where_theta_is(place, padding_mode, mode):
    x = torch.randn(2, 17, 4, 5, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last).to(place.device)
    theta = torch.tensor([THETAS["random"]] * 2, device=place.device)
    good = place.sample(x, theta, padding_mode=padding_mode, mode=mode)
    theta[1, 1, 2] = torch.nan
    y = place.sample(x, theta, padding_mode=padding_mode, mode=mode)
    assert torch.equal(y[0], good[0]) and y[1].isnan().all()
    assert y.is_contiguous(memory_format=torch.channels_last)
