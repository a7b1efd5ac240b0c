"""Instructions that read and write memory, by the pattern of their opcodes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from support.cuda.ptx.copies import Copies
from support.cuda.ptx.memory import Global
from support.cuda.ptx.parsing import (
    Address,
    Fault,
    Immediate,
    Instruction,
    Operand,
    Symbol,
    Unknown,
    Vector,
)
from support.cuda.ptx.shared import Shared
from support.cuda.ptx.values import Values, dtype_of
from support.cuda.ptx.warps import need_all_lanes

# Of the hints, those about caches change no value.
_ACCESS = re.compile(
    r"(ld|st)\.(global|shared)(?P<constant>\.nc)?(?:\.L[12]::\w+)*(?:\.v([24]))?\.([usbf]\d+)"
)
# Sixteen bytes past the first cache, or four through it.
_COPY = re.compile(r"cp\.async\.c(g|a)\.shared\.global(?:\.L2::\w+)?")
_COPIED = {"g": 16, "a": 4}
_PARAMETER = re.compile(r"ld\.param\.([usbf]\d+)")


@dataclass(frozen=True, slots=True)
class Memory:
    """parameters: the bits of each by its name. early: the threads before which kernels ahead in
    the stream may not have ended.
    """

    everywhere: Global
    of_blocks: Shared
    copies: Copies
    parameters: dict[str, int]
    early: np.ndarray

    def need_previous(self, active: np.ndarray, what: str) -> None:
        """Only what no kernel ahead writes may be read early: what is copied asynchronously."""
        if (self.early & active).any():
            raise Fault(f"{what} before the kernels ahead have ended")


def access(opcode: str) -> Callable[[Values, Memory, Instruction], None] | None:
    """What carries out `opcode` on values and memory, or None."""
    if found := _PARAMETER.fullmatch(opcode):
        type_ = found[1]
        return lambda values, memory, one: _load_parameter(values, memory, one, type_)
    if opcode in _ORDERS:
        return _ORDERS[opcode]
    if found := _COPY.fullmatch(opcode):
        n_bytes = _COPIED[found[1]]
        return lambda values, memory, one: _copy(values, memory, one, n_bytes)
    found = _ACCESS.fullmatch(opcode)
    if found is None:
        return None
    kind, space, _, count, type_ = found.groups()
    constant, words = bool(found["constant"]), int(count or 1)
    if kind == "ld":
        return lambda values, memory, one: _load(values, memory, one, space, type_, words, constant)
    return lambda values, memory, one: _store(values, memory, one, space, type_, words)


def _load_parameter(values: Values, memory: Memory, one: Instruction, type_: str) -> None:
    register, address = one.operands
    assert isinstance(address, Address)
    assert isinstance(address.base, Symbol)
    if address.offset or address.base.name not in memory.parameters:
        raise Unknown("no such parameter")
    bits = np.array(memory.parameters[address.base.name], np.uint64)
    word = dtype_of(f"u{type_[1:]}")
    values.write(register, bits.astype(word).view(dtype_of(type_)), type_)


def _load(
    values: Values,
    memory: Memory,
    one: Instruction,
    space: str,
    type_: str,
    count: int,
    constant: bool,
) -> None:
    registers, address = one.operands
    where = values.addresses(address), values.active, dtype_of(type_), count
    if space == "global":
        memory.need_previous(values.active, "memory is read")
        found = memory.everywhere.load(*where, constant)
    else:
        found = memory.of_blocks.load(*where)
    for register, word in zip(_items(registers, count), found.T, strict=True):
        values.write(register, word, type_)


def _store(
    values: Values, memory: Memory, one: Instruction, space: str, type_: str, count: int
) -> None:
    address, registers = one.operands
    if space == "global":
        memory.need_previous(values.active, "memory is written")
    words = [values.read(each, type_) for each in _items(registers, count)]
    stored = np.stack([np.broadcast_to(word, (values.threads,)) for word in words], 1)
    to = memory.everywhere if space == "global" else memory.of_blocks
    to.store(values.addresses(address), values.active, stored)


def _copy(values: Values, memory: Memory, one: Instruction, n_bytes: int) -> None:
    to, source, size = one.operands
    if size != Immediate(n_bytes):
        raise Unknown("a copy of another size")
    words = memory.everywhere.load(
        values.addresses(source), values.active, dtype_of("u32"), n_bytes // 4, constant=True
    )
    memory.copies.ask(values.addresses(to), values.active, words)


def _end_batch(values: Values, memory: Memory, one: Instruction) -> None:
    memory.copies.end_batch(values.active)


def _wait_for_batches(values: Values, memory: Memory, one: Instruction) -> None:
    (may_lack,) = one.operands
    assert isinstance(may_lack, Immediate)
    memory.copies.wait(values.active, may_lack.bits)


def _warps_meet(values: Values, memory: Memory, one: Instruction) -> None:
    need_all_lanes(values, one.operands[0])
    memory.of_blocks.warps_meet(values.by_warp(values.active)[:, 0])


def _after_previous(values: Values, memory: Memory, one: Instruction) -> None:
    memory.early[values.active] = False


def _let_next_start(values: Values, memory: Memory, one: Instruction) -> None:
    memory.need_previous(values.active, "the next kernel may start")


_ORDERS = {
    "cp.async.commit_group": _end_batch,
    "cp.async.wait_group": _wait_for_batches,
    "bar.warp.sync": _warps_meet,
    "griddepcontrol.wait": _after_previous,
    "griddepcontrol.launch_dependents": _let_next_start,
}


def _items(operand: Operand, count: int) -> tuple[Operand, ...]:
    items = operand.items if isinstance(operand, Vector) else (operand,)
    if len(items) != count:
        raise Unknown(f"{len(items)} registers for {count} words")
    return items
