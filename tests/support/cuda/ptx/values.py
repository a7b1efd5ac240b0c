"""Registers: an array for each, with a value for every thread."""

from __future__ import annotations

import numpy as np

from support.cuda.ptx.parsing import (
    Address,
    Fault,
    Immediate,
    Kernel,
    Operand,
    Register,
    Symbol,
    Unknown,
)

LANES = 32
_KINDS = {"u": "u", "s": "i", "b": "u", "f": "f"}
# What a register holds in threads that have not written it yet.
_POISON = 0xABCDABCDABCDABCD


def dtype_of(type_: str) -> np.dtype:
    """Of numpy, for a type of PTX such as "u32", "b64", "f32" or "pred"."""
    if type_ == "pred":
        return np.dtype(bool)
    return np.dtype(f"{_KINDS[type_[0]]}{int(type_[1:]) // 8}")


def _word(type_: str) -> np.dtype:
    """Of the bits of a type."""
    return dtype_of(type_ if type_ == "pred" else f"u{type_[1:]}")


class Values:
    """What the threads of some blocks hold. special: registers such as "%tid.x", of all threads.

    active: which threads take part in what is written; others keep their values.
    """

    def __init__(self, kernel: Kernel, special: dict[str, np.ndarray]) -> None:
        self.kernel, self.special = kernel, special
        self.threads = len(special["%tid.x"])
        self._registers: dict[str, np.ndarray] = {}
        types = set(kernel.registers.values())
        self._poison = {each: np.uint64(_POISON).astype(_word(each)) for each in types}
        self.activate(np.ones(self.threads, bool))

    def activate(self, active: np.ndarray) -> None:
        self.active, self.all_active = active, bool(active.all())

    def read(self, operand: Operand, type_: str) -> np.ndarray:
        """An operand's values as `type_`; one number for all threads where it is a constant."""
        if isinstance(operand, Register):
            raw = self._raw(operand.name)
            return raw.astype(_word(type_), copy=False).view(dtype_of(type_))
        if isinstance(operand, Immediate):
            word = np.array(operand.bits, np.uint64).astype(_word(type_))
            return word.view(dtype_of(type_))
        if isinstance(operand, Symbol) and operand.name in self.kernel.shared:
            return np.array(self.kernel.shared[operand.name], dtype_of(type_))
        raise Unknown(f"no value: {operand}")

    def write(self, register: Operand, values: np.ndarray, type_: str) -> None:
        """Into the active threads; registers that are wider than `type_` are extended."""
        assert isinstance(register, Register)
        if register.name == "_":
            return
        declared = self._declared(register.name)
        raw = values.astype(dtype_of(type_), copy=False)
        if raw.itemsize > _word(declared).itemsize:
            raise Unknown(f"{type_} does not fit {register.name}, which is {declared}")
        if type_[0] == "s":
            raw = raw.astype(dtype_of(f"s{declared[1:]}"))
        if type_ != "pred":
            raw = raw.view(f"u{raw.itemsize}")
        raw = raw.astype(_word(declared), copy=False)
        if not self.all_active:
            before = self._registers.get(register.name, self._poison[declared])
            raw = np.where(self.active, raw, before)
        elif raw.ndim == 0:
            raw = np.full(self.threads, raw)
        self._registers[register.name] = raw

    def addresses(self, operand: Operand) -> np.ndarray:
        """Of every thread, int64."""
        assert isinstance(operand, Address)
        base = operand.base
        if isinstance(base, Register):
            found = self._raw(base.name).astype(np.int64)
        else:
            found = self.read(base, "s64")
        return np.broadcast_to(found + operand.offset, (self.threads,))

    def by_warp(self, values: np.ndarray) -> np.ndarray:
        """(threads,) -> (warps, 32)"""
        return np.broadcast_to(values, (self.threads,)).reshape(-1, LANES)

    def need_whole_warps(self) -> None:
        """What lanes do together is not defined where some of them are elsewhere."""
        lanes = self.by_warp(self.active)
        some = lanes.any(1) & ~lanes.all(1)
        if some.any():
            raise Fault(f"only some lanes of warp {int(some.argmax())}")

    def _raw(self, name: str) -> np.ndarray:
        found = self._registers.get(name)
        if found is None:
            found = self.special.get(name)
        if found is None:
            self._declared(name)
            raise Fault(f"{name} is read before it is written")
        return found

    def _declared(self, name: str) -> str:
        if name not in self.kernel.registers:
            raise Unknown(f"no such register: {name}")
        return self.kernel.registers[name]
