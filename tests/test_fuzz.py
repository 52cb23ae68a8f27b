"""Random calls against float64 PyTorch, and what holds for every call.

100 examples by default, always the same; ``HYPOTHESIS_PROFILE=nightly`` draws 2,000 new ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import Place
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from oracle import MARGIN, THETAS, Results, largest_of, same, spline_by_basis

import triton_stn

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
SPLINES = {side: triton_stn.ThinPlateSpline(side, side) for side in (2, 3, 4)}
OF_IMAGES = ["attention", "similarity", "projective", "spline"]
OF_BOTH = ["affine", "grid", "flow"]
# Where θ starts; noise is added. The last four read a point, a line, next to nothing, edges.
BASES = THETAS | {
    "point": [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
    "line": [[0.7, 0.7, 0.1], [0.7, 0.7, 0.1]],
    "magnified": [[1e-3, 0.0, 0.2], [0.0, 1e-3, 0.1]],
    "minified": [[40.0, 0.0, 0.0], [0.0, 40.0, 0.0]],
}
HOSTILE = [math.nan, math.inf, -math.inf, 1e20, -(2.0**31)]
FAR = 1000.0  # a normalised coordinate out of every view
REACH = dict(nearest=1, bilinear=1, bicubic=2)  # from a coordinate to the pixels it reads
pytestmark = [
    pytest.mark.usefixtures("guarded"),
    pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid:UserWarning"),
]


def holds(place: Place, part: float, claim: Callable[[Case], None], **fixed) -> None:
    """``claim`` of so many cases: of the profile's examples ``part``, a fifth of them by the
    interpreter, which is slow, the rest by the other backend."""
    count = part * settings.default.max_examples * (1 / 5 if place.interpreted else 4 / 5)
    unfit = [HealthCheck.too_slow, HealthCheck.data_too_large]
    of_cases = given(cases(place, **fixed))
    settings(max_examples=max(round(count), 1), suppress_health_check=unfit)(of_cases(claim))()


@dataclass(frozen=True)
class Case:
    """A call, whose θ is a map or a field."""

    source: str
    splat: bool
    n: int
    k: int | str  # "one" for the batch, or one for "each"
    c: int
    extent: tuple[int, ...]
    size: tuple[int, ...]
    dtype: torch.dtype
    theta_dtype: torch.dtype
    layouts: tuple[str, str, str]  # of the image, of the output's gradient or the planes, of θ
    mode: str
    padding_mode: str
    align_corners: bool
    base: str
    noise: float
    side: int  # of a spline
    hostile: float | None  # a number of the first map
    seed: int

    @property
    def corners(self) -> bool:
        """A flow's are pixels with either."""
        return self.align_corners and (self.source != "flow" or self.padding_mode == "reflection")

    @property
    def options(self) -> dict:
        return {name: getattr(self, name) for name in ("mode", "padding_mode", "align_corners")}

    @property
    def leading(self) -> tuple[int, ...]:
        if self.source != "flow" and isinstance(self.k, int):
            return self.n, self.k
        return () if self.k == "one" and self.source not in ("grid", "flow") else (self.n,)

    def tensors(self) -> list[torch.Tensor]:
        """The image, the gradient of the output, which is what is splatted, and θ."""
        generator = torch.Generator().manual_seed(self.seed)

        def noise(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        x = noise(self.n, self.c, *self.extent)
        g = noise(*(self.leading or (self.n,)), self.c, *self.size)
        start = self._start()
        theta = start + self.noise * noise(*self.leading, *start.shape)
        if self.hostile is not None and theta.numel():
            theta.view(-1)[self.seed % start.numel()] = self.hostile
        return [x.to(self.dtype), g.to(self.dtype), theta.to(self.theta_dtype)]

    def _start(self) -> torch.Tensor:
        """A map or a field, float64."""
        ndim = len(self.extent)
        if self.source == "flow":
            return torch.zeros(ndim, *self.size, dtype=torch.float64)
        if self.source in ("attention", "similarity", "spline"):
            return self.transform.identity(dtype=torch.float64)
        matrix = torch.eye(3, ndim + 1, dtype=torch.float64)
        matrix[:2, [0, 1, -1]] = torch.tensor(BASES[self.base], dtype=torch.float64)
        if self.source == "projective":
            return matrix
        matrix = matrix[:ndim]
        return affine_grid(matrix, self) if self.source == "grid" else matrix

    @property
    def transform(self) -> triton_stn.transforms.Transform:
        named = SPLINES[self.side] if self.source == "spline" else self.source
        return triton_stn.transforms.resolve(named, len(self.extent))


@st.composite
def cases(draw, place: Place, **fixed) -> Case:
    """``fixed``: what not to draw."""

    def one_of(*values):
        return draw(st.sampled_from(values))

    source = one_of(*OF_BOTH, *OF_BOTH, *OF_IMAGES)
    ndim = one_of(2, 3) if source in OF_BOTH else 2
    most = 2 if place.interpreted else 3  # images, and maps of each
    longest = {2: (7, 70), 3: (4, 9)}[ndim][not place.interpreted]
    sides = st.tuples(*[st.integers(1, longest)] * ndim)
    extent = draw(sides)
    # Where other maps read with 1e20 in them float32 can not say.
    hostile = HOSTILE if source in OF_BOTH else HOSTILE[:3]
    drawn = dict(
        source=source,
        splat=source != "flow" and one_of(False, False, True),
        n=draw(st.integers(1, most)),
        k=one_of("each", "one", *range(1, most + 1)),  # a flow is one for each
        c=one_of(1, 2, 3, 5, 17) if ndim == 2 else one_of(1, 2, 3, 9),
        extent=extent,
        size=one_of(extent, draw(sides)),
        dtype=one_of(*DTYPES),
        # In float16 the gradient of a map may overflow.
        theta_dtype=one_of(torch.float32, torch.float64, torch.bfloat16),
        layouts=(one_of(*LAYOUTS), one_of(*LAYOUTS), one_of(*LAYOUTS)),
        mode=one_of("bilinear", "nearest", "bicubic"),
        padding_mode=one_of("zeros", "border", "reflection"),
        align_corners=draw(st.booleans()),
        base=one_of(*BASES),
        noise=one_of(0.1, 0.0, 0.5, 2.0),
        side=one_of(*SPLINES),
        hostile=one_of(*hostile) if one_of(*[False] * 5, True) else None,
        seed=draw(st.integers(0, 999)),
    )
    return Case(**drawn | fixed)


# The same numbers in another layout: the buffer, NaN where nothing is to be read, and the view.


def padded(tensor, axis):
    big = tensor.new_full([n + 2 for n in tensor.shape], torch.nan)
    return big, big[tuple(slice(1, 1 + n) for n in tensor.shape)].copy_(tensor)


def every_second(tensor, axis):
    big = tensor.new_full([2 * n for n in tensor.shape], torch.nan)
    return big, big[tuple(slice(None, None, 2) for _ in tensor.shape)].copy_(tensor)


def last(tensor, axis):
    big = tensor.movedim(axis, -1).contiguous()
    return big, big.movedim(-1, axis)


def expanded(tensor, axis):
    big = tensor.narrow(axis, 0, 1).clone()
    return big, big.expand(tensor.shape)


LAYOUTS = {
    "contiguous": lambda tensor, axis: (tensor, tensor),
    "channels last": last,
    "transposed": lambda tensor, axis: last(tensor, -min(2, tensor.ndim)),
    "padded": padded,
    "every second": every_second,
    "expanded": expanded,
}


def sample(case: Case, x, theta):
    if case.source == "grid":
        return triton_stn.grid_sample(x, theta, **case.options)
    if case.source == "flow":
        return triton_stn.flow_warp(x, theta, **case.options)
    options = dict(transform=case.transform, **case.options)
    return triton_stn.spatial_transform(x, theta, case.size, **options)


def splat(case: Case, planes, theta):
    if case.source == "grid":
        return triton_stn.grid_splat(planes, theta, case.extent, **case.options)
    options = dict(transform=case.transform, **case.options)
    return triton_stn.splat(planes, theta, case.extent, **options)


def ours(case: Case, x, g, theta) -> Results:
    """By sampling and its backward; or by splatting and its backward, which are those swapped."""
    x, g, theta = (t.detach().requires_grad_() for t in (x, g, theta))
    if not case.splat:
        y = sample(case, x, theta)
        return Results(y.detach(), *torch.autograd.grad(y, (x, theta), g))
    y = splat(case, g, theta)
    grads = torch.autograd.grad(y, (g, theta), x)
    return Results(grads[0], y.detach(), grads[1])


# PyTorch's results, in the dtype of θ.


def affine_grid(matrix, case: Case):
    """(..., ndim, ndim + 1) -> (..., *size, ndim)."""
    leading = matrix.shape[:-2]
    maps = matrix.reshape(-1, *matrix.shape[-2:])
    grid = F.affine_grid(maps, (len(maps), 1, *case.size), case.corners)
    return grid.reshape(*leading, *grid.shape[1:])


def grid_of(case: Case, theta):
    """Normalised coordinates, of θ (N, K, ...); one that is not finite is NaN."""
    if case.source == "grid":
        return theta
    if case.source == "flow":
        axes = [torch.arange(n).to(theta) for n in case.size]
        place = theta.movedim(2, -1) + torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)
        n = theta.new_tensor(case.extent[::-1])
        return 2 * place / (n - 1).clamp(min=1) - 1 if case.corners else (2 * place + 1) / n - 1
    if case.source == "affine":
        return affine_grid(theta, case)
    if case.source == "spline":
        return spline_by_basis(case.side)(theta, case.size, case.corners)
    if case.source == "projective":
        return homography(case, theta)
    scale, *angle, x, y = theta.unbind(-1)
    angle = angle[0] if case.source == "similarity" else torch.zeros_like(scale)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    return affine_grid(torch.stack((cos, -sin, x, sin, cos, y), -1).unflatten(-1, (2, 3)), case)


