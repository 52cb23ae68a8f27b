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


def write_svhn(folder: Path) -> Path:
    """Two house numbers, 57 and 0, and one of six digits, as the real file keeps them."""
    h5py = pytest.importorskip("h5py")
    Image = pytest.importorskip("PIL.Image")
    left, top, side = 8.0, 10.0, 12.0
    with h5py.File(folder / "digitStruct.mat", "w") as file:
        references = file.create_group("#refs#")
        names, boxes = [], []
        for i, labels in enumerate(([5, 7], [10], [1] * 6)):
            name = f"{i + 1}.png"
            picture = np.zeros((40, 60, 3), np.uint8)
            picture[int(top) : int(top + side), int(left) : int(left + side * len(labels))] = 255
            Image.fromarray(picture).save(folder / name)
            text = np.array([[ord(letter)] for letter in name], np.uint16)
            names.append(references.create_dataset(f"name{i}", data=text).ref)
            group = references.create_group(f"box{i}")
            of = {"label": labels, "top": [top] * len(labels), "height": [side] * len(labels)}
            of |= {"left": [left + side * k for k in range(len(labels))]}
            of |= {"width": [side] * len(labels)}
            for key, values in of.items():
                if len(values) == 1:
                    group[key] = [[float(values[0])]]
                    continue
                each = [
                    references.create_dataset(f"{key}{i}_{k}", data=[[float(value)]]).ref
                    for k, value in enumerate(values)
                ]
                group.create_dataset(key, data=[[ref] for ref in each], dtype=h5py.ref_dtype)
            boxes.append(group.ref)
        for name, of in (("name", names), ("bbox", boxes)):
            column = [[ref] for ref in of]
            file.create_dataset(f"digitStruct/{name}", data=column, dtype=h5py.ref_dtype)
    return folder
