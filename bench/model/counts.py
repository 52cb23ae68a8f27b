"""A kernel's row: what the compiler made of it, and the instructions that a pixel takes."""

from __future__ import annotations

from bench.model import launches, sass
from bench.model.addresses import WARP
from bench.model.launches import Specialisation
from bench.model.sass import Listing, longest

WALKED = ("straight", "walk")  # gathering windows that each thread walks, a candidate at a time
NUMBERS_A_SCATTER = 5  # loaded for a pixel·channel: dY and four taps of X


def row(spec: Specialisation, target: str) -> dict[str, object]:
    """Registers, spills, widths, warp footprint and counted instructions on one target."""
    compiled = launches.compiled(spec, target)
    found = {"kernel": spec.kernel, "case": spec.label, "window": spec.window, "target": target}
    found |= {"warp": sass.footprint(compiled.asm["ttgir"], spec.constants)}
    found |= {"shared": compiled.metadata.shared}
    if target.startswith("gfx"):
        return found | sass.amd_resources(compiled.asm["amdgcn"])
    code = Listing(compiled.asm["cubin"])
    found |= {"registers": code.registers, "spilled": code.spilled}
    found |= {"load": code.widest("LDG"), "store": code.widest("STG")}
    return found | (instructions(code, spec) if _counted(spec) else {})


def _counted(spec: Specialisation) -> bool:
    """Kernels without a branch between paths: forward, gather with one window compiled, and
    scatter where it sums the dtheta of an affine map alone.
    """
    constants = spec.constants
    if "BLOCK_C" not in constants:
        return False
    if spec.kernel == "scatter":
        plain = constants["SOURCE"] == "affine" and constants["MODE"] == "bilinear"
        return plain and not constants["NEEDS_INPUT"]
    return spec.kernel == "forward" or (spec.kernel == "gather" and spec.window != "")


def instructions(code: Listing, spec: Specialisation) -> dict[str, float]:
    """Instructions a thread executes, a pixel of its tile or a pixel·channel of the main loop.

    Of the gather of several maps a pixel *and map*, and ``per_miss``, where a map misses the tile.
    Of a window that is walked a candidate, all channels of a pass; its set-up is not counted.
    """
    constants = spec.constants
    pixels = constants["BLOCK_H"] * constants["BLOCK_W"] / (WARP * spec.num_warps)
    if spec.window in WALKED:
        return {"per_candidate": _a_candidate(code, spec, pixels)}
    if constants.get("ONE_PASS") or constants.get("FEW"):
        return _whole(code, spec, pixels)
    start, stop = longest(code.inner_loops)
    if spec.kernel == "gather":
        numbers = pixels * constants["PASS"] * constants["BLOCK_C"]
    elif spec.kernel == "forward":  # the compiler may have unrolled: count what is stored
        numbers = code.moved("STG", start, stop) / spec.itemsize
    else:  # or loaded
        numbers = code.moved("LDG", start, stop) / spec.itemsize / NUMBERS_A_SCATTER
    return {"per_pixel_channel": round((stop - start + 1) / numbers, 1)}


def _a_candidate(code: Listing, spec: Specialisation, pixels: float) -> float:
    """Of the longest loop that loads; the compiler may have unrolled: count what is loaded."""
    loading = [loop for loop in code.inner_loops if code.moved("LDG", *loop)]
    start, stop = longest(loading)
    numbers = code.moved("LDG", start, stop) / spec.itemsize
    a_candidate = pixels * spec.constants["PASS"] * spec.constants["BLOCK_C"]
    return round((stop - start + 1) / (numbers / a_candidate) / pixels, 1)


def _whole(code: Listing, spec: Specialisation, pixels: float) -> dict[str, float]:
    """Of kernels that unroll the channels: tiles are a loop in gather and scatter, and unrolled in
    forward; so are a gather's maps.
    """
    constants = spec.constants
    first, last = longest(code.loops) if code.loops else (0, -1)
    body = sum(not text.startswith("NOP") for text in code.texts[: code.end])
    maps = spec.maps if spec.kernel == "gather" else 1
    loop = last - first + 1
    count = loop + (body - loop) / (constants["TILES"] * maps)
    if constants["BLOCK_C"] > 1:
        return {"per_pixel_channel": round(count / (pixels * constants["BLOCK_C"]), 1)}
    found = {"per_pixel": round(count / pixels, 1)}
    if maps > 1:
        skips = [(i, to) for i, to in code.jumps.items() if first <= i < to <= last and i < last]
        branch, target = longest(skips)
        found["per_miss"] = round((count - (target - branch - 1)) / pixels, 1)
    return found
