"""The record of widths: exact for every name, short for many."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq3.errors import BadInput
from tq3.format.config import TqConfig, parse_tq_config
from tq3.format.width_record import is_numbers, record_widths, width_reader

PARTS = st.sampled_from(["layers", "experts", "0", "1", "12", "mlp", "x", "{}", "*", "weight"])
NAMES = st.lists(PARTS, min_size=1, max_size=5).map(".".join)


@given(widths=st.dictionaries(NAMES, st.sampled_from([2, 3, 4]), min_size=1, max_size=12))
def test_a_record_says_the_width_of_every_name(widths):
    main, record = record_widths(widths, dict.fromkeys(widths, 1))
    width_of = width_reader(main, record)
    assert {name: width_of(name) for name in widths} == widths
    config = TqConfig(main, 128, widths=record)
    assert parse_tq_config(config.to_json()).widths == record


def test_layers_share_a_line_and_experts_do_too():
    widths = {f"layers.{i}.v.weight": 4 for i in range(60)}
    widths |= {f"layers.{i}.down.weight": 4 if i in (0, 1, 2, 7) else 3 for i in range(60)}
    widths |= {
        f"layers.{i}.experts.{e}.w1.weight": 2 if i > 50 else 3
        for i in range(60)
        for e in range(64)
    }
    main, record = record_widths(widths, dict.fromkeys(widths, 1))
    assert main == 3
    assert record == {
        2: {"layers.{}.experts.*.w1.weight": "51-59"},
        4: {"layers.{}.v.weight": "all", "layers.{}.down.weight": "0-2 7"},
    }


def test_the_main_width_holds_most_weights_and_not_most_tensors():
    widths = {"a.weight": 4, "b.weight": 3, "c.weight": 3}
    assert record_widths(widths, {"a.weight": 100, "b.weight": 1, "c.weight": 1})[0] == 4


@pytest.mark.parametrize("text", ["all", "0", "0-3", "0-3 7", "12 60-63"])
def test_numbers_and_ranges_are_read(text):
    assert is_numbers(text)


BAD: list[Any] = [
    [],
    {"5": {}},
    {"4": ["a"]},
    {"4": {"a": 1}},
    {"4": {"a": "x"}},
    {"4": {"a": "1-"}},
]
BAD += [{"4": {"a": "9" * 20}}, {"4": {"a": ""}}, {4.0: {"a": "all", "b": None}}]


@pytest.mark.parametrize("widths", BAD)
def test_a_record_that_is_none_is_refused(widths):
    raw = {"bits": 3, "group_size": 128, "format": "tq3_native", "tq3": {"widths": widths}}
    with pytest.raises(BadInput) as caught:
        parse_tq_config(json.dumps(raw))
    assert caught.value.file == "tq_config.json"
