"""``python -m examples``: what there is, what it shows, and about how long it takes."""

from __future__ import annotations

from importlib import import_module

from tabulate import tabulate

# On two CPU cores that do nothing else, with MNIST's 10,000 digits.
TIMES = {
    "mnist": "a minute",
    "train": "minutes",
    "table": "hours",
    "colocalise": "two minutes",
    "rectify_text": "a minute",
    "register": "seconds",
    "augment": "seconds",
    "warp_flow": "seconds",
    "align_photo": "a minute",
}


def main() -> None:
    rows = [
        (name, import_module(f"examples.{name}").__doc__.partition("\n")[0], time)
        for name, time in TIMES.items()
    ]
    print(tabulate(rows, ("example", "shows", "takes"), "simple"))
    print(
        "\npython -m examples.NAME [--data-dir MNIST'S FILES]; --help has each command's options."
    )


if __name__ == "__main__":
    main()
