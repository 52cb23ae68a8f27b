"""The Python blocks of README.md and of every page under docs/ run, each page's in order."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import triton_stn

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = {
    page.relative_to(ROOT).as_posix(): found
    for page in PAGES
    if (found := re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S))
}


@pytest.mark.parametrize("page", BLOCKS)
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = ModuleType("page")  # dataclasses look theirs up
    monkeypatch.setitem(sys.modules, "page", module)
    with triton_stn.use_backend("torch"):
        for i, block in enumerate(BLOCKS[page]):
            exec(compile(block, f"{page}, block {i + 1}", "exec"), vars(module))


def test_every_python_fence_is_a_block_that_runs():
    for page in PAGES:
        # What needs ONNX is run by tests/test_deployment.py.
        fences = re.findall(r"^\s*```py(?!thon onnx$)", page.read_text("utf-8"), re.M)
        assert len(fences) == len(BLOCKS.get(page.relative_to(ROOT).as_posix(), []))
