"""A part is I/N; several numbers are said as people say them."""

from __future__ import annotations

import pytest

from tq3.errors import UsageError
from tq3.format.parts import Part, make_part, numbers_in_words


@pytest.mark.parametrize("given", ["3/16", (3, 16), Part(3, 16)])
def test_a_part_is_given_as_text_or_as_two_numbers(given):
    assert make_part(given) == Part(3, 16)
    assert str(make_part(given)) == "3/16"


def test_no_part_is_none():
    assert make_part(None) is None


@pytest.mark.parametrize("given", ["", "3", "0/1", "2/1", "1/0", " 1/2", "1/1000", "١/2", (0, 0)])
def test_what_is_no_part_is_refused(given):
    with pytest.raises(UsageError, match="no part"):
        make_part(given)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([], ""),
        ([4], "4"),
        ([1, 2], "1 and 2"),
        ([1, 2, 3], "1 to 3"),
        ([1, 3, 4, 5, 9], "1, 3 to 5 and 9"),
        ([1, 2, 4, 5], "1, 2, 4 and 5"),
    ],
)
def test_numbers_are_said_in_runs(numbers, words):
    assert numbers_in_words(numbers) == words
