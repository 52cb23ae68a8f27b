"""Reads what the experiments train on: MNIST's IDX files, scikit-learn's digits, SVHN's numbers."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from triton_stn import geometry, spatial_transform

SIZE = 28  # pixels a side of a digit
IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049
TRAINING_SHARE = 0.8  # of the test files' digits, the first, where the training files are not there
NO_DIGIT, LONGEST = 10, 5  # the target where a number has ended; digits of the longest number


class DataError(Exception):
    """Data that can not be read; the message names the file."""


@dataclass
class Digits:
    """images (N, 1, 28, 28) in [0, 1], labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __getitem__(self, index) -> Digits:
        return Digits(self.images[index], self.labels[index])

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Digits:
        return Digits(self.images.to(device), self.labels.to(device))

    def draw(self, count: int, generator: Generator) -> Digits:
        """``count`` of them, at random, with replacement."""
        index = torch.randint(len(self), (count,), generator=generator, device=generator.device)
        return self[index.to(self.labels.device)]

    def of(self, low: int, high: int) -> Digits:
        """Those with labels from ``low`` to ``high - 1``."""
        return self[(self.labels >= low) & (self.labels < high)]


@dataclass
class Scene:
    """What is trained on: images (N, C, [D,] S, S); targets (N,) or (N, 5) int64.

    boxes: (N, 4), left, top, right and bottom edge of the object in pixels, where it has one.
    """

    images: Tensor
    targets: Tensor
    boxes: Tensor | None = None

    def __getitem__(self, index) -> Scene:
        boxes = None if self.boxes is None else self.boxes[index]
        return Scene(self.images[index], self.targets[index], boxes)

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str) -> Scene:
        parts = (self.images, self.targets, self.boxes)
        return Scene(*(part if part is None else part.to(device) for part in parts))


def load(folder: Path | None) -> tuple[Digits, Digits]:
    """(to train on, held out): of MNIST's files in ``folder``, or scikit-learn's for None.

    With all four files the 60,000 and the 10,000; with the test files (t10k) alone, the first
    four fifths of them and the rest.

    Raises:
        DataError: a file that is missing, truncated, or of another kind.
    """
    if folder is not None and any(folder.glob("train-images-idx3-ubyte*")):
        return read_mnist(folder, "train"), read_mnist(folder, "t10k")
    digits = small_digits() if folder is None else read_mnist(folder, "t10k")
    split = int(TRAINING_SHARE * len(digits))
    return digits[:split], digits[split:]


def read_idx(path: Path, magic: int) -> np.ndarray:
    """An IDX file of bytes, gzipped or not: (N, H, W) for images, (N,) for labels.

    The format: big-endian int32s, magic (its last byte is the number of dimensions) and sizes, then
    the bytes. Source: http://yann.lecun.com/exdb/mnist.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise DataError(f"there is no file {str(path)!r}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"can not read {str(path)!r}, is it truncated? {error}") from None
    header = 4 * (1 + magic % 256)
    if len(content) < header:
        raise DataError(f"{str(path)!r} is truncated: {len(content)} bytes, no whole header")
    found, *shape = struct.unpack(f">{header // 4}i", content[:header])
    if found != magic:
        kind = "images" if magic == IMAGES_MAGIC else "labels"
        raise DataError(
            f"{str(path)!r} has the wrong magic number {found}, {magic} is that of {kind}"
        )
    if len(content) - header != math.prod(shape):
        raise DataError(
            f"{str(path)!r} must hold {' x '.join(map(str, shape))} bytes after its header, "
            f"got {len(content) - header}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_mnist(folder: Path, part: str = "t10k") -> Digits:
    """The digits of MNIST's test files, or its training files for ``part="train"``."""
    paths = []
    for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
        plain = folder / name
        paths.append(plain if plain.exists() else folder / f"{name}.gz")
    images, labels = (
        read_idx(path, magic)
        for path, magic in zip(paths, (IMAGES_MAGIC, LABELS_MAGIC), strict=True)
    )
    if len(images) != len(labels) or len(images) < 2:
        raise DataError(
            f"{str(folder)!r} must hold a label for each of at least 2 images, "
            f"got {len(images)} images and {len(labels)} labels"
        )
    if images.shape[1:] != (SIZE, SIZE):
        raise DataError(f"{str(paths[0])!r} must hold {SIZE}x{SIZE} images, got {images.shape[1:]}")
    if labels.max() > 9:
        raise DataError(f"{str(paths[1])!r} must hold labels from 0 to 9, got {labels.max()}")
    return Digits(
        torch.from_numpy(images / np.float32(255))[:, None], torch.from_numpy(labels.astype(int))
    )


