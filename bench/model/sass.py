"""Machine code: what it takes and moves, and the calls that its instructions were inlined through.

What an instruction was inlined through stands in the LLVM IR, but not in the PTX or the cubin. From
machine code to a line of the PTX leads the cubin's own table. From there on, Triton makes the PTX
once more from LLVM IR in which every location has its own number as its line: the same PTX but for
that. No cubin is made of it: labels for debuggers, where the inlining changes, go missing, and
without them ptxas makes other code.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import tempfile
import textwrap
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import triton
from triton._C.libtriton import llvm, nvidia
from triton.backends.compiler import Language
from triton.compiler.compiler import CompiledKernel, make_backend

BINARIES = Path(triton.__file__).parent / "backends/nvidia/bin"
FIRST = 1 << 20  # more lines than a source file has
Frame = tuple[str, int]  # file and line
Sites = dict[str, frozenset[Frame]]  # where each window is called


@dataclass(frozen=True)
class Instruction:
    """``frames`` are the calls it was inlined through, innermost first."""

    text: str
    frames: tuple[Frame, ...] = ()

    @property
    def opcode(self) -> str:
        return re.sub(r"^@\S+\s+", "", self.text).split()[0]

    def bytes(self, operation: str) -> int:
        """What a thread moves if this is the memory ``operation``, else 0."""
        match = re.search(rf"\b{operation}\.E(\S*)", self.text)
        if not match:
            return 0
        bits = (b for b in (128, 64, 16, 8) if re.search(rf"[.US]{b}\b", match[1]))
        return next(bits, 32) // 8


def call_sites(dispatcher: triton.JITFunction, callee: str) -> Sites:
    """Where a kernel function calls ``callee``, by the last argument in which the calls differ; a
    single call by the callee's name."""
    lines, first = inspect.getsourcelines(dispatcher.fn)
    file = Path(inspect.getsourcefile(dispatcher.fn)).name
    tree = ast.parse(textwrap.dedent("".join(lines)))
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == callee
    ]
    texts = [[ast.unparse(a) for a in (*call.args, *call.keywords)] for call in calls]
    columns = enumerate(zip(*texts, strict=True))
    last = max((i for i, column in columns if len(set(column)) > 1), default=None)
    sites = defaultdict(set)
    for call, arguments in zip(calls, texts, strict=True):
        name = callee if last is None else arguments[last].split("=")[-1]
        # Triton notes the line of the last argument, of whichever it may be.
        sites[name] |= {(file, first + n - 1) for n in range(call.lineno, call.end_lineno + 1)}
    return {name: frozenset(frames) for name, frames in sites.items()}


def tool(name: str, flags: str, cubin: bytes) -> str:
    """What one of NVIDIA's binary utilities says of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [BINARIES / name, *flags.split(), file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@lru_cache(maxsize=8)
def instructions(compiled: CompiledKernel, inlined: bool) -> tuple[Instruction, ...]:
    """Labels and instructions of a kernel, where ``inlined`` each with its frames."""
    frames_of = _frames(compiled) if inlined else {}
    found, frames = [], ()
    for row in tool("nvdisasm", "-gp -c", compiled.asm["cubin"]).splitlines():
        if match := re.match(r'\s+//## File ".nv_debug_ptx_txt", line (\d+)', row):
            frames = frames_of.get(int(match.group(1)), ())
        elif match := re.match(r"(\.L\w+:)|\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", row):
            found.append(Instruction(match.group(1) or match.group(2), frames))
    return tuple(found)


def _frames(compiled: CompiledKernel) -> dict[int, tuple[Frame, ...]]:
    """The calls that each line of the PTX was inlined through."""
    llir = compiled.asm["llir"]
    (kernel,) = re.findall(r"^define ptx_kernel .*!dbg !(\d+)", llir, re.M)
    names = dict(re.findall(r'^!(\d+) = .*!DIFile\(filename: "([^"]*)"', llir, re.M))
    files = {
        scope: names[file]
        for scope, file in re.findall(r"^!(\d+) = .*!DI(?:Sub|Lex).*file: !(\d+)", llir, re.M)
    }
    location = re.compile(
        r"^!(\d+) = ((?:distinct )?)!DILocation\((?:line: (\d+), )?(?:column: \d+, )?"
        r"scope: !(\d+)(?:, inlinedAt: !(\d+))?\)$",
        re.M,
    )
    found = {
        int(number): ((files[scope], int(line or 0)), int(outer or 0))
        for number, _, line, scope, outer in location.findall(llir)
    }

    def frames(number: int) -> tuple[Frame, ...]:
        if number not in found:
            return ()
        frame, outer = found[number]
        return (frame, *frames(outer))

    def numbered(match: re.Match) -> str:
        line = FIRST + int(match.group(1))
        return f"!{match[1]} = {match[2]}!DILocation(line: {line}, column: 1, scope: !{kernel})"

    launched = _ptx_code(compiled.asm["ptx"])
    again = _ptx_code(_ptx(compiled, location.sub(numbered, llir)))
    if [text for _, _, text in launched] != [text for _, _, text in again]:
        raise RuntimeError("made again, the PTX differs in more than its line table")
    pairs = zip(launched, again, strict=True)
    return {line: frames(source - FIRST) for (line, _, _), (_, source, _) in pairs}


def _ptx_code(ptx: str) -> list[tuple[int, int, str]]:
    """The rows of PTX that are no debugging aid: (its line, the source line it is from, text)."""
    rows, location = [], 0
    for line, row in enumerate(ptx.splitlines(), 1):
        text = row.split("//")[0].strip()
        if text.startswith((".file", ".section")):
            break
        if text.startswith(".loc"):
            location = int(text.split()[2])
        elif text and not re.match(r"\$L__(tmp|func)", text):
            rows.append((line, location, text))
    return rows


def _ptx(compiled: CompiledKernel, llir: str) -> str:
    """What Triton makes of LLVM IR, with the options of a compiled kernel."""
    llvm.init_targets()
    if hasattr(nvidia, "set_short_ptr"):  # Triton 3.9 says it when it makes the PTX
        nvidia.set_short_ptr()  # as Triton does before it makes the LLVM IR
    backend = make_backend(compiled.metadata.target)
    names = ("ptx_version", "ptx_options", "enable_fp_fusion")
    options = backend.parse_options({name: getattr(compiled.metadata, name) for name in names})
    stages = {}
    backend.add_stages(stages, options, Language.TRITON)
    return stages["ptx"](llir, {})


def resources(compiled: CompiledKernel) -> dict[str, int]:
    """Registers and spilled bytes a thread, and the most bytes that one load or store moves."""
    code = instructions(compiled, inlined=False)
    usage = tool("cuobjdump", "-res-usage", compiled.asm["cubin"])
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    spills = any(i.opcode.startswith(("STL", "LDL")) for i in code)
    load, store = (max(i.bytes(operation) for i in code) for operation in ("LDG", "STG"))
    spilled = stack if spills else 0
    return {"registers": registers, "spilled": spilled, "load": load, "store": store}


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
