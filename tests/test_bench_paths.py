"""Instructions along a path of a kernel: by hand, and the calls that tell windows apart."""

from __future__ import annotations

import pytest

from bench.model import counts, paths
from bench.model.sass import Instruction, call_sites
from triton_stn.kernels.gather import one

SITES = {"a": frozenset({("a", 1)}), "b": frozenset({("b", 1)})}
# Rows "window | instruction", or labels. Window b's turn ends early for some threads.
TWO_WINDOWS = """
    a | FADD
    ISETP
    @P0 BRA `(.L_b)
    .L_a:
    a | FADD
    a | FADD
    a | @P1 BRA `(.L_a)
    BRA `(.L_end)
    .L_b:
    b | LDG.E.128 R1
    @P2 BRA `(.L_c)
    b | STG.E.64 R1
    .L_c:
    b | @P1 BRA `(.L_b)
    .L_end:
    @!P0 EXIT
    IADD3
    EXIT
    .L_x:
    BRA `(.L_x)
"""
# The kernel ends inside its loop over tiles, which has one loop more; window a is in neither.
NESTED = """
    IADD3
    .L_tile:
    @P0 BRA `(.L_b)
    a | FADD
    a | FADD
    a | BRA `(.L_next)
    .L_b:
    b | FADD
    .L_pass:
    b | STG.E R1
    b | @P1 BRA `(.L_pass)
    .L_next:
    @!P0 EXIT
    BRA `(.L_tile)
"""


def code(text: str) -> list[Instruction]:
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        window, _, instruction = line.rpartition("|")
        frames = ((window.strip(), 1),) if window.strip() else ()
        found.append(Instruction(instruction.strip(), frames))
    return found


def count(monkeypatch, text: str, window: str) -> paths.Path:
    monkeypatch.setattr(paths, "instructions", lambda *_, **__: code(text))
    return paths.count(None, SITES, window)


@pytest.mark.parametrize(("window", "once", "tile"), [("a", 3 + 1 + 3, 3), ("b", 3 + 3, 4)])
def test_a_window_is_counted_without_the_other(monkeypatch, window, once, tile):
    path = count(monkeypatch, TWO_WINDOWS, window)
    assert (path.once, path.per_tile, path.per_pass) == (once, tile, None)
    moved = [paths.moved(path.loops[0], operation) for operation in ("LDG", "STG")]
    assert moved == ([16, 8] if window == "b" else [0, 0])


def test_loops_inside_a_tile_are_apart_and_a_total_repeats_each(monkeypatch):
    path = count(monkeypatch, NESTED, "b")
    assert (path.once, path.per_tile, path.per_pass) == (1, 1 + 1 + 2, 2)
    assert path.total([10, 3]) == 1 + 10 * (4 + 3 * 2)
    assert count(monkeypatch, NESTED, "a").total([10]) == 1 + 10 * (1 + 3 + 2)
    with pytest.raises(ValueError):
        path.total([10])


def test_a_window_without_code_and_a_kernel_without_tiles_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="no code of b"):
        count(monkeypatch, TWO_WINDOWS.replace("b |", ""), "b")
    with pytest.raises(ValueError, match="no loop walks the tiles"):
        count(monkeypatch, "a | FADD\na | EXIT", "a")


def test_a_kernel_calls_each_window_by_a_name_that_is_counted():
    sites = call_sites(one.gather_affine, "gather_tiles")
    assert {*counts.NARROW, "STRAIGHT", "WALK", "WIDE", "NOTHING"} <= set(sites)
    assert {*counts.NARROW, "STRAIGHT", "WALK"} <= set(counts._sites("gather_maps"))
    frames = [frame for of in sites.values() for frame in of]
    assert len(frames) == len(set(frames))
