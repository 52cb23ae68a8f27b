"""The networks of the spatial-transformer literature, each with its transformers and without.

Where two networks are compared, the widest hidden layer is chosen so that all have about the same
number of parameters, as in Jaderberg et al. 2015 (arXiv 1506.02025), whose appendix A has the
layers: a transformer is paid for by a narrower classifier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triton_stn import ThinPlateSpline, checks
from triton_stn.nn import SpatialTransformer, tiles
from triton_stn.transforms import Affine, MatrixTransform, Transform, resolve

TRANSFORMS = {
    "affine": "affine",
    "attention": "attention",
    "similarity": "similarity",
    "projective": "projective",
    "tps": ThinPlateSpline(4, 4),
}


@dataclass(frozen=True)
class Shape:
    """What a network takes and gives, and how large it may be.

    image: (C, [D,] H, W); classes: of one answer, or of one of several (``answers``);
    crop: side of what a transformer hands on, in pixels; zoom: the share of the image's width that
    it reads at first; filters: of a convolution; capacity: parameters that the network may have.
    """

    image: tuple[int, ...]
    classes: int = 10
    answers: int = 1
    crop: int = 28
    zoom: float = 1.0
    filters: int = 32
    capacity: int = 400_000


Build = Callable[[Shape, str], nn.Module]


def count(network: nn.Module) -> int:
    """Its parameters."""
    return sum(p.numel() for p in network.parameters())


def transformers(network: nn.Module) -> list[SpatialTransformer]:
    """In the order in which images meet them."""
    return [m for m in network.modules() if isinstance(m, SpatialTransformer)]


def use_pytorch(network: nn.Module) -> None:
    """Let its transformers sample by ``F.affine_grid`` + ``F.grid_sample``, to be compared with."""
    for transformer in transformers(network):
        transformer.sample = partial(_sample_by_pytorch, transformer)


def _sample_by_pytorch(transformer: SpatialTransformer, x: Tensor, theta: Tensor) -> Tensor:
    """(N, C, ...) and θ (N, [K,] ...) -> (N, [K,] C, ...); K maps read K copies of an image."""
    transform, align = transformer.transform, transformer.align_corners
    leading = theta.shape[: theta.ndim - len(transform.theta_shape)]
    theta = theta.flatten(0, len(leading) - 1)
    images = x.repeat_interleave(len(theta) // len(x), 0)
    size = checks.check_output_size(transformer.output_size, x)
    if transform.is_affine:
        matrix = transform.matrix(theta)
        grid = F.affine_grid(matrix, (len(theta), x.shape[1], *size), align)
    else:
        grid = transform.grid(theta, size, align)
    options = (transformer.mode, transformer.padding_mode, align)
    return F.grid_sample(images, grid, *options).unflatten(0, leading)


def zoomed(transform: str | Transform, zoom: float) -> Tensor:
    """The θ that reads the middle of the image, ``zoom`` of its width and height."""
    transform = resolve(transform)
    theta = transform.identity()
    if transform.name in ("attention", "similarity"):
        theta[0] *= zoom
    elif transform.name == "tps":
        theta *= zoom
    else:
        theta[:2, :2] *= zoom
    return theta


def of_capacity(build: Callable[[int], nn.Module], capacity: int) -> nn.Module:
    """The network of the greatest width, from 8, whose parameters are no more than ``capacity``."""
    low, high = 8, 16
    with torch.device("meta"):
        while count(build(high)) <= capacity:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if count(build(middle)) <= capacity else (low, middle)
    return build(low)


def features(module: nn.Module, shape: tuple[int, ...]) -> int:
    """How many numbers the module gives for an image of that shape."""
    with torch.no_grad():
        where = next((p.device for p in module.parameters()), torch.device("cpu"))
        return module(torch.zeros(1, *shape, device=where)).numel()


def answer(shape: Shape, inputs: int) -> nn.Module:
    """The last layer: logits (N, classes), or (N, classes, answers)."""
    if shape.answers == 1:
        return nn.Linear(inputs, shape.classes)
    return nn.Sequential(
        nn.Linear(inputs, shape.classes * shape.answers),
        nn.Unflatten(1, (shape.classes, shape.answers)),
    )


def dense(image: tuple[int, ...], shape: Shape, width: int) -> nn.Module:
    """Fully connected: two hidden layers."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(torch.Size(image).numel(), width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        answer(shape, width),
    )


def convolutional(image: tuple[int, ...], shape: Shape, width: int) -> nn.Module:
    """9×9 and 7×7 filters, a 2×2 pool after each, a hidden layer."""
    trunk = nn.Sequential(
        nn.Conv2d(image[0], shape.filters, 9),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(shape.filters, shape.filters, 7),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
    )
    hidden = nn.Linear(features(trunk, image), width)
    return nn.Sequential(*trunk, hidden, nn.ReLU(), answer(shape, width))


