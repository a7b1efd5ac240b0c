"""One key goes into a JSON text and out again; every other byte stays."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq3.format.json_text import insert_key, remove_key

KEY = "quantization_config"
VALUE = {"quant_method": "turboquant", "format": "tq3_native", "bits": 3, "group_size": 128}
TEXTS = st.one_of(st.text(max_size=8), st.sampled_from(["{", "}", '","', "a: {b}", "\\", "é🦙"]))
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(TEXTS.filter(lambda text: text != KEY), VALUES, max_size=5)
SPACE = st.sampled_from(["", "", " ", "\n", "\r\n", "\n  ", "\t"])


@st.composite
def json_texts(draw: st.DrawFn) -> str:
    """An object as json.dumps writes it, with several indents, line ends and escapes."""
    text = json.dumps(
        draw(OBJECTS),
        indent=draw(st.sampled_from([None, 0, 1, 2, 4, "\t"])),
        ensure_ascii=draw(st.booleans()),
        separators=draw(st.sampled_from([None, (",", ":"), (" , ", " : ")])),
    )
    line_end = draw(st.sampled_from(["\n", "\r\n"]))
    return (text + draw(st.sampled_from(["", "\n", "\n\n", " "]))).replace("\n", line_end)


@st.composite
def json_texts_of_any_spacing(draw: st.DrawFn) -> str:
    """An object with white space of any kind around each of its top-level tokens."""

    def spaced(token: str) -> str:
        return draw(SPACE) + token + draw(SPACE)

    members = [
        spaced(json.dumps(key)) + ":" + spaced(json.dumps(value))
        for key, value in draw(OBJECTS).items()
    ]
    return spaced("{") + ",".join(members) + spaced("}")


@given(text=json_texts() | json_texts_of_any_spacing())
def test_what_was_inserted_can_be_removed_and_nothing_else_has_changed(text):
    assert remove_key(insert_key(text, KEY, VALUE), KEY) == text


@given(text=json_texts() | json_texts_of_any_spacing(), value=VALUES)
def test_the_new_key_is_the_last_and_the_others_are_as_they_were(text, value):
    before, after = json.loads(text), json.loads(insert_key(text, KEY, value))
    assert after == {**before, KEY: value}
    assert list(after) == [*before, KEY]


@given(text=json_texts())
def test_every_byte_of_the_text_is_still_there_in_front_of_and_behind_the_insertion(text):
    longer = insert_key(text, KEY, VALUE)
    start = longer.index(json.dumps(KEY))
    inserted = len(longer) - len(text)
    kept_in_front = len(_common_prefix(text, longer))
    assert longer[kept_in_front + inserted :] == text[kept_in_front:]
    assert kept_in_front <= start


def _common_prefix(one: str, other: str) -> str:
    n = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
    return one[:n]


@given(text=json_texts() | json_texts_of_any_spacing(), choice=st.integers(0, 4))
def test_any_member_can_be_removed(text, choice):
    before = json.loads(text)
    if not before:
        return
    key = list(before)[choice % len(before)]
    after = json.loads(remove_key(text, key))
    del before[key]
    assert (after, list(after)) == (before, list(before))


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ('{"k": 1, "k": 2}', {}),
        ('{"k": 1, "k": 2, "a": 3}', {"a": 3}),
        ('{"a": 3, "k": 1, "k": 2}', {"a": 3}),
        ('{"k": 1, "a": 3, "k": 2, "b": 4, "\\u006b": 5}', {"a": 3, "b": 4}),
    ],
)
def test_a_key_that_is_there_several_times_is_removed_altogether(text, rest):
    assert json.loads(remove_key(text, "k")) == rest
    assert json.loads(insert_key(remove_key(text, "k"), "k", 6)) == {**rest, "k": 6}


def test_the_member_is_indented_as_the_others_are():
    text = '{\n    "a": {\n        "b": 1\n    }\n}\n'
    assert insert_key(text, "k", {"x": [1]}) == (
        '{\n    "a": {\n        "b": 1\n    },\n'
        '    "k": {\n        "x": [\n            1\n        ]\n    }\n}\n'
    )


def test_a_compact_text_stays_on_one_line():
    assert insert_key('{"a":1}', "k", {"x": 1}) == '{"a":1, "k": {"x": 1}}'


@pytest.mark.parametrize("space", ["", " ", "\n", "\r\n\t"])
def test_an_empty_object_gains_its_first_key_and_is_empty_again_without_it(space):
    text = f" {{{space}}}\n"
    longer = insert_key(text, KEY, VALUE)
    assert json.loads(longer) == {KEY: VALUE}
    assert remove_key(longer, KEY) == text


HAVING = ['{"k": null}', '{"a": 1, "k": {"k": 2}}', '{"a": 1, "\\u006b": 2}']


@pytest.mark.parametrize("text", HAVING)
def test_a_key_that_is_there_already_is_refused(text):
    with pytest.raises(ValueError, match="'k' is there already"):
        insert_key(text, "k", 1)


@pytest.mark.parametrize("text", ['{"a": {"k": 1}}', '{"a": ["k"], "b": "k"}', '{"K": 1}'])
def test_a_key_further_down_is_another_key(text):
    assert json.loads(insert_key(text, "k", 1))["k"] == 1
    assert remove_key(text, "k") == text


@pytest.mark.parametrize("text", ["", "[]", "null", '"{}"', "{", '{"a": 1', '{"a": 1} {}'])
def test_what_is_no_object_is_refused(text):
    def with_key(change: Any, *value: object) -> None:
        with pytest.raises(ValueError):
            change(text, "k", *value)

    with_key(insert_key, 1)
    with_key(remove_key)
