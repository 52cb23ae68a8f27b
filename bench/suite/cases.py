"""What is measured: the one table of cases, the maps θ, and the bytes a pass has to move."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F

from bench.suite import sources
from bench.suite.passes import RESULTS

# At identity, and at this zoom in wherever H_out = H / 2, coordinates fall on integers.
THETA_KINDS = ("identity", "rotation_30", "zoom_in_2", "zoom_out_2")
TURNED = "rotation_30"  # where one θ has to do


@dataclass(frozen=True)
class Case:
    """A workload: N images (C, H, W), K maps an image, output (H_out, W_out).

    ``n_cpu`` is the batch used on a CPU, where the full one would take minutes, or 0 to leave the
    case out there; the results always carry the N that ran. ``sources`` has the transforms.
    Volumes have a depth, ``d`` and ``d_out``, which is 0 for images.
    """

    name: str
    n: int
    k: int
    c: int
    h: int
    w: int
    h_out: int
    w_out: int
    n_cpu: int
    transform: str = "affine"
    theta_kinds: tuple[str, ...] = THETA_KINDS
    mode: str = "bilinear"
    d: int = 0
    d_out: int = 0

    @property
    def extent(self) -> tuple[int, ...]:
        """The input's (H, W) or (D, H, W)."""
        return (self.d, self.h, self.w) if self.d else (self.h, self.w)

    @property
    def size(self) -> tuple[int, ...]:
        """The output's (H_out, W_out) or (D_out, H_out, W_out)."""
        return (self.d_out, self.h_out, self.w_out) if self.d else (self.h_out, self.w_out)

    @property
    def ndim(self) -> int:
        """2 for images, 3 for volumes."""
        return len(self.extent)


#                        N   K    C     H     W  H_out W_out n_cpu
CASES = (
    Case("tutorial_28", 64, 1, 1, 28, 28, 28, 28, 64),
    Case("digits_42", 256, 1, 1, 42, 42, 42, 42, 64),
    Case("digits_60", 256, 1, 1, 60, 60, 60, 60, 64),
    Case("svhn_64", 128, 1, 3, 64, 64, 64, 64, 32),
    Case("svhn_128", 128, 1, 3, 128, 128, 128, 128, 8),
    Case("large_512", 16, 1, 3, 512, 512, 512, 512, 2),
    Case("features_56", 64, 1, 64, 56, 56, 56, 56, 8),
    Case("features_28", 32, 1, 256, 28, 28, 28, 28, 8),
    Case("birds_448", 32, 1, 3, 448, 448, 224, 224, 4),
    Case("birds_448_k4", 32, 4, 3, 448, 448, 224, 224, 2),
    Case("photo_4096", 1, 1, 3, 4096, 4096, 4096, 4096, 1),
    # Sixteen crops an image at its own resolution, text lines, keypoints, optical flow.
    Case("crops_448_k16", 16, 16, 3, 448, 448, 112, 112, 0, theta_kinds=("zoom_in_4",)),
    Case("large_512_bicubic", 16, 1, 3, 512, 512, 512, 512, 0, "affine", (TURNED,), "bicubic"),
    Case("large_512_projective", 16, 1, 3, 512, 512, 512, 512, 0, "projective", ("tilt_0.2",)),
    Case("photo_4096_projective", 1, 1, 3, 4096, 4096, 4096, 4096, 0, "projective", ("tilt_0.2",)),
    Case("text_100_tps16", 64, 1, 1, 32, 100, 32, 100, 16, "tps_16", ("bend_0.1",)),
    Case("text_100_tps64", 64, 1, 1, 32, 100, 32, 100, 0, "tps_64", ("bend_0.1",)),
    Case("square_256_tps16", 16, 1, 3, 256, 256, 256, 256, 0, "tps_16", ("bend_0.1",)),
    Case("square_256_tps64", 16, 1, 3, 256, 256, 256, 256, 0, "tps_64", ("bend_0.1",)),
    Case("flow_1080", 8, 1, 3, 1080, 1920, 1080, 1920, 0, "flow", ("bend_0.02",)),
    Case("points_2048", 8, 1, 256, 120, 160, 1, 2048, 1, "grid", ("random",)),
    # Features of a volume, and a scan.
    Case("volume_64", 8, 1, 32, 64, 64, 64, 64, 1, d=64, d_out=64),
    Case("volume_128", 4, 1, 1, 128, 128, 128, 128, 1, d=128, d_out=128),
)
# Where a call takes most of a second or more on a CPU.
LARGE = ("photo_4096", "volume_64", "volume_128")
DTYPES = ("float32", "float16", "bfloat16")
NORMALIZED = torch.bfloat16  # what uint8 images become
LAYOUTS = ("contiguous", "channels_last")
FORMATS = {  # by layout and spatial dimensions
    ("contiguous", 2): torch.contiguous_format,
    ("contiguous", 3): torch.contiguous_format,
    ("channels_last", 2): torch.channels_last,
    ("channels_last", 3): torch.channels_last_3d,
}
PASSES = tuple(RESULTS)
SHAPE = ("n", "k", "c", "d", "h", "w", "d_out", "h_out", "w_out")  # of a case

