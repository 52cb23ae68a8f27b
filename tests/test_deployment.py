"""The examples of docs/deployment.md run, one after another."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import Place

PAGE = Path(__file__).resolve().parent.parent / "docs" / "deployment.md"
BLOCKS = re.findall(r"```python *(\w*)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


def run(wanted: str) -> None:
    names: dict[str, object] = {}
    for needs, block in BLOCKS:
        if needs in ("", wanted):
            exec(block, names)


def test_what_needs_pytorch_alone(place: Place, device):
    assert len(BLOCKS) == 4
    run("")


@pytest.mark.filterwarnings("ignore")  # the exporter's own, of its next release
def test_what_needs_onnx(place: Place, device, tmp_path, monkeypatch):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="torch.onnx.export needs it")
    monkeypatch.chdir(tmp_path)
    run("onnx")
    assert (tmp_path / "model.onnx").stat().st_size > 1000