def dense_localization(image: tuple[int, ...]) -> tuple[nn.Module, int]:
    """Three hidden layers of 32, and how many numbers come out."""
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = torch.Size(image).numel()
    for _ in range(3):
        layers += [nn.Linear(inputs, 32), nn.ReLU()]
        inputs = 32
    return nn.Sequential(*layers), 32


def convolutional_localization(image: tuple[int, ...]) -> tuple[nn.Module, int]:
    """Two 5×5 convolutions of 20 filters on the image at half its size, and a layer of 20."""
    trunk = nn.Sequential(
        nn.AvgPool2d(2),
        nn.Conv2d(image[0], 20, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 20, 5 if image[-1] >= 40 else 3),
        nn.ReLU(),
        nn.Flatten(),
    )
    return nn.Sequential(*trunk, nn.Linear(features(trunk, image), 20), nn.ReLU()), 20


def pooled_localization(image: tuple[int, ...]) -> tuple[nn.Module, int]:
    """Of feature maps: two hidden layers of 32 on their means over an 8×8 grid."""
    inputs = image[0] * 8 * 8
    layers = nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(inputs, 32), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(32, 32), nn.ReLU()), 32


def _after_transformer(localization, classifier, k: int = 1) -> Build:
    """A builder: ``k`` transformers with one localiser, whose crops are the classifier's channels.

    The classifier is narrowed to make room for them.
    """

    def build(shape: Shape, transform: str) -> nn.Module:
        crop = (k * shape.image[0], shape.crop, shape.crop)

        def of_width(width: int) -> nn.Module:
            warp = TRANSFORMS[transform]
            transformer = SpatialTransformer(
                *localization(shape.image),
                *(warp, shape.crop, k),
                theta=zoomed(warp, shape.zoom),
            )
            side_by_side = [nn.Flatten(1, 2)] if k > 1 else []
            return nn.Sequential(transformer, *side_by_side, *classifier(crop, shape, width))

        return of_capacity(of_width, shape.capacity)

    return build


def _alone(classifier) -> Build:
    def build(shape: Shape, transform: str) -> nn.Module:
        return of_capacity(lambda width: classifier(shape.image, shape, width), shape.capacity)

    return build


