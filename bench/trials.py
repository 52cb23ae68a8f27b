"""Variants of the launch choices: set, cut into trials, and what the compiler makes of them."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from bench import roofline
from bench.cases import Task
from bench.experiments import Experiment, Settings
from bench.measure import Row
from bench.oracle import FORMATS
from triton_stn.kernels import configs

GPU = roofline.GPUS["H200"]  # what is compiled for, and whose time is predicted
# WARPS is read once, as the default of `Launch`; MAX_GRID is a limit of CUDA, no choice.
FIXED = ("WARPS", "MAX_GRID")
# Of a multiprocessor of compute capability 9.0 (CUDA programming guide); a warp gets its registers
# in pieces of 256.
REGISTERS, PIECE, WARPS = 65536, 256, 64
COLUMNS = (
    *("task", "variant", "kernel", "warp", "window", "programs", "waves", "registers", "spilled"),
    *("per_pixel", "per_pixel_channel", "warps an SM", "binds", "predicted ms", "cause"),
)


def tunable() -> Settings:
    """The constants that a variant may set, with their present values."""
    return {
        name: value
        for name, value in vars(configs).items()
        if name.isupper() and isinstance(value, int) and name not in FIXED
    }


@contextmanager
def chosen(settings: Mapping[str, int]) -> Iterator[None]:
    """Launches inside are cut by these constants, whichever thread makes them."""
    before = {name: getattr(configs, name) for name in settings}
    vars(configs).update(settings)
    _forget()
    try:
        yield
    finally:
        vars(configs).update(before)
        _forget()


def _forget() -> None:
    """Empty the caches of what was made from the constants: plans, and counted instructions."""
    from triton_stn.backends import fused, volume

    for module in (fused, volume, roofline):
        for value in vars(module).values():
            # What a module imported does not depend on them.
            if hasattr(value, "cache_clear") and value.__module__ == module.__name__:
                value.cache_clear()


@dataclass(frozen=True)
class Trial:
    """A variant on a task; ``again`` is the present choice for the second time."""

    task: Task
    settings: Settings
    present: Settings  # of the same constants
    again: bool = False

    @property
    def variant(self) -> str:
        return _label(self.settings) + " again" * self.again

    @property
    def key(self) -> tuple[str, ...]:
        """Of its row: the variant stands where the table has a provider."""
        return self.task.key(self.variant)

    @property
    def yardstick(self) -> tuple[str, ...]:
        """The key of the present choice."""
        return self.task.key(_label(self.present))


def _label(settings: Settings) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())


def name_of(task: Task) -> str:
    """case/pass/theta/dtype/layout/padding/align_corners, which filters look into."""
    case, pass_name, _, *rest = task.key("")
    return "/".join((case, pass_name, *rest))


def select(tasks: Sequence[Task], filters: Sequence[str]) -> list[Task]:
    """The tasks whose name has every word of some filter, and none that begins with a minus."""

    def fits(name: str, words: str) -> bool:
        return all(w[1:] not in name if w[0] == "-" else w in name for w in words.split())

    return [task for task in tasks if any(fits(name_of(task), words) for words in filters)]


def trials(experiment: Experiment, tasks: Sequence[Task]) -> list[Trial]:
    """For each task the present choice, the variants, and the present choice again.

    Left out are variants that launch the same as one before, and tasks that this leaves without.
    """
    names = dict.fromkeys(name for settings in experiment.variants for name in settings)
    present = {name: getattr(configs, name) for name in names}
    found = []
    for task in select(tasks, experiment.filters):
        of_task, launched = [], []
        for settings in (present, *(present | variant for variant in experiment.variants)):
            with chosen(settings):
                launches = [spec.launch for spec in specialisations(task)]
            if launches not in launched:
                launched.append(launches)
                of_task.append(Trial(task, settings, present))
        if len(of_task) > 1:
            found += [*of_task, Trial(task, present, present, again=True)]
    return found


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


def predict(found: Sequence[Trial], jobs: int | None = None) -> pd.DataFrame:
    """A row a trial × kernel: what the compiler makes of it, and the time that the roofline gives.

    With a GPU it also compiles what the trials will launch, on every core instead of one.
    """
    rows = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs or os.cpu_count(), mp_context=context) as pool:
        futures = [(t, pool.submit(compiled, t)) for t in found if not t.again]
        for trial, future in tqdm(futures, desc="compiling", unit="trial", disable=None):
            try:
                of_trial = future.result()
            except Exception as exception:  # of one variant: the others go on
                first = str(exception).strip().splitlines()[:1]
                of_trial = [{"cause": ": ".join([type(exception).__name__, *first])[:200]}]
            rows += [{"task": name_of(trial.task), "variant": trial.variant, **r} for r in of_trial]
    frame = pd.DataFrame(rows).reindex(columns=COLUMNS)
    frame = frame.astype(dict.fromkeys(("programs", "registers", "warps an SM"), "Int64"))
    of_present = frame.groupby("task", sort=False)["predicted ms"].transform("first")
    return frame.assign(**{"predicted ratio": frame["predicted ms"] / of_present})


def compiled(trial: Trial) -> list[Row]:
    """The rows of a trial; for a worker process."""
    from bench import static

    task = trial.task
    affine = task.case.transform == "affine"
    window = roofline.window(replace(task, pass_name="backward")) if affine else ""
    with chosen(trial.settings):
        rows = []
        specs = specialisations(task)
        # Instructions are counted where a gather is compiled for one window alone.
        counted = {s.launch.kernel: s for s in specs if s.window == window != ""}
        for spec in specs:
            launch = spec.launch
            if spec.window or "BLOCK_W" not in launch.constants:  # the latter: no sampling kernel
                continue
            row = static.compile_spec(spec, GPU.target)
            if launch.kernel in counted:
                of_window = static.compile_spec(counted[launch.kernel], GPU.target)
                row |= {n: v for n, v in of_window.items() if n.startswith("per_pixel")}
                row["window"] = window
            programs, warps = math.prod(launch.grid), launch.num_warps
            resident = warps_an_sm(row["registers"], warps)
            row |= {"programs": programs, "warps an SM": resident}
            rows.append(row | {"waves": programs * warps / (GPU.sms * resident)})
        if _modelled(task):
            floors = {n: t for n, t in roofline.ours(task, GPU).floors(GPU).items() if t}
            binds = max(floors, key=floors.get)
            rows = [r | {"binds": binds, "predicted ms": floors[binds] / 1e3} for r in rows]
        if torch.cuda.is_available():
            _warm_up([spec for spec in specs if not spec.window])
    return rows


def _warm_up(specs: Sequence[Any]) -> None:
    """Leave the launches' kernels in Triton's cache, where the measuring process looks first."""
    for spec in specs:
        launch = spec.launch
        arguments = spec.tensors | launch.numbers | launch.constants
        arguments = {name: arguments[name] for name in launch.kernel.arg_names}
        options = launch.options(nvidia=torch.version.hip is None)
        with suppress(Exception):  # the launch itself will say what is wrong
            launch.kernel.warmup(**arguments, **options, grid=launch.grid)


def warps_an_sm(registers: int, warps: int) -> int:
    """Warps that a multiprocessor holds of programs of ``warps``, by their registers a thread."""
    pieces = -(-registers * roofline.WARP // PIECE)
    return min(REGISTERS // (pieces * PIECE * warps), WARPS // warps) * warps


def _modelled(task: Task) -> bool:
    """Whether the roofline predicts the task's time."""
    what = (task.case.transform, task.case.mode, task.dtype, task.layout, task.padding_mode)
    plain = what == ("affine", "bilinear", "float32", "contiguous", "zeros")
    return plain and task.pass_name in roofline.PASSES
