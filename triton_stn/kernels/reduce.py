"""Partial sums of the pixel map's gradient -> the gradient of theta, added in a fixed order."""

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import scalar


@triton.jit
def reduce(
    P_ptr,  # (N·K, slots, 6)
    dTheta_ptr,  # (N·K, 2, 3), contiguous
    slots,
    ratio_xx,
    ratio_xy,
    ratio_yx,
    ratio_yy,
    half_w,
    half_h,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """dTheta[nk] = sum over slots of P[nk, slot], times what takes theta to pixels.

    Launch grid: (N·K,).
    """
    nk = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, 8)[None, :]  # six are used
    rows = tl.arange(0, BLOCK)[:, None]
    P_ptrs = P_ptr + nk * slots * 6 + rows * 6 + column
    total = tl.zeros([BLOCK, 8], DTYPE)
    for start in range(0, slots, BLOCK):
        total += tl.load(P_ptrs, mask=(rows < slots - start) & (column < 6), other=0.0)
        P_ptrs += BLOCK * 6
    factor = tl.where(column == 0, scalar(ratio_xx, DTYPE), half_h)
    factor = tl.where(column == 1, scalar(ratio_xy, DTYPE), factor)
    factor = tl.where(column == 2, half_w, factor)
    factor = tl.where(column == 3, scalar(ratio_yx, DTYPE), factor)
    factor = tl.where(column == 4, scalar(ratio_yy, DTYPE), factor)
    grad = tl.sum(total, 0, keep_dims=True) * factor  # [1, 8]
    tl.store(dTheta_ptr + nk * 6 + column, grad.to(dTheta_ptr.dtype.element_ty), mask=column < 6)
