"""What each opcode of PTX computes, one C++ formula each, as simt.cc takes them."""

from __future__ import annotations

import re
from typing import NamedTuple

C_TYPES = {
    "f16": "_Float16", "bf16": "bfloat", "f32": "float", "ftz.f32": "flushed", "f64": "double",
    "pred": "uint64_t", "s128": "__int128", "u128": "unsigned __int128",
}  # fmt: skip
C_TYPES |= {f"s{n}": f"int{n}_t" for n in (8, 16, 32, 64)}
C_TYPES |= {f"{kind}{n}": f"uint{n}_t" for kind in "ub" for n in (8, 16, 32, 64)}

# What is no formula of registers, in the order of simt.cc's enum; formulas are numbered after it.
# From BARRIER on, threads wait for one another.
ACTIONS = [
    "LOAD", "STORE", "ATOMIC", "BRANCH", "EXIT", "PACK", "UNPACK", "NOTHING", "BARRIER",
    "WARP_BARRIER", "SHUFFLE_XOR", "SHUFFLE_DOWN", "SHUFFLE_UP", "SHUFFLE_INDEX", "SUM_OF_WARP",
    "LOAD_MATRIX", "LOAD_MATRIX_TRANSPOSED", "STORE_MATRIX_TRANSPOSED", "STORE_MATRIX",
]  # fmt: skip


class Meaning(NamedTuple):
    """A C++ formula of an opcode's operands: x, y, z of type ``source``; a, b, c raw."""

    source: str
    result: str
    formula: str


def _semantics() -> dict[str, Meaning]:
    """What each opcode computes, by its name without .rn, .ftz standing before the last type."""
    table: dict[str, Meaning] = {}

    def define(name: str, types: str, formula: str, result: str = "") -> None:
        for t in types.split():
            filled = formula.replace("BITS", re.sub(r"\D", "", t)).replace("TYPE", C_TYPES[t])
            table[f"{name}.{t}"] = Meaning(t, result or t, filled)

    signed, unsigned, untyped = "s16 s32 s64 ", "u16 u32 u64 ", "b16 b32 b64 "
    integers, single, floats = signed + unsigned, "f32 ftz.f32 ", "f16 bf16 f32 ftz.f32 f64 "

    # Arithmetic. Signed integers wrap (-fwrapv).
    for name, sign in (("add", "+"), ("sub", "-"), ("mul", "*")):
        define(name, floats, f"x {sign} y")
        define(name if sign != "*" else "mul.lo", integers, f"x {sign} y")
    define("mad.lo", integers, "x * y + z")
    for kind, bits in ((k, n) for k in "su" for n in (16, 32, 64)):
        t, wide = f"{kind}{bits}", f"{kind}{2 * bits}"
        product = f"({C_TYPES[wide]})x * ({C_TYPES[wide]})y"
        define("mul.hi", t, f"({product}) >> BITS")
        if bits < 64:
            define("mul.wide", t, product, wide)
            define("mad.wide", t, f"{product} + as<{C_TYPES[wide]}>(c)", wide)
    define("fma", "f16 bf16", "float(fma(double(x), double(y), double(z)))")
    define("fma", single, "fmaf(x, y, z)")
    define("fma", "f64", "fma(x, y, z)")
    define("div", integers, "quotient(x, y)")
    define("div", single + "f64", "x / y")
    for name in ("div.full", "div.approx"):
        define(name, single, "full_division(x, y)")
    define("rem", integers, "remainder_of(x, y)")
    for name, word, sign in (("max", "larger", ">"), ("min", "smaller", "<")):
        define(name, integers, f"x {sign} y ? x : y")
        define(name, "f64", f"{word}<double>(x, y)")
        define(name, "f16 bf16 " + single, f"{word}<float>(x, y)")
        define(f"{name}.NaN", "f16 bf16 " + single, f"nan_or<float>(x, y, {word}<float>(x, y))")
    define("abs", signed, "x < 0 ? -x : x")
    define("abs", floats, "std::fabs((double)x)")
    for packed in ("abs.f16x2", "abs.bf16x2"):
        table[packed] = Meaning("b32", "b32", "x & 0x7fff7fffu")
    define("neg", signed + floats, "-x")
    define("copysign", "f32 f64", "copysign(y, x)")

    # Functions: the host's, correctly rounded or within an ulp where the hardware approximates.
    for name, formula in {
        "sqrt": "sqrtf(x)", "rcp": "1.0f / x", "rsqrt": "1.0f / sqrtf(x)", "ex2": "exp2f(x)",
        "lg2": "log2f(x)", "sin": "sinf(x)", "cos": "cosf(x)", "tanh": "tanhf(x)",
    }.items():  # fmt: skip
        define(f"{name}.approx", single, formula)
        if name in ("sqrt", "rcp"):
            define(name, single, formula)
    define("sqrt", "f64", "sqrt(x)")
    define("rcp", "f64", "1.0 / x")
    # Of the upper half of the operand, to 20 bits; Newton's steps follow. NVIDIA's own is "gross".
    table["rcp.approx.ftz.f64"] = Meaning("b64", "b64", "gross_reciprocal(x)")

    # Bits and moves. LLVM writes true as -1, so a predicate keeps its lowest bit alone.
    for name, sign in (("and", "&"), ("or", "|"), ("xor", "^")):
        define(name, untyped, f"x {sign} y")
        define(name, "pred", f"(x {sign} y) & 1")
    define("not", untyped, "~x")
    define("not", "pred", "~x & 1")
    define("shl", untyped, "uint32_t(b) < BITS ? x << uint32_t(b) : 0")
    define("shr", unsigned + untyped, "uint32_t(b) < BITS ? x >> uint32_t(b) : 0")
    define("shr", signed, "x >> std::min<uint32_t>(b, BITS - 1)")
    for kind, amount in (("wrap", "(z & 31)"), ("clamp", "std::min<uint32_t>(z, 32)")):
        define(f"shf.l.{kind}", "b32", f"((uint64_t(y) << 32 | x) << {amount}) >> 32")
        define(f"shf.r.{kind}", "b32", f"(uint64_t(y) << 32 | x) >> {amount}")
    define("bfe", "u32 s32 u64 s64", "bit_field(x, b, c)")
    define("prmt", "b32", "permute(x, y, z)")
    define("popc", "b32 b64", "__builtin_popcountll(x)", "u32")
    define("clz", "b32 b64", "x ? __builtin_clzll(x) - 64 + BITS : BITS", "u32")
    define("mov", integers + untyped + "f32 f64", "x")
    define("mov", "pred", "x & 1")
    define("selp", integers + untyped + "f32 f64", "c & 1 ? x : y")
    for way in ("to.global", "global", "to.shared", "shared"):
        define(f"cvta.{way}", "u64 u32", "x")

    # Comparisons; a u at the end of one of floats says that a NaN makes it true.
    orders = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
    for name, sign in orders.items():
        kinds = integers + (untyped if name in ("eq", "ne") else "")
        define(f"setp.{name}", kinds, f"uint64_t(x {sign} y)", "pred")
        ordered = f"x {sign} y" if name != "ne" else "(x < y || x > y)"
        define(f"setp.{name}", floats, f"uint64_t({ordered})", "pred")
        define(f"setp.{name}u", floats, f"uint64_t({ordered} || x != x || y != y)", "pred")
    for name, sign in {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}.items():
        define(f"setp.{name}", unsigned, f"uint64_t(x {sign} y)", "pred")
    define("setp.num", floats, "uint64_t(x == x && y == y)", "pred")
    define("setp.nan", floats, "uint64_t(x != x || y != y)", "pred")

    # Conversions: cvt.<rounding>.<to>.<from>.
    whole = "s8 u8 " + integers
    rounding = {"rni": "rint", "rmi": "floor", "rpi": "ceil", "rzi": "trunc"}
    for to in whole.split():
        define(f"cvt.{to}", whole, "x", to)
        for name, function in rounding.items():
            for kind in floats.split():
                zero = "false" if kind == "f64" or "64" in to else "true"
                formula = f"saturate<{C_TYPES[to]}>({function}((double)x), {zero})"
                define(f"cvt.{name}.{to}", kind, formula, to)
    for to in floats.split():
        if to != "ftz.f32":
            value = "float" if to == "bf16" else C_TYPES[to]
            define(f"cvt.{to}", whole + floats, f"({value})x", to)
    for name, function in rounding.items():
        define(f"cvt.{name}.f32", single, f"{function}f(x)", "f32")
        define(f"cvt.{name}.f64", "f64", f"{function}(x)", "f64")
    for to in ("bf16", "f16"):
        packed = f"raw(({C_TYPES[to]})x) << 16 | raw(({C_TYPES[to]})y)"
        define(f"cvt.{to}x2", single, packed, "b32")
    return table


