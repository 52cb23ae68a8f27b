"""The table of cases: what the suites cover, what θ is, how many bytes a pass has to move."""

from __future__ import annotations

import pytest

from bench.cases import (
    CASES,
    DTYPES,
    LAYOUTS,
    PASSES,
    THETA_KINDS,
    Case,
    Task,
    in_view,
    min_bytes,
    suite,
    theta_of,
)

TINY = Case("tiny", 2, 1, 3, 8, 8, 8, 8, 2)


def test_the_full_suite_crosses_everything_once():
    tasks = suite("full", "cuda")
    keys = {task.key("eager") for task in tasks}
    assert len(keys) == len(tasks)
    assert {t.case.name for t in tasks} == {case.name for case in CASES}
    assert {t.dtype for t in tasks} == set(DTYPES) and {t.layout for t in tasks} == set(LAYOUTS)
    assert {t.pass_name for t in tasks} == set(PASSES)
    assert {t.theta_kind for t in tasks} > set(THETA_KINDS)
    assert {t.case.name for t in tasks if t.align_corners} == {case.name for case in CASES}


def test_the_cpu_suite_has_every_case_and_no_larger_batches():
    tasks = suite("quick", "cpu")
    assert {t.case.name for t in tasks} == {case.name for case in CASES}
    full = {case.name: case for case in CASES}
    assert all(t.case.n <= full[t.case.name].n for t in tasks)
    assert {t.pass_name for t in tasks} == {"forward", "forward_backward"}


@pytest.mark.parametrize(
    ("theta_kind", "touched", "seen"),
    # 8×8 to 8×8. Zoomed in by 2, x = 1.75, 2.25 .. 5.25: pixels 1 to 6, every output sees them.
    # Zoomed out by 2, x = -3.5, -1.5, 0.5 .. 6.5, 8.5, 10.5: four outputs see all pixels in pairs.
    [("identity", 64, 64), ("zoom_in_2", 36, 64), ("zoom_out_2", 64, 16), ("rotation_90", 64, 64)],
)
def test_pixels_in_view(theta_kind, touched, seen):
    assert in_view((8, 8), (8, 8), theta_kind) == (touched, seen)


@pytest.mark.parametrize(
    ("pass_name", "elements"),
    # N·C = 6 planes of 64 pixels; zoomed in by 2 of 36 read; every output sees the input.
    [
        ("forward", 6 * (36 + 64)),
        ("backward_input", 6 * (64 + 64)),
        ("backward_theta", 6 * (64 + 36)),
        ("backward", 6 * (64 + 36 + 64)),
        ("forward_backward", 6 * (36 + 64 + 64 + 36 + 64)),
    ],
)
@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_least_bytes_of_a_pass(pass_name, elements, dtype, size):
    assert min_bytes(Task(TINY, pass_name, "zoom_in_2", dtype)) == elements * size


def test_theta_kinds_are_what_they_say():
    assert theta_of("identity").tolist() == [[[1, 0, 0], [0, 1, 0]]]
    assert theta_of("rotation_90").tolist() == [[[0, -1, 0], [1, 0, 0]]]
    assert theta_of("zoom_in_2").tolist() == [[[0.5, 0, 0], [0, 0.5, 0]]]
    assert theta_of("zoom_out_2", 3)[:, 0].tolist() == [[2, 0, -0.5], [2, 0, 0], [2, 0, 0.5]]
    with pytest.raises(ValueError, match="sideways"):
        theta_of("sideways")
