"""Antialiased minification: the mean over what an output pixel covers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import Place
from oracle import assert_right, run, slopes_agree

from triton_stn import Projective, ThinPlateSpline, spatial_transform
from triton_stn.transforms import Transform, resolve

PADDINGS = ["zeros", "border", "reflection"]
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.float16]


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turn(degrees, scale_x, scale_y, x=0.037, y=-0.021):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [[c * scale_x, -s * scale_y, x], [s * scale_x, c * scale_y, y]]


# Two θ for each of two images: pixels that cover 2.2 x 1, 3.3 x 3.3, 1.6 x 0.5 and 0.7 x 0.7.
THETA = torch.tensor(
    [
        [turn(0, 0.9, 0.44), turn(30, 1.4, 1.5)],
        [turn(60, 0.65, 0.22), turn(10, 0.3, 0.3)],
    ],
    dtype=torch.float64,
)
SIZE, OUTPUT_SIZE = (11, 12), (5, 5)


def brute_force(input, theta, size, padding_mode, align_corners):
    """Supersampled by PyTorch's own calls, θ by θ, an output pixel's parts as a finer output."""
    h, w = input.shape[2:]
    less = 1 if align_corners else 0
    ends = torch.tensor([w - less, h - less], dtype=torch.float64)
    cells = torch.tensor([size[1] - less, size[0] - less], dtype=torch.float64)
    results = []
    for image, thetas in zip(input, theta, strict=True):
        for one in thetas:
            one = one.to(input.dtype)
            sides = (one.detach().double()[:, :2] * ends[:, None] / cells).norm(dim=0)
            across, down = (max(math.ceil(side - 0.01), 1) for side in sides.tolist())
            fine = (size[0] * down, size[1] * across)
            # With align_corners the finer output reaches beyond the corners.
            reach = [(fine[1] - less) / across, (fine[0] - less) / down]
            stretch = torch.cat((cells.new_tensor(reach) / cells, cells.new_ones(1))).to(one.dtype)
            shape = (1, input.shape[1], *fine)
            grid = F.affine_grid((one * stretch)[None], shape, align_corners=align_corners)
            options = dict(padding_mode=padding_mode, align_corners=align_corners)
            results.append(
                F.avg_pool2d(F.grid_sample(image[None], grid, **options), (down, across))
            )
    return torch.cat(results).unflatten(0, theta.shape[:2])


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("channels", [2, 8])
def test_value_and_gradients_are_right(place: Place, channels, padding_mode, align_corners):
    dtype = DTYPES[(PADDINGS.index(padding_mode) + 2 * align_corners + channels // 8) % 4]
    options = dict(padding_mode=padding_mode, align_corners=align_corners)
    input = noise(2, channels, *SIZE).to(dtype)
    if channels == 8:
        input = input.contiguous(memory_format=torch.channels_last)
    theta = THETA.to(torch.promote_types(dtype, torch.float32))
    grad = noise(2, 2, channels, *OUTPUT_SIZE, seed=1).to(dtype)

    def sample(x, t, size, **options):
        return place.sample(x, t, size, antialias=True, **options)

    exact = run(brute_force, input.double(), theta.double(), OUTPUT_SIZE, grad, **options)
    rival = run(brute_force, input.float(), theta.float(), OUTPUT_SIZE, grad, **options)
    tensors = (t.to(place.device) for t in (input, theta))
    got = run(sample, *tensors, OUTPUT_SIZE, grad.to(place.device), **options)
    assert_right(got, exact, rival)


def test_a_checkerboard_four_times_smaller_is_grey(place: Place):
    rows, columns = torch.arange(16)[:, None], torch.arange(16)
    board = ((rows + columns) % 2).float()[None, None].to(place.device)
    theta = torch.eye(2, 3, device=place.device)
    grey = place.sample(board, theta, 4, antialias=True)
    torch.testing.assert_close(grey, torch.full_like(grey, 0.5))
    assert (place.sample(board, theta, 4, mode="nearest") != 0.5).all()


def test_a_map_that_does_not_minify_is_sampled_as_ever(place: Place):
    input = noise(1, 3, 6, 6).float().to(place.device)
    theta = torch.tensor(turn(25, 1.0, 1.0), device=place.device)
    plain = place.sample(input, theta)
    torch.testing.assert_close(place.sample(input, theta, antialias=True), plain)


def test_gradients_match_finite_differences(place, device):
    input = noise(1, 1, 4, 4).to(device).requires_grad_()
    theta = THETA[:1, 1:].to(device).requires_grad_()
    assert slopes_agree(
        place, lambda x, t: spatial_transform(x, t, 2, antialias=True), input, theta
    )


@pytest.mark.parametrize("value", [math.nan, 1e20])
def test_a_bad_number_stays_in_its_sample(place: Place, value):
    theta = THETA[:, 0].float().to(place.device)
    theta[1, 0, 0] = value
    input = noise(2, 2, 6, 6).float().to(place.device).requires_grad_()
    y = place.sample(input, theta, 3, antialias=True)
    assert torch.equal(y[:1], place.sample(input[:1], theta[:1], 3, antialias=True))
    assert y[1].isnan().any() == math.isnan(value)
    (grad,) = torch.autograd.grad(y, input, torch.ones_like(y))
    assert grad.isfinite().all()


class Wave(Transform):
    """A user's own map, θ (2,): x = X + θ0·sin 2Y, y = Y + θ1·X²; NaN where X > ``nan_from``."""

    name = "wave"
    theta_shape = (2,)

    def __init__(self, nan_from=math.inf):
        self.nan_from = nan_from

    def source(self, theta, points):
        x, y = points.unbind(-1)
        a, b = theta[..., None, :].unbind(-1)
        xy = torch.stack((x + a * (2 * y).sin(), y + b * x * x), -1)
        return torch.where(points[:, :1] > self.nan_from, torch.nan, xy)

    def _identity(self):
        return torch.zeros(2, dtype=torch.float64)


