"""Where the tests run: pure PyTorch and interpreted kernels on a CPU, compiled kernels on a GPU.

Without a GPU, ``TRITON_INTERPRET=0 python -m pytest`` compiles the kernels and runs them by ptxrun.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
HAS_CUDA = torch.cuda.is_available()
HAS_XPU = not HAS_CUDA and hasattr(torch, "xpu") and torch.xpu.is_available()
GPU = "cuda" if HAS_CUDA else "xpu" if HAS_XPU else None
if GPU is None:
    # Triton reads it when a kernel is decorated, so before triton_stn is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import compiled  # noqa: E402
import interpreter  # noqa: E402

import triton_stn  # noqa: E402
from triton_stn.backends import fused  # noqa: E402

if GPU is None and compiled.HERE:
    from ptxrun import launches

    launches.substitute()
elif GPU is None:
    interpreter.hasten()

# Of all tests of tests/test_fuzz.py together, on the CPU's two backends.
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True, database=None)
settings.register_profile("nightly", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

PAD = 64  # elements of guard on either side of a buffer; keeps 16-byte alignment
SENTINEL = 77.0


@dataclass(frozen=True)
class Place:
    """A backend on a device."""

    backend: str
    device: str

    @property
    def interpreted(self) -> bool:
        """Whether it is slow."""
        return self.backend == "triton" and self.device == "cpu"

    def sample(self, *args, **kwargs) -> torch.Tensor:
        with triton_stn.use_backend(self.backend):
            return triton_stn.spatial_transform(*args, **kwargs)


PYTORCH = pytest.param(Place("torch", "cpu"), id="torch")
INTERPRETED = pytest.param(
    Place("triton", "cpu"),
    id="interpreted",
    marks=pytest.mark.skipif(GPU is not None, reason="with a GPU the kernels are compiled"),
)
ON_GPU = pytest.param(Place("triton", GPU or "cuda"), id="gpu", marks=pytest.mark.gpu)


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(items):
    products = defaultdict(list)
    for item in items:
        if item.get_closest_marker("thinned"):
            place = item.callspec.params.get("place", item.callspec.params.get("kernels"))
            products[item.path, item.originalname, place].append(item)
    for product in products.values():
        for item in beyond_a_slice(product):
            item.add_marker(item.get_closest_marker("thinned").kwargs.get("rest", "landing"))
    if GPU is None:
        skip = pytest.mark.skip(reason="needs a GPU that Triton supports")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


def beyond_a_slice(product: list) -> list:
    """Those that a slice of a test's product does not need.

    In the slice every value of every parameter appears, or of ``thinned(2)`` every pair of values.
    """

    def covers(item):
        values = [(name, id(value)) for name, value in item.callspec.params.items()]
        (strength,) = item.get_closest_marker("thinned").args or (1,)
        return set(combinations(values, min(strength, len(values))))

    left = {item: covers(item) for item in product}
    missing = set().union(*left.values())
    while missing:
        best = max(left, key=lambda item: len(left[item] & missing))  # the first of equals
        missing -= left.pop(best)
    return list(left)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if "compiled" in pyfuncitem.keywords:
        compiled.call(pyfuncitem)
        return True
    return None


@pytest.fixture(params=[PYTORCH, INTERPRETED, ON_GPU])
def place(request) -> Place:
    """Each backend that a user can have."""
    return request.param


@pytest.fixture(params=[INTERPRETED, ON_GPU])
def kernels(request) -> Place:
    """The Triton kernels alone."""
    return request.param


class Guarded(list):
    """(A buffer with its guards, its span)."""

    __repr__ = object.__repr__  # hypothesis prints arguments

    def check(self) -> None:
        """The guards survive; the buffers are forgotten."""
        for flat, span in self:
            assert (flat[:PAD] == SENTINEL).all() and (flat[PAD + span :] == SENTINEL).all()
        self.clear()


@pytest.fixture
def guarded(monkeypatch):
    """Every uninitialised buffer is full of NaN and stands between guards that must survive."""
    # It looks functions up by identity, and must not meet those below when it is first imported.
    importlib.import_module("torch._dynamo.trace_rules").get_torch_obj_rule_map()
    buffers = Guarded()

    def fence(meta, device, fill):
        if not meta.dtype.is_floating_point:
            return None
        span = 1 + sum((n - 1) * s for n, s in zip(meta.shape, meta.stride(), strict=True))
        span = span if meta.numel() else 0
        flat = torch.full((span + 2 * PAD,), SENTINEL, dtype=meta.dtype, device=device)
        flat[PAD : PAD + span] = fill
        buffers.append((flat, span))
        return flat.as_strided(meta.shape, meta.stride(), PAD)

    def patch(owner, name, fill):
        real = getattr(owner, name)

        def allocate(*args, **kwargs):
            like = args[0] if args and isinstance(args[0], torch.Tensor) else None
            device = kwargs.pop("device", None) or (None if like is None else like.device)
            if torch.device(device or "cpu").type == "meta":
                # asked for by `fence`, through functions that are patched too, or as a layout alone
                return real(*args, **kwargs, device=device)
            fenced = fence(real(*args, **kwargs, device="meta"), device, fill)
            return real(*args, **kwargs, device=device) if fenced is None else fenced

        monkeypatch.setattr(owner, name, allocate)

    patch(torch, "empty", torch.nan)
    patch(torch, "empty_like", torch.nan)
    patch(torch, "zeros", 0.0)
    patch(torch, "zeros_like", 0.0)
    patch(torch.Tensor, "new_empty", torch.nan)
    patch(torch.Tensor, "new_empty_strided", torch.nan)
    yield buffers
    buffers.check()


@pytest.fixture
def device(place):
    """The same, with the backend in force; the value is the device its tensors belong on."""
    with triton_stn.use_backend(place.backend):
        yield torch.device(place.device)


@pytest.fixture
def triton_device(kernels):
    with triton_stn.use_backend(kernels.backend):
        yield torch.device(kernels.device)


@pytest.fixture
def small_and_quick():
    """For the examples: by PyTorch, on one thread.

    The interpreted kernels would take minutes for what is no test of the kernels; and threads that
    wait for each other on a busy machine cost ten times what these small images do.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with triton_stn.use_backend("torch"):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(name="launches")
def _launches(monkeypatch):
    """Every launch, in order."""
    seen = []
    real = fused.launch

    def launch(launches, *args, **kwargs):
        seen.extend(launches.plans)
        return real(launches, *args, **kwargs)

    monkeypatch.setattr(fused, "launch", launch)
    return seen


def run_uninterpreted(*command: str) -> subprocess.CompletedProcess[str]:
    """``python *command`` in a process of its own, where Triton does not interpret."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, *command]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def check_refusal(name: str, call: Callable[[], object], error: type, fragment: str) -> None:
    """That a call is refused by a sentence about the argument of that name."""
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(f"{name} must ")
    assert fragment in str(caught.value)
