"""The interpreter's memory, barriers and counts: what is wrong is an error, on kernels by hand."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings, nvidia-cuda-nvrtc")

from support.cuda.ptx import machine
from support.cuda.ptx.memory import Global, sectors
from support.cuda.ptx.parsing import Fault, Unknown, parse
from support.cuda.ptx.shared import passes
from support.cuda.ptx.snippets import launch, place

LANES = np.arange(32)
ALL = np.ones((1, 32), bool)


def words(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.uint32)


@pytest.mark.parametrize("offset", [-4, 4 * 31 + 1, 4 * 32, 10**9, -(2**32)])
@pytest.mark.parametrize("access", ["ld.global.u8 %rs1, [%rd5]", "st.global.u8 [%rd5], %rs0"])
def test_an_access_outside_every_tensor_is_an_error(access, offset):
    inside = f"mov.u16 %rs0, 7; setp.eq.s32 %p1, %r0, 9; add.s64 %rd5, %rd0, 127; @%p1 {access};"
    launch(inside, words(32), words(32))
    with pytest.raises(Fault, match=r"of tensor [01], which has 128: @%p1 (ld|st)"):
        outside = offset if offset != 4 * 31 + 1 else 128
        launch(inside.replace("127", str(outside)), words(32), words(32))


def test_the_bytes_after_the_first_lie_inside_too():
    launch("ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd0+16];", words(8))
    with pytest.raises(Fault, match="16 bytes at 16 of tensor 0, which has 28"):
        launch("ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd0+16];", words(7))


@pytest.mark.parametrize(
    "access",
    [
        "ld.global.u32 %r1, [%rd0+2]",
        "ld.global.v2.u32 {%r1, %r2}, [%rd0+4]",
        "st.global.v4.u32 [%rd0+8], {%r0, %r0, %r0, %r0}",
        "st.shared.u32 [room+2], %r0",
        "st.shared.v2.u32 [room+4], {%r0, %r0}",
    ],
)
def test_a_misaligned_access_is_an_error(access):
    with pytest.raises(Fault, match="no multiple"):
        launch(f"setp.eq.s32 %p1, %r0, 0; @%p1 {access};", words(8))


def test_what_was_promised_to_be_constant_is_not_written():
    text = place("%rd5", "%rd0", 4) + "st.global.u32 [%rd5], %r0;"
    launch(f"{text} ld.global.u32 %r1, [%rd5];", words(32))
    with pytest.raises(Fault, match="constant after it was written"):
        launch(f"{text} ld.global.nc.u32 %r1, [%rd5];", words(32))


def test_shared_memory_ends_where_it_was_declared_to():
    store = place("%rd5", "0", 4).replace("add.s64 %rd5, %rd5, 0;", "")
    store += "cvt.u32.u64 %r5, %rd5; st.shared.u32 [%r5+896], %r0;"
    launch(store)
    with pytest.raises(Fault, match="outside the 1024 bytes of shared memory"):
        launch(store.replace("896", "900"))


def test_shared_memory_is_not_read_before_it_is_written_in_any_block():
    text = "shl.b32 %r5, %r0, 2; mov.u32 %r6, %ctaid.x; setp.eq.s32 %p1, %r6, 0;"
    with pytest.raises(Fault, match="read before it is written: ld.shared"):
        launch(f"{text} @%p1 st.shared.u32 [%r5], %r0; ld.shared.u32 %r7, [%r5];", blocks=2)
    with pytest.raises(Fault, match="read before it is written: ld.shared"):
        launch("shl.b32 %r5, %r0, 2; st.shared.u16 [%r5], %r0; ld.shared.u32 %r7, [%r5];")


TURN = """shl.b32 %r5, %r0, 2; st.shared.u32 [%r5], %r0; bar.sync 0;
    xor.b32 %r6, %r5, 252; ld.shared.u32 %r7, [%r6]; bar.sync 0; st.shared.u32 [%r5], %r7;"""
TURNED = place("%rd5", "%rd0", 4) + f"{TURN} st.global.u32 [%rd5], %r7;"


def test_threads_exchange_words_between_barriers():
    found = words(64)
    launch(TURNED, found, threads=64)
    np.testing.assert_array_equal(found, words(64)[::-1])


@pytest.mark.parametrize(
    ("missing", "what"),
    [(0, "read that another thread has written"), (1, "written that another thread has read")],
)
def test_a_missing_barrier_is_a_race(missing, what):
    first, second, third = TURNED.split("bar.sync 0;")
    barriers = ["bar.sync 0;"] * 2
    barriers[missing] = ""
    text = first + barriers[0] + second + barriers[1] + third
    with pytest.raises(Fault, match=f"a race: shared memory is {what}"):
        launch(text, words(64), threads=64)


def test_words_that_all_threads_read_are_not_written_before_a_barrier():
    write = "setp.eq.s32 %p1, %r0, 0; @%p1 st.shared.u32 [room], %r0;"
    read = "bar.sync 0; ld.shared.u32 %r7, [room];"
    launch(f"{write} {read} bar.sync 0; {write}", threads=64)
    with pytest.raises(Fault, match="written that another thread has read"):
        launch(f"{write} {read} {write}", threads=64)


def test_two_threads_do_not_write_one_byte_at_once():
    with pytest.raises(Fault, match="two threads write one byte at once"):
        launch("st.shared.u32 [room], %r0;")


@pytest.mark.parametrize("leave", ["ret", "bra $L"])
def test_a_barrier_that_some_threads_never_reach_is_an_error(leave):
    text = f"setp.ge.s32 %p1, %r0, 32; @%p1 {leave}; bar.sync 0; $L: mov.u32 %r1, 0;"
    with pytest.raises(Fault, match="a barrier to which some threads never come"):
        launch(text, threads=64)
    launch(text, threads=32)


def test_lanes_of_one_warp_come_to_a_barrier_together():
    text = "setp.eq.s32 %p1, %r0, 3; @%p1 bra $A; bar.sync 0; ret; $A: bar.sync 0;"
    with pytest.raises(Fault, match="only some lanes of warp 0"):
        launch(text, threads=64)


def test_threads_that_part_meet_again():
    """A loop of as many rounds as the thread's number, then an operation of all lanes."""
    found = words(64)
    text = (
        place("%rd5", "%rd0", 4)
        + """mov.u32 %r1, 0; mov.u32 %r2, 0;
        $LOOP: setp.ge.s32 %p1, %r1, %r0; @%p1 bra $END;
        add.s32 %r2, %r2, %r1; add.s32 %r1, %r1, 1; bra.uni $LOOP;
        $END: redux.sync.max.u32 %r3, %r2, -1; st.global.u32 [%rd5], %r3;"""
    )
    launch(text, found, threads=64)
    np.testing.assert_array_equal(found, [sum(range(31))] * 32 + [sum(range(63))] * 32)


