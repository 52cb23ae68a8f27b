"""The module: where it starts, what it gives, how it trains, and that PyTorch's tools take it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import triton_stn
from triton_stn.nn import (
    SpatialTransformer,
    identity_penalty,
    out_of_view_penalty,
    parameter_groups,
    tiles,
)
from triton_stn.transforms import Affine, MatrixTransform, ThinPlateSpline

TRANSFORMS = ["affine", "attention", "similarity", "projective", ThinPlateSpline(3, 4)]
IDS = ["affine", "attention", "similarity", "projective", "tps"]
every_transform = pytest.mark.parametrize("transform", TRANSFORMS, ids=IDS)


@pytest.fixture(autouse=True)
def pytorch_path():
    with triton_stn.use_backend("torch"):
        yield


@pytest.fixture
def x():
    return torch.rand(3, 2, 9, 8, generator=torch.Generator().manual_seed(0))


def localization() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2))


def transformer(transform="affine", **options) -> SpatialTransformer:
    torch.manual_seed(0)
    return SpatialTransformer(localization(), 16, transform, **options)


def trained(*arguments, **options) -> SpatialTransformer:
    """A transformer whose θ depends on the image, as after training."""
    module = transformer(*arguments, **options)
    with torch.no_grad():
        module.head.weight.normal_(0, 0.05)
    return module


@every_transform
@pytest.mark.parametrize("k", [1, 3])
def test_starts_at_the_identity_with_its_shapes(transform, k, x):
    module = transformer(transform, output_size=(5, 6), num_transforms=k)
    output, theta = module(x, return_theta=True)
    parallel = (k,) if k > 1 else ()
    assert output.shape == (3, *parallel, 2, 5, 6)
    assert theta.shape == (3, *parallel, *module.transform.theta_shape)
    assert torch.equal(theta, module.transform.identity((3, *parallel)))
    assert torch.equal(output, module(x))


@every_transform
@pytest.mark.parametrize("k", [1, 3])
def test_equals_spatial_transform_with_the_theta_it_returns(transform, k, x):
    options = dict(mode="bilinear", padding_mode="border", align_corners=True)
    module = trained(transform, num_transforms=k, output_size=7, **options)
    output, theta = module(x, return_theta=True)
    assert theta.std(0).min() > 0  # another θ for each image
    expected = triton_stn.spatial_transform(x, theta, 7, transform=module.transform, **options)
    assert torch.equal(output, expected)


@pytest.mark.parametrize("shape", [(2, 3), (4, 2, 3)])
def test_starts_at_a_theta_of_the_callers(shape, x):
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    _, theta = transformer(num_transforms=4, theta=start)(x, return_theta=True)
    assert torch.equal(theta, start.expand(3, 4, 2, 3))


@every_transform
def test_forward_is_predict_and_then_sample(transform, x):
    module = trained(transform, output_size=(5, 6), num_transforms=3)
    output, theta = module(x, return_theta=True)
    assert torch.equal(module.predict(x), theta)
    assert torch.equal(module.sample(x, theta), output)


@every_transform
def test_can_be_made_without_memory(transform):
    with torch.device("meta"):
        module = SpatialTransformer(nn.Flatten(), 4, transform)
    numbers = (
        4 * transformer(transform).head.out_features + transformer(transform).head.out_features
    )
    assert sum(p.numel() for p in module.parameters()) == numbers
    assert all(p.is_meta for p in module.parameters())


def test_every_parameter_learns_from_the_second_step_on(x):
    module = transformer(num_transforms=2)
    optimizer = torch.optim.SGD(module.parameter_groups(1e-3, 1.0))
    before = copy.deepcopy(module.state_dict())
    for _ in range(2):  # a head of zero weight passes no gradient on in the first
        optimizer.zero_grad()
        module(x).square().sum().backward()
        optimizer.step()
    assert not [n for n, p in module.state_dict().items() if torch.equal(p, before[n])]


def test_autocast_leaves_theta_in_float32(x):
    module = trained()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, theta = module(x, return_theta=True)
    assert theta.dtype == output.dtype == torch.float32


def test_a_double_module_takes_double_images(x):
    output, theta = trained().double()(x.double(), return_theta=True)
    assert output.dtype == theta.dtype == torch.float64


@pytest.mark.parametrize("k", [1, 4])
def test_an_empty_batch_gives_an_empty_output(k, x):
    parallel = (k,) if k > 1 else ()
    assert transformer(num_transforms=k)(x[:0]).shape == (0, *parallel, 2, 9, 8)


def test_features_that_do_not_fit_are_named(x):
    module = SpatialTransformer(localization(), 10)
    with pytest.raises(ValueError, match=r"features = 10 .* 3 samples, .* \(3, 4, 2, 2\)"):
        module(x)


def test_a_localization_net_that_mixes_samples_is_refused(x):
    module = SpatialTransformer(nn.Sequential(localization(), nn.Flatten(0)), 16)
    with pytest.raises(ValueError, match=r"features = 16 .* 3 samples, .* \(48,\)"):
        module(x)
    regroup = nn.Sequential(localization(), nn.Flatten(0), nn.Unflatten(0, (6, 8)))
    with pytest.raises(ValueError, match=r"3 samples, .* \(6, 8\)"):
        SpatialTransformer(regroup, 8)(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(features=0), "features must be at least 1, got 0"),
        (dict(num_transforms=0), "num_transforms must be at least 1, got 0"),
        (dict(theta=torch.zeros(3, 3)), r"theta must have shape \(2, 3\) .* got \(3, 3\)"),
        (dict(theta=torch.zeros(3, 2, 3), num_transforms=2), r"\(2, 2, 3\), got \(3, 2, 3\)"),
        (dict(transform="fisheye"), "got 'fisheye'"),
    ],
)
def test_a_wrong_argument_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        SpatialTransformer(localization(), **{"features": 16, **options})


def test_parameter_groups_slow_the_transformers_of_any_model_down():
    shared = localization()
    first, second = SpatialTransformer(shared, 16), SpatialTransformer(shared, 16, "attention")
    classifier = nn.Linear(3, 2)
    model = nn.Sequential(first, second, classifier)
    fast, slow = parameter_groups(model, 0.5, localization_lr_scale=0.1)
    assert fast == {"params": [classifier.weight, classifier.bias], "lr": 0.5}
    assert slow["lr"] == pytest.approx(0.05)
    heads = [p for m in (first, second) for p in m.head.parameters()]
    assert set(slow["params"]) == {*shared.parameters(), *heads}
    torch.optim.SGD([fast, slow])  # refuses a parameter in two groups
    (only,) = first.parameter_groups(1.0, 0.01)
    assert set(only["params"]) == set(first.parameters()) and only["lr"] == 0.01


def test_the_out_of_view_penalty_is_zero_inside_and_grows_outside():
    inside = torch.tensor([[0.5, -0.2, 0.1], [0.2, 0.5, -0.1]], requires_grad=True)
    penalty = out_of_view_penalty(inside)
    penalty.backward()
    assert penalty == 0 and not inside.grad.any()


def test_the_out_of_view_penalty_by_hand():
    # Pixel centres of a 2 x 2 output lie at -0.5 and 0.5; x is read at 0.7 and 1.7, y in view.
    theta = torch.tensor([1.0, 1.2, 0.0], dtype=torch.float64, requires_grad=True)
    penalty = out_of_view_penalty(theta, 2, "attention")
    assert penalty.item() == pytest.approx(0.7**2 / 2)
    (gradient,) = torch.autograd.grad(penalty, theta)
    assert gradient.tolist() == pytest.approx([0.7 * 0.5, 0.7, 0.0])  # 2 · 0.7 / 2 · (X, 1)
    # With align_corners they lie at -1 and 1: read at 0.2 and 2.2.
    assert out_of_view_penalty(theta, 2, "attention", True).item() == pytest.approx(1.2**2 / 2)


@every_transform
def test_the_penalties_descend_to_zero(transform):
    module = transformer(transform)
    start = 1.5 * module.transform.identity(2) + 0.3
    for penalty in (out_of_view_penalty, identity_penalty):
        theta = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([theta], lr=0.02)
        first = penalty(theta, transform=transform)
        for _ in range(150):
            optimizer.zero_grad()
            loss = penalty(theta, transform=transform)
            loss.backward()
            optimizer.step()
        assert loss < 0.01 * first, penalty.__name__


def test_the_identity_penalty_by_hand():
    theta = torch.tensor([[1.5, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]])
    assert identity_penalty(theta, "similarity").item() == (0.25 + 1.0) / 8


@pytest.mark.parametrize("transform", ["affine", "projective", ThinPlateSpline(2, 3)], ids=str)
def test_tiles_cut_the_image_into_pieces(transform):
    image = torch.rand(1, 1, 6, 8)
    theta = tiles(3, 2, transform)[None]
    pieces = triton_stn.spatial_transform(image, theta, (2, 4), transform=transform)
    expected = image.unflatten(2, (3, 2)).unflatten(4, (2, 4)).permute(0, 2, 4, 1, 3, 5)
    torch.testing.assert_close(pieces, expected.flatten(1, 2))


@pytest.mark.parametrize("transform", ["attention", "similarity"])
def test_tiles_of_one_scale_stay_within_their_tile(transform):
    wide = SpatialTransformer(nn.Identity(), 1, transform).transform
    matrix = wide.matrix(tiles(1, 2, transform))
    half = [[0.5, 0.0], [0.0, 0.5]]
    assert matrix.tolist() == [
        [[*half[0], -0.5], [*half[1], 0.0]],
        [[*half[0], 0.5], [*half[1], 0.0]],
    ]


class OfMyOwn(MatrixTransform):
    name = "mine"
    theta_shape = (2,)

    def matrix(self, theta):
        return theta[..., None] * torch.eye(2, 3)

    def _identity(self):
        return torch.ones(2)


def test_tiles_refuse_what_they_can_not_cut():
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        tiles(0, 2)
    with pytest.raises(TypeError, match="cols must be an int, got float"):
        tiles(2, 1.5)
    with pytest.raises(ValueError, match="must be 2-D"):
        tiles(2, 2, Affine(3))
    with pytest.raises(ValueError, match="one of triton_stn's own"):
        tiles(2, 2, OfMyOwn())


@every_transform
def test_state_dict_round_trip(transform, x, tmp_path):
    module = trained(transform, num_transforms=2)
    torch.save(module.state_dict(), tmp_path / "state.pt")
    other = transformer(transform, num_transforms=2)
    assert not torch.equal(other(x), module(x))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(x), module(x))
    assert {n.split(".")[0] for n in module.state_dict()} == {"localization", "head"}


@every_transform
def test_a_deep_copy_is_equal_and_independent(transform, x):
    module = trained(transform)
    twin = copy.deepcopy(module)
    expected = module(x)
    assert torch.equal(twin(x), expected)
    with torch.no_grad():
        twin.head.bias.add_(0.3)
    assert torch.equal(module(x), expected) and not torch.equal(twin(x), expected)


def test_repr_names_what_was_chosen():
    module = transformer(
        ThinPlateSpline(2, 2), output_size=(5, 6), num_transforms=2, padding_mode="border"
    )
    text = repr(module)
    for part in (
        "transform=ThinPlateSpline(rows=2, cols=2), output_size=(5, 6), num_transforms=2",
        "mode='bilinear', padding_mode='border', align_corners=False",
        "(localization): Sequential",
        "(head): Linear(in_features=16, out_features=16, bias=True)",
    ):
        assert part in text


@every_transform
@pytest.mark.parametrize("k", [1, 2])
def test_torch_export_keeps_the_numbers(transform, k, x):
    module = trained(transform, output_size=(5, 6), num_transforms=k)
    exported = torch.export.export(module, (x,)).module()
    other = x.flip(0)
    torch.testing.assert_close(exported(other), module(other))


@every_transform
@pytest.mark.parametrize("k", [1, 2])
def test_torch_export_takes_any_batch(transform, k, x):
    module = trained(transform, output_size=(5, 6), num_transforms=k)
    batch = torch.export.Dim("n", min=2)
    exported = torch.export.export(module, (x,), dynamic_shapes={"x": {0: batch}}).module()
    other = torch.cat((x.flip(0), x, x))
    torch.testing.assert_close(exported(other), module(other))


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (dict(mode="cubic"), ValueError, "mode must be one of 'nearest', .* got 'cubic'"),
        (dict(padding_mode="wrap"), ValueError, "padding_mode must be one of .* got 'wrap'"),
        (dict(align_corners=1), TypeError, "align_corners must be a bool, got int"),
        (dict(features="a"), TypeError, "features must be an int, got str"),
        (dict(num_transforms=0), ValueError, "num_transforms must be at least 1, got 0"),
    ],
)
def test_a_wrong_argument_is_named_when_the_module_is_made(arguments, kind, message):
    with pytest.raises(kind, match=message):
        SpatialTransformer(nn.Flatten(), **(dict(features=8) | arguments))


def test_the_identity_penalty_takes_no_theta_of_another_shape():
    with pytest.raises(ValueError, match=r"theta .* must have shape \(\.\.\., 2, 3\)"):
        identity_penalty(torch.zeros(4, 3, 3))
