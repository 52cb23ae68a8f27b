"""What the compiler makes of the probe's kernels for sm_90: what their loops consist of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import pandas as pd
import triton
from triton.compiler import ASTSource

from bench.model import paths, sass
from bench.model.launches import TARGETS
from bench.model.roofline import SCHEDULERS
from bench.probe import kernels
from bench.probe.cases import Case

TARGET = "sm_90"
TYPES = {"X_ptr": "*fp32", "Offsets_ptr": "*i32", "Sum_ptr": "*fp32", "Ticks_ptr": "*i64"}
# What a thread's access is: red where nothing asks for the old value, older compilers say RED.
ACCESS = {"loads": r"\bLDG\.E ", "adds": r"\bREDG?\.E\.ADD\.F32", "clock": r"\bCS2R\b"}


def report(cases: Sequence[Case]) -> pd.DataFrame:
    """A row a machine code: registers, warp footprints, and the instructions of its loop.

    "issue" is what the loop's instructions take of an SM, in cycles an access: a time well above it
    is that of the access.
    """
    codes: dict[tuple, list[dict[str, object]]] = {}
    for case in cases:
        if case.walk is not None:
            codes.setdefault((case.kernel, case.walk.places), []).append(case.labels)
    codes["clock", ()] = []
    return pd.DataFrame([_row(*code, labels) for code, labels in codes.items()])


def _row(kernel: str, places: tuple[int, ...], labels: Sequence[dict]) -> dict[str, object]:
    compiled = compile(kernel, places)
    (loop,) = paths.count(compiled).loops  # no kernel nests loops
    resources = sass.resources(compiled)
    patterns = [str(label["pattern"]) for label in labels]
    # Of those that are patches, as the compiler laid the 32 offsets over a warp.
    columns = filter(None, (re.match(r"\d+x(\d+)", pattern) for pattern in patterns))
    warps = [sass.footprint(compiled.asm["ttgir"], int(match[1])) for match in columns]
    return {
        "kernel": kernel,
        "pattern": _listed(patterns),
        "pitch": _listed(str(label["pitch"]) for label in labels),
        "warp": _listed(warps),
        **{name: resources[name] for name in ("registers", "spilled")},
        "asked": len(places),
        "accesses": sum(bool(re.search(ACCESS[kernel], i.text)) for i in loop),
        "loop": len(loop),
        "issue": len(loop) / SCHEDULERS / len(places) if places else None,
    }


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def compile(kernel: str, places: tuple[int, ...]) -> triton.compiler.CompiledKernel:
    """The kernel as it is launched: pointers aligned to 16 bytes, nothing known of the numbers."""
    function = getattr(kernels, kernel)
    names = function.arg_names
    constants = {"PLACES": places} if "PLACES" in names else {}
    signature = {n: "constexpr" if n in constants else TYPES.get(n, "i32") for n in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n in TYPES}
    source = ASTSource(function, signature, constants, aligned)
    return triton.compile(source, target=TARGETS[TARGET], options={"num_warps": 1})
