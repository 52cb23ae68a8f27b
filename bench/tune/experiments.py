"""What ``python -m bench tune --plan`` tries: the questions that a constant of configs decides.

Everything said to be expected is *predicted*, by the compiler or from it; nothing was measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

Settings = dict[str, int]  # a value for each of some constants of kernels.configs


@dataclass(frozen=True)
class Experiment:
    """Variants of the present choice, and the tasks on which they are tried.

    A task takes part that one of ``filters`` selects. ``expected``: what is predicted, and why.
    """

    name: str
    question: str
    variants: tuple[Settings, ...]
    filters: tuple[str, ...]
    expected: str = ""


def product(**axes: Sequence[int]) -> tuple[Settings, ...]:
    """Every combination of the axes' values."""
    return tuple(dict(zip(axes, v, strict=True)) for v in itertools.product(*axes.values()))


_PLAIN = "float32/contiguous/zeros/False"


def _filters(*tasks: str, how: str = _PLAIN) -> tuple[str, ...]:
    return tuple(f"{task}/{how}" for task in tasks)


# In the order in which they are worth a short loan of a GPU. Numbers: triton 3.7.1, sm_90.
# MOST_CANDIDATES is not here: it is compiled into the kernels, no choice of a launch. Neither is
# MIN_CHANNELS_A_SPLIT: no case of the suite has so few channels in so few programs that it decides.
PLAN = (
    Experiment(
        "registers",
        "Three programs a multiprocessor without a spill, or more of them with less to each?",
        product(GATHER_REGISTERS=(96, 128, 255)),
        _filters(
            "large_512/backward/identity",
            "large_512/backward/rotation_30",
            "digits_60/backward/rotation_30",
            "features_56/backward/rotation_30",
        ),
        "168 leaves 12 warps an SM. 128 leaves 16 for at most 2% more instructions and no spill; "
        "96 leaves 20 for at most 4% more at few channels, 7% more and 8 bytes spilled at 64. By "
        "instructions 168, 128 and 255 are alike: if latency decides, 128 should win.",
    ),
    Experiment(
        "footprint",
        "What does a load cost whose warp lies rotated: 4 x 8 pixels, 2 x 16 or 1 x 32?",
        (
            dict(PATCH_H=8, PATCH_W=16),
            dict(PATCH_H=4, PATCH_W=32),
            dict(PATCH_H=16, PATCH_W=16),
        ),
        _filters(
            "large_512/forward/identity",
            "large_512/forward/rotation_30",
            "large_512/forward/rotation_90",
            "features_56/forward/rotation_30",
            "large_512/backward/identity",
            "large_512/backward/rotation_30",
            "large_512/backward/rotation_90",
            "features_56/backward/rotation_30",
        ),
        "The same at identity; 1 x 32 loses 34% to 37% forward at 30° and 64% backward at 90°, "
        "where L1 binds, 2 x 16 nothing. Two pixels a thread (16 x 16) lose 12% to 54% backward at "
        "30°, by instructions. The model of L1 is assumed: this is what tests it.",
    ),
    Experiment(
        "passes",
        "How many channels a pass: loads under way and weights shared, against registers?",
        (*product(GATHER_PASS=(2, 8)), *product(FORWARD_PASS=(2, 8))),
        _filters(
            "features_56/backward/rotation_30",
            "features_28/backward/rotation_30",
            "features_56/forward/rotation_30",
            "features_28/forward/rotation_30",
        ),
        "Backward 8 a pass takes 73 instructions a pixel and channel where 4 take 89, in the same "
        "registers but for 8 bytes spilled in one case (24 on triton 3.6.0): 0.81 to 0.83 of the "
        "time if issue binds. Forward is bound by memory at 2, 4 and 8.",
    ),
    Experiment(
        "gather_tiles",
        "Sums kept over 32 tiles save instructions; does the tail of the last wave cost more?",
        product(GATHER_TILES=(4, 8, 16)),
        _filters(
            "large_512/backward/identity",
            "large_512/backward/rotation_30",
            "photo_4096/backward/rotation_30",
        ),
        "32 tiles make 2.6 waves of large_512, so a seventh of three waves may idle; 16 make 5.2 "
        "for 1% more instructions at 30°, 8 make 10.3 for 6%, 4 make 20.7 for 15%. 16 should win "
        "there, and make no difference to photo_4096.",
    ),
    Experiment(
        "splits",
        "How many programs must a small canvas have, where more of them repeat more set-up?",
        product(ENOUGH_PROGRAMS=(256, 512, 2048, 4096)),
        _filters(
            "tutorial_28/backward/rotation_30",
            "svhn_64/backward/rotation_30",
            "features_28/forward/rotation_30",
            "features_28/backward/rotation_30",
        ),
        "By instructions fewer are better: 256 takes 0.79 of tutorial_28 and 0.87 of features_28 "
        "backward. But 256 fill 0.65 of one wave of gather and 0.16 of one of forward, and the "
        "floors know no idle multiprocessor: forward should lose.",
    ),
    Experiment(
        "forward_tiles",
        "How many tiles should share the set-up of a forward with few channels?",
        (*product(FORWARD_TILES_TO_2=(1, 2)), *product(FORWARD_TILES_TO_4=(1, 4))),
        _filters(
            "digits_60/forward/rotation_30",
            "svhn_128/forward/rotation_30",
            "large_512/forward/rotation_30",
            "large_512/forward/zoom_in_2",
        ),
        "C = 1: 72 instructions a pixel at 4 tiles, 90 at 2, 120 at 1. C = 3: 108 at 4, 124 at 2, "
        "157 at 1, which shows where issue binds and not memory: zooming in.",
    ),
    Experiment(
        "channels_last",
        "How many pixels a program, and which cap, where a gather holds 168 to 255 registers?",
        (*product(RUN_PATCH_H=(2, 8)), *product(GATHER_RUN_REGISTERS=(128, 168))),
        (
            *_filters(
                "features_56/forward/rotation_30",
                "features_56/backward/rotation_30",
                how="float32/channels_last/zeros/False",
            ),
            "features_56/backward/rotation_30/bfloat16/channels_last/zeros/False",
        ),
        "float32 takes 207 registers, 8 warps an SM; a cap of 168 leaves 12 and costs nothing, "
        "128 leaves 16 and spills 16 bytes. bfloat16 takes 168, and 128 spills nothing. 32 pixels "
        "a program spill 56 to 64 bytes, 8 pixels cost 58% to 68% more instructions.",
    ),
    Experiment(
        "rest",
        "How many tiles for a program of the scatter that mostly finds nothing to do?",
        product(REST_TILES=(4, 8, 16)),
        _filters("large_512_projective/backward/tilt_0.2"),
        "The gather before it is the same. 32 tiles are 1,024 programs, all of one wave; 4 are "
        "eight times as many, each a look at one θ.",
    ),
)
