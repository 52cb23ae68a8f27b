"""θ of other libraries' arguments samples what they sample: against numbers that they made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import triton_stn
from triton_stn import geometry

MADE = json.loads((Path(__file__).parent / "conventions.json").read_text(encoding="utf-8"))
SIZE, OUT = (6, 8), (5, 7)
IMAGE = (torch.arange(48.0) * 0.37).sin().view(1, 1, *SIZE)
VOLUME = (torch.arange(60.0) * 0.37).sin().view(1, 1, 3, 4, 5)
MATRIX, HOMOGRAPHY = torch.tensor(MADE["matrix"]), torch.tensor(MADE["homography"])
corners = pytest.mark.parametrize("align_corners", [False, True])
FORWARD = dict(direction="input_to_output")


@pytest.fixture(autouse=True)
def on_pytorch():
    with triton_stn.use_backend("torch"):
        yield


def sample(theta, output_size=None, image=IMAGE, **options):
    return triton_stn.spatial_transform(image, theta, output_size, **options)[0, 0]


def close(ours, theirs, atol=2e-5):
    torch.testing.assert_close(ours, torch.as_tensor(theirs), rtol=0, atol=atol)


@corners
@pytest.mark.parametrize("library", ["cv2", "kornia"])
def test_a_pixel_matrix_is_opencvs_and_kornias(library, align_corners):
    """kornia's own align_corners=False scales by W - 1 all the same: it is another map."""
    suffix = "_True" if library == "kornia" else ""
    options = dict(align_corners=align_corners)
    for kind, matrix, transform in (
        ("affine", MATRIX, "affine"),
        ("perspective", HOMOGRAPHY, "projective"),
    ):
        theta = geometry.from_pixel_matrix(matrix, SIZE, OUT, **options, **FORWARD)
        close(sample(theta, OUT, transform=transform, **options), MADE[f"{library}_{kind}{suffix}"])


@corners
def test_normalised_maps_are_opencvs_remap(align_corners):
    maps = torch.stack((torch.tensor(MADE["map_x"]), torch.tensor(MADE["map_y"])), -1)
    grid = geometry.normalize_points(maps, SIZE, align_corners)[None]
    ours = triton_stn.grid_sample(IMAGE, grid, align_corners=align_corners)[0, 0]
    close(ours, MADE["cv2_remap"])


@corners
def test_torchvisions_affine_and_rotate(align_corners):
    options = dict(align_corners=align_corners)
    for center, name in ((None, "affine_image"), ((2, 3), "affine_center")):
        theta = geometry.from_torchvision_affine(SIZE, **MADE["affine"], center=center, **options)
        close(sample(theta, **options), MADE[name])
    theta = geometry.from_torchvision_affine(SIZE, angle=-30.0, **options)
    close(sample(theta, **options), MADE["rotate"])


@corners
def test_torchvisions_perspective_is_half_a_pixel_off_a_pixel_matrix(align_corners):
    options = dict(align_corners=align_corners)
    theta = geometry.from_torchvision_perspective(*MADE["perspective"], SIZE, **options)
    close(sample(theta, transform="projective", **options), MADE["perspective_image"])


@corners
def test_monais_voxel_matrix(align_corners):
    options = dict(align_corners=align_corners)
    theta = geometry.from_monai(MATRIX, SIZE, OUT, **options)
    close(sample(theta, OUT, **options), MADE[f"monai_{align_corners}"])
    theta = geometry.from_monai(MADE["matrix_3d"], (3, 4, 5), (2, 3, 4))
    close(sample(theta, (2, 3, 4), VOLUME), MADE["monai_3d"])


def test_roi_align_is_a_crop_and_more_samples_the_mean_of_a_larger_one():
    box = torch.tensor([MADE["roi"]])
    crop = sample(geometry.from_boxes(box, SIZE), (3, 4), padding_mode="border")
    close(crop, MADE["roi_image"])
    fine = sample(geometry.from_boxes(box, SIZE), (6, 8), padding_mode="border")
    close(torch.nn.functional.avg_pool2d(fine[None], 2)[0], MADE["roi_image_2"])


def test_opencv_itself():
    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    pixels = IMAGE[0, 0].numpy()
    warped = cv2.warpAffine(pixels, MATRIX.numpy(), OUT[::-1])
    close(torch.from_numpy(warped), MADE["cv2_affine"])
    warped = cv2.warpPerspective(pixels, HOMOGRAPHY.numpy(), OUT[::-1])
    close(torch.from_numpy(warped), MADE["cv2_perspective"])


def test_kornia_itself():
    kornia = pytest.importorskip("kornia.geometry.transform", reason="kornia is not installed")
    options = dict(align_corners=True)
    warped = kornia.warp_affine(IMAGE, MATRIX[None], OUT, **options)[0, 0]
    close(warped, MADE["kornia_affine_True"])
    warped = kornia.warp_perspective(IMAGE, HOMOGRAPHY[None], OUT, **options)[0, 0]
    close(warped, MADE["kornia_perspective_True"])


def test_monai_itself():
    layers = pytest.importorskip("monai.networks.layers", reason="MONAI is not installed")
    layer = layers.AffineTransform(OUT, normalized=False, align_corners=True, padding_mode="zeros")
    close(layer(IMAGE, MATRIX[None])[0, 0], MADE["monai_True"])


def test_torchvisions_strong_perspective_shows_what_it_names():
    """The frame's corner lies beyond the horizon."""
    starts = [[0, 0], [63, 0], [63, 47], [0, 47]]
    ends = [[20, 20], [44, 20], [63, 47], [0, 47]]
    theta = geometry.from_torchvision_perspective(starts, ends, (48, 64))
    image = torch.arange(48.0)[:, None].expand(1, 1, 48, 64)
    shown = triton_stn.spatial_transform(image, theta, transform="projective")
    assert shown[0, 0, 21:45, 32].diff().min() > 0  # from the upper edge to the lower


@pytest.mark.parametrize("short, long", [(8.0, (8.0, 0.0)), ([8.0], (8.0, 8.0))])
def test_torchvisions_shear_may_be_one_number(short, long):
    made = [geometry.from_torchvision_affine((8, 9), shear=shear) for shear in (short, long)]
    assert torch.equal(*made)
