"""Digits for the tests of the examples: real ones where they are, IDX files and made-up ones."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

DATA = Path(__file__).parents[2] / "shared" / "data" / "mnist"
IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs the digits of ../shared/data")


def idx(values, magic: int | None = None) -> bytes:
    """The bytes of an IDX file."""
    values = np.asarray(values, np.uint8)
    return struct.pack(f">{1 + values.ndim}i", magic or 2048 + values.ndim, *values.shape) + bytes(
        values
    )


def write(folder: Path, images: bytes, labels: bytes) -> list[str]:
    (folder / IMAGES).write_bytes(images)
    (folder / LABELS).write_bytes(labels)
    return ["--data-dir", str(folder)]


def made_up(count: int = 10):
    """Bars whose place is their label."""
    labels = np.arange(count) % 10
    images = np.zeros((count, 28, 28), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2:26, 2 + 2 * label : 6 + 2 * label] = 255
    return images, labels
