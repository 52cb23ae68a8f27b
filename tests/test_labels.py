"""Points and boxes follow θ as the image does, and boxes make θ of crops."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from conftest import check_refusal
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

import triton_stn
from triton_stn import geometry
from triton_stn.transforms import (
    Affine,
    Attention,
    Projective,
    Similarity,
    ThinPlateSpline,
    Transform,
)

SIZE, OUT = (60, 80), (50, 64)


@dataclass(frozen=True)
class Barrel(Transform):
    """Of a user: p·(1 − k·|p|²), θ (1,) = (k,). It folds where |p|² = 1/(3k)."""

    name: ClassVar[str] = "barrel"
    theta_shape: ClassVar[tuple[int, ...]] = (1,)

    def source(self, theta, points):
        k = self.check_theta(theta)[..., None, :]
        return points * (1 - k * points.square().sum(-1, keepdim=True))

    def _identity(self):
        return torch.zeros(1, dtype=torch.float64)


SPLINE = ThinPlateSpline(3, 4)
KINDS = {
    "affine": (Affine(), [[0.7, -0.3, 0.1], [0.2, 0.9, -0.05]]),
    "attention": (Attention(), [0.8, 0.1, -0.1]),
    "similarity": (Similarity(), [0.8, 0.5, 0.1, -0.1]),
    "projective": (Projective(), [[0.9, -0.2, 0.1], [0.1, 0.8, 0.0], [0.2, -0.15, 1.1]]),
    "tps": (SPLINE, None),
    "a user's": (Barrel(), [0.1]),
    "3-D": (Affine(3), [[0.8, -0.2, 0.1, 0.1], [0.2, 0.9, -0.1, 0.0], [0.1, 0.05, 0.7, -0.1]]),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
corners = pytest.mark.parametrize("align_corners", [False, True])
thinned = pytest.mark.thinned()
one_kind = pytest.mark.parametrize(  # Newton's steps take a compiler seconds
    "kind",
    [pytest.param(kind, marks=[pytest.mark.landing] * (kind != "a user's")) for kind in KINDS],
)
directions = pytest.mark.parametrize("direction", ["output_to_input", "input_to_output"])


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def case(kind, dtype=torch.float64):
    """(transform, θ, the input's size, the output's)."""
    transform, theta = KINDS[kind]
    if theta is None:
        theta = 0.8 * transform.identity(dtype=torch.float64) + 0.08 * noise(*transform.theta_shape)
    sizes = (SIZE, OUT) if transform.ndim == 2 else ((20, 24, 28), (18, 22, 26))
    return transform, torch.as_tensor(theta).to(dtype), *sizes


def grid_of(size):
    """Pixel coordinates (P, ndim), x first."""
    axes = torch.meshgrid(*(torch.arange(n).double() for n in size), indexing="ij")
    return torch.stack(axes[::-1], -1).flatten(0, -2)


# Points


@thinned
@every_kind
@corners
def test_a_keypoint_lands_where_its_pixels_do(kind, align_corners):
    """A blob drawn around it is found, as a centroid, at the mapped point."""
    transform, theta, size, out_size = case(kind)
    extent = torch.tensor(size[::-1]).double()
    points = (0.2 + 0.6 * uniform(20, transform.ndim)) * extent
    mapped = geometry.map_points(
        theta, points, size, out_size, transform=transform, align_corners=align_corners
    )
    last = torch.tensor(out_size[::-1]) - 1
    seen = ((mapped > 6) & (mapped < last - 6)).all(-1)
    assert seen.sum() >= 3
    points, mapped = points[seen], mapped[seen]
    distance = (grid_of(size) - points[:, None]).square().sum(-1)
    blobs = torch.exp(-distance / 4.5).view(-1, 1, *size)
    with triton_stn.use_backend("torch"):
        moved = triton_stn.spatial_transform(
            blobs, theta, out_size, transform=transform, align_corners=align_corners
        )
    weight = moved.flatten(1)[..., None]
    centroid = (weight * grid_of(out_size)).sum(1) / weight.sum(1)
    assert (centroid - mapped).abs().max() < (0.5 if kind != "affine" else 0.05)


@thinned
@every_kind
@corners
def test_what_an_output_pixel_reads_is_its_place_on_the_grid(kind, align_corners):
    transform, theta, size, out_size = case(kind)
    read = geometry.map_points(
        theta,
        grid_of(out_size),
        size,
        out_size,
        transform=transform,
        align_corners=align_corners,
        direction="output_to_input",
    )
    grid = transform.grid(theta, out_size, align_corners).flatten(0, -2)
    extent = torch.tensor([n - align_corners for n in size[::-1]])
    assert_close(read, grid * extent / 2 + (torch.tensor(size[::-1]) - 1) / 2)


@thinned
@every_kind
@corners
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_there_and_back_is_the_same_pixel(kind, align_corners, dtype, tolerance):
    transform, theta, size, out_size = case(kind, dtype)
    if dtype == torch.float32 and kind == "tps":
        tolerance = 1e-2
    points = (uniform(200, transform.ndim) * torch.tensor(out_size[::-1])).to(dtype)
    options = dict(transform=transform, align_corners=align_corners)
    there = geometry.map_points(
        theta, points, size, out_size, direction="output_to_input", **options
    )
    back = geometry.map_points(theta, there, size, out_size, **options)
    assert back.dtype == dtype
    assert (back - points).abs().max() < tolerance


def test_a_keypoint_by_hand():
    """The output is the input's right half: half of the columns, all of the rows."""
    theta = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]])
    points = torch.tensor([[4.0, 0.0], [7.0, 3.0], [0.0, 1.0]])
    mapped = geometry.map_points(theta, points, (4, 8), 4)
    assert mapped.tolist() == [[0, 0], [3, 3], [-4, 1]]
    corner = torch.tensor([[1.0, -1.0]])
    assert geometry.map_points(theta, corner, (4, 8), pixels=False).tolist() == [[1, -1]]
    there = geometry.map_points(theta, -corner, 4, pixels=False, direction="output_to_input")
    assert there.tolist() == [[0, 1]]