def homography(case: Case, theta):
    at = affine_grid(torch.eye(2, 3, dtype=theta.dtype), case)
    at = torch.cat((at, torch.ones_like(at[..., :1])), -1)  # (H_out, W_out, 3)
    xy, w = (at @ theta.mT[:, :, None]).split((2, 1), -1)
    bound = 1e-6 * theta[..., 2, :].abs().sum(-1)[..., None, None, None]
    behind = (w <= bound) & bound.isfinite()
    bad = ~behind & ~(xy.isfinite().all(-1, keepdim=True) & w.isfinite())
    near = torch.where(behind | bad, 0.0, xy) / torch.where(behind | bad, 1.0, w)
    return torch.where(bad, torch.nan, torch.where(behind, 1e4, near))


def read(case: Case, x, grid):
    """(N, K, C, *size), of coordinates that F.grid_sample can take."""
    n, k = grid.shape[:2]
    grid = grid.nan_to_num(0.0).clamp(-FAR, FAR)
    options = dict(case.options, align_corners=case.corners)
    if case.mode == "bicubic" and len(case.extent) == 3:
        sides = zip(grid.flatten(2, -2).unbind(-1), case.extent[::-1], strict=True)
        weights = [line_weights(places, side, options) for places, side in sides]
        y = torch.einsum("nczyx,nkpx,nkpy,nkpz->nkcp", x, *weights)
        return y.unflatten(-1, case.size)
    y = F.grid_sample(x.repeat_interleave(k, 0), grid.flatten(0, 1), **options)
    return y.unflatten(0, (n, k))


