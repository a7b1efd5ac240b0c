"""Instructions that read and write memory, by the pattern of their opcodes."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ptx.memory import Global
from ptx.parsing import Address, Instruction, Operand, Symbol, Unknown, Vector
from ptx.shared import Shared
from ptx.values import Values, dtype_of

# Of the hints, those about caches change no value.
_ACCESS = re.compile(
    r"(ld|st)\.(global|shared)(?P<constant>\.nc)?(?:\.L[12]::\w+)*(?:\.v([24]))?\.([usbf]\d+)"
)
_PARAMETER = re.compile(r"ld\.param\.([usbf]\d+)")


@dataclass(frozen=True, slots=True)
class Memory:
    """parameters: the bits of each by its name."""

    everywhere: Global
    of_blocks: Shared
    parameters: dict[str, int]


def access(opcode: str):
    """What carries out `opcode` on values and memory, or None."""
    if found := _PARAMETER.fullmatch(opcode):
        type_ = found[1]
        return lambda values, memory, one: _load_parameter(values, memory, one, type_)
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
        found = memory.everywhere.load(*where, constant)
    else:
        found = memory.of_blocks.load(*where)
    for register, word in zip(_items(registers, count), found.T, strict=True):
        values.write(register, word, type_)


def _store(
    values: Values, memory: Memory, one: Instruction, space: str, type_: str, count: int
) -> None:
    address, registers = one.operands
    words = [values.read(each, type_) for each in _items(registers, count)]
    stored = np.stack([np.broadcast_to(word, (values.threads,)) for word in words], 1)
    to = memory.everywhere if space == "global" else memory.of_blocks
    to.store(values.addresses(address), values.active, stored)


def _items(operand: Operand, count: int) -> tuple[Operand, ...]:
    items = operand.items if isinstance(operand, Vector) else (operand,)
    if len(items) != count:
        raise Unknown(f"{len(items)} registers for {count} words")
    return items
