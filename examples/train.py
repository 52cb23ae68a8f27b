"""Train a network of the spatial-transformer literature, with its transformers or without.

    python -m examples.train rts --model st-cnn --data-dir MNIST
    python -m examples.train sequences-64 --model reader-multi --out runs/multi --tensorboard
    python -m examples.train rts --model st-cnn --resume
    torchrun --nproc-per-node 2 -m examples.train rts --model st-cnn

Writes to its folder: ``run.csv`` (step, loss, held-out error, IoU, milliseconds a step),
``checkpoint.pt``, ``picture.png``, and ``training.gif``, how the transformer moved while it learnt.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from examples import data, models, processes
from examples.experiments import EXPERIMENTS, Experiment, Result, loss, measure
from examples.options import (
    RUNS,
    RunError,
    add_common,
    add_training,
    check_common,
    check_least,
    check_training,
    perform,
    placed,
)
from examples.record import Point, Record
from triton_stn.nn import parameter_groups

SHAPES = ("filters", "capacity", "crop", "zoom")  # options that change an experiment's networks
HELD_OUT_SEED = 0  # the held-out scenes are the same for every run


@dataclass(frozen=True)
class Settings:
    """How a network is trained.

    schedule "one-cycle" rises to ``lr`` and falls to nothing; "steps" divides it by ten after each
    third, as Jaderberg et al. do. localization_lr_scale: of the transformers' learning rate.
    amp: "bfloat16" or "float16", or None.
    """

    steps: int = 2000
    batch: int = 64
    lr: float = 2e-3
    optimizer: str = "adam"
    schedule: str = "one-cycle"
    localization_lr_scale: float = 1.0
    seed: int = 0
    amp: str | None = None


Forward = Callable[..., Any]  # a network, or what stands for it


def classify(forward: Forward, scene: data.Scene) -> Tensor:
    """The objective of most: cross entropy with the targets."""
    return loss(forward(scene.images), scene.targets)


class Trainer:
    """A network, its optimizer, and the scenes that it is shown; can be saved and gone on with.

    Of ``world`` processes each takes its share of every batch. ``objective`` is what is minimised.
    """

    def __init__(
        self,
        network: nn.Module,
        scene: Callable,
        digits: data.Digits,
        settings: Settings,
        rank: int = 0,
        world: int = 1,
        objective: Callable[[Forward, data.Scene], Tensor] = classify,
    ):
        self.objective = objective
        self.network, self.scene, self.digits, self.settings = network, scene, digits, settings
        self.device = digits.images.device
        self.rank, self.world = rank, world
        self.generator = torch.Generator(self.device).manual_seed(settings.seed * world + rank)
        groups = parameter_groups(network, settings.lr, settings.localization_lr_scale)
        total = max(settings.steps, 1)
        if settings.optimizer == "adam":
            self.optimizer = torch.optim.Adam(groups)
        else:
            self.optimizer = torch.optim.SGD(groups, momentum=0.9)
        if settings.schedule == "one-cycle":
            rates = [group["lr"] for group in groups]
            self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, rates, total)
        else:
            ends = [total // 3, 2 * total // 3]
            self.schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, ends)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.amp == "float16")
        self.done = 0
        self.epoch, self.order = -1, torch.empty(0)

    def batch(self) -> data.Scene:
        """The next: every epoch shows each digit once, in an order of its own."""
        batches = -(-len(self.digits) // self.settings.batch)
        epoch, place = divmod(self.done, batches)
        if epoch != self.epoch:
            shuffle = torch.Generator().manual_seed(1_000_003 * self.settings.seed + epoch)
            self.epoch, self.order = epoch, torch.randperm(len(self.digits), generator=shuffle)
        start = place * self.settings.batch
        index = self.order[start : start + self.settings.batch][self.rank :: self.world]
        # Of an epoch's last batch a process may get nothing: it takes the first digit.
        index = (index if len(index) else self.order[:1]).to(self.device)
        return self.scene(self.digits[index], self.digits, self.generator)

    def step(self, forward: Forward) -> Tensor:
        """One step, with the network or what stands for it; the loss before it."""
        scene, amp = self.batch(), self.settings.amp
        self.optimizer.zero_grad()
        autocast = torch.autocast(self.device.type, getattr(torch, amp)) if amp else nullcontext()
        with autocast:
            value = self.objective(forward, scene)
        self.scaler.scale(value).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.done += 1
        return value.detach()

    def parts(self) -> dict[str, object]:
        names = ("network", "optimizer", "schedule", "scaler")
        return {name: getattr(self, name) for name in names}

    def save(self, path: Path) -> None:
        state = {name: part.state_dict() for name, part in self.parts().items()}
        state |= {"done": self.done, "settings": asdict(self.settings)}
        state |= {"generator": self.generator.get_state(), "dropout": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["dropout of the device"] = torch.cuda.get_rng_state(self.device)
        torch.save(state, path)

    def load(self, path: Path) -> None:
        """Raises RunError where there is none, or it is of a run with other settings."""
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except FileNotFoundError:
            raise RunError(f"there is no checkpoint {str(path)!r} to go on from") from None
        changed = dict(asdict(self.settings).items() - state["settings"].items())
        if changed:
            raise RunError(f"the run in {str(path.parent)!r} had not the settings {changed}")
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.done = state["done"]
        self.generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["dropout"].cpu())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["dropout of the device"].cpu(), self.device)


def train(
    trainer: Trainer,
    held_out: data.Scene,
    every: int = 0,
    watch: Callable[[Point], None] = lambda point: None,
    compiled: bool = False,
    label: str = "",
    judge: Callable[[nn.Module, data.Scene], Result] = measure,
) -> Point:
    """To the end of its settings' steps; ``watch`` sees a point every ``every`` steps and the last.

    The time of a step is the median over those since the point before, scenes and host included.
    """
    network, settings = trainer.network, trainer.settings
    forward: Forward = network
    if trainer.world > 1:
        forward = DistributedDataParallel(network)
    if compiled:
        forward = torch.compile(forward)
    network.train()
    losses: list[Tensor] = []
    times: list[float] = []
    point = None
    chief = trainer.rank == 0
    with tqdm(
        total=settings.steps, initial=trainer.done, desc=label, unit="step", disable=not chief
    ) as bar:
        while trainer.done < settings.steps:
            began = time.perf_counter()
            losses.append(trainer.step(forward))
            _wait(trainer.device)
            times.append(1e3 * (time.perf_counter() - began))
            bar.update()
            last = trainer.done == settings.steps
            if last or (every and trainer.done % every == 0):
                mean = torch.stack(losses).mean().item()
                result = processes.judged(judge, network, held_out)
                point = Point(trainer.done, mean, result, sorted(times)[len(times) // 2])
                bar.set_postfix_str(f"loss {mean:.3f}, held-out error {result.error:.2f}%")
                if chief:
                    watch(point)
                losses.clear()
                times.clear()
                network.train()
    if point is None:
        result = processes.judged(judge, network, held_out)
        point = Point(trainer.done, float("nan"), result, float("nan"))
    return point


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def held_out_scene(experiment: Experiment, digits: data.Digits) -> data.Scene:
    """Each held-out digit in one scene, the same for every network and seed."""
    generator = torch.Generator(digits.images.device).manual_seed(HELD_OUT_SEED)
    parts = [
        experiment.scene(digits[index], digits, generator)
        for index in torch.arange(len(digits), device=digits.images.device).split(250)
    ]
    boxes = None if parts[0].boxes is None else torch.cat([part.boxes for part in parts])
    images, targets = (torch.cat([getattr(p, k) for p in parts]) for k in ("images", "targets"))
    return data.Scene(images, targets, boxes)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.train",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="experiments:\n"
        + "\n".join(
            f"  {name:15}{experiment.says}\n{'':17}--model {' '.join(experiment.networks)}"
            for name, experiment in EXPERIMENTS.items()
        ),
    )
    parser.add_argument("experiment", choices=EXPERIMENTS, metavar="EXPERIMENT")
    parser.add_argument("--model", help="(default: the experiment's first)")
    parser.add_argument("--transform", choices=models.TRANSFORMS, default="affine")
    parser.add_argument("--filters", type=int, help="of each convolution of the cnn models (32)")
    parser.add_argument("--capacity", type=int, help="parameters at most (400,000)")
    parser.add_argument("--crop", type=int, help="side of a transformer's output, pixels (28)")
    parser.add_argument("--zoom", type=float, help="share of the width that it reads at first (1)")
    add_common(parser)
    add_training(parser, Settings.lr)
    parser.add_argument("--optimizer", choices=("adam", "sgd"), default="adam")
    parser.add_argument("--schedule", choices=("one-cycle", "steps"), default="one-cycle")
    parser.add_argument(
        "--localization-lr-scale",
        type=float,
        help="of the transformers' rate (the experiment's: 1, or 0.1 of numbers and volumes)",
    )
    parser.add_argument("--amp", choices=("bfloat16", "float16"), help="mixed precision")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    parser.add_argument("--out", type=Path, help="(runs/EXPERIMENT-MODEL-TRANSFORM-SEED)")
    parser.add_argument("--every", type=int, help="steps between measurements (a 20th)")
    parser.add_argument("--resume", action="store_true", help="go on from --out's checkpoint")
    parser.add_argument("--tensorboard", action="store_true")
    parser.add_argument("--no-pictures", action="store_true")
    arguments = parser.parse_args(argv)
    experiment = EXPERIMENTS[arguments.experiment]
    arguments.model = arguments.model or experiment.networks[0]
    if arguments.model not in experiment.networks:
        names = ", ".join(experiment.networks)
        parser.error(f"--model of {arguments.experiment} must be one of {names}")
    check_common(parser, arguments)
    check_training(parser, arguments)
    check_least(parser, arguments, 1, "every", *SHAPES[:3])
    if arguments.localization_lr_scale is None:
        arguments.localization_lr_scale = experiment.localization_lr_scale
    name = f"{arguments.experiment}-{arguments.model}-{arguments.transform}-{arguments.seed}"
    arguments.out = arguments.out or RUNS / name
    arguments.every = arguments.every or max(arguments.steps // 20, 1)
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Train; print what came of it."""
    rank, world = processes.rank(), processes.world()
    experiment = EXPERIMENTS[arguments.experiment]
    training, held_out = (d.to(arguments.device) for d in experiment.read(arguments.data_dir))
    fields = Settings.__dataclass_fields__
    settings = Settings(**{name: getattr(arguments, name) for name in fields})
    torch.manual_seed(settings.seed)
    changes = {k: v for k in SHAPES if (v := getattr(arguments, k)) is not None}
    network = placed(experiment.network(arguments.model, arguments.transform, **changes), arguments)
    trainer = Trainer(network, experiment.scene, training, settings, rank, world)
    if arguments.resume:
        trainer.load(arguments.out / "checkpoint.pt")
    scene = held_out_scene(experiment, held_out)
    label = f"{arguments.experiment} {arguments.model}, seed {settings.seed}"
    if rank:
        train(trainer, scene, arguments.every, compiled=arguments.compile)
        return
    print(f"{arguments.experiment}: {experiment.says}")
    print(f"{arguments.model}: {models.count(network):,} parameters; {len(training)} to train on,")
    print(f"{len(scene)} held out; backend {arguments.backend} on {arguments.device}")
    record = Record(arguments.out, trainer, scene, arguments.tensorboard, not arguments.no_pictures)
    point = train(trainer, scene, arguments.every, record, arguments.compile, label)
    print(f"held-out error {point.result.error:.2f}%, {point.milliseconds:.1f} ms a step")
    if point.result.iou is not None:
        print(f"IoU of what the transformer reads with the digit's box: {point.result.iou:.2f}")
    for path in record.close(scene):
        print(f"wrote {path}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0, or 1 when there is no data to read or no such run to go on with."""
    arguments = parse_arguments(argv)
    with processes.joined(arguments):
        return perform(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
