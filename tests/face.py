"""All of the public face, as a user writes it, with the type of each result.

``.ci/run`` has ``mypy --strict`` check it through the editable install, where every ignored error
must be one, and runs it against the built wheel, without this checkout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from typing_extensions import assert_type

import triton_stn
from triton_stn import augment, geometry, plot
from triton_stn.nn import SpatialTransformer
from triton_stn.transforms import MatrixTransform, Transform, resolve
from triton_stn.types import Differences, Fill, Mode, Normalize, PaddingMode, Size

IMAGE = torch.rand(2, 3, 6, 8)
THETA = torch.eye(2, 3)
GRID = torch.zeros(2, 4, 4, 2)


def sampling(mode: Mode = "nearest", padding: PaddingMode = "border", size: Size = (4, 5)) -> None:
    fills: list[Fill] = [1, 0.5, [0.0, 0.5, 1.0], torch.zeros(3)]
    for fill in fills:
        assert_type(triton_stn.spatial_transform(IMAGE, THETA, fill_value=fill), Tensor)
    sizes: list[Size | None] = [None, 4, (4, 5), [4, 5], torch.Size([4, 5]), size]
    for one in sizes:
        triton_stn.spatial_transform(IMAGE, THETA, one, mode=mode, padding_mode=padding)
    spline = triton_stn.ThinPlateSpline(2, 3)
    triton_stn.spatial_transform(
        IMAGE, spline.identity(2), size, transform=spline, align_corners=True, antialias=True
    )
    assert_type(triton_stn.grid_sample(IMAGE, GRID, mode, padding), Tensor)
    assert_type(triton_stn.flow_warp(IMAGE, torch.zeros(2, 2, 6, 8), mode, padding), Tensor)
    assert_type(triton_stn.splat(IMAGE, THETA, size, mode=mode, normalize=True), Tensor)
    assert_type(triton_stn.grid_splat(torch.rand(2, 3, 4, 4), GRID, size), Tensor)
    with triton_stn.use_backend("torch"):
        assert_type(triton_stn.spatial_transform(IMAGE, THETA), Tensor)


def of_bytes() -> None:
    frames = torch.zeros(2, 6, 8, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    numbers: list[Normalize] = [(0.5, 0.2), ([0.4, 0.5, 0.6], 0.2), (torch.zeros(3), [1, 2, 3])]
    for normalize in numbers:
        triton_stn.spatial_transform(
            frames, THETA, output_dtype=torch.bfloat16, normalize=normalize
        )
        triton_stn.grid_sample(frames, GRID, normalize=normalize)
        triton_stn.flow_warp(frames, torch.zeros(2, 2, 6, 8), normalize=normalize)
        SpatialTransformer(nn.Flatten(), 144, output_dtype=torch.half, normalize=normalize)
    assert_type(triton_stn.spatial_transform(frames, THETA), Tensor)


def patched() -> None:
    with triton_stn.patch() as patch:
        grid = nn.functional.affine_grid(THETA.expand(2, 2, 3), [2, 3, 4, 5], align_corners=False)
        assert_type(nn.functional.grid_sample(IMAGE, grid, align_corners=False), Tensor)
    assert_type(patch.report().spatial_transform, int)
    assert_type(triton_stn.patch.report().left, Mapping[str, int])
    triton_stn.patch()
    triton_stn.unpatch()


class Shift(MatrixTransform):
    """A transform of a user's own: θ (1,) moves along x."""

    name = "shift"
    theta_shape = (1,)

    def matrix(self, theta: Tensor) -> Tensor:
        return torch.eye(2, 3) + theta[..., None] * torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])

    def _identity(self) -> Tensor:
        return torch.zeros(1, dtype=torch.float64)


def transforms() -> None:
    kinds: list[Transform] = [
        triton_stn.Affine(),
        triton_stn.Attention(),
        triton_stn.Similarity(),
        triton_stn.Projective(),
        triton_stn.ThinPlateSpline(2, 2),
        triton_stn.ThinPlateSpline(points=torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])),
        Shift(),
        resolve("affine", 2),
    ]
    for kind in kinds:
        theta = kind.identity((2, 3), dtype=torch.float32)
        assert_type(theta, Tensor)
        assert_type(kind.grid(theta, (4, 5)), Tensor)
        assert_type(kind.patches(theta, 4), Tensor)
        assert_type(triton_stn.spatial_transform(IMAGE, theta, 4, transform=kind), Tensor)
    affine = triton_stn.Affine(3)
    assert_type(affine.theta_shape, tuple[int, ...])
    assert_type(affine.matrix(torch.eye(3, 4)), Tensor)
    assert_type(affine.source(torch.eye(3, 4), torch.zeros(1, 3)), Tensor)
    assert_type(affine.target(torch.eye(3, 4), torch.zeros(1, 3)), Tensor)
    assert_type(triton_stn.ThinPlateSpline(2, 2).coefficients(torch.zeros(4, 2)), Tensor)


def modules() -> None:
    localization = nn.Sequential(nn.Flatten(), nn.Linear(144, 8))
    start = triton_stn.nn.tiles(1, 2, "attention")
    module = SpatialTransformer(localization, 8, "attention", 4, 2, theta=start, mode="bicubic")
    assert_type(module.predict(IMAGE), Tensor)
    assert_type(module.sample(IMAGE, module.predict(IMAGE)), Tensor)
    assert_type(module.forward(IMAGE), Tensor | tuple[Tensor, Tensor])
    assert_type(module.parameter_groups(1e-3), list[dict[str, Any]])
    torch.optim.SGD(triton_stn.nn.parameter_groups(module, 1e-3))
    assert_type(triton_stn.nn.out_of_view_penalty(THETA, (4, 5)), Tensor)
    assert_type(triton_stn.nn.identity_penalty(start, "attention"), Tensor)
    assert_type(triton_stn.nn.integrate_velocity(torch.zeros(2, 2, 6, 8), steps=3), Tensor)


