"""Instructions that each thread does by itself, in registers: a table by opcode.

A modifier that changes the meaning (.sat, .ftz, .approx) or that leaves a rounding open (add.f32
without .rn may be fused) is part of the opcode, so what is not in the table is not run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from support.cuda.ptx.values import dtype_of


@dataclass(frozen=True, slots=True)
class Operation:
    """compute: of the sources, each of its type; what it returns is written as `result`."""

    compute: Callable[..., np.ndarray]
    result: str
    sources: tuple[str, ...]


_SIGNED, _UNSIGNED = ("s16", "s32", "s64"), ("u16", "u32", "u64")
_INTEGERS = _SIGNED + _UNSIGNED
_WORDS = ("b16", "b32", "b64")
_COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def _double(type_: str) -> str:
    return f"{type_[0]}{2 * int(type_[1:])}"


def _wide(type_: str) -> Callable[..., np.ndarray]:
    to = dtype_of(_double(type_))
    return lambda a, b, c=None: a.astype(to) * b.astype(to) + (to.type(0) if c is None else c)


def _high(type_: str) -> Callable[..., np.ndarray]:
    bits = int(type_[1:])
    return lambda a, b: (_wide(type_)(a, b) >> bits).astype(dtype_of(type_))


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Towards zero. The manual leaves division by zero open: it gives zero here."""
    divisor = np.where(b == 0, b.dtype.type(1), b)
    floor = a // divisor
    upwards = ((a < 0) != (divisor < 0)) & (floor * divisor != a)
    return np.where(b == 0, b.dtype.type(0), floor + upwards.astype(a.dtype))


def _remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a - _quotient(a, b) * b


def _shift_left(a: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.where(count < 8 * a.itemsize, a << _within(a, count), a.dtype.type(0))


def _shift_right(a: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Beyond the width: copies of the sign, or zeros."""
    beyond = a.dtype.type(0) if a.dtype.kind == "u" else a >> a.dtype.type(8 * a.itemsize - 1)
    return np.where(count < 8 * a.itemsize, a >> _within(a, count), beyond)


def _select(a: np.ndarray, b: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    return np.where(chosen, a, b)


def _within(a: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.minimum(count, 8 * a.itemsize - 1).astype(a.dtype)


def _choose_bytes(low: np.ndarray, high: np.ndarray, selectors: np.ndarray) -> np.ndarray:
    """prmt: four bytes of eight; a selector above 7 repeats the byte's sign."""
    eight = high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)
    chosen = np.uint32(0)
    for i in range(4):
        selector = selectors >> np.uint32(4 * i) & np.uint32(15)
        place = (selector & np.uint32(7)).astype(np.uint64) * np.uint64(8)
        byte = (eight >> place & np.uint64(255)).astype(np.uint32)
        sign = np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0))
        chosen = chosen | np.where(selector & np.uint32(8), sign, byte) << np.uint32(8 * i)
    return chosen


