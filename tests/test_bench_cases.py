"""The table of cases: what the suites cover, what θ is, how many bytes a pass has to move."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from bench.suite import sources
from bench.suite.cases import (
    CASES,
    DTYPES,
    EXTREME,
    LAYOUTS,
    PASSES,
    THETA_KINDS,
    Case,
    Task,
    argument_of,
    in_view,
    min_bytes,
    suite,
    theta_of,
)

TINY = Case("tiny", 2, 1, 3, 8, 8, 8, 8, 2)
QUARTERS = (-0.75, -0.25, 0.25, 0.75)


def test_the_full_suite_crosses_everything_once():
    tasks = suite("full", "cuda")
    keys = {task.key("eager") for task in tasks}
    assert len(keys) == len(tasks)
    assert {t.case.name for t in tasks} == {case.name for case in CASES}
    assert {t.dtype for t in tasks} == set(DTYPES) and {t.layout for t in tasks} == set(LAYOUTS)
    assert {t.pass_name for t in tasks} == set(PASSES)
    assert {t.theta_kind for t in tasks} > set(THETA_KINDS)
    plain = {case.name for case in CASES if case.theta_kinds == THETA_KINDS}
    assert {t.case.name for t in tasks if t.align_corners} == plain


def test_the_full_suite_has_extreme_theta_and_every_padding_in_every_pass():
    tasks = suite("full", "cuda")
    extreme = [t for t in tasks if t.theta_kind in EXTREME]
    assert len(extreme) == len(EXTREME) * len(PASSES) and len({t.case for t in extreme}) == 1
    padded = [t for t in tasks if t.padding_mode != "zeros"]
    assert len(padded) == 2 * 2 * len(PASSES) and len({t.case for t in padded}) == 2
    assert {t.padding_mode for t in padded} == {"border", "reflection"}
    assert {(t.dtype, t.layout) for t in extreme + padded} == {("float32", "contiguous")}


def test_what_shares_a_compilation_follows_on_each_other():
    shapes = [(t.case, t.dtype, t.layout) for t in suite("full", "cuda")]
    changes = sum(a != b for a, b in pairwise(shapes))
    assert changes + 1 == len(set(shapes))


@pytest.mark.parametrize("kind", EXTREME)
def test_an_extreme_theta_is_singular_or_far_from_scale_1(kind):
    (theta,) = theta_of(kind)
    large, small = torch.linalg.svdvals(theta[:, :2].double()).tolist()
    assert small <= 1e-3 * large or not 1 / 100 < small <= large < 100
    with pytest.raises(ValueError, match=kind):
        theta_of(kind, ndim=3)


def test_the_cpu_suite_has_every_plain_case_some_others_and_no_larger_batches():
    tasks = suite("quick", "cpu")
    names = {t.case.name for t in tasks}
    assert names > {case.name for case in CASES if case.theta_kinds == THETA_KINDS}
    assert {"tps_16", "grid"} <= {t.case.transform for t in tasks}
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
    assert in_view(TINY, theta_kind) == (touched, seen)


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


@pytest.mark.parametrize(
    ("pass_name", "expected"),
    [
        ("forward", 6 * (36 * 1 + 64 * 2)),  # a byte read, a bfloat16 written
        ("backward_theta", 6 * (64 * 2 + 36 * 1)),
    ],
)
def test_least_bytes_of_a_pass_on_bytes(pass_name, expected):
    assert min_bytes(Task(TINY, pass_name, "zoom_in_2", "uint8")) == expected


def test_theta_kinds_are_what_they_say():
    assert theta_of("identity").tolist() == [[[1, 0, 0], [0, 1, 0]]]
    assert theta_of("rotation_90").tolist() == [[[0, -1, 0], [1, 0, 0]]]
    assert theta_of("zoom_in_2").tolist() == [[[0.5, 0, 0], [0, 0.5, 0]]]
    assert theta_of("zoom_out_2", 3)[:, 0].tolist() == [[2, 0, -0.5], [2, 0, 0], [2, 0, 0.5]]
    with pytest.raises(ValueError, match="sideways"):
        theta_of("sideways")
    for transform in ("projective", "tps_16", "flow"):
        with pytest.raises(ValueError, match="rotation_30"):
            argument_of(planes(transform), "rotation_30")


# --- volumes -------------------------------------------------------------------------------------

BLOCK = Case("block", 2, 1, 3, 8, 8, 8, 8, 2, d=8, d_out=8)


def test_a_volume_turns_about_its_diagonal():
    assert theta_of("identity", ndim=3).tolist() == [torch.eye(3, 4).tolist()]
    # A third of a turn takes x to y, y to z and z to x.
    assert theta_of("rotation_120", ndim=3).tolist() == [[[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0]]]
    (turn,) = theta_of("rotation_30", ndim=3)[..., :3].double()
    torch.testing.assert_close(turn @ turn.T, torch.eye(3).double(), rtol=0, atol=1e-7)
    assert turn.sum(1).tolist() == pytest.approx([1, 1, 1])  # the diagonal stays
    assert turn.trace().item() == pytest.approx(1 + 2 * math.cos(math.pi / 6))
    zoomed = theta_of("zoom_in_2", 2, ndim=3)
    assert zoomed[:, 0].tolist() == [[0.5, 0, 0, -0.5], [0.5, 0, 0, 0.5]]


@pytest.mark.parametrize(
    ("theta_kind", "touched", "seen"),
    # As of an image of 8 × 8 (above), along one axis more; a third of a turn sees it all.
    [
        ("identity", 512, 512),
        ("zoom_in_2", 216, 512),
        ("zoom_out_2", 512, 64),
        ("rotation_120", 512, 512),
    ],
)
def test_voxels_in_view(theta_kind, touched, seen):
    assert in_view(BLOCK, theta_kind) == (touched, seen)
    forward = Task(BLOCK, "forward", theta_kind, "float16")
    assert min_bytes(forward) == 2 * 6 * (touched + 512)
    assert min_bytes(replace(forward, pass_name="backward")) == 2 * 6 * (seen + touched + 512)


def test_a_volume_of_another_size_has_its_own_bytes():
    # Two planes of 4 × 4 to one of 4 × 2: z = 0.5, x = 0.5 and 2.5, every voxel is read.
    flat = Case("flat", 1, 1, 1, 4, 4, 4, 2, 1, d=2, d_out=1)
    assert (flat.extent, flat.size, flat.ndim) == ((2, 4, 4), (1, 4, 2), 3)
    assert min_bytes(Task(flat, "forward", "identity")) == 4 * (32 + 8)


def test_a_shift_moves_a_volume_along_every_axis():
    case, shift = replace(BLOCK, d=5, w=6), torch.tensor([0.37, 0.63, 0.13])
    theta = argument_of(case, "rotation_30")
    moved = sources.shifted("affine", theta, shift, case.extent)
    before, after = (
        sources.grid("affine", t, case.extent, (2, 3, 4), False) for t in (theta, moved)
    )
    pixels = (after - before) * torch.tensor([6, 8, 5]) / 2
    torch.testing.assert_close(pixels, shift.expand_as(pixels), rtol=0, atol=1e-5)


# --- beyond affine maps --------------------------------------------------------------------------


def planes(transform, h=4, w=4, h_out=4, w_out=4, n=2, c=3, k=1, mode="bilinear", d=0):
    return Case("planes", n, k, c, h, w, h_out, w_out, n, transform, mode=mode, d=d, d_out=d)


@pytest.mark.parametrize(
    ("transform", "theta_kind", "expected"),
    [
        ("projective", "tilt_0.2", [[[1, 0, 0], [0, 1, 0], [0.2, 0.2, 1]]]),
        # The corners stay: sin(±π) = 0. 4 × 4 points at ±1 and ±1/3, row by row.
        ("tps_16", "bend_0", [[x / 3, y / 3] for y in (-3, -1, 1, 3) for x in (-3, -1, 1, 3)]),
        # Pixel centres at y = ±3/4, ±1/4 push along x by 0.1 · 2 pixels · sin πy, and likewise y.
        ("flow", "bend_0.1", [[[0.2 * math.sin(math.pi * y)] * 4 for y in QUARTERS]]),
    ],
)
def test_arguments_are_what_their_kinds_say(transform, theta_kind, expected):
    argument = argument_of(planes(transform), theta_kind)
    argument = argument[:, :1].squeeze(1) if transform == "flow" else argument
    assert argument.flatten().tolist() == pytest.approx(torch.tensor(expected).flatten().tolist())


@pytest.mark.parametrize(
    ("transform", "theta_kind", "depth"),
    [
        ("affine", "rotation_30", 0),
        ("projective", "tilt_0.2", 0),
        ("tps_16", "bend_0.1", 0),
        ("grid", "random", 0),
        ("grid", "random", 3),
        ("flow", "bend_0.1", 0),
        ("flow", "bend_0.1", 3),
    ],
)
def test_a_shift_moves_every_source_by_as_many_pixels(transform, theta_kind, depth):
    case = planes(transform, h=5, w=8, d=depth)
    shift = torch.tensor([0.37, 0.63, 0.13])[: case.ndim]
    theta = argument_of(case, theta_kind)
    moved = sources.shifted(transform, theta, shift, case.extent)
    before, after = (
        sources.grid(transform, t, case.extent, case.size, False) for t in (theta, moved)
    )
    pixels = (after - before) * torch.tensor(case.extent[::-1]) / 2
    torch.testing.assert_close(pixels, shift.expand_as(pixels), rtol=0, atol=1e-5)


def test_random_points_cover_the_view_and_are_the_same_every_time():
    (points,) = argument_of(planes("grid", h_out=1, w_out=2048), "random")
    assert points.shape == (1, 2048, 2) and points.abs().max() <= 1
    assert torch.histc(points, 4, -1, 1).min() > 900  # 4096 numbers: 1024 each, σ = 28
    assert torch.equal(points, argument_of(planes("grid", h_out=1, w_out=2048), "random")[0])


@pytest.mark.parametrize(
    ("case", "theta_kind", "pass_name", "expected"),
    # N·C = 6 planes of 16 pixels; at identity each pixel meets one output.
    [
        (planes("projective"), "identity", "forward", 4 * 6 * 32),
        (planes("tps_16"), "bend_0", "backward_theta", 4 * 6 * 32),
        # 2 images of 16 outputs of two numbers, read and, by the passes that want it, written.
        (planes("flow"), "identity", "forward", 4 * (6 * 32 + 64)),
        (planes("flow"), "identity", "backward_input", 4 * (6 * 32 + 64)),
        (planes("flow"), "identity", "backward", 4 * (6 * 48 + 2 * 64)),
        (planes("flow"), "identity", "forward_backward", 4 * (6 * 80 + 3 * 64)),
        # The same of 3 numbers in 3 slices.
        (planes("flow", d=3), "identity", "backward", 4 * (6 * 3 * 48 + 2 * 3 * 96)),
        # A row of 2 points halfway down, (-0.5, 0) and (0.5, 0): x = 0.5 and 2.5, all of rows 1, 2.
        (planes("grid", h_out=1, w_out=2), "bend_0", "forward", 4 * (6 * (8 + 2) + 8)),
        # 2 × 2 outputs at x = 1.25 and 1.75: between pixels 1 and 2, but cubic taps reach 0 to 3.
        (planes("affine", h_out=2, w_out=2, mode="bicubic"), "zoom_in_4", "forward", 4 * 6 * 20),
        # Two maps of an image: read once, written twice.
        (planes("affine", k=2), "identity", "forward", 4 * 6 * (16 + 32)),
    ],
    ids=lambda x: f"{x.transform}-{x.mode}-k{x.k}" if isinstance(x, Case) else None,
)
def test_least_bytes_beyond_affine(case, theta_kind, pass_name, expected):
    assert min_bytes(Task(case, pass_name, theta_kind)) == expected
