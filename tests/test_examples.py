"""``python -m examples`` lists them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from examples import __main__ as listing


def test_every_command_is_listed_in_120_columns(capsys):
    folder = Path(listing.__file__).parent
    names = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}
    commands = {name for name in names if hasattr(import_module(f"examples.{name}"), "main")}
    listing.main()
    said = capsys.readouterr().out
    assert commands == set(listing.TIMES)
    assert all(f"\n{name} " in said for name in commands)
    assert max(map(len, said.splitlines())) <= 120
