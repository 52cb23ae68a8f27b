"""What the compiler makes of the probe's kernels for sm_90: what their loops consist of."""

from __future__ import annotations

import re
from collections.abc import Sequence

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
    codes: dict[tuple, list[Case]] = {}
    for case in cases:
        if case.walk is not None:
            codes.setdefault((case.kernel, case.walk.places), []).append(case)
    rows = [_row(kernel, places, sharing) for (kernel, places), sharing in codes.items()]
    return pd.DataFrame([*rows, _row("clock", (), [])])


def _row(kernel: str, places: tuple[int, ...], sharing: Sequence[Case]) -> dict[str, object]:
    compiled = compile(kernel, places)
    (loop,) = paths.count(compiled).loops  # no kernel nests loops
    labels = [case.labels for case in sharing]
    resources = sass.resources(compiled)
    return {
        "kernel": kernel,
        "pattern": ", ".join(dict.fromkeys(label["pattern"] for label in labels)),
        "pitch": ", ".join(dict.fromkeys(str(label["pitch"]) for label in labels)),
        "warp": ", ".join(_footprints(compiled.asm["ttgir"], labels)),
        **{name: resources[name] for name in ("registers", "spilled")},
        "asked": len(places),
        "accesses": sum(bool(re.search(ACCESS[kernel], i.text)) for i in loop),
        "loop": len(loop),
        "issue": len(loop) / SCHEDULERS / len(places) if places else None,
    }


def _footprints(ttgir: str, labels: Sequence[dict[str, object]]) -> list[str]:
    """Of the patterns that are patches, as the compiler laid the 32 offsets over a warp."""
    columns = (re.match(r"\d+x(\d+)", str(label["pattern"])) for label in labels)
    found = (sass.footprint(ttgir, int(match[1])) for match in columns if match)
    return list(dict.fromkeys(found))


def compile(kernel: str, places: tuple[int, ...]) -> triton.compiler.CompiledKernel:
    """The kernel as it is launched: pointers aligned to 16 bytes, nothing known of the numbers."""
    function = getattr(kernels, kernel)
    names = function.arg_names
    constants = {"PLACES": places} if "PLACES" in names else {}
    signature = {n: "constexpr" if n in constants else TYPES.get(n, "i32") for n in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n in TYPES}
    source = ASTSource(function, signature, constants, aligned)
    return triton.compile(source, target=TARGETS[TARGET], options={"num_warps": 1})
