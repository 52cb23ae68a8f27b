"""The gradient of a thin-plate spline's coefficients from that of each pixel's coordinates.

    dW[nk, t] = sum over p of dG[nk, p] · U_t(p)        U_t = 1, X, Y for the last three

The basis is computed again for each block of pixels × coefficients: no matrix of them is stored.
"""

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import centred, scalar, spline_basis


@triton.jit
def spline_gradient(
    Theta_ptr,  # (N, K, T + 3, 4), contiguous past K; columns 2 and 3 are the control points
    dG_ptr,  # (N·K, H_out·W_out, 2), contiguous
    P_ptr,  # (N·K, CHUNKS, T + 3, 2): partial sums
    K,
    T,
    H_out,
    W_out,
    stride_tn,
    stride_tk,
    unit_w,
    unit_h,
    centre_w,
    centre_h,
    CHUNKS: tl.constexpr,  # programs that share the pixels
    BLOCK_P: tl.constexpr,
    BLOCK_T: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Launch grid: (N·K, CHUNKS, blocks of coefficients)."""
    nk = tl.program_id(0)
    n = nk // K
    Theta_ptr += n.to(tl.int64) * stride_tn + (nk - n * K).to(tl.int64) * stride_tk
    t = tl.program_id(2) * BLOCK_T + tl.arange(0, BLOCK_T)[None, :]
    c_x = tl.load(Theta_ptr + 4 * t + 2, mask=t < T, other=0.0).to(DTYPE)
    c_y = tl.load(Theta_ptr + 4 * t + 3, mask=t < T, other=0.0).to(DTYPE)
    pixels = H_out * W_out
    per_chunk = tl.cdiv(pixels, CHUNKS)
    first = tl.program_id(1) * per_chunk
    dG_ptr += nk.to(tl.int64) * pixels * 2
    sum_x = tl.zeros([BLOCK_P, BLOCK_T], DTYPE)
    sum_y = tl.zeros([BLOCK_P, BLOCK_T], DTYPE)
    for start in range(first, first + per_chunk, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)[:, None]
        mask = p < tl.minimum(first + per_chunk, pixels)
        X = centred(p % W_out, centre_w, DTYPE) * scalar(unit_w, DTYPE)
        Y = centred(p // W_out, centre_h, DTYPE) * scalar(unit_h, DTYPE)
        basis = spline_basis(X, Y, c_x, c_y)
        basis = tl.where(t < T, basis, 1.0)
        basis = tl.where(t == T + 1, X, basis)
        basis = tl.where(t == T + 2, Y, basis)
        G_ptrs = dG_ptr + p.to(tl.int64) * 2
        sum_x = tl.fma(basis, tl.load(G_ptrs, mask=mask, other=0.0), sum_x)
        sum_y = tl.fma(basis, tl.load(G_ptrs + 1, mask=mask, other=0.0), sum_y)
    row = (nk.to(tl.int64) * CHUNKS + tl.program_id(1)) * (T + 3)
    P_ptrs = P_ptr + (row + t) * 2
    tl.store(P_ptrs, tl.sum(sum_x, 0, keep_dims=True), mask=t < T + 3)
    tl.store(P_ptrs + 1, tl.sum(sum_y, 0, keep_dims=True), mask=t < T + 3)