def homography_at(theta, points):
    x, y, w = (torch.cat((points, torch.ones_like(points[:, :1])), 1) @ theta.T).unbind(1)
    return torch.stack((x / w, y / w), 1)


CONTROLS = torch.tensor([[x, y] for y in (-1.0, 1.0) for x in (-1.0, 0.0, 1.0)]).double()


def spline_at(theta, points):
    def kernel(a, b):
        r = torch.cdist(a, b)
        return r**2 * torch.log(torch.where(r > 0, r, 1.0) ** 2)

    border = torch.cat((torch.ones(6, 1).double(), CONTROLS), 1)
    system = torch.zeros(9, 9).double()
    system[:6, :6], system[:6, 6:], system[6:, :6] = kernel(CONTROLS, CONTROLS), border, border.T
    right = torch.cat((theta.double(), theta.new_zeros(3, 2).double()))
    coefficients = torch.linalg.solve(system, right).to(theta.dtype)
    basis = (kernel(points, CONTROLS.to(points)), torch.ones_like(points[:, :1]), points)
    return torch.cat(basis, 1) @ coefficients


def wave_at(theta, points):
    return Wave().source(theta, points)


def centred(n, align_corners):
    """Normalised coordinates of n pixels, and the distance between two."""
    step = 2 / (max(n - 1, 1) if align_corners else n)
    return (torch.arange(n).double() - (n - 1) / 2) * step, step


