"""Co-localisation: what the hinge pays, who is found, and what the command prints."""

from __future__ import annotations

import pytest
import torch
from digits import idx, made_up, write

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from examples import colocalise, data, scenes
from examples.models import Window, convolutional_localization
from triton_stn.nn import SpatialTransformer

pytestmark = pytest.mark.usefixtures("small_and_quick")


SIZE = colocalise.CANVAS


@pytest.fixture
def scene() -> data.Scene:
    images, labels = made_up(20)
    digits = data.Digits(torch.from_numpy(images)[:, None] / 255, torch.from_numpy(labels))
    return scenes.cluttered(digits, digits, torch.Generator().manual_seed(0), SIZE, 0)


@pytest.fixture
def transformer() -> SpatialTransformer:
    torch.manual_seed(0)
    window = Window(28 / SIZE)
    return SpatialTransformer(*convolutional_localization((1, SIZE, SIZE)), window, 28)


def looking_at(transformer, scene, x: float = 0, y: float = 0) -> None:
    """Windows on the digits, moved by so many pixels."""
    theta = (scene.boxes[:, :2] + 14 + torch.tensor([x, y])) / (SIZE / 2) - 1
    transformer.predict = lambda images: theta[: len(images)]


def test_a_digit_is_found_where_more_than_half_is_shared(transformer, scene):
    for x, y, found in ((0, 0, True), (9, 0, True), (10, 0, False), (5, 5, True), (6, 6, False)):
        looking_at(transformer, scene, x, y)
        result = colocalise.judge(transformer, scene)
        assert result.error == (0 if found else 100), (x, y)
        shared = (28 - x) * (28 - y)
        assert result.iou == pytest.approx(shared / (2 * 28**2 - shared), abs=1e-3)


def test_windows_on_the_digits_cost_less_than_others(transformer, scene):
    generator = torch.Generator().manual_seed(0)
    objective = colocalise.hinge(transformer.transform, torch.nn.Flatten(), generator, steps=1)
    costs = []
    for x in (0.0, 14.0, 300.0):
        looking_at(transformer, scene, x)
        costs.append(float(objective(transformer, scene)))
    on_digits, half_off, out_of_view = costs
    assert on_digits < half_off < out_of_view


def test_the_command_trains_measures_and_draws(tmp_path, capsys):
    Image = pytest.importorskip("PIL.Image")
    source = write(tmp_path, *map(idx, made_up(40)))
    out = tmp_path / "picture.png"
    few = ["--steps", "2", "--encoder-steps", "2", "--batch", "8", "--clutter", "3"]
    assert colocalise.main([*source, *few, "--device", "cpu", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "32 digits to train, 8 held out" in printed and "after: " in printed
    with Image.open(out) as picture:
        assert picture.width > 300
    assert colocalise.main(["--data-dir", str(tmp_path / "nowhere"), "--device", "cpu"]) == 1
