"""Variants of the launch choices, set for a while, and the tasks on which they are tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bench import cli
from bench.model import launches, roofline
from bench.suite.cases import Task
from bench.tune.experiments import Experiment, Settings
from triton_stn.kernels import configs

FIXED = ("MAX_GRID",)  # a limit of CUDA, no choice


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
    forget()
    try:
        yield
    finally:
        vars(configs).update(before)
        forget()


def forget() -> None:
    """Empty the caches of what was made from the constants: plans, and counted instructions."""
    launches.forget()
    roofline.of_kernel.cache_clear()


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
    """The tasks whose name matches one of the filters."""
    return [t for t in tasks if any(cli.matches(name_of(t), words) for words in filters)]


def of(experiment: Experiment, tasks: Sequence[Task]) -> list[Trial]:
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
                plans = [spec.choice for spec in launches.of_task(task)]
            if plans not in launched:
                launched.append(plans)
                of_task.append(Trial(task, settings, present))
        if len(of_task) > 1:
            found += [*of_task, Trial(task, present, present, again=True)]
    return found
