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
    """Of every "case,case/pass,pass/θ,θ": each combination."""
    parts = [task.split("/") for task in tasks]
    combined = [itertools.product(*(part.split(",") for part in of)) for of in parts]
    return tuple("/".join((*names, how)) for of in combined for names in of)


# In the order in which they are worth a GPU's time. Numbers: triton 3.7.1, sm_90. Not here are
# MOST_CANDIDATES, which is compiled into the kernels, and what decides in no case of the suite:
# MIN_CHANNELS_A_SPLIT (few channels in few programs) and GATHER_PASS_OF_MANY (K maps, many
# channels).
PLAN = (
    Experiment(
        "registers",
        "Three programs a multiprocessor without a spill, or more of them with less to each?",
        product(GATHER_REGISTERS=(96, 128, 255)),
        _filters(
            "large_512/backward/identity,rotation_30", "digits_60,features_56/backward/rotation_30"
        ),
        "168 leaves 12 warps an SM where the kernel takes 159 registers (C = 3) or 162 (64 "
        "channels); of C = 1, which takes 127, it leaves 16 as 128 does. 128 leaves 16 everywhere "
        "for at most 1% more instructions (5% on triton 3.6.0, at C = 3) and no spill; 96 leaves "
        "20 for 5% more at C = 3 and 8% at 64 channels, with 32 and 88 bytes spilled (8 and 72 on "
        "3.6.0); 255 leaves 8 at 64 channels. By the floors 168, 128 and 255 are alike: if "
        "latency decides, 128 should win.",
    ),
    Experiment(
        "footprint",
        "What does a load cost whose warp lies rotated: 4 x 8 pixels, 2 x 16 or 1 x 32?",
        tuple(dict(PATCH_H=h, PATCH_W=w) for h, w in ((8, 16), (4, 32), (16, 16))),
        _filters(
            "large_512/forward,backward/identity,rotation_30,rotation_90",
            "features_56/forward,backward/rotation_30",
        ),
        "The same at identity; where L1 binds 1 x 32 loses 34% to 37% forward at 30°, 64% "
        "backward at 90° and 32% of features_56 backward, 2 x 16 5% there alone. Two pixels a "
        "thread (16 x 16) lose 8% and 47% backward at 30°, by instructions, and spill 32 and 144 "
        "bytes. The model of L1 is assumed: this is what tests it.",
    ),
    Experiment(
        "gather_pass",
        "Eight channels a pass share the weights of a window: under which cap, if at all?",
        product(GATHER_PASS=(8,), GATHER_REGISTERS=(168, 255)),
        _filters("features_56,features_28/backward/identity,rotation_30"),
        "Only at 30° with 256 channels does issue bind: 1.06 of the time under 168, which spills "
        "48 bytes, 0.93 under 255, which spills none (1.06 with 40 bytes and 0.92 on triton "
        "3.6.0). Else memory binds, with 24 bytes spilled under 168 at 64 channels: no "
        "difference, unless 8 warps an SM are too few, which is what every cap above 168 leaves.",
    ),
    Experiment(
        "passes",
        "Fewer channels a pass, or more of them forward: loads under way, against registers?",
        (dict(GATHER_PASS=2), *product(FORWARD_PASS=(2, 8))),
        _filters("features_56,features_28/forward,backward/rotation_30"),
        "Backward 2 a pass takes 1.11 of the time of features_28, by instructions; features_56 is "
        "bound by memory, and 1.03 of its instructions leave 16 warps an SM instead of 12: if "
        "latency decides, 2 should win there. Forward is bound by memory at 2, 4 and 8, which "
        "leave 64, 48 and 36 warps.",
    ),
    Experiment(
        "gather_tiles",
        "Sums kept over 32 tiles save instructions; does the tail of the last wave cost more?",
        product(GATHER_TILES=(4, 8, 16)),
        _filters("large_512/backward/identity,rotation_30", "photo_4096/backward/rotation_30"),
        "32 tiles make 2.6 waves of large_512, so a seventh of three waves may idle; 16 make 5.2 "
        "for 3% more instructions at 30°, 8 make 10.3 for 10%, 4 make 20.7 for 20%. 16 should win "
        "there, and lose by 3% on photo_4096, whose 32 make 10.3 waves.",
    ),
    Experiment(
        "warps",
        "A program of 2, 4 or 8 warps, a pixel a thread: what its barriers cost, and its tail?",
        (dict(WARPS=2, PATCH_H=8), dict(WARPS=8, PATCH_H=32)),
        _filters(
            "digits_60,large_512/forward,backward/rotation_30", "features_56/backward/rotation_30"
        ),
        "2 warps: no more instructions and as many warps an SM, and tiles of 8 rows fit 56 and 60 "
        "rows better: 0.86 of the time of digits_60 backward, 0.87 of the instructions of "
        "features_56, which memory binds. 8 warps take 1.00 to 1.25, and leave large_512 and "
        "features_56 backward 8 warps an SM, not 12. What barriers and the tail cost is in no "
        "floor.",
    ),
    Experiment(
        "splits",
        "How many programs must a small canvas have, where more of them repeat more set-up?",
        product(ENOUGH_PROGRAMS=(256, 512, 2048, 4096)),
        _filters(
            "tutorial_28,svhn_64/backward/rotation_30", "features_28/forward,backward/rotation_30"
        ),
        "By instructions fewer are better: 256 takes 0.79 of tutorial_28 and 0.87 of features_28 "
        "backward, 2048 takes 1.14 of svhn_64. But 256 fill 0.65 of one wave of gather and 0.16 "
        "of one of forward, and the floors know no idle multiprocessor: forward should lose.",
    ),
    Experiment(
        "forward_tiles",
        "How many tiles should share the set-up of a forward with few channels?",
        (*product(FORWARD_TILES_TO_2=(1, 2)), *product(FORWARD_TILES_TO_4=(1, 4))),
        _filters(
            "digits_60,svhn_128/forward/rotation_30", "large_512/forward/rotation_30,zoom_in_2"
        ),
        "C = 1: 72 instructions a pixel at 4 tiles, 90 at 2, 120 at 1. C = 3: 108 at 4, 124 at 2, "
        "157 at 1, which shows where issue binds and not memory: zooming in.",
    ),
    Experiment(
        "channels_last",
        "How many pixels a program, and which cap, where a gather holds 164 or 167 registers?",
        (*product(RUN_PATCH_H=(2, 8)), dict(GATHER_RUN_REGISTERS=128)),
        (
            *_filters(
                "features_56/forward,backward/rotation_30", how="float32/channels_last/zeros/False"
            ),
            "features_56/backward/rotation_30/bfloat16/channels_last/zeros/False",
        ),
        "float32 takes 164 registers, bfloat16 167: 12 warps an SM. 128 leaves 16 without a "
        "spill, for 4% fewer instructions in float32 and 1% more in bfloat16. 32 pixels a program "
        "leave 8 warps, for 1% more instructions in float32 and 13% fewer in bfloat16, which "
        "spills 56 bytes; 8 pixels cost 63% to 67% more.",
    ),
    Experiment(
        "scatter_tiles",
        "How many tiles for a program of the scatter, with few channels or mostly nothing to do?",
        product(SCATTER_TILES=(4, 8, 16)),
        _filters(
            "large_512/backward_theta/rotation_30",
            "birds_448_k4/backward/rotation_30",
            "large_512_projective/backward/tilt_0.2",
        ),
        "32 tiles are 0.6 of a wave where grad_θ alone is wanted, 16 are 1.3, 8 are 2.6: 16 may "
        "win by what idles. Of K maps they are 2.7 waves, of the homography's rest 1.1, whose "
        "programs each take a look at one θ. Of the floors only that of K maps is modelled: 8 "
        "tiles take 1.01 of the time, 4 take 1.03.",
    ),
    Experiment(
        "volumes",
        "How many channels of a volume a pass: loads under way and weights shared?",
        (*product(VOLUME_FORWARD_PASS=(2, 4)), *product(VOLUME_GATHER_PASS=(2, 8))),
        _filters("volume_64/forward,backward/rotation_30"),
        "By bytes, the only floor that is modelled, all are alike. Forward 2, 3 and 4 channels "
        "leave 48, 40 and 28 warps an SM, and 3 do not divide 32 channels; backward 2, 4 and 8 "
        "leave 24, 20 and 16.",
    ),
)
