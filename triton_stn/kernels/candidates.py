"""One candidate of the gathering backward: what an output pixel gives to an input pixel.

A window function (`narrow.py`, `wide.py`) adds, for every pixel of a tile and every channel of a
pass, what the output pixels of one theta's window give. All of them pass these tuples on:

    G = (dY at the pass's first channel, stride_gc, stride_gh, stride_gw)
    canvas = (H_out, W_out, (H_out-1)/2, (W_out-1)/2)
    channels = (offsets inside the run, channels left from the pass's first one)
    inverse = see `inverse_map`
"""

import triton
import triton.language as tl

from triton_stn.kernels.coordinates import affine, round_half_even

# A window of more candidates is not walked by one thread. By reasoning, not measured.
MOST_CANDIDATES = tl.constexpr(400)
# Windows are wider by 1/64, more than rounding moves a candidate in images of up to 65,536 pixels a
# side.
SLACK = tl.constexpr(1.015625)


@triton.jit
def load_pass(
    X_ptrs,
    mask,
    channels,
    stride_xc,
    PASS: tl.constexpr,
    MASK_CHANNELS: tl.constexpr,
    NEEDS_THETA: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """X at the given pixels for each channel of a pass; nothing where dtheta is not wanted."""
    values = ()
    if NEEDS_THETA:
        for c in tl.static_range(PASS):
            read = mask
            if MASK_CHANNELS:
                read &= channels[0] + c < channels[1]
            values = values + (tl.load(X_ptrs, mask=read, other=0.0).to(DTYPE),)
            X_ptrs += stride_xc
    return values


@triton.jit
def zero_pass(PIXELS: tl.constexpr, PASS: tl.constexpr, BLOCK_C: tl.constexpr, DTYPE: tl.constexpr):
    """The sums of a pass's channels, before a window adds to them."""
    acc = ()
    for _ in tl.static_range(PASS):
        acc = acc + (tl.zeros([PIXELS, BLOCK_C], DTYPE),)
    return acc


@triton.jit
def store_pass(dX_ptrs, stride_dxc, acc, mask, channels, PASS: tl.constexpr, MASK: tl.constexpr):
    for c in tl.static_range(PASS):
        written = mask
        if MASK:
            written &= channels[0] + c < channels[1]
        tl.store(dX_ptrs, acc[c].to(dX_ptrs.dtype.element_ty), mask=written)
        dX_ptrs += stride_dxc


@triton.jit
def advance(ptr, stride, STEP: tl.constexpr):
    """ptr + STEP·stride, by walking: the product could leave int32."""
    for _ in tl.static_range(STEP):
        ptr += stride
    return ptr


@triton.jit
def hat(x, u, MODE: tl.constexpr):
    """Weight of pixel u at coordinate x, x's distance from u, and whether x lies in u's cell.

    The weight is meant inside the cell only. Its derivative is -1 with the distance's sign.
    """
    distance = x - u
    if MODE == "nearest":
        inside = round_half_even(x) == u
        weight = tl.where(inside, 1.0, 0.0).to(x.dtype)
    else:
        inside = (distance >= -1) & (distance < 1)
        weight = 1 - tl.abs(distance)
    return weight, distance, inside


@triton.jit
def with_sign(value, distance):
    """value, negated where distance is negative: one logical operation on the sign bits."""
    if value.dtype == tl.float64:
        sign = distance.to(tl.int64, bitcast=True) & -(2**63)
        value = (value.to(tl.int64, bitcast=True) ^ sign).to(tl.float64, bitcast=True)
    else:
        sign = distance.to(tl.int32, bitcast=True) & -(2**31)
        value = (value.to(tl.int32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)
    return value


@triton.jit
def accumulate(
    acc,
    t,
    values,  # the pass's X at the tile's pixels
    G_ptrs,  # dY at one candidate a pixel
    stride_gc,
    weight,
    inside,
    channels,
    PASS: tl.constexpr,
    MASK_CHANNELS: tl.constexpr,
    NEEDS_THETA: tl.constexpr,
):
    """Add one candidate to grad_input and to its t, for every channel of the pass: (acc, t)."""
    out = ()
    one_a_pixel: tl.constexpr = acc[0].shape == weight.shape
    sum = t if one_a_pixel else tl.zeros(acc[0].shape, acc[0].dtype)
    for c in tl.static_range(PASS):
        mask = inside
        if MASK_CHANNELS:
            mask &= channels[0] + c < channels[1]
        g = tl.load(G_ptrs, mask=mask, other=0.0).to(weight.dtype)
        # A tap with zero weight adds nothing, even of an inf; its derivative still counts in t.
        out = out + (tl.where(weight > 0, tl.fma(g, weight, acc[c]), acc[c]),)
        if NEEDS_THETA:
            sum = tl.fma(g, values[c], sum)
        G_ptrs += stride_gc
    if NEEDS_THETA:
        t = sum if one_a_pixel else t + tl.sum(sum, 1, keep_dims=True)
    return out, t


@triton.jit
def locate(x, y, u, v, MODE: tl.constexpr, TAME: tl.constexpr):
    """Where coordinate (x, y) of an output pixel falls in the cell of pixel (u, v), one for each.

    Returns (wx, wy, distance_x, distance_y, inside); TAME says that all coordinates are finite.
    """
    wx, distance_x, in_x = hat(x, u, MODE)
    wy, distance_y, in_y = hat(y, v, MODE)
    if MODE == "nearest" or not TAME:
        inside = in_x & in_y
    else:
        # The same of finite numbers. A chain of four conditions is packed into bit masks by the
        # compiler, 80 instructions for nine candidates; a chain of two is not.
        inside = tl.minimum(distance_x, distance_y) >= -1
        inside &= tl.maximum(distance_x, distance_y) < 1
    return wx, wy, distance_x, distance_y, inside


@triton.jit
def source_of(map, i, j):
    """(x, y) of output pixel (i, j), centred, under an affine map."""
    a00, a01, b0, a10, a11, b1 = map
    return affine(a00, a01, b0, j, i), affine(a10, a11, b1, j, i)


@triton.jit
def derivatives(t, wx, wy, distance_x, distance_y):
    """What a candidate gives to -S_x and -S_y."""
    return with_sign(t * wy, distance_x), with_sign(t * wx, distance_y)


@triton.jit
def gather_candidate(
    acc,
    values,
    G_ptrs,  # dY at the candidate, the pass's first channel
    stride_gc,
    x,
    y,
    u,
    v,
    mask,
    channels,
    MODE: tl.constexpr,
    PASS: tl.constexpr,
    MASK_CHANNELS: tl.constexpr,
    NEEDS_THETA: tl.constexpr,
):
    """Add an output pixel of coordinates (x, y), wherever it falls, to grad_input.

    Returns (acc, what it gives to -S_x, to -S_y, it lies in the cell).

    Selects where a product with 0 would do but for an overflowing coordinate or an inf of X.
    """
    wx, wy, distance_x, distance_y, inside = locate(x, y, u, v, MODE, False)
    inside &= mask
    wx = tl.where(inside, wx, 0.0)
    wy = tl.where(inside, wy, 0.0)
    acc, t = accumulate(
        acc, tl.zeros(wx.shape, wx.dtype), values, G_ptrs, stride_gc, wx * wy, inside, channels,
        PASS, MASK_CHANNELS, NEEDS_THETA,
    )  # fmt: skip
    s_x, s_y = derivatives(tl.where(inside, t, 0.0), wx, wy, distance_x, distance_y)
    return acc, s_x, s_y, inside


@triton.jit
def add_moments(moments, x, y, i, j):
    """moments - (x·j, x·i, x, y·j, y·i, y)"""
    m0, m1, m2, m3, m4, m5 = moments
    m0 = tl.fma(-j, x, m0)
    m1 = tl.fma(-i, x, m1)
    m3 = tl.fma(-j, y, m3)
    m4 = tl.fma(-i, y, m4)
    return m0, m1, m2 - x, m3, m4, m5 - y


@triton.jit
def pointers(G, i, j, canvas, INDEX: tl.constexpr):
    """dY at centred indices (i, j)."""
    H_out, W_out, centre_h, centre_w = canvas
    G_ptr, stride_gc, stride_gh, stride_gw = G
    row = (i + centre_h).to(INDEX) * stride_gh
    return G_ptr + (row + (j + centre_w).to(INDEX) * stride_gw)


@triton.jit
def inverse_map(map, MODE: tl.constexpr):
    """The inverse of a pixel map and how far from it a window reaches.

    Returns (reach_j, reach_i, k00, k01, k10, k11, n00, n01, n10, n11, det, size): k is the inverse
    matrix, n the matrix over its largest entry, size, and det the determinant of n. The reach is
    widened by 1/64, more than rounding moves a candidate in images of up to 65,536 pixels a side;
    where the map is singular it is not finite.
    """
    a00, a01, b0, a10, a11, b1 = map
    size = tl.maximum(tl.maximum(tl.abs(a00), tl.abs(a01)), tl.maximum(tl.abs(a10), tl.abs(a11)))
    size = tl.maximum(size, 1e-30)
    scale = 1 / size  # so that det neither overflows nor vanishes
    n00 = a00 * scale
    n01 = a01 * scale
    n10 = a10 * scale
    n11 = a11 * scale
    # Kahan's difference of products: a nearly singular map keeps an accurate determinant.
    product = n01 * n10
    det = tl.fma(n00, n11, -product) + tl.fma(-n01, n10, product)
    factor = scale / det
    k00 = n11 * factor
    k01 = -n01 * factor
    k10 = -n10 * factor
    k11 = n00 * factor
    slack: tl.constexpr = SLACK / 2 if MODE == "nearest" else SLACK
    reach_j = slack * (tl.abs(k00) + tl.abs(k01)) + 0.015625
    reach_i = slack * (tl.abs(k10) + tl.abs(k11)) + 0.015625
    return reach_j, reach_i, k00, k01, k10, k11, n00, n01, n10, n11, det, size


@triton.jit
def window_corner(map, inverse, u, v, canvas):
    """Centred indices (i, j) of the first candidate of pixel (u, v)."""
    b0 = map[2]
    b1 = map[5]
    H_out, W_out, centre_h, centre_w = canvas
    i = tl.ceil(tl.fma(inverse[4], u - b0, inverse[5] * (v - b1)) + (centre_h - inverse[1]))
    j = tl.ceil(tl.fma(inverse[2], u - b0, inverse[3] * (v - b1)) + (centre_w - inverse[0]))
    return i - centre_h, j - centre_w


@triton.jit
def near(map, box, canvas):
    """Whether the cells of a box of pixels meet the box around the image of the output.

    ``box`` is the middle and the half extents, (u, v, half_w, half_h); a cell reaches one further.
    """
    a00, a01, b0, a10, a11, b1 = map
    u, v, half_w, half_h = box
    H_out, W_out, centre_h, centre_w = canvas
    x = half_w + SLACK * (1 + tl.abs(a00) * centre_w + tl.abs(a01) * centre_h)
    y = half_h + SLACK * (1 + tl.abs(a10) * centre_w + tl.abs(a11) * centre_h)
    return (tl.abs(u - b0) <= x) & (tl.abs(v - b1) <= y)


@triton.jit
def meets(map, inverse, box, canvas):
    """Whether the cells of a box of pixels meet the image of the output, by separating axes."""
    u, v, half_w, half_h = box
    H_out, W_out, centre_h, centre_w = canvas
    reach_j, reach_i, k00, k01, k10, k11, n00, n01, n10, n11, det, size = inverse
    du = u - map[2]
    dv = v - map[5]
    x = SLACK + half_w
    y = SLACK + half_h
    across_j = y * tl.abs(n00) + x * tl.abs(n10) + SLACK * (tl.abs(det) * size * centre_h)
    across_i = y * tl.abs(n01) + x * tl.abs(n11) + SLACK * (tl.abs(det) * size * centre_w)
    along_j = tl.abs(n00 * dv - n10 * du) <= across_j
    along_i = tl.abs(n01 * dv - n11 * du) <= across_i
    return near(map, box, canvas) & along_j & along_i


@triton.jit
def is_tame(map, inverse):
    """Whether products of two coordinates stay finite, even of those `elsewhere` puts far out."""
    return (inverse[11] <= 1024) & (tl.abs(map[2]) <= 1e15) & (tl.abs(map[5]) <= 1e15)
