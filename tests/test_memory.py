"""What is read, written, allocated and kept: nothing outside the tensors, never a grid."""

from __future__ import annotations

import pytest
import torch
from conftest import SENTINEL, Place
from oracle import run, same
from torch.utils._python_dispatch import TorchDispatchMode

from triton_stn import ThinPlateSpline, transforms
from triton_stn.backends import fused

N, C, H, W, SIZE = 2, 9, 6, 7, (5, 8)
PADDINGS = ["zeros", "border", "reflection"]


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def padded(tensor):
    """(buffer, view): the same numbers inside a bigger buffer, NaN around them; so the others."""
    big = torch.full([n + 2 for n in tensor.shape], torch.nan)
    view = big[tuple(slice(1, 1 + n) for n in tensor.shape)]
    return big, view.copy_(tensor)


def every_second(tensor):
    big = torch.full([2 * n for n in tensor.shape], torch.nan)
    view = big[tuple(slice(None, None, 2) for _ in tensor.shape)]
    return big, view.copy_(tensor)


def transposed(tensor):
    big = tensor.mT.contiguous()
    return big, big.mT


def channels_last(tensor):
    big = tensor.flatten(0, -4).contiguous(memory_format=torch.channels_last)
    return big, big.view(tensor.shape) if tensor.ndim == 5 else big


def channels_last_slice(tensor):
    n, c, h, w = tensor.shape
    big = torch.full((n, c + 3, h + 2, w), torch.nan).contiguous(memory_format=torch.channels_last)
    view = big[:, 2 : c + 2, 1 : h + 1]
    return big, view.copy_(tensor)


LAYOUTS = [padded, every_second, transposed, channels_last, channels_last_slice]


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("arrange", LAYOUTS)
def test_strided_arguments_give_the_same_and_stay_untouched(place: Place, arrange, padding_mode):
    x, grad = noise(N, C, H, W), noise(N, C, *SIZE, seed=1)
    theta = torch.eye(2, 3) + 0.3 * noise(N, 2, 3, seed=2)
    x_buffer, x_view = arrange(x)
    g_buffer, g_view = arrange(grad)
    t_buffer, t_view = padded(theta)
    device = place.device
    if device != "cpu":  # the same strides on the device
        x_buffer, x_view = on_device(x_buffer, x_view, device)
        g_buffer, g_view = on_device(g_buffer, g_view, device)
        t_buffer, t_view = on_device(t_buffer, t_view, device)
    before = [buffer.clone() for buffer in (x_buffer, g_buffer, t_buffer)]
    got = run(place.sample, x_view, t_view, SIZE, g_view, padding_mode=padding_mode)
    plain = [t.to(device) for t in (x, theta, grad)]
    straight = run(place.sample, *plain[:2], SIZE, plain[2], padding_mode=padding_mode)
    for name in ("y", "grad_input", "grad_theta"):
        torch.testing.assert_close(
            getattr(got, name), getattr(straight, name), rtol=1e-5, atol=1e-4, msg=name
        )
    for buffer, old in zip((x_buffer, g_buffer, t_buffer), before, strict=True):
        assert same(buffer, old)


def on_device(buffer, view, device):
    moved = torch.empty_strided(buffer.shape, buffer.stride(), device=device).copy_(buffer)
    offset = view.storage_offset() - buffer.storage_offset()
    return moved, moved.as_strided(view.shape, view.stride(), offset)


def test_the_guards_notice_a_stray_write(guarded):
    """The fixture that the claims above rest on can fail."""
    y = torch.empty(3, 4)
    assert y.isnan().all()
    y.as_strided((1,), (1,), y.storage_offset() + 12).fill_(0)
    (flat, span) = guarded[-1]
    assert not (flat[64 + span :] == SENTINEL).all()
    flat[64 + span :] = SENTINEL


@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_an_expanded_input_and_gradient_are_read_as_they_are(place: Place, padding_mode):
    x = noise(1, 1, H, W).to(place.device).expand(N, 3, H, W)
    theta = (torch.eye(2, 3) + 0.3 * noise(N, 2, 3, seed=2)).to(place.device)
    grad = torch.ones((), device=place.device).expand(N, 3, *SIZE)
    got = run(place.sample, x, theta, SIZE, grad, padding_mode=padding_mode)
    plain = run(
        place.sample, x.contiguous(), theta, SIZE, grad.contiguous(), padding_mode=padding_mode
    )
    for name in ("y", "grad_input", "grad_theta"):
        torch.testing.assert_close(getattr(got, name), getattr(plain, name))


def test_k_maps_read_one_image_that_is_never_copied(kernels: Place):
    sizes = allocations(kernels, k=3, padding_mode="zeros")
    assert N * 3 * C * H * W not in sizes


@pytest.mark.parametrize("transform", ["affine", "projective", ThinPlateSpline(3, 3)], ids=str)
def test_four_more_maps_take_less_memory_than_one_image(place: Place, monkeypatch, transform):
    """All that the public call and its backward allocate, of a large image and small outputs."""
    transform = transforms.resolve(transform)
    monkeypatch.setattr(fused, "launch", lambda *_, **__: None)
    x = noise(N, C, 40, 40).to(place.device).requires_grad_()

    def allocated(k):
        theta = transform.identity((N, k)).to(place.device).requires_grad_()
        with Allocations() as seen:
            y = place.sample(x, theta, (2, 3), transform=transform)
            torch.autograd.grad(y, (x, theta), torch.ones_like(y))
        return seen.sizes

    allocated(1)  # a spline keeps its matrices
    few, many = allocated(1), allocated(5)
    assert max(many) == x.numel() <= sum(few)
    assert sum(many) - sum(few) < x.numel()


