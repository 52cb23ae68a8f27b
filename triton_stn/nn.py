"""Spatial transformers as modules, and what keeps their training from collapsing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from triton_stn import checks
from triton_stn.backends.numbers import without_autocast
from triton_stn.buffers import hold
from triton_stn.functional import spatial_transform
from triton_stn.geometry.flows import integrate_velocity as integrate_velocity
from triton_stn.transforms import ThinPlateSpline, Transform, resolve
from triton_stn.types import Fill, Mode, Normalize, PaddingMode, Size, TransformName


class SpatialTransformer(nn.Module):
    """A localisation net that predicts θ from the images, and the images sampled through that θ.

    A linear head brings the localisation net's output to θ. It starts with zero weight and with the
    start θ as its bias, so that before training every image is sampled through the start θ. It runs
    outside autocast: 8 bits are too few for coordinates.

    Args:
        localization: any module that takes ``(N, C, H, W)`` and gives ``(N, ...)``, ``features``
            numbers a sample.
        features: numbers a sample in the localisation net's output.
        transform: a name or an object of ``triton_stn.transforms``.
        output_size: ``(H_out, W_out)``, an int for a square, or None for the input's size.
        num_transforms: K parallel transforms of each image.
        theta: start θ, ``theta_shape`` or ``(K, *theta_shape)``, such as ``tiles(...)``; None: the
            identity.
        mode, padding_mode, align_corners, fill_value, antialias, output_dtype, normalize: as in
            ``triton_stn.spatial_transform``. A uint8 image comes to the localisation net as it is,
            which then begins with what makes floats of it.

    Raises:
        TypeError, ValueError: an argument that does not fit; the message says what came and what
            was expected.

    Example:
        >>> localization = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16))
        >>> module = triton_stn.nn.SpatialTransformer(localization, 16, output_size=4)
        >>> output, theta = module(torch.rand(2, 1, 8, 8), return_theta=True)
        >>> output.shape
        torch.Size([2, 1, 4, 4])
        >>> theta[0].tolist()  # before training
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]

    Source: Jaderberg et al., "Spatial Transformer Networks", 2015, arXiv 1506.02025, section 3.
    """

    def __init__(
        self,
        localization: nn.Module,
        features: int,
        transform: TransformName | Transform = "affine",
        output_size: Size | None = None,
        num_transforms: int = 1,
        *,
        theta: torch.Tensor | None = None,
        mode: Mode = "bilinear",
        padding_mode: PaddingMode = "zeros",
        align_corners: bool = False,
        fill_value: Fill | None = None,
        antialias: bool = False,
        output_dtype: torch.dtype | None = None,
        normalize: Normalize | None = None,
    ) -> None:
        super().__init__()
        checks.check_count("features", features, 1)
        checks.check_count("num_transforms", num_transforms, 1)
        self.transform = resolve(transform)
        checks.check_options(mode, padding_mode, align_corners)
        checks.check_antialias(antialias, mode)
        checks.check_fill_value(fill_value, padding_mode, None)
        checks.check_finish(output_dtype, normalize, None)
        spatial = (1,) * self.transform.ndim
        checks.check_output_size(output_size, torch.empty(1, 1, *spatial, device="meta"))
        self.output_size = output_size
        self.num_transforms = num_transforms
        self.mode = mode
        self.padding_mode = padding_mode
        self.align_corners = align_corners
        self.antialias = antialias
        self.output_dtype = output_dtype
        mean, std = (None, None) if normalize is None else normalize
        hold(self, fill_value=fill_value, mean=mean, std=std)
        self.localization = localization
        one = tuple(self.transform.theta_shape)
        every = (num_transforms, *one)
        if theta is not None:
            checks.check_floating("theta", theta)
            expected = f"{one} or (num_transforms, *theta_shape) = {every}"
            checks.check_shape("theta", theta, tuple(theta.shape) in (one, every), expected)
        self._start = None if theta is None else theta.detach()
        self.head = nn.Linear(features, math.prod(every))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Bring the head back to the start θ, and what was given as tensors: after ``to_empty``."""
        theta = self.transform.identity(1) if self._start is None else self._start
        with torch.no_grad():
            for name, given in self._given.items():
                getattr(self, name).copy_(given)
            self.head.weight.zero_()
            self.head.bias.view(-1, *self.transform.theta_shape).copy_(theta)

    __prepare_scriptable__ = checks.refuse_script

    def forward(
        self, x: torch.Tensor, return_theta: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Transform ``x`` (N, C, H, W) by the θ predicted from it.

        Returns:
            ``(N, C, H_out, W_out)``, or ``(N, K, C, H_out, W_out)`` for ``num_transforms`` K > 1;
            with ``return_theta`` also θ, ``(N, *theta_shape)`` or ``(N, K, *theta_shape)``.

        Raises:
            ValueError: the localisation net does not give ``features`` numbers a sample.
        """
        theta = self.predict(x)
        output = self.sample(x, theta)
        output = _no_view(output, output.shape)
        return (output, theta) if return_theta else output

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """θ alone, as ``forward`` returns it."""
        features = self.localization(x)
        n, expected = x.shape[0], self.head.in_features
        flat = features.flatten(1) if features.ndim > 1 else features
        if flat.shape != (n, expected):
            raise ValueError(
                f"the localization net must give features = {expected} numbers for each of "
                f"{n} samples, got an output of shape {tuple(features.shape)}"
            )
        with without_autocast(x):
            theta = self.head(flat.to(self.head.weight.dtype))
        parallel = (self.num_transforms,) if self.num_transforms > 1 else ()
        return _no_view(theta, (n, *parallel, *self.transform.theta_shape))

    def sample(self, x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        """``x`` sampled through a θ of the shape that ``predict`` gives."""
        return spatial_transform(
            x,
            theta,
            self.output_size,
            transform=self.transform,
            mode=self.mode,
            padding_mode=self.padding_mode,
            align_corners=self.align_corners,
            fill_value=self.fill_value,
            antialias=self.antialias,
            output_dtype=self.output_dtype,
            normalize=None if self.mean is None else (self.mean, self.std),
        )

    def parameter_groups(
        self, lr: float, localization_lr_scale: float = 0.1
    ) -> list[dict[str, Any]]:
        """``parameter_groups(self, lr, localization_lr_scale)``: one group, the slower one."""
        return parameter_groups(self, lr, localization_lr_scale)

    def extra_repr(self) -> str:
        return (
            f"transform={self.transform!r}, output_size={self.output_size}, "
            f"num_transforms={self.num_transforms}, mode={self.mode!r}, "
            f"padding_mode={self.padding_mode!r}, align_corners={self.align_corners}"
        )


def _no_view(tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """``tensor``, which nobody else has, in a shape. FSDP2 hooks on to what a module returns, and
    warns of a view: an operation in place on it would leave the hook behind."""
    return torch.ops.aten._unsafe_view(tensor, shape)


def parameter_groups(
    model: nn.Module, lr: float, localization_lr_scale: float = 0.1
) -> list[dict[str, Any]]:
    """The parameters of a model for an optimizer, its transformers' slower.

    Args:
        model: any module; its ``SpatialTransformer``s may lie anywhere in it, and share a
            localisation net.
        lr: learning rate.
        localization_lr_scale: what the learning rate is multiplied by for localisation nets and
            heads. Jaderberg et al. take 0.1 for street-view numbers, 1e-4 for birds.

    Returns:
        one or two groups ``{"params": [...], "lr": ...}``, each parameter in one of them.

    Example:
        >>> module = triton_stn.nn.SpatialTransformer(torch.nn.Flatten(), 64)
        >>> model = torch.nn.Sequential(module, torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> [group["lr"] for group in triton_stn.nn.parameter_groups(model, lr=0.5)]
        [0.5, 0.05]
    """
    transformers = [m for m in model.modules() if isinstance(m, SpatialTransformer)]
    slow = dict.fromkeys(p for m in transformers for p in m.parameters())
    rest = [p for p in model.parameters() if p not in slow]
    groups = [
        {"params": rest, "lr": lr},
        {"params": list(slow), "lr": lr * localization_lr_scale},
    ]
    return [group for group in groups if group["params"]]


def out_of_view_penalty(
    theta: torch.Tensor,
    output_size: Size = 16,
    transform: TransformName | Transform = "affine",
    align_corners: bool = False,
) -> torch.Tensor:
    """How far a transformer looks outside the image: 0 where all it reads is inside.

    Args:
        theta: ``(..., *theta_shape)``.
        output_size: size of the sampling grid that is looked at, ``(H_out, W_out)`` or an int for a
            square. Need not be the output's own: the penalty is a mean over the grid.
        transform: a name or an object of ``triton_stn.transforms``.
        align_corners: as in ``triton_stn.spatial_transform``.

    Returns:
        a scalar: the mean, over all source coordinates, of the squared distance to the image, whose
        sides lie at -1 and 1. What a homography puts behind the viewer is far away and has no
        gradient.

    Raises:
        TypeError, ValueError: a θ or a size that does not fit.

    Example:
        >>> theta = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])  # half of it is to the right
        >>> triton_stn.nn.out_of_view_penalty(theta, output_size=2)
        tensor(0.1250)
    """
    grid = resolve(transform).grid(theta, output_size, align_corners)  # (..., H_out, W_out, 2)
    return (grid.abs() - 1).clamp(min=0).square().sum(-1).mean()


def identity_penalty(
    theta: torch.Tensor, transform: TransformName | Transform = "affine"
) -> torch.Tensor:
    """Mean squared difference of ``theta`` (..., *theta_shape) to the identity's: a scalar.

    Raises:
        TypeError, ValueError: a θ that does not fit.

    Example:
        >>> triton_stn.nn.identity_penalty(torch.tensor([0.5, 0.0, 0.0, 0.5]), "similarity").item()
        0.125
    """
    transform = resolve(transform)
    theta = transform.check_theta(theta)
    return (theta - transform.identity(dtype=theta.dtype, device=theta.device)).square().mean()


def tiles(rows: int, cols: int, transform: TransformName | Transform = "affine") -> torch.Tensor:
    """Start θ with which ``rows`` · ``cols`` parallel transformers tile the image, row by row.

    Attention and similarity scale both axes alike: each reads the largest window with the image's
    proportions that fits its tile. The others read the whole of it. A transform of your own has no
    meaning here.

    Returns:
        ``(rows * cols, *theta_shape)``.

    Raises:
        TypeError: ``rows`` or ``cols`` that is not an int.
        ValueError: ``rows`` or ``cols`` below 1, or a transform that is 3-D or of your own.

    Example:
        >>> triton_stn.nn.tiles(1, 2).tolist()
        [[[0.5, 0.0, -0.5], [0.0, 1.0, 0.0]], [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]]
    """
    checks.check_count("rows", rows, 1)
    checks.check_count("cols", cols, 1)
    transform = resolve(transform)
    if transform.ndim != 2:
        raise ValueError(f"transform must be 2-D, got {transform!r}")
    device = torch.empty(0).device
    device = torch.device("cpu") if device.type == "meta" else device  # a module is to start there
    x = (2 * torch.arange(cols, device=device) + 1) / cols - 1
    y = (2 * torch.arange(rows, device=device) + 1) / rows - 1
    centre = torch.cartesian_prod(y, x).flip(-1)  # (K, 2), (x, y)
    theta = transform.identity(rows * cols, device=device)
    if transform.name in ("attention", "similarity"):
        theta[:, 0] /= max(rows, cols)
        theta[:, -2:] = centre
        return theta
    scale = torch.tensor([1 / cols, 1 / rows], device=device)
    if transform.name in ("affine", "projective"):
        theta[:, [0, 1], [0, 1]] = scale
        theta[:, :2, 2] = centre
        return theta
    if isinstance(transform, ThinPlateSpline):
        return theta * scale + centre[:, None]  # control points
    raise ValueError(f"transform must be one of triton_stn's own, got {transform!r}")
