"""The benchmark's own claims: what it times is right, and what it writes is what it measured."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import INTERPRETED, Place

import triton_stn
from bench import __main__ as command
from bench import cli
from bench.measure import oracle, runner, timing
from bench.measure.runner import Forwards, Machine, run_task
from bench.output import plots, screen, table
from bench.providers import baselines, registry
from bench.providers.registry import Provider
from bench.suite.cases import CASES, DTYPES, EXTREME, LAYOUTS, PASSES, THETA_KINDS, Case, Task

TINY = Case("tiny", 2, 1, 3, 8, 8, 8, 8, 2)
SEVERAL = Case("several", 2, 3, 2, 12, 10, 7, 9, 2)
VOLUME = Case("volume", 2, 1, 2, 6, 9, 7, 8, 2, d=5, d_out=6)
VOLUMES = replace(VOLUME, name="volumes", k=3)
BEYOND = [case for case in CASES if case.theta_kinds != THETA_KINDS]
MACHINE = Machine("cpu", "cpu", 10.0, "2.x", "3.x", "abc1234")
EAGER = Provider("eager", lambda: baselines.eager, half_coordinates=True)
OURS = Provider("triton_stn", lambda: baselines.ours)


@pytest.fixture(autouse=True)
def short_timings(request, monkeypatch):
    """On a CPU the bench times the PyTorch path; here Triton may be interpreted, and slow."""
    monkeypatch.setattr(timing, "CPU_WORK_MS", 1)
    on_gpu = request.node.get_closest_marker("gpu")
    with triton_stn.use_backend("auto" if on_gpu else "torch"):
        yield


def run_one(task, *providers, **options):
    return {
        row["provider"]: row for row in run_task(task, providers, MACHINE, Forwards(), **options)
    }


def off_by_half_a_pixel(input, theta, size, *options):
    shift = torch.tensor([0.0, 0.0, 1 / input.shape[-1]], device=theta.device)
    return baselines.eager(input, theta + torch.stack([shift, shift]), size, *options)


def right_value_wrong_gradient(input, theta, *options):
    y = baselines.eager(input, theta, *options)
    return y + 0.01 * (baselines.eager(input, theta, *options) - y.detach())


def exploding(message, kind=RuntimeError):
    def forward(*arguments):
        raise kind(message)

    return forward


# --- right before fast ---------------------------------------------------------------------------


@pytest.mark.parametrize("theta_kind", [*THETA_KINDS, "rotation_90"])
@pytest.mark.parametrize("case", [TINY, SEVERAL, VOLUME, VOLUMES], ids=lambda case: case.name)
@pytest.mark.parametrize("pass_name", PASSES)
def test_eager_and_ours_are_right_and_timed(pass_name, case, theta_kind):
    for row in run_one(Task(case, pass_name, theta_kind), OURS, EAGER).values():
        assert row["status"] == "ok", row["note"]
        assert 0 < row["ms_p20"] <= row["ms_p50"] <= row["ms_p80"]
        assert row["gb_per_s"] == pytest.approx(row["min_bytes"] / row["ms_p50"] / 1e6)
        assert row["pct_copy_bandwidth"] == pytest.approx(row["gb_per_s"] * 10)


@pytest.mark.parametrize("theta_kind", EXTREME)
def test_eager_and_ours_are_right_at_an_extreme_theta(theta_kind):
    case = replace(TINY, h=40, w=40, h_out=40, w_out=40)
    for row in run_one(Task(case, "forward_backward", theta_kind), OURS, EAGER).values():
        assert row["status"] == "ok", row["note"]


def test_one_rounding_is_that_of_the_largest_exact_number():
    largest = oracle.reference(Task(TINY, "forward", "identity"), "cpu").largest
    for dtype, half_ulp in (("float32", 2**-24), ("float16", 2**-11), ("bfloat16", 2**-8)):
        row = run_one(Task(TINY, "forward", "identity", dtype), OURS)["triton_stn"]
        assert row["one_rounding"] == pytest.approx(half_ulp * largest["y"])


def tiny(case):
    """The case, at a size at which a call takes no time."""
    h_out = min(case.h_out, 7)
    return replace(case, n=2, k=min(case.k, 3), c=2, h=12, w=10, h_out=h_out, w_out=9)


@pytest.mark.parametrize("case", BEYOND, ids=lambda case: case.name)
@pytest.mark.parametrize("pass_name", PASSES)
def test_eager_and_ours_are_right_beyond_affine_maps(pass_name, case):
    task = Task(tiny(case), pass_name, case.theta_kinds[0])
    for row in run_one(task, OURS, EAGER).values():
        assert row["status"] == "ok", row["note"]
        assert (row["transform"], row["mode"]) == (case.transform, case.mode)


@pytest.mark.parametrize("place", [INTERPRETED])
@pytest.mark.parametrize("transform", ["tps_16", "tps_64"])
def test_the_spline_kernels_are_as_right_as_a_spline_evaluated_anew(place: Place, transform):
    (case, *_) = (case for case in BEYOND if case.transform == transform)
    with triton_stn.use_backend(place.backend):
        (row,) = run_one(Task(tiny(case), "backward", case.theta_kinds[0]), OURS).values()
    assert row["status"] == "ok", row["note"]


@pytest.mark.parametrize("case", BEYOND, ids=lambda case: case.name)
def test_a_pixel_off_is_wrong_for_every_transform(case):
    def off(input, theta, *options):
        return baselines.eager(input.roll(1, -1), theta, *options)

    row = run_one(Task(tiny(case), "forward", case.theta_kinds[0]), Provider("off", lambda: off))
    assert row["off"]["status"] == "wrong"


@pytest.mark.parametrize("axis", [-3, -2, -1])
def test_a_voxel_off_is_wrong_along_every_axis(axis):
    def off(input, theta, *options):
        return baselines.eager(input.roll(1, axis), theta, *options)

    row = run_one(Task(VOLUME, "backward_theta", "rotation_30"), Provider("off", lambda: off))
    assert row["off"]["status"] == "wrong"


def test_a_layout_of_volumes_is_that_of_its_five_dimensions():
    reference = oracle.reference(Task(VOLUMES, "forward", "identity"), "cpu")
    input, _, grad = reference.arguments(torch.float32, "channels_last")
    last = dict(memory_format=torch.channels_last_3d)
    assert input.is_contiguous(**last) and grad.flatten(0, 1).is_contiguous(**last)
    assert not input.is_contiguous()


def test_which_packages_are_measured_on_volumes():
    aligned = Task(VOLUME, "forward", "identity", align_corners=True)
    assert "same as eager" in why_not("eager_no_cudnn", aligned)
    assert not why_not("eager_tf32", aligned) and not why_not("compiled", aligned)
    for name in ("flag_gems", "kornia"):
        assert "images alone" in why_not(name, aligned)
    assert "images" not in why_not("fireants", aligned)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [SEVERAL, VOLUMES], ids=lambda case: case.name)
def test_ours_is_right_in_half_precision_and_eager_is_skipped_on_the_cpu(case, dtype, layout):
    task = Task(case, "forward_backward", "rotation_30", dtype, layout)
    rows = run_one(task, OURS, *registry.PROVIDERS[1:])
    assert rows["triton_stn"]["status"] == "ok", rows["triton_stn"]["note"]
    assert rows["triton_stn"]["speedup_vs_eager"] is None
    assert rows["eager"]["status"] == rows["compiled"]["status"] == "skipped"
    assert "half precision" in rows["eager"]["note"]


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("theta_kind", THETA_KINDS)
def test_a_wrong_provider_is_wrong_and_has_no_time(pass_name, theta_kind):
    wrong = Provider("shifted", lambda: off_by_half_a_pixel)
    rows = run_one(Task(TINY, pass_name, theta_kind), wrong, EAGER)
    assert rows["shifted"]["status"] == "wrong"
    assert "allowed" in rows["shifted"]["note"]
    assert "ms_p50" not in rows["shifted"] and "speedup_vs_eager" not in rows["shifted"]
    assert rows["eager"]["status"] == "ok"


@pytest.mark.parametrize("pass_name", [name for name in PASSES if name != "forward"])
def test_a_gradient_off_by_a_hundredth_is_wrong(pass_name):
    wrong = Provider("gradient", lambda: right_value_wrong_gradient)
    assert run_one(Task(TINY, "forward", "identity"), wrong)["gradient"]["status"] == "ok"
    assert run_one(Task(TINY, pass_name, "identity"), wrong)["gradient"]["status"] == "wrong"


def test_nan_is_wrong():
    wrong = Provider("nan", lambda: lambda *a: baselines.eager(*a) * torch.nan)
    assert run_one(Task(TINY, "forward", "identity"), wrong)["nan"]["status"] == "wrong"


def test_the_data_is_the_same_in_every_dtype():
    for x in oracle.make_data(TINY, "cpu"):
        for dtype in DTYPES:
            assert torch.equal(x.to(getattr(torch, dtype)).float(), x)


def test_grad_theta_is_checked_off_the_kinks():
    reference = oracle.reference(Task(TINY, "backward", "identity"), "cpu")
    source = (reference.nudged - reference.theta)[0, :, 2] * TINY.w / 2
    assert source.tolist() == pytest.approx(oracle.NUDGE[:2], rel=1e-5)
    assert torch.equal(reference.smooth_grad, reference.grad)  # nothing near a kink to mask
    at_kinks = oracle.reference(Task(TINY, "backward", "rotation_30"), "cpu").smooth_grad == 0
    assert at_kinks.float().mean() < 0.2


# --- the providers -------------------------------------------------------------------------------


def why_not(name, task, device_type="cuda"):
    (provider,) = (p for p in registry.PROVIDERS if p.name == name)
    return provider.why_not(device_type, task)


def test_on_a_cpu_all_but_ours_and_eager_are_skipped_with_a_reason():
    rows = run_one(Task(TINY, "forward", "identity"), *registry.PROVIDERS)
    assert len(rows) == len(registry.PROVIDERS)
    for name, row in rows.items():
        expected = "ok" if name in ("triton_stn", "eager") else "skipped"
        assert row["status"] == expected and bool(row["note"]) == (expected == "skipped"), row


def test_what_is_the_same_call_as_eager_is_not_timed_again():
    plain, half = Task(TINY, "forward", "identity"), Task(TINY, "forward", "identity", "float16")
    aligned = Task(TINY, "forward", "identity", align_corners=True)
    bfloat16 = Task(TINY, "forward", "identity", "bfloat16", align_corners=True)
    assert not why_not("eager_no_cudnn", aligned)
    assert why_not("eager_no_cudnn", plain) and why_not("eager_no_cudnn", bfloat16)
    assert not why_not("eager_tf32", plain) and why_not("eager_tf32", half)


@pytest.mark.parametrize("pass_name", PASSES)
def test_a_cuda_graph_replays_whole_iterations_alone(pass_name):
    skipped = bool(why_not("compiled_graphs", Task(TINY, pass_name, "identity")))
    assert skipped == (pass_name not in ("forward", "forward_backward"))
    assert not why_not("compiled", Task(TINY, pass_name, "identity"))


def test_a_package_that_is_not_there_or_lacks_the_operator_says_so():
    assert registry.missing("no_such_package") == "no_such_package is not installed"
    assert registry.missing("torch", "no_such_thing") == "this torch has no no_such_thing"
    assert registry.missing("torch", "bmm") == ""


def test_tf32_is_allowed_to_its_provider_alone():
    seen = []

    def forward(*arguments):
        seen.append(torch.get_float32_matmul_precision())
        return baselines.eager(*arguments)

    provider = Provider("tf32", lambda: forward, context=baselines.tf32)
    before = torch.get_float32_matmul_precision()
    run_one(Task(TINY, "forward", "identity"), provider)
    assert seen[0] == "high"  # while it is checked; on a CPU it is not timed so
    assert torch.get_float32_matmul_precision() == before == "highest"


@pytest.mark.parametrize("name", ["kornia", "fireants"])
def test_what_a_package_can_not_do_is_skipped_with_a_reason(name):
    for case in BEYOND:
        able = case.mode == "bilinear" and (
            case.transform == "affine" or (name, case.transform) == ("kornia", "projective")
        )
        reason = why_not(name, Task(tiny(case), "forward", case.theta_kinds[0]))
        assert ("bilinear samples of affine" in reason) == (not able)


def test_one_graph_holds_each_of_eagers_ways():
    for case in (*map(tiny, BEYOND), VOLUMES):
        task = Task(case, "forward", case.theta_kinds[0])
        reference = oracle.reference(task, "cpu")
        input, theta, _ = reference.arguments(torch.float32)
        compiled = torch.compile(baselines.eager, backend="eager", dynamic=False, fullgraph=True)
        y = compiled(input, theta, *reference.options)
        torch.testing.assert_close(y, baselines.eager(input, theta, *reference.options))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("case", [TINY, SEVERAL], ids=lambda case: case.name)
def test_kornia_means_the_same_by_theta(case, align_corners):
    pytest.importorskip("kornia")
    kornia = Provider("kornia", baselines.build_kornia, half_coordinates=True)
    tilted = replace(case, transform="projective")
    for shown, theta_kind in ((case, "rotation_30"), (tilted, "tilt_0.2")):
        task = Task(shown, "forward_backward", theta_kind, align_corners=align_corners)
        row = run_one(task, kornia)["kornia"]
        assert row["status"] == "ok", row["note"]


# --- what goes wrong stays in its row ------------------------------------------------------------


@pytest.mark.parametrize(
    ("forward", "status"),
    [
        (exploding("boom\nat length"), "error"),
        (exploding("CUDA out of memory", torch.OutOfMemoryError), "oom"),
        (exploding("DefaultCPUAllocator: can't allocate memory"), "oom"),
    ],
)
def test_an_exception_becomes_a_row_and_the_others_go_on(forward, status):
    rows = run_one(Task(TINY, "backward", "identity"), Provider("bad", lambda: forward), EAGER)
    assert rows["bad"]["status"] == status
    assert "\n" not in rows["bad"]["note"] and rows["bad"]["note"]
    assert "ms_p50" not in rows["bad"]
    assert rows["eager"]["status"] == "ok"


def test_failing_while_timed_is_an_error_without_a_time():
    calls = []

    def third_time_fails(*arguments):
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("worn out")
        return baselines.eager(*arguments)

    row = run_one(Task(TINY, "forward", "identity"), Provider("p", lambda: third_time_fails))["p"]
    assert row["status"] == "error" and "ms_p50" not in row


# --- the table and the run -----------------------------------------------------------------------


def test_the_columns_are_the_agreed_ones_in_order(tmp_path):
    agreed = """
        case, pass, provider, n, k, c, h, w, h_out, w_out, dtype, layout, padding_mode,
        align_corners, theta_kind, ms_p50, ms_p20, ms_p80, speedup_vs_eager, min_bytes,
        gb_per_s, pct_copy_bandwidth, peak_memory_mib, max_abs_error, status, device, torch,
        triton, commit, utc
    """
    agreed = "".join(agreed.split()).split(",")
    csv = tmp_path / "results.csv"
    command.run([Task(TINY, "forward", "identity")], (OURS, EAGER), MACHINE, csv)
    header = csv.read_text().splitlines()[0].split(",")
    assert header[: len(agreed)] == agreed


def test_resume_skips_what_is_done_and_finishes_the_rest(tmp_path):
    csv = tmp_path / "results.csv"
    tasks = [Task(TINY, name, kind) for name in PASSES[:2] for kind in THETA_KINDS[:2]]
    built = []

    def building():
        built.append(1)
        return baselines.eager

    counted = (Provider("eager", building),)
    command.run(tasks[:3], counted, MACHINE, csv)
    with csv.open("a") as file:
        file.write("tiny,forward,eag")  # killed in the middle of a line
    before = table.read(csv)
    assert len(before) == 3

    command.run(tasks, (OURS, *counted), MACHINE, csv, resume=True)
    after = table.read(csv)
    assert len(after) == 8 and len(set(table.keys(after))) == 8
    pd.testing.assert_frame_equal(after.head(3), before, check_dtype=False)
    # triton_stn's rows are set against the eager times of the first run.
    assert (after.query("provider == 'triton_stn'").speedup_vs_eager > 0).all()

    built.clear()
    command.run(tasks, (OURS, *counted), MACHINE, csv, resume=True)
    assert not built and len(table.read(csv)) == 8
    command.run(tasks[:1], counted, MACHINE, csv)
    assert len(table.read(csv)) == 1  # without --resume a run starts anew


def test_an_interrupt_leaves_the_rows_measured_so_far(tmp_path):
    csv = tmp_path / "results.csv"
    tasks = [Task(TINY, "forward", kind) for kind in THETA_KINDS]

    def interrupted(input, theta, *options):
        if (theta[..., 0, 1] != 0).any():  # the second task, the rotation
            raise KeyboardInterrupt
        return baselines.eager(input, theta, *options)

    with pytest.raises(KeyboardInterrupt):
        command.run(tasks, (Provider("p", lambda: interrupted),), MACHINE, csv)
    assert len(table.read(csv)) == 1


def test_rows_of_another_device_are_not_resumed(tmp_path):
    csv = tmp_path / "results.csv"
    task = Task(TINY, "forward", "identity")
    command.run([task], (EAGER,), MACHINE, csv)
    other = Machine("cpu", "another", 10.0, "2.x", "3.x", "abc1234")
    command.run([task], (OURS,), other, csv, resume=True)
    assert table.read(csv)[["provider", "device"]].values.tolist() == [["triton_stn", "another"]]


def test_filter_keeps_the_rows_that_contain_every_word(tmp_path):
    csv = tmp_path / "results.csv"
    tasks = [Task(TINY, name, kind) for name in PASSES for kind in THETA_KINDS[:2]]
    command.run(tasks, (OURS, EAGER), MACHINE, csv, "tiny/backward eager rotation")
    frame = table.read(csv)
    assert frame["pass"].tolist() == ["backward_input", "backward_theta", "backward"]
    assert set(frame.provider) == {"eager"} and set(frame.theta_kind) == {"rotation_30"}
    assert command.run(tasks, (OURS,), MACHINE, csv, "nowhere") == 0 and not csv.exists()


def test_filter_leaves_out_the_words_that_begin_with_a_minus(tmp_path):
    csv = tmp_path / "results.csv"
    tasks = [Task(TINY, name, kind) for name in PASSES for kind in THETA_KINDS[:2]]
    command.run(tasks, (OURS, EAGER), MACHINE, csv, "identity -backward -eager")
    frame = table.read(csv)
    assert frame[["pass", "provider", "theta_kind"]].values.tolist() == [
        ["forward", "triton_stn", "identity"]
    ]


def test_runs_of_a_few_minutes_add_up_to_the_suite(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "this_machine", lambda: MACHINE)
    arguments = ["--filter", "tutorial_28 identity", "--out", str(tmp_path), "--resume"]
    statuses = []
    for tasks in (1, 2):  # forward and forward_backward
        statuses.append(command.main([*arguments, "--minutes", "0"]))
        frame = table.read(tmp_path / "results.csv")
        assert len(frame) == tasks * len(registry.PROVIDERS)
    assert statuses == [cli.OUT_OF_TIME, 0]
    assert capsys.readouterr().out.count("Time is up") == 1
    assert len(set(table.keys(frame))) == len(frame)
    assert frame.query("provider == 'triton_stn'").speedup_vs_eager.notna().all()


def test_exit_status_tells_a_wrong_row_of_ours(tmp_path):
    csv = tmp_path / "results.csv"
    wrong = Provider("triton_stn", lambda: off_by_half_a_pixel)
    tasks = [Task(TINY, "forward", "identity")]
    assert command.run(tasks, (wrong, EAGER), MACHINE, csv) == 1
    assert command.run(tasks, (OURS, EAGER), MACHINE, csv) == 0


def test_the_command_writes_csv_markdown_and_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "this_machine", lambda: MACHINE)
    assert command.main(["--filter", "tutorial_28 identity", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("No GPU found") and said.rstrip().splitlines()[-1].startswith("wrote ")
    for name in ("results.csv", "results.md", "speedup.png", "bandwidth.png"):
        assert (tmp_path / name).stat().st_size > 0 and name in said
    for told in ("cores: torch", "geometric mean", "Worst rows:", "Targets: "):
        assert told in said
    assert "geometric mean" in (tmp_path / "results.md").read_text(encoding="utf-8")


def test_geometric_mean_wins_losses_and_the_worst_row():
    rows = pd.DataFrame({name: [""] * 5 for name in table.COLUMNS})
    rows["pass"], rows["provider"], rows["case"] = "forward", "triton_stn", list("abcde")
    rows["status"] = ["ok", "ok", "ok", "wrong", "skipped"]
    rows["speedup_vs_eager"] = [8.0, 0.5, 2.0, None, None]
    (line,) = table.summary(rows).to_dict("records")
    assert line["geometric mean"] == pytest.approx(2.0)  # (8 · 0.5 · 2)^(1/3)
    assert (line["rows"], line["wins"], line["losses"], line["not ok"]) == (4, 2, 1, 1)
    assert line["worst"] == 0.5 and line["worst row"].startswith("b ")


def test_the_screen_names_what_is_wrong_and_what_is_behind_in_120_columns():
    rows = pd.DataFrame({name: [""] * 4 for name in table.COLUMNS})
    rows["pass"], rows["provider"] = "forward_backward", "triton_stn"
    rows["dtype"], rows["layout"], rows["theta_kind"] = "float32", "contiguous", "identity"
    rows["case"], rows["device"] = ["a", "b", "c", "d"], "cpu"
    rows["status"], rows["note"] = ["ok", "ok", "wrong", "skipped"], "of a reason " * 20
    rows["speedup_vs_eager"] = [4.0, 0.125, None, None]
    rows["ms_p50"] = rows["call_ms"] = rows["max_abs_error"] = 1.0
    eager = rows.assign(provider="eager", status="ok", ms_p50=[4.0, 0.125, 1.0, 1.0])
    said = screen.of(pd.concat([rows, eager], ignore_index=True))
    assert "wrong  c, identity, forward + backward: of a reason" in said
    assert "0.12x  b, identity, forward + backward" in said
    assert "Targets: 0 of 1 met, 1 not measured.\n  not met  forward + backward" in said
    assert max(map(len, said.splitlines())) <= 120


def test_pictures_need_nothing_but_rows_that_are_ok(tmp_path):
    assert plots.draw(pd.DataFrame(columns=table.COLUMNS), tmp_path) == []


# --- on a GPU ------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pass_name", PASSES)
def test_every_provider_runs_on_the_gpu(pass_name, dtype):
    machine = runner.this_machine()
    task = Task(TINY, pass_name, "rotation_30", dtype)
    for row in run_task(task, registry.PROVIDERS, machine, Forwards()):
        if row["provider"] in ("triton_stn", "eager", "compiled"):
            assert row["status"] == "ok", row["note"]
        assert row["status"] != "error", row["note"]
        if row["status"] == "ok":
            assert row["ms_p50"] > 0 and row["peak_memory_mib"] >= 0
