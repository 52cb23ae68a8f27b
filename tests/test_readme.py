"""The README's table of what is supported, against what the code accepts and launches."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
from conftest import INTERPRETED, Place

import triton_stn
from triton_stn import checks
from triton_stn.backends import fused

README = Path(__file__).resolve().parent.parent / "README.md"
SPLINE = triton_stn.ThinPlateSpline(2, 2)
TRANSFORMS = {name: name for name in ("affine", "attention", "similarity", "projective")}
TRANSFORMS["ThinPlateSpline"] = SPLINE
FIELDS = {
    "grid_sample": (triton_stn.grid_sample, torch.zeros(1, 2, 3, 2)),
    "flow_warp": (triton_stn.flow_warp, torch.zeros(1, 2, 2, 3)),
}


def rows():
    """(source, mode, padding_mode) -> grad_input, as the README says."""
    text = README.read_text().split("## What is supported")[1]
    table = re.findall(r"^\| (`.*) \|$", text, re.M)
    for line in table:
        cells = [re.findall(r"`(\w+)`", cell) for cell in line.split("|")]
        if len(cells) == 5:
            grad_input = line.split("|")[4].strip()
            for combination in itertools.product(cells[0], cells[2], cells[3]):
                yield combination, grad_input


def test_every_combination_that_the_code_accepts_is_in_the_table_once():
    listed = [combination for combination, _ in rows()]
    sources = [*TRANSFORMS, *FIELDS]
    accepted = itertools.product(sources, checks.MODES, checks.PADDING_MODES)
    assert sorted(listed) == sorted(accepted)


@pytest.mark.parametrize("place", [INTERPRETED])
@pytest.mark.parametrize(("combination", "grad_input"), list(rows()))
def test_the_table_says_how_grad_input_is_made(place: Place, monkeypatch, combination, grad_input):
    source, mode, padding_mode = combination
    kernels = []
    real = fused.launch

    def launch(plan, *args, **kwargs):
        kernels.append(plan.kernel.__name__)
        return real(plan, *args, **kwargs)

    monkeypatch.setattr(fused, "launch", launch)
    image = torch.rand(1, 1, 2, 3, requires_grad=True)
    with triton_stn.use_backend(place.backend):
        if source in FIELDS:
            function, field = FIELDS[source]
            y = function(image, field, mode, padding_mode)
        else:
            transform = triton_stn.transforms.resolve(TRANSFORMS[source])
            options = dict(transform=transform, mode=mode, padding_mode=padding_mode)
            y = triton_stn.spatial_transform(image, transform.identity(1), **options)
        y.sum().backward()
    assert kernels == ["forward", {"gathered": "gather", "atomics": "scatter"}[grad_input]]
    assert image.grad.isfinite().all()
