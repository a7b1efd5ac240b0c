"""The literals of tq3/codec/tables.py, derived again from where they came from."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from tq3.codec import tables

GROUPS = (32, 64, 128, 256)


def lloyd(bits: int, n_iterations: int) -> NDArray[np.float64]:
    """Positive levels after so many centroid steps, from cells of equal probability."""
    n = 1 << bits
    inner = norm.ppf(np.arange(1, n) / n)
    for _ in range(n_iterations):
        edges = np.concatenate([[-np.inf], inner, [np.inf]])
        centroids = -np.diff(norm.pdf(edges)) / np.diff(norm.cdf(edges))
        inner = (centroids[:-1] + centroids[1:]) / 2
    return centroids[n // 2 :]


@pytest.mark.parametrize("bits", [3, 4])
def test_levels_of_three_and_four_bits_are_exactly_one_hundred_lloyd_steps(bits):
    assert np.abs(lloyd(bits, 100) - tables.LEVELS[bits]).max() < 1e-13
    assert np.abs(lloyd(bits, 99) - tables.LEVELS[bits]).max() > 1e-8
    assert np.abs(lloyd(bits, 101) - tables.LEVELS[bits]).max() > 1e-8


def test_levels_of_two_bits_are_the_converged_ones_rounded_as_published():
    inner, outer = lloyd(2, 1000)
    assert tables.LEVELS[2] == (round(inner, 3), round(outer, 2))


def test_a_converged_codebook_would_be_another_format():
    converged = lloyd(4, 20_000)
    assert np.max(converged / tables.LEVELS[4] - 1) == pytest.approx(0.019, abs=0.001)


@pytest.mark.parametrize("group", GROUPS)
def test_signs_are_the_first_draws_of_mt19937_seeded_with_42(group):
    draws = np.random.RandomState(42).randint(0, 2**32, size=2 * group, dtype=np.uint32)
    signs = (draws % 2).astype(np.float32) * 2 - 1
    d1, d2 = tables.signs(group)
    np.testing.assert_array_equal(d1, signs[:group])
    np.testing.assert_array_equal(d2, signs[group:])


@pytest.mark.parametrize(
    ("group", "d1", "d2"),
    [
        (32, "2242d73f", "177cab01"),
        (64, "2242d73f177cab01", "f6ba4affe75f6b65"),
        (128, "2242d73f177cab01f6ba4affe75f6b65", "07d021a85ce6402438d201c5cbbf2514"),
        (
            256,
            "2242d73f177cab01f6ba4affe75f6b6507d021a85ce6402438d201c5cbbf2514",
            "26ceab17e2897d893dd3ac5836c9bc75027bf31b7ea93e9a3e53a5aaab248ab4",
        ),
    ],
)
def test_signs_are_the_bits_that_the_format_prints(group, d1, d2):
    as_hex = [np.packbits(d > 0, bitorder="little").tobytes().hex() for d in tables.signs(group)]
    assert as_hex == [d1, d2]


@pytest.mark.parametrize(
    ("bits", "positive_half"),
    [
        (2, "3d2400e7 3e08ab6b"),
        (3, "3cb1778c 3d88d9fa 3df345ff 3e42c596"),
        (4, "3c3669ec 3d09e98b 3d69b0e4 3da7f06a 3de059fc 3e10d520 3e39af1a 3e75ed5a"),
    ],
)
def test_codebook_of_group_128_has_the_bits_that_the_format_prints(bits, positive_half):
    half = 1 << (bits - 1)
    found = tables.codebook(bits, 128)[half:].astype(">f4").tobytes().hex(" ", 4)
    assert found == positive_half


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_codebook_rises_and_is_symmetric_with_boundaries_between_its_levels(bits, group):
    levels, half = tables.codebook(bits, group), 1 << (bits - 1)
    assert len(levels) == 2 * half
    np.testing.assert_array_equal(levels, -levels[::-1])
    between = np.stack([levels[half:-1], tables.boundaries(bits, group), levels[half + 1 :]])
    assert np.all(np.diff(between, axis=0) > 0)


def test_tables_cannot_be_changed_by_who_reads_them():
    for array in (tables.codebook(3, 128), tables.boundaries(3, 128), *tables.signs(128)):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
