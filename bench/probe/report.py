"""The tables of ``python -m bench probe``: what was measured, each with a sentence that says what
it decides, and what the compiler makes of the kernels for sm_90.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import triton
from triton.compiler import ASTSource

from bench.model import paths, sass
from bench.model.addresses import SECTOR
from bench.model.launches import TARGETS
from bench.model.roofline import SCHEDULERS
from bench.output import table
from bench.probe import kernels
from bench.probe.cases import Case

GATHERED_BYTES = 12  # an element that a gathering backward moves: read dY and X, write dX
TAPS = 4  # adds an element of a bilinear backward that scatters
NOTICED = 1.1  # a power of two that costs more than this is worth a line of advice
POWERS_OF_TWO = (256, 512, 1024)
TARGET = "sm_90"
TYPES = {"X_ptr": "*fp32", "Offsets_ptr": "*i32", "Sum_ptr": "*fp32", "Ticks_ptr": "*i64"}
# What a thread's access is: red where nothing asks for the old value, older compilers say RED.
ACCESS = {"loads": r"\bLDG\.E ", "adds": r"\bREDG?\.E\.ADD\.F32", "clock": r"\bCS2R\b"}


def report(frame: pd.DataFrame) -> str:
    """All that was measured."""
    first = frame.iloc[0]
    clock = frame.sm_mhz.median()
    parts = [
        f"{first.device}, torch {first.torch}, triton {first.triton}, commit {first.commit}: "
        f"{first.sms} SMs at {clock:.4g} MHz (median; clock64 over globaltimer, after each row).",
    ]
    for question, title, tabulate, decide in QUESTIONS:
        rows = frame[(frame.question == question) & frame.ms_p50.notna()]
        parts.append(f"## {title}")
        if rows.empty:
            parts.append("Nothing measured.")
        else:
            parts += [table.to_markdown(tabulate(rows), floatfmt=".4g"), decide(rows)]
    return "\n\n".join([*parts, *table.not_ok(frame, "Not ok", "question")])


def loads(rows: pd.DataFrame) -> pd.DataFrame:
    """A line a footprint and angle: what a warp's load touches (simulated), and what it takes."""
    keys = ["pattern", "degrees"]
    touched = rows.drop_duplicates(keys).set_index(keys)
    columns = {name: touched[name] for name in ("lines", "sectors", "banks")}
    for level, of in rows.set_index(keys).groupby("level", sort=False):
        columns |= {f"{level} ns": of.ns, f"{level} cycles": of.cycles}
        columns |= {f"{level} lines/cycle": of.lines_per_cycle}
        columns |= {f"{level} Gloads/s": of.accesses_per_s / 1e9}
        if level == "L2":
            columns["L2 TB/s"] = of.sectors_per_s * SECTOR / 1e12
    return pd.DataFrame(columns, index=touched.index).reset_index()


def tags(rows: pd.DataFrame) -> str:
    """Lines that L1 looks up a cycle: the slope of cycles against lines, over the rows from L1.

    A slope, because what an access takes besides its lines is then left out.
    """
    rows = rows[(rows.level == "L1") & rows.cycles.notna()]
    if rows.lines.nunique() < 2:
        return "Too few rows from L1 to read lines a cycle from."
    slope, _ = np.polyfit(rows.lines, rows.cycles, 1)
    fit = {name: np.corrcoef(rows[name], rows.cycles)[0, 1] ** 2 for name in ("lines", "banks")}
    explained = f"r² of cycles: {fit['lines']:.2f} by lines, {fit['banks']:.2f} by banks"
    if slope <= 0 or fit["lines"] < fit["banks"]:
        return f"Cycles do not follow lines ({explained}): the roofline's L1 floor does not hold."
    most = rows.loc[rows.lines.idxmax()]
    return (
        f"L1 looks up {1 / slope:.2f} lines a cycle ({explained}; {most.lines_per_cycle:.2f} at "
        f"{most.lines:.3g} lines): `python -m bench roofline --tags {max(round(1 / slope), 1)}`."
    )


def roofline(rows: pd.DataFrame) -> str:
    """What the roofline assumes, as it was measured: lines a cycle, and L2's bandwidth."""
    best = rows[rows.level == "L2"].sectors_per_s.max() * SECTOR / 1e12
    return f"{tags(rows)} L2 delivered {best:.3g} TB/s at most, the roofline's `GPU.l2`."


