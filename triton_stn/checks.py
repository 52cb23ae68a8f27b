"""Every check of a public argument, and every error message."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import torch

from triton_stn.types import Mode, PaddingMode

if TYPE_CHECKING:
    from triton_stn.transforms import Transform

MODES = get_args(Mode)
PADDING_MODES = get_args(PaddingMode)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
IMAGE_DTYPES = (*DTYPES, torch.uint8)
# Of what is made of a uint8 image.
OUTPUT_DTYPES = (torch.uint8, torch.float32, torch.float16, torch.bfloat16)


def refuse_script(*_: Any) -> NoReturn:
    """What `torch.jit.script` calls of an object before it reads its source."""
    raise RuntimeError(
        "torch.jit.script can not compile triton_stn: use torch.compile, torch.export or "
        "torch.jit.trace"
    )


def shape_of(tensor: torch.Tensor) -> str:
    return f"({', '.join(str(size) for size in tensor.shape)})"


def check_floating(name: str, value: Any) -> None:
    """A tensor of a floating dtype."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in DTYPES:
        raise TypeError(f"{name} must have one of the dtypes {_names(DTYPES)}, got {value.dtype}")
    check_dense(name, value)


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(map(str, dtypes))


def check_dense(name: str, tensor: torch.Tensor) -> None:
    """Not sparse."""
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be dense, got {tensor.layout}")


def check_shape(
    name: str, tensor: torch.Tensor, fits: bool, expected: str, input: torch.Tensor | None = None
) -> None:
    """``input`` is what the tensor has to suit."""
    if not fits:
        suits = "" if input is None else f" for an input of shape {shape_of(input)}"
        raise ValueError(f"{name} must have shape {expected}{suits}, got {shape_of(tensor)}")


def check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_input(input: Any) -> None:
    """An image or a volume."""
    if not isinstance(input, torch.Tensor) or input.dtype not in IMAGE_DTYPES:
        _refuse_image(input, IMAGE_DTYPES)
    check_dense("input", input)
    shape = input.shape
    ndim = len(shape)
    if ndim not in (4, 5):
        raise ValueError(
            "input must have shape (N, C, H, W) or (N, C, D, H, W), "
            f"got {shape_of(input)}{_use('input', shape)}"
        )
    if 0 in shape[2:]:
        sides = "D > 0, " * (ndim == 5) + "H > 0 and W > 0"
        raise ValueError(f"input must have {sides}, got shape {shape_of(input)}")


def _refuse_image(input: Any, dtypes: Sequence[torch.dtype]) -> NoReturn:
    """It is no tensor of one of the dtypes: say what came, and what makes one of it."""
    bytes_too = torch.uint8 in dtypes
    if isinstance(input, torch.Tensor):
        is_bytes = input.dtype == torch.uint8
        raise TypeError(
            f"input must have one of the dtypes {_names(dtypes)}, got {input.dtype} in input of "
            f"shape {shape_of(input)}{_use('input', input.shape, is_bytes)}"
        )
    kind = type(input)
    came = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    # NumPy's arrays have it, and so have PIL's images, which have no dtype.
    interface = getattr(input, "__array_interface__", None)
    shape = tuple(interface["shape"]) if isinstance(interface, dict) else ()
    if shape:
        dtype = getattr(input, "dtype", None)
        came += f" of shape {shape}" if dtype is None else f" of dtype {dtype} and shape {shape}"
        made = f"torch.from_numpy({'numpy.array(input)' if dtype is None else 'input'})"
        came += _use(made, shape, interface["typestr"][1:] == "u1" and not bytes_too)
    raise TypeError(f"input must be a torch.Tensor, got {came}")


def _use(made: str, shape: Sequence[int], is_bytes: bool = False) -> str:
    """How ``made``, an image of that shape, becomes a batch of them: the end of a message."""
    ndim = len(shape)
    if ndim in (3, 4) and shape[-1] in (1, 3, 4) and shape[-3] not in (1, 3):  # (H, W, C)
        made += f".permute({'2, 0, 1' if ndim == 3 else '0, 3, 1, 2'})"
    if ndim in (2, 3):
        made += f"[{', '.join(['None'] * (4 - ndim))}]"
    if is_bytes:
        made += ".float() / 255"
    return "" if made == "input" else f"; use {made}"


