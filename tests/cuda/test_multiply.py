"""Both kernels together, run on the processor, equal the reference bit for bit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cuda.emulated import ORDERS, Device, call, compiled_kernel, multiply
from support.runtime.layers import (
    BITS,
    DTYPES,
    GROUPS,
    SPECIAL,
    activations,
    assert_same,
    layer,
    spoil,
)

from tq3.runtime import reference
from tq3.runtime.cuda import calls, layout, source

# Multiprocessors of a device for which these layers are large, and for which all are small.
FEW, SOME, MANY = 1, 2, 1000

# Each makes a kernel wrong, and the check below must see it: what it does, and what it becomes.
FAULTS = {
    "a level": ("0x58371f0aU", "0x59371f0aU"),
    "a code's highest bit": ("words[2] >> 1 & 4 * kOnes", "words[2] >> 1 & 2 * kOnes"),
    "rows exchanged": (
        "{levels<bits>(upper), levels<bits>(lower)",
        "{levels<bits>(lower), levels<bits>(upper)",
    ),
    "halves of the unit exchanged": ("x.half[stretch / 2]", "x.half[1 - stretch / 2]"),
    "low bytes as high ones": ("256 * high + low", "256 * low + high"),
    "sums that go on": ("high = low = 0", "high = 0"),
    "another order of factors": (
        "__fmul_rn(__fmul_rn(sum, worth), norm.value[i])",
        "__fmul_rn(sum, __fmul_rn(worth, norm.value[i]))",
    ),
    "codes of the unit after the next": ("words += stride * S", "words += 2 * stride * S"),
    "codes of no unit": ("exists = step < steps", "exists = step + stride < steps"),
    "the norms of other rows": ("slot].norms + k * 8 + lane / 4", "slot].norms + k * 8 + lane % 4"),
    "a missing wait": ("            wait_for_batches<slots - 1>();\n", ""),
    "a wait for one batch less": ("wait_for_batches<slots - 1>", "wait_for_batches<slots>"),
    "norms of lanes that have not waited": (
        "__syncwarp();  // Norms were asked for by other lanes.",
        "",
    ),
    "a slot that some lanes have not read": ("__syncwarp();  // All lanes have read the slot.", ""),
    "the slot of the next unit": (
        "coming.ask(ring, slot, part, lane);\n",
        "coming.ask(ring, (slot + 1) % slots, part, lane);\n",
    ),
    "the worths of another group": ("at.worths[k * work.tokens]", "at.worths[0]"),
}
FAULTS_OF_MULTIPLY = {
    "another order of partial sums": ("p[k], p[k + half]", "p[k], p[2 * half - 1 - k]"),
    "no barrier before partial sums are read": (
        "    __syncthreads();\n    constexpr",
        "    constexpr",
    ),
    "no barrier before they are written": ("    __syncthreads();\n#pragma", "#pragma"),
    "rows beyond the last": ("row >= rows ||", ""),
    "tokens beyond the last": ("|| token >= job.end", ""),
}
ASK_ACTIVATIONS = """\
                column.ask(shared.slots[slot ^ 1].activations, next, warp, lane);
                end_batch();
"""
WAIT = """\
                wait_for_batches<1>();
                __syncthreads();  // All have waited, and have read the other activations.
