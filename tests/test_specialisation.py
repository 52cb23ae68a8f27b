"""How many kernels a program compiles: sizes and batches make none of their own."""

from __future__ import annotations

import math
import random

import pytest
import torch
import triton.language as tl

from triton_stn.backends.launch import Plan, specialisation
from triton_stn.backends.layout import Layout
from triton_stn.backends.plans import Sampling, Wanted, plan_backward, plan_forward

DENSE, LAST = "contiguous", "channels_last"


def dense(shape, order=DENSE, dtype=torch.float32) -> Layout:
    """Of (N, C, H, W), (N, K, C, H, W) or (N, C, D, H, W)."""
    strides, stride = [0] * len(shape), 1
    axes = list(range(len(shape)))
    if order == LAST:
        axes.append(axes.pop(-3))
    for axis in reversed(axes):
        strides[axis], stride = stride, stride * shape[axis]
    return Layout(tuple(shape), tuple(strides), dtype)


def plans(n, c, size, output_size, k=1, order=DENSE, **sampling) -> list[tuple[str, Plan]]:
    """(class, plan) of every launch of a call and its backwards."""
    sampling = Sampling(
        **(dict(mode="bilinear", padding_mode="zeros", align_corners=False) | sampling)
    )
    ndim = len(size)
    shapes = {"affine": (ndim, ndim + 1), "projective": (3, 3), "grid": (*output_size, ndim)}
    numbers = shapes[sampling.source]
    image, theta = dense((n, c, *size), order), dense((n, k, *numbers))
    output = dense((n, k, c, *output_size), order)
    found = [("forward", *plan_forward(image, theta, output, sampling).plans)]
    for wanted in (Wanted(True, True), Wanted(True, False), Wanted(False, True)):
        backward = plan_backward(output, image, theta, sampling, wanted)
        found += [(f"{plan.kernel.__name__} of {wanted}", plan) for plan in backward.plans]
    return found


def kernels(calls) -> dict[str, set[str]]:
    """The different kernels of each class of launches."""
    found: dict[str, set[str]] = {}
    for call in calls:
        for name, plan in call:
            key = (plan.kernel.__name__, *specialisation(plan, True), plan.maxnreg)
            found.setdefault(name, set()).add(repr(key))
    return found


def assert_few(calls, most=2):
    counted = {name: len(different) for name, different in kernels(calls).items()}
    assert len(counted) >= 4  # it did count
    assert max(counted.values()) <= most, counted


SAMPLINGS = [
    dict(),
    dict(padding_mode="border"),
    dict(source="projective"),
    dict(source="grid"),
    dict(mode="bicubic", align_corners=True),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("k", [1, 4])
def test_two_hundred_image_sizes_make_at_most_two_kernels_a_launch(sampling, k):
    numbers = random.Random(0)
    sizes = [[numbers.randint(3, 1100) for _ in range(4)] for _ in range(200)]
    assert_few(plans(8, 3, s[:2], s[2:], k, **sampling) for s in sizes)


@pytest.mark.parametrize("c, order", [(1, DENSE), (3, DENSE), (3, LAST), (64, DENSE), (64, LAST)])
def test_thirty_two_batch_sizes_make_at_most_two_kernels_a_launch(c, order):
    for k in (1, 4):
        assert_few(plans(n, c, (56, 60), (64, 48), k, order) for n in range(1, 33))


def test_sizes_of_channels_last_images_make_at_most_two_kernels_a_launch():
    numbers = random.Random(1)
    sizes = [[numbers.randint(3, 300) for _ in range(4)] for _ in range(200)]
    assert_few(plans(8, 64, s[:2], s[2:], order=LAST) for s in sizes)


@pytest.mark.parametrize("source", ["affine", "grid"])
@pytest.mark.parametrize("k", [1, 2])
def test_sizes_and_batches_of_volumes_make_at_most_two_kernels_a_launch(k, source):
    numbers = random.Random(2)
    volumes = [[numbers.randint(2, 70) for _ in range(6)] for _ in range(200)]
    assert_few(plans(1 + i % 32, 3, v[:3], v[3:], k, source=source) for i, v in enumerate(volumes))


def test_the_field_of_a_large_volume_is_no_more_blocks_than_a_launch_may_have():
    """A half-precision field has a float32 gradient, which `reduce` rounds."""
    for size in ((2049, 2048), (192, 192, 192), (512, 512, 512)):
        ndim = len(size)
        image = dense((1, 1, *size), dtype=torch.float16)
        theta = dense((1, 1, *size, ndim), dtype=torch.float16)
        sampling = Sampling("bilinear", "zeros", False, "grid")
        output = dense((1, 1, 1, *size), dtype=torch.float16)
        *_, last = plan_backward(output, image, theta, sampling, Wanted(False, True)).plans
        sums = last.constants["SUMS"]
        assert last.kernel.__name__ == "reduce" and last.grid[1] <= 65535
        assert sums.columns * last.grid[1] >= ndim * math.prod(size)
        assert sums.rows * sums.columns <= 8192  # numbers of a program


def test_a_field_of_more_numbers_than_an_int32_has_is_counted_in_int64():
    for side, index in ((30_000, tl.int32), (33_000, tl.int64)):
        image, theta = dense((1, 1, 8, 8)), dense((1, 1, side, side, 2), dtype=torch.float16)
        sampling = Sampling("bilinear", "zeros", False, "grid")
        wanted = Wanted(False, True)
        *_, last = plan_backward(dense((1, 1, 1, side, side)), image, theta, sampling, wanted).plans
        assert last.constants["SUMS"].index == index