def test_no_matrix_of_pixels_times_control_points(kernels: Place, monkeypatch):
    """Of the kernel path of a spline; the plain PyTorch one shows that it would be seen."""
    monkeypatch.setattr(fused, "launch", lambda *_, **__: None)
    size, transform = (20, 30), ThinPlateSpline(4, 5)
    matrix = size[0] * size[1] * len(transform.points)
    x = noise(1, C, H, W).to(kernels.device).requires_grad_()
    theta = transform.identity(1).to(kernels.device).requires_grad_()

    def largest(place):
        with Allocations() as seen:
            y = place.sample(x, theta, size, transform=transform)
            torch.autograd.grad(y, (x, theta), torch.ones_like(y))
        assert C * size[0] * size[1] in seen.sizes
        return max(seen.sizes)

    assert largest(kernels) < matrix <= largest(Place("torch", kernels.device))


class Allocations(TorchDispatchMode):
    """The sizes, in elements, of all new storage."""

    def __init__(self):
        super().__init__()
        self.sizes, self.known = [], {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "triton_stn":  # look inside
            with self:
                return getattr(fused, func.overloadpacket.__name__)(*args)
        before = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in before:
                    self.sizes.append(storage.nbytes() // tensor.element_size())
        return result


def allocations(place: Place, k: int, padding_mode: str) -> list[int]:
    """Of the forward and the joint backward; the kernels' launches are stubbed out."""
    x, theta = noise(N, C, H, W).to(place.device), noise(N, k, 2, 3).to(place.device)
    grad = noise(N, k, C, *SIZE).to(place.device)
    rules = ("bilinear", padding_mode, False)
    with pytest.MonkeyPatch.context() as patch, Allocations() as seen:
        patch.setattr(fused, "launch", lambda *_, **__: None)
        fused.sample(x, theta, SIZE, *rules)
        fused.sample_backward(grad, x, theta, *rules, True, True)
    return seen.sizes


@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_no_grid_is_ever_allocated(kernels: Place, padding_mode):
    sizes = allocations(kernels, 1, padding_mode)
    output, input = N * C * SIZE[0] * SIZE[1], N * C * H * W
    assert output in sizes and input in sizes  # the count sees what it should
    # One output, one grad_input; the rest is the partial sums and grad_theta.
    rest = sorted(sizes)
    rest.remove(output)
    rest.remove(input)
    if rest and rest[-1] == input:  # what a half-precision grad_input is summed in
        rest.remove(input)
    assert sum(rest) < N * SIZE[0] * SIZE[1]


@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_input_and_theta_are_all_that_is_kept(place: Place, padding_mode):
    x = noise(N, C, H, W).to(place.device).requires_grad_()
    theta = noise(N, 2, 3).to(place.device).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        place.sample(x, theta, SIZE, padding_mode=padding_mode)
    storages = {t.untyped_storage().data_ptr() for t in kept}
    assert storages <= {x.untyped_storage().data_ptr(), theta.untyped_storage().data_ptr()}
    assert len(kept) == 2


@pytest.mark.thinned(2)
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "cropped", "expanded"])
def test_a_call_allocates_its_results_and_the_partial_sums_and_nothing_else(
    kernels: Place, monkeypatch, layout, padding_mode, dtype, k
):
    """The whole public call, the gradient of one that autograd hands on included."""
    n, c, h, w, size = 3, 16, 64, 48, (40, 56)
    x = torch.zeros(n, c, h + 2, w, dtype=dtype, device=kernels.device)
    x = x[:, :, 1:-1] if layout == "cropped" else x[:, :, 2:].contiguous()
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    if layout == "expanded":
        x = x[:1].expand_as(x)
    x.requires_grad_()
    theta = torch.zeros(n, k, 2, 3, device=kernels.device)
    theta = (theta if k > 1 else theta[:, 0]).requires_grad_()
    plans = []
    monkeypatch.setattr(fused, "launch", lambda launches, *_: plans.extend(launches.plans))
    with Allocations() as seen:
        y = kernels.sample(x, theta, size, padding_mode=padding_mode)
    image, output = n * c * h * w, n * k * c * size[0] * size[1]
    assert seen.sizes == [output]
    # grad_output has strides 0, as the gradient of a sum has
    grad = torch.ones((), dtype=dtype, device=kernels.device).expand_as(y)
    with Allocations() as seen:
        torch.autograd.grad(y, (x, theta), grad)
    partial = n * k * plans[-1].arguments["slots"] * 6
    # Atomics add up in float32, which for a half image is a buffer of its own.
    apart = padding_mode != "zeros" and dtype != torch.float32
    results = [image] * (1 + apart) + [theta.numel(), partial]
    assert sorted(filter(None, seen.sizes)) == sorted(results)
    assert 0 < partial <= output / 16


@pytest.mark.thinned(2)
@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("c", [3, 40])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_element_is_written_and_none_beside(kernels: Place, layout, c, padding_mode, mode):
    """On canvases that no tile divides; what is left unwritten would be NaN."""
    x = noise(1, c, 9, 11).contiguous(memory_format=layout).to(kernels.device)
    theta = (torch.eye(2, 3) + 0.5 * noise(1, 2, 2, 3, seed=2)).to(kernels.device)
    grad = noise(1, 2, c, 17, 9, seed=1).to(kernels.device)
    got = run(kernels.sample, x, theta, (17, 9), grad, mode=mode, padding_mode=padding_mode)
    for name in ("y", "grad_input", "grad_theta"):
        assert getattr(got, name).isfinite().all(), name
