"""The launches of a task's pass, and their kernels compiled ahead, on every core."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from typing import Any

import torch
from tqdm import tqdm

from bench.suite.cases import FORMATS, Task

MOST_JOBS = 16  # a compiler with PyTorch and CUDA takes about a gigabyte


def specialisations(task: Task) -> list[Any]:
    """The launches of the task's pass, as `bench.static` compiles them."""
    from bench import static

    case = task.case
    both, none = [(True, True)], []
    wanted = {"forward": none, "backward_input": [(True, False)], "backward_theta": [(False, True)]}
    options = (getattr(torch, task.dtype), FORMATS[task.layout, case.ndim])
    options += (wanted.get(task.pass_name, both), case.mode, task.padding_mode, case.k)
    shape = (case.n, case.c, *case.extent)
    if case.ndim == 3:
        specs = static.volume_passes(shape, *options)
    else:
        source = "spline" if case.transform.startswith("tps") else case.transform
        specs = static.passes(shape, *options, windows=True, size=case.size, source=source)
        if source == "projective":  # the gather of every θ is for deterministic algorithms alone
            specs = (s for s in specs if not s.launch.constants.get("EVERY"))
    forward = "forward" in task.pass_name
    return [s for s in specs if forward or not s.launch.kernel.__name__.endswith("forward")]


def workers(jobs: int | None = None) -> ProcessPoolExecutor:
    """A pool for compilers: ``jobs`` of them, or as many as the machine has cores and memory for.

    Spawned, as CUDA does not outlive a fork.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs or most_jobs(), mp_context=context)


def most_jobs() -> int:
    """Compilers at a time where nobody says how many."""
    return min(os.cpu_count() or 1, MOST_JOBS)


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
    warm_up([spec for spec in specialisations(task) if not spec.window])


def warm_up(specs: Sequence[Any]) -> None:
    """Compile the launches as PyTorch's current device would run them."""
    for spec in specs:
        launch = spec.launch
        arguments = spec.tensors | launch.numbers | launch.constants
        arguments = {name: arguments[name] for name in launch.kernel.arg_names}
        options = launch.options(nvidia=torch.version.hip is None)
        with suppress(Exception):  # the launch itself will say what is wrong
            launch.kernel.warmup(**arguments, **options, grid=launch.grid)
