"""Partial sums -> grad_theta, added in a fixed order.

    dTheta[nk, column] = scale[column] · sum over slots of P[nk, slot, column]

One kernel for every source: six, nine or twelve sums of a matrix, the coefficients of a spline, the
numbers of a field. Launch grid: (N·K, blocks of columns).
"""

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import number


@triton.jit
def affine_factor(column, SCALE, SUMS: tl.constexpr):
    """What takes the gradient of the map in pixels to that of theta."""
    if SUMS.affine == 2:
        factors = (
            SCALE.ratio_xx, SCALE.ratio_xy, SCALE.half_w,
            SCALE.ratio_yx, SCALE.ratio_yy, SCALE.half_h,
        )  # fmt: skip
    else:
        factors = (
            SCALE.ratio_xx, SCALE.ratio_xy, SCALE.ratio_xz, SCALE.half_w,
            SCALE.ratio_yx, SCALE.ratio_yy, SCALE.ratio_yz, SCALE.half_h,
            SCALE.ratio_zx, SCALE.ratio_zy, SCALE.ratio_zz, SCALE.half_d,
        )  # fmt: skip
    factor = tl.zeros(column.shape, SUMS.dtype)
    for n in tl.static_range(len(factors)):
        factor = tl.where(column == n, number(factors[n], SUMS), factor)
    return factor


@triton.jit
def reduce(
    P,  # (N·K, slots, columns and more), with these strides
    dTHETA,  # (N·K, columns)
    slots,
    stride_n,
    stride_slot,
    stride_column,
    columns,
    SCALE,
    SUMS: tl.constexpr,
):
    nk = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1).to(SUMS.index) * SUMS.columns
    column = first + tl.arange(0, SUMS.columns)[None, :]
    row = tl.arange(0, SUMS.rows)[:, None]
    ptrs = P.ptr + nk * stride_n + row.to(tl.int64) * stride_slot + column * stride_column
    ROWS: tl.constexpr = SUMS.rows
    COLUMNS: tl.constexpr = SUMS.columns
    total = tl.zeros([ROWS, COLUMNS], SUMS.dtype)
    for start in range(0, slots, SUMS.rows):
        total += tl.load(ptrs, mask=(row < slots - start) & (column < columns), other=0.0)
        ptrs += SUMS.rows * stride_slot
    grad = tl.sum(total, 0, keep_dims=True)  # [1, columns]
    if SUMS.affine > 0:
        grad *= affine_factor(column, SCALE, SUMS)
    if dTHETA.ptr.dtype.element_ty == tl.bfloat16:
        grad = grad.to(tl.float32)  # the interpreter takes no float64 to bfloat16
    out = grad.to(dTHETA.ptr.dtype.element_ty)
    tl.store(dTHETA.ptr + nk * columns + column, out, mask=column < columns)
