"""Random θ an image, drawn on the device, and a batch with all of its labels through them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from triton_stn import checks, geometry
from triton_stn.backends.numbers import vector
from triton_stn.buffers import hold
from triton_stn.functional import spatial_transform
from triton_stn.geometry.frames import check_sizes, half_extent, outline, turned_and_sheared
from triton_stn.transforms import Affine, Projective, ThinPlateSpline, Transform
from triton_stn.transforms.base import check_size
from triton_stn.types import Fill, Mode, Normalize, PaddingMode, Size

# A column of uniform numbers each, whatever is asked for: an angle stays when flips are added.
_DRAWS = ("chosen", "angle", "x", "y", "scale", "shear_x", "shear_y", "flip_x", "flip_y")
_CORNERS = 8
# The dtypes of labels that no kernel reads, and those that hold their numbers.
_LABELS = {torch.bool: torch.uint8, torch.int8: torch.float32, torch.int16: torch.float32}
_LABELS |= {torch.int32: torch.float64, torch.int64: torch.float64}


class Augmented(NamedTuple):
    """A batch after `RandomTransform`. What was not given is None.

    Example:
        >>> made = triton_stn.augment.RandomTransform(horizontal_flip=1)(torch.eye(2)[None, None])
        >>> made.images.tolist(), made.theta.shape, made.masks
        ([[[[0.0, 1.0], [1.0, 0.0]]]], torch.Size([1, 2, 3]), None)
    """

    images: torch.Tensor
    theta: torch.Tensor  # output -> input, for `spatial_transform` and `geometry`
    masks: torch.Tensor | None
    boxes: geometry.MappedBoxes | None
    points: torch.Tensor | None


class RandomTransform(nn.Module):
    """Random affine, perspective and elastic maps and flips, another for every image of a batch.

    All are one map, sampled once: one kernel launch for the images, one more for masks. Numbers are
    drawn on the images' device and nothing waits for it, so that a call can be captured in a CUDA
    graph. Ranges are named, and the picture moves, as in torchvision's transforms.

    Args:
        degrees: the picture turns clockwise, by ``(min, max)``, or by up to so many either way.
        translate: ``(a, b)``: it moves by up to a times the output's width and b times its height.
        scale: ``(min, max)``: it is enlarged by; None: not.
        shear: degrees along x, a number or ``(min, max)``; with four numbers, along y too.
        distortion_scale: of a perspective, 0 to 1: each corner moves inwards by up to so much of
            half the width and of half the height.
        elastic: pixels of the input, the standard deviation of the control points of a thin-plate
            spline, along x and along y.
        control_points: its rows and columns.
        horizontal_flip, vertical_flip: how probable each is.
        p: how probable it is that an image is changed at all.
        output_size: ``(H_out, W_out)``, or an int; None: the input's. A pixel stays as large as
            it is: another size shows more or less of the middle.
        mode, padding_mode, fill_value, align_corners, antialias, output_dtype, normalize: as in
            `spatial_transform`: uint8 images come out as bytes, or normalised for a network. Masks
            are ``"nearest"``, with zeros where the padding is zeros.

    With ``elastic`` the map is the spline through the moved control points, which a perspective
    beside it bends as well.

    Attributes:
        transform: what θ means: ``Affine()``, ``Projective()`` or a ``ThinPlateSpline``.

    Raises:
        TypeError, ValueError: a range of the wrong type, length or order.

    Example:
        >>> turn = triton_stn.augment.RandomTransform(degrees=(90, 90))
        >>> batch = turn(torch.arange(4.0).view(1, 1, 2, 2), points=torch.tensor([[[1.0, 0.0]]]))
        >>> batch.images.round().tolist(), batch.points.round().tolist()
        ([[[[2.0, 0.0], [3.0, 1.0]]]], [[[1.0, 1.0]]])
    """

    def __init__(
        self,
        degrees: float | Sequence[float] = 0.0,
        translate: Sequence[float] = (0.0, 0.0),
        scale: Sequence[float] | None = None,
        shear: float | Sequence[float] = 0.0,
        distortion_scale: float = 0.0,
        elastic: float = 0.0,
        control_points: Sequence[int] = (4, 4),
        horizontal_flip: float = 0.0,
        vertical_flip: float = 0.0,
        p: float = 1.0,
        *,
        output_size: Size | None = None,
        mode: Mode = "bilinear",
        padding_mode: PaddingMode = "zeros",
        fill_value: Fill | None = None,
        align_corners: bool = False,
        antialias: bool = False,
        output_dtype: torch.dtype | None = None,
        normalize: Normalize | None = None,
    ) -> None:
        super().__init__()
        self.degrees = _range("degrees", degrees)
        self.translate = _numbers("translate", translate, 2, 0.0, 1.0)
        self.scale = _range("scale", (1.0, 1.0) if scale is None else scale)
        if self.scale[0] <= 0:
            raise ValueError(f"scale must be above 0, got {scale!r}")
        both = isinstance(shear, Sequence) and len(shear) == 4
        self.shear_x = _range("shear", shear[:2] if both else shear)
        self.shear_y = _range("shear", shear[2:] if both else 0.0)
        (self.distortion_scale,) = _numbers("distortion_scale", (distortion_scale,), 1, 0.0, 1.0)
        (self.elastic,) = _numbers("elastic", (elastic,), 1, 0.0, math.inf)
        flips = horizontal_flip, vertical_flip
        self.flips = _numbers("horizontal_flip and vertical_flip", flips, 2, 0.0, 1.0)
        (self.p,) = _numbers("p", (p,), 1, 0.0, 1.0)
        checks.check_options(mode, padding_mode, align_corners)
        checks.check_antialias(antialias, mode)
        checks.check_fill_value(fill_value, padding_mode, None)
        checks.check_finish(output_dtype, normalize, None)
        if output_size is not None:
            check_size("output_size", output_size, 2)
        self.output_size = output_size
        self.align_corners = align_corners
        self.padding_mode = padding_mode
        self.options = dict(mode=mode, antialias=antialias, output_dtype=output_dtype)
        mean, std = (None, None) if normalize is None else normalize
        hold(self, fill_value=fill_value, mean=mean, std=std)
        self.transform: Transform = Affine()
        if self.elastic:
            self.transform = ThinPlateSpline(*control_points)
        elif self.distortion_scale:
            self.transform = Projective()

    def forward(
        self,
        images: torch.Tensor,
        masks: torch.Tensor | None = None,
        boxes: torch.Tensor | None = None,
        points: torch.Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Augmented:
        """The batch and its labels through one θ an image.

        Args:
            images: ``(N, C, H, W)``, as in `spatial_transform`.
            masks: ``(N, C_m, H, W)`` of any real dtype; labels stay what they are.
            boxes: ``(N, B, 4)``, x_min, y_min, x_max, y_max in pixels; see `geometry.map_boxes`.
            points: ``(N, P, 2)``, (x, y) in pixels, whose centres are whole numbers.
            generator: of the images' device; None: that device's own.

        Raises:
            TypeError, ValueError: images, masks, boxes or points of another type or shape.
        """
        checks.check_input(images)
        if images.ndim != 4:
            raise ValueError(f"images must be (N, C, H, W), got {checks.shape_of(images)}")
        size = tuple(images.shape[2:])
        if masks is not None:
            _check_masks(masks, images)
        theta = self.draw(images.shape[0], size, generator=generator, device=images.device)
        frames = dict(transform=self.transform, align_corners=self.align_corners)
        out = self._output_size(size)
        how = dict(output_size=out, padding_mode=self.padding_mode, **frames)
        labels = dict(output_size=out, **frames)
        filled = dict(fill_value=self.fill_value)
        filled |= dict(normalize=None if self.mean is None else (self.mean, self.std))
        return Augmented(
            spatial_transform(images, theta, **how, **self.options, **filled),
            theta,
            None if masks is None else _nearest(masks, theta, how),
            None if boxes is None else geometry.map_boxes(theta, boxes, size, **labels),
            None if points is None else geometry.map_points(theta, points, size, **labels),
        )

    def draw(
        self,
        count: int,
        input_size: Size,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> torch.Tensor:
        """θ, ``(count, *transform.theta_shape)``, float32, of images ``(H, W)``.

        Raises:
            TypeError, ValueError: a size that is not two positive ints.
        """
        size = check_sizes(input_size, None, 2)[0]
        of_device = dict(generator=generator, device=device, dtype=torch.float32)
        drawn = torch.rand(count, len(_DRAWS) + _CORNERS, **of_device)
        flat, corners = drawn.split((len(_DRAWS), _CORNERS), 1)
        uniform = dict(zip(_DRAWS, flat.unbind(1), strict=True))
        changed = (uniform["chosen"] < self.p).float()
        theta = self._affine(uniform, changed, size)
        if self.distortion_scale:
            inwards = self.distortion_scale * changed[:, None, None] * corners.unflatten(1, (4, 2))
            square = outline(1, drawn)
            theta = geometry.compose(theta, geometry.homography(square * (1 - inwards), square))
        signs = [
            1 - 2 * changed * (uniform[name] < probable)
            for name, probable in zip(("flip_x", "flip_y"), self.flips, strict=True)
        ]
        theta = theta * torch.stack((*signs, torch.ones_like(changed)), 1)[:, None]
        if not isinstance(self.transform, ThinPlateSpline):
            return theta
        matrix = Projective() if self.distortion_scale else Affine()
        control = self.transform.identity(dtype=drawn.dtype, device=drawn.device)
        pixels = torch.randn(count, *control.shape, **of_device) * changed[:, None, None]
        half = half_extent(size, self.align_corners)
        moved = vector([self.elastic / h if h else 0.0 for h in half], drawn)
        return matrix.source(theta, control) + moved * pixels

    def _affine(self, uniform, changed, size) -> torch.Tensor:
        """(N, 2, 3)."""

        def within(name: str, of: tuple[float, float], rest: float = 0.0) -> torch.Tensor:
            return rest + changed * (of[0] + (of[1] - of[0]) * uniform[name] - rest)

        out = self._output_size(size)
        a, b, c, d = turned_and_sheared(
            within("angle", self.degrees),
            within("shear_x", self.shear_x),
            within("shear_y", self.shear_y),
        )
        scale = within("scale", self.scale, 1.0)
        x, y = (
            within(name, (-part * extent, part * extent))
            for name, part, extent in zip("xy", self.translate, out[::-1], strict=True)
        )
        # θ is the inverse of the picture's map [[a, b], [c, d]]·scale, whose determinant is scale².
        (w, h), (w_out, h_out) = (half_extent(each, self.align_corners) for each in (size, out))
        of_x = (d * w_out, -b * h_out, b * y - d * x)
        of_y = (-c * w_out, a * h_out, c * x - a * y)
        rows = [
            n / (scale * half) if half else 0 * n
            for n, half in zip((*of_x, *of_y), (w, w, w, h, h, h), strict=True)
        ]
        return torch.stack(rows, -1).unflatten(-1, (2, 3))

    def _output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        return check_sizes(size, self.output_size, 2)[1]


def _check_masks(masks: torch.Tensor, images: torch.Tensor) -> None:
    if not isinstance(masks, torch.Tensor):
        raise TypeError(f"masks must be a torch.Tensor, got {type(masks).__name__}")
    n, _, h, w = images.shape
    fits = masks.ndim == 4 and masks.shape[0] == n and masks.shape[2:] == (h, w)
    expected = f"(N, C_m, H, W) = ({n}, C_m, {h}, {w}), one mask an image as masks[:, None]"
    checks.check_shape("masks", masks, fits, expected)


def _nearest(masks: torch.Tensor, theta: torch.Tensor, how: dict) -> torch.Tensor:
    read = masks.to(_LABELS.get(masks.dtype, masks.dtype))
    return spatial_transform(read, theta, mode="nearest", **how).to(masks.dtype)


def _range(name: str, value: float | Sequence[float]) -> tuple[float, float]:
    """(min, max), of a number m (-m, m)."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = (-abs(value), abs(value))
    low, high = _numbers(name, value, 2, -math.inf, math.inf)
    if low > high:
        raise ValueError(f"{name} must be (min, max), got {value!r}")
    return low, high


def _numbers(name: str, values, count: int, least: float, most: float) -> tuple[float, ...]:
    numbers = values if isinstance(values, Sequence) and not isinstance(values, str) else (None,)
    expected = "a number" if count == 1 else f"{count} numbers"
    got = repr(values[0] if count == 1 and len(numbers) == 1 else values)
    if any(isinstance(n, bool) or not isinstance(n, (int, float)) for n in numbers):
        raise TypeError(f"{name} must be {expected}, got {got}")
    if len(numbers) != count or not all(least <= n <= most for n in numbers):
        within = f" from {least:g} to {most:g}" if least > -math.inf else ""
        raise ValueError(f"{name} must be {expected}{within}, got {got}")
    return tuple(float(n) for n in numbers)
