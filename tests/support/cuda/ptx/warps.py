"""Instructions that the lanes of a warp do together, and those that pack registers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from support.cuda.ptx.elementwise import bytes_of
from support.cuda.ptx.parsing import Fault, Instruction, Operand, Vector
from support.cuda.ptx.values import LANES, Values

_ALL = 0xFFFFFFFF
_MMA = "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32"
_REDUCTIONS = {
    "redux.sync.max.u32": np.maximum,
    "redux.sync.max.s32": np.maximum,
    "redux.sync.min.u32": np.minimum,
    "redux.sync.min.s32": np.minimum,
    "redux.sync.add.u32": np.add,
    "redux.sync.add.s32": np.add,
}
# What a shuffle's lane and operand give as the lane to read from.
_SHUFFLES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "bfly": lambda lane, by: lane ^ by,
    "idx": lambda lane, by: by,
    "up": lambda lane, by: lane - by,
    "down": lambda lane, by: lane + by,
}


def together(opcode: str) -> Callable[[Values, Instruction], None] | None:
    """What carries out `opcode` on values, or None."""
    for mode in _SHUFFLES:
        if opcode == f"shfl.sync.{mode}.b32":
            return lambda values, one: _shuffle(values, one, mode)
    if opcode in _REDUCTIONS:
        return lambda values, one: _reduce(values, one, opcode)
    if opcode == _MMA:
        return multiply_matrices
    if opcode in ("mov.b32", "mov.b64"):
        return lambda values, one: _pack(values, one, int(opcode[-2:]))
    return None


def _shuffle(values: Values, one: Instruction, mode: str) -> None:
    """A lane beyond its segment keeps its own word, and the predicate says so."""
    *results, source, by, limits, members = one.operands
    need_all_lanes(values, members)
    lane = np.arange(LANES)
    words = values.by_warp(values.read(source, "b32"))
    limit = values.by_warp(values.read(limits, "u32")).astype(np.int64)
    segment = limit >> 8 & 31
    most = lane & segment | limit & 31 & ~segment
    least = lane & segment
    step = values.by_warp(values.read(by, "u32")).astype(np.int64) & 31
    if mode == "idx":
        step = least | step & ~segment
    wanted = _SHUFFLES[mode](lane, step)
    # "up" counts down to its limit, which is the lowest lane; the others up to the highest.
    inside = wanted >= most if mode == "up" else wanted <= most
    found = np.take_along_axis(words, np.where(inside, wanted, lane), 1)
    values.write(results[0], found.reshape(-1), "b32")
    if len(results) > 1:
        values.write(results[1], np.broadcast_to(inside, words.shape).reshape(-1), "pred")


def _reduce(values: Values, one: Instruction, opcode: str) -> None:
    result, source, members = one.operands
    need_all_lanes(values, members)
    type_ = opcode[-3:]
    words = values.by_warp(values.read(source, type_))
    found = _REDUCTIONS[opcode].reduce(words, axis=1, dtype=words.dtype)
    values.write(result, found.repeat(LANES), type_)


def need_all_lanes(values: Values, members: Operand) -> None:
    """Here, and named as members."""
    values.need_whole_warps()
    if ((values.read(members, "u32") != _ALL) & values.active).any():
        raise Fault("of some lanes only")


def multiply_matrices(values: Values, one: Instruction) -> None:
    """sum (16 x 8) = a (16 x 32) times b (32 x 8) plus c, signed bytes.

    A lane is (r, t) = (lane / 4, lane % 4). Words of four bytes, lowest first:
      a[i]    row r + 8 (i % 2), columns 4 t + 16 (i / 2) and following
      b[i]    rows 4 t + 16 i and following, column r
      sum[i]  row r + 8 (i / 2), column 2 t + i % 2
    """
    values.need_whole_warps()
    sums, a, b, c = one.operands
    left = _fragments(values, a, "b32").reshape(-1, 8, 4, 2, 2)  # warp, r, t, i / 2, i % 2
    right = _fragments(values, b, "b32").reshape(-1, 8, 4, 2)  # warp, r, t, i
    # Bytes last; then rows together, and columns together.
    rows = bytes_of(left).transpose(0, 4, 1, 3, 2, 5).reshape(-1, 16, 32)
    columns = bytes_of(right).transpose(0, 3, 2, 4, 1).reshape(-1, 32, 8)
    # Exact in float64, whose products run faster than those of integers.
    products = (rows.astype(np.float64) @ columns.astype(np.float64)).astype(np.int32)
    lanes = products.reshape(-1, 2, 8, 4, 2).transpose(0, 2, 3, 1, 4).reshape(-1, 4)
    found = lanes + _fragments(values, c, "s32")
    assert isinstance(sums, Vector)
    for register, column in zip(sums.items, found.T, strict=True):
        values.write(register, column, "s32")


def _fragments(values: Values, operand: Operand, type_: str) -> np.ndarray:
    """(threads, registers)"""
    assert isinstance(operand, Vector)
    words = [values.read(each, type_) for each in operand.items]
    return np.stack([np.broadcast_to(word, (values.threads,)) for word in words], 1)


def _pack(values: Values, one: Instruction, bits: int) -> None:
    """mov of a word into the registers that are its parts, or of these into a word."""
    to, source = one.operands
    whole = f"b{bits}"
    if isinstance(to, Vector):
        part = bits // len(to.items)
        word = values.read(source, whole)
        for i, register in enumerate(to.items):
            shifted = word >> word.dtype.type(part * i)
            values.write(register, shifted.astype(f"u{part // 8}"), f"b{part}")
    elif isinstance(source, Vector):
        part = bits // len(source.items)
        words = [values.read(each, f"b{part}").astype(f"u{bits // 8}") for each in source.items]
        shifted = [word << word.dtype.type(part * i) for i, word in enumerate(words)]
        values.write(to, np.bitwise_or.reduce(np.broadcast_arrays(*shifted)), whole)
    else:
        values.write(to, values.read(source, whole), whole)
