"""Layouts -> plans, for images and volumes alike: the launch grid, arguments and constants.

A plan is a function of the tensors' layouts and of what is computed, and of nothing else: a call
that repeats a layout finds its plan again, and the static kernel report compiles exactly what runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
import triton.language as tl

from triton_stn.backends.arguments import (
    Sampling,
    canvas_of,
    fill_of,
    finish_of,
    image_of,
    numbers_of,
    problem_of,
    rules_of,
    scale_of,
    sum_dtype,
    theta_of,
    tl_dtype,
)
from triton_stn.backends.launch import INT32_MAX, Launches, Plan
from triton_stn.backends.layout import Layout, layout
from triton_stn.kernels import configs
from triton_stn.kernels.arguments import Buffer, InputSums, Rules, Sums
from triton_stn.kernels.coordinates import FIELDS, SUMS
from triton_stn.kernels.forward import forward
from triton_stn.kernels.gather.one import gather
from triton_stn.kernels.gather.several import gather_maps
from triton_stn.kernels.grad_theta import grad_theta
from triton_stn.kernels.reduce import reduce
from triton_stn.kernels.scatter import scatter
from triton_stn.kernels.settle import settle
from triton_stn.kernels.spline import spline_gradient
from triton_stn.kernels.sums import FIXED_BITS, largest

# Of outputs so many times as large as the input grad_theta has a launch of its own.
OUTPUT_ALONE = 4


class Wanted(NamedTuple):
    """Which gradients, and whether they have to have the same bits every time."""

    grad_input: bool
    grad_theta: bool
    deterministic: bool = False


@dataclass(frozen=True)
class Backward:
    """The launches of a backward, and what they write to."""

    launches: Launches
    dtype: torch.dtype  # of sums
    into: str  # where it is added up, see `kernels/sums.py`
    partial: int = 0  # partial sums; none where P is grad_theta
    # Of a spline, after those: from the gradient of each pixel's coordinates to that of so many
    # coefficients' partial sums, and to theirs.
    coefficients: int = 0
    of_spline: Launches | None = None

    @cached_property
    def plans(self) -> tuple[Plan, ...]:
        return self.launches.plans + (self.of_spline.plans if self.of_spline else ())

    @cached_property
    def gathers(self) -> bool:
        """Or grad_input is added up from zeros."""
        return any(plan.kernel in (gather, gather_maps) for plan in self.plans)

    @cached_property
    def writes_all(self) -> bool:
        """Of grad_input, which else is to be zeros before."""
        return self.gathers or self.into != "dX"

    @cached_property
    def adds_floats(self) -> bool:
        """By atomics, in any order."""
        return self.into != "fixed" and any(plan.kernel is scatter for plan in self.plans)


def sums_of(ndim: int, source: str) -> int:
    """Sums over the pixels that make up grad_theta; 0 where it is made from a field."""
    return SUMS.get((source, ndim), 0)


def leaves_rest(sampling: Sampling) -> bool:
    """Whether a scatter follows the gather (`kernels/gather/rest.py`)."""
    folds = sampling.padding_mode != "zeros"
    return sampling.gathers and (folds or sampling.source == "projective")


def added_into(dtype: torch.dtype, sampling: Sampling, wanted: Wanted) -> str:
    """Where grad_input is added up, see `kernels/sums.py`."""
    if not wanted.grad_input or (sampling.gathers and not leaves_rest(sampling)):
        return "dX"
    if wanted.deterministic and dtype != torch.float64:
        return "fixed"
    return "float" if dtype.itemsize == 2 else "dX"


def slots_of(kernel, config: configs.Config, maps: int) -> int:
    """Partial sums of a map, of a launch that makes some."""
    programs = config.programs
    return config.splits * (programs // maps if kernel is gather_maps else programs)


@lru_cache(maxsize=4096)
def plan_forward(input: Layout, theta: Layout, output: Layout, sampling: Sampling) -> Launches:
    """X (N, C, *), THETA (N, K, *) -> Y (N, K, C, *)."""
    n, k, c, *size = output.shape
    ndim = len(size)
    problem = problem_of(n * k, c, size, input, output)
    config = configs.forward(problem)
    rules = rules_of(input, sampling, input, output, theta)
    plan = _plan(
        forward,
        config,
        dict(X=image_of(input, ndim), THETA=theta_of(theta, sampling), Y=image_of(output, ndim)),
        numbers_of(input, output, sampling, config),
        replace(rules, several=k > 1),
        sampling,
    )
    return Launches((plan,))


@lru_cache(maxsize=4096)
def plan_backward(
    grad_output: Layout,
    input: Layout,
    theta: Layout,
    sampling: Sampling,
    wanted: Wanted,
) -> Backward:
    """X, THETA, dY (N, K, C, *) -> dX, where it is wanted, and dTHETA, by way of P."""
    k, ndim = grad_output.shape[1], len(input.shape) - 2
    rest = leaves_rest(sampling)
    into = added_into(input.dtype, sampling, wanted)
    gathers = wanted.grad_input and sampling.gathers
    scatters = wanted.grad_input and (rest or not sampling.gathers)
    sums = sums_of(ndim, sampling.source)
    call = _BackwardCall(grad_output, input, theta, sampling, sums, into)
    apart = wanted.grad_theta and (call.sums_apart() if gathers else not scatters)
    joint = wanted.grad_theta and not apart
    launches = []  # (kernel, configuration, the rules that differ)
    of_input = dict(rest=rest, into=into)
    # Whatever is sampled, and how: one kernel.
    of_any = dict(into=into, source="affine", mode="bilinear", padding="zeros")
    if into == "fixed":
        launches.append((largest, call.over(grad_output), of_any))
    if gathers:
        windows = joint and k == 1 and sampling.fill is None
        of_gather = dict(of_input, joint=windows)
        launches.append((gather if k == 1 else gather_maps, call.over_input(apart), of_gather))
    if scatters:
        config = call.over_output(scatters=True, rest=rest)
        launches.append((scatter, config, dict(of_input, scatters=True)))
    if into != "dX":
        config = replace(call.over(input), maxnreg=configs.REST_REGISTERS)
        launches.append((settle, config, of_input if rest else of_any))
    if apart:
        launches.append((grad_theta, call.over_output(scatters=False, rest=False), {}))
    plans, first = [], 0
    summing = (gather, gather_maps, scatter, grad_theta) if joint else (grad_theta,)
    slots = sum(slots_of(kernel, config, k) for kernel, config, _ in launches if kernel in summing)
    for kernel, config, differing in launches:
        if kernel in summing:
            differing = dict(differing, needs_theta=True, sums=sums)
            splits = config.splits
        plans.append(call.plan(kernel, config, differing, slots, first))
        first += slots_of(kernel, config, k) if kernel in summing else 0
    if not wanted.grad_theta:
        return Backward(Launches(tuple(plans)), sum_dtype(input.dtype), into)
    return call.reduced(tuple(plans), slots, splits)


@dataclass(frozen=True)
class _BackwardCall:
    """What the launches of one backward have in common."""

    grad_output: Layout
    input: Layout
    theta: Layout
    sampling: Sampling
    sums: int
    into: str

    @cached_property
    def grad_input(self) -> Layout:
        return layout(torch.empty_like(_meta(self.input)))

    def sums_apart(self) -> bool:
        """Whether grad_theta has a launch of its own, where grad_input is gathered.

        Of a small input there are few programs to share a large output. Of several maps each
        program has a set-up and a reduction for one of them, which fewer programs of a launch of
        its own share among more tiles, where the machine is full.
        """
        k, pixels = self.grad_output.shape[1], math.prod(self.input.shape[2:])
        if k * math.prod(self.grad_output.shape[3:]) > OUTPUT_ALONE * pixels:
            return True
        return k > 1 and (configs.is_large(self.problem) or k > self.over_input(False).programs)

    @cached_property
    def problem(self) -> configs.Problem:
        """Of the input."""
        n, c, *size = self.input.shape
        return problem_of(n, c, size, self.input, self.grad_output, self.grad_input)

    def over(self, image: Layout) -> configs.Config:
        """Of what moves every number of an image once."""
        c, *size = image.shape[-len(self.input.shape) + 1 :]
        images = math.prod(image.shape[: -len(size) - 1])
        others = (image,) if image is self.grad_output else (self.grad_input,)
        return configs.forward(problem_of(images, c, size, self.input, *others))

    def over_input(self, apart: bool) -> configs.Config:
        one_theta = self.grad_output.shape[1] == 1
        folds = self.sampling.padding_mode != "zeros"
        return configs.gather(self.problem, one_theta, self.input.dtype.itemsize, folds, apart)

    def over_output(self, scatters: bool, rest: bool) -> configs.Config:
        n, k, c, *size = self.grad_output.shape
        others = (self.grad_output, self.grad_input) if scatters else (self.grad_output,)
        problem = problem_of(n * k, c, size, self.input, *others)
        return configs.output_side(problem, scatters, rest)

    def plan(self, kernel, config: configs.Config, rules: dict, slots: int, first: int) -> Plan:
        ndim = len(self.input.shape) - 2
        images = [self.input, self.grad_output]
        tensors = dict(
            X=image_of(self.input, ndim),
            THETA=theta_of(self.theta, self.sampling),
            dY=image_of(self.grad_output, ndim),
            P=Buffer(sum_dtype(self.input.dtype)),
        )
        if kernel is not grad_theta:
            tensors |= dict(dX=image_of(self.grad_input, ndim), SUMS=self.input_sums())
            images.append(self.grad_input)
        several = self.grad_output.shape[1] > 1 and kernel not in (gather_maps, settle)
        of_call = rules_of(self.input, self.sampling, *images, self.theta)
        numbers = numbers_of(self.input, self.grad_output, self.sampling, config, slots, first)
        rules = replace(of_call, several=several, **rules)
        return _plan(kernel, config, tensors, numbers, rules, self.sampling)

    def reduced(self, plans: tuple[Plan, ...], slots: int, splits: int) -> Backward:
        """The launches, and those that make grad_theta of the partial sums."""
        n, k, _, *size = self.grad_output.shape
        dtype = sum_dtype(self.input.dtype)
        source, ndim = self.sampling.source, len(size)
        if self.sums:
            wide = 6 * configs.cdiv(self.sums, 6)
            affine = ndim if source == "affine" else 0
            plan = self.plan_reduce(slots, (slots * wide, 1, slots), self.sums, affine)
            return Backward(Launches((*plans, plan)), dtype, self.into, n * k * slots * wide)
        numbers = math.prod(size) * ndim * FIELDS.get(source, 1)
        field = n * k * splits * numbers
        if source == "spline":
            t = self.theta.shape[2]
            of_spline = self.plan_spline(splits)
            chunks = of_spline.grid[1]
            plan = self.plan_reduce(chunks, (chunks * 4 * t, 4 * t, 1), 4 * t, 0)
            sums, then = n * k * chunks * t * 4, Launches((of_spline, plan))
            return Backward(Launches(plans), dtype, self.into, field, sums, then)
        if splits == 1 and self.theta.dtype == dtype:
            return Backward(Launches(plans), dtype, self.into)  # P is grad_theta itself
        plan = self.plan_reduce(splits, (splits * numbers, numbers, 1), numbers, 0)
        return Backward(Launches((*plans, plan)), dtype, self.into, field)

    def input_sums(self) -> InputSums:
        k = self.grad_output.shape[1]
        pixels = math.prod(self.grad_output.shape[3:])
        dtype = torch.int64 if self.into == "fixed" else sum_dtype(self.input.dtype)
        # An output pixel's weights, of bicubic too, add up to less than 2; of tricubic to 2.6.
        most = 2 if len(self.input.shape) == 4 else 4
        room = FIXED_BITS - (most * k * pixels).bit_length()
        return InputSums(dtype, math.prod(self.input.shape), room)

    def plan_reduce(
        self, slots: int, strides: tuple[int, int, int], columns: int, affine: int
    ) -> Plan:
        """``strides``: of P, of a map, a slot and a column."""
        n, k = self.grad_output.shape[:2]
        rows, block, warps = configs.reduce(slots, columns)
        scale = scale_of(self.input, self.grad_output.shape[3:], self.sampling.align_corners)
        dtype = tl_dtype(self.input.dtype)
        index = tl.int32 if columns + block <= INT32_MAX else tl.int64
        return Plan(
            kernel=reduce,
            grid=(n * k, configs.cdiv(columns, block), 1),
            arguments=dict(
                P=Buffer(sum_dtype(self.input.dtype)),
                dTHETA=Buffer(self.theta.dtype),
                slots=slots,
                stride_n=strides[0],
                stride_slot=strides[1],
                stride_column=strides[2],
                columns=columns,
                SCALE=scale,
            ),
            constants=dict(SUMS=Sums(rows, block, affine, dtype, index)),
            num_warps=warps,
        )

    def plan_spline(self, splits: int) -> Plan:
        n, k, _, *size = self.grad_output.shape
        pixels = size[0] * size[1]
        grid, block_p, block_t = configs.spline_gradient(n * k, pixels, self.theta.shape[2])
        index = tl.int32 if pixels + block_p <= INT32_MAX else tl.int64
        rules = replace(rules_of(self.input, self.sampling, self.input), index=index)
        buffer = Buffer(sum_dtype(self.input.dtype))
        return Plan(
            kernel=spline_gradient,
            grid=grid,
            arguments=dict(
                THETA=theta_of(self.theta, self.sampling),
                dG=buffer,
                P=buffer,
                maps=k,
                splits=splits,
                CANVAS=canvas_of(size),
                SCALE=scale_of(self.input, size, self.sampling.align_corners),
            ),
            constants=dict(BLOCK_P=block_p, BLOCK_T=block_t, RULES=rules),
            num_warps=configs.WARPS,
        )


def _plan(
    kernel, config: configs.Config, tensors: dict, numbers: dict, rules: Rules, sampling: Sampling
) -> Plan:
    arguments = {**tensors, **numbers}
    constants = dict(RULES=rules, TILING=config.tiling)
    if "FILL" in kernel.arg_names:
        # What lies outside has a part in the output and in grad_theta, and none in grad_input.
        filled = sampling.fill is not None and (kernel is forward or rules.needs_theta)
        finish = finish_of(sampling) if "FINISH" in kernel.arg_names else None
        finishes = finish is not None
        # A launch's tensors come first: beside a finish, a fill has a place whether it is or not.
        fill = fill_of(sampling, arguments["X"].ptr) if filled or finishes else None
        for name, value in ("FILL", fill), ("FINISH", finish):
            if value is not None:
                arguments[name] = value
            elif name in kernel.arg_names:
                constants[name] = None
        kind = "channels" if isinstance(sampling.fill, tuple) else "number"
        constants["RULES"] = replace(rules, fill=kind if filled else "", finishes=finishes)
    return Plan(
        kernel=kernel,
        grid=config.grid,
        arguments={name: arguments[name] for name in kernel.arg_names if name in arguments},
        constants=constants,
        num_warps=config.num_warps,
        maxnreg=config.maxnreg,
        align=config.tiling.align,
    )


def _meta(image: Layout) -> torch.Tensor:
    return torch.empty_strided(image.shape, image.strides, dtype=image.dtype, device="meta")
