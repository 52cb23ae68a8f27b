"""Reads and writes out of bounds, and races in shared memory, that no result shows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sanitized
import torch

from bench.model import addresses

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = Path(sanitized.__file__)
SANITIZER = shutil.which("compute-sanitizer") or shutil.which(
    "compute-sanitizer", path="/usr/local/cuda/bin"
)
# Twice the plain run that fills the compiler's cache and a checker's, reckoned at 1 to 2 minutes
# each: both tests end within ten minutes whatever happens.
TIMEOUT_S = 140


def run(*prefix: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*prefix, sys.executable, str(SCRIPT)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


@pytest.mark.gpu
@pytest.mark.skipif(SANITIZER is None, reason="compute-sanitizer is not installed")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_a_checker_of_the_gpus_memory_finds_nothing(tool):
    plain = run()  # compiles the kernels, which takes long under the checker
    assert plain.returncode == 0, plain.stderr[-4000:]
    command = (SANITIZER, "--tool", tool, "--error-exitcode", "99")
    command += ("--target-processes", "application-only")
    # Without PyTorch's cache every tensor is an allocation of its own, whose end is guarded.
    checked = run(*command, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    assert checked.returncode == 0, (checked.stdout + checked.stderr)[-4000:]
    assert "SUMMARY: 0 " in checked.stdout, checked.stdout[-4000:]  # it did look


@pytest.mark.nightly
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the kernels are compiled")
def test_what_the_checker_runs_runs_interpreted():
    done = run(TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr[-4000:]
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == list(sanitized.CALLS)


@pytest.mark.parametrize("window", ["axis", "three", "walk", "wide"])
def test_a_call_takes_the_window_that_it_is_named_after(window):
    (call,) = (call for name, call in sanitized.CALLS.items() if name.startswith(window))
    (h, w), (h_out, w_out) = call.shape[2:], call.size
    (a00, a01, _), (a10, a11, _) = call.theta
    map = (a00 * w / w_out, a01 * w / h_out, 0, a10 * h / w_out, a11 * h / h_out, 0)
    kind = {"axis": "UPRIGHT"}.get(window, window.upper())
    assert addresses.window(map) == kind