def geometries() -> None:
    theta = geometry.affine((6, 8), 4, scale=(0.5, 1), rotation=torch.tensor(0.1), shear=(0, 0.1))
    assert_type(theta, Tensor)
    assert_type(geometry.compose(theta, geometry.invert(theta)), Tensor)
    matrix = geometry.to_pixel_matrix(theta, (6, 8), direction="input_to_output")
    assert_type(matrix, Tensor)
    assert_type(geometry.from_pixel_matrix(matrix.tolist(), (6, 8)), Tensor)
    assert_type(geometry.quadrilateral(theta, [6, 8], points_per_edge=2), Tensor)
    assert_type(geometry.inside_mask(theta, 6, transform="affine"), Tensor)
    assert_type(geometry.valid_fraction(theta, 6), Tensor)
    points, boxes = torch.rand(2, 5, 2), torch.tensor([[1.0, 0.0, 4.0, 5.0]])
    read = geometry.map_points(theta, points, (6, 8), [4, 4], direction="output_to_input")
    assert_type(read, Tensor)
    assert_type(geometry.map_points(theta, read, 6, transform="affine", pixels=False), Tensor)
    mapped = geometry.map_boxes(theta, boxes, (6, 8), 4, points_per_edge=2)
    assert_type(mapped, geometry.MappedBoxes)
    assert_type(mapped.boxes[mapped.valid], Tensor)
    assert_type(mapped.visible, Tensor)
    assert_type(geometry.from_boxes(boxes, (6, 8), 4, align_corners=True), Tensor)
    assert_type(geometry.from_rotated_boxes(torch.rand(2, 3, 5), [6, 8]), Tensor)


def conventions() -> None:
    square = [[0, 0], [8, 0], [8, 6], [0, 6]]
    assert_type(geometry.normalize_points(torch.rand(5, 2), (6, 8)), Tensor)
    assert_type(geometry.from_torchvision_affine((6, 8), 30.0, center=(2, 3)), Tensor)
    assert_type(geometry.from_torchvision_perspective(square, square, (6, 8)), Tensor)
    assert_type(geometry.from_monai(THETA.tolist(), (6, 8), [4, 4]), Tensor)


def labels() -> None:
    square = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    assert_type(geometry.homography(square, square), Tensor)
    change = augment.RandomTransform(degrees=(-10, 10), elastic=1.0, control_points=(3, 3), p=0.5)
    boxes, points = torch.tensor([[[0.0, 0.0, 2.0, 3.0]]]), torch.zeros(1, 2, 2)
    images = torch.zeros(1, 1, 6, 8)
    made = change.forward(images, images, boxes, points, generator=torch.Generator())
    assert_type(made, augment.Augmented)
    assert_type(made.images, Tensor)
    assert_type(made.points, Tensor | None)
    assert_type(change.draw(3, (6, 8)), Tensor)
    mapped = geometry.map_boxes(change.draw(1, 6), boxes, 6, transform=change.transform)
    assert_type(mapped, geometry.MappedBoxes)
    assert_type(mapped.visible, Tensor)
    assert_type(geometry.map_points(THETA, points, 6, direction="output_to_input"), Tensor)
    assert_type(geometry.from_boxes(boxes, 6), Tensor)
    assert_type(geometry.from_rotated_boxes(torch.zeros(1, 1, 5), [6, 8]), Tensor)


def flows(differences: Differences = "corners") -> None:
    flow = torch.zeros(2, 2, 6, 8)
    assert_type(geometry.compose_flows(flow, flow), Tensor)
    assert_type(geometry.flow_inside_mask(flow, (4, 5)), Tensor)
    assert_type(geometry.jacobian_determinant(flow, differences), Tensor)


def pictures() -> None:
    assert_type(plot.show(IMAGE, THETA, IMAGE), Figure)
    assert_type(plot.grid_image(IMAGE), Figure)


def refused() -> None:
    """By the type checker and by the library."""
    wrong: list[Callable[[], object]] = [
        lambda: triton_stn.spatial_transform(IMAGE, THETA, mode="cubic"),  # type: ignore[arg-type]
        lambda: triton_stn.grid_sample(IMAGE, GRID, "linear"),  # type: ignore[arg-type]
        lambda: triton_stn.splat(IMAGE, THETA, padding_mode="wrap"),  # type: ignore[arg-type]
        lambda: triton_stn.spatial_transform(IMAGE, THETA, "64"),  # type: ignore[arg-type]
        lambda: triton_stn.Affine().identity("2"),  # type: ignore[arg-type]
        lambda: geometry.affine("64"),  # type: ignore[arg-type]
        lambda: geometry.inside_mask(THETA, "6"),  # type: ignore[arg-type]
        lambda: geometry.jacobian_determinant(IMAGE[:, :2], "all"),  # type: ignore[arg-type]
        lambda: SpatialTransformer(nn.Flatten(), 144, output_size="64"),  # type: ignore[arg-type]
        lambda: SpatialTransformer(nn.Flatten(), 144, "rigid"),  # type: ignore[arg-type]
    ]
    for call in wrong:
        try:
            call()
        except (TypeError, ValueError):
            continue
        raise AssertionError("not refused")


if __name__ == "__main__":
    of_calls = (sampling, of_bytes, patched, transforms, modules)
    for part in (*of_calls, geometries, conventions, flows, labels, pictures, refused):
        part()
    print(f"triton_stn {triton_stn.__version__} of {triton_stn.__path__[0]}")