def line_weights(places, extent: int, options):
    """(*places, extent): of each pixel of a line, from an image of each alone."""
    lines = torch.eye(extent, dtype=places.dtype).view(1, extent, 1, extent)
    grid = torch.stack((places, torch.zeros_like(places)), -1).view(1, 1, -1, 2)
    return F.grid_sample(lines, grid, **options)[0, :, 0].T.reshape(*places.shape, extent)


def by_pytorch(case: Case, x, g, theta) -> Results:
    x, theta = x.to(theta.dtype).requires_grad_(), theta.detach().requires_grad_()
    y = read(case, x, grid_of(case, maps_of(case, theta)))
    return Results(y.detach(), *torch.autograd.grad(y, (x, theta), g.to(y.dtype).view(y.shape)))


def maps_of(case: Case, theta):
    """(N, K, ...)."""
    if case.leading == ():
        theta = theta.expand(case.n, *theta.shape)
    return theta if len(case.leading) == 2 else theta[:, None]


@dataclass(frozen=True)
class Places:
    """What is known of the source coordinates, (N, K, *size)."""

    hole: torch.Tensor  # not finite
    known: torch.Tensor  # y can be told: the coordinate has figures left, nearest is no tie
    smooth: torch.Tensor  # and so can the gradients: there is no kink
    outside: torch.Tensor  # no pixel is read

    @classmethod
    def of(cls, case: Case, thetas) -> Places:
        """``thetas``: the exact one, and what float32 may take it for."""
        extent = torch.tensor(case.extent[::-1], dtype=torch.float64)
        grids = [grid_of(case, maps_of(case, theta)).double() for theta in thetas]
        hole = ~grids[0].isfinite().all(-1)
        grids = torch.stack(grids).nan_to_num(0.0).clamp(-FAR, FAR)
        at, *others = (grids * (extent - int(case.corners)) + extent - 1) / 2  # in pixels
        spread = (torch.stack(others) - at).abs().amax(0)
        known = ~hole & (spread < 1 / 16).all(-1)
        if case.padding_mode == "reflection":
            known &= (grids[0].abs() < FAR).all(-1)
        near = (2 * at - (2 * at).round()).abs() / 2 <= MARGIN + 4 * spread
        pinned = torch.tensor([case.corners and n == 1 for n in case.extent[::-1]])
        smooth = known & ~(near & ~pinned).any(-1)
        known = smooth if case.mode == "nearest" else known
        reach = REACH[case.mode] + spread
        outside = known & ((at <= -reach) | (at >= extent - 1 + reach)).any(-1)
        return cls(hole, known, smooth, outside & (case.padding_mode == "zeros"))


