"""Random θ and the labels that follow them: `triton_stn.augment.RandomTransform`."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import Place, run_uninterpreted
from test_host_copies import AWAY, HostCopies
from torch.testing import assert_close

import triton_stn
from triton_stn import geometry
from triton_stn.augment import RandomTransform

KINDS = {
    "affine": dict(degrees=30, translate=(0.1, 0.05), scale=(0.8, 1.2), shear=(-8, 8, -5, 5)),
    "perspective": dict(degrees=20, distortion_scale=0.4),
    "elastic": dict(degrees=20, elastic=1.5),
    "bent": dict(distortion_scale=0.3, elastic=1.0, horizontal_flip=0.5, vertical_flip=0.5),
}
kinds = pytest.mark.parametrize("kind", KINDS)
corners = pytest.mark.parametrize("align_corners", [False, True])


@pytest.fixture
def plain():
    """The maps are tested here: what samples them is tested elsewhere, and this is quicker."""
    with triton_stn.use_backend("torch"):
        yield


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def blobs(points, size, deviation=1.5):
    """(N, 1, *size): a round blob at each of (N, 1, 2)."""
    rows, columns = (torch.arange(n, dtype=torch.float32) for n in size)
    x, y = points[..., 0, None] - columns, points[..., 1, None] - rows
    return torch.exp(-(y.square()[..., None] + x.square()[..., None, :]) / (2 * deviation**2))


def centroids(images):
    """(N, 1, 2), (x, y) in pixels."""
    *_, height, width = images.shape
    weights = images / images.sum((2, 3), keepdim=True)
    x = (weights.sum(2) * torch.arange(width)).sum(-1)
    y = (weights.sum(3) * torch.arange(height)).sum(-1)
    return torch.stack((x, y), -1)


@pytest.mark.usefixtures("plain")
@corners
@kinds
def test_a_keypoint_lands_on_its_pixel(kind, align_corners):
    size = 48, 64
    change = RandomTransform(**KINDS[kind], output_size=(56, 60), align_corners=align_corners)
    points = torch.tensor([24.0, 18.0]) + 16 * torch.rand(6, 1, 2, generator=seeded(1))
    made = change(blobs(points, size), points=points, generator=seeded())
    assert ((made.points - points).abs() > 0.5).any()
    assert (centroids(made.images) - made.points).abs().max() < 0.5


@pytest.mark.usefixtures("plain")
@kinds
def test_a_box_holds_its_mask(kind):
    masks = torch.zeros(6, 1, 48, 64)
    masks[:, :, 12:30, 20:44] = 3
    boxes = torch.tensor([[[20.0, 12, 44, 30]]]).expand(6, 1, 4)
    made = RandomTransform(**KINDS[kind])(masks, masks, boxes, generator=seeded())
    assert set(made.masks.unique().tolist()) == {0, 3}
    each = made.masks[:, 0], made.boxes.boxes[:, 0], made.boxes.visible[:, 0]
    for mask, box, visible in zip(*each, strict=True):
        rows, columns = mask.nonzero().T
        assert visible > 0.8 and made.boxes.valid.all()
        around = torch.stack((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)).float()
        assert_close(around, box, atol=1.3, rtol=0)  # a pixel, and curves are polygons


def test_the_picture_moves_by_torchvisions_matrix():
    """Its documentation: T·C·R(angle)·Shear(y)·Shear(x)·scale·C⁻¹, angles clockwise."""
    fixed = dict(degrees=(25, 25), scale=(1.3, 1.3), shear=(10, 10, -6, -6))
    theta = RandomTransform(**fixed).draw(1, (20, 30))
    points = torch.tensor([[3.0, 4.0], [20.0, 11.0]])
    a, s_x, s_y = map(math.radians, (25, 10, -6))
    turn = torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
    along_y = torch.tensor([[1.0, 0.0], [-math.tan(s_y), 1.0]])
    along_x = torch.tensor([[1.0, -math.tan(s_x)], [0.0, 1.0]])
    centre = torch.tensor([14.5, 9.5])
    expected = (points - centre) @ (1.3 * turn @ along_y @ along_x).T + centre
    assert_close(geometry.map_points(theta, points, (20, 30))[0], expected)


def test_numbers_stay_in_their_ranges_and_reach_across_them():
    n, size = 4000, (40, 60)
    change = RandomTransform(degrees=(10, 30), translate=(0.1, 0.2), scale=(0.5, 2), p=0.75)
    matrix = geometry.to_pixel_matrix(change.draw(n, size, generator=seeded()), size)
    unchanged = (matrix - torch.eye(2, 3)).abs().amax((1, 2)) < 1e-4
    assert abs(unchanged.float().mean() - 0.25) < 0.03
    matrix = matrix[~unchanged]
    angle = torch.rad2deg(torch.atan2(matrix[:, 0, 1], matrix[:, 0, 0]))
    scale = 1 / matrix[:, :, :2].det().sqrt()
    centre = torch.tensor([29.5, 19.5])
    moved = (
        geometry.map_points(geometry.from_pixel_matrix(matrix, size), centre[None], size) - centre
    )
    for got, low, high in (
        (angle, 10, 30), (scale, 0.5, 2), (moved[..., 0], -6, 6), (moved[..., 1], -8, 8)
    ):  # fmt: skip
        slack = (high - low) / 50
        assert got.min() > low - 1e-3 and got.max() < high + 1e-3
        assert got.min() < low + slack and got.max() > high - slack


def test_a_perspective_moves_corners_inwards():
    size = 30, 50
    theta = RandomTransform(distortion_scale=0.5).draw(500, size, generator=seeded())
    square = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    placed = geometry.map_points(theta, square, size, transform="projective", pixels=False)
    inwards = 1 - placed * square
    assert inwards.min() > -1e-4 and inwards.max() < 0.5 + 1e-4
    assert inwards.min() < 0.01 and inwards.max() > 0.49


def test_flips_and_nothing(device):
    images = torch.rand(3, 2, 6, 8, device=device)
    turned = torch.tensor([[-1.0, 0, 0], [0, 1, 0]]).expand(3, 2, 3)
    assert torch.equal(RandomTransform(horizontal_flip=1).draw(3, (6, 8)), turned)
    both = RandomTransform(horizontal_flip=1, vertical_flip=1)(images).images
    assert_close(both, images.flip(-1, -2))
    for kind in ("affine", "perspective"):
        assert_close(RandomTransform(**KINDS[kind], p=0)(images).images, images)


def test_a_generator_gives_the_same_again_and_an_angle_stays_when_flips_are_added():
    turned = RandomTransform(degrees=40)
    first, second = (turned.draw(5, 9, generator=seeded(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, turned.draw(5, 9, generator=seeded(4)))
    flipped = RandomTransform(degrees=40, horizontal_flip=1).draw(5, 9, generator=seeded(3))
    assert_close(flipped, first * torch.tensor([-1.0, 1, 1]))


@kinds
def test_nothing_is_brought_from_the_host(kind):
    change = RandomTransform(**KINDS[kind])
    shapes = (4, 3, 32, 32), (4, 1, 32, 32), (4, 20, 4), (4, 17, 2)
    batch = [torch.empty(shape, device=AWAY) for shape in shapes]
    change(*batch)  # a spline is copied to the device once
    with HostCopies() as mode:
        made = change(*batch)
    assert mode.found == [] and made.boxes.boxes.shape == (4, 20, 4)


def test_a_batch_with_boxes_and_keypoints_is_one_launch():
    program = (
        "import torch\n"
        "from bench import host\n"
        "from triton_stn.augment import RandomTransform\n"
        "images = torch.zeros(32, 3, 256, 256, dtype=torch.uint8)\n"
        "network = dict(output_dtype=torch.bfloat16, normalize=(0.5, 0.25))\n"
        "boxes, points = torch.rand(32, 20, 4), torch.rand(32, 17, 2)\n"
        "with host.stand_in_driver() as launched:\n"
        "    for change in (dict(degrees=9), dict(distortion_scale=0.5), dict(elastic=2)):\n"
        "        made = RandomTransform(**change, **network)(images, None, boxes, points)\n"
        "        assert made.images.dtype == torch.bfloat16\n"
        "        print(*launched)\n"
        "        launched.clear()\n"
    )
    done = run_uninterpreted("-c", program)
    assert done.stdout.split() == ["forward"] * 3, done.stderr


def test_theta_is_differentiable_for_the_images(place: Place):
    images = torch.rand(2, 1, 5, 6, device=place.device, requires_grad=True)
    made = RandomTransform(degrees=20)(images, generator=None)
    made.images.sum().backward()
    expected = torch.zeros_like(images, requires_grad=True)
    triton_stn.spatial_transform(expected, made.theta).sum().backward()
    assert_close(images.grad, expected.grad)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (dict(degrees="30"), TypeError, r"degrees must be 2 numbers, got '30'"),
        (dict(degrees=(30, -30)), ValueError, r"degrees must be \(min, max\), got \(30, -30\)"),
        (dict(scale=(0, 1)), ValueError, r"scale must be above 0, got \(0, 1\)"),
        (dict(translate=(0.1,)), ValueError, r"translate must be 2 numbers from 0 to 1"),
        (dict(p=1.5), ValueError, r"p must be a number from 0 to 1, got 1.5"),
        (dict(mode="cubic"), ValueError, "mode must be one of"),
        (dict(antialias=True, mode="nearest"), ValueError, "antialias"),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_made(arguments, error, said):
    with pytest.raises(error, match=said):
        RandomTransform(**arguments)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int16, torch.int32, torch.int64])
def test_masks_of_labels_keep_their_dtype_and_their_numbers(plain, dtype):
    masks = torch.randint(0, 2**14, (3, 2, 8, 9), generator=seeded()).to(dtype)
    masks[0, 0, 0, 0] = 2**24 + 1 if dtype in (torch.int32, torch.int64) else 1
    images = torch.zeros(3, 1, 8, 9)
    made = RandomTransform(horizontal_flip=1.0)(images, masks)
    assert made.masks.dtype == dtype
    assert torch.equal(made.masks, masks.flip(-1))


@pytest.mark.parametrize("shape", [(3, 8, 9), (1, 3, 8, 9), (3, 1, 9, 8)])
def test_masks_must_be_those_of_the_images(shape):
    images = torch.zeros(3, 1, 8, 9)
    with pytest.raises(ValueError, match=r"masks must have shape .* got \("):
        RandomTransform()(images, torch.zeros(shape))
    with pytest.raises(TypeError, match=r"masks must be a torch\.Tensor, got list"):
        RandomTransform()(images, [1])


@pytest.mark.parametrize("options", [dict(output_size="8"), dict(output_dtype=torch.int64)])
def test_options_of_a_random_map_are_looked_at_when_it_is_made(options):
    with pytest.raises((TypeError, ValueError), match=f"{next(iter(options))} must "):
        RandomTransform(**options)


def test_theta_is_drawn_in_float32_whatever_the_default():
    torch.set_default_dtype(torch.float64)
    try:
        for kind in KINDS.values():
            assert RandomTransform(**kind).draw(2, (8, 9)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
