"""Budgets of the compiled kernels: instructions a weight, registers, nothing in a thread's memory.

A budget is what the machine code has today, a little rounded up. docs/kernels.md says what is
wanted beyond, and what the figures mean.
"""

from __future__ import annotations

import pytest

pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings, nvidia-cuda-nvrtc")

import limits  # noqa: E402
from emulated import NAMES, instances  # noqa: E402
from limits import (  # noqa: E402
    ARCHITECTURES,
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
    (3, 128): (1.3, 2.0, 3.1, 5.15),
    (3, 256): (1.15, 1.75, 2.45, 3.8),
    (3, 64): (1.6, 2.5, 4.25, 6.4),
    (3, 32): (2.4, 3.65, 6.35, 10.75),
    (2, 128): (1.2, 1.6, 2.9, 4.9),
    (2, 256): (1.1, 1.5, 2.05, 3.65),
    (2, 64): (1.55, 2.45, 3.75, 6.95),
    (2, 32): (2.5, 3.5, 6.05, 10.3),
}
# Registers of a thread: up to 80 let three blocks of 256 threads run on a multiprocessor, up to 128
# two.
REGISTERS = {
    128: (80, 80, 128, 138),
    256: (80, 104, 176, 240),
    64: (80, 104, 144, 232),
    32: (80, 128, 224, 255),
}
# Bytes of a stack, where there is one today.
STACK = {
    ("sm_80", 3, 128, 8): 8,
    ("sm_90", 3, 64, 4): 8,
    ("sm_100", 2, 32, 8): 32,
    ("sm_100", 3, 32, 8): 32,
    ("sm_120", 2, 32, 8): 16,
    ("sm_120", 3, 32, 8): 48,
}


needs_nvdisasm = pytest.mark.skipif(
    limits.sass.disassembler() is None, reason="needs nvidia-cuda-nvdisasm"
)


@needs_nvdisasm
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_multiplication_stays_within_its_budgets(architecture, tmp_path):
    wanted = {
        instance: (bits, group, columns)
        for bits, group in INSTRUCTIONS
        for instance, columns in zip(multiplications(bits, group), COLUMNS, strict=True)
    }
    assert set(wanted) == set(instances("multiply", NAMES[:1]))
    codes = codes_of("multiply", list(wanted), architecture, tmp_path)
    for instance, (bits, group, columns) in wanted.items():
        code, place = codes[instance], COLUMNS.index(columns)
        assert loop_of(code, columns).total <= INSTRUCTIONS[bits, group][place], instance
        assert code.registers <= REGISTERS[group][place], instance
        assert code.frame <= STACK.get((architecture, bits, group, columns), 0), instance
        assert code.frame or not code.spills, instance


@needs_nvdisasm
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_rotation_stays_within_its_budgets(architecture, tmp_path):
    wanted = instances("rotate_quantise")
    for instance, code in codes_of("rotate_quantise", wanted, architecture, tmp_path).items():
        assert code.registers <= 40, instance
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
