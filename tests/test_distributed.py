"""Several devices: two processes of a gloo group give what one gives."""

from __future__ import annotations

import sys
import warnings

import processes
import pytest
import torch
from processes import together
from torch import nn

import triton_stn
from triton_stn.nn import SpatialTransformer

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or sys.platform == "win32", reason="needs gloo"
)

N, K, C, SIZE = 3, 2, 5, (4, 3)  # neither batch nor channels are even
SPLINE = triton_stn.ThinPlateSpline(2, 2)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def maps(*leading, transform="affine", ndim=2):
    kind = triton_stn.transforms.resolve(transform, ndim)
    theta = kind.identity(leading, dtype=torch.float64)
    return theta + 0.2 * noise(*theta.shape, seed=1)


def transformed(**options):
    def function(input, theta, *fill):
        fill = dict(fill_value=fill[0]) if fill else {}
        return triton_stn.spatial_transform(input, theta, SIZE, **options, **fill)

    return function


def volume(input, theta):
    return triton_stn.spatial_transform(input, theta, (3, *SIZE))


def splatted(**options):
    return lambda input, theta: triton_stn.splat(input, theta, (5, 6), **options)


IMAGES = noise(N, C, 4, 6)
VOLUMES = noise(N, C, 3, 4, 6)
# name: (function, its tensors)
CASES = {
    "affine": (transformed(), IMAGES, maps(N)),
    "affine, K": (transformed(), IMAGES, maps(N, K)),
    "affine, one for all": (transformed(), IMAGES, maps()),
    "affine, a batch of one": (transformed(), IMAGES, maps(1)),
    "one image": (transformed(), IMAGES[:1], maps(N)),
    "one image, K": (transformed(), IMAGES[:1], maps(N, K)),
    "attention": (
        transformed(transform="attention"), IMAGES, maps(N, transform="attention"),
    ),
    "similarity": (
        transformed(transform="similarity"), IMAGES, maps(N, transform="similarity"),
    ),
    "projective": (
        transformed(transform="projective"), IMAGES, maps(N, K, transform="projective"),
    ),
    "spline": (transformed(transform=SPLINE), IMAGES, maps(N, transform=SPLINE)),
    "border": (transformed(padding_mode="border"), IMAGES, maps(N)),
    "bicubic": (transformed(mode="bicubic", align_corners=True), IMAGES, maps(N)),
    "nearest": (transformed(mode="nearest"), IMAGES, maps(N)),
    "area": (transformed(antialias=True), IMAGES, 2 * maps(N)),
    "area of a spline": (
        transformed(antialias=True, transform=SPLINE), IMAGES, 2 * maps(N, transform=SPLINE),
    ),
    "a fill": (transformed(fill_value=2.0), IMAGES, 2 * maps(N)),
    "a fill a channel": (transformed(fill_value=list(range(C))), IMAGES, 2 * maps(N)),
    "a fill that learns": (transformed(), IMAGES, 2 * maps(N), noise(C)),
    "one fill that learns": (transformed(), IMAGES, 2 * maps(N), noise()),
    "volumes": (volume, VOLUMES, maps(N, ndim=3)),
    "volumes, K": (volume, VOLUMES, maps(N, K, ndim=3)),
    "grid": (triton_stn.grid_sample, IMAGES, noise(N, 4, 3, 2)),
    "grid, K": (triton_stn.grid_sample, IMAGES, noise(N, K, 4, 3, 2)),
    "grid of volumes": (triton_stn.grid_sample, VOLUMES, noise(N, 2, 4, 3, 3)),
    "flow": (triton_stn.flow_warp, IMAGES, noise(N, 2, 4, 6)),
    "flow of volumes": (triton_stn.flow_warp, VOLUMES, noise(N, 3, 3, 4, 6)),
    "splat": (splatted(), noise(N, C, 4, 3), maps(N)),
    "splat, K": (splatted(normalize=True), noise(N, K, C, 4, 3), maps(N, K)),
    "grid_splat": (triton_stn.grid_splat, noise(N, K, C, 4, 3), noise(N, K, 4, 3, 2)),
}  # fmt: skip


