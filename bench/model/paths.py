"""Instructions along one path of a launched kernel, which branches on the kind of a window.

The launched gather holds every window behind a branch on a number known at run time. `call_sites`
finds the calls in the dispatching function, one a window, and an instruction is a window's if it
was inlined through its call. `count` walks the control-flow graph without the blocks of the others;
at a branch that is left it takes the longer side: masked loads load, and a tile is in view.

    sites = call_sites(one.gather, "gather_tiles")
    path = count(compiled, sites, "THREE")  # of a CompiledKernel for NVIDIA
    path.per_tile, path.per_pass, path.once
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from triton.compiler.compiler import CompiledKernel

from bench.model.sass import Frame, Instruction, Sites, instructions

MUST = 1 << 20  # instructions; more than any path has


Part = tuple[Instruction, ...]  # what a thread executes in a stretch of a path


def moved(part: Part, operation: str) -> int:
    """Bytes that a thread moves by the memory ``operation``."""
    return sum(i.bytes(operation) for i in part)


@dataclass(frozen=True)
class Path:
    """What lies outside all loops and, outermost first, one turn of each loop on the path.

    The outermost loop walks the tiles of a program. A part is without the loops inside it. Of
    several the one of the window is followed, or else the longest; the rest, as what the compiler
    leaves over of an unrolled one, is not counted.
    """

    outside: Part
    loops: tuple[Part, ...]

    @property
    def once(self) -> int:
        """Instructions a program beside its tiles: set-up, and the reduction of the sums."""
        return len(self.outside)

    @property
    def per_tile(self) -> int:
        """Instructions a tile, without the loops inside it."""
        return len(self.loops[0])

    @property
    def per_pass(self) -> int | None:
        """Instructions a turn of the loop inside a tile, over passes of channels or over maps."""
        return len(self.loops[1]) if len(self.loops) > 1 else None

    def total(self, turns: Sequence[float]) -> float:
        """Instructions where each loop takes ``turns``, outermost first, a turn of that around it.

        Raises:
            ValueError: there are more or fewer loops.
        """
        inside = 0.0
        for part, times in zip(reversed(self.loops), reversed(turns), strict=True):
            inside = times * (len(part) + inside)
        return self.once + inside


@dataclass
class _Block:
    code: list[Instruction] = field(default_factory=list)
    next: list[int] = field(default_factory=list)

    @property
    def ends(self) -> bool:
        """Whether the kernel can end here, be it where a loop goes on for others."""
        return not self.next or self.code[-1].opcode.startswith("EXIT")


def count(compiled: CompiledKernel, sites: Sites | None = None, window: str = "") -> Path:
    """The path through the code that is called at ``sites[window]``; without sites the longest.

    With sites and no window the path through none of them.
    """
    blocks, heart = _blocks(instructions(compiled, inlined=sites is not None)), None
    if sites:
        blocks, heart = _select(blocks, sites, window)
    parts, inside, entry, ends = [], set(blocks), 0, {b for b in blocks if blocks[b].ends}
    while True:
        loops = _loops(blocks, inside, entry)
        path, loop = _longest(blocks, inside, entry, ends, loops, heart)
        parts.append(tuple(i for b in path for i in blocks[b].code))
        if loop is None:
            break
        entry, inside = loop, loops[loop]
        ends = {b for b in inside if entry in blocks[b].next}
    if len(parts) < 2:
        raise ValueError("no loop walks the tiles")
    return Path(parts[0], tuple(parts[1:]))


def _blocks(code: Sequence[Instruction]) -> dict[int, _Block]:
    """The basic blocks, in order, that are reached from the first.

    A call of a subroutine, as a division of float64 has, is one instruction.
    """
    blocks, labels, jumps = {0: _Block()}, {}, {}
    last = 0
    for instruction in code:
        text, opcode = instruction.text, instruction.opcode
        if text.endswith(":"):
            if blocks[last].code:
                last += 1
                blocks[last] = _Block()
            labels[text[:-1]] = last
            continue
        if opcode.startswith("JM") or (opcode == "BRX" and "TARGETS" not in text):
            raise NotImplementedError(f"control flow by {text}")
        if opcode == "NOP":
            continue
        blocks[last].code.append(instruction)
        if opcode.startswith(("BRA", "BRX", "EXIT", "RET")):
            # To the target of BRA.DIV go warps whose threads have parted: none has here.
            jumps[last] = re.findall(r"\.L\w+", text) if "BRA.DIV" not in text else []
            falls = text.startswith("@") or re.search(r"BRA\S*\s+!?U?P\d|BRA\.DIV", text)
            blocks[last].next = [last + 1] if falls else []
            last += 1
            blocks[last] = _Block()
        else:
            blocks[last].next = [last + 1]
    for b, targets in jumps.items():
        blocks[b].next += [labels[target] for target in targets]
    return {b: blocks[b] for b in sorted(_reached(blocks, set(blocks), 0))}


def _reached(blocks: dict[int, _Block], inside: set[int], start: int) -> set[int]:
    """The blocks reached from ``start`` by others ``inside``."""
    found, todo = set(), [start]
    while todo:
        b = todo.pop()
        if b in inside and b not in found:
            found.add(b)
            todo += blocks[b].next
    return found


def _select(
    blocks: dict[int, _Block], sites: Sites, window: str
) -> tuple[dict[int, _Block], int | None]:
    """The blocks of a path through a window, and the one with most of that window's code.

    A block is another window's if it has code of others and none of this one, unless no path
    avoids it: the compiler moves some code of a window to where all pass.
    """
    mine = sites[window] if window else frozenset()
    theirs = frozenset().union(*sites.values()) - mine

    def among(b: int, frames: frozenset[Frame]) -> int:
        return sum(not frames.isdisjoint(i.frames) for i in blocks[b].code)

    heart = max(blocks, key=lambda b: among(b, mine))
    if not among(heart, mine):
        if window:
            raise ValueError(f"no code of {window} is left in the kernel")
        heart = 0
    everything = set(blocks)
    exits = {b for b in blocks if blocks[b].ends}
    kept = set()
    for b in blocks:
        avoiding = everything - {b}
        needed = heart not in _reached(blocks, avoiding, 0) or not exits & _reached(
            blocks, avoiding, heart
        )
        if needed or among(b, mine) or not among(b, theirs):
            kept.add(b)
    kept = _reached(blocks, kept, 0)
    kept = {b for b in kept if exits & _reached(blocks, kept, b)}
    return {
        b: replace(blocks[b], next=[s for s in blocks[b].next if s in kept])
        for b in blocks
        if b in kept
    }, heart if window else None


def _loops(blocks: dict[int, _Block], inside: set[int], entry: int) -> dict[int, set[int]]:
    """The outermost loops among blocks, by the first block of each; ``entry`` heads none."""
    others = inside - {entry}
    after = {b: set().union(*(_reached(blocks, others, s) for s in blocks[b].next)) for b in inside}
    bodies = {frozenset(c for c in after[b] if b in after[c]) for b in others}
    loops = {}
    for body in filter(None, bodies):
        entered = {s for b in inside - body for s in blocks[b].next} & body
        loops |= {head: set(body) for head in entered}
    return loops


def _longest(
    blocks: dict[int, _Block],
    inside: set[int],
    entry: int,
    ends: set[int],
    loops: dict[int, set[int]],
    heart: int | None,
) -> tuple[list[int], int | None]:
    """The blocks outside the loops of the longest path to one of ``ends``, and the loop it takes.

    It goes through the heart, or the loop that has it, and through the largest loop.
    """
    head_of = {b: head for head, body in loops.items() for b in body}
    size = {head: sum(len(blocks[b].code) for b in body) for head, body in loops.items()}
    main = head_of.get(heart, max(size, key=size.get, default=None))
    weight = {b: len(blocks[b].code) for b in inside if b not in head_of}
    for must in {main, heart} & (set(weight) | set(loops)):
        weight[must] = weight.get(must, 0) + MUST
    best: dict[int, tuple[int, list[int]]] = {}

    def walk(node: int) -> tuple[int, list[int]]:
        if node not in best:
            body = loops.get(node, {node})
            after = {s for b in body for s in blocks[b].next if s in inside and s != entry} - body
            ways = [walk(head_of.get(s, s)) for s in after]
            ways = [way for way in ways if way[1]]
            if body & ends:
                ways.append((0, []))
            length, path = max(ways, default=(-MUST * MUST, []))
            best[node] = (length + weight.get(node, 0), [node, *path])
        return best[node]

    path = walk(entry)[1]
    return [b for b in path if b not in loops], main
