"""Numbers as people read them."""

from __future__ import annotations

import pytest

from tq3.cli.units import count, duration, gigabytes


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (1_500_000, "1.50 MB"),
        (15_351_354_528, "15.35 GB"),
        (2 * 10**12, "2.00 TB"),
    ],
)
def test_bytes_have_the_largest_unit_that_fits(n_bytes, text):
    assert gigabytes(n_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1:00"),
        (61, "1:01"),
        (3599.7, "1:00:00"),
        (3723, "1:02:03"),
        (100_000, "27:46:40"),
    ],
)
def test_seconds_become_minutes_and_hours(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (1199, "1,199"), (134_500_000, "134.5 M"), (27_781_427_952, "27.78 B")],
)
def test_counts_are_marked_or_shortened(number, text):
    assert count(number) == text