def brute_force_by_pixel(map_at, exact_derivative):
    """Every output pixel by a call of its own on an explicit grid of its samples."""

    def sides_at(theta, points, steps):
        for n, step in enumerate(steps):
            move = torch.zeros_like(points)
            move[:, n] = step
            if exact_derivative:
                yield torch.func.jvp(lambda p: map_at(theta, p), (points,), (move,))[1]
            else:
                yield map_at(theta, points + move / 2) - map_at(theta, points - move / 2)

    def sample(input, theta, size, padding_mode, align_corners):
        h, w = input.shape[2:]
        less = 1 if align_corners else 0
        half = torch.tensor([w - less, h - less]).double() / 2
        (y, step_y), (x, step_x) = (centred(n, align_corners) for n in size)
        points = torch.cartesian_prod(y, x).flip(1)
        options = dict(padding_mode=padding_mode, align_corners=align_corners)
        results = []
        for image, thetas in zip(input, theta.to(input.dtype), strict=True):
            for one in thetas:
                centre = map_at(one, points.to(one))
                along_j, along_i = sides_at(one, points.to(one), (step_x, step_y))
                with torch.no_grad():  # the number of samples does not depend on the dtype
                    exact = sides_at(one.double(), points, (step_x, step_y))
                    counts = [((d * half).norm(dim=1) - 0.01).ceil().clamp(1, 16) for d in exact]
                for p in range(len(points)):
                    m_j, m_i = (int(count[p]) for count in counts)
                    dj, di = ((torch.arange(m).to(one) + 0.5) / m - 0.5 for m in (m_j, m_i))
                    across = dj[:, None] * along_j[p]
                    down = di[:, None, None] * along_i[p]
                    samples = F.grid_sample(
                        image[None], (centre[p] + across + down)[None], **options
                    )
                    results.append(samples.mean((0, 2, 3)))
        return torch.stack(results).view(*theta.shape[:2], *size, -1).permute(0, 1, 4, 2, 3)

    return sample


TRANSFORMS = {
    "projective": (Projective(), brute_force_by_pixel(homography_at, True)),
    "tps": (ThinPlateSpline(2, 3), brute_force_by_pixel(spline_at, False)),
    "wave": (Wave(), brute_force_by_pixel(wave_at, False)),
}


