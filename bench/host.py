"""Host work of a public call, without a GPU: ``python -m bench host``.

A stand-in driver takes the place of Triton's: everything runs but the compiler and the launch
itself, of which what a launcher does with its arguments remains, a look at every tensor's pointer.
Eager's rival is the Python and the dispatcher of ``F.affine_grid`` and ``F.grid_sample`` on CPU
tensors of one pixel, whose work is next to nothing. On a GPU eager launches 11 kernels forward and
about 12 backward on top of its figure, and ours 1 and 2 on top of ours.

The two are timed in turn, so that what else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from tabulate import tabulate

import triton_stn
from bench.suite.passes import Call, Forward
from triton_stn import backends, calls, use_backend
from triton_stn.backends import launch

SHAPE = (64, 1, 28, 28)
# What the table promises, as a multiple of eager's time.
TARGETS = {"forward": 2.0, "forward + backward": 1.0}


@contextmanager
def stand_in_driver() -> Iterator[list[str]]:
    """The Triton backend on CPU tensors, launching nothing; yields the names of the kernels that
    were asked for. Triton has not to interpret."""
    launched = []

    class Driver:
        def get_current_device(self):
            return None  # the index of the CPU

        def get_current_stream(self, index):
            return 0

    class Compiled:
        function = packed_metadata = None

    class StandIn(launch.Ready):
        def _load(self, plan, device, aligned):
            name = plan.kernel.__name__

            def run(*arguments):
                launched.append(name)
                for part in arguments:
                    if type(part) is tuple:
                        part[0].data_ptr()

            return Driver(), Compiled(), run

    calls.forget()
    real = launch.Ready, backends.TRITON_DEVICES
    launch.Ready, backends.TRITON_DEVICES = StandIn, (*backends.TRITON_DEVICES, "cpu")
    try:
        with use_backend("triton"):
            yield launched
    finally:
        launch.Ready, backends.TRITON_DEVICES = real
        calls.forget()


def passes() -> dict[str, tuple[Call, Call]]:
    """(ours, eager's) of each pass."""
    images, pixel = torch.rand(SHAPE), torch.rand(1, 1, 1, 1)
    thetas, one = torch.eye(2, 3).repeat(SHAPE[0], 1, 1), torch.eye(2, 3)[None]

    def eager(x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        grid = F.affine_grid(theta, x.shape, align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)

    def trains(sample: Forward, x: torch.Tensor, theta: torch.Tensor) -> Call:
        x, theta = x.clone().requires_grad_(), theta.clone().requires_grad_()
        grad = torch.ones_like(x)

        def call() -> None:
            x.grad = theta.grad = None
            sample(x, theta).backward(grad)

        return call

    ours = triton_stn.spatial_transform
    return {
        "forward": (partial(ours, images, thetas), partial(eager, pixel, one)),
        "forward + backward": (trains(ours, images, thetas), trains(eager, pixel, one)),
    }


def microseconds(call: Call, repeats: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(repeats):
        call()
    return (time.perf_counter_ns() - start) / repeats / 1000


def measure(rounds: int, repeats: int) -> dict[str, tuple[float, float]]:
    """Median microseconds of each pass, (ours, eager's)."""
    medians = {}
    with stand_in_driver():
        for name, pair in passes().items():
            for call in pair:
                microseconds(call, repeats)  # plans are made, caches are warm
            times = [[microseconds(call, repeats) for call in pair] for _ in range(rounds)]
            ours, eager = (statistics.median(column) for column in zip(*times, strict=True))
            medians[name] = ours, eager
    return medians


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench host", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50, help="pairs of timings (default: 50)")
    parser.add_argument("--repeats", type=int, default=100, help="calls a timing (default: 100)")
    options = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        parser.error("TRITON_INTERPRET is set: the launcher would not run")
    torch.set_num_threads(1)
    shape = "x".join(map(str, SHAPE))
    print(f"Host work a call, {shape}, float32, microseconds (a stand-in driver, one thread)\n")
    medians = measure(options.rounds, options.repeats)
    rows = [
        (name, ours, eager, ours / eager, TARGETS[name]) for name, (ours, eager) in medians.items()
    ]
    headers = ("", "triton_stn", "eager, 1 px", "ratio", "at most")
    print(tabulate(rows, headers, "plain", floatfmt=("", ".1f", ".1f", ".2f", ".1f")))
    return int(any(ratio > most for *_, ratio, most in rows))


if __name__ == "__main__":
    sys.exit(main())
