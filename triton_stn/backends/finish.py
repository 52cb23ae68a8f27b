"""What becomes of the samples of a uint8 image: y = cast(gain · S(x) + bias).

The forward kernels do it at their store (`kernels/finish.py`); here is the same in PyTorch, for
what has been sampled as floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from triton_stn.backends import is_plain
from triton_stn.backends.numbers import vector

WHITE = 255.0
# Pairs of numbers that a program normalises by at a time.
_KEPT = 64
_tables: dict[tuple, torch.Tensor] = {}


class Finish(NamedTuple):
    """The dtype of the output, and gains and biases, (2,) or (2, C) in float32; None of neither."""

    dtype: torch.dtype
    table: torch.Tensor | None

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        """Of samples (N, K, C, *size)."""
        if self.table is not None:
            gain, bias = self.table.reshape(2, -1, *(1 for _ in samples.shape[3:]))
            samples = samples * gain + bias
        if self.dtype == torch.uint8:
            samples = samples.detach().nan_to_num(0.0, WHITE, 0.0).clamp(0.0, WHITE).round()
        return samples.to(self.dtype)


def finish_of(output_dtype: torch.dtype | None, normalize, input: torch.Tensor) -> Finish:
    """As the public functions say it: (x / 255 - mean) / std, or x itself."""
    if normalize is None:
        return Finish(output_dtype or torch.uint8, None)
    mean, std = normalize
    dtype = output_dtype or torch.float32
    if isinstance(mean, torch.Tensor) or isinstance(std, torch.Tensor):
        mean, std = (_tensor_of(value, input.device) for value in (mean, std))
        both = torch.broadcast_tensors(1 / (WHITE * std), -mean / std)
        return Finish(dtype, torch.stack(both).float())
    means, stds = (_numbers(value) for value in (mean, std))
    channels = max(len(means), len(stds))
    means, stds = (many * (channels // len(many)) for many in (means, stds))
    gains = tuple(1 / (WHITE * s) for s in stds)
    biases = tuple(-m / s for m, s in zip(means, stds, strict=True))
    return Finish(dtype, _table(gains + biases, input.device))


def _tensor_of(value, device: torch.device) -> torch.Tensor:
    """() or (C,), no coarser than float32."""
    if isinstance(value, torch.Tensor):
        return value.to(torch.promote_types(value.dtype, torch.float32))
    numbers = _numbers(value)
    made = vector(numbers, torch.empty(0, dtype=torch.float32, device=device))
    return made if len(numbers) > 1 or isinstance(value, Sequence) else made[0]


def _numbers(value: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, (list, tuple)) else (float(value),)


def _table(numbers: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """(2,) or (2, C), kept: on a GPU each number is a launch of its own."""

    def make() -> torch.Tensor:
        made = vector(numbers, torch.empty(0, dtype=torch.float32, device=device))
        return made if len(numbers) == 2 else made.view(2, -1)

    if not is_plain() or (stream := _stream(device)) is None:
        return make()
    key = numbers, device, stream
    found = _tables.get(key)
    if found is None:
        with torch.inference_mode(False):  # else no later backward could save it
            found = make()
        if type(found) is torch.Tensor:  # not a mode's
            while len(_tables) >= _KEPT:
                _tables.pop(next(iter(_tables)), None)
            _tables[key] = found
    return found


def _stream(device: torch.device) -> int | None:
    """Where what is made may be used again: on the stream that makes it, but not what the capture
    of a CUDA graph makes, to whom its memory belongs. None where nothing is to be kept."""
    if device.type == "cpu":
        return 0
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return None
    return torch.cuda.current_stream(device).cuda_stream
