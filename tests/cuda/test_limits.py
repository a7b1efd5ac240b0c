"""What NVRTC compiles: instructions a weight, registers, when codes are asked for, what is awaited.

A budget is what the machine code has today, a little rounded up. docs/kernels.md says what the
figures mean.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings, nvidia-cuda-nvrtc")

from support.cuda import limits, sass
from support.cuda.instances import ARCHITECTURES, instances
from support.cuda.limits import COLUMNS, loop_of, multiplications
from support.runtime.layers import BITS, GROUPS

from tq3.runtime.cuda import compiler

# Instructions a weight, by bits and group, for up to 4, 8, 16 and 32 tokens.
INSTRUCTIONS = {
    (3, 128): (1.4, 1.75, 2.55, 3.9),
    (3, 256): (1.3, 1.4, 1.85, 2.85),
    (3, 64): (1.65, 2.1, 3.2, 5.15),
    (3, 32): (2.0, 2.85, 4.65),
    (2, 128): (1.3, 1.65, 2.35, 3.7),
    (2, 256): (1.15, 1.25, 1.75, 2.7),
    (2, 64): (1.5, 2.0, 3.1, 5.05),
    (2, 32): (1.9, 2.75, 4.55),
    (4, 128): (1.9, 2.3, 3.0, 4.3),
    (4, 256): (1.95, 1.9, 2.35, 3.35),
    (4, 64): (2.15, 2.65, 3.75, 5.7),
    (4, 32): (2.55, 3.4, 5.2),
}
# Registers of a thread, by group: up to 80 let three blocks of 256 threads run on a multiprocessor,
# up to 128 two, beyond one.
REGISTERS = {
    128: (128, 128, 128, 128),
    256: (128, 136, 192, 192),
    64: (128, 128, 128, 176),
    32: (128, 172, 184),
}
# Of the layers that most files have, 3 bits in groups of 128, up to 4 tokens.
REGISTERS_FOR_THREE_BLOCKS = 80


needs_nvdisasm = pytest.mark.skipif(
    sass.disassembler() is None, reason="needs nvidia-cuda-nvdisasm"
)


@cache
def codes_of(kernel, architecture):
    """All instances on sm_80, elsewhere those of bfloat16, as everywhere of the multiplication, of
    which others differ after the loop.
    """
    few = kernel == "multiply" or architecture != "sm_80"
    wanted = [each for each in instances(kernel) if not few or "kBF16" in each or "terms" in each]
    return limits.codes_of(kernel, wanted, architecture)


def multiplying(architecture):
    """Bits, group, columns and code of each instance that multiplies by tensor cores."""
    for bits in BITS:
        for group in GROUPS:
            for columns, instance in zip(COLUMNS, multiplications(bits, group), strict=False):
                yield bits, group, columns, codes_of("multiply", architecture)[instance]
            terms = f"multiply_terms<{bits}, {group}, 1>"
            yield bits, group, 1, codes_of("split", architecture)[terms]


@needs_nvdisasm
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_multiplication_stays_within_its_budgets(architecture):
    codes = codes_of("multiply", architecture)
    wanted = {
        instance: (bits, group, columns)
        for bits, group in INSTRUCTIONS
        for instance, columns in zip(multiplications(bits, group), COLUMNS, strict=False)
    }
    assert set(wanted) == set(codes)
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
def test_other_kernels_spill_nothing(kernel, architecture):
    for instance, code in codes_of(kernel, architecture).items():
        assert code.registers <= 128, instance
        assert code.frame == code.spills == 0, instance


@needs_nvdisasm
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_codes_and_norms_come_by_asynchronous_copies_that_are_asked_for_before_products(
    architecture,
):
    """Past the first cache; what is loaded into registers is activations and their worths."""
    for bits, group, columns, code in multiplying(architecture):
        loop = code.hot_loop()
        opcodes = [sass.name(opcode) for opcode in loop]
        count, first = Counter(opcodes), opcodes.index("IMMA")
        units = count["IMMA"] // (8 * columns)
        norms = units // max(1, group // 128)
        worths = units * 128 // group
        assert count["LDGSTS"] == units * bits + norms
        assert opcodes[:first].count("LDGSTS") >= bits
        assert count["LDG"] == columns * (2 * units + worths)
        assert {each for each in loop if "LDGSTS" in each} == {"LDGSTS.E.BYPASS.128"}


WAIT, MAY_START = "ACQBULK", "PREEXIT"


@needs_nvdisasm
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernel", ["rotate_quantise", "multiply", "split"])
def test_nothing_but_codes_is_read_before_the_kernels_ahead_have_ended(kernel, architecture):
    """Nor is anything written; then the next kernel may start. Below sm_90 nobody starts early."""
    for instance, code in codes_of(kernel, architecture).items():
        opcodes = [sass.name(opcode) for opcode in code.opcodes]
        waits = [i for i, opcode in enumerate(opcodes) if opcode == WAIT]
        if architecture == "sm_80":
            assert not {WAIT, MAY_START} & set(opcodes)
            continue
        # A multiplication has one more for jobs, which it then reads.
        assert len(waits) == (2 if kernel == "multiply" else 1), instance
        before = opcodes[: waits[0]], opcodes[waits[0] : waits[-1]]
        assert not {"LDG", "STG"} & set(before[0]), instance
        assert before[1].count("LDG") <= 1, instance
        assert "STG" not in before[1], instance
        asks = "LDGSTS" in before[0] + before[1]
        assert asks == ("multiply" in instance), instance
        assert opcodes.index(MAY_START) > waits[-1], instance


@pytest.mark.parametrize("kernel", ["rotate", "decode"])
def test_kernels_that_are_never_launched_early_do_not_wait(kernel):
    for instance in instances(kernel)[:1]:
        assert "griddepcontrol" not in compiler.intermediate(kernel, instance, "sm_90")


def test_other_dtypes_compile_without_a_warning():
    """A fourth of what is nowhere else compiled: every dtype, width and number of columns."""
    others = [each for each in instances("multiply") if "kBF16" not in each]
    limits.compiled("multiply", others[::4], "sm_80")


@needs_nvdisasm
def test_an_instance_is_the_same_compiled_alone_and_among_others(tmp_path):
    wanted = multiplications(3, 128)
    code = compiler.compiled("multiply", wanted[3], "sm_80", tmp_path)
    alone = sass.read(sass.disassembled(code.cubin, tmp_path))
    assert alone == {code.function: codes_of("multiply", "sm_80")[wanted[3]]}


def test_a_weight_is_counted_once_however_many_columns_it_meets():
    loop = loop_of(_code("IMMA.16832", "LOP3.LUT", "LOP3.LUT", "BRA"), columns=1)
    assert (loop.total, loop.pipes["alu"]) == (4 / 16, 2 / 16)
    loop = loop_of(_code(*["IMMA.16832"] * 2, "LOP3.LUT", "LOP3.LUT", "BRA"), columns=2)
    assert (loop.total, loop.pipes["alu"]) == (5 / 16, 2 / 16)


def _code(*opcodes):
    return sass.Code(opcodes, (range(len(opcodes)),), 0, 0)
