"""θ's shape, identity, matrix and sampling grid, of every transform."""

from __future__ import annotations

import copy
import math
import pickle
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from triton_stn.transforms import (
    _BY_NAME,
    Affine,
    Attention,
    Projective,
    Similarity,
    ThinPlateSpline,
    resolve,
)
from triton_stn.types import TransformName

SCATTERED = torch.tensor([[-0.9, -0.7], [0.8, -1.0], [0.1, 0.2], [-0.5, 0.9], [1.2, 0.6]])
EVERY = [
    Affine(),
    Affine(ndim=3),
    Attention(),
    Similarity(),
    Projective(),
    ThinPlateSpline(3, 4),
    ThinPlateSpline(points=SCATTERED, ridge=0.3),
]
every = pytest.mark.parametrize("transform", EVERY, ids=repr)
corners = pytest.mark.parametrize("align_corners", [False, True])
unit_sizes = pytest.mark.filterwarnings("ignore:.*affine_grid behavior has changed")


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def near_identity(transform, *batch, by=0.2, seed=0):
    theta = transform.identity(batch, torch.float64)
    return theta + by * noise(*theta.shape, seed=seed)


def lattice(size, align_corners):
    """What F.affine_grid gives for the identity, (*size, ndim)."""
    theta = torch.eye(len(size), len(size) + 1, dtype=torch.float64)[None]
    return F.affine_grid(theta, (1, 1, *size), align_corners)[0]


@every
def test_identity_gives_the_pixel_centres(transform):
    size = (4, 7, 3)[: transform.ndim]
    grid = transform.grid(transform.identity(dtype=torch.float64), size)
    torch.testing.assert_close(grid, lattice(size, False), rtol=0, atol=1e-13)


@every
def test_identity_has_the_batch_dtype_and_memory_asked_for(transform):
    shape = transform.theta_shape
    assert transform.identity().shape == shape
    assert transform.identity().dtype == torch.get_default_dtype()
    assert transform.identity(3).shape == (3, *shape)
    assert transform.identity((2, 3)).shape == (2, 3, *shape)
    assert transform.identity(0).shape == (0, *shape)
    half = transform.identity(2, torch.float16, "meta")
    assert half.dtype == torch.float16 and half.device.type == "meta"
    theta = transform.identity(2)
    theta[0] += 1
    assert torch.equal(theta[1], transform.identity())


@unit_sizes
@corners
@pytest.mark.parametrize("size", [(4, 7), (1, 5), (3, 1), (1, 1), (2, 3, 4), (3, 1, 2)])
def test_affine_grids_are_those_of_pytorch(size, align_corners):
    ndim = len(size)
    theta = noise(2, 3, ndim, ndim + 1)
    expected = F.affine_grid(theta.flatten(0, 1), (6, 1, *size), align_corners)
    grid = Affine(ndim).grid(theta, size, align_corners)
    torch.testing.assert_close(grid.flatten(0, 1), expected, rtol=0, atol=1e-14)
    alone = Affine(ndim).grid(theta[1, 2], size, align_corners)
    torch.testing.assert_close(alone, expected[5], rtol=0, atol=1e-14)


def test_attention_is_a_scale_and_a_translation():
    theta = torch.tensor([0.5, 0.1, -0.2])
    assert torch.equal(Attention().matrix(theta), torch.tensor([[0.5, 0, 0.1], [0, 0.5, -0.2]]))


def test_similarity_turns_x_towards_y():
    theta = torch.tensor([[2.0, math.pi / 6, 0.1, -0.2], [1.0, math.pi / 2, 0.0, 0.0]])
    expected = [[[3**0.5, -1, 0.1], [1, 3**0.5, -0.2]], [[0, -1, 0], [1, 0, 0]]]
    torch.testing.assert_close(Similarity().matrix(theta), torch.tensor(expected))


