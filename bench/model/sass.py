"""Reading machine code: registers, spills, memory widths, jumps, warp footprints."""

from __future__ import annotations

import re
from functools import cached_property

from bench.model.inlined import tool, width


class Listing:
    """What the disassembler says of a cubin; instructions are known by their place."""

    def __init__(self, cubin: bytes) -> None:
        usage, code = (tool("cuobjdump", flag, cubin) for flag in ("-res-usage", "-sass"))
        found = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", code, re.M)
        place = {address: i for i, (address, _) in enumerate(found)}
        self.texts = [text for _, text in found]
        self.registers = int(re.search(r"REG:(\d+)", usage).group(1))
        self._stack = int(re.search(r"STACK:(\d+)", usage).group(1))
        branches = ((i, re.search(r"\bBRA\b.*?0x([0-9a-f]+)", t)) for i, t in enumerate(self.texts))
        targets = {i: place.get(match[1].zfill(4)) for i, match in branches if match}
        # Where branches go, as places.
        self.jumps = {i: target for i, target in targets.items() if target is not None}

    @property
    def spilled(self) -> int:
        """Bytes a thread."""
        return self._stack if any("STL" in t or "LDL" in t for t in self.texts) else 0

    @cached_property
    def end(self) -> int:
        """The first branch to itself: behind it are subroutines."""
        return next(i for i, target in self.jumps.items() if target == i)

    @cached_property
    def loops(self) -> list[tuple[int, int]]:
        """First and last instruction of each."""
        return [(to, i) for i, to in self.jumps.items() if to < i < self.end]

    def widest(self, operation: str) -> int:
        """The most bytes of a thread that one such instruction moves."""
        return max(width(text, operation) for text in self.texts)


def longest(loops: list[tuple[int, int]]) -> tuple[int, int]:
    """The one of most instructions."""
    return max(loops, key=lambda loop: loop[1] - loop[0])


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
