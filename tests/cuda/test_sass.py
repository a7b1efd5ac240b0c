"""What is read of machine code, on disassembly written by hand."""

from __future__ import annotations

import pytest
from support.cuda.sass import name, pipes, read

FACTS = """
	//----- nvinfo : EIATTR_REGCOUNT
	.align		4
        /*0000*/ 	.byte	0x04, 0x2f
        /*0002*/ 	.short	(.L_19 - .L_18)
	.align		4
.L_18:
        /*0004*/ 	.word	index@(kernel)
        /*0008*/ 	.word	0x00000089


	//----- nvinfo : EIATTR_FRAME_SIZE
	.align		4
.L_19:
        /*000c*/ 	.byte	0x04, 0x11
        /*000e*/ 	.short	(.L_21 - .L_20)
	.align		4
.L_20:
        /*0010*/ 	.word	index@(kernel)
        /*0014*/ 	.word	0x00000020
"""
CODE = """
.text.kernel:
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/               @P0 BRA `(.L_x_2) ;
.L_x_0:
        /*0020*/                   LDG.E.128.CONSTANT R4, desc[UR4][R40.64+-0x200] ;
.L_x_1:
        /*0030*/                   LOP3.LUT R20, R4, 0x7777, RZ, 0xc0, !PT ;
        /*0040*/                   IMMA.16832.S8.S8 R20, R20.ROW, R8.COL, RZ ;
        /*0050*/              @!P1 BRA `(.L_x_1) ;
        /*0060*/                   STL [R1], R2                    (*"SpillRefill"*);
        /*0070*/              @!P2 BRA.U `(.L_x_0) ;
.L_x_2:
        /*0080*/                   EXIT ;
.L_x_3:
        /*0090*/                   BRA `(.L_x_3);
"""


def test_registers_and_stack_are_the_compilers_own_words():
    code = read(FACTS + CODE)["kernel"]
    assert (code.registers, code.frame) == (0x89, 0x20)


def test_every_instruction_is_read():
    code = read(FACTS + CODE)["kernel"]
    expected = "S2R BRA LDG.E.128.CONSTANT LOP3.LUT IMMA.16832.S8.S8 BRA STL BRA.U EXIT BRA"
    assert code.opcodes == tuple(expected.split())
    assert code.spills == 1


def test_a_loop_is_from_the_target_of_a_branch_back_to_the_branch():
    assert read(FACTS + CODE)["kernel"].loops == (range(3, 6), range(2, 8))


def test_the_innermost_loop_that_multiplies_is_the_hot_one():
    code = read(FACTS + CODE)["kernel"]
    assert [name(opcode) for opcode in code.hot_loop()] == ["LOP3", "IMMA", "BRA"]
    assert len(code.hot_loop("LDG")) == 6
    with pytest.raises(AssertionError, match="no loop has EXIT"):
        code.hot_loop("EXIT")


def test_instructions_are_counted_by_pipe():
    code = read(FACTS + CODE)["kernel"]
    assert pipes(code.hot_loop("LDG")) == {"memory": 2, "alu": 1, "tensor": 1, "other": 2}


def test_an_instruction_of_no_known_pipe_is_named():
    with pytest.raises(AssertionError, match="of no known pipe: HGMMA, TANH"):
        pipes(("IMMA.16832", "TANH.F32", "HGMMA.64x8x16"))


def test_functions_of_one_file_are_kept_apart():
    other = (FACTS + CODE).replace("kernel", "other").replace("0x00000089", "0x00000020")
    found = read(FACTS + other.replace("IMMA", "HMMA") + CODE)
    assert {of: code.registers for of, code in found.items()} == {"kernel": 0x89, "other": 0x20}
    assert "IMMA.16832.S8.S8" in found["kernel"].opcodes
    assert "HMMA.16832.S8.S8" in found["other"].opcodes


def test_a_function_without_its_facts_is_refused():
    with pytest.raises(AssertionError, match="no registers or stack of kernel"):
        read(CODE)
