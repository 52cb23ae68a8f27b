"""The flow example: what is hidden is found, the rest is right, and files are read or refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("tabulate")
Image = pytest.importorskip("PIL.Image")

from examples import warp_flow  # noqa: E402
from examples.warp_flow import error, moving_scene, occlusion  # noqa: E402
from triton_stn import flow_warp  # noqa: E402

pytestmark = pytest.mark.usefixtures("small_and_quick")


@pytest.fixture
def photo() -> torch.Tensor:
    across = torch.linspace(0, 1, 120)
    return torch.stack(
        [across.expand(90, 120), across.flip(0).expand(90, 120), across.expand(90, 120)]
    )[None]


def test_what_the_second_frame_hides_is_found_and_the_rest_is_fetched(photo):
    pair = moving_scene(photo, pan=(4.0, 2.0), step=(-8.0, 5.0))
    hidden = occlusion(pair.forward, pair.backward)
    warped = flow_warp(pair.second, pair.forward)
    assert error(warped, pair.first, ~hidden) < 1e-5
    assert error(warped, pair.first, hidden) > 0.1
    assert 0.02 < hidden.float().mean() < 0.2
    # what leaves the picture: 4 columns on the right and 2 rows below
    assert hidden[..., -4:].all() and hidden[..., -2:, :].all()
    assert not hidden[..., 4:20, 4:40].any()


def test_without_motion_nothing_is_hidden():
    still = torch.zeros(1, 2, 20, 30)
    assert not occlusion(still, still).any()


def test_the_command_prints_and_draws(tmp_path, capsys):
    out = tmp_path / "picture.png"
    assert warp_flow.main(["--size", "96", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    rows = dict(line.rsplit(maxsplit=1) for line in printed.splitlines() if "fetched" in line)
    rest, hidden = (float(rows[f"fetched back, {k}"]) for k in ("the rest", "what is hidden"))
    assert rest < 0.05 < hidden
    with Image.open(out) as picture:
        assert picture.width > 600


def test_frames_and_flow_of_one_s_own_are_read(photo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pair = moving_scene(photo)
    for name in ("first", "second"):
        pixels = (getattr(pair, name)[0].permute(1, 2, 0) * 255).round().to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(f"{name}.png")
    np.save("forward.npy", pair.forward[0].numpy())
    np.save("backward.npy", pair.backward[0].permute(1, 2, 0).numpy())
    frames = ["--frames", "first.png", "second.png"]
    assert warp_flow.main([*frames, "--flow", "forward.npy", "backward.npy"]) == 0
    np.save("backward.npy", np.zeros((2, 5, 5)))
    assert warp_flow.main([*frames, "--flow", "forward.npy", "backward.npy"]) == 1
    assert "'backward.npy' must be of 90x120 pixels" in capsys.readouterr().err
    assert warp_flow.main([*frames, "--flow", "forward.npy", "nowhere.npy"]) == 1
    with pytest.raises(SystemExit):
        warp_flow.main(frames)
