"""docs/support.md's table of what is supported, against what the code accepts and launches."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import INTERPRETED, Place

import triton_stn
from triton_stn import checks

PAGE = Path(__file__).resolve().parent.parent / "docs" / "support.md"
SUPPORTED = PAGE.read_text(encoding="utf-8")
TRANSFORMS = {name: name for name in ("affine", "attention", "similarity", "projective")}
TRANSFORMS["ThinPlateSpline"] = triton_stn.ThinPlateSpline(2, 2)
FIELDS = {
    "grid_sample": (triton_stn.grid_sample, -1),  # (x, y) last
    "flow_warp": (triton_stn.flow_warp, 1),
}
SIZES = {"images": (2, 3), "volumes": (2, 2, 3)}


class Combination(NamedTuple):
    source: str
    of: str
    mode: str
    padding_mode: str


def rows():
    """(combination, θ's cell, grad_input), as the page says."""
    for line in re.findall(r"^\| (`.*) \|$", SUPPORTED, re.M):
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 6:
            sources, modes, paddings = (re.findall(r"`(\w+)`", cells[i]) for i in (0, 3, 4))
            for source, mode, padding in itertools.product(sources, modes, paddings):
                yield Combination(source, cells[1], mode, padding), cells[2], cells[5].split(",")[0]


ROWS = list(rows())


def sample(combination, dtype=torch.float32, wanted="input"):
    """(what wants a gradient, output) of the public function; θ is the identity, a field zero.

    ``wanted`` is "input" or "theta".
    """
    source, of, mode, padding_mode = combination
    image = torch.rand(1, 1, *SIZES[of]).to(dtype)
    if source in FIELDS:
        function, axis = FIELDS[source]
        theta = torch.zeros(1, *SIZES[of], len(SIZES[of])).movedim(-1, axis).contiguous()
        options = dict(mode=mode, padding_mode=padding_mode)
    else:
        transform = triton_stn.transforms.resolve(TRANSFORMS[source], len(SIZES[of]))
        function, theta = triton_stn.spatial_transform, transform.identity(1)
        options = dict(transform=transform, mode=mode, padding_mode=padding_mode)
    leaf = (image if wanted == "input" else theta).requires_grad_()
    return leaf, function(image, theta, **options)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_the_table_has_every_combination_that_the_code_accepts_once_and_no_other():
    sources = [*TRANSFORMS, *FIELDS]
    accepted = []
    for parts in itertools.product(sources, SIZES, checks.MODES, checks.PADDING_MODES):
        try:
            sample(Combination(*parts))
        except ValueError:
            continue
        accepted.append(Combination(*parts))
    assert sorted(combination for combination, *_ in ROWS) == sorted(accepted)


def test_the_table_has_the_shapes_of_theta_and_every_dtype():
    for (source, of, *_), shapes, _ in ROWS:
        if source in FIELDS:
            assert shapes == "a field"
        else:
            transform = triton_stn.transforms.resolve(TRANSFORMS[source], len(SIZES[of]))
            shape = str(transform.theta_shape)
            assert (shape.replace("(4, 2)", "(T, 2)") if source[0] == "T" else shape) in shapes
    (dtypes,) = re.findall(r"^\| image \| \(N, C, H, W\), (.*?);", SUPPORTED, re.M)
    assert [getattr(torch, name) for name in dtypes.split(", ")] == list(checks.DTYPES)


@pytest.mark.thinned
@pytest.mark.parametrize("place", [INTERPRETED])
@pytest.mark.parametrize("dtype", checks.DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(("combination", "_", "made"), ROWS)
def test_the_table_says_how_grad_input_is_made(place: Place, launches, combination, _, made, dtype):
    with triton_stn.use_backend(place.backend):
        image, y = sample(combination, dtype)
        y.sum().backward()
    kernels = [plan.kernel.__name__ for plan in launches]
    half = ["settle"] * (dtype.itemsize == 2)
    if made == "gathered in part":
        # What it leaves to a scatter depends on θ, which the device alone knows.
        assert kernels == ["forward", "gather", "scatter", *half]
        assert launches[2].constants["RULES"].rest
    elif made == "scattered":
        assert kernels == ["forward", "scatter", *half]
    else:
        assert made == "gathered" and kernels == ["forward", "gather"]
    assert y.dtype == image.grad.dtype == dtype and image.grad.isfinite().all()


@pytest.mark.parametrize("place", [INTERPRETED])
@pytest.mark.parametrize(("combination", "_", "made"), ROWS)
def test_what_is_scattered_is_fixed_point_when_deterministic_and_float64_is_refused(
    place: Place, deterministic, launches, combination, _, made
):
    with triton_stn.use_backend(place.backend):
        _, y = sample(combination)
        y.sum().backward()
        into = {plan.constants["RULES"].into for plan in launches[1:]}
        assert into == {"dX" if made == "gathered" else "fixed"}
        _, y = sample(combination, torch.float64)
        if made == "gathered":
            y.sum().backward()
        else:
            with pytest.raises(RuntimeError, match=r"float64 input .* deterministic"):
                y.sum().backward()


@pytest.mark.parametrize("place", [INTERPRETED])
@pytest.mark.parametrize("combination", [combination for combination, *_ in ROWS])
def test_grad_theta_is_deterministic_everywhere_and_zero_for_nearest(
    place: Place, deterministic, combination
):
    with triton_stn.use_backend(place.backend):
        theta, y = sample(combination, wanted="theta")
        y.sum().backward()
    assert theta.grad.any() == (combination.mode != "nearest")
