"""What becomes of a sampled value before it is stored, and of its gradient where that is read.

    y = cast(gain_c · S(x) + bias_c)        dS(x) = gain_c · dy

The weights of a sample and of what lies outside add up to one, so this commutes with sampling.
"""

import triton
import triton.language as tl

from triton_stn.kernels.arguments import Finish
from triton_stn.kernels.taps import round_half_even


@triton.jit
def finish_of(FINISH, part, RULES: tl.constexpr):
    """The `Finish` of a share, from its first channel on; or ()."""
    finish = ()
    if RULES.finishes:
        ptr = FINISH.ptr + part.first * FINISH.stride_c
        finish = Finish(ptr, FINISH.stride_c, FINISH.stride_bias)
    return finish


@triton.jit
def store(ptrs, value, mask, FINISH, channels, here, RULES: tl.constexpr):
    """Finish the values of a tile and store them. ``here``: the channels that there are."""
    if RULES.finishes:
        gain = tl.load(FINISH.ptr + channels * FINISH.stride_c, mask=here, other=0.0)
        biases = FINISH.ptr + FINISH.stride_bias
        bias = tl.load(biases + channels * FINISH.stride_c, mask=here, other=0.0)
        value = tl.fma(value, gain.to(RULES.dtype), bias.to(RULES.dtype))
    tl.store(ptrs, cast(value, ptrs.dtype.element_ty), mask=mask)


@triton.jit
def cast(value, DTYPE: tl.constexpr):
    """In the dtype of the output: to uint8 the nearest of 0 to 255, halves to even, a NaN to 0."""
    if DTYPE == tl.uint8:
        value = tl.where(value > 0, value, 0.0)  # a comparison: min and max treat a NaN as they may
        value = tl.where(value < 255, value, 255.0)
        # A selected value is no product, which adding to it could be contracted with.
        value = round_half_even(value).to(tl.int32)
    return value.to(DTYPE)


@triton.jit
def sampled_gradient(g, FINISH, channels, here, RULES: tl.constexpr):
    """The gradient of sampled values, from that of the finished ones."""
    if RULES.finishes:
        gain = tl.load(FINISH.ptr + channels * FINISH.stride_c, mask=here, other=0.0)
        g = g * gain.to(RULES.dtype)
    return g