@thinned
@every_kind
@directions
def test_leading_dimensions_broadcast(kind, direction):
    transform, theta, size, out_size = case(kind)
    points = 10 + 5 * uniform(2, 1, 4, transform.ndim)
    many = theta * (1 + 0.1 * uniform(2, 3, *(1 for _ in theta.shape)))
    options = dict(transform=transform, direction=direction)
    mapped = geometry.map_points(many, points, size, out_size, **options)
    assert mapped.shape == (2, 3, 4, transform.ndim)
    alone = geometry.map_points(many[1, 2], points[1, 0], size, out_size, **options)
    assert_close(mapped[1, 2], alone)
    assert geometry.map_points(theta, points, size, out_size, **options).shape == points.shape
    wide = geometry.map_points(many[0], points[0, 0], size, out_size, **options)
    assert wide.shape == (3, 4, transform.ndim)
    empty = geometry.map_points(many, points[:, :, :0], size, out_size, **options)
    assert empty.shape == (2, 3, 0, transform.ndim)


def test_results_are_of_the_wider_dtype_and_at_least_float32():
    half, double = torch.eye(2, 3).half(), torch.zeros(1, 2).double()
    assert geometry.map_points(half, double.half(), 4).dtype == torch.float32
    assert geometry.map_points(half, double, 4).dtype == torch.float64
    assert geometry.map_points(half.double(), double.half(), 4).dtype == torch.float64


@every_kind
@directions
def test_gradcheck_of_points(kind, direction):
    transform, theta, size, out_size = case(kind)
    theta = theta.requires_grad_()
    points = (10 + 8 * uniform(2, transform.ndim)).requires_grad_()

    def call(theta, points):
        return geometry.map_points(
            theta, points, size, out_size, transform=transform, direction=direction
        )

    assert torch.autograd.gradcheck(call, (theta, points), check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (theta, points), fast_mode=True)


@directions
def test_a_point_on_a_splines_control_point_has_a_gradient(direction):
    theta = SPLINE.identity(dtype=torch.float64).requires_grad_()
    points = SPLINE.points[:5].clone().requires_grad_()
    mapped = geometry.map_points(
        theta, points, SIZE, transform=SPLINE, direction=direction, pixels=False
    )
    assert_close(mapped, points)
    (slope,) = torch.autograd.grad(mapped.sum(), points)
    assert_close(slope, torch.ones_like(slope))


def test_what_has_no_place_is_far_away_and_has_no_gradient():
    behind = torch.tensor([[1.0, 0, 0], [0, 1, 0], [2, 0, 1]])  # reads nothing beyond x = 1/2
    fold = torch.tensor([0.3])  # nothing is read beyond |p| = 0.703
    singular = torch.tensor([[1.0, 2, 0], [2, 4, 0]])
    point = torch.tensor([[0.8, 0.1]])
    cases = [(Projective(), behind), (Barrel(), fold), (Affine(), singular)]
    for transform, theta in cases:
        theta.requires_grad_()
        mapped = geometry.map_points(theta, point, 4, transform=transform, pixels=False)
        assert (mapped == 1e4).all(), transform
        (slope,) = torch.autograd.grad(mapped.sum(), theta)
        assert not slope.any(), transform


