"""Two processes of one gloo group, beside pytest's, for tests that more than one device passes."""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed

WORLD = 2
# On the CPU, whatever the machine has; and kernels are interpreted, where a test asks for them.
ENVIRONMENT = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
PATIENCE = timedelta(seconds=60)  # with the other process, which may have failed

imported_dtensor: bool  # by triton_stn alone; known inside the processes
_workers: list[tuple[multiprocessing.Process, multiprocessing.connection.Connection]] = []


def together(test: Callable) -> Callable:
    """Run a test in both processes at once; its arguments are those of its parametrisation."""

    @functools.wraps(test)
    def run(**arguments):
        if not _workers:
            _start()
        for _, line in _workers:
            line.send((test.__module__, test.__name__, arguments))
        failures = [failure for _, line in _workers if (failure := line.recv()) is not None]
        if failures:
            for process, _ in _workers:
                process.kill()  # what is left of the group is of no use to the next test
            _workers.clear()
            pytest.fail("\n".join(failures), pytrace=False)

    return run


def _start() -> None:
    context = multiprocessing.get_context("spawn")
    group = Path(tempfile.mkdtemp(), "group").as_uri()
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    try:
        for rank in range(WORLD):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, group), daemon=True)
            process.start()
            _workers.append((process, ours))
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(line, rank: int, group: str) -> None:
    """Answer each test with the traceback of its failure, or None."""
    import triton_stn

    global imported_dtensor
    imported_dtensor = "torch.distributed.tensor" in sys.modules
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=group, rank=rank, world_size=WORLD, timeout=PATIENCE
    )
    while True:
        module, name, arguments = line.recv()
        torch.manual_seed(0)
        try:
            with triton_stn.use_backend("torch"):
                getattr(importlib.import_module(module), name).__wrapped__(**arguments)
            line.send(None)
        except Exception:
            line.send(f"rank {rank}: {traceback.format_exc()}")