# The full suite follows time over angle and zoom on one case: large enough to be bound by memory.
SWEEP_CASE = "large_512"
SWEEP = (
    *(f"rotation_{degrees}" for degrees in (0, 10, 20, 45, 60, 75, 90)),
    *(f"zoom_in_{factor}" for factor in (1.5, 4, 16)),
    *(f"zoom_out_{factor}" for factor in (1.5, 4, 16)),
)
# θ that no data needs and training may meet: singular, or extreme in scale.
EXTREME = {
    "zero": ((0.0, 0.0, 0.1), (0.0, 0.0, -0.2)),
    "rank_one": ((0.6, 0.3, 0.0), (0.4, 0.2, 0.1)),
    "nearly_singular": ((0.6, 0.3, 0.0), (0.4, 0.2001, 0.1)),
    "magnified_300": ((0.0033, 0.001, 0.1), (-0.001, 0.0033, 0.2)),
    "minified_300": ((300.0, 20.0, 0.0), (-20.0, 300.0, 0.0)),
    "anisotropic": ((40.0, 0.1, 0.0), (0.1, 0.02, 0.0)),
}
PLAIN = tuple(case.name for case in CASES if case.theta_kinds == THETA_KINDS)
# What the full suite has beside the cases' own θ, float32 and contiguous: cases, θ, what differs.
# With align_corners PyTorch takes cuDNN. The paddings are of few and of many channels.
BESIDE = (
    ((SWEEP_CASE,), SWEEP, {}),
    (("features_56", "photo_4096"), ("rotation_45",), {}),
    ((SWEEP_CASE,), tuple(EXTREME), {}),
    (("svhn_128", "features_56"), (TURNED,), {"padding_mode": "border"}),
    (("svhn_128", "features_56"), (TURNED,), {"padding_mode": "reflection"}),
    (PLAIN, (TURNED,), {"align_corners": True}),
)


def theta_of(kind: str, k: int = 1, ndim: int = 2) -> torch.Tensor:
    """θ (K, 2, 3), or (K, 3, 4) of a volume, float32, normalised, output to input.

    ``kind`` is "identity", "rotation_<degrees>", "zoom_in_<factor>" (the input appears larger),
    "zoom_out_<factor>", or of an image a name in ``EXTREME``. A volume turns about its diagonal
    (1, 1, 1), which leaves no axis where it was. The K maps of one image differ by their place
    along x, as the crops of parallel transformers do.
    """
    if kind in EXTREME and ndim == 2:
        return torch.tensor(EXTREME[kind]).repeat(k, 1, 1)
    angle, scale = angle_and_scale(kind)
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    if ndim == 2:
        turn = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    else:  # Rodrigues' formula
        cross = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64)
        turn = cos * torch.eye(3, dtype=torch.float64) + (1 - cos) / 3 + sin / 3**0.5 * cross
    # The rounding makes a quarter turn exact: math.cos(math.pi / 2) is 6e-17.
    turn = F.pad(turn.round(decimals=15) * scale, (0, 1))
    theta = turn.float().repeat(k, 1, 1)
    if k > 1:
        theta[:, 0, -1] = torch.linspace(-0.5, 0.5, k)
    return theta


def angle_and_scale(kind: str) -> tuple[float, float]:
    """The angle in degrees and the scale of θ that ``kind`` names; zooming in by 2 is 0.5."""
    if kind == "identity":
        return 0.0, 1.0
    match = re.fullmatch(r"(rotation|zoom_in|zoom_out)_(\d+(?:\.\d+)?)", kind)
    if match is None:
        raise ValueError(f"theta kind must be identity, rotation_A or zoom_in|out_F, got {kind!r}")
    value = float(match[2])
    if match[1] == "rotation":
        return value, 1.0
    return 0.0, 1 / value if match[1] == "zoom_in" else value


def argument_of(case: Case, theta_kind: str) -> torch.Tensor:
    """θ, grid or flow of one image, (K, *), float32.

    For what is not affine ``theta_kind`` is "identity", "tilt_<a>" (a homography with the third row
    a, a, 1), "bend_<a>" (control points or a flow, by ``sources.bent``) or "random" (a grid).
    """
    if case.transform == "affine":
        return theta_of(theta_kind, case.k, case.ndim)
    tilts = case.transform == "projective"
    if theta_kind == "random":
        noise = torch.rand(*case.size, case.ndim, generator=torch.Generator().manual_seed(0))
        return (2 * noise - 1).expand(case.k, *noise.shape)
    prefix = "tilt_" if tilts else "bend_"
    amount = 0.0 if theta_kind == "identity" else float(theta_kind.removeprefix(prefix))
    if tilts:
        theta = torch.eye(3)
        theta[2, :2] = amount
    elif case.transform in sources.FIELDS:
        still = theta_of("identity", ndim=case.ndim)
        base = F.affine_grid(still, (1, 1, *case.size), False)[0]
        theta = sources.bent(base, amount)
        if case.transform == "flow":
            theta = ((theta - base) * torch.tensor(case.extent[::-1]) / 2).movedim(-1, 0)
    else:
        theta = sources.bent(sources.spline(case.transform).points, amount).float()
    return theta.expand(case.k, *theta.shape).contiguous()


