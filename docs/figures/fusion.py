"""Draw fusion.png for the README: what is fused, and how the backward gathers.

    python docs/figures/fusion.py

Launches and bytes are counted from the algorithms, not measured. The geometry of the gather is
computed from the map that the figure names.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon, Rectangle
from PIL import Image

INK, FAINT = "#22303c", "#8a97a3"
EAGER, FUSED = "#cf6a32", "#16806f"
WIDTH, HEIGHT = 900, 712  # the figure in hundredths of an inch: pixels on the README's page

# Device-memory bytes an output element, float32, same-size output, every tensor moved once.
CHANNELS = (1, 3, 64)
BYTES = {
    "forward": {"eager": (48, 21.3, 8.6), "triton_stn": (8, 8, 8)},
    "backward": {"eager": (68, 36, 20.8), "triton_stn": (12, 12, 12)},
}

ANGLE = math.radians(30)
MAP = np.array([[math.cos(ANGLE), -math.sin(ANGLE)], [math.sin(ANGLE), math.cos(ANGLE)]])
OFFSET = np.array([-0.3, 0.0])  # pixels; an ordinary place between lattice points


class Flow:
    """Kernels, tensors and arrows on axes whose unit is a hundredth of an inch."""

    def __init__(self, axes: Axes):
        self.axes = axes

    def panel(self, x: float, y: float, width: float, height: float, color: str) -> None:
        style = "round,pad=0,rounding_size=6"
        box = FancyBboxPatch((x, y), width, height, boxstyle=style, fc=color, ec="none", alpha=0.07)
        self.axes.add_patch(box)

    def kernel(self, x: float, y: float, label: str, width: float, color: str) -> None:
        self._box(x, y, label, width, "round,pad=0,rounding_size=5", color, color, "white")

    def tensor(self, x: float, y: float, label: str, width: float, edge: str = FAINT) -> None:
        self._box(x, y, label, width, "square,pad=0", "white", edge, INK)

    def _box(self, x, y, label, width, style, face, edge, ink) -> None:
        height = 37 if "\n" in label else 24
        corner = (x - width / 2, y - height / 2)
        box = FancyBboxPatch(corner, width, height, boxstyle=style, fc=face, ec=edge, lw=1.1)
        self.axes.add_patch(box)
        self.text(x, y - 0.5, label, ha="center", color=ink)

    def arrows(self, *ends: tuple[float, float, float, float]) -> None:
        for x0, y0, x1, y1 in ends:
            style = {"arrowstyle": "-|>", "color": INK, "lw": 1.0, "shrinkA": 0, "shrinkB": 0}
            self.axes.annotate("", (x1, y1), (x0, y0), arrowprops=style)

    def text(self, x: float, y: float, text: str, **options) -> None:
        align = "center" if "\n" in text else "center_baseline"
        options = {"size": 8.3, "va": align, "color": INK, "linespacing": 1.2, **options}
        self.axes.text(x, y, text, **options)


def draw_eager(flow: Flow, y: float) -> None:
    """The two calls of PyTorch in a band whose boxes sit at height ``y``."""
    flow.panel(8, y - 60, 884, 140, EAGER)
    flow.text(18, y + 64, "PyTorch: F.affine_grid, then F.grid_sample", weight="bold", color=EAGER)

    flow.tensor(35, y, "θ", 30)
    flow.kernel(103, y, "affine_grid", 78, EAGER)
    flow.tensor(203, y, "grid, in\ndevice memory", 94, EAGER)
    flow.kernel(305, y, "grid_sample", 82, EAGER)
    flow.tensor(387, y, "output", 50)
    flow.tensor(305, y + 42, "input", 50)
    flow.arrows((50, y, 64, y), (142, y, 156, y), (250, y, 264, y), (346, y, 362, y))
    flow.arrows((305, y + 30, 305, y + 12))
    flow.text(18, y - 44, "11 launches; 48 / 21.3 / 8.6 bytes (C = 1 / 3 / 64)")

    flow.tensor(484, y, "grad output,\ninput, grid", 84)
    flow.kernel(598, y, "grid_sample\nbackward", 84, EAGER)
    flow.tensor(704, y, "grad grid, in\ndevice memory", 94, EAGER)
    flow.kernel(790, y, "bmm", 40, EAGER)
    flow.tensor(858, y, "grad θ", 48)
    flow.kernel(484, y + 42, "zero-fill", 60, EAGER)
    flow.tensor(598, y + 42, "grad input", 70)
    flow.arrows((526, y, 556, y), (640, y, 657, y), (751, y, 770, y), (810, y, 834, y))
    flow.arrows((514, y + 42, 563, y + 42), (598, y + 18, 598, y + 30))
    flow.text(642, y + 42, "4 atomic adds an element,\nin no fixed order", color=EAGER)
    flow.text(444, y - 44, "about 12 launches; 68 / 36 / 20.8 bytes, and the atomics")


def draw_fused(flow: Flow, y: float) -> None:
    """The library's kernels in a band whose boxes sit at height ``y``."""
    flow.panel(8, y - 60, 884, 140, FUSED)
    flow.text(18, y + 64, "triton_stn: spatial_transform", weight="bold", color=FUSED)

    flow.tensor(35, y, "θ", 30)
    flow.kernel(
        204, y, "one kernel: coordinates and weights\nin registers, for every channel", 222, FUSED
    )
    flow.tensor(387, y, "output", 50)
    flow.tensor(204, y + 42, "input", 50)
    flow.arrows((50, y, 93, y), (315, y, 362, y), (204, y + 30, 204, y + 18))
    flow.text(18, y - 44, "1 launch; 8 bytes, the least possible, at any C")

    flow.tensor(484, y, "grad output,\ninput, θ", 84)
    flow.kernel(598, y, "one kernel,\ngathering", 84, FUSED)
    flow.tensor(705, y, "6 sums\na program", 72)
    flow.kernel(790, y, "add", 40, FUSED)
    flow.tensor(858, y, "grad θ", 48)
    flow.tensor(598, y + 42, "grad input", 70)
    flow.arrows((526, y, 556, y), (640, y, 669, y), (741, y, 770, y), (810, y, 834, y))
    flow.arrows((598, y + 18, 598, y + 30))
    flow.text(
        642, y + 42, "one store an element, no atomics,\nthe same bits every time", color=FUSED
    )
    flow.text(444, y - 44, "2 launches; 12 bytes, the least possible, at any C")