def test_a_loop_without_an_end_is_an_error(monkeypatch):
    monkeypatch.setattr(machine, "_MOST_STEPS", 100)
    with pytest.raises(Fault, match="still running after 100 steps"):
        launch("$L: bra $L;")


def test_more_blocks_than_run_at_once_all_run():
    found = np.zeros(32 * 1000, np.uint32)
    text = """mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mad.lo.s32 %r3, %r1, %r2, %r0;
        mul.wide.u32 %rd5, %r3, 4; add.s64 %rd5, %rd5, %rd0; st.global.u32 [%rd5], %r3;"""
    launch(text, found, blocks=1000)
    np.testing.assert_array_equal(found, words(32_000))


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (".local .align 4 .b8 spill[64];", "unknown statement: .local"),
        ("ld.global.u32 %r1, [%rd0*4];", "unknown address"),
        ("mov.u32 %r1, elsewhere;", "no value"),
        ("add.s32 %q1, %r0, 1;", "no such register: %q1"),
        ("cvt.s64.s32 %r1, %r0;", "s64 does not fit %r1"),
        ("ld.global.v2.u32 %r1, [%rd0];", "1 registers for 2 words"),
        ("bar.sync 1, 32;", "a barrier of its own"),
        ("bra $ELSEWHERE;", "no such label"),
        ("ld.param.u64 %rd5, [p9];", "no such parameter"),
    ],
)
def test_what_is_not_understood_is_named(body, what):
    with pytest.raises(Unknown, match=what):
        launch(body, words(32))