def tutorial(shape: Shape, transform: str | None) -> nn.Module:
    """That of PyTorch's spatial transformer tutorial, for 28×28 pixels; None: no transformer."""
    localization = nn.Sequential(
        nn.Conv2d(1, 8, 7),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(8, 10, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(90, 32),
        nn.ReLU(),
    )
    classifier = nn.Sequential(
        nn.Conv2d(1, 10, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(10, 20, 5),
        nn.Dropout2d(),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(320, 50),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(50, 10),
    )
    if transform is None:
        return classifier
    return nn.Sequential(SpatialTransformer(localization, 32, TRANSFORMS[transform]), *classifier)


def large(shape: Shape, transform: str | None) -> nn.Module:
    """For 512×512×3: four strided convolutions look at the image, a small network at the crop."""
    layers: list[nn.Module] = []
    inputs = shape.image[0]
    for outputs in (64, 128, 256, 512):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
        inputs = outputs
    trunk = nn.Sequential(
        *layers,
        nn.Conv2d(512, 256, 1, bias=False),
        nn.Conv2d(256, 1, 1, bias=False),
        nn.Flatten(),
    )
    inner = nn.Linear(features(trunk.eval(), shape.image), 128)
    localization = nn.Sequential(*trunk.train(), inner, nn.BatchNorm1d(128), nn.ReLU())
    for module in localization.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    crop = (shape.image[0], shape.crop, shape.crop)
    if transform is None:
        return nn.Sequential(nn.AdaptiveAvgPool2d(shape.crop), *convolutional(crop, shape, 128))
    transformer = SpatialTransformer(localization, 128, TRANSFORMS[transform], shape.crop)
    return nn.Sequential(transformer, *convolutional(crop, shape, 128))


def _reader(where: Callable[[int], bool]) -> Build:
    """Of sequences: six convolutions, a transformer before those for which ``where`` holds.

    ``filters`` are the first one's, the last have three times as many. In the manner of the paper's
    network for house numbers, and smaller.
    """

    def build(shape: Shape, transform: str) -> nn.Module:
        filters = [round(ratio * shape.filters) for ratio in (1, 1.5, 2, 3, 3, 3)]

        def of_width(width: int) -> nn.Module:
            layers: list[nn.Module] = []
            image = shape.image
            for i, outputs in enumerate(filters):
                if where(i):
                    localization = pooled_localization if i else convolutional_localization
                    layers.append(SpatialTransformer(*localization(image), TRANSFORMS[transform]))
                layers += [nn.Conv2d(image[0], outputs, 5 if i == 0 else 3, padding="same")]
                layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
                shrinks = i % 2 == 0 or (i == 1 and image[-1] > 32)
                layers += [nn.MaxPool2d(2)] if shrinks else []
                image = (outputs, *(side // (1 + shrinks) for side in image[1:]))
            hidden = nn.Linear(torch.Size(image).numel(), width)
            return nn.Sequential(*layers, nn.Flatten(), hidden, nn.ReLU(), answer(shape, width))

        return of_capacity(of_width, shape.capacity)

    return build


@dataclass(frozen=True)
class Window(MatrixTransform):
    """θ (2,) = (t_x, t_y): a window that moves, ``scale`` of the image's width and height."""

    scale: float = 0.5
    name: ClassVar[str] = "window"
    theta_shape: ClassVar[tuple[int, ...]] = (2,)

    def matrix(self, theta):
        theta = self.check_theta(theta)
        scale = self.scale * torch.eye(2, dtype=theta.dtype, device=theta.device)
        return torch.cat((scale.expand(*theta.shape[:-1], 2, 2), theta[..., None]), -1)

    def _identity(self):
        return torch.zeros(2, dtype=torch.float64)


class Parts(nn.Module):
    """K windows of half the image, one localiser for all; each window has a detector of its own."""

    def __init__(self, shape: Shape, k: int, width: int):
        super().__init__()
        start = tiles(2, 2)[:, :, 2] if k == 4 else torch.tensor([[-0.3, 0.0], [0.3, 0.0]])
        crop = (shape.image[0], shape.crop, shape.crop)
        self.transformer = SpatialTransformer(
            *convolutional_localization(shape.image),
            Window(),
            shape.crop,
            num_transforms=k,
            theta=start,
        )
        each = Shape(shape.image, classes=width, filters=shape.filters)
        self.detectors = nn.ModuleList(convolutional(crop, each, width) for _ in range(k))
        self.answer = answer(shape, k * width)

    def forward(self, x: Tensor) -> Tensor:
        crops = self.transformer(x).unbind(1)
        parts = [part(crop) for part, crop in zip(self.detectors, crops, strict=True)]
        return self.answer(torch.cat(parts, 1).relu())


def _parts(k: int) -> Build:
    def build(shape: Shape, transform: str) -> nn.Module:
        return of_capacity(lambda width: Parts(shape, k, width), shape.capacity)

    return build


class Flattened(nn.Module):
    """The mean of a volume along its depth: (N, C, D, H, W) -> (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(2)


def _volume(with_transformer: bool) -> Build:
    """A volume is turned by a 3×4 affine map, then flattened along its depth and read."""

    def build(shape: Shape, transform: str) -> nn.Module:
        flat = (shape.image[0], *shape.image[2:])
        localization = nn.Sequential(
            nn.AvgPool3d(3),
            nn.Conv3d(shape.image[0], 16, 5, stride=2),
            nn.ReLU(),
            nn.Conv3d(16, 32, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
        )
        inner = nn.Linear(features(localization, shape.image), 32)

        def of_width(width: int) -> nn.Module:
            reader = convolutional(flat, shape, width)
            if not with_transformer:
                return nn.Sequential(Flattened(), *reader)
            localizer = nn.Sequential(*localization, inner, nn.ReLU())
            return nn.Sequential(SpatialTransformer(localizer, 32, Affine(3)), Flattened(), *reader)

        return of_capacity(of_width, shape.capacity)

    return build


MODELS: dict[str, Build] = {
    "fcn": _alone(dense),
    "cnn": _alone(convolutional),
    "st-fcn": _after_transformer(dense_localization, dense),
    "st-cnn": _after_transformer(convolutional_localization, convolutional),
    "2st-fcn": _after_transformer(dense_localization, dense, k=2),
    "tutorial": tutorial,
    "tutorial-cnn": lambda shape, transform: tutorial(shape, None),
    "large": large,
    "large-cnn": lambda shape, transform: large(shape, None),
    "reader": _reader(lambda i: False),
    "reader-single": _reader(lambda i: i == 0),
    "reader-multi": _reader(lambda i: i < 4),
    "2st-cnn": _parts(2),
    "4st-cnn": _parts(4),
    "cnn-3d": _volume(False),
    "st-3d": _volume(True),
}
