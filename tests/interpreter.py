"""Triton's interpreter, quicker for the tests; what it computes stays.

At every call of a helper it prepares `triton.language` anew, which takes half of its time, though
what a launch has prepared lasts until the launch ends.
"""

from __future__ import annotations

from functools import cache

import triton.language as tl
from triton.runtime import interpreter


def hasten() -> None:
    prepare = interpreter._patch_lang
    launch: dict = {}  # of the one that runs: its scope, and the modules that it has prepared

    @cache
    def used(function):
        return {module for module in (tl, tl.core) if module in function.__globals__.values()}

    def prepare_what_is_new(function):
        if not launch:
            scope = prepare(function)
            launch.update(scope=scope, prepared=used(function))
            restore = scope.restore
            scope.restore = lambda: (launch.clear(), restore())
        elif not used(function) <= launch["prepared"]:
            launch["prepared"] = launch["prepared"] | used(function)
            launch["scope"]._changes += prepare(function)._changes
        return launch["scope"]

    interpreter._patch_lang = prepare_what_is_new

    number_type = interpreter._get_np_dtype
    types: dict = {}

    def quick_number_type(kind):
        name = kind.scalar.name
        if name not in types:
            types[name] = number_type(kind)
        return types[name]

    interpreter._get_np_dtype = quick_number_type
