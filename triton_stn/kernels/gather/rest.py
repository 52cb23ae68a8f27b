"""What a gather leaves to `scatter`: homographies without bounded windows, and pixels that fold.

Where the padding rule folds the plane onto the image, an output pixel that reads strictly inside
the image reads as with zeros, and is gathered. Any other is scattered, as is every pixel of a
homography whose windows are too large (`perspective.py`).
"""

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import MAPS_A_LOOK, load_thetas, map_of, matrix_place
from triton_stn.kernels.gather.perspective import inverse_homography
from triton_stn.kernels.taps import lines

# Pixels of the input: more than rounding moves what lies between the corners of a box.
MARGIN = tl.constexpr(0.015625)


@triton.jit
def is_gathered(pixel_map, CANVAS, RULES: tl.constexpr):
    """Whether the windows of a theta are bounded."""
    if RULES.source == "projective":
        gathered = inverse_homography(pixel_map, CANVAS, RULES).gathered
    else:
        gathered = tl.full([], 1, tl.int1)
    return gathered


@triton.jit
def box_in_view(pixel_map, low, high, FRAME, RULES: tl.constexpr):
    """Whether all output pixels of a box read strictly inside the image.

    ``low`` and ``high`` are the centred indices (j, i, k) of its corners. A matrix takes a box to
    what its corners span, unless a part of it is behind the viewer, who sees no such corner.
    """
    CORNERS: tl.constexpr = 2**RULES.ndim
    along = lines(FRAME, RULES)
    seen = tl.full([], 1, tl.int1)
    for corner in tl.static_range(CORNERS):
        j = high[0] if corner % 2 == 1 else low[0]
        i = high[1] if corner // 2 % 2 == 1 else low[1]
        k = high[2] if corner // 4 == 1 else low[2]
        place = matrix_place(pixel_map, j, i, k, RULES)
        for axis in tl.static_range(len(along)):
            seen &= (place[axis] > MARGIN) & (place[axis] < along[axis].last - MARGIN)
    return seen


@triton.jit
def leaves_rest(pixel_map, CANVAS, FRAME, RULES: tl.constexpr):
    """Whether anything of a theta is left to the scatter."""
    rest = is_gathered(pixel_map, CANVAS, RULES) == 0
    if RULES.padding != "zeros":
        far = (CANVAS.centre_w, CANVAS.centre_h, CANVAS.centre_d)
        near = (-CANVAS.centre_w, -CANVAS.centre_h, -CANVAS.centre_d)
        rest |= box_in_view(pixel_map, near, far, FRAME, RULES) == 0
    return rest


@triton.jit
def image_leaves_rest(THETA, n, maps, CANVAS, FRAME, SCALE, RULES: tl.constexpr):
    """Whether anything of an image's thetas is."""
    rest = tl.full([], 0, tl.int32)
    for first in range(0, maps, MAPS_A_LOOK):
        there, theta = load_thetas(THETA, n, first, maps, RULES)
        there &= leaves_rest(map_of(theta, FRAME, SCALE, RULES), CANVAS, FRAME, RULES)
        rest += tl.sum(there.to(tl.int32), 0)
    return rest > 0