def test_a_missing_keypoint_stays_missing_and_spoils_no_other():
    theta = SPLINE.identity().requires_grad_()
    points = torch.tensor([[1.0, 2.0], [torch.nan, torch.nan]])
    mapped = geometry.map_points(theta, points, 4, transform=SPLINE)
    assert mapped[1].isnan().all() and mapped[0].isfinite().all()
    (slope,) = torch.autograd.grad(mapped[0].sum(), theta)
    assert slope.isfinite().all() and slope.any()


# Boxes


def test_boxes_of_a_turned_image_by_hand():
    """A quarter turn of a square, clockwise window: (x, y) of the input goes to (y, W - x)."""
    theta = geometry.affine(10, rotation=math.pi / 2)
    boxes = torch.tensor([[1.0, 2, 4, 6], [-2, 0, 2, 5], [11, 0, 12, 4]])
    mapped = geometry.map_boxes(theta, boxes, 10)
    expected = torch.tensor([[2.0, 6, 6, 9], [0, 8, 5, 10], [0, 0, 0, 0]])
    assert_close(mapped.boxes, expected, rtol=0, atol=1e-5)
    assert_close(mapped.visible, torch.tensor([1, 0.5, 0]))
    assert mapped.valid.tolist() == [True, True, False]


@thinned
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "3-D"])
@corners
@directions
def test_a_box_holds_all_that_it_held(kind, align_corners, direction):
    """Against a fine grid over the box, to 1/256 of how far its edges bulge."""
    transform, theta, *sizes = case(kind)
    options = dict(transform=transform, align_corners=align_corners, direction=direction)
    here, there = sizes if direction == "input_to_output" else sizes[::-1]
    low = torch.tensor([0.3 * here[1], 0.35 * here[0]]) + 4 * uniform(3, 2)
    boxes = torch.cat((low, low + 5 + 8 * uniform(3, 2, seed=1)), -1)
    mapped = geometry.map_boxes(theta, boxes, *sizes, **options)
    t = torch.linspace(0, 1, 17).double()
    dense = low[:, None] + torch.cartesian_prod(t, t) * (boxes[:, None, 2:] - low[:, None])
    moved = geometry.map_points(theta, dense - 0.5, *sizes, **options) + 0.5
    box = torch.cat((moved.amin(1), moved.amax(1)), -1)
    end = torch.tensor([there[1], there[0]] * 2).double()
    clipped = torch.minimum(box.clamp(min=0), end)
    assert mapped.valid.all() and (mapped.visible > 0.2).all()
    assert_close(mapped.boxes, clipped, rtol=0, atol=0.02 if kind in ("tps", "a user's") else 1e-9)
    area = (box[:, 2:] - box[:, :2]).prod(-1)
    share = (clipped[:, 2:] - clipped[:, :2]).prod(-1) / area
    assert_close(mapped.visible, share, rtol=0, atol=1e-2)


@directions
def test_a_box_over_the_horizon_is_invalid(direction):
    theta = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1.25, 0, 1]])  # w = 0 at x = -0.8
    boxes = torch.tensor([[30.0, 20, 34, 24], [0, 0, 64, 64]])
    if direction == "input_to_output":  # and at x = 0.8 of the inverse
        boxes[1] = torch.tensor([40.0, 20, 64, 24])
    mapped = geometry.map_boxes(theta, boxes, 64, transform="projective", direction=direction)
    assert mapped.valid.tolist() == [True, False]
    assert not mapped.boxes[1].any() and not mapped.visible[1].any()


def test_a_box_without_an_area_or_a_map_is_invalid():
    boxes = torch.tensor([[1.0, 1, 1, 3], [0, 0, 2, 2]])
    assert geometry.map_boxes(torch.eye(2, 3), boxes, 4).valid.tolist() == [False, True]
    for theta in (torch.zeros(2, 3), torch.full((2, 3), torch.nan)):
        mapped = geometry.map_boxes(theta, boxes, 4)
        assert not mapped.valid.any() and not mapped.boxes.any() and not mapped.visible.any()