def check(case: Case, device: torch.device) -> None:
    """At most twice eager's error, of 16 θ: itself, and moved by units in the last place.

    One θ is one draw of eager's error, which may be small by luck where one pixel decides.
    """
    channels = -1 - len(case.extent)
    x, g, theta = (t.to(device) for t in case.tensors())
    x_buffer, x = LAYOUTS[case.layouts[0]](x, channels)
    theta_buffer, theta = LAYOUTS[case.layouts[2]](theta, 0)
    generator = torch.Generator().manual_seed(case.seed)
    single = theta.float().cpu()
    units = [torch.randint(-1, 2, single.shape, generator=generator) for _ in range(15)]
    rounded = [single, *(single * (1 + torch.finfo(torch.float32).eps * unit) for unit in units)]
    places = Places.of(case, [theta.double().cpu(), *rounded])
    keep = (places.smooth | places.hole).unsqueeze(2).expand(-1, -1, case.c, *case.size)
    g = torch.where(keep.reshape(g.shape).to(device), g, 0.0)
    g_buffer, g = LAYOUTS[case.layouts[1]](g, channels)

    buffers = x_buffer, g_buffer, theta_buffer
    before = [buffer.clone() for buffer in buffers]
    got = ours(case, x, g, theta)
    assert all(map(same, buffers, before)), "an argument was written to"
    for result, like in ((got.y, g), (got.grad_input, x), (got.grad_theta, theta)):
        assert result.shape == like.shape and result.dtype == like.dtype
    if case.layouts[0] == "channels last" and case.c > 1 and not case.splat:
        order = torch.channels_last if len(case.extent) == 2 else torch.channels_last_3d
        assert got.y.flatten(0, channels - 1).is_contiguous(memory_format=order)

    x, g, theta = (t.cpu() for t in (x, g, theta))
    g = torch.where(places.hole.unsqueeze(2).expand(keep.shape).reshape(g.shape), 0.0, g)
    exact = by_pytorch(case, x, g, theta.double())
    rivals = [by_pytorch(case, x, g, theta) for theta in rounded]
    y = got.y.cpu().view(exact.y.shape).movedim(2, -1)
    if not case.splat:
        assert y[places.hole].isnan().all(), "a coordinate that is not finite gives NaN"
        assert (y[places.outside] == 0).all(), "out of view lies 0"
    assert y[~places.hole].isfinite().all(), "NaN stays where it came from"
    assert got.grad_input.isfinite().all()
    compared = {
        "y": places.known.unsqueeze(2).expand(keep.shape),
        "grad_input": torch.ones(x.shape, dtype=torch.bool),
        "grad_theta": told_of(case, theta),
    }
    of_float64 = case.dtype == torch.float64
    for name, told in compared.items():
        numbers = [getattr(results, name).cpu().double() for results in (got, exact, *rivals)]
        numbers = [torch.where(told, t.reshape(told.shape), 0.0) for t in numbers]
        result, reference, *eager = numbers
        of_one = name == "grad_theta" and case.leading == ()
        largest = partial(largest_of, 1 if of_one else case.n)
        error = largest(result - reference)
        eager = torch.stack([largest(t - reference) for t in eager]).amax(0)
        dtype = torch.finfo(getattr(got, name).dtype)
        allowed = (1e-7 if of_float64 else 2) * eager
        allowed += ((1e-10 if of_float64 else 1e-5) + dtype.eps) * largest(reference)
        allowed += dtype.eps * dtype.smallest_normal  # of what is too small for its figures
        assert (error <= allowed).all(), f"{name}: error {error} where {allowed} is allowed"