def check_dimensions(transform: Transform, input: torch.Tensor) -> None:
    if transform.ndim != input.ndim - 2:
        raise ValueError(
            f"transform must have ndim = {input.ndim - 2} for an input of shape "
            f"{shape_of(input)}, got {transform!r} with ndim = {transform.ndim}"
        )


def check_splat_input(input: Any, k: int | None, ndim: int | None = None) -> None:
    """``k`` is theta's or the grid's, or None; ``ndim`` spatial dimensions, None for 2 or 3."""
    if not isinstance(input, torch.Tensor) or input.dtype not in DTYPES:
        _refuse_image(input, DTYPES)
    check_dense("input", input)
    ks = "" if k is None else f"{k}, "
    dims = input.ndim - 2 - (k is not None)
    fits = dims in ((2, 3) if ndim is None else (ndim,)) and (k is None or input.shape[1] == k)
    both = {2: f"(N, {ks}C, h, w)", 3: f"(N, {ks}C, d, h, w)"}
    check_shape("input", input, fits, " or ".join(both.values()) if ndim is None else both[ndim])
    if 0 in input.shape[-dims:]:
        sides = " and ".join(f"{side} > 0" for side in "dhw"[-dims:])
        raise ValueError(f"input must have {sides}, got shape {shape_of(input)}")


def check_fill_value(fill_value: Any, padding_mode: str, input: torch.Tensor | None) -> None:
    """None, a number, or one a channel; what depends on ``input`` is left out without one."""
    if fill_value is None:
        return
    if padding_mode != "zeros":
        raise ValueError(f"fill_value needs padding_mode='zeros', got {padding_mode!r}")
    _check_per_channel("fill_value", fill_value, input)


def _check_per_channel(name: str, value: Any, input: torch.Tensor | None) -> None:
    """A number, or one a channel."""
    if isinstance(value, torch.Tensor):
        c = None if input is None else input.shape[1]
        if value.ndim > 1 or (c is not None and value.shape not in ((), (c,))):
            expected = "a number or have shape (C,)" + f" = ({c},)" * (c is not None)
            raise ValueError(f"{name} must be {expected}, got {shape_of(value)}")
        if value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{name} must be real, got {value.dtype}")
        if input is not None:
            check_beside(name, value, input, batch=False)
    elif isinstance(value, (list, tuple)):
        for number in value:
            _check_number(name, number)
        if input is not None and len(value) != input.shape[1]:
            expected = f"a number or C = {input.shape[1]} of them"
            raise ValueError(f"{name} must be {expected}, got {len(value)}")
    else:
        _check_number(name, value)


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, numbers or a tensor, got {type(value).__name__}")


def check_finish(output_dtype: Any, normalize: Any, input: torch.Tensor | None) -> None:
    """What is made of the samples of a uint8 image; without ``input`` as `check_fill_value`."""
    if output_dtype is None and normalize is None:
        return
    if input is not None and input.dtype != torch.uint8:
        name = "normalize" if output_dtype is None else "output_dtype"
        raise TypeError(f"{name} needs an input of torch.uint8, got {input.dtype}")
    if output_dtype is not None:
        expected = f"output_dtype must be one of {_names(OUTPUT_DTYPES)}"
        if not isinstance(output_dtype, torch.dtype):
            raise TypeError(f"{expected}, got {type(output_dtype).__name__}")
        if output_dtype not in OUTPUT_DTYPES:
            raise ValueError(f"{expected}, got {output_dtype}")
    if normalize is None:
        return
    if not isinstance(normalize, (list, tuple)):
        raise TypeError(f"normalize must be a pair (mean, std), got {type(normalize).__name__}")
    if len(normalize) != 2:
        raise ValueError(f"normalize must be a pair (mean, std), got {len(normalize)} of them")
    if output_dtype == torch.uint8:
        raise ValueError("normalize needs a floating output_dtype, got torch.uint8")
    for name, value in zip(("mean", "std"), normalize, strict=True):
        _check_per_channel(f"the {name} of normalize", value, input)
    several = [len(v) for v in normalize if isinstance(v, (list, tuple))]
    if len(several) == 2 and several[0] != several[1]:
        raise ValueError(f"mean and std of normalize must be as many, got {several}")
    std = normalize[1]
    if not isinstance(std, torch.Tensor) and 0 in (
        std if isinstance(std, (list, tuple)) else (std,)
    ):
        raise ValueError(f"the std of normalize must not be 0, got {std}")


