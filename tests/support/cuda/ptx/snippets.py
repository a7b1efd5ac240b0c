"""Small kernels written by hand, for tests of the interpreter."""

from __future__ import annotations

import numpy as np

from support.cuda.ptx.machine import run
from support.cuda.ptx.memory import Global
from support.cuda.ptx.parsing import parse

# What every snippet starts with: its thread's number in %r0, and tensors in %rd0 to %rd4.
_FRAME = """
.version 9.5
.target sm_80
.address_size 64
.visible .entry snippet(
    .param .u64 p0, .param .u64 p1, .param .u64 p2, .param .u64 p3,
    .param .u64 p4
)
{
    .reg .pred %p<10>;
    .reg .b16 %rs<10>;
    .reg .b32 %r<40>;
    .reg .f32 %f<10>;
    .reg .b64 %rd<30>;
    .shared .align 16 .b8 room[1024];
    ld.param.u64 %rd0, [p0];
    ld.param.u64 %rd1, [p1];
    ld.param.u64 %rd2, [p2];
    ld.param.u64 %rd3, [p3];
    ld.param.u64 %rd4, [p4];
    mov.u32 %r0, %tid.x;
"""


def launch(
    body: str, *tensors: np.ndarray, threads: int = 32, blocks: int = 1, early: bool = False
) -> Global:
    """Run `body` with up to five tensors, which it changes; memory as it was left."""
    kernel = parse(f"{_FRAME}{body}\n    ret;\n}}\n")
    memory = Global([tensor.view(np.uint8).reshape(-1) for tensor in tensors])
    addresses = [memory.address(i) if i < len(tensors) else 0 for i in range(5)]
    arguments = [("u64", address) for address in addresses]
    run(kernel, memory, arguments, (blocks, 1, 1), threads, early)
    for i, tensor in enumerate(tensors):
        tensor.view(np.uint8).reshape(-1)[:] = memory.content(i)
    return memory


def place(to: str, tensor: str, size: int) -> str:
    """Text: the address of the thread's own `size` bytes of a tensor."""
    return f"mul.wide.u32 {to}, %r0, {size}; add.s64 {to}, {to}, {tensor};\n"


_PREFIXES = {"16": "%rs", "32": "%r", "64": "%rd"}


def compute(opcode: str, result: str, *sources: tuple[str, np.ndarray]) -> np.ndarray:
    """One instruction of as many threads as there are values. sources: types and values, of which
    an integer of Python is written into the instruction; predicates are bool.
    """
    text = ""
    operands: list[str] = []
    tensors: list[np.ndarray] = []
    threads = max(len(values) for _, values in sources if not isinstance(values, int))
    for i, (type_, values) in enumerate(sources):
        if isinstance(values, int):
            operands.append(str(values))
            continue
        stored = values.astype(np.uint32) if type_ == "pred" else values
        text += place("%rd20", f"%rd{len(tensors)}", stored.itemsize)
        register, load = _register(type_, 5 + i, stored.itemsize)
        text += load
        operands.append(register)
        tensors.append(stored)
    to = f"{_PREFIXES.get(result[1:], '%r')}9"
    found = np.zeros(threads, "u4" if result == "pred" else f"u{int(result[1:]) // 8}")
    where = place("%rd21", f"%rd{len(tensors)}", found.itemsize)
    if result == "pred":
        text += f"{opcode} %p1, {', '.join(operands)}; selp.b32 %r9, 1, 0, %p1;\n"
    else:
        text += f"{opcode} {to}, {', '.join(operands)};\n"
    text += f"{where} st.global.u{8 * found.itemsize} [%rd21], {to};"
    launch(text, *tensors, found, threads=threads)
    return found


def _register(type_: str, i: int, size: int) -> tuple[str, str]:
    """A register with the thread's value at %rd20, and the text that loads it."""
    if type_ == "pred":
        return f"%p{i}", f"ld.global.u32 %r30, [%rd20]; setp.ne.s32 %p{i}, %r30, 0;\n"
    register = f"{_PREFIXES.get(type_[1:], '%r')}{i}"
    return register, f"ld.global.u{8 * size} {register}, [%rd20];\n"
