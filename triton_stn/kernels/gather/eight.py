"""The window of a volume's theta without rotation that does not magnify: 2 x 2 x 2 candidates.

Index p drives x, q drives y and r drives z, so weights and conditions are products of one along
each axis, as in `axis.py`.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from triton_stn.kernels.gather.axis import axis_candidate, first_inside
from triton_stn.kernels.gather.candidates import add_joint, at_row, load_pass


class Edge(NamedTuple):
    """The two candidates along one axis, whatever the other axes have."""

    first: object  # centred index
    weight: object  # of the first and the second
    slope: object  # -derivatives of the weights
    inside: object


class EightWindow(NamedTuple):
    """What is known of every voxel whatever the channel."""

    x: object  # an `Edge` each
    y: object
    z: object
    read: object  # some candidate is inside
    offs: object  # of the first candidate in dY
    stride_r: object  # a slice further
    stride_q: object  # a row further
    stride_p: object  # a column further


@triton.jit
def is_eight(pixel_map):
    """Whether a voxel map is upright and does not magnify."""
    zero = tl.abs(pixel_map.x_i) + tl.abs(pixel_map.x_k) + tl.abs(pixel_map.y_j)
    zero += tl.abs(pixel_map.y_k) + tl.abs(pixel_map.z_j) + tl.abs(pixel_map.z_i)
    least = tl.minimum(tl.abs(pixel_map.x_j), tl.abs(pixel_map.y_i))
    return (zero == 0) & (tl.minimum(least, tl.abs(pixel_map.z_k)) >= 1)


@triton.jit
def edge(a, b, u, line, centre, RULES: tl.constexpr):
    """The `Edge` of each voxel along one axis, whose coordinate is a·index + b."""
    first = first_inside(a, 1 / a, b, u, centre, RULES)
    w0, s0, in0 = axis_candidate(first, a, b, u, line, centre, RULES)
    w1, s1, in1 = axis_candidate(first + 1, a, b, u, line, centre, RULES)
    return Edge(first, (w0, w1), (s0, s1), (in0, in1))


@triton.jit
def eight_window(pixel_map, pixels, G, CANVAS, RULES: tl.constexpr):
    """The `EightWindow` of each voxel of a tile."""
    line = pixels.lines
    x = edge(pixel_map.x_j, pixel_map.x_1, pixels.u, line[0], CANVAS.centre_w, RULES)
    y = edge(pixel_map.y_i, pixel_map.y_1, pixels.v, line[1], CANVAS.centre_h, RULES)
    z = edge(pixel_map.z_k, pixel_map.z_1, pixels.w, line[2], CANVAS.centre_d, RULES)
    # X is read only where some tap is: no inf of X meets the 0 of a masked dY.
    read = pixels.mask & (x.inside[0] | x.inside[1]) & (y.inside[0] | y.inside[1])
    read &= z.inside[0] | z.inside[1]
    offs = (z.first + CANVAS.centre_d).to(RULES.index) * G.stride_d
    offs += (y.first + CANVAS.centre_h).to(RULES.index) * G.stride_h
    offs += (x.first + CANVAS.centre_w).to(RULES.index) * G.stride_w
    return EightWindow(x, y, z, read, offs, G.stride_d, G.stride_h, G.stride_w)


@triton.jit
def gather_eight(acc, ts, X, G, window, pixels, RULES: tl.constexpr, TILING: tl.constexpr):
    """One pass of channels through the window: (acc, ts), as `gather_axis`."""
    values = load_pass(X, window.read, pixels, RULES, TILING)
    x, y, z = window.x, window.y, window.z
    out = ()
    for n in tl.static_range(8):
        ptr = G.ptr + window.stride_r if n // 4 == 1 else G.ptr
        if n // 2 % 2 == 1:
            ptr += window.stride_q
        weight = x.weight[n % 2] * (y.weight[n // 2 % 2] * z.weight[n // 4])
        inside = x.inside[n % 2] & y.inside[n // 2 % 2] & z.inside[n // 4]
        acc, t = add_joint(
            acc, ts[n], values, at_row(G, ptr), n % 2, weight, inside & pixels.mask, pixels,
            RULES, TILING,
        )  # fmt: skip
        out = out + (t,)
    return acc, out


@triton.jit
def products(ts, fx, fy, fz, window):
    """Sums of t·fx·fy·fz times p, q, r and 1 over the window."""
    zero = tl.zeros(ts[0].shape, ts[0].dtype)
    total = zero
    right = zero
    below = zero
    behind = zero
    for n in tl.static_range(8):
        value = ts[n] * (fx[n % 2] * (fy[n // 2 % 2] * fz[n // 4]))
        total += value
        if n % 2 == 1:
            right += value
        if n // 2 % 2 == 1:
            below += value
        if n // 4 == 1:
            behind += value
    p, q, r = window.x.first, window.y.first, window.z.first
    return tl.fma(p, total, right), tl.fma(q, total, below), tl.fma(r, total, behind), total


@triton.jit
def eight_moments(moments, ts, window):
    """moments and what the window of each voxel gives to them."""
    x, y, z = window.x, window.y, window.z
    of_x = products(ts, x.slope, y.weight, z.weight, window)
    of_y = products(ts, x.weight, y.slope, z.weight, window)
    of_z = products(ts, x.weight, y.weight, z.slope, window)
    out = ()
    for n in tl.static_range(4):
        out = out + (moments[n] - of_x[n],)
    for n in tl.static_range(4):
        out = out + (moments[4 + n] - of_y[n],)
    for n in tl.static_range(4):
        out = out + (moments[8 + n] - of_z[n],)
    return out
