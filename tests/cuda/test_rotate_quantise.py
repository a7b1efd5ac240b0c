"""The activations' kernel, run on the processor, equals the reference bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cuda.emulated import ORDERS, Device, call, compiled_kernel, quantise
from support.runtime.layers import DTYPES, ROTATIONS, SPECIAL, activations, assert_same, spoil

from tq3.runtime import arithmetic as fixed
from tq3.runtime import reference
from tq3.runtime.cuda import source

SOURCE = source.kernel("rotate_quantise")

# Each makes the kernel wrong, and some test below must see it: what it does, and what it becomes.
FAULTS = {
    "strides rise": (
        "stride = kLanes / 2; stride > 0; stride /= 2",
        "stride = 1; stride < kLanes; stride *= 2",
    ),
    "a difference the other way": ("__fsub_rn(other, mine)", "__fsub_rn(mine, other)"),
    "a sum for a difference": ("__fsub_rn(a, b)", "__fadd_rn(a, b)"),
    "a reciprocal for a quotient": (
        "__fdiv_rn(magnitude, kLargest)",
        "__fmul_rn(magnitude, __fdiv_rn(1.0F, kLargest))",
    ),
    "the second signs of the first 32": ("factors[i * kLanes + lane]", "factors[lane]"),
    "rounded down": ("__float2int_rn(__fmul_rn(values[i], step))", "(int)(values[i] * step)"),
    "an unsigned low byte": (
        "const signed char low = static_cast<signed char>",
        "const int low = ",
    ),
    "a NaN that counts as zero": (
        "finite ? __fmul_rn(scale, unit) :",
        "true ? __fmul_rn(scale, unit) :",
    ),
    "tiny groups kept": ("127U - 100U", "127U - 126U"),
    "tokens side by side": ("worths[job]", "worths[token * padded_groups + g]"),
    "two times 32 inputs swapped": ("stretch % 2 * 8", "(1 - stretch % 2) * 8"),
    "a half's infinity taken for a number": (
        "finite ? scaled : scaled | kInfinity",
        "finite ? scaled : scaled",
    ),
    "reads beyond the row": ("column < columns ?", "true ?"),
}


def assert_equals_the_reference(text, x, n, group, rotation, order="forward"):
    unit = fixed.unit(3, group, rotation)
    device = Device(order, rotate_quantise=text)
    integers, worths = quantise(device, x, n, 3, group, rotation)
    expected, scales = reference.quantise(reference.rotate(x, n, group, rotation))
    assert torch.equal(integers[:, :n], expected)
    assert_same(worths[:, :n].contiguous(), scales * unit)
    assert not integers[:, n:].any()
    assert not worths[:, n:].any()


def check_every_width(text):
    for seed, (group, rotation) in enumerate(ROTATIONS):
        x = activations(3, 5 * group - 5, DTYPES[seed % 3], seed)
        assert_equals_the_reference(text, x, 5, group, rotation)


def check_every_kind(text):
    for dtype in DTYPES:
        for kind in SPECIAL:
            x = spoil(activations(3, 250, dtype), kind, 1)
            assert_equals_the_reference(text, x, 2, 128, 128)


def check_every_half(text):
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    floats = torch.empty(len(halves))
    kernel = compiled_kernel(text, "rotate_quantise<Dtype::kF32, 32, 32>")
    assert call(kernel.floats_of_halves, len(halves), halves, floats) == ""
    assert_same(floats, halves.view(torch.float16).float())


def check_around_the_smallest(text):
    x = torch.zeros(5, 32)
    x[:, 0] = torch.tensor([1.0, 1 - 2.0**-24, 1 + 2.0**-23, 2.0, 0.5]) * fixed.SMALLEST
    assert_equals_the_reference(text, x, 1, 32, 32)


CHECKS = (check_every_width, check_every_kind, check_every_half, check_around_the_smallest)


@settings(max_examples=30)
@given(
    width=st.sampled_from(ROTATIONS),
    n=st.sampled_from([1, 2, 3, 4, 5, 9]),
    missing=st.sampled_from([0, 1, 8, 31]),
    tokens=st.integers(1, 9),
    kinds=st.lists(st.tuples(st.sampled_from(SPECIAL), st.integers(0, 8)), max_size=3),
    order=st.sampled_from(list(ORDERS)),
    seed=st.integers(0, 2**31),
)
def test_any_activations_give_what_the_reference_gives(
    width, n, missing, tokens, kinds, order, seed
):
    x = activations(tokens, n * width[0] - missing, DTYPES[ROTATIONS.index(width) % 3], seed)
    for kind, row in kinds:
        spoil(x, kind, row % tokens)
    assert_equals_the_reference(SOURCE, x, n, width[0], width[1], order)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_kernel_passes(check):
    check(SOURCE)


def test_the_largest_integer_needs_no_clamp():
    largest = torch.arange(0x3F800000, 0x40000000, dtype=torch.int32).view(torch.float32)
    steps = torch.full_like(largest, fixed.LARGEST) / largest
    assert float((largest * steps).max()) < fixed.LARGEST + 0.01


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault):
    right, wrong = FAULTS[fault]
    assert SOURCE.count(right) == 1
    faulty = SOURCE.replace(right, wrong)
    with pytest.raises(AssertionError):
        for check in CHECKS:
            check(faulty)
