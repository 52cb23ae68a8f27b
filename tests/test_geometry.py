"""Building, composing and inverting θ; pixel matrices; where the output lies in the input."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import check_refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import triton_stn
from triton_stn import geometry
from triton_stn.transforms import Affine, Projective, Similarity, ThinPlateSpline

DIRECTIONS = ["output_to_input", "input_to_output"]
corners = pytest.mark.parametrize("align_corners", [False, True])
directions = pytest.mark.parametrize("direction", DIRECTIONS)
few = settings(max_examples=25, deadline=None, derandomize=True)
numbers = st.integers(-9, 9).map(lambda i: i / 32)  # shrink well


def matrices(rows):
    """Near enough to the identity to be invertible, with w > 0 in the square."""
    lists = st.lists(numbers, min_size=3 * rows, max_size=3 * rows)
    near = lists.map(lambda six: torch.eye(rows, 3) + torch.tensor(six).view(rows, 3))
    return near.map(torch.Tensor.double)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def pixels(theta, size, out_size, align_corners=False, transform=None):
    """Source coordinates in pixels, by the formula of F.grid_sample's documentation."""
    grid = (transform or Affine()).grid(theta, out_size, align_corners)
    extent = tensor([size[1], size[0]])
    return ((grid + 1) / 2 * (extent - 1)) if align_corners else ((grid + 1) * extent - 1) / 2


# affine


@corners
@pytest.mark.parametrize("size", [(4, 8), (5, 5), 7])
def test_nothing_asked_for_is_the_identity(size, align_corners):
    assert torch.equal(geometry.affine(size, align_corners=align_corners), torch.eye(2, 3))


def test_on_a_square_it_is_the_similarity():
    theta = tensor([1.3, 0.7, 0.2, -0.1])
    built = geometry.affine(9, scale=theta[0], rotation=theta[1], translation=theta[2:])
    torch.testing.assert_close(built, Similarity().matrix(theta))


@corners
@pytest.mark.parametrize("out_size", [(4, 10), (6, 6), (9, 3)])
def test_a_rotation_keeps_lengths_and_angles_in_pixels(out_size, align_corners):
    size, scale = (4, 10), 0.6
    theta = geometry.affine(
        size,
        out_size,
        scale=scale,
        rotation=tensor(0.4),
        translation=(0.3, -0.2),
        align_corners=align_corners,
    )
    source = pixels(theta, size, out_size, align_corners)
    along_x, along_y = source[0, 1] - source[0, 0], source[1, 0] - source[0, 0]
    expected = tensor([math.cos(0.4), math.sin(0.4)]) * scale
    torch.testing.assert_close(along_x, expected)
    torch.testing.assert_close(along_y, tensor([-expected[1], expected[0]]))


def test_a_quarter_turn_of_an_oblong_image_by_hand():
    """Centred pixels (x, y) -> (-y, x): at the right edge of a 2 x 4 output, y = 2 half-heights."""
    theta = geometry.affine((2, 4), rotation=math.pi / 2)
    torch.testing.assert_close(theta, torch.tensor([[0.0, -0.5, 0.0], [2.0, 0.0, 0.0]]))


def test_scale_comes_before_shear_and_rotation_after_it():
    scale, shear = (2.0, 3.0), (0.5, 0.25)
    sheared = geometry.affine(5, scale=scale, shear=shear)
    torch.testing.assert_close(sheared, torch.tensor([[2.0, 1.5, 0.0], [0.5, 3.0, 0.0]]))
    turned = geometry.affine(5, scale=scale, shear=shear, rotation=math.pi / 2)
    torch.testing.assert_close(turned, torch.tensor([[-0.5, -3.0, 0.0], [2.0, 1.5, 0.0]]))


@corners
def test_scale_is_input_pixels_to_an_output_pixel(align_corners):
    theta = geometry.affine((20, 30), (5, 7), align_corners=align_corners).double()
    source = pixels(theta, (20, 30), (5, 7), align_corners)
    torch.testing.assert_close(source[0, 0], tensor([11.5, 7.5]), rtol=0, atol=1e-5)
    torch.testing.assert_close(source[4, 6], tensor([17.5, 11.5]), rtol=0, atol=1e-5)


