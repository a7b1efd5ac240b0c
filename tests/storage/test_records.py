"""Records are read up to the first that is not as it was written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq3.storage.records import read_records, record_line

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
LINES = [record_line(value) for value in ({"run": 1}, "é\n\u2028", [[0, 8, "abc"]])]


def test_a_record_is_a_line_that_a_person_can_read():
    assert record_line({"a": [1, "é"]}) == '4e7d1228706aef3b {"a":[1,"é"]}\n'.encode()


@given(st.lists(JSON, max_size=5))
def test_what_is_written_is_read(values):
    data = b"".join(map(record_line, values))
    assert read_records(data) == (values, len(data))


@pytest.mark.parametrize("length", range(len(b"".join(LINES))))
def test_a_torn_tail_is_ignored(length):
    data = b"".join(LINES)[:length]
    whole = sum(len(b"".join(LINES[: i + 1])) <= length for i in range(len(LINES)))
    values, sound = read_records(data)
    assert len(values) == whole
    assert sound == len(b"".join(LINES[:whole]))


def test_a_flipped_bit_ends_the_reading_before_its_record():
    start, end = len(LINES[0]), len(LINES[0]) + len(LINES[1])
    for bit in range(8 * start, 8 * end):
        data = bytearray(b"".join(LINES))
        data[bit // 8] ^= 1 << bit % 8
        assert read_records(bytes(data)) == ([{"run": 1}], start)