@pytest.mark.thinned(rest="nightly")
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_pixel_of_a_curved_map_is_right(place: Place, name, padding_mode, align_corners):
    """Two θ for each of two images; dtypes and layouts take turns."""
    transform, by_pixel = TRANSFORMS[name]
    turn = list(TRANSFORMS).index(name) + PADDINGS.index(padding_mode) + 2 * align_corners
    dtype, channels = DTYPES[turn % 4], (2, 9)[turn // 2 % 2]
    options = dict(padding_mode=padding_mode, align_corners=align_corners)
    input = noise(2, channels, *SIZE).to(dtype)
    if channels == 9:
        input = input.contiguous(memory_format=torch.channels_last)
    theta = transform.identity((2, 2), torch.float64)
    theta = theta + 0.2 * noise(*theta.shape, seed=3).clamp(-1.5, 1.5)
    theta = theta.to(torch.promote_types(dtype, torch.float32))
    grad = noise(2, 2, channels, 3, 5, seed=1).to(dtype)

    def sample(x, t, size, **options):
        return place.sample(x, t, size, transform=transform, antialias=True, **options)

    exact = run(by_pixel, input.double(), theta.double(), (3, 5), grad, **options)
    rival = run(by_pixel, input.float(), theta.float(), (3, 5), grad, **options)
    tensors = (t.to(place.device) for t in (input, theta))
    got = run(sample, *tensors, (3, 5), grad.to(place.device), **options)
    assert_right(got, exact, rival)


def test_a_homography_by_hand(place: Place):
    """w is 3/4 and 5/4 at the two outputs: x is 5/6 and 5.1 in pixels, and grows by 64/9 and by
    2.56 across them: 8 samples and 3."""
    input = torch.arange(8.0, device=place.device).square()[None, None, None]
    theta = torch.eye(3, device=place.device)
    theta[2, 0] = 0.5
    options = dict(transform="projective", padding_mode="border", antialias=True)
    y = place.sample(input, theta, (1, 2), **options)
    # At 5/6 - 28/9, 5/6 - 20/9 and 5/6 - 12/9 the border, 0; then 5/6 - 4/9 and so on.
    left = [7 / 18, 1 + 3 * 5 / 18, 4 + 5 / 6, 9 + 7 / 18, 9 + 7 * 17 / 18]
    right = [16 + 9 * (5.1 - 2.56 / 3 - 4), 26.1, 25 + 11 * (5.1 + 2.56 / 3 - 5)]
    expected = torch.tensor([sum(left) / 8, sum(right) / 3], device=place.device)
    torch.testing.assert_close(y.flatten(), expected)


@pytest.mark.parametrize("tilt", [0.001, 0.05])
def test_a_checkerboard_four_times_further_away_is_grey(place: Place, tilt):
    rows, columns = torch.arange(32)[:, None], torch.arange(32)
    board = ((rows + columns) % 2).float()[None, None].to(place.device)
    theta = torch.eye(3, device=place.device)
    theta[2] = torch.tensor([tilt, tilt / 2, 0.25])
    inner = (..., slice(13, 19), slice(13, 19))
    grey = place.sample(board, theta, transform="projective", antialias=True)[inner]
    aliased = place.sample(board, theta, transform="projective")[inner]
    error = (grey - 0.5).abs().max()
    assert error < (1e-3 if tilt == 0.001 else 0.05 * (aliased - 0.5).abs().max())


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_curved_map_that_does_not_minify_is_sampled_as_ever(place: Place, name):
    transform = TRANSFORMS[name][0]
    input = noise(1, 3, 6, 6).float().to(place.device)
    theta = transform.identity(dtype=torch.float64)
    theta = (theta + 0.05 * noise(*theta.shape, seed=3)).float().to(place.device)
    plain = place.sample(input, theta, 9, transform=transform)
    averaged = place.sample(input, theta, 9, transform=transform, antialias=True)
    torch.testing.assert_close(averaged, plain)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_gradients_of_curved_maps_match_finite_differences(place, device, name):
    transform = TRANSFORMS[name][0]
    input = noise(1, 1, 4, 4).to(device).requires_grad_()
    theta = transform.identity(1, torch.float64)
    theta = (theta + 0.2 * noise(*theta.shape, seed=5)).to(device).requires_grad_()
    assert slopes_agree(
        place,
        lambda x, t: spatial_transform(x, t, (1, 2), transform=transform, antialias=True),
        *(input, theta),
    )


@pytest.mark.parametrize(
    "padding_mode", ["zeros", *(pytest.param(p, marks=pytest.mark.landing) for p in PADDINGS[1:])]
)
def test_a_pixel_on_the_horizon_is_finite(place: Place, padding_mode):
    """w is 0 inside the third of five columns, and less to the left."""
    input = noise(1, 2, 6, 6).float().to(place.device).requires_grad_()
    theta = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0.1]], device=place.device)
    theta.requires_grad_()
    options = dict(transform="projective", padding_mode=padding_mode)
    y = place.sample(input, theta, 5, antialias=True, **options)
    grads = torch.autograd.grad(y, (input, theta), torch.ones_like(y))
    plain = place.sample(input, theta, 5, **options)
    of_plain = torch.autograd.grad(plain, theta, torch.ones_like(y))[0]
    assert y.isfinite().all()
    assert torch.equal(y[..., :2], plain[..., :2])  # behind the viewer
    assert grads[0].isfinite().all() and grads[1].abs().max() <= 10 * of_plain.abs().max()


def test_a_coordinate_that_is_not_finite_stays_in_its_pixel(place: Place):
    """The fourth and fifth column of five; an edge of the third is among them."""
    input = noise(1, 2, 9, 9).float().to(place.device).requires_grad_()
    theta = torch.tensor([0.3, 0.2], device=place.device, requires_grad=True)
    y = place.sample(input, theta, 5, transform=Wave(nan_from=0.1), antialias=True)
    whole = place.sample(input, theta, 5, transform=Wave(), antialias=True)
    assert y[..., 3:].isnan().all()
    assert y[..., 2].isfinite().all()
    torch.testing.assert_close(y[..., :2], whole[..., :2], rtol=0, atol=0)
    grads = torch.autograd.grad(y, (input, theta), torch.ones_like(y))
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("transform", [Projective(), ThinPlateSpline(2, 3)], ids=repr)
def test_a_bad_curved_map_stays_in_its_sample(place: Place, transform):
    theta = transform.identity(2, device=place.device)
    input = noise(2, 2, 6, 6).float().to(place.device).requires_grad_()
    options = dict(transform=transform, antialias=True)
    good = place.sample(input, theta, 3, **options)
    theta[1, 0, 0] = math.nan
    y = place.sample(input, theta.requires_grad_(), 3, **options)
    assert torch.equal(y[:1], good[:1])
    assert y[1].isnan().all()
    grads = torch.autograd.grad(y, (input, theta), torch.ones_like(y))
    assert all(grad.isfinite().all() for grad in grads)
    assert (grads[0][1] == 0).all() and (grads[1][1] == 0).all()


