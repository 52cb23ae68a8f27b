"""What PyTorch's own tests ask of ``F.grid_sample`` and ``F.affine_grid``, asked of ours.

Values and gradients at chosen points, every order of a grid's memory, more channels than cuDNN
takes, sides of one pixel, rotations, errors. That of rounding is in test_sources.py, those by
OpInfo in test_opinfo.py, most of the errors in test_errors.py.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import Place
from torch.testing import assert_close

from triton_stn import grid_sample, spatial_transform, transforms

PADDINGS = ["zeros", "border", "reflection"]
# Of a 2 x 5 image 1 + x + 5 y, at POINTS. Mode, padding, align_corners.
POINTS = [[0.25, 0.5], [-1.25, -0.5], [1.5, 1.5], [-0.5, 3.0]]
VALUES = {
    ("bilinear", "zeros", False): [8.625, 0, 0, 0],
    ("bilinear", "zeros", True): [7.25, 1.125, 0, 0],
    ("bilinear", "border", False): [8.625, 1, 10, 6.75],
    ("bilinear", "border", True): [7.25, 2.25, 10, 7],
    ("bilinear", "reflection", False): [8.625, 1.125, 9.25, 1.75],
    ("bilinear", "reflection", True): [7.25, 2.75, 7.75, 2],
    ("nearest", "zeros", False): [9, 0, 0, 0],
    ("nearest", "zeros", True): [8, 1, 0, 0],
    ("nearest", "border", False): [9, 1, 10, 7],
    ("nearest", "border", True): [8, 1, 10, 7],
    ("nearest", "reflection", False): [9, 1, 9, 2],
    ("nearest", "reflection", True): [8, 1, 9, 2],
    ("bicubic", "zeros", False): [8.595703, -0.071777, 0, 0],
    ("bicubic", "zeros", True): [8.386719, 1.117676, 0, 0],
    ("bicubic", "border", False): [8.595703, 1, 10, 6.667969],
    ("bicubic", "border", True): [7.367188, 2.039062, 10.527344, 7],
    ("bicubic", "reflection", False): [8.595703, 1.094238, 9.332031, 0.730469],
    ("bicubic", "reflection", True): [7.71875, 2.09375, 8.21875, 2],
}
# The slopes along x and y of a 5 x 5 image x², at EDGES: corners, edges, out of view.
EDGES = [[1.0, 1.0], [-1.0, 0.25], [0.75, -1.25], [-2.5, 0.0]]
SLOPES = {
    ("bilinear", "zeros", False): [[-20, -20], [0, 0], [0, 0], [0, 0]],
    ("bilinear", "zeros", True): [[-32, -32], [2, 0], [7, 25], [0, 0]],
    ("bilinear", "border", False): [[0, 0], [0, 0], [17.5, 0], [0, 0]],
    ("bilinear", "border", True): [[0, 0], [0, 0], [14, 0], [0, 0]],
    ("bilinear", "reflection", False): [[0, 0], [0, 0], [17.5, 0], [-17.5, 0]],
    ("bilinear", "reflection", True): [[0, 0], [0, 0], [14, 0], [-14, 0]],
    ("bicubic", "zeros", False): [
        [-24.140625, -24.345703],
        [-0.46875, 0],
        [0.166125, 16.886401],
        [0, 0],
    ],
    ("bicubic", "zeros", True): [[-13.5, -24], [1.5, 0], [9.9375, 32.554688], [0, 0]],
    ("bicubic", "border", False): [[-3.28125, 0], [-0.46875, 0], [14.091797, 0], [0, 0]],
    ("bicubic", "border", True): [[10.5, 0], [1.5, 0], [13.875, 0], [0, 0]],
    ("bicubic", "reflection", False): [[0, 0], [0, 0], [14.091797, 0], [-19.804688, 0]],
    ("bicubic", "reflection", True): [[0, 0], [0, 0], [16.5, 0], [-18, 0]],
}


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def at(image, points, ndim, device):
    """The image and the points; as a volume three alike, read in the middle one."""
    x = torch.tensor(image, dtype=torch.float32, device=device)[None, None]
    grid = torch.tensor(points, device=device)
    if ndim == 3:
        x, grid = x[:, :, None].expand(-1, -1, 3, -1, -1), F.pad(grid, (0, 1))
    return x, grid.view(1, *(1,) * (ndim - 1), -1, ndim).requires_grad_()


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("mode", "padding_mode", "align_corners"), VALUES)
def test_values_at_chosen_points(device, mode, padding_mode, align_corners, ndim):
    image = [[1.0 + x + 5 * y for x in range(5)] for y in range(2)]
    x, grid = at(image, POINTS, ndim, device)
    got = grid_sample(x, grid, mode, padding_mode, align_corners).flatten()
    expected = torch.tensor(VALUES[mode, padding_mode, align_corners], device=device)
    assert_close(got, expected.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("image_too", [False, True])
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("mode", "padding_mode", "align_corners"), SLOPES)
def test_slopes_at_the_edges(device, mode, padding_mode, align_corners, ndim, image_too):
    """The gradient of the grid, also beside that of the image."""
    x, grid = at([[float(x * x) for x in range(5)]] * 5, EDGES, ndim, device)
    x = x.requires_grad_(image_too)
    grid_sample(x, grid, mode, padding_mode, align_corners).sum().backward()
    expected = torch.tensor(SLOPES[mode, padding_mode, align_corners], device=device)
    expected = F.pad(expected.float(), (0, ndim - 2))
    assert_close(grid.grad.view(4, ndim), expected, rtol=0, atol=2e-5)


def test_every_order_of_a_grid_s_memory(place: Place, device):
    x = noise(2, 3, 4, 5).to(device)
    grid, up = 0.8 * noise(2, 3, 2, 2, seed=1).to(device), noise(2, 3, 3, 2, seed=2).to(device)
    plain = grid.clone().requires_grad_()
    expected = grid_sample(x, plain)
    (expected_grad,) = torch.autograd.grad(expected, plain, up)
    for order in list(itertools.permutations(range(4)))[:: 5 if place.interpreted else 1]:
        back = [order.index(axis) for axis in range(4)]
        permuted = grid.permute(order).contiguous().permute(back).requires_grad_()
        got = grid_sample(x, permuted)
        assert torch.equal(got, expected)
        assert torch.equal(torch.autograd.grad(got, permuted, up)[0], expected_grad)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_1025_channels(place: Place, device, order):
    channels = 33 if place.interpreted else 1025
    x = noise(1, channels, 3, 3).to(device).contiguous(memory_format=order).requires_grad_()
    grid = (0.8 * noise(1, 2, 2, 2, seed=1)).to(device).requires_grad_()
    up = noise(1, channels, 2, 2, seed=2).to(device)
    got, expected = (f(x, grid, align_corners=False) for f in (grid_sample, F.grid_sample))
    assert_close(got, expected)
    assert_close(*(torch.autograd.grad(y, (x, grid), up) for y in (got, expected)))


@pytest.mark.thinned
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    "sizes", [(1, 3, 3, 4), (4, 1, 3, 4), (4, 3, 1, 4), (4, 3, 3, 1), (1,) * 4]
)
def test_sides_of_one_pixel(place: Place, device, sizes, padding_mode, align_corners):
    h, w, h_out, w_out = sizes
    x = noise(2, 2, h, w).to(device).requires_grad_()
    grid = (0.7 * noise(2, h_out, w_out, 2, seed=1)).to(device).requires_grad_()
    up = noise(2, 2, h_out, w_out, seed=2).to(device)
    options = dict(padding_mode=padding_mode, align_corners=align_corners)
    got, expected = (f(x, grid, **options) for f in (grid_sample, F.grid_sample))
    assert_close(got, expected)
    assert_close(*(torch.autograd.grad(y, (x, grid), up) for y in (got, expected)))


# θ = 1, 2, 3, ...: x = X + 2 Y + 3 and y = 4 X + 5 Y + 6, or x = X + 2 Y + 3 Z + 4 and so on
GRIDS = {
    (2, True): [[0, -3], [2, 5], [4, 7], [6, 15]],
    (2, False): [[1.5, 1.5], [2.5, 5.5], [3.5, 6.5], [4.5, 10.5]],
    (3, True): [
        [[-2, -10, -18], [0, 0, 0], [2, 2, 2], [4, 12, 20]],
        [[4, 4, 4], [6, 14, 22], [8, 16, 24], [10, 26, 42]],
    ],
    (3, False): [
        [[1, -1, -3], [2, 4, 6], [3, 5, 7], [4, 10, 16]],
        [[4, 6, 8], [5, 11, 17], [6, 12, 18], [7, 17, 27]],
    ],
}


@pytest.mark.parametrize(("ndim", "align_corners"), GRIDS)
def test_a_grid_of_known_numbers(device, ndim, align_corners):
    """As the transform gives it, and as sampling reads it, of an image of its own coordinates."""
    theta = torch.arange(1.0, 1 + ndim * (ndim + 1), device=device).view(1, ndim, ndim + 1)
    expected = torch.tensor(GRIDS[ndim, align_corners], device=device).view(-1, ndim).float()
    size = (2,) * ndim
    got = transforms.Affine(ndim).grid(theta, size, align_corners)
    assert_close(got.view(-1, ndim), expected)
    # Half of the numbers lie outside of the image, so all are brought inside.
    line = torch.linspace(-1, 1, 9, device=device) * (1 if align_corners else 8 / 9)
    image = torch.stack(torch.meshgrid(*[line] * ndim, indexing="ij")[::-1])[None]
    read = spatial_transform(image, theta / 64, size, align_corners=align_corners)
    assert_close(read.flatten(2)[0].T, expected / 64, rtol=0, atol=1e-6)


def lookup(image, place):
    """A number of ``image`` (*size) at ``place``, pixels, x first: by the definition."""
    total = 0.0
    for corner in itertools.product((0, 1), repeat=image.ndim):
        index = [math.floor(p) + c for p, c in zip(reversed(place), corner, strict=True)]
        weights = [1 - abs(i - p) for i, p in zip(index, reversed(place), strict=True)]
        if all(0 <= i < n for i, n in zip(index, image.shape, strict=True)):
            total += math.prod(weights) * float(image[tuple(index)])
    return total


@pytest.mark.parametrize("degrees", [0, 45, 90, 133.7])
@pytest.mark.parametrize(
    ("extent", "size"), [((5, 5), (5, 5)), ((4, 7), (6, 3)), ((3, 4, 5), (3, 2, 4))], ids=str
)
def test_a_rotation_by_the_definition(device, extent, size, degrees):
    """About the last axis of a volume."""
    ndim = len(extent)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = torch.eye(ndim, ndim + 1, dtype=torch.float64)
    matrix[:2, :2] = torch.tensor([[c, -s], [s, c]])
    image = noise(1, 1, *extent)
    got = spatial_transform(image.to(device), matrix.to(device), size).cpu()[0, 0]
    for index in itertools.product(*map(range, size)):
        X = torch.tensor([(2 * i + 1) / n - 1 for i, n in zip(index, size, strict=True)][::-1])
        source = (matrix[:, :-1] @ X.double()).tolist()
        place = [((p + 1) * n - 1) / 2 for p, n in zip(source, reversed(extent), strict=True)]
        assert abs(float(got[index]) - lookup(image[0, 0], place)) < 1e-6


@pytest.mark.parametrize("sparse", ["input", "grid"])
def test_a_sparse_tensor_is_refused(device, sparse):
    tensors = dict(input=torch.zeros(1, 1, 2, 2), grid=torch.zeros(1, 1, 1, 2))
    tensors = {name: t.to(device) for name, t in tensors.items()}
    tensors[sparse] = tensors[sparse].to_sparse()
    with pytest.raises(TypeError, match=f"{sparse} must be dense, got torch.sparse_coo"):
        grid_sample(**tensors)
