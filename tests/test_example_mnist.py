"""The digits example: what it reads and refuses, that it learns, and what it writes."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from digits import IMAGES, LABELS, idx, made_up, write

pytest.importorskip("matplotlib")
pytest.importorskip("tabulate")
pytest.importorskip("tqdm")

from examples import mnist

pytestmark = pytest.mark.usefixtures("small_and_quick")


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


@pytest.mark.landing
def test_two_processes_learn_them_together(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    command += ["examples.mnist", *write(tmp_path, *map(idx, made_up(400))), "--epochs", "12"]
    command += ["--out", str(tmp_path / "picture.png"), "--device", "cpu", "--backend", "torch"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("affine"))
    assert float(line.split()[2]) > 90
    assert done.stdout.count("picture: ") == 1
    assert (tmp_path / "picture.png").exists()


LEAVES = """
import argparse
from pathlib import Path

import torch
from torch import nn

from examples import processes

with processes.joined(argparse.Namespace(device="cpu")):
    network = nn.parallel.DistributedDataParallel(nn.Linear(3, 1))
    network(torch.ones(2, 3)).sum().backward()
    del network
names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
assert not [name for name in names if "gloo" in name], names
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are listed in /proc")
def test_no_thread_of_the_group_is_left_to_meet_the_end_of_python(tmp_path):
    # One that lets go of a tensor then aborts the process, after its work is done.
    script = tmp_path / "leaves.py"
    script.write_text(LEAVES)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", script]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