def lattice(reach: int) -> np.ndarray:
    """Integer points (x, y) around the origin: (points, 2)."""
    span = np.arange(-reach, reach + 1)
    return np.stack(np.meshgrid(span, span), axis=-1).reshape(-1, 2)


def draw_gather(on_input: Axes, on_output: Axes) -> None:
    """One input pixel at the origin: its cell in the input, and the cell's preimage in the output.

    An output pixel p is read at MAP·p + OFFSET, and gives to the input pixel when that point lies
    in the cell [-1, 1) × [-1, 1); its weight is (1 - |x|)·(1 - |y|).
    """
    pixels = lattice(5)  # of the output
    sources = pixels @ MAP.T + OFFSET
    member = ((sources >= -1) & (sources < 1)).all(1)
    weight = np.where(member, (1 - np.abs(sources)).prod(1), 0)

    inverse = np.linalg.inv(MAP)
    cell = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    preimage = (cell - OFFSET) @ inverse.T
    centre, half = -inverse @ OFFSET, np.abs(inverse).sum(1)
    first, last = np.ceil(centre - half), np.floor(centre + half)
    candidate = ((pixels >= first) & (pixels <= last)).all(1)

    on_input.add_patch(Polygon(cell, fc=FUSED, alpha=0.16, ec="none"))
    on_input.add_patch(Polygon(cell, fill=False, ec=FUSED, lw=1.6))
    on_input.scatter(*lattice(3).T, marker="s", s=16, color=FAINT)
    on_input.scatter(0, 0, marker="s", s=52, color=INK, zorder=3)

    on_output.add_patch(Polygon(preimage, fc=FUSED, alpha=0.16, ec="none"))
    on_output.add_patch(Polygon(preimage, fill=False, ec=FUSED, lw=1.6))
    corner, (width, height) = first - 0.5, last - first + 1
    window = Rectangle(corner, width, height, fill=False, ec=INK, lw=1.2, ls=(0, (4, 2)))
    on_output.add_patch(window)
    on_output.scatter(*centre, marker="s", s=40, color=INK, zorder=3)
    on_input.annotate("(u, v)", (0, 0), (5, 5), textcoords="offset points", size=7.8, color=INK)

    for axes, points in ((on_input, sources), (on_output, pixels)):
        axes.scatter(*points[~candidate].T, s=14, fc="white", ec="#c3cbd2", lw=0.9, zorder=2)
        axes.scatter(*points[candidate].T, s=30, fc="white", ec=FUSED, lw=1.2, zorder=3)
        axes.scatter(*points[member].T, s=30, color=FUSED, zorder=4)
        axes.set(aspect="equal", xlim=(-2.2, 2.2), ylim=(2.2, -2.2), xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(edgecolor="#c3cbd2")
        # From the lightest to the heaviest, where the number is clear of every line.
        places = ((1, 11, "left"), (5, 0, "left"), (-5, 0, "right"), (-5, 0, "right"))
        for index, (dx, dy, ha) in zip(np.argsort(weight)[-4:], places, strict=True):
            options = {"textcoords": "offset points", "ha": ha, "va": "center_baseline"}
            axes.annotate(f"{weight[index]:.2f}", points[index], (dx, dy), size=7.8, **options)


def draw_gather_key(flow: Flow, y: float) -> None:
    """What the marks of the gather mean, in lines from ``y`` downwards."""
    style = {"s": 30, "lw": 1.2, "edgecolor": FUSED}
    flow.axes.scatter(25, y, color=FUSED, s=30)
    flow.text(36, y, "read inside the cell: adds grad output times the weight shown")
    flow.axes.scatter(25, y - 18, facecolor="white", **style)
    flow.text(36, y - 18, "a candidate read elsewhere: adds nothing")
    flow.axes.plot((18, 32), (y - 36, y - 36), color=INK, lw=1.2, ls=(0, (3, 1.5)))
    flow.text(36, y - 36, "the candidates' window: at most 3 by 3 at scale 1, whatever the angle")


def draw_bytes(axes: Axes, name: str) -> None:
    """Bars of bytes an output element for one pass."""
    rows = np.arange(len(CHANNELS))
    for shift, (provider, color) in ((-0.19, ("eager", EAGER)), (0.19, ("triton_stn", FUSED))):
        values = BYTES[name][provider]
        axes.barh(rows + shift, values, 0.34, color=color)
        for row, value in zip(rows + shift, values, strict=True):
            atomics = " + atomics" if (name, provider) == ("backward", "eager") else ""
            axes.text(value + 1.2, row, f"{value:g}{atomics}", va="center", size=8, color=INK)
    axes.set(xlim=(0, 112), xticks=[], yticks=rows, yticklabels=[f"C = {c}" for c in CHANNELS])
    axes.set_title(name, size=8.5, loc="left", pad=3, color=INK)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0, labelsize=8, labelcolor=INK)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def main() -> None:
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100))

    def axes_at(x: float, y: float, width: float, height: float) -> Axes:
        return figure.add_axes((x / WIDTH, y / HEIGHT, width / WIDTH, height / HEIGHT))

    page = axes_at(0, 0, WIDTH, HEIGHT)
    page.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    page.axis("off")
    flow = Flow(page)
    for x, name in ((18, "Forward"), (444, "Backward, both gradients")):
        flow.text(x, HEIGHT - 16, name, size=10.5, weight="bold")
    draw_eager(flow, HEIGHT - 112)
    draw_fused(flow, HEIGHT - 262)

    top = HEIGHT - 352
    flow.text(18, top, "Gathering: what one input pixel receives", size=10.5, weight="bold")
    flow.text(140, top - 25, "input: the cell of pixel (u, v), 2 by 2", ha="center")
    flow.text(428, top - 25, "output: its preimage, θ a turn by 30°", ha="center")
    draw_gather(axes_at(18, top - 284, 245, 245), axes_at(305, top - 284, 245, 245))
    flow.arrows((268, top - 160, 300, top - 160))
    flow.text(284, top - 149, "θ⁻¹", ha="center")
    draw_gather_key(flow, top - 304)

    flow.text(600, top, "Bytes an output element", size=10.5, weight="bold")
    flow.text(600, top - 25, "PyTorch", color=EAGER, weight="bold")
    flow.text(668, top - 25, "triton_stn", color=FUSED, weight="bold")
    draw_bytes(axes_at(645, top - 158, 245, 106), "forward")
    draw_bytes(axes_at(645, top - 290, 245, 106), "backward")
    caveat = "float32, same size; launches and bytes are\ncounted from the algorithm, not measured"
    flow.text(600, top - 322, caveat, size=8, color="#5b6874")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=180, facecolor="white")
    # Flat colours: a palette of 64 halves the file and shows no difference.
    picture = Image.open(buffer).convert("RGB").quantize(64)
    picture.save(Path(__file__).with_name("fusion.png"), optimize=True)


if __name__ == "__main__":
    main()