@corners
@pytest.mark.parametrize("degrees", [30, -75])
def test_the_picture_turns_as_by_opencv(degrees, align_corners):
    """cv2.getRotationMatrix2D's formula: counter-clockwise for a positive angle."""
    h, w = 6, 9
    a, b = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = (w - 1) / 2, (h - 1) / 2
    opencv = tensor([[a, b, (1 - a) * x - b * y], [-b, a, b * x + (1 - a) * y]])
    expected = geometry.from_pixel_matrix(
        opencv, (h, w), align_corners=align_corners, direction="input_to_output"
    )
    angle = tensor(math.radians(degrees))
    theta = geometry.affine((h, w), rotation=angle, align_corners=align_corners)
    torch.testing.assert_close(theta, expected, rtol=0, atol=1e-14)


def test_numbers_and_tensors_broadcast():
    rotation, shift = noise(3), noise(2, 1, 2)
    theta = geometry.affine((4, 6), scale=(noise(3), 2.0), rotation=rotation, translation=shift)
    assert theta.shape == (2, 3, 2, 3) and theta.dtype == torch.float64
    alone = geometry.affine(
        (4, 6),
        scale=(float(noise(3)[2]), 2.0),
        rotation=float(rotation[2]),
        translation=shift[1, 0].tolist(),
        dtype=torch.float64,
    )
    torch.testing.assert_close(theta[1, 2], alone)
    assert geometry.affine(4, rotation=torch.zeros(2, dtype=torch.float16)).dtype == torch.float32


def test_a_tensor_of_scales_has_its_axes_last():
    pairs, both = noise(3, 2), noise(3, 1)
    theta = geometry.affine((4, 6), scale=pairs)
    torch.testing.assert_close(theta, geometry.affine((4, 6), scale=(pairs[:, 0], pairs[:, 1])))
    theta = geometry.affine((4, 6), scale=both)
    torch.testing.assert_close(theta, geometry.affine((4, 6), scale=(both[:, 0], both[:, 0])))
    one = geometry.affine((4, 6), scale=tensor([2.0, 3.0]))
    torch.testing.assert_close(one, geometry.affine((4, 6), scale=(2.0, 3.0)).double())
    with pytest.raises(ValueError, match="scale must be a pair"):
        geometry.affine((4, 6), scale=noise(3))


def test_the_gradient_reaches_every_number():
    def build(scale, rotation, shear, translation):
        return geometry.affine(
            (4, 6), (5, 3), scale=scale, rotation=rotation, shear=shear, translation=translation
        )

    numbers = [noise(*shape, seed=i) for i, shape in enumerate([(2, 2), (2,), (2, 2), (2, 2)])]
    assert torch.autograd.gradcheck(build, [number.requires_grad_() for number in numbers])


# compose and invert


def test_compose_is_sampling_twice_on_a_smooth_image():
    def wave(size):
        y, x = torch.meshgrid(*(torch.linspace(-1, 1, n).double() for n in size), indexing="ij")
        return (torch.sin(2 * x + 1) * torch.cos(3 * y))[None, None]

    a = geometry.affine((256, 256), scale=0.6, rotation=0.3, translation=(0.1, 0.0)).double()
    b = geometry.affine((256, 256), scale=0.7, shear=(0.4, 0.0), translation=(0.0, 0.2)).double()
    image = wave((256, 256))
    with triton_stn.use_backend("torch"):
        sample = triton_stn.spatial_transform
        twice = sample(sample(image, a), b, 32)
        once = sample(image, geometry.compose(a, b), 32)
        other = sample(image, geometry.compose(b, a), 32)
    torch.testing.assert_close(once, twice, rtol=0, atol=1e-3)
    assert (other - twice).abs().max() > 0.1


@few
@given(a=st.one_of(matrices(2), matrices(3)), b=st.one_of(matrices(2), matrices(3)))
def test_a_point_goes_through_b_and_then_through_a(a, b):
    def move(theta, points):
        transform = Affine() if len(theta) == 2 else Projective()
        return transform.source(theta, points)

    points = noise(6, 2) * 0.1
    torch.testing.assert_close(move(geometry.compose(a, b), points), move(a, move(b, points)))


@few
@given(theta=st.one_of(matrices(2), matrices(3)))
def test_a_map_and_its_inverse_are_the_identity(theta):
    inverse = geometry.invert(theta)
    assert inverse.shape == theta.shape
    eye = torch.eye(3, dtype=torch.float64)[: len(theta)]
    torch.testing.assert_close(geometry.compose(theta, inverse), eye, rtol=0, atol=1e-8)
    torch.testing.assert_close(geometry.compose(inverse, theta), eye, rtol=0, atol=1e-8)