def test_gradcheck_of_boxes():
    transform, theta, size, out_size = case("tps")
    boxes = torch.tensor([[10.2, 12.1, 30.7, 33.3], [-3.0, 5, 30, 20]]).double()

    def call(theta, boxes):
        return geometry.map_boxes(theta, boxes, size, out_size, transform=transform)[:2]

    tensors = (theta.requires_grad_(), boxes.requires_grad_())
    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)


# Crops


def image_of_residues():
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    return ((x * x * 3 + y * y * 5 + x * y * 7) % 11)[None, None].double()


@corners
def test_crops_are_those_of_torchvisions_roi_align(align_corners):
    """torchvision 0.29's roi_align(..., (2, 3), aligned=True, sampling_ratio=1)."""
    boxes = torch.tensor(
        [[0, 0, 8, 6], [1.5, 0.25, 6, 4.75], [2, 3, 3, 5], [5.2, 1.1, 8, 6]], dtype=torch.float64
    )
    expected = [
        [[4.166667, 6.5, 1.333333], [1.333333, 6.5, 4.166667]],
        [[6.96875, 7.375, 5.125], [1.15625, 2.84375, 4.625]],
        [[1.0, 0.0, 1.0], [3.666667, 5.0, 4.666667]],
        [[1.170833, 2.52, 1.35], [6.2875, 3.715, 3.625]],
    ]
    theta = geometry.from_boxes(boxes[None], (6, 8), (2, 3), align_corners)
    with triton_stn.use_backend("torch"):
        crops = triton_stn.spatial_transform(
            image_of_residues(), theta, (2, 3), padding_mode="border", align_corners=align_corners
        )
    assert_close(crops[0, :, 0], torch.tensor(expected).double(), rtol=0, atol=1e-6)


def test_with_antialias_a_crop_is_a_mean_over_areas():
    """Of whole pixels: boxes of 6 x 6 by 3 x 3 pixels an output pixel."""
    image = uniform(1, 2, 12, 12)
    theta = geometry.from_boxes(torch.tensor([[[3.0, 6.0, 9.0, 12.0]]]).double(), 12)
    with triton_stn.use_backend("torch"):
        crop = triton_stn.spatial_transform(image, theta, 2, antialias=True)
    expected = torch.nn.functional.avg_pool2d(image[..., 6:, 3:9], 3)
    assert_close(crop[:, 0], expected)


@corners
@pytest.mark.parametrize("degrees", [0, 30, -100])
def test_a_rotated_box_fills_its_crop(degrees, align_corners):
    """Its corners, made by hand, are the crop's."""
    angle = math.radians(degrees)
    box = torch.tensor([30.0, 20.0, 16.0, 8.0, angle]).double()
    theta = geometry.from_rotated_boxes(box, SIZE, OUT, align_corners)
    along = torch.tensor([math.cos(angle), math.sin(angle)]).double()
    down = torch.tensor([-math.sin(angle), math.cos(angle)]).double()
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    corner = torch.stack([box[:2] + 8 * i * along + 4 * j * down for i, j in signs])
    quad = geometry.quadrilateral(theta, SIZE, OUT, align_corners)
    assert_close(quad + 0.5, corner)


@corners
def test_an_upright_box_is_a_rotated_one_by_zero_and_maps_to_all_of_its_crop(align_corners):
    boxes = torch.tensor([[[3.0, 4, 20, 11], [0, 0, 80, 60]], [[-5, 2, 7, 9], [70, 50, 90, 61]]])
    sizes = (SIZE, OUT)
    theta = geometry.from_boxes(boxes, *sizes, align_corners)
    low, high = boxes.split(2, -1)
    rotated = torch.cat(((low + high) / 2, high - low, torch.zeros(2, 2, 1)), -1)
    assert_close(geometry.from_rotated_boxes(rotated, *sizes, align_corners), theta)
    mapped = geometry.map_boxes(theta, boxes[:, :, None], *sizes, align_corners=align_corners)
    everything = torch.tensor([0.0, 0, OUT[1], OUT[0]]).expand(2, 2, 1, 4)
    assert_close(mapped.boxes, everything, rtol=0, atol=1e-3)
    assert mapped.valid.all()


def test_gradcheck_of_crops():
    rotated = uniform(2, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda b: geometry.from_rotated_boxes(b, SIZE, OUT), rotated)
    boxes = uniform(2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda b: geometry.from_boxes(b, SIZE, OUT, True), boxes)


# Nothing looks at a value