def test_a_module_without_one_kernel_is_refused():
    with pytest.raises(Unknown, match="0 kernels"):
        parse(".version 9.5")


def test_arguments_are_those_of_the_kernel():
    kernel = parse(".entry k(.param .u64 a, .param .f32 b)\n{\nret;\n}\n")
    memory = Global([])
    machine.run(kernel, memory, [("u64", 0), ("f32", 0)], (1, 1, 1), 32)
    with pytest.raises(Unknown, match=r"k takes \['u64', 'f32'\], not \['u64', 'u32'\]"):
        machine.run(kernel, memory, [("u64", 0), ("u32", 0)], (1, 1, 1), 32)


@pytest.mark.parametrize(
    ("addresses", "size", "touched", "ideal"),
    [
        (4 * LANES, 4, 4, 4),
        (4 * LANES[::-1], 4, 4, 4),
        (0 * LANES, 4, 1, 1),
        (16 * LANES, 16, 16, 16),
        (16 * LANES, 4, 16, 4),
        (32 * LANES, 1, 32, 1),
        (4 * LANES + 16, 4, 5, 4),
        (256 * (LANES // 4) + 16 * (LANES % 4), 16, 16, 16),
    ],
)
def test_sectors_are_counted_for_each_warp(addresses, size, touched, ideal):
    found = sectors(addresses[None].repeat(2, 0), size, ALL.repeat(2, 0))
    assert [each.tolist() for each in found] == [[touched] * 2, [ideal] * 2]


def test_lanes_that_take_no_part_touch_nothing():
    active = ALL.copy()
    active[0, 8:] = False
    assert [int(each[0]) for each in sectors(4 * LANES[None], 4, active)] == [1, 1]
    assert [int(each[0]) for each in sectors(4 * LANES[None], 4, ~ALL)] == [0, 0]
    assert passes(128 * LANES[None], 4, active) == (8, 1)
    assert passes(128 * LANES[None], 4, ~ALL) == (0, 0)


@pytest.mark.parametrize(
    ("offsets", "size", "done", "ideal"),
    [
        (4 * LANES, 4, 1, 1),
        (0 * LANES, 4, 1, 1),
        (8 * LANES, 4, 2, 1),
        (128 * LANES, 4, 32, 1),
        (132 * LANES, 4, 1, 1),
        (2 * LANES, 2, 1, 1),
        (8 * LANES, 8, 2, 2),
        (16 * LANES, 16, 4, 4),
        (128 * LANES, 16, 32, 4),
    ],
)
def test_a_bank_gives_one_word_at_a_time(offsets, size, done, ideal):
    assert passes(offsets[None], size, ALL) == (done, ideal)


def test_traffic_is_that_of_each_tensor():
    text = place("%rd5", "%rd0", 4) + place("%rd6", "%rd1", 64)
    text += "ld.global.nc.u32 %r1, [%rd5]; st.global.u32 [%rd6], %r1;"
    memory = launch(text, words(64), words(1024), threads=64)
    read, written = memory.traffic[0]["ld"], memory.traffic[1]["st"]
    assert (read.requests, read.sectors, read.ideal) == (2, 8, 8)
    assert (written.requests, written.sectors, written.ideal) == (2, 64, 8)
    assert memory.traffic[0]["st"].requests == memory.traffic[1]["ld"].requests == 0
