"""What a module is given as tensors, and that it does not learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def hold(module: nn.Module, **values: Any) -> None:
    """Attributes of a module; tensors as buffers of no checkpoint, which go where it goes.

    ``_given`` has them as they came, for ``to_empty`` leaves nothing in a buffer.
    """
    module._given = {}
    for name, value in values.items():
        if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
            module.register_buffer(name, value, persistent=False)
            module._given[name] = value
        else:
            setattr(module, name, value)
