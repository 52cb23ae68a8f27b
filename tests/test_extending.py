"""docs/extending.md: its transforms are what it says they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import Place

import triton_stn

PAGE = Path(__file__).resolve().parent.parent / "docs" / "extending.md"


@pytest.fixture(scope="module")
def page() -> dict:
    """What the page's Python blocks define."""
    names = {}
    for block in re.findall(
        r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S
    ):
        names["theta"] = None
        exec(block, names)
        assert names["theta"].grad.abs().min() > 0
    return names


def sampled_by_grid(image, theta, size, transform, **options):
    """``F.grid_sample`` of K = 2 maps an image, (N, 2, C, *size)."""
    grid = transform.grid(theta, size, options["align_corners"])
    images = image.repeat_interleave(2, 0)
    return F.grid_sample(images, grid.flatten(0, 1), **options).unflatten(0, (-1, 2))


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("name", ["Radial", "Shear"])
def test_value_and_gradients_are_pytorchs(place: Place, page, name, padding_mode):
    transform = page[name]()
    noise = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 7, 6, dtype=torch.float64, generator=noise)
    theta = 0.2 * torch.randn(2, 2, 2, dtype=torch.float64, generator=noise)
    grad = torch.randn(2, 2, 3, 5, 4, dtype=torch.float64, generator=noise)
    options = dict(mode="bilinear", padding_mode=padding_mode, align_corners=False)

    def run(sample, device):
        leaves = [x.to(device, copy=True).requires_grad_() for x in (image, theta)]
        y = sample(*leaves, (5, 4), transform=transform, **options)
        y.backward(grad.to(device))
        return [x.cpu() for x in (y.detach(), *(leaf.grad for leaf in leaves))]

    torch.testing.assert_close(run(place.sample, place.device), run(sampled_by_grid, "cpu"))


@pytest.mark.parametrize(
    ("name", "backward"), [("Radial", ["scatter"]), ("Shear", ["gather", "reduce"])]
)
def test_a_matrix_is_gathered_and_anything_else_scattered(
    kernels: Place, page, launches, name, backward
):
    image = torch.rand(1, 1, 4, 4, device=kernels.device, requires_grad=True)
    theta = torch.full((1, 2), 0.1, device=kernels.device, requires_grad=True)
    kernels.sample(image, theta, transform=page[name]()).sum().backward()
    assert [plan.kernel.__name__ for plan in launches] == ["forward", *backward]
    assert launches[0].constants["RULES"].source == ("affine" if name == "Shear" else "grid")


@pytest.mark.parametrize("name", ["Radial", "Shear"])
def test_each_is_antialiased(place: Place, page, name):
    """Each output is the mean of the 4 × 4 pixels that it covers."""
    transform = page[name]()
    image = torch.rand(1, 1, 8, 8)
    still = transform.identity().to(place.device)
    options = dict(transform=transform, antialias=True)
    shrunk = place.sample(image.to(place.device), still, 2, **options)
    torch.testing.assert_close(shrunk.cpu(), F.avg_pool2d(image, 4))


@pytest.mark.parametrize("name", ["Radial", "Shear"])
def test_the_rest_of_the_library_takes_them(page, name):
    transform = page[name]()
    image = torch.rand(2, 3, 8, 8)
    still = transform.identity(2)
    y = triton_stn.spatial_transform(image, still, transform=transform)
    torch.testing.assert_close(y, image)
    torch.testing.assert_close(triton_stn.splat(image, still, transform=transform), image)
    module = triton_stn.nn.SpatialTransformer(
        torch.nn.Flatten(), features=3 * 8 * 8, transform=transform
    )
    torch.testing.assert_close(module(image), image)
