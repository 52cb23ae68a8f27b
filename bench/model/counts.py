"""A kernel's row: what the compiler made of it, and the instructions that a thread takes.

Counted in the kernels that are launched. The gather branches on the kind of its θ's window, and
each branch is counted by itself:

    UPRIGHT  no rotation and no magnification      ON_SIDE   likewise at exact quarter turns
    THREE    any other θ that magnifies by little  STRAIGHT  no rotation, magnifying
    WALK     any other θ that magnifies            WIDE      by very much: not counted

Where grad_theta is wanted too, THREE, WALK and WIDE, and any window of several maps, go on to
OUTPUT, which takes it from the output's side and is counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from triton.compiler import CompiledKernel

from bench.model import launches, paths, sass
from bench.model.addresses import WARP
from bench.model.launches import Specialisation
from bench.model.paths import Path
from bench.model.sass import Sites, call_sites
from triton_stn.kernels import coordinates
from triton_stn.kernels.gather import one, several

NUMBERS_AN_OUTPUT = 5  # that grad_theta loads for a pixel·channel: dY and four taps of X
JOINT = ("UPRIGHT", "ON_SIDE", "STRAIGHT")  # windows that make grad_theta, too
NARROW = ("UPRIGHT", "ON_SIDE", "THREE")  # windows whose candidates no loop walks
OUTPUT = "OUTPUT"
MISSED = "MISSED"  # where a tile is out of a map's view
NEAR = "NEAR"  # of several maps, where that takes a second look


def row(spec: Specialisation, target: str, windows: Sequence[str] = ()) -> dict[str, object]:
    """Registers, spills, widths and warp footprint on one target; instructions where counted.

    They are "per_tile", and where channels are a loop "per_channel" of it; of the gather, of each
    of ``windows``, "THREE per_tile" and so on. ``windows`` of a kernel without any are ("",).
    """
    compiled = launches.compiled(spec, target)
    found = {"kernel": spec.kernel, "case": spec.label, "target": target}
    found |= {"warp": "", "shared": compiled.metadata.shared}
    if spec.tiling is not None:
        rows = spec.tiling.block_h if spec.plan.constants["RULES"].ndim == 3 else 0
        found["warp"] = sass.footprint(compiled.asm["ttgir"], spec.tiling.block_w, rows)
    if target.startswith("gfx"):
        return found | sass.amd_resources(compiled.asm["amdgcn"])
    found |= sass.resources(compiled)
    for window in windows:
        counted = instructions(spec, compiled, window)
        found |= {f"{window} {unit}".strip(): number for unit, number in counted.items()}
    return found


def _sites(kernel: str) -> Sites | None:
    """Where a gather calls its windows."""
    if kernel == "gather":
        sites = call_sites(one.gather_affine, "gather_tiles")
        # Behind any of the windows: of a θ that is not finite, behind the shortest.
        output = sites["NOTHING"] | call_sites(one.gather, "walk_share")["walk_share"]
        return sites | {OUTPUT: output}
    if kernel == "gather_maps":
        maps = call_sites(several.gather_map, "through")
        turned = call_sites(several.gather_turned, "through")
        output = call_sites(several.gather_maps, "sum_map")["sum_map"]
        # A miss has no set-up; what is near and no more has one, and leaves after `crosses`.
        maps |= turned | call_sites(several.gather_map, "gather_turned")
        maps |= call_sites(several.gather_maps, "source_map")
        near = call_sites(several.gather_turned, "crosses")["crosses"]
        return maps | {NEAR: near, OUTPUT: output}
    return None


def path(spec: Specialisation, compiled: CompiledKernel, window: str = "") -> Path:
    """The path through the code of a kernel; of a gather, that of a window."""
    if window == MISSED:
        # A tile is then stored as zeros, as that of a θ that is not finite is.
        window = "NOTHING" if spec.kernel == "gather" else ""
    found = paths.count(compiled, _sites(spec.kernel), window)
    banded = spec.kernel in ("gather", "grad_theta", "scatter")
    if banded or window == OUTPUT:  # the loop over a few bands
        bands, *loops = found.loops
        found = replace(found, outside=found.outside + bands, loops=tuple(loops))
    return found


def pixels(spec: Specialisation) -> float:
    """Of a tile that a thread has, each with block_c / (threads side by side) channels."""
    return spec.tiling.pixels * spec.tiling.block_c / (WARP * spec.plan.num_warps)


def channels_a_turn(spec: Specialisation, found: Path) -> float:
    """Channels that a thread takes in a turn of the loop over them, which may be unrolled."""
    part = found.loops[1]
    if spec.kernel == "grad_theta" or not paths.moved(part, "STG"):
        numbers = paths.moved(part, "LDG") / spec.itemsize / NUMBERS_AN_OUTPUT
    elif spec.kernel == "gather_maps":  # stores after its loop over the maps
        return spec.tiling.step
    else:
        numbers = paths.moved(part, "STG") / spec.itemsize
    return numbers / pixels(spec) * spec.tiling.block_c


def instructions(
    spec: Specialisation, compiled: CompiledKernel, window: str = ""
) -> dict[str, float]:
    """A thread's, a tile of it or a channel of the loop over them.

    Of a window of several maps "per_map", of a tile or of a pass of channels.
    """
    found = path(spec, compiled, window)
    if spec.kernel == "gather_maps" and window != OUTPUT:
        return {"per_map": len(found.loops[2 if spec.tiling.one_pass else 3])}
    counted = {"per_tile": found.per_tile}
    if not spec.tiling.one_pass:
        counted["per_channel"] = round(found.per_pass / channels_a_turn(spec, found), 1)
    return counted


def turns(spec: Specialisation, found: Path, candidates: Sequence[int] = ()) -> list[float]:
    """How often a thread goes round each loop of a path, for each time around the one outside it.

    ``candidates``: rows, and how many in each, of a window that is walked.
    """
    work, tiling = spec.plan.arguments["WORK"], spec.tiling
    each = [float(work.bands * work.tiles)]
    if not tiling.one_pass:
        each.append(work.channels / work.splits / channels_a_turn(spec, found))
    if spec.kernel == "gather_maps":
        looks = math.ceil(work.maps / coordinates.MAPS_A_LOOK.value)
        each += [looks, work.maps / looks]
    if candidates:
        rows, columns = candidates
        a_candidate = spec.itemsize * tiling.channels_a_pass * pixels(spec)
        candidates_a_turn = paths.moved(found.loops[-1], "LDG") / a_candidate  # may be unrolled
        each += [rows, columns / candidates_a_turn]
    return each