@dataclass(frozen=True)
class Task:
    """One thing to time: the rows of the table that differ by the provider alone."""

    case: Case
    pass_name: str
    theta_kind: str
    dtype: str = "float32"
    layout: str = "contiguous"
    padding_mode: str = "zeros"
    align_corners: bool = False

    def key(self, provider: str) -> tuple[str, ...]:
        """What tells its row from every other, in the order of ``table.KEY``."""
        what = (self.case.name, self.pass_name, provider, self.theta_kind, self.dtype, self.layout)
        return (*what, self.padding_mode, str(self.align_corners))


def suite(name: str, device_type: str) -> list[Task]:
    """The tasks of ``--suite quick|full`` on "cuda" or "cpu", in the order they run.

    quick: float32, contiguous; on a CPU also two passes instead of five, the batches of
    ``n_cpu``, and the ``LARGE`` cases under one θ.
    full: every dtype, layout and pass, and ``BESIDE``; together what shares a compilation.
    """
    cases = CASES
    if device_type == "cpu":
        cases = tuple(replace(case, n=case.n_cpu) for case in CASES if case.n_cpu)
    if name == "full":
        tasks = [t for case in cases for t in _cross(case, case.theta_kinds, DTYPES, LAYOUTS)]
        for names, theta_kinds, changes in BESIDE:
            plain = [t for c in cases if c.name in names for t in _cross(c, theta_kinds)]
            tasks += [replace(task, **changes) for task in plain]
        shapes = list(dict.fromkeys((task.case, task.dtype, task.layout) for task in tasks))
        return sorted(tasks, key=lambda task: shapes.index((task.case, task.dtype, task.layout)))
    tasks = [task for case in cases for task in _cross(case, case.theta_kinds)]
    if device_type == "cpu":
        tasks = [task for task in tasks if task.pass_name in ("forward", "forward_backward")]
        tasks = [t for t in tasks if t.case.name not in LARGE or t.theta_kind == TURNED]
    return tasks


def _cross(
    case: Case,
    theta_kinds: Sequence[str],
    dtypes: Sequence[str] = ("float32",),
    layouts: Sequence[str] = ("contiguous",),
) -> list[Task]:
    return [
        Task(case, pass_name, theta_kind, dtype, layout)
        for dtype in dtypes
        for layout in layouts
        # With one channel both layouts are the same memory.
        if case.c > 1 or layout == "contiguous"
        for theta_kind in theta_kinds
        for pass_name in PASSES
    ]


def min_bytes(task: Task) -> int:
    """The least device-memory traffic of the pass: every element that matters, moved once.

    Only what is in view counts as read: input pixels to which some output gives a weight, output
    pixels that see the input at all. What is returned is written whole, in view or not. So are a
    grid or a flow, float32, read by every pass, and its gradient. The bytes of any other θ are left
    out: at most 1% of the smallest affine case, 4% of a line of text in 16 bits under 64 points.
    """
    case = task.case
    touched, seen = in_view(case, task.theta_kind, task.padding_mode, task.align_corners)
    read_input = case.n * case.c * touched
    write_input = case.n * case.c * math.prod(case.extent)
    read_output = case.n * case.c * seen
    write_output = case.n * case.k * case.c * math.prod(case.size)
    results = RESULTS[task.pass_name]
    forward, to_input, to_theta = (x in results for x in ("y", "grad_input", "grad_theta"))
    backward = to_input or to_theta
    elements = forward * (read_input + write_output) + backward * read_output
    elements += to_theta * read_input + to_input * write_input
    image_bytes = elements * getattr(torch, task.dtype).itemsize
    if task.dtype == "uint8":  # of the output's dtype is all but what is read of the input
        of_output = NORMALIZED.itemsize - 1
        image_bytes += of_output * (forward * write_output + backward * read_output)
    if case.transform not in sources.FIELDS:
        return image_bytes
    field = case.n * case.k * math.prod(case.size) * case.ndim * torch.float32.itemsize
    return image_bytes + field * (forward + backward + to_theta)


@lru_cache(maxsize=256)
def in_view(
    case: Case, theta_kind: str, padding_mode: str = "zeros", align_corners: bool = False
) -> tuple[int, int]:
    """How many input pixels of one image are read, and how many of its K outputs see any.

    Counted by sampling a plane of ones and spreading ones back.
    """
    plane = torch.ones(1, 1, *case.extent, requires_grad=True)
    theta = argument_of(case, theta_kind)
    grid = sources.grid(case.transform, theta, case.extent, case.size, align_corners)
    image = plane.expand(case.k, *plane.shape[1:])
    # (K, 1, *size)
    sampled = F.grid_sample(image, grid, case.mode, padding_mode, align_corners)
    (weight,) = torch.autograd.grad(sampled.sum(), plane)
    # float32 coordinates err by up to 1e-3 pixel at 4096: less than that is a weight of zero.
    return int((weight.abs() > 1e-3).sum()), int((sampled.abs() > 1e-3).sum())
