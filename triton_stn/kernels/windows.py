"""Which window gathers a theta, the same for every thread, and the way of the channels through it.

Of one theta an image a window stands outside the loop over channels: it is worked out once a tile,
and all passes go through it. Of several the sums of a pass stay in registers over the thetas, so
every pass works every window out anew. `gather_as` does either. Beside the tuples of
`candidates.py` they pass on

    spot = (u, v, which are pixels, the tile's first column and row, offsets of its pixels in X)
    X = (X at the pass's first channel, stride_xc, stride_xh, stride_xw)
    dX = (dX at the tile's pixels and that channel, stride_dxc)
    job = (map, inverse, spot, X, dX, G, channels, canvas, (H, W))
"""

import triton
import triton.language as tl

from triton_stn.kernels.candidates import (
    MOST_CANDIDATES,
    advance,
    inverse_map,
    is_tame,
    meets,
    near,
    store_pass,
    zero_pass,
)
from triton_stn.kernels.coordinates import load_map
from triton_stn.kernels.moments import zero_moments
from triton_stn.kernels.narrow import (
    axis_kind,
    axis_moments,
    axis_window,
    gather_narrow,
    three_moments,
    three_window,
)
from triton_stn.kernels.perspective import gather_perspective
from triton_stn.kernels.wide import gather_straight, gather_walk, gather_wide

# Kinds of windows, the narrow ones first; through NOTHING a tile gets zeros.
UPRIGHT = tl.constexpr(1)
ON_SIDE = tl.constexpr(2)
THREE = tl.constexpr(3)
STRAIGHT = tl.constexpr(4)
WALK = tl.constexpr(5)
WIDE = tl.constexpr(6)
PERSPECTIVE = tl.constexpr(7)
NOTHING = tl.constexpr(8)


@triton.jit
def window_kind(map, inverse, WINDOW: tl.constexpr):
    """The kind of window of an affine map; WINDOW is "any", or the one to compile."""
    if WINDOW == "axis":
        kind = UPRIGHT
    elif WINDOW == "three":
        kind = THREE
    elif WINDOW == "straight":
        kind = STRAIGHT
    elif WINDOW == "walk":
        kind = WALK
    else:
        a00, a01, b0, a10, a11, b1 = map
        upright, on_side = axis_kind(map)
        reach_j = inverse[0]
        reach_i = inverse[1]
        three = (reach_j <= 1.5) & (reach_i <= 1.5) & is_tame(map, inverse)
        # More are shared by the threads of a program.
        walked = (2 * reach_j + 1) * (2 * reach_i + 1) <= MOST_CANDIDATES
        finite = a00 * 0 + a01 * 0 + b0 * 0 + a10 * 0 + a11 * 0 + b1 * 0 == 0
        kind = tl.where((a01 == 0) & (a10 == 0), STRAIGHT, WALK)
        kind = tl.where(three, THREE, tl.where(walked, kind, WIDE))
        kind = tl.where(upright, UPRIGHT, tl.where(on_side, ON_SIDE, kind))
        kind = tl.where(finite, kind, WALK)  # which no tile meets
    return kind


@triton.jit
def open_window(
    map, inverse, spot, G, canvas, KIND: tl.constexpr, MODE: tl.constexpr, INDEX: tl.constexpr
):
    """What the narrow windows know of every pixel whatever the channel; else nothing."""
    u, v, mask, _, _, _ = spot
    if KIND < THREE:
        window = axis_window(map, u, v, mask, G, canvas, MODE, INDEX, KIND == ON_SIDE)
    elif KIND == THREE:
        window = three_window(map, inverse, u, v, mask, G, canvas, MODE, INDEX)
    else:
        window = ()
    return window


