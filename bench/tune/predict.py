"""What the compiler makes of the trials' kernels, and the time that the roofline gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import torch
from tqdm import tqdm

from bench.measure.timing import Row
from bench.model import counts, launches, roofline
from bench.model.addresses import WARP
from bench.model.compiler import workers
from bench.model.launches import Specialisation
from bench.tune.trials import Trial, chosen, name_of

GPU = roofline.GPUS["H200"]  # what is compiled for, and whose time is predicted
# Of a multiprocessor of compute capability 9.0 (CUDA programming guide); a warp gets its registers
# in pieces of 256.
REGISTERS, PIECE, MOST_WARPS = 65536, 256, 64
COLUMNS = (
    *("task", "variant", "kernel", "warp", "window", "programs", "waves", "registers", "spilled"),
    *("per_tile", "per_channel", "per_map", "warps an SM", "binds", "predicted ms", "cause"),
)


def of(found: Sequence[Trial], jobs: int | None = None) -> pd.DataFrame:
    """A row a trial × kernel: what the compiler makes of it, and the time that the roofline gives.

    With a GPU it also compiles what the trials will launch, on every core instead of one.
    """
    rows = []
    with workers(jobs) as pool:
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
    task = trial.task
    how = (task.case.transform, task.case.mode, task.padding_mode)
    plain = how == ("affine", "bilinear", "zeros")
    modelled = plain and (task.dtype, task.layout) == ("float32", "contiguous")
    is_counted = plain and task.case.ndim == 2
    window = roofline.window(replace(task, pass_name="backward")) if is_counted else ""
    with chosen(trial.settings):
        rows = []
        specs = launches.of_task(task)
        for spec in specs:
            if spec.tiling is None:  # no sampling kernel
                continue
            row = counts.row(spec, GPU.target)
            if is_counted:
                row |= _counted(spec, window if spec.kernel.startswith("gather") else "")
            resident = warps_an_sm(row["registers"], spec.num_warps)
            row |= {"programs": spec.programs, "warps an SM": resident}
            rows.append(row | {"waves": spec.programs * spec.num_warps / (GPU.sms * resident)})
        if modelled and task.pass_name in roofline.PASSES:
            bound = roofline.bound(roofline.ours(task, GPU).floors(GPU))
            rows = [row | bound for row in rows]
        if torch.cuda.is_available():
            launches.warm_up(specs)
    return rows


def _counted(spec: Specialisation, window: str) -> Row:
    """Instructions of a kernel's path, where they are counted."""
    if window and window not in counts.NARROW:
        return {"window": window}
    path = counts.path(spec, launches.compiled(spec, GPU.target), window)
    return {"window": window, **counts.instructions(spec, path)}


def warps_an_sm(registers: int, warps: int) -> int:
    """Warps that a multiprocessor holds of programs of ``warps``, by their registers a thread."""
    pieces = -(-registers * WARP // PIECE)
    return min(REGISTERS // (pieces * PIECE * warps), MOST_WARPS // warps) * warps
