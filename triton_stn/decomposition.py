"""``triton_stn::sample`` in PyTorch's own operators, for exporters that know no others.

``torch.onnx.export`` looks for it in PyTorch's table of decompositions: what the kernels do in one
operator becomes a sampling grid and an ONNX ``GridSample``. ``torch.compile``, ``torch.export`` and
AOTInductor take none from there, and keep the operator.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch._decomp import register_decomposition
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from triton_stn import checks
from triton_stn.backends import maps
from triton_stn.backends.finish import Finish
from triton_stn.backends.layout import empty_output
from triton_stn.backends.pytorch_grid import Rules, in_float, safe_grid
from triton_stn.backends.pytorch_samplers import with_holes


@register_decomposition(torch.ops.triton_stn.sample.default)
def sample(
    input, theta, size, mode, padding_mode, align_corners,
    source="affine", fill=None, fills=None, dtype=None, finish=None,
):  # fmt: skip
    """(N, K, C, *size), as the operator gives it.

    Raises:
        NotImplementedError: a sampling that is no ``GridSample``.
    """
    checks.check_operands(input, theta, len(size), source)
    if get_proxy_mode() is None:  # fake tensors of open sizes ask here for a shape alone
        return empty_output(input, theta.shape[1], *size, dtype=dtype)
    if mode == "area":
        raise NotImplementedError(
            "antialias=True has no decomposition: what ONNX has is GridSample; "
            "export with antialias=False"
        )
    rules = Rules(tuple(size), mode, padding_mode, align_corners)
    image = in_float(input)
    if source != "affine":
        theta = maps.map_of(source, rules, input.shape[2:]).grid(theta.to(image.dtype))
    if fills is not None:
        fill = fills.to(image.dtype).view(-1, *(1 for _ in size))
    grid, hole = safe_grid(theta, image, rules)
    if fill is None:
        output = F.grid_sample(image, grid, *rules[1:])
    else:  # sampling is linear, and reads 0 outside
        output = F.grid_sample(image - fill, grid, *rules[1:]) + fill
    output = with_holes(output, hole, theta.shape[1])
    return output.to(input.dtype) if dtype is None else Finish(dtype, finish)(output)
