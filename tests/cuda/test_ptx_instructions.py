"""Each instruction of the interpreter against the manual's words in plain Python, one by one."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings, nvidia-cuda-nvrtc")

from support.cuda.ptx.elementwise import OPERATIONS
from support.cuda.ptx.parsing import Fault, Unknown
from support.cuda.ptx.snippets import compute, launch, place

THREADS = 256


def single(value: float) -> float:
    """Rounded once to float32: exact sums, products and quotients fit no wider float better."""
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


def wrapped(value: int, type_: str) -> int:
    bits = int(type_[1:])
    value &= (1 << bits) - 1
    return value - (1 << bits) if type_[0] == "s" and value >> bits - 1 else value


def towards_zero(a: int, b: int) -> int:
    return 0 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def divided(a: float, b: float) -> float:
    if b:
        return a / b
    return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1, b)


def shifted_right(a: int, count: int) -> int:
    return a >> min(count, 64)


def whole(round_):
    def convert(a: float) -> int:
        if math.isnan(a):
            return 0
        return round_(min(max(a, -(2.0**31)), 2.0**31 - 1))

    return convert


def permuted(low: int, high: int, selectors: int) -> int:
    eight, chosen = low | high << 32, 0
    for i in range(4):
        selector = selectors >> 4 * i & 15
        byte = eight >> 8 * (selector & 7) & 255
        if selector & 8:
            byte = 255 if byte & 128 else 0
        chosen |= byte << 8 * i
    return chosen


def inserted(field: int, into: int, at: int, width: int) -> int:
    mask = (1 << (width & 255)) - 1 << (at & 255)
    return into & ~mask | field << (at & 255) & mask


def products(a: int, b: int, c: int) -> int:
    lanes = [struct.unpack("4b", struct.pack("<I", word)) for word in (a, b)]
    return c + sum(x * y for x, y in zip(*lanes, strict=True))


PYTHON = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "mul.wide": lambda a, b: a * b,
    "mad.lo": lambda a, b, c: a * b + c,
    "mad.wide": lambda a, b, c: a * b + c,
    "div": towards_zero,
    "rem": lambda a, b: a - towards_zero(a, b) * b,
    "min": min,
    "max": max,
    "neg": lambda a: -a,
    "abs": abs,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "not.pred": lambda a: not a,
    "not": lambda a: ~a,
    "shl": lambda a, count: a << min(count, 64),
    "shr": shifted_right,
    "prmt": permuted,
    "bfi": inserted,
    "bfe": lambda a, at, width: a >> (at & 255) & (1 << (width & 255)) - 1,
    "dp4a": products,
    "mov": lambda a: a,
    "cvta": lambda a: a,
    "cvt": lambda a: a,
    "selp": lambda a, b, p: a if p else b,
    "add.rn": lambda a, b: a + b,
    "sub.rn": lambda a, b: a - b,
    "mul.rn": lambda a, b: a * b,
    "div.rn": divided,
    "cvt.rn": float,
    "cvt.rni": whole(round),
    "cvt.rzi": whole(math.trunc),
}
COMPARISONS = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


def in_python(opcode: str):
    """The meaning of an opcode without its types; mul.hi and unordered comparisons by hand."""
    parts = opcode.split(".")
    if parts[0] == "setp":
        compare = parts[1][:2]
        unordered = parts[1].endswith("u") and len(parts[1]) == 3
        return lambda a, b: (
            unordered if math.isnan(a) or math.isnan(b) else COMPARISONS[compare](a, b)
        )
    if opcode.startswith("mul.hi"):
        return lambda a, b: a * b >> int(parts[2][1:])
    found = PYTHON.get(".".join(parts[:2])) or PYTHON.get(parts[0])
    assert found, opcode
    return found


def generated(type_: str, seed: int) -> np.ndarray:
    """Any bits, and such as are special; small ones often, as they count shifts."""
    rng = np.random.default_rng(seed)
    if type_ == "pred":
        return rng.integers(0, 2, THREADS).astype(bool)
    bits = int(type_[1:])
    words = rng.integers(0, 1 << bits, THREADS, np.uint64, endpoint=False) if bits < 64 else None
    words = rng.integers(0, 2**64 - 1, THREADS, np.uint64) if words is None else words
    words[::3] &= np.uint64(63)
    edges = [0, 1, (1 << bits) - 1, 1 << bits - 1, (1 << bits - 1) - 1]
    words[rng.integers(0, THREADS, 40)] = np.array(edges * 8, np.uint64)
    if type_ == "f32":
        words[1::4] = rng.normal(0, 2.0**16, len(words[1::4])).astype(np.float32).view(np.uint32)
        words[rng.integers(0, THREADS, 8)] = [0x7F800000, 0xFF800000, 0x7FC00000, 0x3F000000] * 2
    return words.astype(f"u{bits // 8}")


def numbers(values: np.ndarray, type_: str) -> list[Any]:
    if type_ == "pred":
        return values.tolist()
    if type_ == "f32":
        return [float(v) for v in values.view(np.float32)]
    return [wrapped(int(v), type_) for v in values]


def expected(opcode: str, result: str, columns: list[list[Any]]) -> list[Any]:
    meaning = in_python(opcode)
    found = [meaning(*values) for values in zip(*columns, strict=True)]
    if result == "f32":
        return [single(value) for value in found]
    return [bool(v) if result == "pred" else wrapped(v, result) for v in found]


@pytest.mark.parametrize("opcode", sorted(set(OPERATIONS) - {"lop3.b32"}))
def test_an_instruction_does_what_the_manual_says(opcode):
    operation = OPERATIONS[opcode]
    sources = [(t, generated(t, seed)) for seed, t in enumerate(operation.sources)]
    if opcode == "prmt.b32":
        sources[2] = ("b32", generated("u32", 9) * np.uint32(2654435761))
    result = operation.result
    found = numbers(compute(opcode, result, *sources), "u32" if result == "pred" else result)
    wanted = expected(opcode, result, [numbers(values, t) for t, values in sources])
    for i, (have, want) in enumerate(zip(found, wanted, strict=True)):
        same = have == want or (math.isnan(have) and math.isnan(want))
        assert same, f"thread {i}: {[numbers(v, t)[i] for t, v in sources]}"


@pytest.mark.parametrize("table", [0x80, 0xFE, 0x96, 0xF8, 0x1B])
def test_any_function_of_three_bits(table):
    a, b, c = (generated("b32", seed) for seed in range(3))
    found = compute("lop3.b32", "b32", ("b32", a), ("b32", b), ("b32", c), ("b32", table))
    places = [np.unpackbits(word.view(np.uint8)).astype(int) for word in (a, b, c)]
    bits = table >> (4 * places[0] + 2 * places[1] + places[2]) & 1
    np.testing.assert_array_equal(np.unpackbits(found.view(np.uint8)), bits)


@pytest.mark.parametrize(
    "text",
    ["add.f32 %f1, %f1, %f2", "add.rn.ftz.f32 %f1, %f1, %f2", "ex2.approx.f32 %f1, %f1"],
)
def test_what_is_not_in_the_table_is_named(text):
    with pytest.raises(Unknown, match=f"unknown instruction: {text}"):
        launch(f"{text};")


def test_a_register_that_was_never_written_is_not_read():
    with pytest.raises(Fault, match=r"%r7 is read before it is written: add.s32"):
        launch("add.s32 %r1, %r7, 1;")


def test_words_are_packed_and_taken_apart():
    words = generated("b64", 0)
    found = words.copy()
    text = place("%rd20", "%rd0", 8) + place("%rd21", "%rd1", 8)
    text += """ld.global.u64 %rd5, [%rd20]; mov.b64 {%r5, %r6}, %rd5;
        mov.b32 {%rs1, %rs2}, %r5; mov.b32 %r5, {%rs2, %rs1};
        mov.b64 %rd6, {%r6, %r5}; st.global.u64 [%rd21], %rd6;"""
    launch(text, words, found, threads=THREADS)
    halves = words.view(np.uint16).reshape(-1, 4)
    swapped = np.ascontiguousarray(halves[:, [2, 3, 1, 0]])
    np.testing.assert_array_equal(found, swapped.view(np.uint64)[:, 0])


@pytest.mark.parametrize(
    ("mode", "by", "limit", "source"),
    [
        ("bfly", 5, 31, lambda lane: lane ^ 5),
        ("idx", 7, 31, lambda lane: 7),
        ("up", 3, 0, lambda lane: lane - 3 if lane >= 3 else lane),
        ("down", 4, 31, lambda lane: lane + 4 if lane < 28 else lane),
        # Segments of eight lanes.
        ("down", 2, 0x181F, lambda lane: lane + 2 if lane % 8 < 6 else lane),
        ("up", 2, 0x1800, lambda lane: lane - 2 if lane % 8 >= 2 else lane),
        ("idx", 3, 0x181F, lambda lane: lane // 8 * 8 + 3),
    ],
)
def test_lanes_take_the_words_of_others(mode, by, limit, source):
    values, inside = generated("b32", 0)[:64].copy(), np.zeros(64, np.uint32)
    text = place("%rd20", "%rd0", 4) + place("%rd21", "%rd1", 4)
    text += f"""ld.global.u32 %r5, [%rd20];
        shfl.sync.{mode}.b32 %r6|%p1, %r5, {by}, {limit}, -1; st.global.u32 [%rd20], %r6;
        selp.u32 %r7, 1, 0, %p1; st.global.u32 [%rd21], %r7;"""
    before = values.copy()
    launch(text, values, inside, threads=64)
    wanted = [before[i // 32 * 32 + source(i % 32)] for i in range(64)]
    np.testing.assert_array_equal(values, wanted)
    stayed = [mode in ("up", "down") and source(i % 32) == i % 32 for i in range(64)]
    np.testing.assert_array_equal(inside, ~np.array(stayed))


@pytest.mark.parametrize(
    ("operation", "reduce"),
    [("max.u32", max), ("max.s32", max), ("min.u32", min), ("min.s32", min), ("add.s32", sum)],
)
def test_all_lanes_get_what_a_warp_has_together(operation, reduce):
    values = generated("u32", 0)[:64].copy()
    type_ = operation[-3:]
    wanted = [wrapped(reduce(numbers(values[i : i + 32], type_)), type_) for i in (0, 32)]
    text = place("%rd20", "%rd0", 4) + "ld.global.u32 %r5, [%rd20];"
    text += f"redux.sync.{operation} %r6, %r5, -1; st.global.u32 [%rd20], %r6;"
    launch(text, values, threads=64)
    assert numbers(values, type_) == [wanted[0]] * 32 + [wanted[1]] * 32


@pytest.mark.parametrize(
    "text",
    [
        "shfl.sync.bfly.b32 %r6, %r0, 1, 31, -1",
        "redux.sync.max.u32 %r6, %r0, -1",
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r1,%r2,%r3,%r4}, "
        "{%r0,%r0,%r0,%r0}, {%r0,%r0}, {%r0,%r0,%r0,%r0}",
    ],
)
def test_what_lanes_do_together_none_may_miss(text):
    launch(f"{text};")
    with pytest.raises(Fault, match="only some lanes of warp 1"):
        launch(f"setp.ne.s32 %p1, %r0, 40; @!%p1 bra $L; {text}; $L:", threads=64)


def test_a_warp_operation_of_named_lanes_only_is_refused():
    with pytest.raises(Fault, match="of some lanes only"):
        launch("redux.sync.max.u32 %r6, %r0, 65535;")
