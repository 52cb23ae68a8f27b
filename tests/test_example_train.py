"""The literature's networks and their trainer: capacity, resumption, backends, the command."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import INTERPRETED
from digits import idx, made_up, write, write_svhn

import triton_stn

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from examples import data, models, pictures
from examples import record as record_of
from examples import train as trainer_of
from examples.experiments import EXPERIMENTS, iou, measure
from examples.train import Settings, Trainer, held_out_scene

TOY = dict(filters=4, capacity=30_000)
OF_DIGITS = [name for name in EXPERIMENTS if name != "svhn"]
EVERY = [(name, network) for name in OF_DIGITS for network in EXPERIMENTS[name].networks]


pytestmark = pytest.mark.usefixtures("small_and_quick")


@pytest.fixture
def digits() -> data.Digits:
    images, labels = made_up(40)
    return data.Digits(torch.from_numpy(images)[:, None] / 255, torch.from_numpy(labels))


@pytest.mark.parametrize(("name", "network"), EVERY)
def test_a_network_answers_and_its_transformers_start_at_theirs(name, network, digits):
    experiment = EXPERIMENTS[name]
    built = experiment.network(network, **TOY).eval()
    generator = torch.Generator().manual_seed(0)
    scene = experiment.scene(digits[:2], digits, generator)
    logits = built(scene.images)
    shape = experiment.shape
    assert logits.shape == ((2, shape.classes) if shape.answers == 1 else (2, 11, 5))
    assert logits.shape[2:] == scene.targets.shape[1:]
    found = models.transformers(built)
    numbers = {"2st": 1, "4st": 1, "st": 1, "large": 1, "tutorial": 1}
    by_name = {"reader-single": 1, "reader-multi": 4, "tutorial-cnn": 0, "large-cnn": 0}
    assert len(found) == by_name.get(network, numbers.get(network.split("-")[0], 0))
    for transformer in found:
        assert not transformer.head.weight.any()
    if found:
        theta = found[0].predict(scene.images)
        start = found[0].head.bias.view(theta.shape[1:])
        assert torch.equal(theta, start.expand_as(theta))


@pytest.mark.parametrize("name", ["r", "rts", "tc", "addition", "birds", "sequences-64"])
def test_networks_that_are_compared_have_one_capacity(name):
    counts = [models.count(EXPERIMENTS[name].network(n)) for n in EXPERIMENTS[name].networks]
    counts = [n for n in counts if n > 30_000]  # the tutorial's is what it is
    assert max(counts) <= 400_000 and min(counts) > 0.98 * 400_000


@pytest.mark.parametrize(("filters", "widths"), [(16, [16, 24, 32, 48]), (48, [48, 72, 96, 144])])
def test_a_reader_is_as_wide_as_it_is_asked_to_be(filters, widths):
    network = EXPERIMENTS["sequences-64"].network("reader", filters=filters)
    found = [m.out_channels for m in network if isinstance(m, torch.nn.Conv2d)]
    assert found == widths + 2 * widths[-1:]


def test_transformers_learn_at_their_experiment_s_rate_where_none_is_asked_for():
    def rate(*arguments):
        return trainer_of.parse_arguments(arguments).localization_lr_scale

    assert rate("rts") == 1 and rate("sequences-64") == rate("volume") == 0.1
    assert rate("volume", "--localization-lr-scale", "0.5") == 0.5


@pytest.mark.parametrize("transform", models.TRANSFORMS)
@pytest.mark.parametrize(("name", "network"), [("rts", "st-cnn"), ("addition", "2st-fcn")])
def test_pytorch_s_two_functions_sample_the_same(name, network, transform, digits):
    experiment = EXPERIMENTS[name]
    built = experiment.network(network, transform, **TOY)
    torch.nn.init.normal_(models.transformers(built)[0].head.weight, std=0.1)
    images = experiment.scene(digits[:6], digits, torch.Generator().manual_seed(0)).images
    ours = built(images)
    models.use_pytorch(built)
    torch.testing.assert_close(built(images), ours, atol=1e-4, rtol=1e-4)


def losses_of(digits, steps: int = 20, backend: str = "torch", **settings) -> list[float]:
    """``backend`` is that of the transformer; the scenes are made by PyTorch for all."""

    def scene(*arguments):
        with triton_stn.use_backend("torch"):
            return EXPERIMENTS["r"].scene(*arguments)

    torch.manual_seed(0)
    network = EXPERIMENTS["r"].network("st-fcn", filters=4, capacity=30_000, crop=16)
    if backend == "pytorch":
        models.use_pytorch(network)
    settings = Settings(**dict(steps=steps, batch=4) | settings)
    trainer = Trainer(network, scene, digits, settings)
    with triton_stn.use_backend("torch" if backend == "pytorch" else backend):
        return [float(trainer.step(network)) for _ in range(steps)]


@pytest.mark.parametrize("place", [INTERPRETED])
def test_the_kernels_and_pytorch_s_functions_give_the_same_losses(place, digits):
    # At five times this rate what the two round apart grows to 1e-3; and so it does where they
    # round coordinates apart, from 28 pixels to 12: Adam takes a whole step by nearly nothing.
    options = dict(lr=2e-3, localization_lr_scale=1.0, schedule="steps")
    ours = losses_of(digits, backend=place.backend, **options)
    theirs = losses_of(digits, backend="pytorch", **options)
    assert max(theirs) - min(theirs) > 0.2  # it trained
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_a_seed_gives_the_same_losses_again(digits):
    assert losses_of(digits) == losses_of(digits) != losses_of(digits, seed=1)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("schedule", ["one-cycle", "steps"])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(optimizer, schedule, digits, tmp_path):
    experiment = EXPERIMENTS["upright"]
    settings = Settings(steps=12, batch=16, optimizer=optimizer, schedule=schedule)

    def start():
        network = experiment.network("tutorial")  # with dropout
        return Trainer(network, experiment.scene, digits, settings)

    torch.manual_seed(0)
    whole = start()
    losses = []
    for step in range(12):
        if step == 5:
            whole.save(tmp_path / "checkpoint.pt")
        losses.append(whole.step(whole.network))
    torch.manual_seed(1)
    rest = start()
    rest.load(tmp_path / "checkpoint.pt")
    assert torch.equal(
        torch.stack(losses[5:]), torch.stack([rest.step(rest.network) for _ in range(7)])
    )


def test_every_epoch_shows_each_digit_once_whatever_the_number_of_processes(digits):
    def shown(world):
        settings = Settings(steps=5, batch=16)
        network = torch.nn.Linear(1, 1)
        seen = []
        scene = lambda batch, pool, generator: batch  # noqa: E731
        for rank in range(world):
            trainer = Trainer(network, scene, digits, settings, rank, world)
            for trainer.done in range(3):
                seen += trainer.batch().labels.tolist()
        return sorted(seen)

    assert shown(1) == shown(2) == sorted(digits.labels.tolist())


def test_boxes_overlap_by_their_share():
    a = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 4, 4]])
    b = torch.tensor([[1.0, 0, 3, 2], [2, 2, 3, 3], [1, 1, 3, 3]])
    torch.testing.assert_close(iou(a, b), torch.tensor([1 / 3, 0.0, 1 / 4]))


def test_what_a_transformer_that_finds_the_digit_reads_is_its_box(digits):
    experiment = EXPERIMENTS["t"]
    scene = held_out_scene(experiment, digits)
    network = experiment.network("st-fcn", zoom=1.0, **TOY)
    transformer = models.transformers(network)[0]
    assert measure(network, scene).iou == pytest.approx((28 / 60) ** 2, abs=1e-4)
    left, top, right, bottom = scene.boxes.T
    theta = torch.zeros(len(scene), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = (right - left) / 60, (bottom - top) / 60
    theta[:, 0, 2], theta[:, 1, 2] = (right + left) / 60 - 1, (bottom + top) / 60 - 1
    transformer.predict = lambda images: theta[: len(images)]
    assert measure(network, scene).iou == pytest.approx(1, abs=1e-4)


def test_an_answer_is_wrong_where_one_digit_of_it_is():
    scene = data.Scene(torch.zeros(3, 1), torch.tensor([[1, 10], [2, 3], [4, 10]]))
    logits = torch.nn.functional.one_hot(torch.tensor([[1, 10], [2, 4], [4, 10]]), 11).float()
    network = torch.nn.Module()
    network.forward = lambda images: logits.mT
    assert measure(network, scene).error == pytest.approx(100 / 3)


def toy(tmp_path: Path, *arguments: str) -> list[str]:
    source = write(tmp_path, *map(idx, made_up(40)))
    common = ["--steps", "2", "--batch", "4", "--filters", "4", "--capacity", "30000"]
    return [*arguments, *source, *common, "--out", str(tmp_path / "run"), "--device", "cpu"]


SLOW = [pytest.param("large", marks=pytest.mark.nightly)]


@pytest.mark.parametrize("name", [name for name in OF_DIGITS if name != "large"] + SLOW)
def test_the_command_trains_measures_and_draws(name, tmp_path, capsys):
    Image = pytest.importorskip("PIL.Image")
    assert trainer_of.main(toy(tmp_path, name, "--every", "1")) == 0
    printed, run = capsys.readouterr().out, tmp_path / "run"
    assert "held-out error" in printed and "parameters" in printed
    with (run / "run.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2"]
    assert all(0 <= float(row["error"]) <= 100 and float(row["loss"]) > 0 for row in rows)
    has_boxes = name in ("t", "tc", "large")
    assert all((row["iou"] != "") == has_boxes for row in rows) and ("IoU" in printed) == has_boxes
    assert (run / "picture.png").exists()
    with Image.open(run / "training.gif") as animation:
        assert animation.n_frames == 2


def test_house_numbers_are_trained_on(tmp_path, capsys):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        write_svhn(tmp_path / part)
    arguments = ["svhn", "--steps", "2", "--filters", "4", "--device", "cpu"]
    arguments += ["--out", str(tmp_path / "run")]
    assert trainer_of.main([*arguments, "--data-dir", str(tmp_path)]) == 0
    assert "2 to train on,\n2 held out" in capsys.readouterr().out
    assert (tmp_path / "run" / "picture.png").exists()
    assert trainer_of.main(arguments) == 1
    assert "--data-dir's folders train and test" in capsys.readouterr().err


def test_a_volume_is_drawn_with_the_outline_of_the_output_s_middle_slice(digits):
    scene = EXPERIMENTS["volume"].scene(digits[:2], digits, torch.Generator().manual_seed(0))
    network = EXPERIMENTS["volume"].network("st-3d", **TOY)
    start = torch.tensor([[0.5, 0, 0.3, 0.2], [0, 0.5, 0, -0.1], [0, 0, 1, 0]])
    with torch.no_grad():
        models.transformers(network)[0].head.bias.copy_(start.flatten())
    image, *_ = pictures.show(network, scene).axes
    x, y = image.lines[0].get_data()  # in pixels of 60, the first corner again at the end
    assert x.tolist() == pytest.approx([20.5, 50.5, 50.5, 20.5, 20.5], abs=1e-4)
    assert y.tolist() == pytest.approx([11.5, 11.5, 41.5, 41.5, 11.5], abs=1e-4)


@pytest.mark.parametrize("transform", ["projective", "tps"])
def test_other_transforms_train_by_the_other_optimizer_in_mixed_precision(transform, tmp_path):
    others = [
        "--optimizer",
        "sgd",
        "--schedule",
        "steps",
        "--amp",
        "bfloat16",
        "--backend",
        "torch",
    ]
    arguments = toy(tmp_path, "e", "--model", "st-cnn", "--transform", transform, *others)
    assert trainer_of.main([*arguments, "--no-pictures"]) == 0
    assert not (tmp_path / "run" / "picture.png").exists()


def test_the_command_goes_on_from_its_checkpoint(tmp_path, monkeypatch, capsys):
    command = [*toy(tmp_path, "r", "--model", "fcn", "--every", "1"), "--steps", "4"]
    record = record_of.Record.__call__

    def stop(self, point):
        record(self, point)
        if point.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(record_of.Record, "__call__", stop)
        trainer_of.main(command)
    assert trainer_of.main([*command, "--resume"]) == 0
    with (tmp_path / "run" / "run.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]
    assert trainer_of.main([*command, "--resume", "--lr", "0.5"]) == 1
    assert "had not the settings {'lr': 0.5}" in capsys.readouterr().err


def test_the_command_writes_for_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    assert trainer_of.main(toy(tmp_path, "r", "--tensorboard")) == 0
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))


@pytest.mark.landing
def test_two_processes_train_together(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    command += ["examples.train", *toy(tmp_path, "r", "--model", "st-fcn", "--backend", "torch")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held-out error") == 1
    assert (tmp_path / "run" / "picture.png").exists()


@pytest.mark.landing
def test_a_compiled_network_trains(tmp_path, monkeypatch):
    real, compiled = torch.compile, []

    def compile_(network):
        compiled.append(network)
        return real(network, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile_)
    arguments = toy(tmp_path, "r", "--model", "st-fcn", "--compile", "--no-pictures")
    assert trainer_of.main(arguments) == 0
    assert len(compiled) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "invalid choice: 'nothing'"),
        (["r", "--model", "reader"], "--model of r must be one of st-cnn, st-fcn, cnn, fcn"),
        (["r", "--steps", "-1"], "--steps must be at least 0, got -1"),
        (["r", "--lr", "nan"], "--lr must be above 0, got nan"),
        (["r", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["r", "--device", "abacus"], "--device 'abacus' can not be used"),
    ],
)
def test_a_wrong_argument_exits_with_a_message(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        trainer_of.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_there_is_nothing_to_resume(tmp_path, capsys):
    assert trainer_of.main(toy(tmp_path, "r", "--resume")) == 1
    assert "there is no checkpoint" in capsys.readouterr().err


def test_a_target_is_written_as_its_digits():
    assert pictures.text(torch.tensor(7)) == "7"
    assert pictures.text(torch.tensor([4, 0, 2, 10, 10])) == "402"
    assert pictures.text(torch.tensor([10] * 5)) == "none"


def test_every_frame_of_an_animation_is_as_it_was_drawn(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    np = pytest.importorskip("numpy")
    frames = [np.full((20, 30, 3), 255, np.uint8) for _ in range(4)]
    for i, frame in enumerate(frames):
        frame[5:15, 5 * i : 5 * i + 10] = (230, 20, 120)
    pictures.animate(tmp_path / "moving.gif", frames)
    with Image.open(tmp_path / "moving.gif") as animation:
        assert animation.n_frames == 4
        for i, frame in enumerate(frames):
            animation.seek(i)
            gap = np.abs(np.asarray(animation.convert("RGB")).astype(int) - frame)
            assert gap.max() < 8


def test_frames_of_an_animation_may_differ_in_size(tmp_path):
    """As they do when what a transformer reads leaves the image."""
    Image = pytest.importorskip("PIL.Image")
    np = pytest.importorskip("numpy")
    frames = [np.full((h, w, 3), 128, np.uint8) for h, w in ((20, 30), (25, 30), (20, 40))]
    pictures.animate(tmp_path / "growing.gif", frames)
    with Image.open(tmp_path / "growing.gif") as animation:
        assert (animation.n_frames, animation.size) == (3, (40, 25))
