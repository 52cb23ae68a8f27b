"""What the examples read, and the scenes that they make of it."""

from __future__ import annotations

import gzip
import math
import re

import pytest
import torch
from digits import DATA, IMAGES, LABELS, idx, made_up, needs_data, write_svhn

import triton_stn

pytest.importorskip("PIL")

from examples import data, scenes


@pytest.fixture(autouse=True)
def on_the_cpu():
    with triton_stn.use_backend("torch"):
        yield


@pytest.mark.parametrize("zipped", [False, True])
def test_reads_idx_files_zipped_or_not(zipped, tmp_path):
    images, labels = made_up(12)
    for name, values in ((IMAGES, images), (LABELS, labels)):
        if zipped:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
        else:
            (tmp_path / name).write_bytes(idx(values))
    digits = data.read_mnist(tmp_path)
    assert digits.images.shape == (12, 1, 28, 28) and digits.images.dtype == torch.float32
    assert torch.equal(digits.images[:, 0] * 255, torch.from_numpy(images).float())
    assert digits.labels.tolist() == labels.tolist()


def test_scikit_learns_digits_are_enlarged():
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    digits = data.small_digits()
    assert digits.images.shape == (1797, 1, 28, 28)
    assert digits.images.min() >= 0 and digits.images.max() == 1
    small = torch.from_numpy(load_digits().images).float()[:, None] / 16
    bilinear = torch.nn.functional.interpolate(small, 28, mode="bilinear")
    torch.testing.assert_close(digits.images, bilinear, atol=1e-5, rtol=0)


@needs_data
def test_the_real_digits_are_all_there():
    digits = data.read_mnist(DATA)
    assert len(digits) == 10_000
    assert [len(part) for part in data.load(DATA)] == [8000, 2000]
    assert digits.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert digits.labels.bincount().tolist() == [
        *(980, 1135, 1032, 1010, 982),
        *(892, 958, 1028, 974, 1009),
    ]


def test_the_training_files_are_trained_on_where_they_are(tmp_path):
    for part, count in (("t10k", 10), ("train", 30)):
        images, labels = made_up(count)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    assert [len(digits) for digits in data.load(tmp_path)] == [30, 10]
    for path in tmp_path.glob("train*"):
        path.unlink()
    assert [len(digits) for digits in data.load(tmp_path)] == [8, 2]


@pytest.fixture
def svhn(tmp_path):
    return write_svhn(tmp_path)


def test_reads_street_view_house_numbers(svhn):
    numbers = data.read_svhn(svhn, size=26)
    assert numbers.images.shape == (2, 3, 26, 26)
    none = data.NO_DIGIT
    assert numbers.targets.tolist() == [[5, 7, none, none, none], [0, none, none, none, none]]
    # The box is 1.3 times smaller than the crop, which is 26 pixels wide.
    bright = numbers.images[:, 0] > 0.5
    assert bright.sum((1, 2)).tolist() == [20 * 20] * 2 and bright[:, 3:23, 3:23].all()
    assert len(data.read_svhn(svhn, limit=1)) == 1
    with pytest.raises(data.DataError, match=re.escape("digitStruct.mat")):
        data.read_svhn(svhn / "nowhere")
    (svhn / "2.png").unlink()
    with pytest.raises(data.DataError, match=re.escape("2.png")):
        data.read_svhn(svhn)


def digits(count: int = 20) -> data.Digits:
    images, labels = made_up(count)
    return data.Digits(torch.from_numpy(images)[:, None] / 255, torch.from_numpy(labels))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


SCENES = {
    scenes.rotated: (1, 28, 28),
    scenes.rotated_scaled_translated: (1, 42, 42),
    scenes.projected: (1, 28, 28),
    scenes.elastic: (1, 28, 28),
    scenes.translated: (1, 60, 60),
    scenes.cluttered: (1, 60, 60),
    scenes.addition: (2, 42, 42),
    scenes.sequences: (3, 64, 64),
    scenes.birds: (1, 84, 84),
    scenes.extruded: (1, 60, 60, 60),
    scenes.enlarged: (3, 512, 512),
}


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_a_scene_comes_again_from_its_seed(scene):
    batch, pool = digits(4), digits()
    first, again, other = (scene(batch, pool, seeded(seed)) for seed in (1, 1, 2))
    assert first.images.shape == (4, *SCENES[scene]) and len(first) == 4
    assert first.images.isfinite().all() and first.images.min() >= 0 and first.images.max() <= 1.001
    assert (first.images.flatten(1).std(1) > 0.01).all()  # none is lost
    assert torch.equal(first.images, again.images) and torch.equal(first.targets, again.targets)
    assert not torch.equal(first.images, other.images)