SEMANTICS = _semantics()
ATOMICS = {
    f"{name}.{kind}": SEMANTICS[f"{name}.{kind}"]
    for names, kinds in {
        "add": "s32 u32 s64 u64 f16 bf16 f32 f64",
        "min max": "s32 u32 s64 u64",
        "and or xor": "b32 b64",
    }.items()
    for name in names.split()
    for kind in kinds.split()
}
for _kind in ("b32", "b64"):
    ATOMICS[f"exch.{_kind}"] = Meaning(_kind, _kind, "y")
    ATOMICS[f"cas.{_kind}"] = Meaning(_kind, _kind, "x == y ? z : x")
ACTION_NUMBERS = {name: i for i, name in enumerate([*ACTIONS, *SEMANTICS])}
ATOMIC_NUMBERS = {name: i for i, name in enumerate(ATOMICS)}


def fill_in(template: str, numbers: str) -> str:
    """simt.cc with numbers.h and this module's tables in place of its marks."""
    cases = []
    for i, (name, (source, result, formula)) in enumerate(SEMANTICS.items()):
        types = f"{C_TYPES[source]}, {C_TYPES[result]}"
        cases.append(f"COMPUTE({i}, {types}, ({formula}))  // {name}")
    atomics = []
    for name, (source, result, formula) in ATOMICS.items():
        kind = C_TYPES[source]
        reads = f"auto x = as<{kind}>(a), y = as<{kind}>(b), z = as<{kind}>(c);"
        value = f"raw<{C_TYPES[result]}>({formula})"
        atomics.append(f"case {ATOMIC_NUMBERS[name]}: {{ {reads} return {value}; }}")
    for mark, text in {
        "NUMBERS": numbers,
        "ACTIONS": ", ".join(ACTIONS),
        "OPCODES": "\n".join(cases),
        "ATOMICS": "\n".join(atomics),
        "COMPUTATIONS": ", ".join(f"compute{i}" for i in range(len(cases))),
    }.items():
        template = template.replace(f"/*{mark}*/", text)
    return template