@few
@given(a=matrices(2), b=matrices(2))
def test_the_inverse_of_a_composition_is_the_inverses_in_reverse(a, b):
    there = geometry.invert(geometry.compose(a, b))
    back = geometry.compose(geometry.invert(b), geometry.invert(a))
    torch.testing.assert_close(there, back, rtol=1e-6, atol=1e-6)


def test_compose_and_invert_by_hand():
    a = tensor([[2, 0, 1], [0, 4, 0]])
    b = tensor([[0, -1, 0.5], [1, 0, 0]])
    assert torch.equal(geometry.compose(a, b), tensor([[0, -2, 2], [4, 0, 0]]))
    assert torch.equal(geometry.invert(a), tensor([[0.5, 0, -0.5], [0, 0.25, 0]]))


def test_compose_and_invert_keep_leading_dimensions_and_take_3d():
    assert geometry.compose(noise(4, 1, 2, 3), noise(3, 3, 3)).shape == (4, 3, 3, 3)
    a, b = noise(5, 3, 4), noise(3, 4, seed=1)
    points = noise(7, 3)
    once = Affine(3).source(geometry.compose(a, b), points)
    twice = torch.stack([Affine(3).source(one, Affine(3).source(b, points)) for one in a])
    torch.testing.assert_close(once, twice)
    eye = torch.eye(3, 4, dtype=torch.float64).expand(5, 3, 4)
    torch.testing.assert_close(geometry.compose(a, geometry.invert(a)), eye)


def test_gradcheck_of_compose_and_invert():
    a, b = noise(2, 2, 3).requires_grad_(), noise(3, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: geometry.compose(geometry.invert(a), b), (a, b))


def test_a_singular_theta_is_refused_and_nan_stays_nan():
    good = torch.eye(2, 3)
    with pytest.raises(ValueError, match="theta must be invertible, got a singular matrix"):
        geometry.invert(torch.stack((good, torch.zeros(2, 3))))
    assert geometry.invert(good * torch.nan).isnan().any()


# Pixel matrices


def warp(image, matrix, out_size):
    """Pixel by pixel: bilinear at matrix·(column, row, 1), zeros outside."""
    h, w = image.shape
    out = image.new_zeros(out_size)
    for i in range(out_size[0]):
        for j in range(out_size[1]):
            point = matrix @ tensor([j, i, 1])
            x, y = (float(v) for v in (point[:2] / point[2] if len(point) == 3 else point))
            for row in (math.floor(y), math.floor(y) + 1):
                for column in (math.floor(x), math.floor(x) + 1):
                    if 0 <= row < h and 0 <= column < w:
                        weight = (1 - abs(x - column)) * (1 - abs(y - row))
                        out[i, j] += weight * image[row, column]
    return out


def sample(image, theta, out_size, align_corners):
    transform = Affine() if theta.shape[-2] == 2 else Projective()
    grid = transform.grid(theta, out_size, align_corners)[None]
    return F.grid_sample(image[None, None], grid, align_corners=align_corners)[0, 0]


TURN = tensor([[0.9, -0.4, 1.3], [0.3, 0.8, -0.7]])
HOMOGRAPHY = tensor([[1.1, -0.3, 0.6], [0.2, 0.9, 0.4], [0.03, -0.02, 1]])


@corners
@directions
@pytest.mark.parametrize("matrix", [TURN, HOMOGRAPHY], ids=["affine", "homography"])
def test_a_pixel_matrix_reads_the_pixels_that_it_names(matrix, direction, align_corners):
    image, out_size = noise(6, 9), (7, 5)
    square = torch.cat((matrix, tensor([[0, 0, 1]])))[:3]
    inward = square if direction == "output_to_input" else torch.linalg.inv(square)
    theta = geometry.from_pixel_matrix(matrix, (6, 9), out_size, align_corners, direction)
    assert theta.shape == matrix.shape
    got = sample(image, theta, out_size, align_corners)
    torch.testing.assert_close(got, warp(image, inward, out_size), rtol=0, atol=1e-12)


