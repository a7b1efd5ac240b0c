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

# Instructions a weight, by bits and group, for up to 4, 8, 16 and 32 tokens: all that the loop has,
# also what only runs where a turn ends.
INSTRUCTIONS = {
    (3, 128): (1.4, 2.0, 2.5, 3.7),
    (3, 256): (1.3, 1.75, 2.2),
    (3, 64): (1.65, 2.35, 3.25),
    (3, 32): (2.0, 3.05),
    (2, 128): (1.3, 1.9, 2.4, 3.55),
    (2, 256): (1.15, 1.65, 2.05),
    (2, 64): (1.5, 2.25, 3.15),
    (2, 32): (1.9, 2.95),
    (4, 128): (1.9, 2.5, 3.0, 4.25),
    (4, 256): (1.95, 2.25, 2.7),
    (4, 64): (2.15, 2.85, 3.75),
    (4, 32): (2.55, 3.55),
}
# Registers of a thread: up to 80 let three blocks of 256 threads run on a multiprocessor, up to 128
# two.
REGISTERS = 128
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
    kept = "kBF16", "multiply_terms", "multiply_shared"
    wanted = [each for each in instances(kernel) if not few or any(one in each for one in kept)]
    return limits.codes_of(kernel, wanted, architecture)


def multiplying(architecture):
    """Bits, group, columns, instance and code of each instance that multiplies by tensor cores."""
    codes = {
        **codes_of("multiply", architecture),
        **codes_of("share", architecture),
        **codes_of("split", architecture),
    }
    for bits in BITS:
        for group in GROUPS:
            of_columns = zip(COLUMNS, multiplications(bits, group), strict=False)
            for columns, instance in [*of_columns, (1, f"multiply_terms<{bits}, {group}>")]:
                yield bits, group, columns, instance, codes[instance]


@needs_nvdisasm
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_multiplication_stays_within_its_budgets(architecture):
    n_checked = 0
    for bits, group, columns, instance, code in multiplying(architecture):
        assert code.registers <= REGISTERS, instance
        assert code.frame == code.spills == 0, instance
        if "terms" not in instance:
            most = INSTRUCTIONS[bits, group][COLUMNS.index(columns)]
            assert loop_of(code, columns).total <= most, instance
            n_checked += 1
    assert n_checked == sum(map(len, INSTRUCTIONS.values()))
    main = codes_of("multiply", architecture)[multiplications(3, 128)[0]]
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
    """Past the first cache. For up to four tokens activations and their worths are loaded into
    registers; those that warps share come by such copies, too, and worths by copies of four bytes.
    """
    for bits, group, columns, instance, code in multiplying(architecture):
        loop = code.hot_loop()
        opcodes = [sass.name(opcode) for opcode in loop]
        count, first = Counter(opcodes), opcodes.index("IMMA")
        units = count["IMMA"] // (8 * columns)
        weights = units * bits + (units if "shared" in instance else units // max(1, group // 128))
        copies = Counter(each for each in loop if "LDGSTS" in each)
        assert opcodes[:first].count("LDGSTS") >= bits
        if "shared" in instance:
            assert copies == {"LDGSTS.E.BYPASS.128": weights + 2 * units, "LDGSTS.E": units}
            assert count["LDG"] == 0
        else:
            assert copies == {"LDGSTS.E.BYPASS.128": weights}
            assert count["LDG"] == 2 * units + units * 128 // group


WAIT, MAY_START = "ACQBULK", "PREEXIT"


@needs_nvdisasm
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernel", ["rotate_quantise", "multiply", "share", "split"])
def test_nothing_but_codes_is_read_before_the_kernels_ahead_have_ended(kernel, architecture):
    """Nor is anything written; then the next kernel may start. Below sm_90 nobody starts early."""
    for instance, code in codes_of(kernel, architecture).items():
        opcodes = [sass.name(opcode) for opcode in code.opcodes]
        waits = [i for i, opcode in enumerate(opcodes) if opcode == WAIT]
        if architecture == "sm_80":
            assert not {WAIT, MAY_START} & set(opcodes)
            continue
        # A multiplication has one more for jobs, which it then reads.
        assert len(waits) == (2 if kernel in ("multiply", "share") else 1), instance
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
    """A fourth of what is nowhere else compiled: every dtype and width."""
    others = [each for each in instances("multiply") if "kBF16" not in each]
    limits.compiled("multiply", others[::4], "sm_80")


@needs_nvdisasm
def test_an_instance_is_the_same_compiled_alone_and_among_others(tmp_path):
    wanted = multiplications(3, 128)
    code = compiler.compiled("share", wanted[3], "sm_80", tmp_path)
    alone = sass.read(sass.disassembled(code.cubin, tmp_path))
    assert alone == {code.function: codes_of("share", "sm_80")[wanted[3]]}


def test_a_weight_is_counted_once_however_many_columns_it_meets():
    loop = loop_of(_code("IMMA.16832", "LOP3.LUT", "LOP3.LUT", "BRA"), columns=1)
    assert (loop.total, loop.pipes["alu"]) == (4 / 16, 2 / 16)
    loop = loop_of(_code(*["IMMA.16832"] * 2, "LOP3.LUT", "LOP3.LUT", "BRA"), columns=2)
    assert (loop.total, loop.pipes["alu"]) == (5 / 16, 2 / 16)


def _code(*opcodes):
    return sass.Code(opcodes, (range(len(opcodes)),), 0, 0)
