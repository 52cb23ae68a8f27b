"""The photograph example: it converges, writes its picture, and says plainly what went wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("tabulate")
pytest.importorskip("tqdm")
Image = pytest.importorskip("PIL.Image")

from examples import align_photo  # noqa: E402

pytestmark = pytest.mark.usefixtures("small_and_quick")


def corner_error_in(text: str) -> float:
    (line,) = (line for line in text.splitlines() if line.startswith("corner error"))
    return float(line.split(",")[1].split()[0])


@pytest.mark.parametrize(
    "theta",
    [
        [],
        ["--theta", "0.0", "-0.9", "0.1", "1.1", "0.1", "-0.2"],  # a quarter turn, and more
    ],
    ids=["default", "quarter_turn"],
)
def test_recovers_theta_to_half_a_pixel_and_writes_the_picture(theta, tmp_path, capsys):
    out = tmp_path / "picture.png"
    assert align_photo.main(["--size", "128", "--out", str(out), *theta]) == 0
    printed = capsys.readouterr().out
    assert corner_error_in(printed) < 0.5
    assert all(f"θ{row}{column}" in printed for row in range(2) for column in range(3))
    with Image.open(out) as picture:
        assert picture.width > 1000


def test_no_steps_exits_with_1_and_says_so(tmp_path, capsys):
    out = tmp_path / "picture.png"
    assert align_photo.main(["--size", "64", "--steps", "0", "--out", str(out)]) == 1
    assert "did not converge" in capsys.readouterr().err
    assert out.exists()


def test_the_seed_decides_the_noise(tmp_path, capsys):
    def run(seed: int) -> str:
        out = str(tmp_path / "picture.png")
        align_photo.main(["--size", "32", "--steps", "20", "--seed", str(seed), "--out", out])
        return capsys.readouterr().out.split("pixels")[0]  # the table, before the seconds

    assert run(0) == run(0) != run(1)


def test_an_image_of_ones_own_is_read(tmp_path):
    ramp = np.add.outer(np.arange(80), 2 * np.arange(120)) % 256  # grey, wider than high
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / "ramp.png")
    assert align_photo.read_photo(tmp_path / "ramp.png", 60).shape == (1, 3, 40, 60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "missing.jpg"], "can not read the image 'missing.jpg'"),
        (["--image", "text.jpg"], "can not read the image 'text.jpg'"),
        (["--size", "8"], "--size must be at least 32, got 8"),
        (["--steps", "-1"], "--steps must not be negative, got -1"),
        (["--theta", "1", "0", "nan", "0", "1", "0"], "--theta must be six finite numbers"),
        (["--device", "abacus"], "--device 'abacus' can not be used"),
        (["--out", "nowhere/picture.png"], "--out: there is no folder 'nowhere'"),
    ],
)
def test_a_wrong_argument_exits_with_a_message(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(SystemExit) as stop:
        align_photo.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_theta_that_sees_nothing_is_refused(capsys):
    assert align_photo.main(["--size", "32", "--theta", "1", "0", "9", "0", "1", "0"]) == 1
    assert "sees none of the photograph" in capsys.readouterr().err


def test_the_corner_error_is_the_distance_of_the_worst_corner():
    moved = torch.eye(2, 3)
    moved[0, 2] = 2 / 7  # a pixel to the right
    moved[1, 1] = 1 + 4 / 5  # corners 2 pixels further out
    assert align_photo.corner_error(torch.eye(2, 3), moved, 5, 7) == pytest.approx(5**0.5)


def test_a_start_out_of_view_does_not_win():
    target = torch.rand(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    target[:, -1] = 1
    sampled = torch.stack([target * 0, 1 - target], dim=1)  # the first sees nothing at all
    sampled[:, 1, -1] = 1
    assert align_photo.alignment_loss(sampled, target).argmin() == 1
