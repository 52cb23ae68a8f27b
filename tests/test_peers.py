"""Warps of other libraries, unmodified: the same numbers under `triton_stn.patch`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import peers
import pytest
import torch
from test_patching import check_alike, operands, results

import triton_stn


@pytest.fixture(autouse=True)
def _quick():
    with triton_stn.use_backend("torch"):
        yield


def check_patched(function, *inputs) -> triton_stn.patching.Report:
    """What was made of the calls, which give what they give unpatched."""
    theirs = results(function, *inputs)
    with triton_stn.patch() as patched:
        ours = results(function, *inputs)
    check_alike(ours, theirs, 1e-4)
    return patched.report()


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_kornias_warps(align_corners, padding_mode):
    reason = "kornia is not installed"
    transform = pytest.importorskip("kornia.geometry.transform", reason=reason)
    input, theta, _ = operands()
    pixels = theta.detach() * torch.tensor([[1.0, 1.0, 6.0]])
    options = dict(padding_mode=padding_mode, align_corners=align_corners)

    def affine(input, pixels):
        return transform.warp_affine(input, pixels, (4, 7), **options)

    def perspective(input, pixels):
        last = torch.tensor([0.01, 0.02, 1.0]).expand(2, 1, 3)
        return transform.warp_perspective(input, torch.cat([pixels, last], 1), (4, 7), **options)

    for warp in (affine, perspective):
        report = check_patched(warp, input, pixels.clone().requires_grad_())
        assert report.spatial_transform + report.grid_sample == 1 and not report.left


def test_kornias_patches_of_local_features():
    """It takes parts of its lazy grid, which are plain."""
    feature = pytest.importorskip("kornia.feature", reason="kornia is not installed")
    image = torch.rand(1, 1, 24, 24, requires_grad=True)
    frames = torch.tensor([[[[4.0, 1.0, 12.0], [-1.0, 4.0, 10.0]]]], requires_grad=True)
    report = check_patched(
        lambda image, frames: feature.extract_patches_simple(image, frames, 8), image, frames
    )
    assert report.lazy_grids == 1 and report.grid_sample > 0 and not report.left


@pytest.mark.parametrize("of", ["images", "volumes"])
def test_monais_affine_transform(of):
    layers = pytest.importorskip("monai.networks.layers", reason="MONAI is not installed")
    input, theta, size = operands(of)
    layer = layers.AffineTransform(size[2:], normalized=True, align_corners=False)
    report = check_patched(layer, input, theta)
    assert (report.spatial_transform, report.left) == (1, {})


def test_monais_resampler_keeps_its_type():
    reason = "MONAI is not installed"
    transforms = pytest.importorskip("monai.transforms", reason=reason)
    data = pytest.importorskip("monai.data", reason=reason)
    image = data.MetaTensor(torch.rand(1, 6, 5))
    turn = transforms.Affine(rotate_params=0.3, padding_mode="border", image_only=True)
    theirs = turn(image)
    with triton_stn.patch() as patched:
        ours = turn(image)
    assert isinstance(ours, data.MetaTensor) and patched.report().grid_sample == 1
    torch.testing.assert_close(ours.as_tensor(), theirs.as_tensor(), atol=1e-5, rtol=1e-5)


def outcomes(**tests) -> dict:
    counts = dict(lazy_grids=0, spatial_transform=0, grid_sample=0, left={"grid_sample: meta": 3})
    return {"outcomes": tests, "counts": counts}


def test_a_comparison_names_what_the_patch_breaks(capsys):
    plain = outcomes(a="passed", b="failed", c="skipped", d="passed", e="passed")
    patched = outcomes(a="failed", b="failed", c="failed", d="passed")
    assert peers.compare(plain, patched) == ["a", "c", "e"]
    printed = capsys.readouterr().out
    assert "unpatched: 5 tests, 3 passed, 1 failed, 1 skipped" in printed
    assert "3  left to PyTorch, grid_sample: meta" in printed
    assert peers.compare(plain, plain) == []


LIBRARY = """
import torch, torch.nn.functional as F
def test_warps():
    grid = F.affine_grid(torch.eye(2, 3)[None], (1, 1, 2, 2), align_corners=False)
    F.grid_sample(torch.ones(1, 1, 2, 2), grid, align_corners=False)
def test_goes_by_the_type():
    grid = F.affine_grid(torch.eye(2, 3)[None], (1, 1, 2, 2), align_corners=False)
    assert type(grid) is torch.Tensor
"""


@pytest.mark.landing
def test_a_librarys_tests_run_twice(tmp_path):
    (tmp_path / "test_library.py").write_text(LIBRARY)
    command = [sys.executable, Path(peers.__file__), "kornia", tmp_path, "test_library.py"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "unpatched: 2 tests, 2 passed\n" in ran.stdout
    assert "patched: 2 tests, 1 passed, 1 failed\n       2  lazy_grids\n" in ran.stdout
    assert ran.stdout.endswith("passes unpatched alone: test_library.py::test_goes_by_the_type\n")