@corners
@pytest.mark.parametrize("direction, sign", [(DIRECTIONS[0], 1), (DIRECTIONS[1], -1)])
def test_a_shift_by_whole_pixels_by_hand(direction, sign, align_corners):
    """output[i, j] = input[i - 1, j + 2], through the library's own sampler."""
    image = noise(1, 1, 5, 7)
    matrix = [[1, 0, 2 * sign], [0, 1, -1 * sign]]
    theta = geometry.from_pixel_matrix(matrix, (5, 7), None, align_corners, direction)
    with triton_stn.use_backend("torch"):
        got = triton_stn.spatial_transform(image, theta.double(), align_corners=align_corners)
    expected = F.pad(image[..., :4, 2:], (0, 2, 1, 0))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@corners
@directions
def test_a_pixel_matrix_of_a_volume_reads_the_voxels_that_it_names(direction, align_corners):
    size, out_size, matrix = (4, 6, 9), (3, 7, 5), noise(3, 4)
    theta = geometry.from_pixel_matrix(matrix, size, out_size, align_corners, direction)
    torch.testing.assert_close(
        geometry.to_pixel_matrix(theta, size, out_size, align_corners, direction), matrix
    )
    grid = F.affine_grid(theta[None], (1, 1, *out_size), align_corners)[0]
    length = tensor([n - align_corners for n in size[::-1]])
    got = grid * length / 2 + (tensor(size[::-1]) - 1) / 2
    z, y, x = torch.meshgrid(*(torch.arange(n) for n in out_size), indexing="ij")
    voxels = torch.stack((x, y, z, torch.ones_like(x)), -1).double()
    square = torch.cat((matrix, tensor([[0, 0, 0, 1]])))
    inward = square if direction == "output_to_input" else torch.linalg.inv(square)
    torch.testing.assert_close(got, (voxels @ inward.T)[..., :3])


@few
@given(
    theta=st.one_of(matrices(2), matrices(3)),
    sizes=st.lists(st.integers(2, 40), min_size=4, max_size=4),
    align_corners=st.booleans(),
    direction=st.sampled_from(DIRECTIONS),
)
def test_to_pixel_matrix_undoes_from_pixel_matrix(theta, sizes, align_corners, direction):
    options = (sizes[:2], sizes[2:], align_corners, direction)
    matrix = geometry.to_pixel_matrix(theta, *options)
    back = geometry.from_pixel_matrix(matrix, *options)
    torch.testing.assert_close(back, theta, rtol=0, atol=1e-8)


def test_the_two_directions_are_inverses():
    inward, outward = (
        geometry.to_pixel_matrix(TURN, (4, 7), (5, 3), direction=direction)
        for direction in DIRECTIONS
    )
    torch.testing.assert_close(geometry.invert(outward), inward)


def test_an_axis_of_one_pixel_has_no_extent_between_corners():
    theta = geometry.from_pixel_matrix(torch.eye(2, 3), (1, 4), (1, 4), align_corners=True)
    assert torch.equal(theta, tensor([[1, 0, 0], [0, 0, 0]]).float())
    with pytest.raises(ValueError, match="theta must be invertible"):
        geometry.to_pixel_matrix(theta, (1, 4), None, True, "input_to_output")


@pytest.mark.parametrize("matrix", [TURN, HOMOGRAPHY], ids=["affine", "homography"])
@directions
def test_opencv_agrees(matrix, direction):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    image, (h, w) = noise(6, 9), (7, 5)
    flags = cv2.INTER_LINEAR | (cv2.WARP_INVERSE_MAP if direction == "output_to_input" else 0)
    call = cv2.warpAffine if len(matrix) == 2 else cv2.warpPerspective
    expected = call(image.numpy(), matrix.numpy(), (w, h), flags=flags)
    theta = geometry.from_pixel_matrix(matrix.numpy(), (6, 9), (h, w), direction=direction)
    got = sample(image, theta, (h, w), False)
    # OpenCV rounds a coordinate to 1/32 of a pixel.
    torch.testing.assert_close(got, torch.from_numpy(expected), rtol=0, atol=0.15)