def small_digits() -> Digits:
    """The 1,797 digits of 8x8 pixels that scikit-learn ships, enlarged."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(
            "without --data-dir the digits are scikit-learn's, which is not installed: "
            "pip install scikit-learn, or give --data-dir, a folder with MNIST's "
            "t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz"
        ) from None
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    images = spatial_transform(images, torch.eye(2, 3), SIZE, padding_mode="border")
    return Digits(images, torch.from_numpy(digits.target).long())


def load_svhn(folder: Path | None) -> tuple[Scene, Scene]:
    """(to train on, held out), of the folders ``train`` and ``test`` in ``folder``.

    Raises:
        DataError: as `read_svhn`, or for no folder: there is nothing to fall back on.
    """
    if folder is None:
        raise DataError("the house numbers are read from --data-dir's folders train and test")
    return read_svhn(folder / "train"), read_svhn(folder / "test")


def read_svhn(folder: Path, size: int = 64, limit: int | None = None) -> Scene:
    """The street-view house numbers: ``digitStruct.mat`` and its pictures, as ``sequences`` gives.

    Each picture is cropped to the box around its digits, a third wider on every side, and resized
    to ``size``². Numbers of more than five digits are left out. Needs h5py.

    Args:
        folder: what train.tar.gz or test.tar.gz unpacks to.
        limit: only so many pictures, the first.

    Raises:
        DataError: no such file, or h5py is not installed.

    Source: Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning",
    2011, http://ufldl.stanford.edu/housenumbers, format 1.
    """
    try:
        import h5py
    except ImportError:
        raise DataError("SVHN's digitStruct.mat needs h5py: pip install h5py") from None
    path = folder / "digitStruct.mat"
    try:
        file = h5py.File(path)
    except OSError as error:
        raise DataError(f"can not read {str(path)!r}: {error}") from None
    images, targets = [], []
    with file:
        names, boxes = file["digitStruct/name"], file["digitStruct/bbox"]
        for name, box in list(zip(names[:, 0], boxes[:, 0], strict=True))[:limit]:
            digits = {key: _numbers(file, file[box][key]) for key in file[box]}
            if len(digits["label"]) > LONGEST:
                continue
            picture = folder / "".join(map(chr, file[name][:, 0]))
            images.append(_crop(picture, digits, size))
            labels = [int(label) % 10 for label in digits["label"]]  # theirs is 10 for a zero
            targets.append(labels + [NO_DIGIT] * (LONGEST - len(labels)))
    if not images:
        raise DataError(f"{str(path)!r} holds no number of 1 to {LONGEST} digits")
    return Scene(torch.cat(images), torch.tensor(targets))


def _numbers(file, values) -> list[float]:
    """MATLAB keeps one number as itself, and several as references."""
    if len(values) == 1:
        return [float(values[0, 0])]
    return [float(file[reference][0, 0]) for reference in values[:, 0]]


def _crop(path: Path, box: dict[str, list[float]], size: int) -> Tensor:
    try:
        with Image.open(path) as file:
            picture = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)[None] / 255
    except OSError as error:
        raise DataError(f"can not read {str(path)!r}: {error}") from None
    h, w = picture.shape[-2:]
    left, top = min(box["left"]), min(box["top"])
    right = max(a + b for a, b in zip(box["left"], box["width"], strict=True))
    bottom = max(a + b for a, b in zip(box["top"], box["height"], strict=True))
    scale = (right - left) / w * 1.3, (bottom - top) / h * 1.3
    centre = (right + left) / w - 1, (bottom + top) / h - 1
    theta = geometry.affine((h, w), scale=scale, translation=centre)
    return spatial_transform(picture, theta, size, padding_mode="border", antialias=True)