@corners
@pytest.mark.parametrize("transform", [Attention(), Similarity()], ids=repr)
def test_what_has_a_matrix_has_the_grid_of_that_matrix(transform, align_corners):
    theta = noise(2, 3, *transform.theta_shape)
    matrices = transform.matrix(theta).flatten(0, 1)
    expected = F.affine_grid(matrices, (6, 1, 4, 5), align_corners)
    grid = transform.grid(theta, (4, 5), align_corners)
    torch.testing.assert_close(grid.flatten(0, 1), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("transform", [Projective(), ThinPlateSpline(2, 2)], ids=repr)
def test_what_has_no_matrix_says_so(transform):
    assert not transform.is_affine
    with pytest.raises(TypeError, match=r"affine, attention or similarity, got .*\("):
        transform.matrix(transform.identity())


@every
def test_gradcheck(transform):
    theta = near_identity(transform, 2, 2).requires_grad_()
    size = (3, 4, 2)[: transform.ndim]
    assert torch.autograd.gradcheck(lambda t: transform.grid(t, size), theta)
    assert torch.autograd.gradgradcheck(lambda t: transform.grid(t, size), theta)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_coordinates_are_at_least_float32(transform, dtype):
    theta = near_identity(transform, 2).to(dtype)
    size = (5, 6, 3)[: transform.ndim]
    exact = transform.grid(theta.double(), size)
    grid = transform.grid(theta, size)
    assert grid.dtype == torch.float32
    torch.testing.assert_close(grid.double(), exact, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(transform.grid(theta, size), grid)


@every
def test_a_non_finite_theta_spoils_its_own_grid_alone(transform):
    theta = near_identity(transform, 3)
    size = (3, 4, 2)[: transform.ndim]
    clean = transform.grid(theta, size)
    theta[0], theta[2] = torch.nan, torch.inf
    grid = transform.grid(theta, size)
    assert not grid[0].isfinite().any() and not grid[2].isfinite().any()
    assert torch.equal(grid[1], clean[1])


# Projective


@corners
def test_a_homography_divides_by_its_third_coordinate(align_corners):
    """Point by point, in homogeneous coordinates; all of them in view."""
    theta = near_identity(Projective(), 5, by=0.1)
    grid = Projective().grid(theta, (4, 6), align_corners)
    points = lattice((4, 6), align_corners)
    for n in range(5):
        for i in range(4):
            for j in range(6):
                point = torch.cat((points[i, j], torch.ones(1, dtype=torch.float64)))
                x, y, w = (float(row @ point) for row in theta[n])
                assert grid[n, i, j].tolist() == pytest.approx([x / w, y / w], abs=1e-13)


def test_a_homography_is_known_up_to_a_positive_factor():
    theta = near_identity(Projective(), 4, by=0.7)
    grid = Projective().grid(theta, (6, 5))
    for factor in (1e-12, 0.3, 1e9):
        torch.testing.assert_close(Projective().grid(factor * theta, (6, 5)), grid)


def test_behind_the_viewer_is_out_of_view_without_a_gradient():
    """w = X here: at X = -1, -1/2 and 0 there is no source, at 1/2 and 1 there is (1/X, Y/X)."""
    theta = torch.tensor([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]], dtype=torch.float64)
    theta.requires_grad_()
    grid = Projective().grid(theta, (2, 5), align_corners=True)
    expected = [[[1e4, 1e4]] * 3 + [[2, y * 2], [1, y]] for y in (-1, 1)]
    assert grid.tolist() == expected
    (hidden,) = torch.autograd.grad(grid[:, :3].sum(), theta, retain_graph=True)
    assert torch.equal(hidden, torch.zeros_like(theta))
    (seen,) = torch.autograd.grad(grid.sum(), theta)
    # Σ over X in (1/2, 1), Y in (-1, 1) of dx/dθ0 = (X, Y, 1)/w, and of dw: -(x + y)/w·(X, Y, 1).
    assert torch.equal(seen[0], torch.tensor([4.0, 0.0, 6.0], dtype=torch.float64))
    assert torch.equal(seen[2], torch.tensor([-6.0, -10.0, -10.0], dtype=torch.float64))


@pytest.mark.parametrize("transform", [Affine(), Projective(), ThinPlateSpline(3, 3)], ids=repr)
@pytest.mark.parametrize("leading", [(0,), (2, 0)])
def test_no_theta_has_an_empty_grid(transform, leading):
    theta = transform.identity().expand(*leading, *transform.theta_shape)
    assert transform.grid(theta, (4, 5)).shape == (*leading, 4, 5, 2)


@pytest.mark.parametrize("last_row", [[0.0, 0, 0], [0, 0, -1], [0, 0, 0.0], [1, 0, 1 + 1e-7]])
def test_no_homography_gives_nan(last_row):
    theta = torch.tensor([[1.0, 0, 0], [0, 1, 0], last_row], requires_grad=True)
    grid = Projective().grid(theta, (5, 5), align_corners=True)
    assert grid.isfinite().all() and (grid[:, 0] == 1e4).all()
    grid.sum().backward()
    assert theta.grad.isfinite().all()


def test_zeros_padding_gives_nothing_where_a_homography_is_out_of_view():
    grid = Projective().grid(-torch.eye(3), (4, 5))
    assert not F.grid_sample(torch.ones(1, 1, 8, 8), grid[None], align_corners=False).any()


# Thin-plate spline


def brute_force_spline(points, theta, ridge, where):
    """By the null space of the affine part: w = Q (Qᵀ(K + ridge)Q)⁻¹ Qᵀθ, then a by least squares.

    Independent of the bordered system that the class inverts, and of its kernel.
    """

    def u(a, b):
        r = math.dist(a.tolist(), b.tolist())
        return 2 * r**2 * math.log(r) if r else 0.0

    count = len(points)
    kernel = torch.tensor([[u(a, b) for b in points] for a in points], dtype=torch.float64)
    kernel += ridge * torch.eye(count, dtype=torch.float64)
    affine = torch.cat((torch.ones(count, 1, dtype=torch.float64), points), 1)
    null = torch.linalg.qr(affine, mode="complete").Q[:, 3:]
    weights = null @ torch.linalg.solve(null.T @ kernel @ null, null.T @ theta)
    a = torch.linalg.lstsq(affine, theta - kernel @ weights).solution
    basis = torch.tensor([[u(p, c) for c in points] for p in where], dtype=torch.float64)
    return a[0] + where @ a[1:] + basis @ weights, torch.cat((weights, a))


@corners
@pytest.mark.parametrize("ridge", [0.0, 0.2])
@pytest.mark.parametrize("made_of", [dict(rows=3, cols=4), dict(points=SCATTERED.double())])
def test_the_spline_is_the_one_of_another_formulation(made_of, ridge, align_corners):
    transform = ThinPlateSpline(**made_of, ridge=ridge)
    theta = near_identity(transform, by=0.5)
    where = lattice((3, 5), align_corners).flatten(0, 1)
    expected, coefficients = brute_force_spline(transform.points, theta, ridge, where)
    grid = transform.grid(theta, (3, 5), align_corners)
    torch.testing.assert_close(grid.flatten(0, 1), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(transform.coefficients(theta), coefficients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows, cols", [(2, 2), (2, 5), (4, 4), (16, 16)])
def test_the_spline_takes_the_control_points_to_theta(rows, cols):
    """The corners' centres of a rows x cols output are the control points."""
    transform = ThinPlateSpline(rows, cols)
    theta = near_identity(transform, 2, 3)
    grid = transform.grid(theta, (rows, cols), align_corners=True)
    torch.testing.assert_close(grid.flatten(2, 3), theta, rtol=0, atol=1e-11)


def test_a_spline_by_hand():
    """A 2 x 2 grid, x moved by e·x·y at the corners: w = e/(8 ln 2)·(1, -1, -1, 1)."""
    transform, e = ThinPlateSpline(2, 2), 0.3
    assert transform.points.tolist() == [[-1, -1], [1, -1], [-1, 1], [1, 1]]
    theta = transform.identity(dtype=torch.float64)
    theta[:, 0] += e * theta.prod(1)
    w = e / (8 * math.log(2))
    coefficients = transform.coefficients(theta)
    expected = [[w, 0], [-w, 0], [-w, 0], [w, 0], [0, 0], [1, 0], [0, 1]]
    torch.testing.assert_close(coefficients, torch.tensor(expected, dtype=torch.float64))
    grid = transform.grid(theta, (2, 2))  # at ±1/2
    bend = 4.5 * math.log(4.5) + 0.5 * math.log(0.5) - 2 * 2.5 * math.log(2.5)
    assert grid[1, 1].tolist() == pytest.approx([0.5 + w * bend, 0.5], abs=1e-14)


@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_an_affine_theta_is_that_affine_map(ridge):
    transform = ThinPlateSpline(4, 5, ridge=ridge)
    matrix = noise(2, 3)
    theta = transform.points @ matrix[:, :2].T + matrix[:, 2]
    grid, expected = transform.grid(theta, (6, 7)), Affine().grid(matrix, (6, 7))
    torch.testing.assert_close(grid, expected, rtol=0, atol=1e-12)
    assert transform.coefficients(theta)[:20].abs().max() < 1e-12


def test_a_great_ridge_leaves_the_least_squares_affine_map():
    transform = ThinPlateSpline(3, 3, ridge=1e9)
    theta = near_identity(transform)
    ones = torch.ones(9, 1, dtype=torch.float64)
    affine = torch.linalg.lstsq(torch.cat((transform.points, ones), 1), theta).solution.T
    expected = Affine().grid(affine, (4, 4))
    torch.testing.assert_close(transform.grid(theta, (4, 4)), expected, rtol=0, atol=1e-7)


def test_a_spline_needs_one_basis_and_no_copy_of_it_for_a_batch():
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, torch.Tensor):
                    self.numel = max(self.numel, tensor.untyped_storage().nbytes() // 4)
            return out

    transform = ThinPlateSpline(8, 8)
    theta = transform.identity((3, 2)).requires_grad_()
    with Largest() as largest:
        transform.grid(theta, (20, 30)).sum().backward()
    assert largest.numel == 2 * 20 * 30 * 64  # of float64


P = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
WRONG_SPLINES = {
    "two points": (dict(points=P[:2]), ValueError, ["points", "at least 3", "(2, 2)"]),
    "3-D points": (dict(points=torch.zeros(4, 3)), ValueError, ["points", "(T, 2)", "(4, 3)"]),
    "a batch of points": (dict(points=P[None]), ValueError, ["points", "(T, 2)", "(1, 3, 2)"]),
    "points as a list": (dict(points=P.tolist()), TypeError, ["points", "torch.Tensor", "list"]),
    "a line": (
        dict(points=torch.linspace(-1, 1, 5)[:, None] * torch.tensor([1.0, 0.3])),
        ValueError,
        ["points", "one line", "5 collinear"],
    ),
    "repeated": (
        dict(points=torch.cat((P, P[1:2]))),
        ValueError,
        ["points", "different", "[1.0, 0.0] at 1 and at 3"],
    ),
    "all one point": (dict(points=torch.zeros(3, 2)), ValueError, ["points", "different"]),
    "NaN": (dict(points=P / 0), ValueError, ["points", "finite"]),
    "one row": (dict(rows=1, cols=4), ValueError, ["rows", "at least 2", "1"]),
    "one column": (dict(rows=4, cols=1), ValueError, ["cols", "at least 2", "1"]),
    "rows as a float": (dict(rows=2.0, cols=2), TypeError, ["rows", "int", "float"]),
    "rows alone": (dict(rows=3), ValueError, ["ThinPlateSpline", "rows and cols", "cols=None"]),
    "nothing": (dict(), ValueError, ["ThinPlateSpline", "rows and cols, or points"]),
    "both": (dict(rows=2, cols=2, points=P), ValueError, ["ThinPlateSpline", "or points"]),
    "negative ridge": (dict(rows=2, cols=2, ridge=-0.1), ValueError, ["ridge", "0", "-0.1"]),
    "NaN ridge": (dict(rows=2, cols=2, ridge=math.nan), ValueError, ["ridge", "nan"]),
    "ridge as text": (dict(rows=2, cols=2, ridge="1"), TypeError, ["ridge", "float", "str"]),
}


@pytest.mark.parametrize("wrong", WRONG_SPLINES)
def test_a_wrong_spline_is_named(wrong):
    arguments, error, fragments = WRONG_SPLINES[wrong]
    with pytest.raises(error) as caught:
        ThinPlateSpline(**arguments)
    assert str(caught.value).startswith(fragments[0])
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_three_points_that_are_no_line_are_enough():
    transform = ThinPlateSpline(points=P)
    theta = noise(3, 2)
    torch.testing.assert_close(transform.source(theta, P.double()), theta)


# What a Transform object is


def test_transforms_are_equal_by_value():
    assert Affine() == Affine(2) != Affine(3)
    assert Attention() == Attention() != Similarity()
    spline = ThinPlateSpline(2, 3)
    assert spline == ThinPlateSpline(points=spline.points) != ThinPlateSpline(3, 2)
    assert spline != ThinPlateSpline(2, 3, ridge=0.1)
    assert len({*EVERY, *(copy.deepcopy(transform) for transform in EVERY)}) == len(EVERY)


@every
def test_a_copy_is_equal_and_gives_the_same_grid(transform):
    theta = near_identity(transform)
    size = (3, 4, 2)[: transform.ndim]
    for other in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert other == transform and repr(other) == repr(transform)
        assert torch.equal(other.grid(theta, size), transform.grid(theta, size))


def test_a_repr_says_what_was_made():
    assert repr(Affine(ndim=3)) == "Affine(ndim=3)"
    assert repr(Projective()) == "Projective()"
    assert repr(ThinPlateSpline(2, 3)) == "ThinPlateSpline(rows=2, cols=3)"
    assert repr(EVERY[-1]) == "ThinPlateSpline(points=<5 points>, ridge=0.3)"


def test_free_points_are_not_the_callers_tensor():
    points = P.double()
    transform = ThinPlateSpline(points=points)
    points += 1
    assert torch.equal(transform.points, P.double())


@pytest.mark.parametrize(
    "name, expected",
    [
        ("affine", Affine()),
        ("attention", Attention()),
        ("similarity", Similarity()),
        ("projective", Projective()),
    ],
)
def test_a_name_resolves_to_its_transform(name, expected):
    assert resolve(name) == expected and expected.name == name
    assert resolve(expected) is expected


def test_the_names_that_type_checkers_know_are_those_that_resolve():
    assert get_args(TransformName) == tuple(_BY_NAME)


def test_affine_is_the_name_that_3d_has():
    assert resolve("affine", 3) == Affine(ndim=3)
    with pytest.raises(ValueError, match="transform must be 'affine' in 3-D, got 'projective'"):
        resolve("projective", 3)


@pytest.mark.parametrize(
    "wrong, error, fragment",
    [
        ("tps", ValueError, "ThinPlateSpline(rows, cols)"),
        ("rigid", ValueError, "'similarity'"),
        (None, TypeError, "Transform object, got None"),
        (Affine, TypeError, "Transform object, got <class"),
    ],
)
def test_what_is_no_transform_is_named(wrong, error, fragment):
    with pytest.raises(error) as caught:
        resolve(wrong)
    assert str(caught.value).startswith("transform must be")
    assert fragment in str(caught.value)


def test_affine_has_2_or_3_dimensions():
    with pytest.raises(ValueError, match="ndim must be 2 or 3, got 4"):
        Affine(4)


@every
def test_a_theta_of_another_shape_is_named(transform):
    expected = ", ".join(map(str, transform.theta_shape))
    with pytest.raises(ValueError) as caught:
        transform.grid(torch.zeros(2, 7, 5), 4)
    assert str(caught.value).startswith("theta of ") and "(2, 7, 5)" in str(caught.value)
    assert f"(..., {expected})" in str(caught.value)


@pytest.mark.parametrize(
    "theta, size, error, fragment",
    [
        ([[1, 0, 0], [0, 1, 0]], 4, TypeError, "theta must be a torch.Tensor, got list"),
        (torch.eye(2, 3).long(), 4, TypeError, "theta must have one of the dtypes"),
        (torch.eye(2, 3), (4, 0), ValueError, "output_size must be an int or 2 ints, all positive"),
        (torch.eye(2, 3), (4, 4, 4), ValueError, "output_size must be an int or 2 ints"),
        (torch.eye(2, 3), 4.0, TypeError, "output_size must be an int or 2 ints, got 4.0"),
        (torch.eye(2, 3), "44", TypeError, "output_size must be an int or 2 ints, got '44'"),
    ],
)
def test_a_wrong_argument_of_grid_is_named(theta, size, error, fragment):
    with pytest.raises(error) as caught:
        Affine().grid(theta, size)
    assert str(caught.value).startswith(fragment)


@pytest.mark.parametrize("made", ["before", "inside"])
def test_a_spline_that_was_first_used_in_inference_mode_can_be_trained(made):
    transform = ThinPlateSpline(3, 4)
    with torch.inference_mode():
        if made == "inside":
            transform = ThinPlateSpline(3, 4)
        still = transform.identity()
        transform.grid(still, (5, 6))
        transform.patches(still, (5, 6))
        transform.kernel_theta(still)
    theta = transform.identity().requires_grad_()
    of_kernel = transform.kernel_theta(theta)[1]
    total = transform.grid(theta, (5, 6)).sum() + transform.patches(theta, (5, 6)).sum()
    (total + of_kernel.square().sum()).backward()
    assert theta.grad.isfinite().all()
