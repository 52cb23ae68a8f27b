"""What machine code takes and moves: registers, spills, memory widths, warp footprints."""

from __future__ import annotations

import re

from triton.compiler import CompiledKernel

from bench.model.inlined import instructions, tool


def resources(compiled: CompiledKernel) -> dict[str, int]:
    """Registers and spilled bytes a thread, and the most bytes that one load or store moves."""
    code = instructions(compiled, inlined=False)
    usage = tool("cuobjdump", "-res-usage", compiled.asm["cubin"])
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    spills = any(i.opcode.startswith(("STL", "LDL")) for i in code)
    load, store = (max(i.bytes(operation) for i in code) for operation in ("LDG", "STG"))
    return {
        "registers": registers,
        "spilled": stack if spills else 0,
        "load": load,
        "store": store,
    }


def footprint(ttgir: str, block_w: int, block_h: int = 0) -> str:
    """What a warp covers: "rows x columns" of pixels, and lanes x channels in channels-last.

    Of voxels, where a slice of a tile has ``block_h`` rows, "slices x rows x columns".
    From the threadsPerWarp of the sampling layout, whose first axis counts a tile's pixels.
    """
    layouts = re.findall(
        r"#ttg.blocked<{sizePerThread = \[(\d+), (\d+)\], threadsPerWarp = \[(\d+), (\d+)\]", ttgir
    )
    if not layouts:
        return ""
    _, channels, pixels, lanes = map(int, layouts[0])
    columns = min(pixels, block_w)
    runs = f", {lanes}x{channels} channels" if lanes * channels > 1 else ""
    rows = pixels // columns
    if block_h:
        slices = max(rows // block_h, 1)
        return f"{slices}x{rows // slices}x{columns}{runs}"
    return f"{rows}x{columns}{runs}"


def amd_resources(assembly: str) -> dict[str, int]:
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