def test_curved_maps_honour_deterministic_algorithms(kernels: Place):
    input = noise(1, 1, 4, 4).double().to(kernels.device).requires_grad_()
    theta = torch.eye(3, device=kernels.device)
    y = kernels.sample(input, theta, 2, transform="projective", antialias=True)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="float64 input does not have a deterministic"):
            y.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(mode="nearest"), "antialias needs mode='bilinear', got 'nearest'"),
        (dict(mode="bicubic"), "antialias needs mode='bilinear', got 'bicubic'"),
    ],
)
def test_what_can_not_be_antialiased_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        spatial_transform(torch.zeros(1, 1, 4, 4), torch.eye(2, 3), antialias=True, **options)


def test_antialias_is_a_bool():
    with pytest.raises(TypeError, match="antialias must be a bool, got int"):
        spatial_transform(torch.zeros(1, 1, 4, 4), torch.eye(2, 3), antialias=1)


@pytest.mark.parametrize("transform", ["affine", "projective"])
@pytest.mark.parametrize("n", [(0,), (0, 2), (2, 0)])
def test_an_empty_batch_is_an_empty_output(place: Place, transform, n):
    theta = resolve(transform).identity(n).to(place.device)
    y = place.sample(
        torch.zeros(n[0], 3, 5, 5, device=place.device), theta, 2,
        transform=transform, antialias=True,
    )  # fmt: skip
    assert y.shape == (*n, 3, 2, 2)


@pytest.mark.parametrize("zoom", [2.2, 4.0, 7.3])
@pytest.mark.parametrize("transform", ["affine", "projective"])
def test_it_is_near_the_integral_over_each_pixel(place: Place, transform, zoom):
    """The mean of 48 × 48 bilinear samples a pixel, which knows nothing of the samples taken."""
    fine = 48
    x = torch.randn(1, 2, 40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta = torch.eye(3, dtype=torch.float64)
    theta[:2, :2] = zoom / 10 * torch.tensor([[0.96, -0.28], [0.28, 0.96]])  # 40 pixels onto 4
    if transform == "projective":
        theta[2, 0] = 0.1
    theta = (theta if transform == "projective" else theta[:2])[None]

    def plain(x, theta, size=4):
        still = torch.eye(2, 3, dtype=torch.float64)[None]
        points = F.pad(F.affine_grid(still, (1, 1, size, size), False), (0, 1), value=1.0)
        source = points @ theta[0].mT
        if transform == "projective":
            source = source[..., :2] / source[..., 2:]
        return F.grid_sample(x, source, align_corners=False)

    def integral(x, theta):
        return F.avg_pool2d(plain(x, theta, 4 * fine), fine)

    def ours(x, theta):
        return place.sample(x, theta, 4, transform=transform, antialias=True)

    def results(function, device="cpu"):
        leaves = [t.to(device).requires_grad_() for t in (x.clone(), theta.clone())]
        y = function(*leaves)
        grads = torch.autograd.grad((y * y.detach().sign()).sum(), leaves)
        return [t.detach().cpu() for t in (y, grads[0])]

    exact = results(integral)
    for got, one, want in zip(results(ours, place.device), results(plain), exact, strict=True):
        error = (got - want).abs().max()
        assert error < 0.12 * (one - want).abs().max()
