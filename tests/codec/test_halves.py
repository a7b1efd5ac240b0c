"""Where F16 loses too many values of a stretch, and where it does not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq3.codec import reference
from tq3.codec.halves import first_lost
from tq3.format.precision import STRETCH


def words(values: object, dtype: str) -> reference.Words:
    return reference.from_float32(np.asarray(values, np.float32), dtype)


KEPT = {
    "the usual": np.random.default_rng(0).normal(0, 0.02, 1000),
    "the smallest that BF16 and F16 share": np.full(10, 2.0**-17),
    "a 16th of them tiny": [1e-7, *[0.1] * 15],
    "a few tiny ones": [1e-9, *[0.1] * 30],
    "tiny, but multiples of F16's smallest": np.arange(1, 9) * 2.0**-24,
    "zeros": np.zeros(10),
    "none": [],
    "NaN and infinity": [*[np.nan, np.inf, -np.inf] * 5, 1e-7],
}
LOST = {
    "tiny": (np.full(10, 3e-8), 0),
    "negative": (np.full(10, -1e-7), 0),
    "a scalar": ([1e-9], 0),
    "denormal": (np.full(10, 1e-40), 0),
    "more than a 16th": ([0.5, 1e-7, *[0.5] * 13], 1),
    "zeros do not count": ([0.0] * 9 + [1e-7], 9),
}


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("case", KEPT)
def test_what_f16_holds_well_enough(case, dtype):
    assert first_lost(words(KEPT[case], dtype), dtype) is None


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("case", LOST)
def test_the_first_value_that_f16_loses_among_many(case, dtype):
    values, first = LOST[case]
    assert first_lost(words(values, dtype), dtype) == first


def test_each_stretch_is_judged_by_itself():
    values = np.full(3 * STRETCH, 0.1, np.float32)
    values[STRETCH : STRETCH + STRETCH // 16] = 1e-7
    assert first_lost(words(values, "F32"), "F32") is None
    values[2 * STRETCH - 1] = 1e-7
    assert first_lost(words(values, "F32"), "F32") == STRETCH
    values[STRETCH] = 0.1
    values[5] = 1e-7
    assert first_lost(words(values, "F32"), "F32") is None


def test_f16_loses_nothing_of_itself():
    assert first_lost(words([6e-8], "F16"), "F16") is None


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=9)
    | st.lists(st.floats(0, 2.0**-14, width=32), min_size=1, max_size=9),
    st.sampled_from(["BF16", "F32"]),
)
def test_the_rule_is_that_of_the_format_value_by_value(values, dtype):
    stored = words(values, dtype)
    exact = [float(value) for value in reference.to_float32(stored, dtype)]
    exact = [value for value in exact if abs(value) < 65520]  # a range that is told apart
    with np.errstate(over="ignore"):
        lost = [abs(float(np.float16(v)) - v) > abs(v) * 2.0**-9 for v in exact if v]
    found = first_lost(words(exact, dtype), dtype)
    assert (found is not None) == (16 * sum(lost) > len(lost))


@pytest.mark.parametrize(("one", "other"), [("BF16", "F16"), ("F16", "BF16")])
def test_a_rounded_16_bit_value_goes_back_exactly(one, other):
    """So verify finds what was rounded by the way back."""
    before = np.arange(2**16, dtype=np.uint16)
    values = reference.to_float32(before, one)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = reference.to_float32(reference.from_float32(values, other), other)
        back = reference.from_float32(rounded, one)
    finite = np.isfinite(values) & np.isfinite(rounded)
    assert np.array_equal((back != before)[finite], (rounded != values)[finite])
