"""The expected errors are those of the reference codec on Gaussian weights."""

from __future__ import annotations

import numpy as np
import pytest

from tq3.codec import reference
from tq3.codec.expected import error_limit, expected_error, group_error_limit
from tq3.format.recipe import GROUP_SIZES, SCALES
from tq3.format.widths import WIDTHS


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("group", GROUP_SIZES)
def test_mean_and_spread_are_those_of_gaussian_groups(scale, bits, group):
    weights = np.random.default_rng(5).standard_normal((4096, group), np.float32)
    packed, norms = reference.encode(weights.view(np.uint32), "F32", bits, group, scale)
    decoded = reference.decode(packed, norms, bits, group, group)
    errors = np.square(decoded - weights).sum(1) / np.square(weights).sum(1)
    mean = expected_error(scale, bits, group)
    assert mean == pytest.approx(errors.mean(), rel=0.015)
    deviation = (error_limit(scale, bits, group, 1) - 1.1 * mean) / 6
    assert deviation == pytest.approx(errors.std(), rel=0.12)
    assert (errors > group_error_limit(bits, group)).mean() < 1 / 200


@pytest.mark.parametrize("scale", SCALES)
def test_the_limit_of_many_groups_is_a_tenth_above_the_expected_error(scale):
    expected = expected_error(scale, 3, 128)
    assert error_limit(scale, 3, 128, 1e12) == pytest.approx(1.1 * expected, rel=1e-4)
    limits = [error_limit(scale, 3, 128, n) for n in (1, 10, 1000)]
    assert limits == sorted(limits, reverse=True)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("group", GROUP_SIZES)
def test_a_single_group_has_one_limit_however_it_was_coded(bits, group):
    limits = [error_limit(scale, bits, group, 1) for scale in SCALES]
    assert group_error_limit(bits, group) == max(limits)
