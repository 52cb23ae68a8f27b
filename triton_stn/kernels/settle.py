"""grad_input from where it was added up apart (`sums.py`): rounded, or taken back from fixed point.

    dX[n, c, i, j] = SUMS[n, c, i, j]        of every image of which a gather left something

Launch grid: see `tiles.py`, of the input.
"""

import triton
import triton.language as tl

from triton_stn.kernels.gather.rest import image_leaves_rest
from triton_stn.kernels.sums import decoded, into
from triton_stn.kernels.tiles import of_share, of_tile, share, some, tile


@triton.jit
def settle(
    THETA,  # (N, K, *), of what is gathered
    dX,  # (N, C, [D,] H, W)
    SUMS,  # likewise
    WORK,
    CANVAS,
    FRAME,
    SCALE,
    RULES: tl.constexpr,
    TILING: tl.constexpr,
):
    PASS: tl.constexpr = TILING.channels_a_pass
    part = share(WORK, RULES, TILING)
    sums = into(dX, SUMS, part, RULES)
    dX = of_share(dX, part)
    tiles = WORK.tiles
    if RULES.rest:
        rest = image_leaves_rest(THETA, part.n, WORK.maps, CANVAS, FRAME, SCALE, RULES)
        tiles = tl.where(rest, tiles, 0)
    for t in range(tiles):
        at = tile(t, FRAME, WORK, RULES, TILING)
        from_ptrs = of_tile(sums.image, at, RULES).ptr
        to_ptrs = of_tile(dX, at, RULES).ptr
        for c in range(0, 1 if TILING.one_pass else part.count, TILING.step):
            for s in tl.static_range(PASS):
                here = some(at.channels + s * TILING.block_c, part.count - c, TILING.mask_channels)
                value = decoded(tl.load(from_ptrs, mask=at.mask & here), sums, RULES)
                tl.store(to_ptrs, value.to(dX.ptr.dtype.element_ty), mask=at.mask & here)
                from_ptrs += TILING.block_c * dX.stride_c
                to_ptrs += TILING.block_c * dX.stride_c
