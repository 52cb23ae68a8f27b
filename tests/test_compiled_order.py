"""Under deterministic algorithms the order in which programs run, which a GPU leaves open, is no
matter: what was compiled for an H100 runs in ten random orders.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from oracle import assert_right, run, same
from ptxrun import launches
from test_compiled_values import BRAIN, CASES, COMPILED, DOUBLE, HALF, PYTORCH, Case, noise, tensors
from test_compiled_values import run as run_case

pytestmark = pytest.mark.compiled
ORDERS = 10
ADDED_UP = [
    "border", "reflection_bfloat", "border_run_of_24", "nearest_border", "bicubic_reflection",
    "area", "area_border_maps", "patch", "grid", "grid_nearest", "grid_of_many_channels",
    "flow_reflection", "spline_maps", "homography_rest", "homography_border",
    "volume_border", "volume_grid_corners", "volume_grid_two_maps_bfloat",
    "volume_flow_border_run_of_8_halves", "volume_bicubic",
]  # fmt: skip
MORE = {
    "maps_border": Case(maps=3, options=dict(padding_mode="border")),
    "grid_halves": Case("grid", dtype=HALF),
    "homography_maps_border_bfloat": Case(
        "projective", maps=3, dtype=BRAIN, options=dict(padding_mode="border")
    ),
}
ALL = {name: CASES[name] for name in ADDED_UP} | MORE
# The rest, each a minute's compiling at most, are for a landing.
QUICK = ("border", "grid", "volume_border")


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.landing) for name in ALL],
)
def test_any_order_gives_the_same_bits_and_they_are_right(name: str):
    case = ALL[name]
    given = tensors(case)
    exact, rival = (
        run_case(PYTORCH, case, *(t.to(dtype) for t in given)) for dtype in (DOUBLE, torch.float32)
    )
    with deterministic(), launches.recorded() as launched:
        first = run_case(COMPILED, case, *given)
        for seed in range(ORDERS):
            with launches.shuffled(seed):
                again = run_case(COMPILED, case, *given)
            assert same(again.grad_input, first.grad_input)
            assert same(again.grad_theta, first.grad_theta)
    assert_right(first, exact, rival)
    assert {"largest", "scatter", "settle"} <= {launch.kernel for launch in launched}


def test_float_atomics_depend_on_the_order_or_this_file_shows_nothing():
    case = CASES["grid"]
    given = tensors(case)
    found = []
    for seed in range(ORDERS):
        with launches.shuffled(seed):
            found.append(run_case(COMPILED, case, *given).grad_input)
    assert not all(same(one, found[0]) for one in found)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_an_infinite_gradient_ends_where_floats_take_it(padding_mode: str, dtype):
    """Also beside gradients that are small, and of both signs in one pixel."""
    image = noise(2, 1, 19, 13, seed=1).to(dtype)
    theta = torch.tensor([[[0.4, -0.1, 0.8], [0.1, 0.4, 0.7]]]).repeat(2, 1, 1)
    grad = 1e-3 * noise(2, 1, 17, 22, seed=2)
    grad[0, 0, 3, 4], grad[0, 0, 9, 20], grad[0, 0, 9, 21] = torch.inf, torch.inf, -torch.inf
    grad[0, 0, 14, 2] = torch.nan

    def sample(input, theta, size, **options):
        return COMPILED.sample(input, theta, size, mode="bicubic", padding_mode=padding_mode)

    floats = run(sample, image, theta, (17, 22), grad).grad_input
    with deterministic():
        fixed = run(sample, image, theta, (17, 22), grad).grad_input
    assert not floats[0].isfinite().all() and floats[1].isfinite().all()
    torch.testing.assert_close(fixed, floats, equal_nan=True)


@pytest.mark.parametrize("scale", [1e-42, 1e-37, 1e30])
def test_gradients_of_any_size_keep_their_figures(scale: float):
    case = CASES["grid"]
    image, theta, grad = tensors(case)
    with deterministic():
        got = run_case(COMPILED, case, image, theta, grad * scale).grad_input
    exact = run_case(PYTORCH, case, *(t.double() for t in (image, theta, grad * scale))).grad_input
    error = (got.double() - exact).abs().max() / exact.abs().max()
    # Below 2^-126 float32 has less precision: what it has is kept.
    assert error < (1e-6 if scale > 1e-38 else 2e-3)
