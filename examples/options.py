"""What the commands have in common: options, how they are checked, and how a failure is said."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from examples import models
from examples.data import DataError
from triton_stn import backends, use_backend

RUNS = Path("runs")  # where files go by default; git ignores it


def add_common(parser: argparse.ArgumentParser, data_dir: bool = True) -> None:
    """The options of all that train."""
    if data_dir:
        parser.add_argument("--data-dir", type=Path, help="MNIST's files (default: 8x8 digits)")
    parser.add_argument(
        "--backend",
        choices=("auto", "triton", "torch"),
        default="auto",
        help="of the transformers; torch: F.affine_grid + F.grid_sample",
    )
    parser.add_argument("--device", help="a torch device (default: cuda where there is one)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's own)")


def check_common(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    check_least(parser, arguments, 1, "threads")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(parser, arguments.device)


def add_training(parser: argparse.ArgumentParser, lr: float) -> None:
    """How long, and how fast, a network is trained by steps of the trainer."""
    parser.add_argument("--steps", type=int, default=2000, help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--lr", type=float, default=lr, help="highest rate (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")


def check_training(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    check_least(parser, arguments, 0, "steps")
    check_least(parser, arguments, 1, "batch")
    check_rates(parser, arguments)


def check_device(parser: argparse.ArgumentParser, device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {device!r} can not be used: {error}")


def check_least(parser, arguments: argparse.Namespace, least: int, *names: str) -> None:
    """Numbers that are given, and none below ``least``."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def check_rates(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Learning rates that are given are above 0."""
    for name in ("lr", "localization_lr_scale"):
        value = getattr(arguments, name, None)
        if value is not None and not value > 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0, got {value}")


def check_out(parser: argparse.ArgumentParser, out: Path) -> None:
    """Make the default folder; of another, that it is there."""
    if out.parent == RUNS:
        RUNS.mkdir(exist_ok=True)
    elif not out.parent.is_dir():
        parser.error(f"--out: there is no folder {str(out.parent)!r}")


def add_picture(parser: argparse.ArgumentParser, name: str) -> None:
    """The options of what draws one picture and trains no network."""
    parser.add_argument("--out", type=Path, default=RUNS / name, help="the picture")
    parser.add_argument("--device", default="cpu", help="a torch device (%(default)s)")


def check_picture(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    check_out(parser, arguments.out)
    check_device(parser, arguments.device)


class RunError(Exception):
    """A run that can not be gone on with."""


def placed(network: nn.Module, arguments: argparse.Namespace) -> nn.Module:
    """On ``--device``, its transformers sampling by ``--backend``."""
    if arguments.backend == "torch":
        models.use_pytorch(network)
    return network.to(arguments.device)


def perform(run: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """``run``, its scenes made by the library whatever samples in the network; the exit status.

    1, and the message, where there is no data to read or no such run to go on with.
    """
    name = "triton" if arguments.backend == "triton" else backends.choice()
    try:
        with use_backend(name):
            run(arguments)
    except (DataError, RunError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0
