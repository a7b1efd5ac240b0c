"""The reference against exact arithmetic on the weights that the format defines."""

from __future__ import annotations

import pytest
import torch
from layers import (
    BITS,
    DTYPES,
    GROUPS,
    ROTATIONS,
    activations,
    decoded,
    encoded_layer,
    error,
    layer,
)

from tq3.runtime import arithmetic, generic, reference


def bf16_pipeline(x, weights):
    """x, weights and result rounded to bfloat16, sums in float64."""
    rounded = x.bfloat16().double() @ weights.bfloat16().double().T
    return rounded.bfloat16()


@pytest.mark.parametrize("bits", arithmetic.LEVELS)
@pytest.mark.parametrize("group", GROUPS)
def test_the_integer_arithmetic_errs_less_than_a_bfloat16_pipeline(bits, group):
    x = activations(16, 1024)
    weights = torch.randn(96, 1024, generator=torch.Generator().manual_seed(0))
    packed, norms = encoded_layer(weights, bits, group)
    weights = decoded(packed, norms, bits, group, 1024)
    exact = x.double() @ weights.T
    found = error(reference.linear(x, packed, norms, bits, group), exact)
    assert found < error(bf16_pipeline(x, weights), exact)
    assert found < (1.3e-3 if bits == 3 else 1e-4)


@pytest.mark.parametrize("bits", arithmetic.LEVELS)
def test_the_integer_codebook_is_the_codebook(bits):
    levels = torch.tensor(arithmetic.integer_codebook(bits)) * arithmetic.FACTOR[bits]
    exact = arithmetic.codebook(bits, 1, torch.device("cpu"))
    assert error(levels, exact.double()) ** 2 < (1.3e-6 if bits == 3 else 1e-13)


@pytest.mark.parametrize(("group", "rotation"), ROTATIONS)
def test_small_rotation_blocks_are_a_block_diagonal_transform(group, rotation):
    """The weights of such a layer are norm D1 H D2 c with H of the smaller blocks."""
    packed, norms = layer(5, 3, 3, group)
    x = activations(4, 3 * group)
    first, second = arithmetic.signs(group, torch.device("cpu"))
    rotated = generic.decode(packed, norms, 3, group).double().reshape(5, 3, group)
    dense = arithmetic.transform(torch.eye(rotation), rotation).double() / rotation**0.5
    blocks = torch.block_diag(*[dense] * (group // rotation))
    weights = (rotated * second) @ blocks * first
    exact = x.double() @ weights.reshape(5, -1).T
    assert error(reference.linear(x, packed, norms, 3, group, rotation), exact) < 1.5e-3
    assert error(generic.linear(x, packed, norms, 3, group, rotation), exact) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", GROUPS)
def test_the_generic_path_is_exact_within_rounding(bits, group, dtype):
    x = activations(3, 2 * group - 5, dtype)
    packed, norms = layer(7, 2, bits, group)
    exact = x.double() @ decoded(packed, norms, bits, group, 2 * group - 5).T
    rounding = {torch.float32: 1e-6, torch.float16: 4e-4, torch.bfloat16: 3e-3}[dtype]
    assert error(generic.linear(x, packed, norms, bits, group, group), exact) < rounding


def test_a_group_that_is_not_finite_makes_its_token_nan_and_no_other():
    x = activations(4, 300)
    x[1, 5], x[2, 290] = torch.nan, torch.inf
    y = reference.linear(x, *layer(6, 3), 3, 128)
    assert y.isnan().all(dim=1).tolist() == [False, True, True, False]


def test_groups_below_the_smallest_scale_are_zeros():
    x = torch.full((1, 128), 2.0**-110)
    assert not reference.linear(x, *layer(6, 1), 3, 128).any()


def test_no_rounding_of_the_reference_goes_through_a_reciprocal():
    """torch divides a number by a tensor that way; 32512 / 3 then differs in its last bit."""
    _, scales = reference.quantise(torch.full((1, 1, 32), 3.0))
    assert scales.item() == float(torch.tensor(3.0) / torch.tensor(32512.0))


def test_a_known_layer_of_one_group_gives_a_known_sum():
    """One-hot: 32 activations of +-32512 steps. Code 0 everywhere: each meets the level -88."""
    x = torch.zeros(1, 32)
    x[0, 0] = 1.0
    y = reference.linear(x, torch.zeros(1, 12, dtype=torch.uint8), torch.ones(1, 1), 3, 32)
    first, second = arithmetic.signs(32, torch.device("cpu"))
    level_sum = float(first[0] * second.sum()) * -88
    assert y.item() == pytest.approx(level_sum * arithmetic.unit(3, 32, 32), rel=1e-6)
