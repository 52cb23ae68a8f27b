"""One process a device, under torchrun: which this one is, and what all of them found.

torchrun --nproc-per-node=N -m examples.mnist
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as distributed
import torch.distributed.nn  # DDP imports it: once a group exists, its functions' defaults keep it
from torch import nn

from examples.data import Scene
from examples.experiments import Result


@contextmanager
def joined(arguments: argparse.Namespace) -> Iterator[None]:
    """With the others, each on a device of its own; nothing where torchrun has not started it."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    accelerator = arguments.device.startswith("cuda")
    if accelerator:
        arguments.device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(arguments.device)
    distributed.init_process_group("nccl" if accelerator else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def judged(judge: Callable[[nn.Module, Scene], Result], network: nn.Module, scene: Scene) -> Result:
    """The result on a scene of which each process judges its share, with the first one's buffers.

    Parameters are alike anyway.
    """
    if world() == 1:
        return judge(network, scene)
    for buffer in network.buffers():
        distributed.broadcast(buffer, 0)
    share = scene[torch.arange(rank(), len(scene), world(), device=scene.targets.device)]
    result = judge(network, share)
    sums = torch.tensor([result.error, result.iou or 0.0, 1.0], device=share.targets.device)
    sums *= len(share)
    distributed.all_reduce(sums)
    error, iou, count = sums.tolist()
    return Result(error / count, None if result.iou is None else iou / count)
