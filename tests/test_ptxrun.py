"""ptxrun: small Triton kernels, compiled and run as PTX, do what torch does."""

from __future__ import annotations

import math

import numpy as np
import ptxrun
import pytest
import torch
import triton
import triton.language as tl
from ptxrun.launches import SM_90
from triton.compiler import ASTSource

pytestmark = pytest.mark.compiled
POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def build(kernel, num_warps=4, **arguments):
    """(the compiled kernel, the arguments that its PTX takes); capitals that are no tensors are
    constants."""
    signature, constants, passed = {}, {}, []
    for index, name in enumerate(kernel.arg_names):
        value = arguments[name]
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
        elif name.isupper():
            signature[name], constants[index,] = "constexpr", value
            continue
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i64"
        passed.append(value)
    source = ASTSource(kernel, signature, constants)
    return triton.compile(source, target=SM_90, options=dict(num_warps=num_warps)), passed


def launch(kernel, grid, num_warps=4, **arguments):
    compiled, passed = build(kernel, num_warps, **arguments)
    return ptxrun.run(compiled, passed, grid)


@triton.jit
def fma_kernel(X, Y, OUT, length, factor, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offs < length
    x = tl.load(X + offs, inside, other=0.0)
    tl.store(OUT + offs, x * factor + tl.load(Y + offs, inside, other=0.0), inside)


@pytest.mark.parametrize("length", [1, 100, 256, 700])
def test_masked_loads_and_stores_stay_within_the_length(length: int):
    x, y, out = torch.randn(length), torch.randn(length), torch.full((length + 9,), 7.0)
    arguments = dict(X=x, Y=y, OUT=out, length=length, factor=1.7, BLOCK=256)
    launch(fma_kernel, (triton.cdiv(length, 256),), **arguments)
    expected = (x.double() * np.float32(1.7).item() + y.double()).float()  # one rounding
    assert torch.equal(out[:length], expected)
    assert (out[length:] == 7).all()


def test_an_access_beyond_the_storage_raises():
    x, y = torch.randn(256), torch.randn(256)
    arguments = dict(X=x, Y=y, OUT=torch.empty(250), length=256, factor=1.0, BLOCK=256)
    with pytest.raises(
        ptxrun.OutOfBounds, match=r"bytes from the end of pointer argument 2.*line \d+"
    ):
        launch(fma_kernel, (1,), **arguments)


def test_numpy_arrays_ptx_text_and_counts():
    x = torch.randn(256)
    arguments = dict(X=x, Y=x, OUT=x, length=256, factor=2.0, BLOCK=256)
    compiled, _ = build(fma_kernel, num_warps=2, **arguments)
    array, out = x.numpy().copy(), np.zeros(256, np.float32)
    once = ptxrun.run(compiled.asm["ptx"], [array, array, out, 256, 2.0], (1,))
    assert np.array_equal(out, array * np.float32(3))
    twice = ptxrun.run(compiled, [array, array, out, 256, 2.0], (2,))
    assert twice.total == 2 * once.total and once.diverged == 0
    stores = sum(n for opcode, n in once.by_opcode.items() if opcode.startswith("st.global"))
    assert stores == 8  # 256 floats in two warps, nothing being known of their alignment


@triton.jit
def row_sum_kernel(X, OUT, width, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        total += tl.load(X + tl.program_id(0) * width + offs, offs < width, other=0.0)
    tl.store(OUT + tl.program_id(0), tl.sum(total, 0))


@pytest.mark.parametrize("num_warps", [1, 4])
def test_a_loop_of_runtime_bound_and_a_sum_through_shared_memory(num_warps: int):
    x, out = torch.randn(5, 1000), torch.empty(5)
    launch(row_sum_kernel, (5,), num_warps, X=x, OUT=out, width=1000, BLOCK=256)
    torch.testing.assert_close(out, x.double().sum(1).float(), rtol=1e-5, atol=1e-4)


def test_a_program_that_takes_too_many_steps_raises():
    arguments = dict(X=torch.randn(100_000), OUT=torch.empty(1), width=100_000, BLOCK=256)
    compiled, passed = build(row_sum_kernel, **arguments)
    with pytest.raises(ptxrun.Endless):
        ptxrun.run(compiled, passed, (1,), max_steps=1000)


@triton.jit
def histogram_kernel(INDEX, COUNTS, SUMS, length, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    index = tl.load(INDEX + offs, offs < length, other=0)
    tl.atomic_add(COUNTS + index, 1, offs < length)
    tl.atomic_add(SUMS + index, 0.5, offs < length)


def test_atomics_add_up():
    index = torch.randint(0, 10, (1000,), dtype=torch.int32)
    counts, sums = torch.zeros(10, dtype=torch.int32), torch.zeros(10)
    arguments = dict(INDEX=index, COUNTS=counts, SUMS=sums, length=1000, BLOCK=256)
    launch(histogram_kernel, (4,), **arguments)
    expected = torch.bincount(index, minlength=10)
    assert torch.equal(counts.long(), expected) and torch.equal(sums, expected / 2)


@triton.jit
def copy_kernel(X, OUT, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(OUT + offs, tl.load(X + offs).to(OUT.dtype.element_ty))


EDGES = [0.0, -0.0, 1.0, 3e38, 65504.0, 65519.9, 65520.0, 1e-8, 6e-8, 1e-40, 257.0, 258.99]


@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("of", [torch.bfloat16, torch.float16, torch.float32])
def test_conversions_round_as_torch_does(of: torch.dtype, to: torch.dtype):
    x = torch.randn(256) * 10.0 ** torch.randint(-7, 5, (256,))
    x[: len(EDGES)] = torch.tensor(EDGES)
    x[-2:] = torch.tensor([math.inf, math.nan])
    x, out = x.to(of), torch.empty(256, dtype=to)
    launch(copy_kernel, (1,), X=x, OUT=out, BLOCK=256)
    torch.testing.assert_close(out, x.to(to), rtol=0, atol=0, equal_nan=True)


@triton.jit
def elementwise_kernel(X, WHERE, LARGER, WHOLE, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    x = tl.load(X + offs)
    tl.store(WHERE + offs, tl.where(x > 0, x, -1.0))
    tl.store(LARGER + offs, tl.maximum(x, 0.5))
    tl.store(WHOLE + offs, tl.floor(x).to(tl.int32))


def test_where_maximum_and_casts_meet_nan_and_infinity():
    x = torch.randn(128) * 100
    x[:5] = torch.tensor([math.nan, math.inf, -math.inf, 3e9, -3e9])
    where, larger, whole = torch.empty(128), torch.empty(128), torch.empty(128, dtype=torch.int32)
    launch(elementwise_kernel, (1,), X=x, WHERE=where, LARGER=larger, WHOLE=whole, BLOCK=128)
    assert torch.equal(where, torch.where(x > 0, x, -1.0))
    assert torch.equal(larger, torch.fmax(x, torch.tensor(0.5)))  # the NaN loses
    assert whole[:5].tolist() == [0, 2**31 - 1, -(2**31), 2**31 - 1, -(2**31)]
    assert torch.equal(whole[5:], x[5:].floor().int())


@triton.jit
def integer_kernel(X, Y, OUT, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    x, y = tl.load(X + offs), tl.load(Y + offs)
    tl.store(OUT + offs, x // y)  # of Triton: truncated, as C's
    tl.store(OUT + BLOCK + offs, x % y)
    tl.store(OUT + 2 * BLOCK + offs, (x >> 3) ^ (y << 2) & ~x | y)
    tl.store(OUT + 3 * BLOCK + offs, tl.minimum(x, y) * tl.abs(x) - tl.maximum(x, -y))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_integers_wrap_and_divide_as_in_c(dtype: type):
    random = np.random.default_rng(0)
    limits = np.iinfo(dtype)
    x, y = (random.integers(limits.min, limits.max, 256, dtype) >> k for k in (0, limits.bits // 2))
    y[y == 0] = 3
    out = np.zeros(4 * 256, dtype)
    tensors = [torch.from_numpy(a) for a in (x, y, out)]
    launch(integer_kernel, (1,), **dict(zip(("X", "Y", "OUT"), tensors, strict=True)), BLOCK=256)
    remainder = np.fmod(x, y)
    bits = (x >> 3) ^ (y << 2) & ~x | y
    with np.errstate(over="ignore"):
        last = np.minimum(x, y) * np.abs(x) - np.maximum(x, -y)
    expected = np.stack([(x - remainder) // y, remainder, bits, last])
    assert np.array_equal(out.reshape(4, 256), expected)


@triton.jit
def magnitude_kernel(X, OUT, ASM: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    x = tl.load(X + offs)
    tl.store(OUT + offs, tl.inline_asm_elementwise(ASM, "=r,r", [x], x.dtype, True, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_taken_two_at_a_time(dtype):
    asm = f"abs.{'f16' if dtype == torch.float16 else 'bf16'}x2 $0, $1;"
    x = torch.randn(256).to(dtype)
    x[:4] = torch.tensor([-0.0, -math.inf, -1e-7, 3.0])
    out = torch.empty_like(x)
    counts = launch(magnitude_kernel, (1,), X=x, OUT=out, ASM=asm, BLOCK=256)
    assert torch.equal(out.view(torch.int16), x.view(torch.int16) & 0x7FFF)
    assert asm.split()[0] in counts.by_opcode


@triton.jit
def far_kernel(X, OUT, stride, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK).to(tl.int64) * stride
    tl.store(OUT + tl.arange(0, BLOCK), tl.load(X + offs))


def test_offsets_beyond_int32():
    one = torch.randn(1)
    x = one.expand(128)  # every offset but the first lies gigabytes outside
    with pytest.raises(ptxrun.OutOfBounds, match="thread 1 "):
        arguments = dict(X=x, OUT=torch.empty(128), stride=2**31 + 1, BLOCK=128)
        launch(far_kernel, (1,), **arguments)
    y, out = torch.randn(128, 3), torch.empty(128)
    launch(far_kernel, (1,), X=y, OUT=out, stride=3, BLOCK=128)
    assert torch.equal(out, y[:, 0])


# Thread n counts the steps of Collatz's sequence from n + 1 down to 1.
DIVERGENT = """
.visible .entry collatz(.param .u64 collatz_param_0)
.reqntid 64
{
    .reg .pred %p<4>;
    .reg .b32 %r<10>;
    .reg .b64 %rd<4>;
    mov.u32 %r1, %tid.x;
    ld.param.u64 %rd1, [collatz_param_0];
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2;
    add.s32 %r2, %r1, 1;
    mov.b32 %r3, 0;
$LOOP:
    setp.eq.s32 %p1, %r2, 1;
    @%p1 bra $DONE;
    and.b32 %r4, %r2, 1;
    setp.eq.s32 %p2, %r4, 0;
    add.s32 %r3, %r3, 1;
    @%p2 bra $EVEN;
    mad.lo.s32 %r2, %r2, 3, 1;
    bra.uni $LOOP;
$EVEN:
    shr.u32 %r2, %r2, 1;
    bra.uni $LOOP;
$DONE:
    BARRIER
    st.global.b32 [%rd3], %r3;
    ret;
}
"""


def test_threads_that_part_meet_again():
    out = torch.zeros(64, dtype=torch.int32)
    counts = ptxrun.run(DIVERGENT.replace("BARRIER", "bar.sync 0;"), [out], (1,))

    def steps(n: int) -> int:
        return 0 if n == 1 else 1 + steps(n // 2 if n % 2 == 0 else 3 * n + 1)

    assert out.tolist() == [steps(n + 1) for n in range(64)]
    assert counts.diverged > 0
    assert counts.by_opcode["bar.sync"] == counts.by_opcode["st.global.b32"] == 2  # once a warp


MEETINGS = [
    "bar.sync 0",
    "shfl.sync.bfly.b32 %r9, %r1, 1, 31, -1",
    "redux.sync.add.s32 %r9, %r1, -1",
]


@pytest.mark.parametrize("meeting", MEETINGS)
def test_a_barrier_or_shuffle_that_some_threads_miss_raises(meeting: str):
    way_out = f"setp.lt.u32 %p3, %r1, 40; @%p3 bra $OUT; {meeting}; $OUT: ret;"
    with pytest.raises(ptxrun.Divergence, match=meeting.split()[0]):
        ptxrun.run(DIVERGENT.replace("BARRIER", way_out), [np.zeros(64)], (1,))


def test_a_warp_sums_what_its_lanes_have():
    out = torch.zeros(64, dtype=torch.int32)
    sums = "redux.sync.add.s32 %r3, %r1, -1;"
    ptxrun.run(DIVERGENT.replace("BARRIER", sums), [out], (1,))
    assert out.tolist() == [sum(range(32))] * 32 + [sum(range(32, 64))] * 32


def test_a_jump_by_index_is_one_instruction_a_warp():
    jump = """and.b32 %r5, %r1, 3;
        $TABLE: .branchtargets $A, $B,
            $A, $B;
        brx.idx %r5, $TABLE;
        $A: mov.b32 %r3, 7; bra.uni $END;
        $B: mov.b32 %r3, 9;
        $END:"""
    out = torch.zeros(64, dtype=torch.int32)
    counts = ptxrun.run(DIVERGENT.replace("BARRIER", jump), [out], (1,))
    assert out.tolist() == [7, 9] * 32
    assert counts.by_opcode["brx.idx"] == 2


@pytest.mark.parametrize("statement", ["wgmma.fence.sync.aligned", "sad.s32 %r1, %r2, %r3, %r4"])
def test_an_unknown_opcode_is_named(statement: str):
    with pytest.raises(ptxrun.Unsupported, match=statement.split()[0]):
        ptxrun.run(DIVERGENT.replace("BARRIER", statement + ";"), [np.zeros(64)], (1,))
