"""The digits example: what it reads and refuses, that it learns, and what it writes."""

from __future__ import annotations

import gzip
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import triton_stn

pytest.importorskip("matplotlib")
pytest.importorskip("tabulate")
pytest.importorskip("tqdm")

from examples import mnist

DATA = Path(__file__).parents[2] / "shared" / "data" / "mnist"
IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs the digits of ../shared/data")


@pytest.fixture(autouse=True)
def small_and_quick():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with triton_stn.use_backend("torch"):
        yield
    torch.set_num_threads(threads)


def idx(values, magic: int | None = None) -> bytes:
    """The bytes of an IDX file."""
    values = np.asarray(values, np.uint8)
    return struct.pack(f">{1 + values.ndim}i", magic or 2048 + values.ndim, *values.shape) + bytes(
        values
    )


def write(folder: Path, images: bytes, labels: bytes) -> list[str]:
    (folder / IMAGES).write_bytes(images)
    (folder / LABELS).write_bytes(labels)
    return ["--data-dir", str(folder)]


def made_up(count: int = 10):
    """Bars whose place is their label."""
    labels = np.arange(count) % 10
    images = np.zeros((count, 28, 28), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2:26, 2 + 2 * label : 6 + 2 * label] = 255
    return images, labels


@pytest.mark.parametrize("zipped", [False, True])
def test_reads_idx_files_zipped_or_not(zipped, tmp_path):
    images, labels = made_up(12)
    for name, values in ((IMAGES, images), (LABELS, labels)):
        if zipped:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
        else:
            (tmp_path / name).write_bytes(idx(values))
    digits = mnist.read_mnist(tmp_path)
    assert digits.images.shape == (12, 1, 28, 28) and digits.images.dtype == torch.float32
    assert torch.equal(digits.images[:, 0] * 255, torch.from_numpy(images).float())
    assert digits.labels.tolist() == labels.tolist()


GOOD_IMAGES, GOOD_LABELS = (idx(values) for values in made_up())


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (GOOD_IMAGES[:-1], GOOD_LABELS, f"{IMAGES}' must hold 10 x 28 x 28 bytes .* got 7839"),
        (GOOD_IMAGES + b"\0", GOOD_LABELS, f"{IMAGES}' must hold 10 x 28 x 28 .* got 7841"),
        (GOOD_IMAGES[:9], GOOD_LABELS, f"{IMAGES}' is truncated: 9 bytes, no whole header"),
        (b"", GOOD_LABELS, f"{IMAGES}' is truncated: 0 bytes"),
        (GOOD_IMAGES, GOOD_LABELS[:-3], f"{LABELS}' must hold 10 bytes .* got 7"),
        (
            GOOD_LABELS + bytes(9),
            GOOD_LABELS,
            f"{IMAGES}' has the wrong magic number 2049, 2051 is that of images",
        ),
        (GOOD_IMAGES, GOOD_IMAGES, f"{LABELS}' has the wrong magic number 2051, 2049 .* labels"),
        (GOOD_IMAGES, idx([1] * 9), "label for each .* got 10 images and 9 labels"),
        (GOOD_IMAGES, idx([11] * 10), f"{LABELS}' must hold labels from 0 to 9, got 11"),
        (idx(np.zeros((10, 8, 8))), GOOD_LABELS, r"must hold 28x28 images, got \(8, 8\)"),
        (idx(np.zeros((1, 28, 28))), idx([1]), "at least 2 images, got 1 images"),
    ],
)
def test_a_file_that_is_not_right_exits_with_1_and_is_named(
    images, labels, message, tmp_path, capsys
):
    assert mnist.main(write(tmp_path, images, labels)) == 1
    assert re.search(message, capsys.readouterr().err)


def test_a_truncated_gzip_file_is_named(tmp_path, capsys):
    whole = gzip.compress(GOOD_IMAGES)
    for broken in (whole[:-20], whole[:5], b"no gzip at all"):
        (tmp_path / f"{IMAGES}.gz").write_bytes(broken)
        assert mnist.main(["--data-dir", str(tmp_path)]) == 1
        assert f"{IMAGES}.gz', is it truncated?" in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path, capsys):
    assert mnist.main(["--data-dir", str(tmp_path / "nowhere")]) == 1
    assert "there is no file" in capsys.readouterr().err
    (tmp_path / IMAGES).write_bytes(GOOD_IMAGES)
    assert mnist.main(["--data-dir", str(tmp_path)]) == 1
    assert f"{LABELS}.gz'" in capsys.readouterr().err


