"""Partial sums of the voxel map's gradient -> the gradient of theta, added in a fixed order."""

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import scalar


@triton.jit
def volume_reduce(
    P_ptr,  # (N·K, slots, 12)
    dTheta_ptr,  # (N·K, 3, 4), contiguous
    slots,
    ratio_xx,
    ratio_xy,
    ratio_xz,
    ratio_yx,
    ratio_yy,
    ratio_yz,
    ratio_zx,
    ratio_zy,
    ratio_zz,
    half_w,
    half_h,
    half_d,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """dTheta[nk] = sum over slots of P[nk, slot], times what takes theta to voxels.

    Launch grid: (N·K,).
    """
    nk = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, 16)[None, :]  # twelve are used
    rows = tl.arange(0, BLOCK)[:, None]
    P_ptrs = P_ptr + nk * slots * 12 + rows * 12 + column
    total = tl.zeros([BLOCK, 16], DTYPE)
    for start in range(0, slots, BLOCK):
        total += tl.load(P_ptrs, mask=(rows < slots - start) & (column < 12), other=0.0)
        P_ptrs += BLOCK * 12
    ratios = (
        ratio_xx, ratio_xy, ratio_xz, ratio_yx, ratio_yy, ratio_yz, ratio_zx, ratio_zy, ratio_zz,
    )  # fmt: skip
    halves = (half_w, half_h, half_d)
    factor = tl.zeros([1, 16], DTYPE)
    for row in tl.static_range(3):
        for n in tl.static_range(3):
            factor = tl.where(column == 4 * row + n, scalar(ratios[3 * row + n], DTYPE), factor)
        factor = tl.where(column == 4 * row + 3, halves[row], factor)
    grad = tl.sum(total, 0, keep_dims=True) * factor  # [1, 16]
    tl.store(dTheta_ptr + nk * 12 + column, grad.to(dTheta_ptr.dtype.element_ty), mask=column < 12)
