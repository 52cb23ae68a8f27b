"""What comes from L2: 32-byte sectors that a program of a compiled kernel loads, each once.

A program's own stay in L1, of few channels; that they are shared with no other's is the worst case.
"""

from __future__ import annotations

import math

import pytest
import torch
from ptxrun import launches

import triton_stn

pytestmark = pytest.mark.compiled
IMAGES, SIDE = 16, 256  # enough for 8 tiles a program, and as many programs as run at once
HALF = torch.bfloat16
# (dtype, degrees) -> numbers fetched of X by forward, of X and of dY by the gather, a pixel and
# channel, at most. With rotation the gather reads dY twice: in its windows, and for grad_theta.
MOST = {
    (torch.float32, 0): (1.2, 1.05, 1.15),
    (torch.float32, 30): (1.25, 1.2, 2.05),
    (torch.float32, 45): (1.3, 1.25, 2.15),
    (torch.float32, 90): (1.55, 1.05, 1.5),
    (HALF, 0): (1.3, 1.1, 1.25),
    (HALF, 30): (1.55, 1.5, 2.35),
    (HALF, 45): (1.65, 1.6, 2.55),
    (HALF, 90): (2.0, 1.1, 2.0),
}
QUICK = [(torch.float32, 45), (HALF, 0)]


def shifted_by_parts_of_a_pixel(degrees: float) -> torch.Tensor:
    c, s = (round(f(math.radians(degrees)), 12) for f in (math.cos, math.sin))
    return torch.tensor([[c, -s, 0.3 * 2 / SIDE], [s, c, 0.4 * 2 / SIDE]])


@pytest.mark.parametrize("channels", [1, pytest.param(3, marks=pytest.mark.landing)])
@pytest.mark.parametrize(
    ("dtype", "degrees"),
    [case if case in QUICK else pytest.param(*case, marks=pytest.mark.landing) for case in MOST],
)
def test_neighbouring_tiles_share_their_sectors(dtype, degrees, channels):
    x = torch.rand(IMAGES, channels, SIDE, SIDE).to(dtype).requires_grad_()
    theta = shifted_by_parts_of_a_pixel(degrees).repeat(IMAGES, 1, 1).requires_grad_()
    with launches.recorded() as launched:
        y = triton_stn.spatial_transform(x, theta)
        y.backward(torch.ones_like(y))
    forward, gather, _ = launched
    assert (forward.kernel, gather.kernel) == ("forward", "gather")
    fetched = (forward.sectors("X"), gather.sectors("X"), gather.sectors("dY"))
    numbers = [count * 32 / x.element_size() / x.numel() for count in fetched]
    assert all(1 <= n <= most for n, most in zip(numbers, MOST[dtype, degrees], strict=True))
