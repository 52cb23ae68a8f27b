"""The targets. Every number here is made up: rows to judge, and no measurement."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from bench import __main__ as command
from bench.measure import runner
from bench.measure.runner import Machine
from bench.output import report, table, targets
from bench.providers.registry import PROVIDERS
from bench.suite.cases import CASES, EXTREME, THETA_KINDS, Task, suite
from bench.suite.passes import RESULTS
from triton_stn.backends import plans
from triton_stn.backends.layout import layout as layout_of

MACHINE = Machine("cuda", "made-up GPU", 1000.0, "2.x", "3.x", "abc1234")
BY_NAME = {case.name: case for case in CASES}
PROVIDER = {provider.name: provider for provider in PROVIDERS}


def row(case, pass_name, theta_kind="identity", provider="triton_stn", dtype="float32", **values):
    """A row of a table, 1 ms and 95% of a copy, with other values where given."""
    task = Task(BY_NAME[case], pass_name, theta_kind, dtype)
    made = runner.new_row(task, PROVIDER[provider], MACHINE)
    made |= {"ms_p50": 1.0, "call_ms": None, "pct_copy_bandwidth": 95.0, "peak_memory_mib": 0.0}
    return made | {"max_abs_error": 1e-6, "one_rounding": 1e-3} | values


def frame_of(*rows):
    return pd.DataFrame(list(rows), columns=table.COLUMNS)


def judge(*rows):
    lines = targets.verdicts(frame_of(*rows)).set_index("figure")
    return {name: lines.loc[name] for name in lines.index}


LARGE_FORWARD = "forward, axis-aligned, rows over 64 MB, float32"


def test_a_figure_without_rows_is_not_measured():
    lines = targets.verdicts(frame_of(row("tutorial_28", "backward_input")))
    silent = lines[lines.rows == 0]
    assert len(lines) == 17 and len(silent) == 16  # all but memory
    assert set(silent.met) == {"not measured"} and silent["worst row"].isna().all()


def test_bandwidth_is_judged_by_the_worst_large_float32_row_at_the_angle_it_names():
    percents = {"identity": 95, "rotation_90": 91, "zoom_out_2": 92, "rotation_45": 76}
    percents |= {"rotation_30": 1, "zero": 1, "magnified_300": 1}
    rows = [
        row("large_512", "forward", kind, pct_copy_bandwidth=float(pct))
        for kind, pct in percents.items()
    ]
    rows += [
        row("tutorial_28", "forward", pct_copy_bandwidth=1.0),  # small
        row("large_512", "forward", dtype="float16", pct_copy_bandwidth=1.0),
        row("large_512", "backward", pct_copy_bandwidth=74.0),
        row("large_512", "backward", "rotation_45", pct_copy_bandwidth=56.0),
    ]
    lines = judge(*rows)
    axis = lines[LARGE_FORWARD]
    assert (axis.rows, axis.measured, axis.met) == (3, 91.0, "yes")
    assert axis["worst row"] == "large_512 forward rotation_90 float32 contiguous"
    turned = lines["forward, 45°, rows over 64 MB, float32"]
    assert (turned.rows, turned.measured, turned.met) == (1, 76.0, "yes")
    assert lines["backward, axis-aligned, rows over 64 MB, float32"].met == "no"
    assert lines["backward, 45°, rows over 64 MB, float32"].met == "yes"


def test_the_suite_has_rows_for_every_bandwidth_figure_of_several_cases():
    tasks = [t for t in suite("full", "cuda") if t.pass_name in ("forward", "backward")]
    large = [t for t in tasks if t.theta_kind == "rotation_45" and t.dtype == "float32"]
    sizes = {t.case.name: t.case.n * t.case.c * t.case.h * t.case.w * 4 for t in large}
    assert len(sizes) >= 3 and min(sizes.values()) * 2 * 0.75 > targets.LARGE_BYTES


def test_a_row_that_is_not_ok_is_counted_and_the_figure_is_not_met():
    rows = [row("large_512", "forward"), row("large_512", "forward", "zoom_out_2")]
    rows[1] |= {"status": "wrong", "pct_copy_bandwidth": None, "ms_p50": None}
    line = judge(*rows)[LARGE_FORWARD]
    assert (line.rows, line["not judged"], line.measured, line.met) == (1, 1, 95.0, "no")
    assert line["worst row"] == "large_512 forward zoom_out_2 float32 contiguous: wrong"
    alone = judge(rows[1])[LARGE_FORWARD]
    assert (alone.rows, alone["not judged"], alone.met) == (0, 1, "no")


def pairs(provider, *times, pass_name="forward", kinds=THETA_KINDS, **values):
    return [
        row("large_512", pass_name, kind, provider, ms_p50=ms, **values)
        for kind, ms in zip(kinds, times, strict=False)
    ]


def test_speedups_are_geometric_means_over_eager_and_over_the_best_other():
    rows = pairs("triton_stn", 1, 1, 1, 1)
    rows += pairs("eager", 8, 2, 8, None)
    rows[-1] |= {"status": "oom"}
    rows += pairs("compiled", 4, 1)
    rows += pairs("triton_stn_graph", 0.1, 0.1)  # ours as well, so no other
    lines = judge(*rows)
    mean = lines["forward over eager, geometric mean"]
    assert (mean.rows, mean["not judged"], mean["rows beyond"], mean.met) == (3, 1, 1, "yes")
    assert mean.measured == pytest.approx(128 ** (1 / 3)) and mean.worst == 2
    best = lines["forward over the best other provider, geometric mean"]
    assert best.measured == pytest.approx(32 ** (1 / 3)) and best.worst == 1
    each = lines["each forward over eager"]
    assert (each.rows, each.measured, each.met) == (3, 2, "yes")


def test_extreme_theta_have_a_figure_of_their_own_over_every_pass():
    for pass_name in RESULTS:
        for kind in EXTREME:
            mine = pairs("triton_stn", 1, kinds=[kind], pass_name=pass_name)
            lines = judge(*mine, *pairs("eager", 0.3, kinds=[kind], pass_name=pass_name))
            extreme = lines["singular and extreme θ over eager"]
            assert (extreme.rows, extreme.measured, extreme.met) == (1, 0.3, "no")
            assert lines["each forward over eager"].rows == 0
            assert lines["each backward over eager"].rows == 0


@pytest.mark.parametrize("pass_name", targets.BACKWARDS)
def test_each_backward_counts_whatever_gradients_it_wants(pass_name):
    rows = [row("svhn_64", pass_name), row("svhn_64", pass_name, provider="eager", ms_p50=0.9)]
    line = judge(*rows)["each backward over eager"]
    assert (line.rows, line.met, line.measured) == (1, "no", 0.9)


def test_digits_are_timed_as_calls_and_as_replays():
    def digits(provider, **values):
        return row("tutorial_28", "forward_backward", provider=provider, **values)

    rows = [
        digits("triton_stn", call_ms=0.1, ms_p50=0.01),
        digits("eager", call_ms=0.16, ms_p50=0.01),
        digits("triton_stn_graph", ms_p50=0.01),
        digits("eager_graph", ms_p50=0.03),
    ]
    lines = judge(*rows)
    call = lines["64x1x28x28, a call from Python over eager"]
    assert call.measured == pytest.approx(1.6) and call.met == "yes"
    replayed = lines["64x1x28x28, CUDA graphs of both"]
    assert replayed.measured == pytest.approx(3) and replayed.met == "no"


def test_errors_are_set_against_eagers():
    def pair(dtype, mine, eagers, kind="identity", **values):
        ours = row("large_512", "forward", kind, dtype=dtype, max_abs_error=mine, **values)
        return ours, row("large_512", "forward", kind, "eager", dtype, max_abs_error=eagers)

    exact, half = "error, float32", "error, half types"
    lines = judge(*pair("float32", 1e-6, 1e-6), *pair("float16", 1e-3, 0.1))
    assert (lines[exact].measured, lines[exact].met) == (1, "yes")
    # One rounding, 1e-3, and eager's 1e-6 in float32; not its own in float16.
    assert lines[half].measured == pytest.approx(1e-3 / 1.001e-3) and lines[half].met == "yes"
    lines = judge(*pair("float32", 2e-6, 1e-6), *pair("float16", 1.1e-3, 0.1))
    assert lines[exact].met == lines[half].met == "no"
    assert judge(*pair("float32", 0, 0))[exact].met == "yes"
    assert judge(*pair("float32", 1e-9, 0))[exact].met == "no"
    nan = pair("float32", float("nan"), 1e-6, status="wrong")
    assert (judge(*nan)[exact]["not judged"], judge(*nan)[exact].met) == (1, "no")


# --- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "pass_name", "dtype", "expected"),
    [
        ("large_512", "forward", "float32", 16 * 3 * 512 * 512 * 4),
        ("birds_448_k4", "forward", "float16", 32 * 4 * 3 * 224 * 224 * 2),
        ("birds_448_k4", "backward_input", "float32", 32 * 3 * 448 * 448 * 4),
        # 64 θ of 6 numbers, 4 x 2 tiles of 6 sums each; of volumes two launches.
        ("tutorial_28", "backward_theta", "float32", 64 * 4 * (6 + 2 * 4 * 6)),
        ("volume_128", "backward_theta", "float32", 4 * 4 * (12 + 2 * 16 * 32 * 32 * 12)),
    ],
)
def test_what_a_pass_may_allocate(case, pass_name, dtype, expected):
    (allowed,) = targets.allowed_bytes(frame_of(row(case, pass_name, dtype=dtype)))
    assert allowed == pytest.approx(expected, rel=2e-5)


def test_memory_is_what_a_pass_returns_and_little_more():
    mib = 16 * 3 * 512 * 512 * 4 / 2**20
    line = judge(row("large_512", "forward", peak_memory_mib=mib))["memory"]
    assert line.met == "yes" and line.measured == pytest.approx(1, abs=1e-4)
    line = judge(row("large_512", "forward", peak_memory_mib=1.01 * mib))["memory"]
    assert line.met == "no" and line.measured == pytest.approx(1.01, abs=1e-4)


GATHERED = [case for case in CASES if case.transform == "affine" and case.mode == "bilinear"]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("case", GATHERED, ids=lambda case: case.name)
def test_the_kernels_partial_sums_are_within_what_is_allowed(case, dtype, layout):
    kind = torch.contiguous_format
    if layout == "channels_last":
        kind = torch.channels_last if case.ndim == 2 else torch.channels_last_3d

    def of(n, extent):
        x = torch.empty(n, case.c, *extent, dtype=getattr(torch, dtype), device="meta")
        return x.contiguous(memory_format=kind)

    grad = of(case.n * case.k, case.size).unflatten(0, (case.n, case.k))
    image = of(case.n, case.extent)
    theta = torch.empty(case.n, case.k, case.ndim, case.ndim + 1, device="meta")
    given = [layout_of(x) for x in (grad, image, theta)]
    sampling = plans.Sampling("bilinear", "zeros", False)
    found = plans.plan_backward(*given, sampling, plans.Wanted(True, True))
    need = 4 * found.partial
    task = row(case.name, "backward_theta", case.theta_kinds[0], dtype=dtype)
    (allowed,) = targets.allowed_bytes(frame_of(task))
    assert need <= allowed


# --- where they are shown ------------------------------------------------------------------------


def test_the_reports_of_a_gpu_show_the_targets_and_those_of_a_cpu_do_not():
    frame = frame_of(row("large_512", "forward"), row("large_512", "forward", provider="eager"))
    frame["align_corners"] = frame.align_corners.astype(bool)
    for text in (report.whole(frame), report.block(frame, "speedup.png")):
        assert "**Targets.**" in text and LARGE_FORWARD in text and "not measured" in text
        assert "The table has 1 of the full suite's" in text
    cpu = frame.assign(device="cpu")
    for text in (report.whole(cpu), report.block(cpu, "speedup.png")):
        assert "Targets" not in text


def test_a_run_on_a_gpu_prints_the_targets_whatever_its_pictures_do(tmp_path, monkeypatch, capsys):
    def draw(*_):
        raise ValueError("no picture")

    monkeypatch.setattr(command.plots, "draw", draw)
    table.append(tmp_path / "results.csv", [row("large_512", "forward")])
    with pytest.raises(ValueError, match="no picture"):
        command._write_report(tmp_path / "results.csv")
    said = capsys.readouterr().out
    assert "Targets: 2 of 2 met, 15 not measured." in said and "met  forward, axis-aligned" in said
    assert "error, half types" in (tmp_path / "results.md").read_text(encoding="utf-8")


def test_a_table_read_from_a_file_is_judged_the_same(tmp_path):
    rows = [row("large_512", "forward"), row("large_512", "forward", "rotation_45", "eager")]
    table.append(tmp_path / "results.csv", rows)
    pd.testing.assert_frame_equal(
        targets.verdicts(table.read(tmp_path / "results.csv")),
        targets.verdicts(frame_of(*rows)),
        check_dtype=False,
    )
