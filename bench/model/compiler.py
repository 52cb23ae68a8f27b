"""The compiler, on every core: a kernel's row, and a suite's kernels compiled ahead.

Triton is imported by its workers alone: `python -m bench` runs without it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress

from tqdm import tqdm

from bench.suite.cases import Task

MOST_JOBS = 16  # a compiler with PyTorch and CUDA takes about a gigabyte


def workers(jobs: int | None = None) -> ProcessPoolExecutor:
    """A pool for compilers: ``jobs`` of them, or as many as the machine has cores and memory for.

    Spawned, as CUDA does not outlive a fork.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs or min(os.cpu_count() or 1, MOST_JOBS), mp_context=context)


def compile_ahead(tasks: Sequence[Task]) -> None:
    """Leave the kernels of the tasks in Triton's cache, where their launches look first.

    What fails here costs time alone: the launch compiles it then, or says what is wrong.
    """
    with suppress(Exception), workers() as pool:
        # θ and align_corners decide nothing that is compiled.
        alike = {(*task.key("")[:3], *task.key("")[4:-1]): task for task in tasks}
        futures = [pool.submit(_compile, task) for task in alike.values()]
        for future in tqdm(futures, desc="compiling", unit="task", disable=None):
            with suppress(Exception):
                future.result()


def _compile(task: Task) -> None:
    from bench.model import launches

    launches.warm_up(launches.of_task(task))
