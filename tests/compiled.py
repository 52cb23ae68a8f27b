"""A second process for tests marked ``compiled``, beside a pytest whose kernels are interpreted.

Triton decides when a kernel is decorated whether it is interpreted, so one process can not do both.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import traceback
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch

ENVIRONMENT = {"TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
HERE = os.environ.get("TRITON_INTERPRET") == "0"  # conftest.py: launches are ptxrun's

_pool: ProcessPoolExecutor | None = None


def call(item: pytest.Function) -> None:
    """Run a test in the second process; its arguments are those of its parametrisation."""
    global _pool
    if not (shutil.which("g++") or shutil.which("c++")):
        pytest.skip("ptxrun needs a C++ compiler: g++ or c++")
    arguments = {name: item.funcargs[name] for name in item._fixtureinfo.argnames}
    if HERE:
        torch.manual_seed(0)
        item.obj(**arguments)
        return
    if _pool is None:
        _pool = _start()
    task = _pool.submit(_call, item.module.__name__, item.function.__name__, arguments)
    try:
        outcome = task.result()
    except BrokenProcessPool:
        _pool = None  # the next test gets a new one
        raise
    if outcome is not None:
        pytest.fail(outcome, pytrace=False)


def _start() -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    try:
        pool.submit(os.getpid).result()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return pool


def _call(module: str, name: str, arguments: dict) -> str | None:
    """The traceback of a test that fails."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    importlib.import_module("conftest")  # as in pytest's own process, first
    try:
        getattr(importlib.import_module(module), name)(**arguments)
    except Exception:
        return traceback.format_exc()
    return None
