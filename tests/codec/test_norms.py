"""Norms of half the size: rounded to nearest even, within the range of F16's normal numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq3.codec import reference
from tq3.codec.norms import fits_float16, read_norms, stored_norms

KNOWN = {  # norm -> its F16
    1.0: "003c",
    0.0: "0000",
    2.0**-14: "0004",
    65504.0: "ff7b",
    65519.0: "ff7b",
    1 + 2.0**-11: "003c",  # half-way: to the even one below
    1 + 3 * 2.0**-11: "023c",  # and above
}


@pytest.mark.parametrize(("norm", "half"), KNOWN.items())
def test_a_norm_becomes_the_nearest_half_and_that_of_two_which_is_even(norm, half):
    norms = np.array([[norm]], np.float32)
    assert fits_float16(norms).all()
    assert stored_norms(norms, "F16").tobytes().hex() == half


def test_float32_is_stored_as_it_is_and_read_without_a_copy():
    norms = np.array([[1e-30, 3.5]], np.float32)
    stored = stored_norms(norms, "F32")
    assert stored is norms
    assert np.shares_memory(read_norms(stored.view(np.uint8), "F32"), norms)


@given(norm=st.floats(0, 2.0**127, width=32))
def test_a_norm_that_fits_loses_at_most_one_part_in_2048(norm):
    norms = np.array([norm], np.float32)
    if fits_float16(norms)[0]:
        read = read_norms(stored_norms(norms, "F16"), "F16")
        assert abs(float(read[0]) - norm) <= norm * 2.0**-11
    else:
        assert 0 < norm < 2.0**-14 or norm >= 65520


@pytest.mark.parametrize("scale", ["norm", "search"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_error_of_gaussian_groups_does_not_change_measurably(bits, scale):
    weights = np.random.default_rng(1).normal(0, 0.02, (4096, 128)).astype(np.float32)
    packed, norms = reference.encode(weights.view(np.uint32), "F32", bits, 128, scale)

    def error(stored):
        decoded = reference.decode(packed, stored, bits, 128, 128).astype(np.float64)
        return np.square(decoded - weights).sum() / np.square(weights, dtype=np.float64).sum()

    half = read_norms(stored_norms(norms, "F16"), "F16")
    assert (half != norms).mean() > 0.9
    assert error(half) == pytest.approx(error(norms), rel=3e-5)
