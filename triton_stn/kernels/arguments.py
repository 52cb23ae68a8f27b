"""The named arguments that every kernel takes, and what a launch fixes at compile time.

Images are volumes of depth one to whoever makes these: `Image`, `Canvas`, `Frame` and `Scale` serve
both, and the kernels of images do not look at what has to do with depth.
"""

from dataclasses import dataclass
from typing import NamedTuple

WARP = 32  # threads


class Image(NamedTuple):
    """A tensor (N, [K,] C, [D,] H, W) of any strides, in elements."""

    ptr: object
    stride_n: object
    stride_k: object
    stride_c: object
    stride_d: object
    stride_h: object
    stride_w: object


class Theta(NamedTuple):
    """(N, K, *): the numbers of one map side by side, or a field of so many a pixel.

    The field is (N, K, [D_out,] H_out, W_out, numbers).
    """

    ptr: object
    stride_n: object
    stride_k: object
    stride_d: object
    stride_h: object
    stride_w: object
    stride_c: object
    points: object  # control points of a spline


class Buffer(NamedTuple):
    """Memory of the launcher's own, contiguous."""

    ptr: object


class Fill(NamedTuple):
    """What lies outside of the image: by `Rules.fill` a number, or a tensor (C,)."""

    ptr: object
    stride_c: object  # 0 where all channels have one
    number: object


class Finish(NamedTuple):
    """A tensor (2, C), or (2,) for all channels: what samples are multiplied by, and what is added
    to them."""

    ptr: object
    stride_c: object  # 0 where all channels have one
    stride_bias: object  # from the gains


class InputSums(NamedTuple):
    """Where grad_input is added up, strided as dX, or dX itself; see `sums.py`.

    Fixed-point words are followed by two an image, on the terms.
    """

    ptr: object
    elements: object  # of dX
    room: object  # log2 of the units that the largest |dY| has at most


class Canvas(NamedTuple):
    """The output: its size, and half of it less one, where centred coordinates are zero."""

    depth: object
    height: object
    width: object
    centre_d: object
    centre_h: object
    centre_w: object


class Frame(NamedTuple):
    """The input: its size, and the same less one as floats; where reflection turns, 0 or -1/2.

    ``lift``: by which a row that scales by 1 is raised, for what the ratio of sizes is rounded
    by (`coordinates.lifted`).
    """

    depth: object
    height: object
    width: object
    last_d: object
    last_h: object
    last_w: object
    edge: object
    lift_d: object
    lift_h: object
    lift_w: object


class Scale(NamedTuple):
    """What takes normalised numbers to pixels, for either align_corners.

    ``ratio_xy``: span of the input along x over extent of the output along y. ``half``: half a span
    of the input. ``unit``: normalised output coordinates a pixel of the output.
    """

    ratio_xx: object
    ratio_xy: object
    ratio_xz: object
    ratio_yx: object
    ratio_yy: object
    ratio_yz: object
    ratio_zx: object
    ratio_zy: object
    ratio_zz: object
    half_w: object
    half_h: object
    half_d: object
    unit_w: object
    unit_h: object


class Work(NamedTuple):
    """How the work is shared: by programs, and by what each of them repeats."""

    maps: object  # K
    channels: object  # C
    splits: object  # programs that share the channels of a tile
    channels_a_split: object
    bands: object  # that a program walks
    tiles: object  # in each of them
    tile_h: object
    tile_w: object
    half_h: object  # (tile_h - 1) / 2
    half_w: object
    down: object  # rows from one warp's patch of a tile to the next one's, see `tiles.in_tile`
    right: object  # columns
    slots: object  # partial sums a theta, of all launches
    first_slot: object  # of this launch


class Walk(NamedTuple):
    """How a gather's programs share the output's tiles, where they take grad_theta from there."""

    programs: object  # that share those of one map; beyond across · down they have none
    across: object  # that share a band
    down: object
    bands: object  # that each of them walks
    tiles: object  # in each band


@dataclass(frozen=True)
class Rules:
    """What is computed."""

    ndim: int  # of the image: 2, or 3 of a volume
    source: str  # of coordinates, see `coordinates.source`
    mode: str  # "nearest", "bilinear", "bicubic", or "area" for antialiased
    padding: str
    dtype: object  # of coordinates, weights and sums
    index: object  # of offsets inside one image
    several: bool = False  # K > 1
    scatters: bool = False  # what it does from the output's side adds to grad_input
    needs_theta: bool = False
    joint: bool = False  # a gather's window without rotation gives grad_theta, too
    sums: int = 0  # that make up grad_theta where it is wanted; 0 of a field and of a spline
    rest: bool = False  # a scatter follows the gather, for what that leaves
    into: str = "dX"  # where grad_input is added up, see `sums.py`
    fill: str = ""  # what lies outside: "number" or "channels"; else zeros
    finishes: bool = False  # samples are scaled and shifted, see `finish.py`


@dataclass(frozen=True)
class Tiling:
    """How a tile lies over pixels, threads and channels."""

    block_d: int
    block_h: int  # with `patches`, where they lie one below the other
    block_w: int
    block_c: int  # 1 in NCHW; in channels-last the channels that lie side by side in a tile
    channels_a_pass: int  # loads of NCHW that are under way at once
    one_pass: bool  # a pass takes all channels
    mask_channels: bool  # the passes do not come out even
    align: int  # in channels-last: strides and channels are multiples of it

    @property
    def pixels(self) -> int:
        return self.block_d * self.block_h * self.block_w

    @property
    def patches(self) -> bool:
        """Whether each warp has a patch of a tile's pixels, which lie as `Work` says."""
        return self.block_c == self.block_d == 1

    @property
    def patch_h(self) -> int:
        """Rows of a patch; its columns are block_w."""
        return WARP // self.block_w

    @property
    def warps(self) -> int:
        """Patches of a tile."""
        return self.pixels // WARP

    def tile(self, abreast: bool) -> tuple[int, int]:
        """(height, width), with the patches side by side or not."""
        if abreast:
            return self.patch_h, self.warps * self.block_w
        return self.block_h, self.block_w

    @property
    def step(self) -> int:
        """Channels a pass."""
        return self.channels_a_pass * self.block_c


@dataclass(frozen=True)
class Sums:
    """How `reduce` cuts a table of partial sums."""

    rows: int
    columns: int
    affine: int  # axes of an affine map, whose sums are scaled from pixels to theta; else 0
    dtype: object
    index: object  # of columns
