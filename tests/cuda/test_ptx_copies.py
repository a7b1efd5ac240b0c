"""The interpreter's asynchronous copies, meetings of a warp, early starts, on kernels by hand."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings, nvidia-cuda-nvrtc")

from support.cuda.ptx.parsing import Fault, Unknown
from support.cuda.ptx.snippets import launch, place

# A thread's sixteen bytes of the first tensor go to its place in shared memory, and that of its
# neighbour's neighbour from there to the second tensor.
ASK = (
    place("%rd5", "%rd0", 16)
    + place("%rd6", "%rd1", 16)
    + "shl.b32 %r5, %r0, 4; xor.b32 %r6, %r5, 32;"
    + "cp.async.cg.shared.global [%r5], [%rd5], 16; cp.async.commit_group;"
)
WAIT, MEET = "cp.async.wait_group 0;", "bar.warp.sync -1;"
LOAD = "ld.shared.v4.u32 {%r7, %r8, %r9, %r10}, [%r6];"
STORE = "st.global.v4.u32 [%rd6], {%r7, %r8, %r9, %r10};"


def words() -> np.ndarray:
    return np.arange(128, dtype=np.uint32)


def test_copies_come_and_are_seen_by_a_warp_that_has_met():
    found = words()
    launch(f"{ASK} {WAIT} {MEET} {LOAD} {STORE}", words(), found)
    lanes = words().reshape(32, 4)[np.arange(32) ^ 2]
    np.testing.assert_array_equal(found.reshape(32, 4), lanes)


@pytest.mark.parametrize(
    ("missing", "what"),
    [(WAIT, "before a copy to it has been waited for"), (MEET, "a race: shared memory is read")],
)
def test_what_other_lanes_asked_for_needs_a_wait_and_a_meeting(missing, what):
    text = f"{ASK} {WAIT} {MEET} {LOAD} {STORE}".replace(missing, "")
    with pytest.raises(Fault, match=what):
        launch(text, words(), words())


def test_a_meeting_of_a_warp_is_none_of_others():
    text = f"{ASK} {WAIT} {MEET} xor.b32 %r6, %r5, 512; {LOAD}"
    with pytest.raises(Fault, match="a race"):
        launch(text, np.arange(256, dtype=np.uint32), threads=64)
    launch(text.replace(MEET, "bar.sync 0;"), np.arange(256, dtype=np.uint32), threads=64)


def test_a_place_is_asked_for_anew_when_all_lanes_have_read_it():
    again = "cp.async.cg.shared.global [%r5], [%rd5], 16; cp.async.commit_group;"
    launch(f"{ASK} {WAIT} {MEET} {LOAD} {MEET} {again} {WAIT}", words())
    with pytest.raises(Fault, match="written that another thread has read"):
        launch(f"{ASK} {WAIT} {MEET} {LOAD} {again} {WAIT}", words())
    with pytest.raises(Fault, match="before a copy to it has been waited for"):
        launch(f"{ASK} {again} {WAIT}", words())


def test_batches_come_in_order_and_an_empty_one_counts():
    own = LOAD.replace("%r6", "%r5")
    nothing = "cp.async.commit_group;"
    launch(f"{ASK} {nothing} cp.async.wait_group 1; {own}", words())
    with pytest.raises(Fault, match="waited for"):
        launch(f"{ASK} {nothing} cp.async.wait_group 2; {own} {WAIT}", words())
    with pytest.raises(Fault, match="waited for"):
        launch(f"{ASK.replace(nothing, '')} {WAIT} {own} {nothing} {WAIT}", words())


def test_lanes_that_take_no_part_copy_nothing_and_wait_for_themselves():
    some = ASK.replace("cp.async.cg", "setp.lt.s32 %p1, %r0, 8; @%p1 cp.async.cg")
    own = LOAD.replace("%r6", "%r5")
    launch(f"{some} {WAIT} @%p1 {own}", words()[:32])
    with pytest.raises(Fault, match="read before it is written"):
        launch(f"{some} {WAIT} {own}", words())
    with pytest.raises(Fault, match="waited for"):
        launch(f"{ASK} @%p1 {WAIT} {own}".replace("cp", "setp.lt.s32 %p1, %r0, 8; cp", 1), words())


def test_threads_do_not_end_before_their_copies_have_come():
    with pytest.raises(Fault, match="end before their copies have come"):
        launch(ASK, words())


def test_copies_are_checked_and_counted_as_loads():
    memory = launch(f"{ASK} {WAIT}", words())
    assert memory.traffic[0]["ld"].sectors == 16
    with pytest.raises(Fault, match="of tensor 0, which has 508"):
        launch(f"{ASK} {WAIT}", words()[:127])
    with pytest.raises(Unknown, match="of another size"):
        launch(ASK.replace("], 16", "], 8"), words())


def test_a_scope_of_assembly_is_read():
    found = words()[:32].copy()
    scoped = "{ .reg .pred %mine; setp.gt.s32 %mine, %r0, 9; @%mine add.s32 %r5, %r5, 1; }"
    where = place("%rd5", "%rd0", 4)
    launch(f"mov.u32 %r5, 0; {scoped} {scoped} {where} st.global.u32 [%rd5], %r5;", found)
    np.testing.assert_array_equal(found, 2 * (np.arange(32) > 9))


NOW, NEXT = "griddepcontrol.wait;", "griddepcontrol.launch_dependents;"


def test_only_copies_come_early():
    store = place("%rd6", "%rd1", 16) + "st.global.u32 [%rd6], %r0;"
    launch(f"{ASK} {NOW} {NEXT} {WAIT} {store}", words(), words(), early=True)
    launch(f"{store} {ASK} {WAIT}", words(), words())
    for text, what in (
        (f"{store} {NOW}", "memory is written"),
        (f"ld.global.u32 %r1, [%rd0]; {NOW}", "memory is read"),
        (f"{NEXT} {NOW}", "the next kernel may start"),
        (f"setp.eq.s32 %p1, %r0, 3; @!%p1 {NOW}", "threads end"),
        (f"setp.eq.s32 %p1, %r0, 3; @%p1 ret; {NOW}", "threads end"),
    ):
        with pytest.raises(Fault, match=f"{what} before the kernels ahead have ended"):
            launch(text, words(), words(), early=True)
