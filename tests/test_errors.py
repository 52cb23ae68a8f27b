"""Every wrong argument is named, with what came and what was expected, before any launch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import triton_stn
from triton_stn import backends
from triton_stn.backends import fused, pytorch

X = torch.zeros(2, 3, 4, 5)
T = torch.zeros(2, 2, 3)
V, T3 = torch.zeros(2, 3, 4, 5, 6), torch.zeros(2, 3, 4)

WRONG = {
    # input
    "input is a list": ((X.tolist(), T), {}, TypeError, ["input", "torch.Tensor", "list"]),
    "input is None": ((None, T), {}, TypeError, ["input", "torch.Tensor", "NoneType"]),
    "input is 3-D": ((X[0], T), {}, ValueError, ["input", "(N, C, H, W)", "(3, 4, 5)"]),
    "input is 6-D": (
        (V[None], T),
        {},
        ValueError,
        ["input", "(N, C, D, H, W)", "(1, 2, 3, 4, 5, 6)"],
    ),
    "D = 0": ((V[:, :, :0], T3), {}, ValueError, ["input", "D > 0", "(2, 3, 0, 5, 6)"]),
    "theta (2, 3) of a volume": (
        (V, T),
        {},
        ValueError,
        ["theta", "(3, 4)", "(N, K, 3, 4)", "input of shape (2, 3, 4, 5, 6)", "(2, 2, 3)"],
    ),
    "theta (3, 4) of an image": (
        (X, T3),
        {},
        ValueError,
        ["theta", "(2, 3)", "(N, K, 2, 3)", "input of shape (2, 3, 4, 5)", "(2, 3, 4)"],
    ),
    "a 3-D transform of an image": (
        (X, T3),
        dict(transform=triton_stn.Affine(3)),
        ValueError,
        ["transform", "ndim = 2", "Affine(ndim=3)", "(2, 3, 4, 5)"],
    ),
    "a 2-D transform of a volume": (
        (V, T),
        dict(transform=triton_stn.ThinPlateSpline(2, 2)),
        ValueError,
        ["transform", "ndim = 3", "ThinPlateSpline", "(2, 3, 4, 5, 6)"],
    ),
    "a homography of a volume": (
        (V, torch.zeros(3, 3)),
        dict(transform="projective"),
        ValueError,
        ["transform", "'affine'", "3-D", "'projective'"],
    ),
    "a volume of another batch": (
        (V, T3.repeat(2, 1, 1)),
        {},
        ValueError,
        ["theta", "N = 2", "got 4"],
    ),
    "size of a volume": ((V, T3, (4, 4)), {}, ValueError, ["output_size", "(D_out, H_out, W_out)"]),
    "int image": ((X.int(), T), {}, TypeError, ["input", "float32", "int32"]),
    "int8 image": ((X.char(), T), {}, TypeError, ["input", "float32", "torch.uint8", "int8"]),
    "bool image": ((X.bool(), T), {}, TypeError, ["input", "float32", "bool"]),
    "complex image": ((X.cfloat(), T), {}, TypeError, ["input", "float32", "complex64"]),
    "H = 0": ((X[:, :, :0], T), {}, ValueError, ["input", "H > 0", "(2, 3, 0, 5)"]),
    "W = 0": ((X[..., :0], T), {}, ValueError, ["input", "W > 0", "(2, 3, 4, 0)"]),
    # theta
    "theta is a list": ((X, T.tolist()), {}, TypeError, ["theta", "torch.Tensor", "list"]),
    "integer theta": ((X, T.long()), {}, TypeError, ["theta", "float32", "int64"]),
    "bool theta": ((X, T.bool()), {}, TypeError, ["theta", "float32", "bool"]),
    "complex theta": ((X, T.cdouble()), {}, TypeError, ["theta", "float32", "complex128"]),
    "theta (N, 3, 3)": ((X, torch.zeros(2, 3, 3)), {}, ValueError, ["theta", "2, 3", "(2, 3, 3)"]),
    "theta (N, 2, 2)": ((X, torch.zeros(2, 2, 2)), {}, ValueError, ["theta", "2, 3", "(2, 2, 2)"]),
    "theta (6,)": ((X, torch.zeros(6)), {}, ValueError, ["theta", "(N, K, 2, 3)", "(6)"]),
    "theta (N, 6)": ((X, torch.zeros(2, 6)), {}, ValueError, ["theta", "(N, 2, 3)", "(2, 6)"]),
    "theta 5-D": ((X, T[None, None]), {}, ValueError, ["theta", "(N, K, 2, 3)", "(1, 1, 2, 2, 3)"]),
    "another batch": ((X, torch.zeros(3, 2, 3)), {}, ValueError, ["theta", "N = 2", "3"]),
    "another batch with K": (
        (X, torch.zeros(3, 1, 2, 3)),
        {},
        ValueError,
        ["theta", "N = 2", "got 3"],
    ),
    "two devices": ((X, T.to("meta")), {}, ValueError, ["theta", "device", "cpu", "meta"]),
    # output_size
    "size of length 1": ((X, T, (4,)), {}, ValueError, ["output_size", "(H_out, W_out)", "(4,)"]),
    "size of length 3": ((X, T, [4, 4, 4]), {}, ValueError, ["output_size", "[4, 4, 4]"]),
    "size is text": ((X, T, "44"), {}, TypeError, ["output_size", "int", "'44'"]),
    "size is zero": ((X, T, 0), {}, ValueError, ["output_size", "positive", "0"]),
    "size holds zero": ((X, T, (4, 0)), {}, ValueError, ["output_size", "positive", "(4, 0)"]),
    "size is negative": ((X, T, (-1, 4)), {}, ValueError, ["output_size", "positive", "(-1, 4)"]),
    "size is a float": ((X, T, 4.0), {}, TypeError, ["output_size", "int", "4.0"]),
    "size holds a float": ((X, T, (4, 4.5)), {}, TypeError, ["output_size", "int", "(4, 4.5)"]),
    "size is a bool": ((X, T, True), {}, TypeError, ["output_size", "int", "True"]),
    # names
    "unknown mode": ((X, T), dict(mode="cubic"), ValueError, ["mode", "'bilinear'", "'cubic'"]),
    "unknown cubic": ((X, T), dict(mode="lanczos"), ValueError, ["mode", "'bicubic'", "'lanczos'"]),
    "mode is an int": ((X, T), dict(mode=0), TypeError, ["mode", "'bilinear'", "int"]),
    "unknown padding": (
        (X, T),
        dict(padding_mode="wrap"),
        ValueError,
        ["padding_mode", "'reflection'", "'wrap'"],
    ),
    "padding is None": ((X, T), dict(padding_mode=None), TypeError, ["padding_mode", "NoneType"]),
    "unknown transform": (
        (X, T),
        dict(transform="rigid"),
        ValueError,
        ["transform", "'affine'", "'rigid'"],
    ),
    "a spline by name": ((X, T), dict(transform="tps"), ValueError, ["transform", "rows, cols"]),
    "transform is a class": (
        (X, T),
        dict(transform=triton_stn.Affine),
        TypeError,
        ["transform", "Transform object"],
    ),
    "theta of a homography": (
        (X, T),
        dict(transform="projective"),
        ValueError,
        ["theta", "projective", "(3, 3)", "(N, K, 3, 3)", "(2, 2, 3)"],
    ),
    "theta of a spline": (
        (X, torch.zeros(2, 5, 2)),
        dict(transform=triton_stn.ThinPlateSpline(2, 3)),
        ValueError,
        ["theta", "(6, 2)", "(2, 5, 2)", "this spline has 6 control points, theta is of 5"],
    ),
    "corners as text": ((X, T), dict(align_corners="no"), TypeError, ["align_corners", "bool"]),
    "corners as int": ((X, T), dict(align_corners=1), TypeError, ["align_corners", "bool", "int"]),
}


@pytest.fixture(autouse=True)
def nothing_is_launched(monkeypatch):
    def launch(*_, **__):
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr(fused, "launch", launch)
    monkeypatch.setattr(pytorch, "sample", launch)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_argument_is_named(wrong):
    args, kwargs, error, fragments = WRONG[wrong]
    with pytest.raises(error) as caught:
        triton_stn.spatial_transform(*args, **kwargs)
    message = str(caught.value)
    assert message.startswith(fragments[0])
    for fragment in fragments:
        assert fragment in message


GRID, FLOW = torch.zeros(2, 4, 4, 2), torch.zeros(2, 2, 4, 5)
WRONG_FIELDS = {
    "grid is a list": ("grid_sample", (X, GRID.tolist()), TypeError, ["grid", "torch.Tensor"]),
    "integer grid": ("grid_sample", (X, GRID.long()), TypeError, ["grid", "int64"]),
    "grid of 3 numbers": (
        "grid_sample",
        (X, torch.zeros(2, 4, 4, 3)),
        ValueError,
        ["grid", "(N, H_out, W_out, 2)", "(2, 4, 4, 3)"],
    ),
    "grid of another batch": (
        "grid_sample",
        (X, GRID.repeat(2, 1, 1, 1)),
        ValueError,
        ["grid", "N = 2", "4"],
    ),
    "grid elsewhere": ("grid_sample", (X, GRID.to("meta")), ValueError, ["grid", "meta"]),
    "grid of a volume": (
        "grid_sample",
        (V, GRID),
        ValueError,
        ["grid", "(N, D_out, H_out, W_out, 3)", "(2, 3, 4, 5, 6)"],
    ),
    "flow of a volume": (
        "flow_warp",
        (V, torch.zeros(2, 2, 5, 6)),
        ValueError,
        ["flow", "(N, 3, D_out, H_out, W_out)", "(2, 3, 4, 5, 6)"],
    ),
    "grid and mode": ("grid_sample", (X, GRID, "area"), ValueError, ["mode", "'area'"]),
    "flow, x and y last": (
        "flow_warp",
        (X, GRID),
        ValueError,
        ["flow", "(N, 2, H_out, W_out)", "(2, 4, 4, 2)"],
    ),
    "bool flow": ("flow_warp", (X, FLOW.bool()), TypeError, ["flow", "bool"]),
    "flow elsewhere": ("flow_warp", (X, FLOW.to("meta")), ValueError, ["flow", "meta"]),
}


@pytest.mark.parametrize("wrong", WRONG_FIELDS)
def test_a_wrong_grid_or_flow_is_named(wrong):
    name, args, error, fragments = WRONG_FIELDS[wrong]
    with pytest.raises(error) as caught:
        getattr(triton_stn, name)(*args)
    message = str(caught.value)
    assert message.startswith(fragments[0])
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize(
    "call",
    [
        lambda size: triton_stn.splat(X, T, size),
        lambda size: triton_stn.grid_splat(X, torch.zeros(2, 4, 5, 2), size),
        lambda size: triton_stn.nn.SpatialTransformer(torch.nn.Flatten(), 1, output_size=size),
        lambda size: triton_stn.nn.out_of_view_penalty(T, size),
        lambda size: triton_stn.geometry.affine(size),
        lambda size: triton_stn.geometry.quadrilateral(T, size),
        lambda size: triton_stn.Affine().identity(size),
    ],
)
def test_text_is_no_size(call):
    """Though it is a sequence."""
    with pytest.raises(TypeError, match=r"^\w+ must be an int or .*ints, got '44'$"):
        call("44")


class Picture:
    """What a PIL image shows of itself: no dtype, but an array interface."""

    @property
    def __array_interface__(self):
        return {"shape": (9, 5, 3), "typestr": "|u1", "version": 3}


IMAGES = {
    "bytes (H, W, C)": (
        torch.zeros(9, 5, 3, dtype=torch.uint8),
        "got (9, 5, 3); use input.permute(2, 0, 1)[None]",
    ),
    "(H, W, C)": (torch.zeros(9, 5, 3), "got (9, 5, 3); use input.permute(2, 0, 1)[None]"),
    "(C, H, W)": (X[0], "got (3, 4, 5); use input[None]"),
    "(H, W)": (X[0, 0], "got (4, 5); use input[None, None]"),
    "array": (
        np.zeros((9, 5, 3), np.uint8),
        "got numpy.ndarray of dtype uint8 and shape (9, 5, 3); "
        "use torch.from_numpy(input).permute(2, 0, 1)[None]",
    ),
    "float array": (
        np.zeros((9, 5), np.float32),
        "dtype float32 and shape (9, 5); use torch.from_numpy(input)[None, None]",
    ),
    "PIL image": (
        Picture(),
        "Picture of shape (9, 5, 3); "
        "use torch.from_numpy(numpy.array(input)).permute(2, 0, 1)[None]",
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_of_another_form_comes_with_what_to_do(name):
    image, ending = IMAGES[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        triton_stn.spatial_transform(image, T[0])
    assert str(caught.value).startswith("input must ")
    assert str(caught.value).endswith(ending)


@pytest.mark.parametrize("name", [name for name in IMAGES if name != "PIL image"])
def test_what_to_do_with_an_image_gives_one(name):
    image, ending = IMAGES[name]
    made = eval(ending.partition("; use ")[2], {"torch": torch, "input": image})
    with pytest.raises(AssertionError, match="was launched"):
        triton_stn.spatial_transform(made, T[0])


FINISHES = {
    "a float image": (X, dict(output_dtype=torch.half), TypeError, "output_dtype needs an input"),
    "floats normalised": (X, dict(normalize=(0, 1)), TypeError, r"normalize needs.*torch.float32"),
    "a name": (X.byte(), dict(output_dtype="half"), TypeError, r"output_dtype .*float16.*got str"),
    "float64": (X.byte(), dict(output_dtype=torch.double), ValueError, "output_dtype .*float64"),
    "bytes normalised": (
        X.byte(), dict(output_dtype=torch.uint8, normalize=(0, 1)), ValueError,
        "normalize needs a floating output_dtype, got torch.uint8",
    ),
    "no pair": (X.byte(), dict(normalize=0.5), TypeError, r"pair \(mean, std\), got float"),
    "a triple": (X.byte(), dict(normalize=(0, 1, 2)), ValueError, r"pair \(mean, std\), got 3"),
    "two means": (X.byte(), dict(normalize=([0, 1], 1)), ValueError, "mean .*C = 3 .*got 2"),
    "a wide std": (
        X.byte(), dict(normalize=(0, torch.ones(2))), ValueError, r"std .*\(C,\) = \(3,\).*\(2\)",
    ),
    "std of text": (X.byte(), dict(normalize=(0, "1")), TypeError, "the std .*got str"),
    "std of 0": (X.byte(), dict(normalize=(0, [1, 0, 1])), ValueError, r"std .* not be 0.*\[1, 0"),
    "a mean elsewhere": (
        X.byte(), dict(normalize=(torch.zeros(3, device="meta"), 1)), ValueError,
        "the mean .*device of input, cpu, got meta",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FINISHES)
@pytest.mark.parametrize("function", ["spatial_transform", "grid_sample", "flow_warp"])
def test_what_is_made_of_bytes_is_checked_by_every_function(function, name):
    image, options, error, said = FINISHES[name]
    other = {"spatial_transform": T, "grid_sample": torch.zeros(2, 4, 5, 2)}
    with pytest.raises(error, match=said):
        getattr(triton_stn, function)(
            image, other.get(function, torch.zeros(2, 2, 4, 5)), **options
        )


@pytest.mark.parametrize("splat", [triton_stn.splat, triton_stn.grid_splat])
def test_bytes_are_not_splatted(splat):
    said = r"input .*float64, got torch.uint8 .*; use input.float\(\) / 255"
    with pytest.raises(TypeError, match=said):
        splat(X.byte(), T if splat is triton_stn.splat else torch.zeros(2, 4, 5, 2))


def test_without_triton_a_gpu_tensor_goes_to_pytorch(monkeypatch):
    on_gpu = SimpleNamespace(device=torch.device("cuda"))  # no more of it is looked at
    assert backends.uses_triton(on_gpu)
    monkeypatch.setattr(backends, "HAS_TRITON", False)
    assert not backends.uses_triton(on_gpu)
    assert not backends.uses_triton(X)
    triton_is_asked_for = triton_stn.use_backend("triton")
    with pytest.raises(ValueError, match=r"backend must be 'torch' or 'auto'.*got 'triton'"):
        triton_is_asked_for.__enter__()


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_what_the_wrong_calls_differ_from_is_right(backend):
    """It passes every check and reaches a kernel."""
    with triton_stn.use_backend(backend), pytest.raises(AssertionError, match="was launched"):
        triton_stn.spatial_transform(X, T, (4, 4))
    with triton_stn.use_backend(backend), pytest.raises(AssertionError, match="was launched"):
        triton_stn.spatial_transform(V, T3, (4, 4, 4))


def test_arguments_after_the_size_are_by_name_alone():
    with pytest.raises(TypeError):
        triton_stn.spatial_transform(X, T, None, "affine")


def test_an_unknown_backend_is_named():
    with (
        pytest.raises(ValueError, match=r"backend must be one of .*'auto'.*got 'cuda'"),
        triton_stn.use_backend("cuda"),
    ):
        pass


def test_triton_refuses_a_device_it_can_not_run_on():
    x, theta = X.to("meta"), T.to("meta")
    with triton_stn.use_backend("triton"), pytest.raises(ValueError, match="meta"):
        triton_stn.spatial_transform(x, theta)


def test_triton_without_its_interpreter_refuses_a_cpu_tensor():
    script = """if True:
        import torch, triton_stn
        with triton_stn.use_backend("triton"):
            try:
                triton_stn.spatial_transform(torch.zeros(1, 1, 2, 2), torch.zeros(2, 3))
            except ValueError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).resolve().parent.parent,
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "input on one of" in done.stdout
    assert "TRITON_INTERPRET=1" in done.stdout and "got input on cpu" in done.stdout
