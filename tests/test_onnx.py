"""Exported to ONNX, a model gives in onnxruntime what it gives here, from either backend."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from conftest import Place
from torch import nn
from torch.testing import assert_close

import triton_stn
from triton_stn import flow_warp, grid_sample, spatial_transform
from triton_stn.nn import SpatialTransformer

for package in ("onnx", "onnxscript"):
    pytest.importorskip(package, reason="torch.onnx.export needs it")
onnxruntime = pytest.importorskip("onnxruntime", reason="runs what is exported")

pytestmark = pytest.mark.filterwarnings("ignore")  # the exporter's own, of its next release
SPLINE = triton_stn.ThinPlateSpline(2, 2)


class Model(nn.Module):
    """A function of two tensors."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, theta):
        return self.function(x, theta)


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def near(transform, *batch):
    """θ that turn, shear and leave the image on one side."""
    transform = triton_stn.transforms.resolve(*transform)
    theta = transform.identity(batch)
    return theta + 0.2 * rand(*theta.shape, seed=1)


IMAGE, VOLUME = rand(2, 3, 6, 7), rand(2, 2, 4, 5, 6)
FLOW, GRID = 4 * rand(2, 2, 6, 7, seed=2) - 2, 3 * rand(2, 4, 5, 2, seed=3) - 1.5
AFFINE, HOMOGRAPHY = near(["affine"], 2), near(["projective"], 2)
sample = spatial_transform
# (what is exported, image, θ or a field)
CALLS = {
    "affine": (partial(sample, output_size=(4, 9)), IMAGE, AFFINE),
    "K maps": (sample, IMAGE, near(["affine"], 2, 3)),
    "one map": (sample, IMAGE, AFFINE[0]),
    "projective": (partial(sample, transform="projective"), IMAGE, HOMOGRAPHY),
    "spline": (partial(sample, transform=SPLINE), IMAGE, near([SPLINE], 2)),
    "grid": (grid_sample, IMAGE, GRID),
    "flow": (flow_warp, IMAGE, FLOW),
    "volume": (sample, VOLUME, near(["affine", 3], 2)),
    "volume under a flow": (flow_warp, VOLUME, 2 * rand(2, 3, 4, 5, 6, seed=4) - 1),
    "nearest": (partial(sample, mode="nearest"), IMAGE, AFFINE),
    "bicubic": (partial(sample, mode="bicubic", align_corners=True), IMAGE, AFFINE),
    "border": (partial(sample, padding_mode="border"), IMAGE, 2 * AFFINE),
    "reflection": (partial(sample, padding_mode="reflection"), IMAGE, 2 * AFFINE),
    "a fill": (partial(sample, fill_value=0.5), IMAGE, 2 * AFFINE),
    "fills": (partial(sample, fill_value=[0.5, 1.0, -1.0]), IMAGE, 2 * AFFINE),
    "half": (sample, IMAGE.half(), AFFINE),
}
FIRST = ("affine", "projective", "volume")  # the others with a landing


def run(program, *tensors):
    """The first output, by onnxruntime."""
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [argument.name for argument in session.get_inputs()]
    feed = {name: t.numpy() for name, t in zip(names, tensors, strict=True)}
    return torch.from_numpy(session.run(None, feed)[0])


def export(model, *tensors, **options):
    return torch.onnx.export(model.eval(), tensors, dynamo=True, verbose=False, **options)


def operators(program) -> list[str]:
    return [node.op_type for node in program.model_proto.graph.node]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.landing] * (name not in FIRST)) for name in CALLS],
)
def test_onnxruntime_gives_what_the_model_gives(place: Place, device, name):
    call, x, theta = CALLS[name]
    program = export(Model(call), x, theta, opset_version=20)
    # It was one operator of ours, and is one of ONNX's.
    assert operators(program).count("GridSample") == 1 or name in ("a fill", "fills")
    tolerance = dict(rtol=0, atol=2e-3 if x.dtype == torch.half else 1e-5)
    assert_close(run(program, x, theta), call(x, theta), **tolerance)


def test_the_batch_and_the_size_may_stay_open(place: Place, device):
    n, h, w = (torch.export.Dim.DYNAMIC for _ in range(3))
    shapes = {"x": {0: n, 2: h, 3: w}, "theta": {0: n}}
    program = export(Model(sample), IMAGE, AFFINE, dynamic_shapes=shapes)
    for size in ((3, 3, 5, 9), (1, 3, 8, 4)):
        x, theta = rand(*size, seed=5), near(["affine"], size[0])
        assert_close(run(program, x, theta), sample(x, theta), rtol=0, atol=1e-5)


@pytest.mark.landing
def test_the_module_is_exported_with_its_localisation(place: Place, device):
    torch.manual_seed(0)
    localization = nn.Sequential(nn.Flatten(), nn.Linear(3 * 42, 8), nn.Tanh())
    module = SpatialTransformer(localization, 8, "similarity", (4, 5), num_transforms=2)
    nn.init.normal_(module.head.weight, std=0.1)
    program = export(module, IMAGE)
    assert_close(run(program, IMAGE), module(IMAGE), rtol=0, atol=1e-5)


@pytest.mark.landing
def test_sixteen_is_enough_for_images(place: Place, device):
    program = export(Model(sample), IMAGE, AFFINE, opset_version=18)
    assert_close(run(program, IMAGE, AFFINE), sample(IMAGE, AFFINE), rtol=0, atol=1e-5)


def test_what_onnx_has_not_is_refused(place: Place, device):
    model = Model(partial(sample, antialias=True))
    with pytest.raises(Exception, match=r"No ONNX function found for .*triton_stn\.sample"):
        export(model, IMAGE, AFFINE)
