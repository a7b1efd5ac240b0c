"""Every compiled kernel of this machine equals the reference bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
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

from tq3.errors import UsageError
from tq3.runtime import arithmetic, generic, reference

native = pytest.importorskip("tq3.runtime.native", reason="installed without kernels")

NAMES = native.available_kernels()
every_kernel = pytest.mark.parametrize(
    "kernels", [native.get_kernels(name) for name in NAMES], ids=NAMES
)


def assert_equals_the_reference(kernels, x, packed, norms, bits, group, rotation):
    out = torch.full((len(x), len(norms)), 7.0, dtype=x.dtype)
    kernels.linear(x, packed, norms, bits, group, rotation, out)
    assert_same(out, reference.linear(x, packed, norms, bits, group, rotation))


@every_kernel
@settings(max_examples=60)
@given(problem=problems())
def test_any_layer_gives_what_the_reference_gives(kernels, problem):
    bits, group, rotation, x, packed, norms = problem
    assert_equals_the_reference(kernels, x, packed, norms, bits, group, rotation)


@every_kernel
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("n", [1, 7, 8, 9, 40, 139])
@pytest.mark.parametrize("tokens", [3, 17])
def test_every_number_of_groups_around_the_octets(kernels, bits, group, n, tokens):
    x = activations(tokens, n * group - 3, torch.bfloat16)
    packed, norms = layer(5, n, bits, group)
    assert_equals_the_reference(kernels, x, packed, norms, bits, group, group)


@every_kernel
@pytest.mark.parametrize("tokens", [*range(1, 33), 33, 48, 65])
def test_every_number_of_tokens(kernels, tokens):
    x = activations(tokens, 1100, torch.bfloat16)
    assert_equals_the_reference(kernels, x, *layer(65, 9), 3, 128, 128)


@every_kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("tokens", [3, 6])
def test_special_activations_give_what_the_reference_gives(kernels, dtype, kind, tokens):
    x = spoil(activations(tokens, 400, dtype), kind, 1)
    assert_equals_the_reference(kernels, x, *layer(33, 4), 3, 128, 128)


@every_kernel
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("tokens", [2, 7])
def test_the_largest_sums_of_a_group_are_exact(kernels, bits, tokens):
    """All activations are alike in rotated space, and all levels outermost."""
    first, second = arithmetic.signs(256, torch.device("cpu"))
    x = (first * arithmetic.transform(second, 256)).repeat(tokens, 1)
    x[::2] *= -1
    integers, _ = reference.quantise(reference.rotate(x, 1, 256, 256))
    assert (integers.abs() == arithmetic.LARGEST).all()
    packed = torch.tensor([0, 255], dtype=torch.uint8)[:, None].repeat(1, 32 * bits)
    assert_equals_the_reference(kernels, x, packed, torch.ones(2, 1), bits, 256, 256)


@every_kernel
@pytest.mark.parametrize("tokens", [2, 7])
def test_norms_that_overflow_or_vanish_do_so_as_in_the_reference(kernels, tokens):
    packed, norms = layer(33, 9)
    norms[::3] *= 1e38
    norms[1::3] *= 1e-42
    assert_equals_the_reference(kernels, activations(tokens, 1152), packed, norms, 3, 128, 128)


@every_kernel
def test_a_layer_of_many_blocks_is_the_same_on_every_number_of_threads(kernels):
    x, (packed, norms) = activations(2, 1280), layer(1111, 10)
    expected = reference.linear(x, packed, norms, 3, 128)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = torch.empty_like(expected)
            kernels.linear(x, packed, norms, 3, 128, 128, out)
            assert_same(out, expected)
    finally:
        torch.set_num_threads(before)


@every_kernel
def test_a_caller_that_flushes_denormals_changes_nothing(kernels):
    x, (packed, norms) = spoil(activations(3, 400), "tiny", 1), layer(33, 4)
    norms *= 1e-8
    expected = reference.linear(x, packed, norms, 3, 128)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush")
    try:
        out = torch.empty_like(expected)
        kernels.linear(x, packed, norms, 3, 128, 128, out)
    finally:
        torch.set_flush_denormal(False)
    assert_same(out, expected)


@every_kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", GROUPS)
def test_decoded_tiles_are_levels_times_norms(kernels, bits, group, dtype):
    packed, norms = layer(11, 5, bits, group)
    out = torch.empty(6, 5 * group, dtype=dtype)
    kernels.decode(packed, norms, bits, group, 3, out)
    assert_same(out, generic.decode(packed[15:45], norms[3:9], bits, group).to(dtype))


@every_kernel
@pytest.mark.parametrize(("group", "rotation"), ROTATIONS)
def test_rotated_activations_are_those_of_the_generic_path(kernels, group, rotation):
    x = activations(4, 3 * group - 7)
    out = torch.empty(4, 3 * group)
    kernels.rotate(x, 3, group, rotation, out)
    torch.testing.assert_close(out, generic.rotate(x, 3, group, rotation), rtol=1e-6, atol=1e-5)


def test_the_last_kernels_are_portable_and_the_first_are_the_default():
    assert NAMES[-1] == "portable"
    assert native.get_kernels().name == NAMES[0]


def test_unknown_kernels_are_an_error_that_lists_the_known_ones():
    with pytest.raises(UsageError, match="'abacus'.*portable"):
        native.get_kernels("abacus")
