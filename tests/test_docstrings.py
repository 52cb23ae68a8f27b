"""Every docstring's example prints what it says, and all that is public has one."""

from __future__ import annotations

import doctest
from inspect import isclass, isfunction

import pytest
import torch

import triton_stn
from triton_stn import augment, backends, functional, nn, patching, plot, transforms
from triton_stn.geometry import conventions, flows, labels
from triton_stn.geometry import matrices as of_theta
from triton_stn.transforms import base, matrices, spline

GEOMETRY = [of_theta, labels, flows, conventions]
PUBLIC = [functional, *GEOMETRY, augment, nn, plot, transforms, base, matrices, spline, patching]
MODULES = [*PUBLIC, backends]
# Bases, of which docs/extending.md makes examples; what needs TensorBoard; a helper.
WITHOUT = {"Transform", "MatrixTransform", "log_figure", "check_size"}
GLOBALS = {"torch": torch, "triton_stn": triton_stn}
EXAMPLES = [
    found
    for module in MODULES
    for found in doctest.DocTestFinder().find(module, globs=GLOBALS)
    if found.examples
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_prints_what_it_says(example):
    if example.name.startswith("triton_stn.plot"):
        pytest.importorskip("matplotlib")
    printed = []
    with triton_stn.use_backend("torch"):  # the interpreted kernels are slow
        failed, _ = doctest.DocTestRunner().run(example, out=printed.append)
    assert not failed, "".join(printed)


def test_all_that_is_public_has_an_example():
    without = {
        name
        for module in PUBLIC
        for name, thing in vars(module).items()
        if (isclass(thing) or isfunction(thing)) and thing.__module__ == module.__name__
        if not name.startswith("_") and ">>>" not in thing.__doc__
    }
    assert without == WITHOUT