@corners
def test_scipy_agrees(align_corners):
    ndimage = pytest.importorskip("scipy.ndimage", reason="SciPy is not installed")
    image, out_size = noise(6, 9), (7, 5)
    flipped = TURN[[1, 0]][:, [1, 0, 2]].numpy()  # (row, column) order
    expected = ndimage.affine_transform(
        image.numpy(), flipped[:, :2], flipped[:, 2], out_size, order=1, mode="grid-constant"
    )
    theta = geometry.from_pixel_matrix(TURN, (6, 9), out_size, align_corners)
    got = sample(image, theta, out_size, align_corners)
    torch.testing.assert_close(got, torch.from_numpy(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("matrix", [TURN, HOMOGRAPHY], ids=["affine", "homography"])
def test_kornia_agrees(matrix):
    kornia = pytest.importorskip("kornia", reason="kornia is not installed")
    image, out_size = noise(6, 9), (7, 5)
    transform = kornia.geometry.transform
    call = transform.warp_affine if len(matrix) == 2 else transform.warp_perspective
    expected = call(image[None, None], matrix[None], out_size, align_corners=True)[0, 0]
    theta = geometry.from_pixel_matrix(matrix, (6, 9), out_size, True, "input_to_output")
    got = sample(image, theta, out_size, True)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


# Where the output lies in the input


@corners
@pytest.mark.parametrize("size", [(4, 8), (1, 5)])
def test_the_identity_frames_the_image(size, align_corners):
    h, w = size
    frame = [[-0.5, -0.5], [w - 0.5, -0.5], [w - 0.5, h - 0.5], [-0.5, h - 0.5]]
    if align_corners and h == 1:  # every y reads the only row
        frame = [[x, 0] for x, _ in frame]
    quad = geometry.quadrilateral(torch.eye(2, 3), size, align_corners=align_corners)
    torch.testing.assert_close(quad, torch.tensor(frame))


@corners
def test_the_corners_lie_half_a_pixel_outside_the_corner_pixels(align_corners):
    """Of every θ: half a step beyond the corner pixels' own sources, along both axes."""
    theta = noise(2, 3, 2, 3)
    source = pixels(theta, (6, 9), (4, 5), align_corners)
    quad = geometry.quadrilateral(theta, (6, 9), (4, 5), align_corners)
    x = source[..., 0, 1, :] - source[..., 0, 0, :]
    y = source[..., 1, 0, :] - source[..., 0, 0, :]
    expected = (
        source[..., 0, 0, :] - (x + y) / 2,
        source[..., 0, -1, :] + (x - y) / 2,
        source[..., -1, -1, :] + (x + y) / 2,
        source[..., -1, 0, :] - (x - y) / 2,
    )
    torch.testing.assert_close(quad, torch.stack(expected, -2))


def test_the_outline_of_a_spline_passes_through_its_outer_control_points():
    transform = ThinPlateSpline(3, 3)
    theta = transform.identity(2, torch.float64) + 0.1 * noise(2, 9, 2)
    outline = geometry.quadrilateral(theta, (5, 7), transform=transform, points_per_edge=2)
    in_pixels = (theta + 1) * tensor([7, 5]) / 2 - 0.5
    torch.testing.assert_close(outline, in_pixels[:, [0, 1, 2, 5, 8, 7, 6, 3]])


def test_a_quadrilateral_is_2d():
    with pytest.raises(ValueError, match="transform must be 2-D"):
        geometry.quadrilateral(torch.eye(3, 4), 4, transform=Affine(3))
    with pytest.raises(ValueError, match="points_per_edge must be at least 1, got 0"):
        geometry.quadrilateral(torch.eye(2, 3), 4, points_per_edge=0)


MASKS = {
    "affine": (Affine(), (6, 9), (7, 5)),
    "3-D": (Affine(3), (4, 6, 5), (3, 5, 7)),
    "projective": (Projective(), (6, 9), (7, 5)),
    "tps": (ThinPlateSpline(3, 3), (6, 9), (7, 5)),
}


@corners
@pytest.mark.parametrize("kind", MASKS)
def test_inside_is_where_the_nearest_pixel_is_one_of_the_image(kind, align_corners):
    transform, size, out_size = MASKS[kind]
    theta = transform.identity(4, torch.float64)
    theta = theta + 0.5 * noise(*theta.shape)
    mask = geometry.inside_mask(theta, size, out_size, align_corners, transform)
    grid = transform.grid(theta, out_size, align_corners)
    ones = torch.ones(4, 1, *size, dtype=torch.float64)
    nearest = F.grid_sample(ones, grid, "nearest", "zeros", align_corners)[:, 0]
    assert mask.dtype == torch.bool and torch.equal(mask, nearest == 1)
    assert 0.1 < nearest.mean() < 0.9  # or nothing was tested
    fraction = geometry.valid_fraction(theta, size, out_size, align_corners, transform)
    torch.testing.assert_close(fraction, nearest.flatten(1).mean(1).float())


@corners
def test_of_the_identity_all_is_inside_and_of_half_a_shift_half(align_corners):
    theta = geometry.affine((4, 8), translation=torch.tensor([[0.0, 0.0], [1.01, 0.0]]))
    fraction = geometry.valid_fraction(theta, (4, 8), align_corners=align_corners)
    assert fraction.tolist() == [1.0, 0.5]


def test_what_is_not_finite_or_behind_the_viewer_is_outside():
    assert not geometry.inside_mask(torch.full((2, 3), torch.nan), 4).any()
    assert not geometry.inside_mask(-torch.eye(3), 4, transform="projective").any()


# Wrong arguments

I = torch.eye(2, 3)
WRONG = {
    "image_size": (lambda: geometry.affine((4, 4, 4)), ValueError, "2 ints"),
    "output_size": (lambda: geometry.affine(4, (4, 0)), ValueError, "positive, got (4, 0)"),
    "shear": (lambda: geometry.affine(4, shear=0.1), ValueError, "pair (x, y), got 0.1"),
    "scale": (lambda: geometry.affine(4, scale=(1, 2, 3)), ValueError, "pair (x, y), got (1, 2"),
    "translation": (lambda: geometry.affine(4, translation=torch.ones(3)), ValueError, "pair"),
    "every tensor": (
        lambda: geometry.affine(4, rotation=torch.tensor(1)),
        TypeError,
        "got torch.int64",
    ),
    "align_corners": (lambda: geometry.affine(4, align_corners=1), TypeError, "bool, got int"),
    "a": (lambda: geometry.compose([[1, 0, 0]], I), TypeError, "torch.Tensor, got list"),
    "b": (lambda: geometry.compose(I, I[:1]), ValueError, "(..., 2, 3)"),
    "a and b": (lambda: geometry.compose(I, torch.eye(3, 4)), ValueError, "got (2, 3) and (3, 4)"),
    "theta": (lambda: geometry.invert(torch.eye(4)), ValueError, "got (4, 4)"),
    "matrix": (lambda: geometry.from_pixel_matrix(torch.eye(4, 4), 4), ValueError, "got (4, 4)"),
    "direction": (
        lambda: geometry.from_pixel_matrix(I, 4, direction="inverse"),
        ValueError,
        "'output_to_input', 'input_to_output', got 'inverse'",
    ),
    "input_size": (lambda: geometry.to_pixel_matrix(I, (4,)), ValueError, "2 ints"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named(name):
    check_refusal(name, *WRONG[name])


# --- four points ---------------------------------------------------------------------------------


def quadrilaterals(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    square = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)
    return square + 0.3 * torch.randn(*shape, 4, 2, generator=generator, dtype=torch.float64)


def test_a_homography_takes_each_point_to_its_target():
    points, targets = quadrilaterals(5), quadrilaterals(3, 1, seed=1)
    theta = geometry.homography(points, targets)
    assert theta.shape == (3, 5, 3, 3)
    read = triton_stn.Projective().source(theta, points[0])
    assert_close(read[:, 0], targets[:, 0])
    both = points[:1].requires_grad_(), targets[0].requires_grad_()
    assert torch.autograd.gradcheck(geometry.homography, both)


def test_a_homography_shows_its_points_though_the_origin_lies_beyond_their_horizon():
    points = torch.tensor([[0.3, 0.3], [0.5, 0.3], [0.9, 0.9], [0.1, 0.9]])
    targets = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    theta = geometry.homography(points, targets)
    assert theta[2, 2] == -1
    assert_close(triton_stn.Projective().source(theta, points), targets, rtol=0, atol=1e-5)
    assert geometry.homography(points.half(), targets.half()).dtype == torch.float32


@pytest.mark.parametrize("make", [geometry.from_pixel_matrix, geometry.from_monai])
def test_a_matrix_stays_on_its_device(make):
    matrix = torch.eye(2, 3)
    with torch.device("meta"):
        assert make(matrix, (8, 8)).device == matrix.device


def test_four_points_must_be_four():
    with pytest.raises(ValueError, match=r"points must be \(..., 4, 2\), got \(3, 2\)"):
        geometry.homography(torch.zeros(3, 2), torch.zeros(4, 2))
