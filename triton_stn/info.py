"""What to paste into a bug report: ``python -m triton_stn.info``.

Versions, devices, the backend that each gets and why, and a check of a few results against
float64.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

import triton_stn
from triton_stn import backends

# What a result may be off by: times PyTorch's own error against float64, and a share of the largest
# number. It finds a broken installation; how near results are is what the tests are for.
_TIMES, _ROUNDING = 4.0, 4 * torch.finfo(torch.float32).eps


def main() -> int:
    """Print it all. Exit status: 0, or 1 where a result is wrong."""
    for name, value in versions():
        print(f"{name:<12}{value}")
    wrong = False
    for device in devices():
        print(f"\n{device}: {describe(device)}\n  {reason(device)}")
        for name, error, allowed in check(device):
            ok = error <= allowed
            wrong |= not ok
            verdict = "ok" if ok else "WRONG"
            print(f"  {name:<30}{verdict:<7}error {error:.1e}, allowed {allowed:.1e}")
    return int(wrong)


def versions() -> Iterator[tuple[str, str]]:
    yield "triton_stn", triton_stn.__version__
    yield "torch", f"{torch.__version__}, CUDA {torch.version.cuda}, HIP {torch.version.hip}"
    try:
        yield "triton", version("triton")
    except PackageNotFoundError:
        yield "triton", "not installed under that name" if backends.HAS_TRITON else "not installed"
    yield "python", f"{sys.version.split()[0]}, {platform.platform()}"
    if backends.INTERPRETED:
        yield "note", "TRITON_INTERPRET is set: kernels are interpreted, slowly, on the CPU"


def devices() -> list[torch.device]:
    """The CPU, and every device of an accelerator."""
    found = [torch.device("cpu")]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator().type
        found += [torch.device(kind, i) for i in range(torch.accelerator.device_count())]
    return found


def describe(device: torch.device) -> str:
    if device.type == "cpu":
        return f"{torch.get_num_threads()} threads"
    module = torch.get_device_module(device)
    get = getattr(module, "get_device_properties", None)
    if get is None:
        return "an accelerator"
    properties = get(device)
    capability = getattr(properties, "gcnArchName", None) or (
        f"sm_{properties.major}{properties.minor}" if hasattr(properties, "major") else ""
    )
    return f"{properties.name} {capability}".strip()


def reason(device: torch.device) -> str:
    """Which backend tensors there get."""
    if backends.uses_triton(torch.empty(0, device=device)):
        return "Triton kernels" + " (interpreted)" * (device.type == "cpu")
    if not backends.HAS_TRITON:
        return "pure PyTorch: triton is not installed"
    return f"pure PyTorch: the kernels run on {' and '.join(backends.TRITON_DEVICES)}"


def check(device: torch.device) -> Iterator[tuple[str, float, float]]:
    """(name, error, what is allowed) of results and gradients against float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    for name, size, transform in (
        ("affine", (5, 6), "affine"),
        ("projective", (5, 6), "projective"),
        ("thin-plate spline", (5, 6), triton_stn.ThinPlateSpline(3, 3)),
        ("volume", (3, 4, 5), "affine"),
    ):
        still = triton_stn.transforms.resolve(transform, len(size)).identity(1)
        given = (
            torch.randn(1, 2, *size, generator=generator),
            still + 0.05 * torch.randn(still.shape, generator=generator),
            torch.randn(1, 2, *size, generator=generator),
        )
        ours = _results(given, transform, device, torch.float32)
        with triton_stn.use_backend("torch"):
            exact = _results(given, transform, torch.device("cpu"), torch.float64)
            plain = _results(given, transform, torch.device("cpu"), torch.float32)
        parts = ("output", "grad_input", "grad_theta")
        for part, got, right, eager in zip(parts, ours, exact, plain, strict=True):
            largest = right.abs().max().item()
            rule = _TIMES * (eager - right).abs().max().item() + _ROUNDING * largest
            yield f"{name}, {part}", (got - right).abs().max().item(), rule


def _results(given, transform, device, dtype) -> tuple[torch.Tensor, ...]:
    """(output, grad_input, grad_theta), in float64 on the CPU."""
    *tensors, up = (tensor.to(device, dtype) for tensor in given)
    x, theta = (tensor.requires_grad_() for tensor in tensors)
    y = triton_stn.spatial_transform(x, theta, transform=transform)
    grads = torch.autograd.grad(y, (x, theta), up)
    return tuple(tensor.detach().double().cpu() for tensor in (y, *grads))


if __name__ == "__main__":
    sys.exit(main())