def results(function, tensors, second=False):
    """The output, and the gradients of a sum of its squares, or what those have for gradients."""
    output = function(*tensors)
    if not second:
        return [output, *torch.autograd.grad(output.square().sum(), tensors)]
    mixed = output.sum((0, -3)).square().sum()  # each pixel's gradient hangs on all the others'
    made = torch.autograd.grad(mixed, tensors, create_graph=True)
    return [output, *torch.autograd.grad(sum(grad.square().sum() for grad in made), tensors)]


def line(*shape):
    from torch.distributed.tensor import init_device_mesh

    return init_device_mesh("cpu", shape or (processes.WORLD,))


def shard(tensor, *dims, mesh=None):
    """By a dimension of it along each of the mesh; None: replicated."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, mesh or line(), placements(*dims)).requires_grad_()


def placements(*dims):
    from torch.distributed.tensor import Replicate, Shard

    return tuple(Replicate() if dim is None else Shard(dim) for dim in dims)


def alone(tensors):
    return [tensor.clone().requires_grad_() for tensor in tensors]


def agree(got, expected):
    for ours, right in zip(got, expected, strict=True):
        assert ours.shape == right.shape
        near = {} if right.dtype == torch.float32 else dict(rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(ours.full_tensor(), right, **near)


def splits(function, tensors):
    """What the tensors are sharded by, and what the output is: dimensions, None for replicated."""
    input, theta, *fills = tensors
    n_input, n_theta = (0 if len(tensor) == N else None for tensor in (input, theta))
    channels, of_fills = input.shape.index(C), [0 if fill.ndim else None for fill in fills]
    has_k = function(*tensors).ndim > input.ndim
    whole = [None for _ in fills]
    yield [n_input, n_theta, *whole], 0
    yield [n_input, None, *whole], n_input
    yield [None, n_theta, *whole], n_theta
    yield [channels, None, *of_fills], 1 + has_k
    yield [channels, n_theta, *whole], 1 + has_k
    yield [None, None, *whole], None
    yield [input.ndim - 1, None, *whole], None  # a row is whole before it is read
    if has_k:
        yield [None, 1, *whole], 1
    elif channels == 2:  # K are added up
        yield [1, 1], None


@together
def test_importing_the_library_imports_no_dtensors():
    assert not processes.imported_dtensor


@pytest.mark.parametrize("case", CASES)
@together
def test_sharded_calls_give_what_whole_ones_give(case):
    function, *tensors = CASES[case]
    expected = results(function, alone(tensors))
    for dims, of_output in splits(function, tensors):
        sharded = [shard(tensor, dim) for tensor, dim in zip(tensors, dims, strict=True)]
        got = results(function, sharded)
        agree(got, expected)
        assert got[0].stride() == expected[0].stride()
        assert got[0].placements == placements(of_output), dims
        assert [grad.placements for grad in got[1:]] == [t.placements for t in sharded]


@pytest.mark.parametrize("case", ["affine, K", "projective", "grid", "splat, K"])
@together
def test_their_second_derivatives_too(case):
    function, *tensors = CASES[case]
    expected = results(function, alone(tensors), second=True)
    for dims, _ in splits(function, tensors):
        sharded = [shard(tensor, dim) for tensor, dim in zip(tensors, dims, strict=True)]
        agree(results(function, sharded, second=True), expected)


@together
def test_bytes_are_normalised_shard_by_shard():
    from torch.distributed.tensor import distribute_tensor

    frames = (50 * IMAGES + 128).clamp(0, 255).byte()
    mean = noise(C).float()

    def results(frames, theta, mean):
        normalize = mean, [0.25, 0.5, 0.75, 1, 2]
        y = triton_stn.spatial_transform(frames, theta, SIZE, fill_value=9, normalize=normalize)
        return [y, *torch.autograd.grad(y.square().sum(), theta)]

    theta = maps(N).float().requires_grad_()
    expected = results(frames, theta, mean)
    for of_frames, of_theta, of_mean in ((0, 0, None), (1, None, 0), (1, 0, None), (2, None, None)):
        shards = distribute_tensor(frames, line(), placements(of_frames))
        numbers = distribute_tensor(mean, line(), placements(of_mean))
        agree(results(shards, shard(theta.detach(), of_theta), numbers), expected)


@together
def test_nothing_is_sent_but_the_sum_of_a_gradient():
    from torch.distributed.tensor.debug import CommDebugMode

    added = {torch.ops.c10d_functional.all_reduce: 1}
    for dims, theta, sent in (
        ((0, 0), maps(N), {}),
        ((0, None), maps(), added),
        ((1, None), maps(N), added),
    ):
        tensors = shard(IMAGES, dims[0]), shard(theta, dims[1])
        with CommDebugMode() as watch:
            output = transformed()(*tensors)
        assert watch.get_comm_counts() == {}
        with CommDebugMode() as watch:
            torch.autograd.grad(output, tensors, torch.ones_like(output))
        assert watch.get_comm_counts() == sent


@together
def test_each_dimension_of_a_mesh_splits_something_else():
    function, images, theta = CASES["affine, K"]
    expected = results(function, alone([images, theta]))
    for shape in ((2, 1), (1, 2)):
        mesh = line(*shape)
        sharded = shard(images, 0, 1, mesh=mesh), shard(theta, 0, None, mesh=mesh)
        got = results(function, sharded)
        agree(got, expected)
        assert got[0].placements == placements(0, 2)


@together
def test_a_process_may_have_no_part_of_a_batch():
    for case in ("affine", "affine, K", "projective", "area", "grid, K", "splat, K"):
        function, *tensors = CASES[case]
        tensors = [tensor[:1] for tensor in tensors]
        got = results(function, [shard(tensor, 0) for tensor in tensors])
        agree(got, results(function, alone(tensors)))
        assert len(got[0].to_local()) == 1 - torch.distributed.get_rank()


@together
def test_what_is_not_yet_added_up_is_added_first():
    from torch.distributed.tensor import DTensor, Partial

    addends = DTensor.from_local(IMAGES / processes.WORLD, line(), [Partial()])
    for dim in (0, None):
        agree([transformed()(addends, shard(maps(N), dim))], [transformed()(IMAGES, maps(N))])


@together
def test_channels_last_stays():
    from torch.distributed.tensor import DTensor

    images = noise(4, C, 5, 6).to(memory_format=torch.channels_last)
    mine = images.chunk(processes.WORLD)[torch.distributed.get_rank()]
    sharded = DTensor.from_local(mine, line(), placements(0))
    got = transformed()(sharded, shard(maps(4), 0))
    assert got.stride() == transformed()(images, maps(4)).stride()
    assert got.to_local().is_contiguous(memory_format=torch.channels_last)


@together
def test_a_tensor_beside_dtensors_is_named():
    with pytest.raises(TypeError, match=r"every tensor must be one, got a Tensor of shape \(3, 2"):
        transformed()(shard(IMAGES, 0), maps(N))
    with pytest.raises(TypeError, match=r"got a Tensor of shape \(3, 5, 4, 6\); use"):
        transformed()(IMAGES, shard(maps(N), 0))
    with pytest.raises(ValueError, match="all DTensors must be on one mesh"):
        transformed()(shard(IMAGES, 0, None, mesh=line(1, 2)), shard(maps(N), 0))


@pytest.mark.landing
@together
def test_a_compiler_traces_sharded_calls_whole():
    torch._dynamo.reset()
    function = torch.compile(transformed(), backend="aot_eager", fullgraph=True)
    expected = results(transformed(), alone([IMAGES, maps(N, K)]))
    for dims in ((0, 0), (1, None)):
        agree(results(function, [shard(IMAGES, dims[0]), shard(maps(N, K), dims[1])]), expected)


def operator(input, theta):
    return torch.ops.triton_stn.sample(input, theta, SIZE, "bilinear", "zeros", False)


@pytest.mark.landing
@pytest.mark.parametrize("public", [True, False], ids=["public", "operator"])
@together
def test_the_kernels_serve_shards(public):
    import triton_stn.distributed

    tensors = IMAGES[:2, :2], maps(2, K)
    function = transformed() if public else operator
    with triton_stn.use_backend("triton"):
        expected = results(function, alone(tensors))
        for dims in ((0, 0), (1, None), (None, 1)):
            sharded = [shard(t, dim) for t, dim in zip(tensors, dims, strict=True)]
            agree(results(function, sharded), expected)


@together
def test_operators_know_sizes_fills_and_what_is_needed():
    import triton_stn.distributed

    operators, rules = torch.ops.triton_stn, ("bilinear", "zeros", False)
    tensors = noise(2, 2, 2, 3), maps(2, 1), noise(2)
    with triton_stn.use_backend("triton"):
        for dims in ((0, 0, None), (1, None, 0)):
            sharded = [shard(t, dim).detach() for t, dim in zip(tensors, dims, strict=True)]
            for size in ((1, 2), (2, 1)):
                expected, got = (
                    operators.sample(input, theta, size, *rules, fills=fills)
                    for input, theta, fills in (tensors, sharded)
                )
                agree([got], [expected])
            for needs in ((True, False), (False, True)):
                agree(
                    *(
                        operators.sample_backward(output, input, theta, *rules, *needs, fills=fills)
                        for output, (input, theta, fills) in ((got, sharded), (expected, tensors))
                    )
                )


@together
def test_an_operator_has_no_second_derivative():
    import triton_stn.distributed

    tensors = shard(IMAGES[:1, :1], None), shard(maps(1, 1), None)
    with (
        triton_stn.use_backend("triton"),
        pytest.raises(RuntimeError, match=r"mixed torch\.Tensor and DTensor"),
    ):
        results(operator, tensors, second=True)


def network(k=1):
    torch.manual_seed(0)
    localization = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten())
    transformer = SpatialTransformer(localization, 144, num_transforms=k, output_size=5)
    nn.init.normal_(transformer.head.weight, std=0.02)
    return nn.Sequential(transformer, nn.Flatten(), nn.Linear(25 * k, 10)).double()


def gradients(model, images, targets):
    nn.functional.cross_entropy(model(images), targets).backward()
    return [
        parameter.grad.full_tensor() if hasattr(parameter.grad, "full_tensor") else parameter.grad
        for parameter in model.parameters()
    ]


def batch():
    """(all of it, this process's)"""
    images, targets = noise(4, 1, 8, 8), torch.tensor([3, 1, 4, 1])
    mine = slice(torch.distributed.get_rank(), None, processes.WORLD)
    return (images, targets), (images[mine], targets[mine])


COMPILED = pytest.param(True, id="compiled", marks=pytest.mark.landing)


@pytest.mark.parametrize("compiled", [pytest.param(False, id="eager"), COMPILED])
@together
def test_ddp_gives_the_gradients_of_the_whole_batch(compiled):
    torch._dynamo.reset()
    whole, mine = batch()
    expected = gradients(network(), *whole)
    model = nn.parallel.DistributedDataParallel(network())
    if compiled:
        model = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(gradients(model, *mine), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("k", [1, 2])
@together
def test_fsdp_trains_as_one_process_and_warns_of_nothing(k):
    from torch.distributed.fsdp import fully_shard

    whole, mine = batch()
    single, model = network(k), network(k)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for module in (model[0], model):
            fully_shard(module, mesh=line())
        for trained, part in ((single, whole), (model, mine)):
            optimizer = torch.optim.SGD(trained.parameters(), lr=0.5)
            for _ in range(3):
                optimizer.zero_grad()
                made = gradients(trained, *part)
                optimizer.step()
            if trained is single:
                expected = made
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-14)


@together
def test_the_examples_judge_their_shares_of_what_is_held_out():
    from examples.data import Scene
    from examples.experiments import Result, measure
    from examples.processes import judged

    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3))
    if torch.distributed.get_rank():  # as by a batch of its own
        network[1].running_mean += 5
    scene = Scene(noise(7, 1, 4, 4).float(), torch.tensor([0, 1, 2, 0, 1, 2, 0]))
    got = judged(measure, network, scene)
    network[1].running_mean.zero_()
    assert got.error == pytest.approx(measure(network, scene).error)
    assert 0 < got.error < 100

    def mean_of_targets(network, scene):
        return Result(0.0, scene.targets.float().mean().item())

    assert judged(mean_of_targets, network, scene).iou == pytest.approx(6 / 7)