"""
FAULTS_OF_SHARE = {
    "a missing wait": ("                wait_for_batches<1>();\n", ""),
    "a wait for one batch less": ("wait_for_batches<1>", "wait_for_batches<2>"),
    "no barrier": ("__syncthreads();  // All have waited, and have read", "// Not all have read"),
    "a barrier before the wait": (
        WAIT,
        "                __syncthreads();\n                wait_for_batches<1>();\n",
    ),
    "activations asked for before all have read what was there": (
        WAIT + ASK_ACTIVATIONS,
        ASK_ACTIVATIONS + WAIT.replace("<1>", "<2>"),
    ),
    "activations in the place of those that are read": (
        "shared.slots[slot ^ 1].activations",
        "shared.slots[slot].activations",
    ),
    "weights that some lanes have not read": ("__syncwarp();  // All lanes have read theirs.", ""),
    "weights in the place of the next": (
        "tile.ask(weights, next, lane)",
        "tile.ask(shared.slots[slot ^ 1].weights[warp], next, lane)",
    ),
    "halves of the unit exchanged": ("from + half * 4", "from + 4 - half * 4"),
    "the worths of another group": ("group * S::groups_a_unit + k;", "group * S::groups_a_unit;"),
    "the worths of another column": ("k * columns * kTokens + warp * kTokens", "warp * kTokens"),
    "turns as they come": ("(turn & 1) << 2 | (turn & 2) | turn >> 2", "turn"),
    "sums of a turn that go on": ("totals[k] = 0.0F;", ""),
    "sums of another thread": (
        "__fadd_rn((*waiting)[k][thread], totals[k])",
        "__fadd_rn((*waiting)[k][thread ^ 1], totals[k])",
    ),
    "a row beyond the last": ("row >= of_rows ||", "row > of_rows ||"),
    "tokens beyond the last": ("|| token >= end", ""),
    "the tokens of the first block": ("static_cast<int>(blockIdx.x) * most", "0 * most"),
}
FAULTS_OF_SPLIT = {
    "terms of all groups in one sum": (
        "p[k] = __fadd_rn(p[k], terms",
        "p[0] = __fadd_rn(p[0], terms",
    ),
    "groups that are not there": ("if (g + k < groups)", ""),
    "units left out": ("blockIdx.x * kWarpsABlock + warp,", "warp,"),
    "rows beyond the last": ("row >= rows ||", ""),
    "results beyond the last": ("if (i >= results)", "if (i > results)"),
}


def assert_equals_the_reference(x, packed, norms, bits, group, rotation, device):
    found = multiply(device, x, packed, norms, bits, group, rotation)
    assert_same(found, reference.linear(x, packed, norms, bits, group, rotation))


def dtype_of(bits, group, tokens):
    """One for each instance, so that few are compiled and every dtype occurs with every width."""
    columns = calls.columns_for(tokens, group)
    return DTYPES[(bits + GROUPS.index(group) + columns.bit_length()) % 3]


@settings(max_examples=40)
@given(
    bits=st.sampled_from(BITS),
    group=st.sampled_from(GROUPS),
    n=st.sampled_from([1, 2, 7, 8, 9, 17]),
    missing=st.sampled_from([0, 1, 8, 31]),
    tokens=st.integers(1, 40),
    rows=st.integers(1, 70),
    kinds=st.lists(st.tuples(st.sampled_from(SPECIAL), st.integers(0, 39)), max_size=3),
    order=st.sampled_from(list(ORDERS)),
    processors=st.sampled_from([FEW, SOME, MANY]),
    seed=st.integers(0, 2**31),
)
def test_any_layer_gives_what_the_reference_gives(
    bits, group, n, missing, tokens, rows, kinds, order, processors, seed
):
    x = activations(tokens, n * group - missing, dtype_of(bits, group, tokens), seed)
    for kind, token in kinds:
        spoil(x, kind, token % tokens)
    packed, norms = layer(rows, n, bits, group, seed)
    device = Device(order, processors)
    assert_equals_the_reference(x, packed, norms, bits, group, group, device)


@pytest.mark.parametrize("processors", [FEW, MANY])
@pytest.mark.parametrize(("bits", "group"), list(itertools.product(BITS, GROUPS)))
def test_more_groups_than_partial_sums_and_several_tiles(bits, group, processors):
    x = activations(3, 41 * group - 3, dtype_of(bits, group, 3))
    packed, norms = layer(70, 41, bits, group)
    device = Device("random", processors)
    assert_equals_the_reference(x, packed, norms, bits, group, group, device)


@pytest.mark.parametrize("tokens", [*range(1, 10), 16, 17, 32, 33, 70])
def test_numbers_of_tokens(tokens):
    x = activations(tokens, 400, dtype_of(3, 128, tokens))
    assert_equals_the_reference(x, *layer(33, 4), 3, 128, 128, Device("reverse"))


@pytest.mark.parametrize(("bits", "group"), list(itertools.product(BITS, GROUPS)))
def test_each_number_of_turns_that_a_block_may_have(bits, group, monkeypatch):
    found, kept = [], calls.turns_of_a_block
    x = activations(7, 41 * group - 3, dtype_of(bits, group, 7))
    packed, norms = layer(41, 41, bits, group)
    most = 8 // max(1, 128 // group)
    for turns in (1 << i for i in range(most.bit_length())):
        monkeypatch.setattr(calls, "turns_of_a_block", lambda *_, turns=turns: turns)
        device = Device("random")
        assert_equals_the_reference(x, packed, norms, bits, group, group, device)
        found.append(device.launched[-2].arguments[4].shape[0])
    assert found == [8 // (1 << i) for i in range(most.bit_length())]
    assert kept(device, 2, bits, group, 2) == most


def test_partial_sums_go_through_memory_by_so_many_rows_as_a_cache_holds(monkeypatch):
    monkeypatch.setattr(calls, "SUMS_BYTES", 1)
    x = activations(6, 250)
    device = Device("random")
    assert_equals_the_reference(x, *layer(521, 2), 3, 128, 128, device)
    shared = [call for call in device.launched if call.kernel == "share"]
    assert [call.arguments[4].shape[2] for call in shared] == [256, 256, 9]


@pytest.mark.parametrize("processors", [FEW, MANY])
def test_norms_that_overflow_or_vanish_do_so_as_in_the_reference(processors):
    packed, norms = layer(33, 17)
    norms[::3] *= 1e38
    norms[1::3] *= 1e-42
    for dtype in DTYPES:
        x = activations(2, 17 * 128, dtype)
        device = Device("forward", processors)
        assert_equals_the_reference(x, packed, norms, 3, 128, 128, device)


def test_blocks_share_a_tile_where_a_device_has_more_of_them():
    few_tiles = {"tiles": 4, "units": 40, "group": 128}
    assert calls.parts_of_a_tile(**few_tiles, processors=108) == 5
    assert calls.parts_of_a_tile(**few_tiles, processors=4) == 1
    assert calls.parts_of_a_tile(**few_tiles | {"tiles": 100}, processors=132) == 2


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("bits", BITS)
def test_jobs_multiply_their_tokens_by_their_layer(bits, columns):
    layers = [layer(70, 9, bits, 64, seed) for seed in range(3)]
    repacked = [layout.repack(*each, bits, 64) for each in layers]
    tiles = layout.Tiles(*map(torch.stack, zip(*repacked, strict=True)))
    x = activations(7, 9 * 64, dtype_of(bits, 64, 4))
    jobs = torch.tensor([[2, 0, 3, 0], [0, 3, 7, 0], [1, 0, 0, 0]], dtype=torch.int32)
    device = Device("random")
    quantised = calls.quantise(device, x, 9, bits, 64, 64)
    found = calls.multiply_jobs(device, tiles, quantised, 70, 64, x.dtype, jobs, columns)
    pairs = (x[:3], layers[2]), (x[3:], layers[0])
    expected = torch.cat([reference.linear(x, *each, bits, 64) for x, each in pairs])
    assert_same(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_results_are_rounded_as_torch_rounds(dtype):
    rng = np.random.default_rng(0)
    words = rng.integers(-(2**31), 2**31, 100_000, np.int64).astype(np.int32)
    exact = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    beside = [(exact.view(torch.int32) + step).view(torch.float32) for step in (-1, 0, 1)]
    between = (exact[1:] + exact[:-1]) / 2
    around = [(between.view(torch.int32) + step).view(torch.float32) for step in (-1, 0, 1)]
    edges = torch.tensor([65519.996, 65520, 65504, 2.0**-24, 2.0**-25, 3 * 2.0**-26, -0.0])
    values = torch.cat([torch.from_numpy(words).view(torch.float32), *beside, *around, edges])
    found = torch.empty(len(values), dtype=dtype)
    library = compiled_kernel(source.kernel("split"), "add_terms<Dtype::kF32>")
    assert call(library.stored, DTYPES.index(dtype), len(values), values, found) == ""
    assert_same(found, values.to(dtype))


FAULTY = [
    *(("multiply", fault) for fault in (FAULTS | FAULTS_OF_MULTIPLY).items()),
    *(("share", fault) for fault in FAULTS_OF_SHARE.items()),
    *(("split", fault) for fault in FAULTS_OF_SPLIT.items()),
]


@pytest.mark.parametrize(("kernel", "fault"), FAULTY, ids=lambda each: each[0])
def test_a_fault_is_seen(kernel, fault):
    _, (right, wrong) = fault
    text = source.kernel(kernel)
    assert text.count(right) == 1
    processors = {"multiply": FEW, "share": SOME, "split": MANY}[kernel]
    few, more = {"multiply": (3, 3), "share": (7, 37), "split": (3, 3)}[kernel]
    with pytest.raises(AssertionError):
        for order, group in itertools.product(ORDERS, (128, 64)):
            texts: Any = {kernel: text.replace(right, wrong)}
            device = Device(order, processors, **texts)
            packed, norms = layer(41, 41, 3, group)
            for tokens in (few, more)[: 1 + (few < more)]:
                x = activations(tokens, 41 * group - 3)
                assert_equals_the_reference(x, packed, norms, 3, group, group, device)
