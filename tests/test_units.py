"""Numbers as people read them."""

from __future__ import annotations

import re

import pytest

from tq3.format.sizes import parse_size
from tq3.units import count, counted, duration, exact_size, printable, share, size


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (999_994, "999.99 kB"),
        (999_999, "1.00 MB"),
        (1_500_000, "1.50 MB"),
        (15_351_354_528, "15.35 GB"),
        (2 * 10**12, "2.00 TB"),
        (5 * 10**15, "5000.00 TB"),
    ],
)
def test_bytes_have_the_largest_unit_that_fits(n_bytes, text):
    assert size(n_bytes) == text


@pytest.mark.parametrize(
    "text",
    ["0 bytes", "1 byte", "1,234 bytes", "8 kB", "1 KiB", "500 MB", "13 GiB", "13824 MiB", "2 TB"],
)
def test_an_exact_size_is_the_text_that_it_can_be_asked_for_with(text):
    n_bytes = parse_size(re.sub(r",| bytes?", "", text))
    assert exact_size(n_bytes) == text


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
    [
        (0, "0"),
        (1199, "1,199"),
        (999_999, "999,999"),
        (134_500_000, "134.5 M"),
        (999_900_000, "999.9 M"),
        (999_999_999, "1.00 B"),
        (27_781_427_952, "27.78 B"),
    ],
)
def test_counts_are_marked_or_shortened(number, text):
    assert count(number) == text


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [
        (0, 0, "0/0 bytes"),
        (7, 999, "7/999 bytes"),
        (1_500_000, 15_351_354_528, "0.00/15.35 GB"),
        (15_351_354_528, 15_351_354_528, "15.35/15.35 GB"),
    ],
)
def test_a_share_is_told_in_the_unit_of_the_total(done, total, text):
    assert share(done, total) == text


def test_one_is_not_many():
    assert [counted(n, "tensor") for n in (0, 1, 2)] == ["0 tensors", "1 tensor", "2 tensors"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("model.größe.重み [bold] \\x", "model.größe.重み [bold] \\x"),
        ("\x1b[31m\r\n\t\x7f\x9b", r"\x1b[31m\r\n\t\x7f\x9b"),
        ("\u202e\u2028\udc80", r"\u202e\u2028\udc80"),
    ],
    ids=["text", "controls", "invisible"],
)
def test_only_what_would_steer_the_terminal_is_escaped(text, shown):
    assert printable(text) == shown
