"""Rectified text: the spline that undoes the bend, and that it is learned."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")
Image = pytest.importorskip("PIL.Image")

from examples import rectify_text  # noqa: E402
from examples.rectify_text import HEIGHT, SPLINE, STRAIGHT, bent, judge, words  # noqa: E402

pytestmark = pytest.mark.usefixtures("small_and_quick")


def test_words_are_rendered_straight_and_no_two_alike():
    lines = words(8, seed=0)
    assert lines.images.shape == (8, 1, *STRAIGHT) and lines.images.max() > 0.9
    assert (lines.images.flatten(1).mean(1) > 0.03).all()
    assert len(lines.images.flatten(1).unique(dim=0)) == 8
    assert torch.equal(lines.images, words(8, seed=0).images)
    assert not torch.equal(lines.images, words(8, seed=1).images)


def test_the_spline_along_the_bent_line_straightens_it():
    """The bend is drawn from the generator in a known order: an arc, a slant, a shift, a size."""
    lines = words(16, seed=0)
    scene = bent(lines, lines, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    arc, slant, shift = 2 * torch.rand(3, 16, 1, 1, generator=generator) - 1
    size = 0.75 + 0.25 * torch.rand(16, 1, 1, generator=generator)
    x, y = SPLINE.identity().unbind(-1)
    middle = 0.45 * arc * (1 - 2 * x**2) + 0.2 * slant * x + 0.1 * shift
    there = middle + y * size * STRAIGHT[0] / HEIGHT
    theta = torch.stack((x.expand_as(there), there), -1).squeeze(1)
    transformer = rectify_text.rectifier()
    transformer.predict = lambda images: theta
    straightened, untouched = judge(transformer, scene), judge(rectify_text.rectifier(), scene)
    assert straightened.error < 8 < 40 < untouched.error  # sampled twice


def test_the_command_learns_and_draws(tmp_path, capsys):
    out = tmp_path / "picture.png"
    few = ["--lines", "64", "--steps", "150", "--batch", "16", "--lr", "2e-3"]
    assert rectify_text.main([*few, "--device", "cpu", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    before, after = (float(k.split()[-1]) for k in printed.splitlines() if "correlation" in k)
    assert after > before + 0.15
    with Image.open(out) as picture:
        assert picture.width > 300
