"""Both kernels together, run on the processor, equal the reference bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from emulated import BITS, DTYPES, NAMES, ORDERS, Device, call, compiled_kernel, multiply
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import GROUPS, activations, assert_same, layer, problems

from tq3.runtime import reference
from tq3.runtime.cuda import source

SOURCE = source.kernel("multiply")

# Each makes the kernel wrong, and the check below must see it: what it does, and what it becomes.
FAULTS = {
    "a level": ("0x58371f0aU", "0x59371f0aU"),
    "a code's highest bit": ("words[2] >> 1 & 4 * kOnes", "words[2] >> 1 & 2 * kOnes"),
    "rows exchanged": (
        "a[1] = __byte_perm(low, high, lower)",
        "a[1] = __byte_perm(low, high, upper)",
    ),
    "halves of the unit exchanged": ("x.half[stretch / 2]", "x.half[1 - stretch / 2]"),
    "low bytes as high ones": ("256 * high + low", "256 * low + high"),
    "sums that go on": ("high = low = 0", "high = 0"),
    "another order of factors": (
        "__fmul_rn(__fmul_rn(sum, worth), norm.value[i])",
        "__fmul_rn(sum, __fmul_rn(worth, norm.value[i]))",
    ),
    "another order of partial sums": ("p[k], p[k + half]", "p[k], p[2 * half - 1 - k]"),
    "the norms of other rows": ("g * 8 + lane / 4", "g * 8 + lane % 4"),
    "the worths of another token": ("g * work.tokens + token", "g * work.tokens"),
    "no barrier before partial sums are read": (
        "        __syncthreads();\n        constexpr",
        "        constexpr",
    ),
    "no barrier before they are written again": ("if (c > 0) __syncthreads();", ""),
    "rows beyond the last": ("row >= rows ||", ""),
    "tokens beyond the last": ("|| token >= tokens", ""),
}


@pytest.fixture(scope="module")
def rotating(tmp_path_factory):
    return compiled_kernel("rotate_quantise", tmp_path_factory.mktemp("rotating"))


@pytest.fixture(scope="module")
def multiplying(tmp_path_factory):
    return compiled_kernel("multiply", tmp_path_factory.mktemp("multiplying"))


def assert_equals_the_reference(kernels, x, packed, norms, bits, group, rotation, order):
    device = Device(order, rotate_quantise=kernels[0], multiply=kernels[1])
    found = multiply(device, x, packed, norms, bits, group, rotation)
    assert_same(found, reference.linear(x, packed, norms, bits, group, rotation))


@settings(max_examples=40)
@given(problem=problems(most_tokens=32, widths=BITS), order=st.sampled_from(list(ORDERS)))
def test_any_layer_gives_what_the_reference_gives(rotating, multiplying, problem, order):
    bits, group, rotation, x, packed, norms = problem
    kernels = rotating, multiplying
    assert_equals_the_reference(kernels, x, packed, norms, bits, group, rotation, order)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", GROUPS)
def test_more_groups_than_partial_sums_and_several_tiles(rotating, multiplying, bits, group):
    x = activations(3, 21 * group - 3, torch.bfloat16)
    packed, norms = layer(70, 21, bits, group)
    kernels = rotating, multiplying
    assert_equals_the_reference(kernels, x, packed, norms, bits, group, group, "random")


@pytest.mark.parametrize("tokens", [*range(1, 10), 16, 17, 32, 33, 70])
def test_numbers_of_tokens(rotating, multiplying, tokens):
    x = activations(tokens, 400, DTYPES[tokens % 3])
    kernels = rotating, multiplying
    assert_equals_the_reference(kernels, x, *layer(33, 4), 3, 128, 128, "reverse")


def test_large_and_tiny_norms_overflow_and_vanish_alike(rotating, multiplying):
    packed, norms = layer(33, 9)
    norms[::3] *= 1e38
    norms[1::3] *= 1e-42
    for dtype in DTYPES:
        x = activations(2, 1152, dtype)
        kernels = rotating, multiplying
        assert_equals_the_reference(kernels, x, packed, norms, 3, 128, 128, "forward")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_results_are_rounded_as_torch_rounds(multiplying, dtype):
    rng = np.random.default_rng(0)
    words = rng.integers(-(2**31), 2**31, 100_000, np.int64).astype(np.int32)
    exact = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    beside = [(exact.view(torch.int32) + step).view(torch.float32) for step in (-1, 0, 1)]
    between = (exact[1:] + exact[:-1]) / 2
    around = [(between.view(torch.int32) + step).view(torch.float32) for step in (-1, 0, 1)]
    edges = torch.tensor([65519.996, 65520, 65504, 2.0**-24, 2.0**-25, 3 * 2.0**-26, -0.0])
    values = torch.cat([torch.from_numpy(words).view(torch.float32), *beside, *around, edges])
    found = torch.empty(len(values), dtype=dtype)
    assert call(multiplying.stored, DTYPES.index(dtype), len(values), values, found) == ""
    assert_same(found, values.to(dtype))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(rotating, fault, tmp_path):
    right, wrong = FAULTS[fault]
    assert SOURCE.count(right) == 1
    faulty = compiled_kernel("multiply", tmp_path, SOURCE.replace(right, wrong), NAMES[2:])
    with pytest.raises(AssertionError):
        for order in ORDERS:
            for group in (64, 128):
                x = activations(7, 20 * group - 3)
                width = 3, group, group
                packed, norms = layer(41, 20, 3, group)
                assert_equals_the_reference((rotating, faulty), x, packed, norms, *width, order)
