"""Bit for bit on the kernels: identity, flips, quarter turns and shifts by whole pixels."""

from __future__ import annotations

import pytest
import torch
from conftest import Place
from oracle import THETAS, run, same

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
PADDINGS = ["zeros", "border", "reflection"]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
TURNS = {
    "identity": (THETAS["identity"], lambda image: image),
    "flip_x": (THETAS["flip"], lambda image: image.flip(-1)),
    "flip_y": ([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]], lambda image: image.flip(-2)),
    "half_turn": ([[-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]], lambda image: image.flip(-1, -2)),
    "quarter_turn": (THETAS["quarter_turn"], lambda image: image.rot90(1, (-2, -1))),
    "back_turn": ([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]], lambda image: image.rot90(-1, (-2, -1))),
}

pytestmark = pytest.mark.usefixtures("guarded")


def images(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def with_holes(image):
    """inf, -inf and NaN in the corners, at an edge and inside."""
    image = image.clone()
    image[..., 0, 0] = torch.inf
    image[..., -1, -1] = -torch.inf
    image[..., 2, 3] = torch.nan
    image[..., 3, 0] = torch.nan
    return image


@pytest.mark.thinned(2)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("turn", TURNS)
def test_flips_and_quarter_turns_permute_the_pixels(kernels: Place, turn, dtype, align_corners):
    theta, permute = TURNS[turn]
    h, w = (7, 7) if "turn" in turn else (7, 10)
    image, grad = with_holes(images(1, 2, h, w, dtype=dtype)), images(1, 2, h, w, seed=1)
    grad = with_holes(grad.to(dtype))
    theta = torch.tensor(theta, device=kernels.device)
    image, grad = image.to(kernels.device), grad.to(kernels.device)
    got = run(kernels.sample, image, theta, None, grad, align_corners=align_corners)
    assert same(got.y, permute(image))
    # The adjoint of a permutation is its inverse.
    assert same(permute(got.grad_input), grad)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_identity_returns_the_input(kernels: Place, padding_mode, mode, align_corners, layout):
    image = with_holes(images(1, 9, 5, 6)).contiguous(memory_format=layout).to(kernels.device)
    grad = with_holes(images(1, 9, 5, 6, seed=1)).to(kernels.device)
    options = dict(padding_mode=padding_mode, mode=mode, align_corners=align_corners)
    theta = torch.tensor(THETAS["identity"], device=kernels.device)
    got = run(kernels.sample, image, theta, None, grad, **options)
    assert same(got.y, image)
    assert same(got.grad_input, grad)


@pytest.mark.parametrize("size", [(1, 1), (1, 8), (8, 1), (33, 31), (3, 100)])
def test_identity_returns_the_input_at_any_size(kernels: Place, size):
    image = images(1, 1, *size).to(kernels.device)
    theta = torch.tensor(THETAS["identity"], device=kernels.device)
    assert same(kernels.sample(image, theta), image)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("dx, dy", [(3, 0), (0, -2), (-1, 5), (8, 0)])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_pixel_shifts_move_the_pixels(kernels: Place, dx, dy, align_corners, dtype):
    span_y, span_x = 16, 8  # powers of two: θ holds a shift of whole pixels exactly
    h, w = (span_y + 1, span_x + 1) if align_corners else (span_y, span_x)
    image = with_holes(images(1, 2, h, w, dtype=dtype))
    theta = torch.tensor([[1, 0, 2 * dx / span_x], [0, 1, 2 * dy / span_y]], device=kernels.device)
    grad = with_holes(images(1, 2, h, w, dtype=dtype, seed=1))
    tensors = (image.to(kernels.device), theta, None, grad.to(kernels.device))
    got = run(kernels.sample, *tensors, align_corners=align_corners)
    assert same(got.y.cpu(), shifted(image, dx, dy))
    assert same(got.grad_input.cpu(), shifted(grad, -dx, -dy))


def shifted(image, dx, dy):
    """out[i, j] = image[i + dy, j + dx], zero outside."""
    h, w = image.shape[-2:]
    out = torch.zeros_like(image)
    rows, columns = slice(max(0, -dy), min(h, h - dy)), slice(max(0, -dx), min(w, w - dx))
    source = image[..., max(0, dy) : h + min(0, dy), max(0, dx) : w + min(0, dx)]
    out[..., rows, columns] = source
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tap_of_zero_weight_is_not_read(kernels: Place, layout):
    image = images(1, 8, 6, 6)
    image[..., 3, 3] = torch.inf
    theta = torch.tensor([[1, 0, 1 / 6], [0, 1, 0]])  # half a pixel along x, none along y
    image = image.contiguous(memory_format=layout).to(kernels.device)
    y = kernels.sample(image, theta.to(kernels.device))[0, 0]
    touched = torch.zeros(6, 6, dtype=torch.bool)
    touched[3, 2:4] = True
    assert torch.equal(~y.isfinite().cpu(), touched)


def test_outside_the_image_an_inf_at_its_edge_is_not_read(place: Place):
    for channels in (2, 16):
        image = torch.full((1, channels, 4, 4), torch.inf)
        image = image.contiguous(memory_format=torch.channels_last).to(place.device)
        theta = torch.tensor([[1.0, 0, 9], [0, 1, 0]], device=place.device)
        assert (place.sample(image, theta) == 0).all()


def test_nearest_rounds_halves_to_even(kernels: Place):
    image = torch.arange(8.0).view(1, 1, 1, 8).to(kernels.device)
    theta = torch.tensor([[1, 0, 1 / 8], [0, 1, 0]], device=kernels.device)  # half a pixel
    y = kernels.sample(image, theta, mode="nearest").flatten().tolist()
    assert y == [0, 2, 2, 4, 4, 6, 6, 0]


# Pixel maps that take the centred pixels of an odd square to whole pixels, and their windows.
LATTICE = {
    "identity": [[1, 0], [0, 1]],  # axis
    "flip": [[-1, 0], [0, 1]],
    "quarter_turn": [[0, -1], [1, 0]],  # axis, on its side
    "turn_and_shrink": [[1, 1], [-1, 1]],  # three
    "shear": [[1, 0], [1, 1]],  # walk
    "singular": [[1, 1], [1, 1]],  # wide
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    "lattice, padding_mode",
    [(name, "zeros") for name in LATTICE]
    + [(name, mode) for name in ("identity", "flip", "quarter_turn") for mode in PADDINGS[1:]],
)
@pytest.mark.parametrize("c, layout", [(2, LAYOUTS[0]), (8, LAYOUTS[1])], ids=["nchw", "nhwc"])
def test_on_the_lattice_the_theta_gradient_is_the_right_hand_one(
    kernels: Place, lattice, padding_mode, align_corners, c, layout
):
    n = 7
    image, grad = images(1, c, n, n), images(1, c, n, n, seed=1)
    theta = torch.tensor([[*row, 0.0] for row in LATTICE[lattice]])[None]
    options = dict(padding_mode=padding_mode, align_corners=align_corners)
    tensors = (image.contiguous(memory_format=layout), theta)
    tensors = (t.to(kernels.device) for t in tensors)
    got = run(kernels.sample, *tensors, None, grad.to(kernels.device), **options)
    exact = right_hand_gradient(image, grad, LATTICE[lattice], **options)
    error = (got.grad_theta.cpu()[0] - exact).abs().max()
    assert error <= 1e-5 * exact.abs().max()


def right_hand_gradient(image, grad, matrix, padding_mode, align_corners):
    """dθ (2, 3) in float64, by the differences of neighbouring pixels.

    With zeros padding the pixels beyond the edge are zeros; the other two fold them onto the edge,
    where PyTorch's clamped coordinates have no derivative.
    """
    n = image.shape[-1]
    margin = 2 * n
    padded = torch.nn.functional.pad(image.double(), [margin] * 4)
    centred = torch.arange(n) - (n - 1) // 2
    i, j = centred[:, None], centred[None, :]
    x = matrix[0][0] * j + matrix[0][1] * i + (n - 1) // 2
    y = matrix[1][0] * j + matrix[1][1] * i + (n - 1) // 2
    here, right, below = (
        padded[..., y + margin + down, x + margin + along]
        for down, along in ((0, 0), (0, 1), (1, 0))
    )
    slopes = [right - here, below - here]
    if padding_mode != "zeros":
        slopes = [
            slope * ((at > 0) & (at < n - 1)) for slope, at in zip(slopes, (x, y), strict=True)
        ]
    span = n - 1 if align_corners else n
    per_pixel = [(grad * slope).sum((0, 1)) * span / 2 for slope in slopes]
    factors = (j * 2 / span, i * 2 / span, torch.ones(n, n))
    return torch.stack([torch.stack([(s * f).sum() for f in factors]) for s in per_pixel])
