"""The gradient of the input by scattering, where no window can be bounded.

Each output pixel adds dY · wx · wy to its taps with float atomics, whose order is not fixed: for
the padding modes that fold the plane onto the image's edge, for fields, splines, bicubic and
antialiased sampling; and, after a gather, for each theta that has no bounded window. The same loads
give grad_theta where it is wanted. See `output_side.py`.
Launch grid: see `tiles.py`, of the output.
"""

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import source_map
from triton_stn.kernels.gather.perspective import inverse_homography
from triton_stn.kernels.gather.volume import inverse_3d
from triton_stn.kernels.output_side import Job, backward_program
from triton_stn.kernels.tiles import of_share, share


@triton.jit
def scatter(
    X,  # (N, C, [D,] H, W)
    THETA,  # (N, K, *), see `coordinates.source`
    dY,  # (N, K, C, [D_out,] H_out, W_out)
    dX,  # (N, C, [D,] H, W), in the dtype of the sums; what it holds is added to
    P,  # as of `grad_theta`
    WORK,
    CANVAS,
    FRAME,
    SCALE,
    RULES: tl.constexpr,
    TILING: tl.constexpr,
):
    part = share(WORK, RULES, TILING)
    pixel_map = source_map(THETA, part.n, part.k, FRAME, SCALE, RULES)
    tiles = WORK.tiles
    if RULES.rest:
        if RULES.ndim == 2:
            gathered = inverse_homography(pixel_map, CANVAS, RULES).gathered
        else:
            gathered = inverse_3d(pixel_map, CANVAS, RULES).gathered
        tiles = tl.where(gathered, 0, tiles)
    job = Job(part, pixel_map, THETA, WORK, CANVAS, FRAME, SCALE)
    dX = of_share(dX, part)
    backward_program(of_share(X, part), of_share(dY, part), dX, P, job, tiles, RULES, TILING)
