"""The text of a PTX module, as instructions with operands."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


class Fault(AssertionError):
    """What a kernel must not do."""


class Unknown(Exception):
    """What this interpreter does not know: no word about the kernel."""


@dataclass(frozen=True, slots=True)
class Register:
    name: str


@dataclass(frozen=True, slots=True)
class Immediate:
    """A number by its bits, in two's complement of 64."""

    bits: int


@dataclass(frozen=True, slots=True)
class Symbol:
    """A label, a parameter, or something in shared memory."""

    name: str


@dataclass(frozen=True, slots=True)
class Vector:
    items: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Address:
    base: Operand
    offset: int


Operand = Register | Immediate | Symbol | Vector | Address


@dataclass(frozen=True, slots=True)
class Guard:
    """A thread takes part where the predicate is `wanted`."""

    predicate: Register
    wanted: bool


@dataclass(frozen=True, slots=True)
class Instruction:
    """text: as it was written. opcode: with all its modifiers, such as "mad.lo.s32"."""

    text: str
    opcode: str
    operands: tuple[Operand, ...]
    guard: Guard | None


@dataclass(slots=True)
class Kernel:
    """parameters, registers: names and types. shared: names and offsets; labels: places in the
    instructions.
    """

    name: str
    parameters: dict[str, str]
    registers: dict[str, str] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)(.*?)^\{(.*?)^\}", re.DOTALL | re.MULTILINE)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_PARAMETER = re.compile(r"\.param\s+\.([usbf](?:32|64))(?:\s+\.ptr\s+\.align\s+\d+)?\s+([\w$]+)")
_LABEL = re.compile(r"([\w$]+):\s*")
_STATEMENT = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
_SHARED = re.compile(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]")
# What a launch asks for, behind all else.
_EXTERN = re.compile(r"\.extern\s+\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[\]")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.DOTALL)
# Assembly in a source may have a scope of its own; nothing in two of them has one name.
_SCOPES = "{} \t\n"
_IN_BRACKETS = re.compile(r"([%\w$.]+)\s*(?:\+\s*(-?\w+))?")


def parse(text: str) -> Kernel:
    """The one kernel of a module."""
    text = _COMMENT.sub("", text)
    entries = _ENTRY.findall(text)
    if len(entries) != 1:
        raise Unknown(f"{len(entries)} kernels in a module, not one")
    ((name, parameters, _, body),) = entries
    kernel = Kernel(name, _parameters(parameters))
    for statement in body.split(";"):
        _read_statement(kernel, statement.strip())
    for align, name in _EXTERN.findall(text):
        kernel.shared_bytes = -(-kernel.shared_bytes // int(align)) * int(align)
        kernel.shared[name] = kernel.shared_bytes
    return kernel


def _parameters(text: str) -> dict[str, str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    found = [_PARAMETER.fullmatch(part) for part in parts]
    for part, match in zip(parts, found, strict=True):
        if match is None:
            raise Unknown(f"unknown parameter: {part}")
    return {match[2]: match[1] for match in found if match}


def _read_statement(kernel: Kernel, statement: str) -> None:
    statement = statement.lstrip(_SCOPES)
    while label := _LABEL.match(statement):
        kernel.labels[label[1]] = len(kernel.instructions)
        statement = statement[label.end() :].lstrip(_SCOPES)
    if found := _REGISTERS.fullmatch(statement):
        _declare_registers(kernel, *found.groups())
    elif found := _SHARED.fullmatch(statement):
        align, name, size = int(found[1]), found[2], int(found[3])
        kernel.shared[name] = -(-kernel.shared_bytes // align) * align
        kernel.shared_bytes = kernel.shared[name] + size
    elif found := _STATEMENT.fullmatch(statement):
        negated, predicate, opcode, operands = found.groups()
        guard = Guard(Register(predicate), not negated) if predicate else None
        parsed = tuple(_operand(part) for part in _split(operands))
        kernel.instructions.append(Instruction(statement, opcode, parsed, guard))
    elif statement and not statement.startswith(".pragma"):
        raise Unknown(f"unknown statement: {statement}")


def _declare_registers(kernel: Kernel, type_: str, names: str) -> None:
    for name in names.split(","):
        series = re.fullmatch(r"(%\w+)<(\d+)>", name.strip())
        numbered = [f"{series[1]}{i}" for i in range(int(series[2]))] if series else [name.strip()]
        kernel.registers.update(dict.fromkeys(numbered, type_))


def _split(operands: str) -> list[str]:
    """At the commas that are in no brackets, and where a second destination begins."""
    parts = re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,|{\[])+", operands)
    return [part.strip() for part in parts if part.strip()]


def _operand(text: str) -> Operand:
    if text.startswith("{"):
        return Vector(tuple(_operand(part) for part in _split(text[1:-1])))
    if text.startswith("["):
        found = _IN_BRACKETS.fullmatch(text[1:-1].strip())
        if found is None:
            raise Unknown(f"unknown address: {text}")
        return Address(_operand(found[1]), int(found[2] or "0", 0))
    if text.startswith("%") or text == "_":
        return Register(text)
    if found := re.fullmatch(r"0([fFdD])([0-9a-fA-F]+)", text):
        return Immediate(int(found[2], 16))
    if found := re.fullmatch(r"(-?(?:0[xX][0-9a-fA-F]+|\d+))U?", text):
        return Immediate(int(found[1], 0) & (1 << 64) - 1)
    if re.fullmatch(r"[A-Za-z_$][\w$]*", text):
        return Symbol(text)
    raise Unknown(f"unknown operand: {text}")
