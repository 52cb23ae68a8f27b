"""The gradient of a thin-plate spline's coefficients from that of each pixel's coordinates.

    dW[nk, t] = sum over p of dG[nk, p] · U_t(p)        U_t = 1, X, Y for the last three

The basis is computed again for each block of pixels × coefficients: no matrix of them is stored.
"""

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import number, spline_basis, theta_of


@triton.jit
def spline_gradient(
    THETA,  # (N, K, T + 3, 4), contiguous past K; columns 2 and 3 are the control points
    dG,  # (N, K, splits, H_out·W_out, 2): the gradient of each pixel's coordinates
    P,  # (N·K, chunks, T + 3, 4): partial sums, of the coefficients; of the points zeros
    maps,
    splits,
    CANVAS,
    SCALE,
    BLOCK_P: tl.constexpr,
    BLOCK_T: tl.constexpr,
    RULES: tl.constexpr,
):
    """Launch grid: (N·K, chunks of the pixels, blocks of coefficients)."""
    nk = tl.program_id(0).to(tl.int64)
    n = nk // maps
    ptr = theta_of(THETA, n, nk - n * maps)
    T = THETA.points
    t = tl.program_id(2) * BLOCK_T + tl.arange(0, BLOCK_T)[None, :]
    c_x = tl.load(ptr + 4 * t + 2, mask=t < T, other=0.0).to(RULES.dtype)
    c_y = tl.load(ptr + 4 * t + 3, mask=t < T, other=0.0).to(RULES.dtype)
    unit_w = number(SCALE.unit_w, RULES)
    unit_h = number(SCALE.unit_h, RULES)
    pixels = CANVAS.height.to(RULES.index) * CANVAS.width
    per_chunk = tl.cdiv(pixels, tl.num_programs(1))
    first = tl.program_id(1) * per_chunk
    end = tl.minimum(first + per_chunk, pixels)
    sum_x = tl.zeros([BLOCK_P, BLOCK_T], RULES.dtype)
    sum_y = tl.zeros([BLOCK_P, BLOCK_T], RULES.dtype)
    for split in range(splits):
        G_ptr = dG.ptr + (nk * splits + split) * pixels.to(tl.int64) * 2
        for start in range(first, end, BLOCK_P):
            p = start + tl.arange(0, BLOCK_P)[:, None]
            X = ((p % CANVAS.width).to(RULES.dtype) - CANVAS.centre_w) * unit_w
            Y = ((p // CANVAS.width).to(RULES.dtype) - CANVAS.centre_h) * unit_h
            basis = spline_basis(X, Y, c_x, c_y)
            basis = tl.where(t < T, basis, 1.0)
            basis = tl.where(t == T + 1, X, basis)
            basis = tl.where(t == T + 2, Y, basis)
            G_ptrs = G_ptr + p.to(tl.int64) * 2
            g_x = tl.load(G_ptrs, mask=p < end, other=0.0)
            g_y = tl.load(G_ptrs + 1, mask=p < end, other=0.0)
            sum_x = tl.fma(basis, g_x, sum_x)
            sum_y = tl.fma(basis, g_y, sum_y)
    row = (nk * tl.num_programs(1) + tl.program_id(1)) * (T + 3)
    ptrs = P.ptr + (row + t) * 4
    zero = tl.zeros([1, BLOCK_T], RULES.dtype)
    tl.store(ptrs, tl.sum(sum_x, 0, keep_dims=True), mask=t < T + 3)
    tl.store(ptrs + 1, tl.sum(sum_y, 0, keep_dims=True), mask=t < T + 3)
    tl.store(ptrs + 2, zero, mask=t < T + 3)
    tl.store(ptrs + 3, zero, mask=t < T + 3)