def _any_of_three(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: np.ndarray) -> np.ndarray:
    """lop3: bit 4 a + 2 b + c of the table, for the bits of each place."""
    found = np.uint32(0)
    for i in range(8):
        if int(table) >> i & 1:
            found = found | (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return found


def _insert(field: np.ndarray, into: np.ndarray, at: np.ndarray, width: np.ndarray) -> np.ndarray:
    """bfi, whose position and width are bytes."""
    at, width = at & np.uint32(255), width & np.uint32(255)
    mask = _shift_left(_shift_left(np.uint32(1), width) - np.uint32(1), at)
    return into & ~mask | _shift_left(field, at) & mask


def _extract(a: np.ndarray, at: np.ndarray, width: np.ndarray) -> np.ndarray:
    """bfe.u32, whose position and width are bytes."""
    at, width = at & np.uint32(255), width & np.uint32(255)
    return _shift_right(a, at) & (_shift_left(np.uint32(1), width) - np.uint32(1))


def bytes_of(words: np.ndarray) -> np.ndarray:
    """(...) 32 bits -> (..., 4) int8, the lowest first"""
    return np.ascontiguousarray(words)[..., None].view(np.int8).reshape(*np.shape(words), 4)


def _four_products(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    products = bytes_of(a).astype(np.int32) * bytes_of(b).astype(np.int32)
    return products.sum(-1, dtype=np.int32) + c


def _to_integer(round_: Callable[[np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    """cvt of a float to s32: what does not fit is clamped, and a NaN is zero."""

    def convert(a: np.ndarray) -> np.ndarray:
        exact = np.where(np.isnan(a), 0.0, round_(a.astype(np.float64)))
        return np.clip(exact, -(2.0**31), 2.0**31 - 1).astype(np.int32)

    return convert


def _same(a: np.ndarray) -> np.ndarray:
    return a


def _integers(table: dict[str, Operation]) -> None:
    for t in _INTEGERS:
        for name, compute in (
            ("add", np.add),
            ("sub", np.subtract),
            ("mul.lo", np.multiply),
            ("div", _quotient),
            ("rem", _remainder),
            ("min", np.minimum),
            ("max", np.maximum),
        ):
            table[f"{name}.{t}"] = Operation(compute, t, (t, t))
        table[f"mad.lo.{t}"] = Operation(lambda a, b, c: a * b + c, t, (t, t, t))
        table[f"shr.{t}"] = Operation(_shift_right, t, (t, "u32"))
        if t[1:] != "64":
            wide = _double(t)
            table[f"mul.wide.{t}"] = Operation(_wide(t), wide, (t, t))
            table[f"mad.wide.{t}"] = Operation(_wide(t), wide, (t, t, wide))
            table[f"mul.hi.{t}"] = Operation(_high(t), t, (t, t))
    for t in _SIGNED:
        table[f"neg.{t}"] = Operation(np.negative, t, (t,))
        table[f"abs.{t}"] = Operation(np.abs, t, (t,))


def _bits(table: dict[str, Operation]) -> None:
    for t in (*_WORDS, "pred"):
        for name, compute in (
            ("and", np.bitwise_and),
            ("or", np.bitwise_or),
            ("xor", np.bitwise_xor),
        ):
            table[f"{name}.{t}"] = Operation(compute, t, (t, t))
        table[f"not.{t}"] = Operation(np.invert, t, (t,))
    for t in _WORDS:
        table[f"shl.{t}"] = Operation(_shift_left, t, (t, "u32"))
        table[f"shr.{t}"] = Operation(_shift_right, t, (t, "u32"))
    table["prmt.b32"] = Operation(_choose_bytes, "b32", ("b32", "b32", "b32"))
    table["lop3.b32"] = Operation(_any_of_three, "b32", ("b32", "b32", "b32", "b32"))
    table["bfi.b32"] = Operation(_insert, "b32", ("b32", "b32", "u32", "u32"))
    table["bfe.u32"] = Operation(_extract, "u32", ("u32", "u32", "u32"))
    table["dp4a.s32.s32"] = Operation(_four_products, "s32", ("b32", "b32", "s32"))


def _floats(table: dict[str, Operation]) -> None:
    for name, compute in (
        ("add", np.add),
        ("sub", np.subtract),
        ("mul", np.multiply),
        ("div", np.divide),
    ):
        table[f"{name}.rn.f32"] = Operation(compute, "f32", ("f32", "f32"))
    table["neg.f32"] = Operation(np.negative, "f32", ("f32",))
    table["abs.f32"] = Operation(np.abs, "f32", ("f32",))
    table["cvt.rni.s32.f32"] = Operation(_to_integer(np.rint), "s32", ("f32",))
    table["cvt.rzi.s32.f32"] = Operation(_to_integer(np.trunc), "s32", ("f32",))
    for t in ("s32", "u32"):
        table[f"cvt.rn.f32.{t}"] = Operation(lambda a: a.astype(np.float32), "f32", (t,))


def _choices_and_copies(table: dict[str, Operation]) -> None:
    for t in (*_INTEGERS, *_WORDS, "f32"):
        table[f"selp.{t}"] = Operation(_select, t, (t, t, "pred"))
        for name, compare in _COMPARISONS.items():
            if t not in _WORDS or name in ("eq", "ne"):
                table[f"setp.{name}.{t}"] = Operation(compare, "pred", (t, t))
    for name, compare in _COMPARISONS.items():
        table[f"setp.{name}u.f32"] = Operation(_or_unordered(compare), "pred", ("f32", "f32"))
    table["setp.ne.f32"] = Operation(
        lambda a, b: (a != b) & ~np.isnan(a) & ~np.isnan(b), "pred", ("f32", "f32")
    )
    for t in (*_INTEGERS, *_WORDS, "f32", "pred"):
        table[f"mov.{t}"] = Operation(_same, t, (t,))
    table["cvta.to.global.u64"] = Operation(_same, "u64", ("u64",))
    for source in ("s8", "u8", *_INTEGERS):
        for to in (*_INTEGERS, "s8", "u8"):
            if source != to:
                table[f"cvt.{to}.{source}"] = _conversion(to, source)


def _or_unordered(compare: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda a, b: compare(a, b) | np.isnan(a) | np.isnan(b)


def _conversion(to: str, source: str) -> Operation:
    return Operation(lambda a: a.astype(dtype_of(to)), to, (source,))


def _table() -> dict[str, Operation]:
    table: dict[str, Operation] = {}
    for fill in (_integers, _bits, _floats, _choices_and_copies):
        fill(table)
    return table


OPERATIONS = _table()
