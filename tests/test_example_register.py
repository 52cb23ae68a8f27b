"""The registration example: what it prints, draws and reads, at a size that takes seconds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from digits import idx, made_up, write

pytest.importorskip("matplotlib")
pytest.importorskip("tabulate")
Image = pytest.importorskip("PIL.Image")

from examples import register  # noqa: E402
from triton_stn import flow_warp, geometry, spatial_transform  # noqa: E402

pytestmark = pytest.mark.usefixtures("small_and_quick")


def ellipsoid(size, centre, radii) -> torch.Tensor:
    """(1, 1, *size), soft at its surface; centre and radii in voxels, x first."""
    like = torch.zeros(())
    at = register.voxels(size, like) - torch.tensor(centre).view(3, 1, 1, 1)
    far = (at / torch.tensor(radii).view(3, 1, 1, 1)).square().sum(0).sqrt()
    return torch.sigmoid(8 * (1 - far))[None, None]


def test_an_ellipsoid_is_found_by_the_affine_map_and_a_dent_by_the_field():
    size = (14, 16, 18)
    fixed = ellipsoid(size, (8.0, 7.0, 6.0), (5.0, 4.0, 4.0))
    moving = ellipsoid(size, (11.0, 9.0, 7.0), (4.0, 5.0, 4.5))
    moving = (moving - ellipsoid(size, (11.0, 13.0, 7.0), (2.0, 2.5, 2.5))).clamp(min=0)
    theta = register.fit_affine(fixed, moving, 20)
    aligned = spatial_transform(moving, theta)
    flow = register.fit_field(fixed, aligned, 20, 0.02)
    warped = flow_warp(aligned, flow)
    overlaps = [register.dice(image, fixed) for image in (moving, aligned, warped)]
    assert overlaps[0] < 0.6 and overlaps[1] > overlaps[0] + 0.2
    assert overlaps[2] > max(0.9, overlaps[1])
    assert geometry.jacobian_determinant(flow, "corners").min() > 0


def test_an_affine_map_is_its_flow():
    moving = torch.rand(1, 1, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    theta = torch.eye(3, 4) + 0.1 * torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    flow = register.flow_of(theta, (5, 6, 7), (4, 8, 6))
    expected = spatial_transform(moving, theta, (4, 8, 6))
    torch.testing.assert_close(flow_warp(moving, flow), expected)


def test_a_field_of_twice_the_size_moves_twice_as_far():
    field = torch.tensor([1.0, -2.0, 3.0]).view(1, 3, 1, 1, 1).expand(1, 3, 4, 5, 6)
    got = register.rescaled(field, (8, 5, 3))
    expected = torch.tensor([0.5, -2.0, 6.0]).view(1, 3, 1, 1, 1).expand(1, 3, 8, 5, 3)
    torch.testing.assert_close(got, expected)


def test_dice_by_hand():
    a, b = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([0.0, 0.9, 0.6, 0.4])
    assert register.dice(a, b) == register.dice(b, a) == 0.5
    assert register.dice(a, a) == 1 and register.dice(0 * a, 0 * a) == 0


def test_the_copies_double_from_the_coarsest_on():
    assert register.pyramid((60, 30, 60)) == [(15, 8, 15), (30, 15, 30), (60, 30, 60)]
    assert register.pyramid((60, 60, 60), finest=30)[-1] == (30, 30, 30)
    assert register.pyramid((8, 9, 10)) == [(8, 9, 10)]


def test_the_command_prints_and_draws(tmp_path, capsys):
    folder = write(tmp_path, *map(idx, made_up(100)))
    out = tmp_path / "picture.png"
    options = ["--size", "16", "--steps", "15", "--smoothness", "0.1", "--out", str(out)]
    assert register.main([*folder, *options]) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines() if line.startswith(("before", "after"))]
    before, affine, field = (float(row[1 if row[0] == "before" else 2]) for row in rows)
    assert before < 0.6 and min(affine, field) > 0.9  # the bars of one kind are all alike
    assert " 0 cells are folded" in printed
    with Image.open(out) as picture:
        assert picture.width > 600


def test_volumes_of_one_s_own_are_read_whatever_their_sizes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("fixed.npy", 7 * ellipsoid((10, 12, 11), (5.0, 6.0, 5.0), (3.0, 3.0, 3.0))[0, 0] - 2)
    np.save("moving.npy", ellipsoid((12, 10, 14), (6.0, 5.0, 6.0), (4.0, 3.0, 4.0))[0, 0])
    files = ["--fixed", "fixed.npy", "--moving", "moving.npy"]
    assert register.main([*files, "--steps", "3"]) == 0
    assert (tmp_path / "runs" / "register.png").exists()
    np.save("moving.npy", np.zeros((5, 5)))
    assert register.main([*files, "--steps", "1"]) == 1
    message = "'moving.npy' must be a finite volume (D, H, W), got shape (5, 5)"
    assert message in capsys.readouterr().err
    assert register.main(["--fixed", "fixed.npy", "--moving", "nowhere.npy"]) == 1
    with pytest.raises(SystemExit):
        register.main(files[:2])
