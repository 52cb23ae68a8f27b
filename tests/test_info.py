"""`python -m triton_stn.info` says what a bug report needs, and what is wrong."""

from __future__ import annotations

import pytest
import torch
from conftest import Place

import triton_stn
from triton_stn import autograd, calls, info


def test_it_names_versions_devices_and_backends(capsys, device):
    assert info.main() == 0
    printed = capsys.readouterr().out
    for word in (triton_stn.__version__, torch.__version__, "python", "cpu: ", "grad_theta"):
        assert word in printed
    assert printed.count(" ok ") == 12 * len(info.devices()) and "WRONG" not in printed


@pytest.mark.parametrize("installed", [True, False])
def test_the_reason_for_pytorch_is_said(monkeypatch, installed):
    monkeypatch.setattr(info.backends, "HAS_TRITON", installed)
    monkeypatch.setattr(info.backends, "INTERPRETED", False)
    said = info.reason(torch.device("cpu"))
    assert ("run on cuda and xpu" if installed else "triton is not installed") in said


def test_a_wrong_kernel_is_found(triton_device, capsys, monkeypatch, kernels: Place):
    def wrong(real):
        return lambda *arguments: real(*arguments) * 1.0001

    monkeypatch.setattr(autograd.fused, "sample", wrong(autograd.fused.sample))
    monkeypatch.setattr(calls.Call, "forward", wrong(calls.Call.forward))  # a kept one's
    assert info.main() == 1
    lines = capsys.readouterr().out.splitlines()
    wrong = [line.split("WRONG")[0].strip() for line in lines if "WRONG" in line]
    assert wrong == [
        f"{n}, output" for n in ("affine", "projective", "thin-plate spline", "volume")
    ]