def test_without_scikit_learn_a_message_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert mnist.main([]) == 1
    error = capsys.readouterr().err
    assert "pip install scikit-learn" in error and "--data-dir" in error


def test_scikit_learns_digits_are_enlarged():
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    digits = mnist.small_digits()
    assert digits.images.shape == (1797, 1, 28, 28)
    assert digits.images.min() >= 0 and digits.images.max() == 1
    small = torch.from_numpy(load_digits().images).float()[:, None] / 16
    bilinear = torch.nn.functional.interpolate(small, 28, mode="bilinear")
    torch.testing.assert_close(digits.images, bilinear, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "-1"], "--epochs must not be negative, got -1"),
        (["--lr", "0"], "--lr must be above 0, got 0.0"),
        (["--localization-lr-scale", "nan"], "--localization-lr-scale must be above 0, got nan"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--rotate", "200"], "--rotate must lie between 0 and 180 degrees, got 200.0"),
        (["--transform", "fisheye"], "invalid choice: 'fisheye'"),
        (["--device", "abacus"], "--device 'abacus' can not be used"),
        (["--out", "nowhere/picture.png"], "--out: there is no folder 'nowhere'"),
    ],
)
def test_a_wrong_argument_exits_with_a_message(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        mnist.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_digits_are_turned_each_by_an_angle_of_its_own():
    image = torch.zeros(1, 1, 28, 28)
    image[..., 13:15, 20:28] = 1  # a hand that points to three o'clock
    images = image.expand(400, -1, -1, -1)
    turned = mnist.turn(images, 90, torch.Generator().manual_seed(0))
    place = torch.arange(28) - 13.5
    x, y = ((turned[:, 0] * axis).sum((1, 2)) for axis in (place, place[:, None]))
    angles = torch.atan2(y, x).rad2deg()
    assert angles.min() < -80 and angles.max() > 80 and angles.abs().max() < 92
    assert angles.abs().mean() == pytest.approx(45, abs=4)  # uniform in ±90
    assert mnist.turn(images, 0, torch.Generator()) is images


@pytest.mark.parametrize("transform", [None, *mnist.TRANSFORMS])
def test_every_network_starts_as_one_that_leaves_the_image_alone(transform):
    network = mnist.Network(transform).eval()
    images = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(network(images), network.classifier(images), atol=1e-4, rtol=0)
    assert (network.transformer is None) == (transform is None)


@needs_data
def test_a_few_steps_on_real_digits_lower_the_loss():
    torch.manual_seed(0)
    digits = mnist.read_mnist(DATA)[:200]
    network = mnist.Network("affine")
    first, *_, last = mnist.train(network, digits, 90, 12, 4e-3, 0.1, seed=0)
    assert last < 0.9 * first
    assert network.transformer.head.weight.abs().max() > 0  # the localisation net took part


@needs_data
def test_the_real_digits_are_all_there():
    digits = mnist.read_mnist(DATA)
    assert len(digits) == 10_000
    assert digits.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert digits.labels.bincount().tolist() == [
        *(980, 1135, 1032, 1010, 982),
        *(892, 958, 1028, 974, 1009),
    ]


def test_compare_prints_both_and_writes_the_picture(tmp_path, capsys):
    Image = pytest.importorskip("PIL.Image")
    out = tmp_path / "picture.png"
    data = write(tmp_path, *map(idx, made_up(60)))
    arguments = ["--compare", "--transform", "tps", "--rotate", "10", "--epochs", "2"]
    options = ["--seeds", "3", "4", "--backend", "torch", "--device", "cpu", "--out", str(out)]
    assert mnist.main([*data, *arguments, *options]) == 0
    printed = capsys.readouterr().out
    assert "48 digits to train, 12 held out, turned by up to 10°" in printed
    without, with_it = (line for line in printed.splitlines() if " transformer " in line)
    assert without.startswith("no transformer") and with_it.startswith("tps transformer")
    for line in (without, with_it):
        one, other, mean, _ = map(float, line.split()[2:])
        assert mean == pytest.approx((one + other) / 2, abs=0.01)
    with Image.open(out) as picture:
        assert picture.width > 300


def test_learns_bars_by_heart(tmp_path, capsys):
    data = write(tmp_path, *map(idx, made_up(400)))
    out = ["--out", str(tmp_path / "picture.png"), "--device", "cpu", "--backend", "torch"]
    assert mnist.main([*data, *out, "--epochs", "12"]) == 0
    (line,) = (k for k in capsys.readouterr().out.splitlines() if k.startswith("affine"))
    assert float(line.split()[2]) > 90