@triton.jit
def gather_pass(
    acc,
    sums,  # of a narrow window the t of every candidate, else the moments
    window,
    map,
    inverse,
    spot,
    X,
    G,
    channels,
    canvas,
    frame,
    KIND: tl.constexpr,
    MODE: tl.constexpr,
    PASS: tl.constexpr,
    MASK_CHANNELS: tl.constexpr,
    NEEDS_THETA: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    INDEX: tl.constexpr,
    EVERY: tl.constexpr,
):
    """Add what a window gives to the channels of a pass; returns (acc, sums)."""
    u, v, mask, u_first, v_first, offs_x = spot
    X_ptrs = X[0] + offs_x
    if KIND <= THREE:
        acc, sums = gather_narrow(
            acc, sums, X_ptrs, X[1], G, window, channels,
            2 if KIND < THREE else 3, PASS, MASK_CHANNELS, NEEDS_THETA, u.dtype,
        )  # fmt: skip
    elif KIND == STRAIGHT:
        acc, sums = gather_straight(
            acc, sums, X_ptrs, X[1], G, map, u, v, mask, channels, canvas,
            MODE, PASS, MASK_CHANNELS, NEEDS_THETA, INDEX,
        )  # fmt: skip
    elif KIND == WALK:
        acc, sums = gather_walk(
            acc, sums, X_ptrs, X[1], G, map, inverse, u, v, mask, channels, canvas,
            MODE, PASS, MASK_CHANNELS, NEEDS_THETA, INDEX,
        )  # fmt: skip
    elif KIND == WIDE:
        acc, sums = gather_wide(
            acc, sums, X, G, map, inverse, u_first, v_first, frame[0], frame[1], channels, canvas,
            MODE, PASS, MASK_CHANNELS, NEEDS_THETA, BLOCK_H, BLOCK_W, BLOCK_C, INDEX,
        )  # fmt: skip
    elif KIND == PERSPECTIVE:
        acc, sums = gather_perspective(
            acc, sums, X_ptrs, X[1], G, map, inverse, u, v, mask, channels, canvas,
            MODE, PASS, MASK_CHANNELS, NEEDS_THETA, INDEX, EVERY,
        )  # fmt: skip
    return acc, sums


@triton.jit
def gather_as(
    state,
    job,
    passes,
    Theta_ptr,
    scales,
    KIND: tl.constexpr,
    ONE_THETA: tl.constexpr,
    MODE: tl.constexpr,
    PASS: tl.constexpr,
    MASK_CHANNELS: tl.constexpr,
    NEEDS_THETA: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    INDEX: tl.constexpr,
    EVERY: tl.constexpr,
):
    """Gather through a window of a known kind: of one theta all channels, from moments to moments;
    of several the channels of one pass, from their sums to their sums."""
    map, inverse, spot, X, dX, G, channels, canvas, frame = job
    DTYPE: tl.constexpr = spot[0].dtype
    PIXELS: tl.constexpr = BLOCK_H * BLOCK_W
    if KIND == WIDE:
        # Loaded anew, so that none of its numbers holds a register in the narrow windows.
        map = load_map(Theta_ptr, scales, DTYPE)
        inverse = inverse_map(map, MODE)
    window = open_window(map, inverse, spot, G, canvas, KIND, MODE, INDEX)
    if KIND <= THREE:
        sums = zero_moments(4 if KIND < THREE else 9, PIXELS, DTYPE)
    else:  # of several thetas no moments are wanted
        sums = state if ONE_THETA else zero_moments(9 if KIND == PERSPECTIVE else 6, PIXELS, DTYPE)
    if not ONE_THETA:
        state, sums = gather_pass(
            state, sums, window, map, inverse, spot, X, G, channels, canvas, frame,
            KIND, MODE, PASS, MASK_CHANNELS, NEEDS_THETA, BLOCK_H, BLOCK_W, BLOCK_C, INDEX, EVERY,
        )  # fmt: skip
    else:
        X_ptr, stride_xc, stride_xh, stride_xw = X
        G_ptr, stride_gc, stride_gh, stride_gw = G
        dX_ptr, stride_dxc = dX
        offs_c, left = channels
        for _ in range(passes):
            acc, sums = gather_pass(
                zero_pass(PIXELS, PASS, BLOCK_C, DTYPE), sums, window, map, inverse, spot,
                (X_ptr, stride_xc, stride_xh, stride_xw), (G_ptr, stride_gc, stride_gh, stride_gw),
                (offs_c, left), canvas, frame, KIND, MODE, PASS, MASK_CHANNELS, NEEDS_THETA,
                BLOCK_H, BLOCK_W, BLOCK_C, INDEX, EVERY,
            )  # fmt: skip
            store_pass(dX_ptr, stride_dxc, acc, spot[2], (offs_c, left), PASS, MASK_CHANNELS)
            X_ptr = advance(X_ptr, BLOCK_C * stride_xc, PASS)
            G_ptr = advance(G_ptr, BLOCK_C * stride_gc, PASS)
            dX_ptr = advance(dX_ptr, BLOCK_C * stride_dxc, PASS)
            left -= PASS * BLOCK_C
        if NEEDS_THETA:
            if KIND < THREE:
                state = axis_moments(state, sums, window)
            elif KIND == THREE:
                state = three_moments(state, sums, window)
            else:
                state = sums
    return state