def told_of(case: Case, theta) -> torch.Tensor:
    """Where the gradient of θ is compared: not of a map that has a hostile number in it."""
    if case.source in ("grid", "flow"):
        return torch.ones(theta.shape, dtype=torch.bool)
    dims = tuple(range(-len(case.transform.theta_shape), 0))
    return (theta.abs() < 1e9).all(dims, keepdim=True).expand(theta.shape)


def test_every_call_is_within_twice_eagers_error(place: Place, device, guarded):
    def claim(case):
        check(case, device)
        guarded.check()

    holds(place, 0.76, claim)


def test_a_sample_does_not_depend_on_its_batch(place: Place, device, guarded):
    """Bit for bit, whatever the others hold."""

    def claim(case):
        x, g, theta = (t.to(device) for t in case.tensors())
        alone = ours(replace(case, n=1), *(t[1:2] for t in (x, g, theta)))
        for t in (x, g, theta):
            t[0] = case.noise - 0.5 or math.nan
        among = ours(case, x, g, theta)
        assert same(among.y[1], alone.y[0])
        torch.testing.assert_close(among.grad_input[1], alone.grad_input[0])
        # Its terms add up in another order, and may cancel out.
        terms = g[1].double().abs().sum() * x[1].abs().max() * max(case.extent)
        difference = (among.grad_theta[1] - alone.grad_theta[0]).abs()
        relative = torch.finfo(case.theta_dtype).eps
        assert (difference <= 1e-6 * terms + relative * alone.grad_theta[0].abs()).all()
        guarded.check()

    holds(place, 0.08, claim, n=2, k="each", splat=False, hostile=None)


@pytest.mark.parametrize("nothing", [dict(n=0), dict(c=0), dict(k=0)], ids=str)
def test_nothing_in_is_nothing_out(place: Place, device, guarded, nothing):
    """And its gradients are zero."""

    def claim(case):
        x, g, theta = (t.to(device) for t in case.tensors())
        assume(g.numel() == 0)  # a flow has no K
        got = ours(case, x, g, theta)
        for result, like in ((got.y, g), (got.grad_input, x), (got.grad_theta, theta)):
            assert same(result, torch.zeros_like(like))
        guarded.check()

    holds(place, 0.02, claim, hostile=None, **nothing)


def test_sampling_and_splatting_are_transposes(place: Place, device, guarded):
    """<g, A x> = <Aᵀ g, x> of the value and of the gradient of each, at kinks too."""

    def claim(case):
        x, g, theta = (t.to(device) for t in case.tensors())
        ways = [ours(case, x, g, theta)]
        if case.source != "flow":
            ways.append(ours(replace(case, splat=True), x, g, theta))
        first, *rest = [(way.y.double() * g).sum() for way in ways] + [
            (way.grad_input.double() * x).sum() for way in ways
        ]
        rounding = (1e-5 + torch.finfo(case.dtype).eps) * g.double().abs().sum() * x.abs().max()
        assert all((product - first).abs() <= rounding for product in rest)
        guarded.check()

    holds(place, 0.1, claim, splat=False, hostile=None)
