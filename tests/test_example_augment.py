"""The augmented photograph, at toy size."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")

from examples import augment

pytestmark = pytest.mark.usefixtures("small_and_quick")


def test_copies_are_drawn_with_their_labels(tmp_path, capsys):
    out = tmp_path / "picture.png"
    assert augment.main(["--count", "2", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "2 copies in" in said and "of 6 boxes are in view" in said
    assert out.stat().st_size > 10_000


def test_there_must_be_a_copy(capsys):
    with pytest.raises(SystemExit):
        augment.parse_arguments(["--count", "0"])
    assert "--count must be at least 1, got 0" in capsys.readouterr().err
