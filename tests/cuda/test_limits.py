"""Budgets of the compiled kernels: instructions a weight, registers, nothing in a thread's memory.

A budget is what the machine code has today, a little rounded up. docs/kernels.md says what is
wanted beyond, and what the figures mean.
"""

from __future__ import annotations

import pytest

pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings, nvidia-cuda-nvrtc")

import limits  # noqa: E402
from instances import ARCHITECTURES, instances  # noqa: E402
from limits import (  # noqa: E402
    COLUMNS,
    Gpu,
    Loop,
    codes_of,
    loop_of,
    multiplications,
    shares,
)

from tq3.runtime.cuda import compiler  # noqa: E402

# Instructions a weight, by bits and group, for up to 4, 8, 16 and 32 tokens.
INSTRUCTIONS = {
    (3, 128): (1.3, 1.6, 2.4, 3.65),
    (3, 256): (1.1, 1.35, 1.9, 2.7),
    (3, 64): (1.5, 2.05, 2.95, 4.95),
    (3, 32): (1.95, 2.75, 4.55),
    (2, 128): (1.15, 1.45, 2.2, 3.55),
    (2, 256): (0.95, 1.2, 1.9, 2.6),
    (2, 64): (1.4, 1.9, 2.95, 4.8),
    (2, 32): (1.7, 2.65, 4.35),
    (4, 128): (1.8, 2.1, 2.75, 4.25),
    (4, 256): (1.6, 1.8, 2.65, 3.4),
    (4, 64): (2.0, 2.55, 3.55, 5.85),
    (4, 32): (2.5, 3.3, 5.0),
}
# Registers of a thread, by group: up to 80 let three blocks of 256 threads run on a multiprocessor,
# up to 128 two, beyond one.
REGISTERS = {
    128: (128, 128, 128, 136),
    256: (128, 168, 188, 255),
    64: (128, 144, 144, 184),
    32: (128, 192, 188),
}
# Of the layers that most files have, 3 bits in groups of 128, up to 4 tokens.
REGISTERS_FOR_THREE_BLOCKS = 80


needs_nvdisasm = pytest.mark.skipif(
    limits.sass.disassembler() is None, reason="needs nvidia-cuda-nvdisasm"
)


@needs_nvdisasm
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_multiplication_stays_within_its_budgets(architecture, tmp_path):
    wanted = {
        instance: (bits, group, columns)
        for bits, group in INSTRUCTIONS
        for instance, columns in zip(multiplications(bits, group), COLUMNS, strict=False)
    }
    assert set(wanted) == {name for name in instances("multiply") if "kBF16" in name}
    codes = codes_of("multiply", list(wanted), architecture, tmp_path)
    for instance, (bits, group, columns) in wanted.items():
        code, place = codes[instance], COLUMNS.index(columns)
        assert loop_of(code, columns).total <= INSTRUCTIONS[bits, group][place], instance
        assert code.registers <= REGISTERS[group][place], instance
        assert code.frame == code.spills == 0, instance
    main = codes[multiplications(3, 128)[0]]
    assert main.registers <= REGISTERS_FOR_THREE_BLOCKS


@needs_nvdisasm
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernel", ["rotate_quantise", "rotate", "split", "decode"])
def test_other_kernels_spill_nothing(kernel, architecture, tmp_path):
    for instance, code in codes_of(kernel, instances(kernel), architecture, tmp_path).items():
        assert code.registers <= 128, instance
        assert code.frame == code.spills == 0, instance


@needs_nvdisasm
def test_an_instance_is_the_same_compiled_alone_and_among_others(tmp_path):
    wanted = multiplications(3, 128)
    together = codes_of("multiply", wanted, "sm_80", tmp_path)
    code = compiler.compiled("multiply", wanted[3], "sm_80", tmp_path)
    alone = limits.sass.read(limits.sass.disassembled(code.cubin, tmp_path))
    assert alone == {code.function: together[wanted[3]]}


def test_a_weight_is_counted_once_however_many_columns_it_meets():
    loop = loop_of(_code("IMMA.16832", "LOP3.LUT", "LOP3.LUT", "BRA"), columns=1)
    assert (loop.total, loop.pipes["alu"]) == (4 / 16, 2 / 16)
    loop = loop_of(_code(*["IMMA.16832"] * 2, "LOP3.LUT", "LOP3.LUT", "BRA"), columns=2)
    assert (loop.total, loop.pipes["alu"]) == (5 / 16, 2 / 16)


def _code(*opcodes):
    return limits.sass.Code(opcodes, (range(len(opcodes)),), 0, 0)


def test_a_pipe_is_busy_as_its_instructions_at_the_rate_of_memory():
    """Half a byte a weight: 4 weights a clock on each of ten multiprocessors."""
    gpu = Gpu("made up", "sm_80", rate=20, multiprocessors=10, clock=1.0, int8=2 * 10 * 4096 / 1000)
    loop = Loop(total=3.2, pipes={"alu": 1.6, "fma": 0.8, "convert": 0.4, "tensor": 0.8})
    found = shares(gpu, loop, bits=3, group=32)
    assert found == pytest.approx(
        {"issue": 0.1, "alu": 0.1, "fma": 0.05, "convert": 0.1, "tensor": 0.1}
    )
