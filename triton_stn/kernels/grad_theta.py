"""The gradient of theta alone, from the output's side: a program owns tiles of output pixels.

    dTheta = sum over the output pixels of S_x · dx/dtheta + S_y · dy/dtheta

See `output_side.py`. Nothing is scattered. Launch grid: see `tiles.py`, of the output.
"""

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import source_map
from triton_stn.kernels.finish import finish_of
from triton_stn.kernels.output_side import OutputJob, backward_program
from triton_stn.kernels.sums import Into
from triton_stn.kernels.taps import fill_of
from triton_stn.kernels.tiles import of_share, share


@triton.jit
def grad_theta(
    X,  # (N, C, [D,] H, W)
    THETA,  # (N, K, *), see `coordinates.source`
    dY,  # (N, K, C, [D_out,] H_out, W_out)
    # Partial sums, (N, K, sums filled up to a multiple of six, slots); or where there are none
    P,  # the gradient of each pixel's coordinates or patch, (N, K, splits, *size, 2, 3 or 6)
    FILL,  # as of `forward`
    FINISH,
    WORK,
    CANVAS,
    FRAME,
    SCALE,
    RULES: tl.constexpr,
    TILING: tl.constexpr,
):
    part = share(WORK, RULES, TILING)
    pixel_map = source_map(THETA, part.n, part.k, FRAME, SCALE, RULES)
    fill = fill_of(FILL, part, RULES)
    finish = finish_of(FINISH, part, RULES)
    job = OutputJob(part, pixel_map, THETA, WORK, CANVAS, FRAME, SCALE, fill, finish, True)
    X = of_share(X, part)
    nowhere = Into(X, ())
    backward_program(X, of_share(dY, part), nowhere, P, job, WORK.bands, RULES, TILING)
