"""What ``python -m bench tune --plan`` tries: the questions that a constant of configs decides.

Everything said to be expected is *predicted*, from what the compiler makes; nothing was measured.
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
    """Of every "case,case/pass,pass/θ,θ": each combination."""
    parts = [task.split("/") for task in tasks]
    combined = [itertools.product(*(part.split(",") for part in of)) for of in parts]
    return tuple("/".join((*names, how)) for of in combined for names in of)


# In the order in which they are worth a GPU's time. What the compiler makes of each variant, and
# the floors under its time, stand in the command's own tables. Not here are MOST_CANDIDATES, which
# is compiled into the kernels, and what decides in no case of the suite: MIN_CHANNELS_A_SPLIT (few
# channels in few programs) and GATHER_PASS_OF_MANY (K maps, many channels).
PLAN = (
    Experiment(
        "registers",
        "More programs a multiprocessor, or more registers to each?",
        (*product(FEW_REGISTERS=(64, 96, 128)), *product(GATHER_REGISTERS=(168, 255))),
        _filters(
            "large_512/backward/identity,rotation_30", "digits_60,features_56/backward/rotation_30"
        ),
        "With few channels 80 leave 24 warps an SM, 96 leave 20, 128 leave 16, 64 leave 32 and may "
        "spill; with many, 128 leave 16, 168 leave 12 and 255 leave 8. Issue and bytes are nearly "
        "alike: what latency costs decides.",
    ),
    Experiment(
        "footprint",
        "What does a load cost whose warp lies rotated: 4 x 8 pixels, 2 x 16 or 1 x 32?",
        tuple(dict(PATCH_H=h, PATCH_W=w) for h, w in ((8, 16), (4, 32), (16, 16))),
        _filters(
            "large_512/forward,backward/identity,rotation_30,rotation_90",
            "features_56/forward,backward/rotation_30",
        ),
        "The same at identity; where L1 binds 1 x 32 loses when rotated, most at 90°. Two pixels a "
        "thread (16 x 16) hold twice the registers. The model of L1 is assumed: this tests it.",
    ),
    Experiment(
        "gather_pass",
        "Eight channels a pass share the weights of a window: under which cap, if at all?",
        product(GATHER_PASS=(8,), GATHER_REGISTERS=(168, 255)),
        _filters("features_56,features_28/backward/identity,rotation_30"),
        "Fewer instructions a channel, but under 168 they spill, and 255 leave 8 warps an SM.",
    ),
    Experiment(
        "passes",
        "Fewer channels a pass, or more of them forward: loads under way, against registers?",
        (dict(GATHER_PASS=2), *product(FORWARD_PASS=(2, 8))),
        _filters("features_56,features_28/forward,backward/rotation_30"),
        "Backward 2 a pass take more instructions and fewer registers: if latency decides, 2 "
        "should win where memory binds. Forward is bound by memory at 2, 4 and 8.",
    ),
    Experiment(
        "backward_tiles",
        "Sums kept over 32 tiles save instructions; does the tail of the last wave cost more?",
        product(BACKWARD_TILES=(4, 8, 16, 32)),
        _filters(
            "large_512/backward,backward_theta/rotation_30",
            "photo_4096,birds_448_k4/backward/rotation_30",
            "large_512_projective/backward/tilt_0.2",
        ),
        "A program spends some 400 instructions beside its tiles, a tile takes 100 to 420: 16 "
        "tiles cost a few percent more, and halve what idles in the last wave.",
    ),
    Experiment(
        "warps",
        "A program of 2, 4 or 8 warps, a pixel a thread: what its barriers cost, and its tail?",
        (dict(WARPS=2, PATCH_H=8), dict(WARPS=8, PATCH_H=32)),
        _filters(
            "digits_60,large_512/forward,backward/rotation_30", "features_56/backward/rotation_30"
        ),
        "By instructions and warps an SM all are nearly alike; tiles of 8 rows fit 56 and 60 rows "
        "better. What barriers and the tail cost is in no floor.",
    ),
    Experiment(
        "splits",
        "How many programs must a small canvas have, where more of them repeat more set-up?",
        product(ENOUGH_PROGRAMS=(256, 512, 2048, 4096)),
        _filters(
            "tutorial_28,svhn_64/backward/rotation_30", "features_28/forward,backward/rotation_30"
        ),
        "By instructions fewer are better. But 256 fill a part of one wave, and the floors know no "
        "idle multiprocessor: forward should lose.",
    ),
    Experiment(
        "forward_tiles",
        "How many tiles should share the set-up of a forward with few channels, and sectors?",
        product(FORWARD_TILES=(1, 2, 4)),
        _filters(
            "digits_60,svhn_128/forward/rotation_30", "large_512/forward/rotation_30,zoom_in_2"
        ),
        "A program spends some 90 instructions beside its tiles, a tile takes 65 (C = 1) or 98 "
        "(C = 3), and of 8 tiles 1.2 numbers a pixel come from L2, of 2 tiles 1.55: fewer tiles "
        "should lose wherever they leave more than one wave.",
    ),
    Experiment(
        "channels_last",
        "How many pixels a program of a channels-last gather, and which cap?",
        (*product(RUN_PATCH_H=(2, 8)), dict(GATHER_RUN_REGISTERS=128)),
        (
            *_filters(
                "features_56/forward,backward/rotation_30", how="float32/channels_last/zeros/False"
            ),
            "features_56/backward/rotation_30/bfloat16/channels_last/zeros/False",
        ),
        "Threads hold four or eight channels of each candidate, so 128 may spill, for 16 warps an "
        "SM. 32 pixels a program are two a thread; 8 leave half of the threads idle.",
    ),
    Experiment(
        "volumes",
        "How many channels of a volume a pass: loads under way and weights shared?",
        (*product(VOLUME_FORWARD_PASS=(2, 4)), *product(GATHER_PASS=(2, 8))),
        _filters("volume_64/forward,backward/rotation_30"),
        "By bytes, the only floor that is modelled, all are alike; more channels a pass hold more "
        "registers, and 3 do not divide 32 channels.",
    ),
)
