"""Reading machine code: resources, instruction counts, memory widths, warp footprints."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import triton

from triton_stn.backends import fused

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
WARP = 32
WINDOWS = ("axis", "three", "straight", "walk")  # of the gather, that are counted one by one


def footprint(ttgir: str, constants: dict) -> str:
    """What a warp covers: "rows x columns" of pixels, and lanes x channels in channels-last.

    Of voxels, "slices x rows x columns".
    From the threadsPerWarp of the sampling layout, whose first axis counts a tile's pixels.
    """
    layouts = re.findall(
        r"#ttg.blocked<{sizePerThread = \[(\d+), (\d+)\], threadsPerWarp = \[(\d+), (\d+)\]", ttgir
    )
    if not layouts or "BLOCK_W" not in constants:
        return ""
    _, channels, pixels, lanes = map(int, layouts[0])
    columns = min(pixels, constants["BLOCK_W"])
    runs = f", {lanes}x{channels} channels" if lanes * channels > 1 else ""
    rows = pixels // columns
    if "BLOCK_D" in constants:
        slices = max(rows // constants["BLOCK_H"], 1)
        return f"{slices}x{rows // slices}x{columns}{runs}"
    return f"{rows}x{columns}{runs}"


def nvidia_resources(cubin: bytes, launch: fused.Launch, window: str, itemsize: int) -> dict:
    """Registers, spills, widths and instruction counts of a compiled kernel.

    ``itemsize`` is that of an image's numbers, in bytes.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = cuobjdump("-res-usage", file.name)
        code = cuobjdump("-sass", file.name)
    instructions = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", code, re.M)
    texts = [text for _, text in instructions]
    stack = int(re.search(r"STACK:(\d+)", usage).group(1))
    local = any("STL" in text or "LDL" in text for text in texts)
    return {
        "registers": int(re.search(r"REG:(\d+)", usage).group(1)),
        "spilled": stack if local else 0,
        "load": max(_bytes(text, "LDG") for text in texts),
        "store": max(_bytes(text, "STG") for text in texts),
        **_counts(instructions, launch, window, itemsize),
    }


def amd_resources(assembly: str) -> dict:
    """Registers, spills and widths of a compiled kernel."""

    def number(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", assembly).group(1))

    widths = {"byte": 1, "ubyte": 1, "short": 2, "ushort": 2, "dword": 4}
    widths |= {f"dwordx{n}": 4 * n for n in (2, 3, 4)}

    def widest(kind: str) -> int:
        found = re.findall(rf"(?:global|buffer|flat)_{kind}_(\w+)", assembly)
        return max((widths.get(name.split("_")[0], 0) for name in found), default=0)

    return {
        "registers": number("vgpr_count"),
        "spilled": 4 * number("vgpr_spill_count"),
        "load": widest("load"),
        "store": widest("store"),
    }


def cuobjdump(flag: str, path: str) -> str:
    """What the disassembler prints of the cubin: ``-res-usage``, or ``-sass``."""
    return subprocess.run(
        [CUOBJDUMP, flag, path], capture_output=True, text=True, check=True
    ).stdout


def _bytes(text: str, operation: str) -> int:
    """Bytes a thread that an instruction moves if it is the memory ``operation``, else 0."""
    match = re.search(rf"\b{operation}\.E(\S*)", text)
    if not match:
        return 0
    bits = (b for b in ("128", "64", "16", "8") if re.search(rf"[.US]{b}\b", match.group(1)))
    return int(next(bits, "32")) // 8


def _counts(
    instructions: list[tuple[str, str]], launch: fused.Launch, window: str, itemsize: int
) -> dict[str, float]:
    """Instructions a thread executes, a pixel of its tile or a pixel·channel of the main loop.

    Of the gather of several maps a pixel *and map*, and ``per_miss``, where a map misses the tile.
    Of a window that is walked a candidate, all channels of a pass; its set-up is not counted.
    Only of kernels without a branch between paths: forward, gather with one window compiled, and
    scatter where it sums the dtheta of an affine map alone.
    """
    constants, kernel = launch.constants, launch.kernel.__name__
    if kernel not in ("forward", "gather", "scatter") or "BLOCK_C" not in constants:
        return {}
    if kernel == "gather" and not window:
        return {}
    plain = constants["SOURCE"] == "affine" and constants["MODE"] == "bilinear"
    if kernel == "scatter" and (constants["NEEDS_INPUT"] or not plain):
        return {}
    end = next(
        i for i, (address, text) in enumerate(instructions) if branch_target(text) == address
    )
    body = [i for i, (_, text) in enumerate(instructions[:end]) if not text.startswith("NOP")]
    place = {address: i for i, (address, _) in enumerate(instructions)}
    loops = [
        (place[branch_target(text)], i)
        for i, (_, text) in enumerate(instructions[:end])
        if branch_target(text) in place and place[branch_target(text)] < i
    ]
    pixels = constants["BLOCK_H"] * constants["BLOCK_W"] / (WARP * launch.num_warps)
    first, last = max(loops, key=lambda loop: loop[1] - loop[0], default=(0, -1))
    longest = last - first + 1
    inner = [
        (start, stop)
        for start, stop in loops
        if not any(start <= a and b <= stop and (a, b) != (start, stop) for a, b in loops)
    ]
    if window in ("straight", "walk"):  # the compiler may have unrolled: count what is loaded
        found = [[text for _, text in instructions[start : stop + 1]] for start, stop in inner]
        loaded = [sum(_bytes(text, "LDG") for text in texts) / itemsize for texts in found]
        a_candidate = pixels * constants["PASS"] * constants["BLOCK_C"]
        count, numbers = max((len(t), n) for t, n in zip(found, loaded, strict=True) if n)
        return {"per_candidate": round(count / (numbers / a_candidate) / pixels, 1)}
    if constants.get("ONE_PASS") or constants.get("FEW"):
        # Tiles are a loop in gather and scatter, and unrolled in forward; so are a gather's maps.
        maps = launch.numbers["K"] if kernel == "gather" else 1
        count = longest + (len(body) - longest) / (constants["TILES"] * maps)
        if constants["BLOCK_C"] > 1:
            return {"per_pixel_channel": round(count / (pixels * constants["BLOCK_C"]), 1)}
        found = {"per_pixel": round(count / pixels, 1)}
        if maps > 1:
            skips = (
                (i, place[branch_target(text)])
                for i, (_, text) in enumerate(instructions[first:last], first)
                if i < place.get(branch_target(text), -1) <= last
            )
            branch, target = max(skips, key=lambda skip: skip[1] - skip[0])
            missed = count - (target - branch - 1)
            found["per_miss"] = round(missed / pixels, 1)
        return found
    start, stop = max(inner, key=lambda loop: loop[1] - loop[0])
    texts = [text for _, text in instructions[start : stop + 1]]
    if kernel == "gather":
        numbers = pixels * constants["PASS"] * constants["BLOCK_C"]
    elif kernel == "forward":  # the compiler may have unrolled: count what is stored
        numbers = sum(_bytes(text, "STG") for text in texts) / itemsize
    else:  # or loaded: dY and four taps of X
        numbers = sum(_bytes(text, "LDG") for text in texts) / itemsize / 5
    return {"per_pixel_channel": round((stop - start + 1) / numbers, 1)}


def branch_target(text: str) -> str:
    """The address that a branch jumps to, as the listing writes addresses; else ""."""
    match = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
    return match.group(1).zfill(4) if match else ""