def test_digits_are_turned_each_by_an_angle_of_its_own():
    image = torch.zeros(1, 1, 28, 28)
    image[..., 13:15, 20:28] = 1  # a hand that points to three o'clock
    hands = data.Digits(image.expand(400, -1, -1, -1), torch.zeros(400, dtype=int))
    turned = scenes.rotated(hands, hands, seeded()).images
    place = torch.arange(28) - 13.5
    x, y = ((turned[:, 0] * axis).sum((1, 2)) for axis in (place, place[:, None]))
    angles = torch.atan2(y, x).rad2deg()
    assert angles.min() < -80 and angles.max() > 80 and angles.abs().max() < 92
    assert angles.abs().mean() == pytest.approx(45, abs=4)  # uniform in ±90
    assert scenes.rotated(hands, hands, seeded(), degrees=0).images is hands.images


def test_a_placed_image_is_turned_counter_clockwise_about_its_middle_and_enlarged():
    image = torch.zeros(1, 1, 9, 9)
    image[..., 4, 7] = 1  # three pixels right of the middle
    placed = scenes.place(image, 31, scale=2.0, rotation=math.pi / 2, centre=(8 / 31, -4 / 31))
    row, column = divmod(int(placed.argmax()), 31)
    # the canvas's middle is at 15; 8/31 of half the canvas is 4 pixels, and the pixel goes up
    assert (row, column) == (15 - 2 - 6, 15 + 4)
    assert placed.sum() == pytest.approx(4, abs=0.3)


def test_no_digit_in_perspective_folds():
    many = data.Digits(torch.ones(500, 1, 28, 28), torch.zeros(500, dtype=int))
    seen = scenes.projected(many, many, seeded()).images.flatten(1).mean(1)
    assert seen.min() > 0.2 and (seen < 0.99).float().mean() > 0.9


def test_translated_digits_lie_pixel_for_pixel_in_their_boxes():
    batch = digits()
    scene = scenes.translated(batch, batch, seeded())
    for image, box, digit in zip(scene.images, scene.boxes.long(), batch.images, strict=True):
        left, top, right, bottom = box.tolist()
        torch.testing.assert_close(image[:, top:bottom, left:right], digit, atol=1e-4, rtol=0)
        assert float(image.sum()) == pytest.approx(float(digit.sum()), abs=0.1)
    assert len(scene.boxes.unique(dim=0)) > 10
    clutter = scenes.cluttered(batch, batch, seeded()).images - scene.images
    assert clutter.min() >= 0 and (clutter.flatten(1).sum(1) > 0).float().mean() > 0.8


def test_the_target_of_an_addition_is_the_sum_of_its_channels():
    ones = data.Digits(torch.ones(3, 1, 28, 28), torch.tensor([1, 4, 9]))
    pool = data.Digits(torch.ones(2, 1, 28, 28), torch.tensor([5, 5]))
    assert scenes.addition(ones, pool, seeded()).targets.tolist() == [6, 9, 14]


def test_a_number_ends_once_and_has_one_to_five_digits():
    batch = digits(200)
    targets = scenes.sequences(batch, batch, seeded()).targets
    ended = targets == data.NO_DIGIT
    assert (ended[:, 1:] >= ended[:, :-1]).all()
    assert sorted(set((~ended).sum(1).tolist())) == [1, 2, 3, 4, 5]
    assert torch.equal(targets[:, 0], batch.labels)


def test_a_bird_has_a_head_and_a_body():
    batch = digits(200)
    targets = scenes.birds(batch, batch, seeded()).targets
    assert sorted(set(targets.tolist())) == list(range(25))