def everything(transform, size, out_size):
    def call(theta, points, boxes):
        options = dict(transform=transform, align_corners=True)
        results = [
            geometry.map_points(theta, points, size, out_size, **options, direction=direction)
            for direction in ("output_to_input", "input_to_output")
        ]
        if transform.ndim == 2:
            results.extend(geometry.map_boxes(theta, boxes, size, out_size, **options))
        return (*results, geometry.from_boxes(boxes, SIZE))

    return call


def operands(kind):
    transform, theta, *sizes = case(kind, torch.float32)
    theta = theta.expand(2, *theta.shape).clone()
    boxes = torch.tensor([[[10.0, 12, 30, 32]]]).expand(2, 3, 4).clone()
    points = 10 + uniform(2, 5, transform.ndim).float()
    return everything(transform, *sizes), (theta, points, boxes)


@one_kind
def test_labels_are_moved_without_their_values(kind):
    call, tensors = operands(kind)
    shapes = [result.shape for result in call(*tensors)]
    meta = call(*(tensor.to("meta") for tensor in tensors))
    assert [result.shape for result in meta] == shapes
    assert all(result.is_meta for result in meta)
    with FakeTensorMode() as mode:
        fakes = call(*(mode.from_tensor(tensor) for tensor in tensors))
    assert [result.shape for result in fakes] == shapes


@one_kind
def test_a_compiler_traces_labels_whole(kind):
    torch._dynamo.reset()
    call, tensors = operands(kind)
    compiled = torch.compile(call, fullgraph=True, backend="eager")
    for tensor in tensors:
        tensor.requires_grad_()
    results, expected = compiled(*tensors), call(*tensors)
    assert_close(results, expected)
    slopes, wanted = (
        torch.autograd.grad(sum(result.sum() for result in some), tensors)
        for some in (results, expected)
    )
    assert_close(slopes, wanted)


@one_kind
def test_labels_are_moved_under_vmap(kind):
    call, tensors = operands(kind)
    assert_close(torch.func.vmap(call)(*tensors), call(*tensors))


# Wrong arguments

I, P, B = torch.eye(2, 3), torch.zeros(5, 2), torch.zeros(5, 4)
WRONG = {
    "points": (lambda: geometry.map_points(I, B, 4), ValueError, "(..., P, 2), got (5, 4)"),
    "points: of volumes": (
        lambda: geometry.map_points(torch.eye(3, 4), P, (4, 4, 4)),
        ValueError,
        "(..., P, 3), got (5, 2)",
    ),
    "points: of integers": (lambda: geometry.map_points(I, P.int(), 4), TypeError, "torch.int32"),
    "points: elsewhere": (
        lambda: geometry.map_points(I, P.to("meta"), 4),
        ValueError,
        "the device of theta, cpu, got meta",
    ),
    "points: of another batch": (
        lambda: geometry.map_points(I.expand(3, 2, 3), P.expand(2, 5, 2), 4),
        ValueError,
        "those of theta, (3,), got shape (2, 5, 2)",
    ),
    "theta of Affine(ndim=2)": (lambda: geometry.map_points(P, P, 4), ValueError, "got (5, 2)"),
    "direction": (
        lambda: geometry.map_points(I, P, 4, direction="inverse"),
        ValueError,
        "'input_to_output', got 'inverse'",
    ),
    "pixels": (lambda: geometry.map_points(I, P, 4, pixels=1), TypeError, "bool, got int"),
    "align_corners": (
        lambda: geometry.map_points(I, P, 4, align_corners=0),
        TypeError,
        "bool, got int",
    ),
    "input_size": (lambda: geometry.map_boxes(I, B, (4, 0)), ValueError, "positive"),
    "boxes": (lambda: geometry.map_boxes(I, P, 4), ValueError, "(..., B, 4), got (5, 2)"),
    "boxes: to crop": (lambda: geometry.from_boxes(P, 4), ValueError, "(..., 4), got (5, 2)"),
    "boxes: that turn": (lambda: geometry.from_rotated_boxes(B, 4), ValueError, "(..., 5), got"),
    "transform": (
        lambda: geometry.map_boxes(torch.eye(3, 4), B, 4, transform=Affine(3)),
        ValueError,
        "2-D for boxes",
    ),
    "points_per_edge": (
        lambda: geometry.map_boxes(I, B, 4, points_per_edge=0),
        ValueError,
        "at least 1, got 0",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named(name):
    check_refusal(name.split(":")[0], *WRONG[name])
