"""The gradient of the input by scattering, where no window can be bounded.

Each output pixel adds dY · wx · wy to its taps, by atomics (`sums.py`): for fields, splines,
bicubic and antialiased sampling; and, after a gather, what that leaves (`gather/rest.py`). The same
loads give grad_theta where it is wanted. See `output_side.py`.
Launch grid: see `tiles.py`, of the output.
"""

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import source_map
from triton_stn.kernels.gather.rest import is_gathered, leaves_rest
from triton_stn.kernels.output_side import OutputJob, backward_program
from triton_stn.kernels.sums import into
from triton_stn.kernels.taps import fill_of
from triton_stn.kernels.tiles import of_share, share


@triton.jit
def scatter(
    X,  # (N, C, [D,] H, W)
    THETA,  # (N, K, *), see `coordinates.source`
    dY,  # (N, K, C, [D_out,] H_out, W_out)
    dX,  # (N, C, [D,] H, W): what it or SUMS holds is added to
    SUMS,  # see `sums.py`
    P,  # as of `grad_theta`
    FILL,  # as of `forward`
    WORK,
    CANVAS,
    FRAME,
    SCALE,
    RULES: tl.constexpr,
    TILING: tl.constexpr,
):
    part = share(WORK, RULES, TILING)
    pixel_map = source_map(THETA, part.n, part.k, FRAME, SCALE, RULES)
    bands = WORK.bands
    everything = False
    if RULES.rest:
        everything = is_gathered(pixel_map, CANVAS, RULES) == 0
        bands = tl.where(leaves_rest(pixel_map, CANVAS, FRAME, RULES), bands, 0)
    fill = fill_of(FILL, part, RULES)
    job = OutputJob(part, pixel_map, THETA, WORK, CANVAS, FRAME, SCALE, fill, (), everything)
    sums = into(dX, SUMS, part, RULES)
    backward_program(of_share(X, part), of_share(dY, part), sums, P, job, bands, RULES, TILING)