@triton.jit
def gather_theta(
    state,
    kind,
    Theta_ptr,
    scales,
    job,
    passes,
    SOURCE: tl.constexpr,
    ONE_THETA: tl.constexpr,
    MODE: tl.constexpr,
    PASS: tl.constexpr,
    MASK_CHANNELS: tl.constexpr,
    NEEDS_THETA: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    INDEX: tl.constexpr,
    EVERY: tl.constexpr,
):
    """Gather through the window of one theta, which is the same for every thread."""
    map, inverse, spot, _, _, _, _, canvas, _ = job
    # The tile as a box of pixels: its middle and half extents.
    half_w: tl.constexpr = (BLOCK_W - 1) / 2
    half_h: tl.constexpr = (BLOCK_H - 1) / 2
    box = (spot[3] + half_w, spot[4] + half_h, half_w, half_h)
    if SOURCE == "projective":
        if EVERY or inverse[4]:
            state = gather_as(
                state, job, passes, Theta_ptr, scales, PERSPECTIVE, ONE_THETA, MODE, PASS,
                MASK_CHANNELS, NEEDS_THETA, BLOCK_H, BLOCK_W, BLOCK_C, INDEX, EVERY,
            )  # fmt: skip
        elif ONE_THETA:
            state = gather_as(
                state, job, passes, Theta_ptr, scales, NOTHING, ONE_THETA, MODE, PASS,
                MASK_CHANNELS, NEEDS_THETA, BLOCK_H, BLOCK_W, BLOCK_C, INDEX, EVERY,
            )  # fmt: skip
    # Of several crops of an image most miss a tile.
    elif ONE_THETA or near(map, box, canvas):
        if kind == UPRIGHT:
            state = gather_as(
                state, job, passes, Theta_ptr, scales, UPRIGHT, ONE_THETA, MODE, PASS,
                MASK_CHANNELS, NEEDS_THETA, BLOCK_H, BLOCK_W, BLOCK_C, INDEX, EVERY,
            )  # fmt: skip
        elif kind == ON_SIDE:
            state = gather_as(
                state, job, passes, Theta_ptr, scales, ON_SIDE, ONE_THETA, MODE, PASS,
                MASK_CHANNELS, NEEDS_THETA, BLOCK_H, BLOCK_W, BLOCK_C, INDEX, EVERY,
            )  # fmt: skip
        elif kind == WIDE:
            state = gather_as(
                state, job, passes, Theta_ptr, scales, WIDE, ONE_THETA, MODE, PASS,
                MASK_CHANNELS, NEEDS_THETA, BLOCK_H, BLOCK_W, BLOCK_C, INDEX, EVERY,
            )  # fmt: skip
        # What is turned or magnified shows in part: a tile may be out of view.
        elif meets(map, inverse, box, canvas):
            if kind == THREE:
                state = gather_as(
                    state, job, passes, Theta_ptr, scales, THREE, ONE_THETA, MODE, PASS,
                    MASK_CHANNELS, NEEDS_THETA, BLOCK_H, BLOCK_W, BLOCK_C, INDEX, EVERY,
                )  # fmt: skip
            elif kind == STRAIGHT:
                state = gather_as(
                    state, job, passes, Theta_ptr, scales, STRAIGHT, ONE_THETA, MODE, PASS,
                    MASK_CHANNELS, NEEDS_THETA, BLOCK_H, BLOCK_W, BLOCK_C, INDEX, EVERY,
                )  # fmt: skip
            else:
                state = gather_as(
                    state, job, passes, Theta_ptr, scales, WALK, ONE_THETA, MODE, PASS,
                    MASK_CHANNELS, NEEDS_THETA, BLOCK_H, BLOCK_W, BLOCK_C, INDEX, EVERY,
                )  # fmt: skip
        elif ONE_THETA:
            state = gather_as(
                state, job, passes, Theta_ptr, scales, NOTHING, ONE_THETA, MODE, PASS,
                MASK_CHANNELS, NEEDS_THETA, BLOCK_H, BLOCK_W, BLOCK_C, INDEX, EVERY,
            )  # fmt: skip
    return state