def check_bytes(
    input: torch.Tensor, mode: str, finish: Sequence[Any], needs_input: bool = False
) -> None:
    """What the registered operators do with a uint8 image, and with no other."""
    if input.dtype != torch.uint8:
        if any(part is not None for part in finish):
            raise ValueError(f"dtype and finish need an input of torch.uint8, got {input.dtype}")
    elif needs_input or mode not in ("nearest", "bilinear"):
        raise ValueError(
            "an input of torch.uint8 needs mode 'nearest' or 'bilinear' and has no gradient, "
            f"got mode {mode!r} and needs_input={needs_input}"
        )


def check_antialias(antialias: Any, mode: str) -> None:
    check_bool("antialias", antialias)
    if antialias and mode != "bilinear":
        raise ValueError(f"antialias needs mode='bilinear', got {mode!r}")


def check_theta(theta: Any, input: torch.Tensor, transform: Transform) -> None:
    """``theta`` has the transform's shape, after nothing, (N,) or (N, K)."""
    check_floating("theta", theta)
    last = transform.theta_shape
    leading = theta.ndim - len(last)
    if leading not in (0, 1, 2) or theta.shape[leading:] != last:
        one = ", ".join(map(str, last))
        name = transform.name
        article = "an" if name[0] in "aeiou" else "a"
        raise ValueError(
            f"theta of {article} {name} transform must have shape ({one}), (N, {one}) or "
            f"(N, K, {one}) for an input of shape {shape_of(input)}, got {shape_of(theta)}"
            f"{_use_theta(theta.shape, transform)}"
        )
    check_beside("theta", theta, input, batch=leading > 0)


def _use_theta(shape: Sequence[int], transform: Transform) -> str:
    """What makes a theta of that shape fit: the end of a message."""
    expected = transform.theta_shape
    if transform.name == "tps" and len(shape) > 1 and shape[-1] == 2:
        return f"; this spline has {expected[0]} control points, theta is of {shape[-2]}"
    if tuple(shape[-2:]) == (3, 3):
        return "; for homographies use transform='projective'"
    if shape and shape[-1] == math.prod(expected):
        return f"; use theta.unflatten(-1, {tuple(expected)})"
    return ""


def check_operands(input: torch.Tensor, theta: torch.Tensor, ndim: int, source: str) -> None:
    """Those of the registered operators: how many dimensions, and the last ones of theta."""
    size = ("D_out", "H_out", "W_out")[-ndim:]
    last = {
        "affine": (ndim, ndim + 1), "projective": (3, 3), "spline": ("T + 3", 4),
        "grid": (*size, ndim), "flow": (*size, ndim), "patch": (*size, 6),
    }.get(source)  # fmt: skip
    if last is None:
        raise ValueError(f"source must name what theta is, got {source!r}")
    if ndim not in (2, 3) or input.ndim != ndim + 2:
        check_shape("input", input, False, "(N, C, D, H, W)" if ndim == 3 else "(N, C, H, W)")
    fits = theta.ndim == 2 + len(last) and all(
        isinstance(expected, str) or n == expected
        for n, expected in zip(theta.shape[2:], last, strict=True)
    )
    if not fits:  # the sentence is not written for every call
        expected = ", ".join(map(str, last))
        check_shape("theta", theta, fits, f"(N, K, {expected}) of the source {source!r}")


