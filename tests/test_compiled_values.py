"""Every family of kernels as compiled for an H100 and run on the CPU, against float64 PyTorch.

A case is named after what compiles a kernel of its own. Sizes are no multiples of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from conftest import Place
from oracle import Results, assert_right, smooth
from ptxrun import launches

import triton_stn

pytestmark = pytest.mark.compiled
COMPILED, PYTORCH = Place("triton", "cpu"), Place("torch", "cpu")
SIZE, OUTPUT_SIZE = (19, 13), (17, 22)
VOLUME, OUTPUT_VOLUME = (5, 9, 6), (6, 5, 7)
HALF, BRAIN, DOUBLE = torch.float16, torch.bfloat16, torch.float64


@dataclass(frozen=True)
class Case:
    """A call on two images, or on one and several maps."""

    of: str = "affine"
    channels: int = 3
    maps: int = 1
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    size: tuple[int, ...] = SIZE
    output_size: tuple[int, ...] = OUTPUT_SIZE
    wanted: str = "input, theta"
    options: dict[str, Any] = field(default_factory=dict)


def volume(**changes) -> Case:
    return Case(size=VOLUME, output_size=OUTPUT_VOLUME, **changes)


BORDER, REFLECTION = dict(padding_mode="border"), dict(padding_mode="reflection")
NEAREST, BICUBIC, AREA = dict(mode="nearest"), dict(mode="bicubic"), dict(antialias=True)
SMALL = (6, 5)
CASES = {
    "plain": Case(),
    "corners": Case(options=dict(align_corners=True)),
    "input_alone": Case(wanted="input"),
    "theta_alone": Case(wanted="theta"),
    "many_slots": Case(size=(136, 131), output_size=(140, 133)),
    "many_tiles": Case(size=(300, 470), output_size=(310, 450)),
    "much_output": Case(size=(6, 5), output_size=(23, 37)),
    "one_channel": Case(channels=1),
    "many_channels": Case(channels=70),
    "filled": Case(options=dict(fill_value=2.5)),
    "filled_bfloat": Case(dtype=BRAIN, options=dict(fill_value=torch.tensor([1.0, -2, 3]))),
    "filled_nearest": Case(options=NEAREST | dict(fill_value=torch.tensor(2.5))),
    "filled_many_channels": Case(channels=70, options=dict(fill_value=torch.arange(70.0))),
    "filled_run_of_24_maps": Case(
        channels=24, channels_last=True, maps=3, options=dict(fill_value=torch.arange(24.0))
    ),
    "filled_grid": Case("grid", options=dict(fill_value=-1)),
    "three_maps": Case(maps=3),
    "three_maps_input_alone": Case(maps=3, wanted="input"),
    "half": Case(dtype=HALF),
    "bfloat": Case(dtype=BRAIN),
    "double": Case(dtype=DOUBLE),
    "run_of_8": Case(channels=8, channels_last=True),
    "run_of_9": Case(channels=9, channels_last=True),
    "run_of_24": Case(channels=24, channels_last=True),
    "run_of_40": Case(channels=40, channels_last=True),
    "run_of_24_input_alone": Case(channels=24, channels_last=True, options=BORDER, wanted="input"),
    "run_of_40_halves": Case(channels=40, channels_last=True, dtype=HALF),
    "run_of_3_maps": Case(channels=24, channels_last=True, maps=3),
    "border": Case(options=BORDER),
    "border_input_alone": Case(options=BORDER, wanted="input"),
    "reflection": Case(options=REFLECTION),
    "reflection_bfloat": Case(options=REFLECTION, dtype=BRAIN),
    "border_run_of_24": Case(options=BORDER, channels=24, channels_last=True),
    "nearest": Case(options=NEAREST),
    "nearest_border": Case(options=NEAREST | BORDER),
    "bicubic": Case(options=BICUBIC),
    "bicubic_reflection": Case(options=BICUBIC | REFLECTION),
    "bicubic_run_of_8": Case(options=BICUBIC, channels=8, channels_last=True),
    "area": Case(options=AREA, output_size=SMALL),
    "area_border_maps": Case(options=AREA | BORDER, output_size=SMALL, maps=3),
    "patch": Case("projective", options=AREA, output_size=SMALL),
    "grid": Case("grid"),
    "grid_border_run_of_8": Case("grid", options=BORDER, channels=8, channels_last=True),
    "grid_nearest": Case("grid", options=NEAREST),
    "grid_of_many_channels": Case("grid", channels=70),
    "flow": Case("flow"),
    "flow_reflection": Case("flow", options=REFLECTION),
    "spline": Case("spline"),
    "spline_maps": Case("spline", maps=3),
    "spline_double": Case("spline", dtype=DOUBLE),
    "homography": Case("projective"),
    "homography_rest": Case("horizon"),
    "homography_maps": Case("projective", maps=3),
    "homography_border": Case("projective", options=BORDER),
    "volume": volume(),
    "volume_upright": volume(of="upright"),
    "volume_upright_border": volume(of="upright", options=BORDER),
    "volume_upright_nearest": volume(of="upright", options=NEAREST),
    "volume_upright_two_maps": volume(of="upright", maps=2),
    "volume_upright_run_of_8": volume(of="upright", channels=8, channels_last=True),
    "volume_input_alone": volume(wanted="input"),
    "volume_theta_alone": volume(wanted="theta"),
    "volume_shared": volume(of="magnified"),
    "volume_flat": volume(of="flat"),
    "volume_flat_two_maps": volume(of="flat", maps=2),
    "volume_flat_border": volume(of="flat", options=BORDER),
    "volume_border": volume(options=BORDER),
    "volume_nearest": volume(options=NEAREST),
    "volume_two_maps": volume(maps=2),
    "volume_run_of_8": volume(channels=8, channels_last=True),
    "volume_run_of_9_halves": volume(channels=9, channels_last=True, dtype=HALF),
    "volume_double": volume(dtype=DOUBLE),
    "volume_grid": volume(of="grid"),
    "volume_grid_one_channel_border": volume(of="grid", channels=1, options=BORDER),
    "volume_grid_corners": volume(of="grid", options=REFLECTION | dict(align_corners=True)),
    "volume_grid_nearest": volume(of="grid", options=NEAREST),
    "volume_grid_two_maps_bfloat": volume(of="grid", maps=2, dtype=BRAIN),
    "volume_grid_of_many_channels": volume(of="grid", channels=70),
    "volume_grid_input_alone": volume(of="grid", wanted="input"),
    "volume_grid_filled": volume(of="grid", options=dict(fill_value=-1)),
    "volume_flow_double": volume(of="flow", dtype=DOUBLE),
    "volume_flow_reflection": volume(of="flow", options=REFLECTION),
    "volume_flow_theta_alone": volume(of="flow", wanted="theta"),
    "volume_flow_border_run_of_8_halves": volume(
        of="flow", channels=8, channels_last=True, dtype=HALF, options=BORDER
    ),
    "volume_flow_run_of_40": volume(of="flow", channels=40, channels_last=True),
    "volume_bicubic": volume(options=BICUBIC),
    "volume_bicubic_run_of_8": volume(
        of="grid", channels=8, channels_last=True, options=BICUBIC | BORDER
    ),
}


def noise(*shape, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def transform(case: Case) -> Any:
    if case.of == "spline":
        return triton_stn.ThinPlateSpline(3, 3)
    return triton_stn.Projective() if case.of in ("projective", "horizon") else "affine"


def theta(case: Case) -> torch.Tensor:
    """float64, off the lattice: (N, *), or (1, K, *)."""
    leading = (2,) if case.maps == 1 else (1, case.maps)
    ndim = len(case.size)
    if case.of in ("grid", "flow"):
        scale = 2 if case.of == "flow" else 0.6
        return scale * noise(*leading, *case.output_size, ndim, seed=3)
    if case.of == "spline":
        points = triton_stn.ThinPlateSpline(3, 3).points
        return points + 0.1 * noise(*leading, *points.shape, seed=3)
    if case.of in ("projective", "horizon"):
        h = torch.eye(3, dtype=torch.float64) + 0.15 * noise(*leading, 3, 3, seed=3).clamp(-1, 1)
        return h + torch.tensor([[0] * 3, [0] * 3, [6, 2, 0]]) if case.of == "horizon" else h
    if case.of == "upright":
        signs = torch.tensor([[1.1, 0, 0, 0.13], [0, -1, 0, 0.17], [0, 0, 1.4, 0.11]])
        return signs.double().expand(*leading, 3, 4)
    zoom = 1 / 40 if case.of == "magnified" else 1
    eye = torch.eye(ndim, ndim + 1, dtype=torch.float64)
    maps = zoom * (eye + 0.2 * noise(*leading, ndim, ndim + 1, seed=3).clamp(-1.5, 1.5))
    if case.of == "flat":  # onto a plane
        maps[..., 2, :3] = maps[..., 0, :3] - maps[..., 1, :3] / 2
    return maps


def run(place: Place, case: Case, image, theta, grad) -> Results:
    """Value and gradients; of a gradient that is not wanted, zeros."""
    image = image.detach().requires_grad_("input" in case.wanted)
    theta = theta.detach().requires_grad_("theta" in case.wanted)
    with triton_stn.use_backend(place.backend):
        if case.of == "grid":
            y = triton_stn.grid_sample(image, theta, **case.options)
        elif case.of == "flow":
            y = triton_stn.flow_warp(image, theta.movedim(-1, 1), **case.options)
        else:
            y = triton_stn.spatial_transform(
                image, theta, case.output_size, transform=transform(case), **case.options
            )
    wanted = [t for t in (image, theta) if t.requires_grad]
    grads = iter(torch.autograd.grad(y, wanted, grad.to(y.dtype)))
    return Results(y.detach(), *(next(grads) if t.requires_grad else t * 0 for t in (image, theta)))


def tensors(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """image, θ and grad_output, in the dtypes of the case."""
    memory = torch.channels_last if len(case.size) == 2 else torch.channels_last_3d
    maps = theta(case).to(torch.promote_types(case.dtype, torch.float32))
    image = noise(2 if case.maps == 1 else 1, case.channels, *case.size, seed=1).to(case.dtype)
    if case.channels_last:
        image = image.contiguous(memory_format=memory)
    leading = (2,) if case.maps == 1 else (1, case.maps)
    grad = noise(*leading, case.channels, *case.output_size, seed=2)
    if case.of == "affine" and len(case.size) == 2:  # of many pixels some lie on a kink
        corners = case.options.get("align_corners", False)
        grad *= smooth(maps, *case.size, case.output_size, corners).unsqueeze(-3)
    grad = grad.to(case.dtype)
    if case.channels_last and case.maps == 1:
        grad = grad.contiguous(memory_format=memory)
    return image, maps, grad


# One of each family; the rest, a few seconds' compiling each, are for a landing.
QUICK = (
    "plain", "filled", "filled_many_channels", "theta_alone", "many_tiles", "much_output",
    "many_channels", "three_maps", "bfloat",
    "run_of_40", "border", "nearest_border", "bicubic", "area", "patch", "grid_border_run_of_8",
    "flow", "spline_maps", "homography", "homography_rest", "volume", "volume_upright",
    "volume_flat", "volume_border", "volume_grid", "volume_flow_border_run_of_8_halves",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.landing) for n in CASES]
)
def test_value_and_gradients_are_right(name: str):
    case = CASES[name]
    given = tensors(case)
    exact, rival = (
        run(PYTORCH, case, *(t.to(dtype) for t in given)) for dtype in (DOUBLE, torch.float32)
    )
    for _ in range(2):  # the second call finds what the first one kept
        got = run(COMPILED, case, *given)
        assert_right(got, exact, rival)
    if "nearest" in name:
        assert torch.equal(got.y.double(), exact.y)


def test_no_atomics_where_the_gradient_is_gathered():
    with launches.recorded() as launched:
        run(COMPILED, CASES["plain"], *tensors(CASES["plain"]))
    assert [launch.kernel for launch in launched] == ["forward", "gather", "reduce"]
    opcodes = {opcode.split(".")[0] for launch in launched for opcode in launch.counts.by_opcode}
    assert "ld" in opcodes and not opcodes & {"atom", "red"}
