"""The pictures. Every number here is made up: a frame to draw, and no measurement."""

from __future__ import annotations

import pandas as pd
import pytest

from bench.measure import runner, timing
from bench.measure.runner import Machine
from bench.output import plots, table
from bench.providers.registry import PROVIDERS
from bench.suite.cases import CASES, EXTREME, SWEEP, SWEEP_CASE, THETA_KINDS, Task

MACHINE = Machine("cuda", "made-up GPU", 1000.0, "2.x", "3.x", "abc1234")
(CASE,) = (case for case in CASES if case.name == SWEEP_CASE)


def made_up(tmp_path, theta_kinds, memory=None, passes=("forward", "backward")) -> pd.DataFrame:
    """Rows of ours, 1 ms, and of eager, 2 ms."""
    csv = tmp_path / "made-up.csv"
    for theta_kind in theta_kinds:
        for pass_name in passes:
            for provider, ms in zip(PROVIDERS[:2], (1.0, 2.0), strict=True):
                row = runner.new_row(Task(CASE, pass_name, theta_kind), provider, MACHINE)
                timing.set_times(row, (ms, ms, ms))
                row |= {"speedup_vs_eager": 2 / ms, "gb_per_s": 1.0, "peak_memory_mib": memory}
                table.append(csv, [row])
    return table.read(csv)


@pytest.mark.parametrize(
    ("theta_kinds", "memory", "expected"),
    [
        (THETA_KINDS, None, {"speedup", "bandwidth"}),
        (THETA_KINDS, 3.0, {"speedup", "bandwidth", "memory"}),
        ((*THETA_KINDS, *SWEEP), 3.0, {"speedup", "bandwidth", "memory", "angle", "zoom"}),
        (("identity", "rotation_45"), None, {"speedup", "bandwidth", "angle"}),
    ],
)
def test_a_picture_is_drawn_where_the_table_has_its_rows(tmp_path, theta_kinds, memory, expected):
    out = tmp_path / "pictures"
    out.mkdir()
    written = plots.draw(made_up(tmp_path, theta_kinds, memory), out)
    assert {path.stem for path in written} == expected
    assert set(out.iterdir()) == set(written) and all(p.stat().st_size > 5000 for p in written)


def test_the_sweep_runs_over_angle_at_scale_1_and_over_zoom_without_rotation(tmp_path):
    frame = made_up(tmp_path, (*THETA_KINDS, *SWEEP, *EXTREME), passes=("forward",))
    frame = frame[frame.provider == "triton_stn"]
    other = frame.assign(case="another", theta_kind="rotation_5")
    half = frame.assign(dtype="float16", theta_kind="rotation_5")
    turned, zoomed = plots.sweeps(pd.concat([frame, other, half]))
    assert turned.angle.tolist() == [0, 0, 10, 20, 30, 45, 60, 75, 90]
    assert zoomed.zoom.tolist() == pytest.approx(
        [1 / 16, 1 / 4, 1 / 2, 1 / 1.5, 1, 1, 1.5, 2, 4, 16]
    )


def test_a_provider_looks_the_same_in_every_panel(tmp_path):
    frame = made_up(tmp_path, THETA_KINDS)
    frame = frame.assign(elements=range(1, len(frame) + 1))
    others = frame.assign(provider=frame["pass"].map({"forward": "a", "backward": "b"}))
    both = frame.assign(provider="b")
    rows = pd.concat([frame, others, both])
    figure = plots._panels(rows, "gb_per_s", plots.CASE)
    colours = [
        {line.get_label(): line.get_color() for line in ax.get_lines()} for ax in figure.axes
    ]
    assert [ax.get_title() for ax in figure.axes] == ["forward", "backward"]
    assert len(colours) == 2 and colours[0]["b"] == colours[1]["b"] != colours[0]["a"]
    plots.plt.close(figure)


def test_a_point_lies_on_the_line_of_its_case(tmp_path):
    frame = made_up(tmp_path, ("identity",), passes=("forward_backward",))
    other = frame.assign(case="another", speedup_vs_eager=3.0)
    figure = plots._panels(pd.concat([frame, other]), "speedup_vs_eager", plots.CASE)
    (ax,) = figure.axes
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["another", SWEEP_CASE] and ax.get_title() == "forward + backward"
    (ours, *_) = ax.get_lines()
    assert list(zip(ours.get_xdata(), ours.get_ydata(), strict=True)) == [(2, 1), (3, 0)]
    plots.plt.close(figure)