def check_grid(grid: Any, input: torch.Tensor) -> None:
    check_floating("grid", grid)
    ndim = input.ndim - 2
    fits = grid.ndim in (ndim + 2, ndim + 3) and grid.shape[-1] == ndim
    last = f"{'D_out, ' * (ndim == 3)}H_out, W_out, {ndim}"
    check_shape("grid", grid, fits, f"(N, {last}) or (N, K, {last})", input)
    check_beside("grid", grid, input)


def check_flow(flow: Any, input: torch.Tensor) -> None:
    check_floating("flow", flow)
    ndim = input.ndim - 2
    fits = flow.ndim == input.ndim and flow.shape[1] == ndim
    sizes = "D_out, " * (ndim == 3) + "H_out, W_out"
    check_shape("flow", flow, fits, f"(N, {ndim}, {sizes})", input)
    check_beside("flow", flow, input)


def check_field(name: str, field: Any) -> None:
    """Displacements of an image or of a volume, of no input in particular."""
    check_floating(name, field)
    fits = field.ndim in (4, 5) and field.shape[1] == field.ndim - 2 and 0 not in field.shape[2:]
    check_shape(name, field, fits, "(N, 2, H, W) or (N, 3, D, H, W)")


def check_beside(name: str, tensor: torch.Tensor, input: torch.Tensor, batch: bool = True) -> None:
    """On the device of ``input``, and with ``batch`` of as many samples, or one, or of one."""
    if batch and tensor.shape[0] != input.shape[0] and 1 not in (tensor.shape[0], input.shape[0]):
        raise ValueError(
            f"{name} must have the batch size of input, N = {input.shape[0]}, or 1, "
            f"got {tensor.shape[0]} in {name} of shape {shape_of(tensor)}"
        )
    if tensor.device != input.device:
        raise ValueError(
            f"{name} must be on the device of input, {input.device}, got {tensor.device}"
        )


def check_output_size(output_size: Any, input: torch.Tensor) -> tuple[int, ...]:
    """The output's (height, width), or (depth, height, width)."""
    if output_size is None:
        size = tuple(input.shape[2:])  # in torch.jit.trace tensors, which no operator takes
        return size if torch._C._get_tracing_state() is None else tuple(map(int, size))
    ndim = input.ndim - 2
    if type(output_size) is int and output_size > 0:
        return (output_size,) * ndim
    # A tuple is asked for first: to be a Sequence takes 20 times as long.
    several = isinstance(output_size, (tuple, list, Sequence)) and not isinstance(output_size, str)
    sizes = output_size if several else (output_size,) * ndim
    if len(sizes) != ndim:
        expected = "(H_out, W_out)" if ndim == 2 else "(D_out, H_out, W_out)"
        raise ValueError(
            f"output_size must be an int or {expected} for an input of shape {shape_of(input)}, "
            f"got {output_size!r}"
        )
    return tuple(_check_size(size, output_size) for size in sizes)


def _check_size(size: Any, output_size: Any) -> int:
    try:
        if isinstance(size, bool):
            raise TypeError
        size = size if isinstance(size, (int, torch.SymInt)) else operator.index(size)
    except TypeError:
        raise TypeError(
            f"output_size must be an int or a sequence of ints, got {output_size!r}"
        ) from None
    if size <= 0:
        raise ValueError(f"output_size must be positive, got {output_size!r}")
    return size


def check_options(mode: Any, padding_mode: Any, align_corners: Any) -> None:
    """Those of every sampling."""
    check_choice("mode", mode, MODES)
    check_choice("padding_mode", padding_mode, PADDING_MODES)
    check_bool("align_corners", align_corners)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if isinstance(value, str) and value in choices:
        return
    expected = ", ".join(map(repr, choices))
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {expected}, got {type(value).__name__}")
    raise ValueError(f"{name} must be one of {expected}, got {value!r}")


def check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