def adds(rows: pd.DataFrame) -> pd.DataFrame:
    """A line a pattern and buffer."""
    rates = {"Gadds/s": rows.adds_per_s / 1e9, "Gsectors/s": rows.sectors_per_s / 1e9}
    rows = rows.rename(columns={"level": "buffer in"}).assign(**rates)
    return rows[["pattern", "buffer in", "lines", "sectors", *rates, "ns", "cycles"]]


def scatters(rows: pd.DataFrame) -> str:
    """The least that a scattering backward takes, beside the bytes of a gathering one."""
    taps = rows[rows.pattern.str.contains("taps")].set_index("level").adds_per_s
    if taps.empty:
        return "The four taps were not measured."
    least = ", ".join(f"{1e12 * TAPS / rate:.3g} ps in {level}" for level, rate in taps.items())
    bytes_ps = 1e3 * GATHERED_BYTES / rows.copy_gb_per_s.iloc[0]
    return (
        f"Border and reflection: the adds of a scattering backward take {least} a pixel·channel "
        f"at least, the {GATHERED_BYTES} bytes that a gathering one moves {bytes_ps:.3g} ps. To "
        "gather pays where its instructions take less than the adds."
    )


def widths(rows: pd.DataFrame) -> pd.DataFrame:
    """A line a width; of a power of two, its ratio to the mean of its two neighbours too."""
    costs = _costs(rows)
    ratios = _ratios(costs).map(" ({:.2f})".format, na_action="ignore")
    shown = costs.map("{:.3g}".format, na_action="ignore")
    return (
        (shown + ratios.reindex(costs.index).astype(object).fillna(""))
        .rename_axis("width")
        .reset_index()
    )


def padding(rows: pd.DataFrame) -> str:
    """Whether to advise widths that are no powers of two."""
    ratios = _ratios(_costs(rows)).unstack().dropna()
    if ratios.empty:
        return "No power of two was measured beside its neighbours."
    name, width = ratios.idxmax()
    said = "advise padding rows" if ratios.max() > NOTICED else "no advice on padding is needed"
    worst = f"{ratios.max():.2f} times its neighbours ({name}, {width})"
    return f"A power of two takes at worst {worst}: {said}."


def _costs(rows: pd.DataFrame) -> pd.DataFrame:
    """By width: passes of the library in ps a pixel·channel, loads in cycles."""
    rows = rows.set_index("pitch")
    found = {}
    ours = rows[rows.pattern == "triton_stn"]
    for (pass_name, kind), of in ours.groupby(["pass", "theta_kind"], sort=False):
        found[f"{pass_name} {kind}, ps"] = of.ps_per_element
    for (pattern, degrees), of in rows[rows.cycles.notna()].groupby(["pattern", "degrees"]):
        found[f"load {pattern} {degrees:g}°, cycles"] = of.cycles
    return pd.DataFrame(found)


def _ratios(costs: pd.DataFrame) -> pd.DataFrame:
    """Of each power of two that has both neighbours, the ratio to their mean."""
    beside = {w: costs.reindex([w - 8, w + 8]).mean(skipna=False) for w in POWERS_OF_TWO}
    return costs.reindex(POWERS_OF_TWO) / pd.DataFrame(beside).T


QUESTIONS = (
    ("loads", "Loads of a rotated warp, cycles of an SM each", loads, roofline),
    ("adds", "Atomic adds of float32", adds, scatters),
    ("rows", "Rows a power of two apart (ratio to both neighbours)", widths, padding),
)


def compiled(cases: Sequence[Case]) -> pd.DataFrame:
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
    made = compile(kernel, places)
    (loop,) = paths.count(made).loops  # no kernel nests loops
    resources = sass.resources(made)
    patterns = [str(label["pattern"]) for label in labels]
    # Of those that are patches, as the compiler laid the 32 offsets over a warp.
    columns = filter(None, (re.match(r"\d+x(\d+)", pattern) for pattern in patterns))
    warps = [sass.footprint(made.asm["ttgir"], int(match[1])) for match in columns]
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
