"""The kernels as NVRTC compiles them, run on the processor, equal the reference bit for bit.

It takes minutes, and is skipped where record.py says that it passed with these very kernels.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings, nvidia-cuda-nvrtc")

import test_multiply
import test_rotate_quantise
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cuda import record
from support.cuda.emulated import multiply, quantise
from support.cuda.ptx.device import SHARED_BYTES, Device
from support.cuda.ptx.parsing import Fault
from support.runtime.layers import (
    BITS,
    DTYPES,
    GROUPS,
    ROTATIONS,
    SPECIAL,
    activations,
    assert_same,
    layer,
    problems,
    spoil,
)

from tq3.runtime import arithmetic as fixed
from tq3.runtime import generic, reference
from tq3.runtime.cuda import calls, compiler, layout, many, pairs, source
from tq3.runtime.cuda.calls import MOST_COLUMNS

pytestmark = pytest.mark.skipif(
    record.has_passed(record.digest()) and record.has_passed(record.nvrtc()),
    reason="passed with these kernels and this NVRTC (tests/support/cuda/ptx/passed.txt)",
)

# From sm_90 on kernels may start early, and from sm_100 on NVRTC writes another PTX.
ARCHITECTURES = {"sm_80": ("sm_89",), "sm_90": (), "sm_100": ("sm_120",)}


@pytest.mark.parametrize(("one", "others"), ARCHITECTURES.items())
@pytest.mark.parametrize(
    "instance",
    [
        "multiply<Dtype::kBF16, 3, 64>",
        "multiply_shared<3, 64, 4>",
        "rotate_quantise<Dtype::kF16, 128, 64>",
    ],
)
def test_the_ptx_of_one_architecture_stands_for_that_of_others(instance, one, others):
    kernel = instance.split("<", maxsplit=1)[0].replace("multiply_shared", "share")
    text = compiler.intermediate(kernel, instance, one)
    for other in others:
        assert compiler.intermediate(kernel, instance, other).replace(other, one) == text


def assert_equals_the_reference(device, x, packed, norms, bits, group, rotation):
    found = multiply(device, x, packed, norms, bits, group, rotation)
    assert_same(found, reference.linear(x, packed, norms, bits, group, rotation))


def assert_quantised_as_the_reference(device, x, n, group, rotation):
    integers, worths = quantise(device, x, n, 3, group, rotation)
    expected, scales = reference.quantise(reference.rotate(x, n, group, rotation))
    assert torch.equal(integers[:, :n], expected)
    assert_same(worths[:, :n].contiguous(), scales * fixed.unit(3, group, rotation))
    assert not integers[:, n:].any()
    assert not worths[:, n:].any()


@settings(max_examples=30, deadline=None)
@given(problem=problems(most_tokens=32), architecture=st.sampled_from(list(ARCHITECTURES)))
def test_any_layer_gives_what_the_reference_gives(problem, architecture):
    bits, group, rotation, x, packed, norms = problem
    device = Device(architecture)
    assert_equals_the_reference(device, x, packed, norms, bits, group, rotation)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("tokens", [1, 7, 13, 32, 35])
def test_odd_numbers_of_groups_rows_and_tokens(bits, group, tokens):
    x = activations(tokens, 21 * group - 3, DTYPES[tokens % 3])
    device = Device(list(ARCHITECTURES)[tokens % 3])
    assert_equals_the_reference(device, x, *layer(70, 21, bits, group), bits, group, group)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", GROUPS)
def test_blocks_that_share_a_tile(bits, group, architecture):
    n = 17 * max(1, 128 // group)
    x = activations(3, n * group - 3, DTYPES[bits % 3])
    device = Device(architecture, processors=test_multiply.MANY)
    assert_equals_the_reference(device, x, *layer(70, n, bits, group), bits, group, group)
    assert device.traffic.keys() == {"rotate_quantise", "multiply_terms", "add_terms"}


def assert_experts(device):
    made = [layer(70, 9, 3, 128, seed) for seed in range(4)]
    codes, norms = map(torch.stack, zip(*made, strict=True))
    layers = layout.repack(codes, norms, 3, 128)
    x, experts = activations(11, 9 * 128 - 3), torch.tensor([2, 0, 2, 2, 0, 3, 2, 2, 0, 0, 2])
    routing = pairs.route(experts, len(layers.words), 128)
    found = pairs.multiply(device, x, layers, routing, 70, 128, 128)
    alone = [reference.linear(x[i : i + 1], *made[int(e)], 3, 128) for i, e in enumerate(experts)]
    assert_same(found, torch.cat(alone))


def assert_many_experts(device):
    """Two columns of tokens a job, and one job that ends in the middle of the first."""
    made = [layer(70, 9, 3, 128, seed) for seed in range(2)]
    tiles = [layout.repack(*each, 3, 128) for each in made]
    layers = layout.Tiles(*map(torch.stack, zip(*tiles, strict=True)))
    x = activations(11, 9 * 128 - 3)
    jobs = torch.tensor([[1, 0, 8, 0], [0, 8, 11, 0], [1, 11, 11, 0]], dtype=torch.int32)
    quantised = calls.quantise(device, x, 9, 3, 128, 128)
    found = calls.multiply_jobs(device, layers, quantised, 70, 128, x.dtype, jobs, 2)
    alone = [reference.linear(x[:8], *made[1], 3, 128), reference.linear(x[8:], *made[0], 3, 128)]
    assert_same(found, torch.cat(alone))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_experts_multiply_as_their_layers_do_alone(architecture):
    assert_experts(Device(architecture))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_experts_of_many_pairs(architecture):
    assert_many_experts(Device(architecture))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", GROUPS)
def test_rotated_activations_and_decoded_weights(bits, group, architecture):
    device: Any = Device(architecture)
    dtype = DTYPES[(bits + group // 64) % 3]
    x = activations(3, 5 * group - 3, dtype)
    found = many.rotate(device, x, 5, group, 32)
    assert_same(found, generic.rotate(x, 5, group, 32).to(dtype))
    packed, norms = layer(41, 5, bits, group)
    weights = torch.empty(41, 5 * group, dtype=dtype)
    many.decode(device, layout.repack(packed, norms, bits, group), group, weights)
    assert_same(weights, generic.decode(packed, norms, bits, group).to(dtype))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("group", "rotation"), ROTATIONS)
def test_activations_of_every_kind(group, rotation, architecture):
    for i, kind in enumerate(SPECIAL):
        x = spoil(activations(3, 3 * group - 5, DTYPES[i % 3], i), kind, 1)
        assert_quantised_as_the_reference(Device(architecture), x, 3, group, rotation)


def traffic_of(bits, group, tokens, n=16, processors=1):
    """Of a call in whole tiles and units, by argument: words, norms, integers, worths, results."""
    device = Device(processors=processors)
    x = activations(tokens, n * group, torch.bfloat16)
    assert_equals_the_reference(device, x, *layer(ROWS, n, bits, group), bits, group, group)
    kernel = "multiply_shared" if tokens > 4 else "multiply"
    return device.traffic[kernel], device.conflicts[kernel], device.traffic.get("add_terms", [])


ROWS = 256  # eight tiles


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("columns", [1, 8])
def test_weights_are_read_once_and_in_whole_sectors(bits, group, columns):
    tokens = 4 * min(columns, MOST_COLUMNS[group])
    (words, norms, *_), *_ = traffic_of(bits, group, tokens)
    weights = ROWS * 16 * group
    assert words["ld"].sectors == weights * bits // 8 // 32
    assert norms["ld"].sectors == norms["ld"].ideal == weights // group * 4 // 32


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("tokens", [1, 32])
def test_activations_and_results_go_in_whole_sectors(group, tokens):
    (_, _, integers, worths, results), *_ = traffic_of(3, group, tokens)
    assert integers["ld"].sectors == integers["ld"].ideal
    # A lane's worth may begin in the middle of a sector, and a column's four fill half of one.
    assert worths["ld"].sectors <= 2 * worths["ld"].ideal
    assert results["st"].sectors == results["st"].ideal


def test_partial_sums_meet_in_as_few_passes_of_the_banks_as_there_can_be():
    _, conflicts, _ = traffic_of(3, 128, 4)
    assert conflicts.passes == conflicts.ideal


@pytest.mark.parametrize(
    ("processors", "turns", "most"), [(1, 4, 0.78), (2, 2, 0.88), (9, 1, 1.08)]
)
def test_eight_tiles_read_activations_once(processors, turns, most):
    """Of the caches, 32 tokens take so many bytes a weight of 5120 columns: docs/kernels.md."""
    of_product, conflicts, of_sums = traffic_of(3, 128, 32, 40, processors)
    weights = ROWS * 40 * 128
    *_, integers, worths, sums = of_product
    assert integers["ld"].sectors * 32 == 32 * 40 * 256
    assert worths["ld"].sectors == 32 // 4 * 40  # half of each is another column's
    assert sums["st"].sectors * 32 == of_sums[0]["ld"].sectors * 32 == 8 // turns * 32 * ROWS * 4
    sectors = sum(way.sectors for each in (*of_product, *of_sums) for way in each.values())
    assert sectors * 32 / weights <= most
    # The compiler reads one word of a lane's codes by itself, four lanes of a bank.
    assert conflicts.passes <= 1.03 * conflicts.ideal


class _OneFaulty:
    """A device whose `kernel` is compiled from another text."""

    def __init__(self, kernel, text, architecture="sm_80", processors=test_multiply.FEW):
        self.processors, self.shared_bytes = processors, SHARED_BYTES
        self._kernel, self._right = kernel, Device(architecture)
        self._wrong = Device(architecture, text)

    def launch(self, call):
        (self._wrong if call.kernel == self._kernel else self._right).launch(call)


def from_source(monkeypatch, faulty):
    """The PTX of another source."""

    def text(kernel, instance):
        with monkeypatch.context() as patch:
            patch.setattr(source, "kernel", lambda _: faulty)
            return compiler.intermediate(kernel, instance, "sm_80")

    return text


def multiplies(device):
    for group in (64, 128):
        x = activations(3, 41 * group - 3)
        assert_equals_the_reference(device, x, *layer(41, 41, 3, group), 3, group, group)


def shares(device):
    for group in (64, 128):
        x = activations(7, 41 * group - 3)
        assert_equals_the_reference(device, x, *layer(41, 41, 3, group), 3, group, group)
    x = activations(37, 250)
    assert_equals_the_reference(device, x, *layer(33, 2), 3, 128, 128)


CHECKS = {"multiply": multiplies, "share": shares}


def quantises(device):
    for dtype, group, rotation in (
        (torch.float32, 128, 128),
        (torch.float16, 128, 32),
        (torch.float32, 32, 32),
    ):
        for kind in SPECIAL:
            x = spoil(activations(3, 3 * group - 6, dtype), kind, 1)
            assert_quantised_as_the_reference(device, x, 3, group, rotation)
    x = torch.zeros(3, 32)
    x[:, 0] = torch.tensor([1.0, 1 - 2.0**-24, 0.5]) * fixed.SMALLEST
    assert_quantised_as_the_reference(device, x, 1, 32, 32)


def test_the_checks_below_pass_without_a_fault():
    multiplies(Device())
    shares(Device())
    quantises(Device())


OF_MULTIPLY = test_multiply.FAULTS_OF_MULTIPLY
MINE = "job.first + warp * kTokens + lane / 8"
# What the emulated device lets pass: memory beyond a tensor is read, and not used.
BEYOND = {
    "tiles beyond the last": ("min(first_tile + number, tiles - 1)", "first_tile + number"),
    "tokens beyond the last": ("min(job.first + warp * kTokens + lane / 8, job.end - 1)", MINE),
}
FAULTS = [
    *(("multiply", *each) for each in (*test_multiply.FAULTS.items(), *OF_MULTIPLY.items())),
    *(("share", *each) for each in (*test_multiply.FAULTS_OF_SHARE.items(), *BEYOND.items())),
]


@pytest.mark.parametrize(("kernel", "fault", "change"), FAULTS, ids=lambda each: each[0])
def test_a_fault_in_the_multiplication_is_seen(kernel, fault, change, monkeypatch):
    right = source.kernel(kernel)
    assert right.count(change[0]) == 1
    faulty = right.replace(*change)
    with pytest.raises(AssertionError):
        CHECKS[kernel](_OneFaulty(kernel, from_source(monkeypatch, faulty)))


@pytest.mark.parametrize("fault", test_rotate_quantise.FAULTS)
def test_a_fault_in_the_rotation_is_seen(fault, monkeypatch):
    faulty = test_rotate_quantise.SOURCE.replace(*test_rotate_quantise.FAULTS[fault])
    with pytest.raises(AssertionError):
        quantises(Device(text=from_source(monkeypatch, faulty)))


def compiled(kernel, instance, architecture="sm_80"):
    return compiler.intermediate(kernel, instance, architecture)


def without(pattern, n, architecture="sm_80"):
    """The PTX less the n-th place that fits `pattern`."""

    def text(kernel, instance):
        whole = compiled(kernel, instance, architecture)
        found = list(re.finditer(pattern, whole))[n]
        return whole[: found.start()] + whole[found.end() :]

    return text


@pytest.mark.parametrize(("kernel", "n"), [("multiply", 0), ("multiply", 1), ("share", 0)])
def test_each_barrier_is_needed(kernel, n):
    with pytest.raises(Fault, match="a race|before it is written"):
        CHECKS[kernel](_OneFaulty(kernel, without(r"bar\.sync \t0;", n)))


@pytest.mark.parametrize("n", range(2))
def test_each_meeting_of_a_warp_is_needed(n):
    with pytest.raises(Fault, match="a race"):
        multiplies(_OneFaulty("multiply", without(r"bar\.warp\.sync \t-1;", n)))


def test_lanes_meet_before_codes_that_they_share_are_asked_for_anew():
    with pytest.raises(Fault, match="a race"):
        shares(_OneFaulty("share", without(r"bar\.warp\.sync \t-1;", 0)))


@pytest.mark.parametrize("kernel", ["rotate_quantise", "multiply", "share", "split"])
def test_each_wait_for_the_kernels_ahead_is_needed(kernel):
    processors = test_multiply.MANY if kernel == "split" else test_multiply.FEW
    # The first of a multiplication is for jobs.
    text = without(r"griddepcontrol\.wait;", kernel in CHECKS, "sm_90")
    device = _OneFaulty(kernel, text, "sm_90", processors)
    with pytest.raises(Fault, match="before the kernels ahead have ended"):
        x = activations(7 if kernel == "share" else 3, 2176)
        assert_equals_the_reference(device, x, *layer(41, 17), 3, 128, 128)


@pytest.mark.parametrize(
    ("kernel", "check"), [("multiply", assert_experts), ("share", assert_many_experts)]
)
def test_jobs_are_not_read_before_the_kernels_ahead_have_ended(kernel, check):
    text = without(r"griddepcontrol\.wait;", 0, "sm_90")
    with pytest.raises(Fault, match="memory is read before the kernels ahead have ended"):
        check(_OneFaulty(kernel, text, "sm_90"))


@pytest.mark.parametrize("kernel", ["rotate_quantise", "multiply", "share"])
def test_the_next_kernel_starts_behind_the_wait_for_those_ahead(kernel):
    """Else weights that are asked for early might still be written."""

    def text(kernel, instance):
        one, other = "griddepcontrol.wait", "griddepcontrol.launch_dependents"
        whole = compiled(kernel, instance, "sm_90")
        return other.join(part.replace(other, one) for part in whole.split(one))

    device = _OneFaulty(kernel, text, "sm_90")
    with pytest.raises(Fault, match="the next kernel may start before the kernels ahead"):
        x = activations(7 if kernel == "share" else 3, 250)
        assert_equals_the_reference(device, x, *layer(33, 2), 3, 128, 128)


def moved(pattern, by, n=0):
    """The PTX with the n-th address behind `pattern` moved by some bytes."""

    def text(kernel, instance):
        whole = compiled(kernel, instance)
        found = list(re.finditer(rf"{pattern}[^\]]*(?=\])", whole))[n]
        rest = whole[found.end() :]
        offset = re.search(r"\+(-?\d+)$", found[0])
        start = found[0][: offset.start()] if offset else found[0]
        return f"{whole[: found.start()]}{start}+{int(offset[1] if offset else 0) + by}{rest}"

    return text


COPY = r"cp\.async\.c[ga]\.shared\.global"


# Where copies go, and where they come from: those of words, then those of norms. Where activations
# are shared, the same twice over, then two of these and one of worths.
@pytest.mark.parametrize("pattern", [COPY, rf"{COPY} \[%r\d+\],"])
@pytest.mark.parametrize(
    ("kernel", "n"), [*(("multiply", n) for n in range(4)), *(("share", n) for n in range(11))]
)
def test_copies_to_or_from_a_wrong_place_are_seen(kernel, pattern, n):
    with pytest.raises(AssertionError):
        CHECKS[kernel](_OneFaulty(kernel, moved(pattern, 512, n)))


def test_a_block_needs_all_the_shared_memory_that_it_asks_for(monkeypatch):
    """x of 37 tokens, so that sums wait."""
    right = calls.shared_bytes
    monkeypatch.setattr(calls, "shared_bytes", lambda *of: right(*of) - 16)
    with pytest.raises(Fault, match="outside the"):
        shares(Device())


@pytest.mark.parametrize("pattern", [r"ld\.shared\.f32", r"st\.shared\.f32"])
@pytest.mark.parametrize("by", [4, 2, 4224])
def test_a_wrong_place_in_shared_memory_is_seen(pattern, by):
    with pytest.raises(AssertionError):
        multiplies(_OneFaulty("multiply", moved(pattern, by)))


@pytest.mark.parametrize("n", range(4))
def test_a_wrong_slot_is_seen(n):
    with pytest.raises(AssertionError):
        multiplies(_OneFaulty("multiply", moved(r"ld\.shared\.v4\.[uf]32", 512, n)))


def test_a_shuffle_from_another_lane_is_seen():
    def text(kernel, instance):
        return compiled(kernel, instance).replace("shfl.sync.bfly", "shfl.sync.down")

    with pytest.raises(AssertionError):
        quantises(Device(text=text))
