"""The reference against exact arithmetic on the weights that the format defines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm
from support.runtime.layers import (
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

from tq3.codec import tables
from tq3.runtime import arithmetic, generic, reference


def bf16_pipeline(x, weights):
    """x, weights and result rounded to bfloat16, sums in float64."""
    rounded = x.bfloat16().double() @ weights.bfloat16().double().T
    return rounded.bfloat16()


# Of the output, relative; and how many times that of a bfloat16 pipeline: 4-bit levels are three
# thousandths off their whole numbers, about as much as the pipeline's three roundings do.
MOST_ERROR = {2: (1e-4, 0.05), 3: (1.3e-3, 0.5), 4: (4e-3, 1.3)}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", GROUPS)
def test_the_integer_arithmetic_errs_about_as_a_bfloat16_pipeline_or_less(bits, group):
    x = activations(16, 1024)
    weights = torch.randn(96, 1024, generator=torch.Generator().manual_seed(0))
    packed, norms = encoded_layer(weights, bits, group)
    weights = decoded(packed, norms, bits, group, 1024)
    exact = x.double() @ weights.T
    found = error(reference.linear(x, packed, norms, bits, group), exact)
    most, of_the_pipeline = MOST_ERROR[bits]
    assert found < most
    assert found < of_the_pipeline * error(bf16_pipeline(x, weights), exact)


def test_the_integer_codebook_of_two_bits_is_the_codebook():
    levels = np.array(arithmetic.integer_codebook(2)) * arithmetic.FACTOR[2]
    np.testing.assert_allclose(levels[2:], tables.LEVELS[2], rtol=1e-15)
    np.testing.assert_array_equal(levels[:2], -levels[:1:-1])


@pytest.mark.parametrize(("bits", "expected_error"), [(3, 1.184e-6), (4, 1.1096e-5)])
def test_no_other_int8_codebook_is_as_close_on_gaussian_weights(bits, expected_error):
    """For a factor the best integers are the nearest ones. Where these change is known: try all."""
    levels = np.array(tables.LEVELS[bits])
    likely = np.diff(norm.cdf([0, *(levels[:-1] + levels[1:]) / 2, np.inf]))
    changes = np.sort(np.outer(np.arange(128) + 0.5, 1 / levels).ravel())
    integers = np.rint(np.outer((changes[:-1] + changes[1:]) / 2, levels))
    integers = integers[integers[:, -1] <= 127]
    factors = integers @ (likely * levels) / (integers**2 @ likely)
    errors = (levels - factors[:, None] * integers) ** 2 @ likely / (levels**2 @ likely)
    best = errors.argmin()
    assert tuple(integers[best]) == arithmetic.LEVELS[bits]
    assert factors[best] == pytest.approx(arithmetic.FACTOR[bits], rel=1e-14)
    assert errors[best] == pytest.approx(expected_error, rel=1e-3)


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
