"""Right or wrong: every result against float64 PyTorch, judged by float32 PyTorch's own error.

Two choices make the comparison sharp.

* The images and gradients are multiples of 2^-6 and 2^-16 with eight significant bits, so they are
  the same numbers in every dtype and one float64 reference serves all.
* Bilinear sampling has kinks where a source coordinate is an integer: there dθ is a subgradient
  that rounding alone decides, and float32 PyTorch differs from its own float64 by half. dθ is
  therefore checked under θ moved by a fraction of a pixel, with a gradient of zero at every output
  that still falls within 0.01 pixel of a kink. The value and grad_input have no kinks and are
  checked under the very θ that is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from bench.providers import baselines
from bench.suite import sources
from bench.suite.cases import FORMATS, Case, Task, argument_of
from bench.suite.passes import RESULTS, Call, Forward, as_it_is, prepare

# In pixels along x, y and z. The kinds' coordinates have fractions 0, 1/4, 1/2 or 3/4 (a rotation:
# any); moved by this much they stay 0.1 away from integers.
NUDGE = (0.37, 0.63, 0.13)
KINK_MARGIN = 0.01  # pixels; float32 coordinates err by 1e-3 at 4096
# As of a mean loss. Without it float16 sums of grad_theta overflow in eager PyTorch.
GRAD_SCALE = 2.0**-10

Errors = dict[str, tuple[float, torch.dtype]]  # by result


class Reference:
    """The float64 results of one case under one θ, and the float32 yardstick."""

    def __init__(self, task: Task, device: str) -> None:
        self.case, self.device = case, device = task.case, device
        how = (task.padding_mode, task.align_corners, case.transform, case.mode)
        self.options = (case.size, *how)
        is_spline = case.transform.startswith("tps")
        self.yardstick = baselines.eager_spline if is_spline else baselines.eager
        self.input, self.grad = make_data(case, device)
        theta = argument_of(case, task.theta_kind)
        nudge = torch.tensor(NUDGE[: case.ndim])
        nudged = sources.shifted(case.transform, theta, nudge, case.extent)
        self.theta, self.nudged = (self._batch(t.to(device)) for t in (theta, nudged))
        self.smooth_grad = self.grad * self._away_from_kinks()

        y, grad_input, _ = self._run(self.yardstick, "forward_backward", torch.float64)
        (grad_theta,) = self._run(self.yardstick, "backward_theta", torch.float64, smooth=True)
        self.expected = {"y": y, "grad_input": grad_input, "grad_theta": grad_theta}
        self.largest = {name: float(x.abs().amax()) for name, x in self.expected.items()}
        self._eager_errors: dict[tuple, Errors] = {}

    def arguments(
        self, dtype: torch.dtype, layout: str = "contiguous", smooth: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """input, θ and grad as a provider gets them; ``smooth``: the pair that checks dθ."""
        theta, grad = (self.nudged, self.smooth_grad) if smooth else (self.theta, self.grad)
        memory_format = FORMATS[layout, self.case.ndim]
        input = self.input.to(dtype).contiguous(memory_format=memory_format)
        images = grad.to(dtype).flatten(0, -2 - self.case.ndim)
        images = images.contiguous(memory_format=memory_format)
        grad = images.unflatten(0, grad.shape[:2]) if self.case.k > 1 else images
        return input, theta, grad

    def errors(self, forward: Forward, pass_name: str, *how: Any) -> Errors:
        """The largest error of each result of ``call``, and the dtype that the result has.

        NaN where the result has one: it is never below a tolerance.
        """
        how = (forward, pass_name, *how)
        if how in self._eager_errors:
            return self._eager_errors[how]
        names = RESULTS[pass_name]
        found = dict(zip(names, self._run(*how), strict=True))
        if "grad_theta" in names:
            on_kinks = found["grad_theta"].isfinite().all()
            smooth = self._run(*how, smooth=True)[-1]
            # On the kinks it need only be a number; see above.
            found["grad_theta"] = torch.where(on_kinks, smooth, torch.nan)
        errors = {
            name: (float((self.expected[name] - x).abs_().amax()), x.dtype)
            for name, x in found.items()
        }
        # Eager is provider and, but for splines, yardstick: once is enough.
        if forward in (baselines.eager, self.yardstick):
            self._eager_errors[how] = errors
        return errors

    def allowed(self, result: str, result_dtype: torch.dtype, like: torch.dtype) -> float:
        """Twice eager PyTorch's own error in ``like``, one rounding, and 1e-5 of the largest."""
        plain = ("contiguous", as_it_is)
        own = max(
            self.errors(self.yardstick, "forward_backward", dtype, *plain)[result][0]
            for dtype in (torch.float32, like)
        )
        return 2 * own + (torch.finfo(result_dtype).eps + 1e-5) * self.largest[result]

    def rounding(self, result: str, result_dtype: torch.dtype) -> float:
        """The most that rounding the exact result once to its dtype moves a number of it."""
        return torch.finfo(result_dtype).eps / 2 * self.largest[result]

    def call(
        self,
        forward: Forward,
        pass_name: str,
        dtype: torch.dtype,
        layout: str = "contiguous",
        wrap: Callable[[Call], Call] = as_it_is,
        smooth: bool = False,
    ) -> Call:
        """One pass of a provider, whose ``wrap`` it is, with the ``arguments``."""
        input, theta, grad = self.arguments(dtype, layout, smooth)
        if dtype == torch.float64:
            theta = theta.double()
        return wrap(prepare(pass_name, forward, input, theta, grad, *self.options))

    def _run(self, *how: Any, **options: bool) -> tuple[torch.Tensor, ...]:
        # Copied: what a CUDA graph returns is overwritten by its next replay.
        return tuple(x.detach().clone() for x in self.call(*how, **options)())

    def _batch(self, theta: torch.Tensor) -> torch.Tensor:
        """θ (K, *) for each image: (N, *), or (N, K, *) when K > 1."""
        theta = theta if self.case.k > 1 else theta[0]
        return theta.expand(self.case.n, *theta.shape).contiguous()

    def _away_from_kinks(self) -> torch.Tensor:
        """Which outputs of one image are differentiable in θ: ([K,] 1, *size)."""
        case, (size, padding_mode, align_corners, *_) = self.case, self.options
        theta = (self.nudged[0] if case.k > 1 else self.nudged[:1]).double()
        grid = sources.grid(case.transform, theta, case.extent, size, align_corners)
        extent = torch.tensor(case.extent[::-1], dtype=grid.dtype, device=grid.device)
        source = (grid * (extent - 1 if align_corners else extent) + extent - 1) / 2
        # Reflection turns at half-integers.
        step = 0.5 if padding_mode == "reflection" else 1.0
        distance = (source - (source / step).round() * step).abs().amin(-1)
        smooth = (distance > KINK_MARGIN).unsqueeze(1)
        return smooth if case.k > 1 else smooth[0]


@lru_cache(maxsize=1)
def make_data(case: Case, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """White noise in [-2, 2): input (N, C, *extent) and grad shaped as y, float32."""
    generator = torch.Generator(device).manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        bits = torch.randint(-128, 128, shape, generator=generator, device=device)
        return bits.float() / 64

    several = (case.k,) if case.k > 1 else ()
    grad = noise(case.n, *several, case.c, *case.size) * GRAD_SCALE
    return noise(case.n, case.c, *case.extent), grad


@lru_cache(maxsize=1)
def _references(case: Case, device: str) -> dict[tuple, Reference]:
    return {}


def reference(task: Task, device: str) -> Reference:
    """The reference of the task, shared by passes, providers, dtypes and layouts of its case."""
    known = _references(task.case, device)
    key = (task.theta_kind, task.padding_mode, task.align_corners)
    if key not in known:
        known[key] = Reference(task, device)
    return known[key]
