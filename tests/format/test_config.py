"""tq_config.json: ours goes there and back, a published one is read, a broken one is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq3.errors import BadInput
from tq3.format.config import (
    MeasuredError,
    TqConfig,
    parse_tq_config,
    recipe_from_record,
    recipe_record,
)
from tq3.format.json_reading import parse_object
from tq3.format.recipe import Recipe

PUBLISHED = {"bits": 3, "group_size": 128, "format": "tq3_native"}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
SHAPES = st.lists(st.integers(0, 2**40), min_size=2, max_size=3).map(tuple)
CONFIGS = st.builds(
    TqConfig,
    bits=st.sampled_from([2, 3, 4]),
    group_size=st.sampled_from([32, 64, 128, 256]),
    compressed_layers=st.none() | st.integers(0, 10**6),
    original_model=st.none() | TEXTS,
    original_in_dims=st.dictionaries(TEXTS, st.integers(1, 2**40), max_size=3),
    writer=st.none() | TEXTS,
    source_revision=st.none() | TEXTS,
    source_dtype=st.none() | TEXTS,
    source_bytes=st.none() | st.integers(0, 2**50),
    shapes=st.dictionaries(TEXTS, SHAPES, max_size=3),
    kept_source_dtype=st.dictionaries(TEXTS, TEXTS, max_size=3),
    float32_norms=st.dictionaries(TEXTS, TEXTS, max_size=3),
    recipe=st.none() | st.just(recipe_record(Recipe())),
    factors=st.dictionaries(TEXTS, st.lists(st.integers(0, 32)).map(bytes), max_size=3),
    measured_error=st.none() | st.builds(MeasuredError, st.floats(0, 1), st.floats(0, 9), TEXTS),
)


def published(**changes: Any) -> str:
    """A published tq_config.json with some keys changed, None for left out."""
    return json.dumps({k: v for k, v in (PUBLISHED | changes).items() if v is not None})


@given(config=CONFIGS)
def test_a_config_goes_to_json_and_back(config):
    assert parse_tq_config(config.to_json()) == config


@pytest.mark.parametrize("patterns", [("o_proj", "down_proj"), ("größe",), ()])
def test_mixed_widths_go_to_json_and_back(patterns):
    config = TqConfig(3, 128, sensitive_bits=4, sensitive_patterns=patterns)
    raw = json.loads(config.to_json())
    assert (raw["sensitive_bits"], raw["sensitive_patterns"]) == (4, list(patterns))
    assert parse_tq_config(config.to_json()) == config


def test_the_keys_of_existing_readers_stand_at_the_top_and_ours_below_one():
    raw = json.loads(TqConfig(4, 64, 7, "org/model", {"w": 100}).to_json())
    ours = raw.pop("tq3")
    assert raw == {
        "bits": 4,
        "group_size": 64,
        "format": "tq3_native",
        "quantizer_seed": 42,
        "compressed_layers": 7,
        "original_model": "org/model",
        "orig_in_dims": {"w": 100},
    }
    assert ours["format_version"] == 1


def test_a_published_config_of_three_keys_is_enough():
    config = parse_tq_config(published())
    assert config == TqConfig(bits=3, group_size=128)
    assert (config.sensitive_bits, config.shapes, config.recipe) == (None, {}, None)


def test_keys_that_nobody_knows_are_ignored():
    # `widths` was written for some time, and repeated what the bytes say.
    ours = {"format_version": 1, "mood": "good", "widths": {"4": {"layers.{}.v": "all"}}}
    text = published(tq3=ours, weather=["fair"])
    assert parse_tq_config(text) == TqConfig(bits=3, group_size=128)


def test_a_newer_format_is_refused_with_the_command_that_helps():
    with pytest.raises(BadInput, match="newer tq3") as caught:
        parse_tq_config(published(tq3={"format_version": 2}))
    assert caught.value.fix == "pip install -U tq3"


BROKEN = {
    "no bits": {"bits": None},
    "bits of a text": {"bits": "3"},
    "bits of true": {"bits": True},
    "odd bits": {"bits": 5},
    "bits that are a list": {"bits": [3]},
    "no group": {"group_size": None},
    "odd group": {"group_size": 100},
    "another format": {"format": "tq4"},
    "no format": {"format": None},
    "ours is a list": {"tq3": [1]},
    "the version is a text": {"tq3": {"format_version": "1"}},
    "the version is true": {"tq3": {"format_version": True}},
    "a count that is a text": {"compressed_layers": "7"},
    "a model that is a number": {"original_model": 7},
    "columns in a list": {"orig_in_dims": [100]},
    "columns that are a text": {"orig_in_dims": {"w": "100"}},
    "columns that are broken": {"orig_in_dims": {"w": 100.0}},
    "columns that are true": {"orig_in_dims": {"w": True}},
    "columns below zero": {"orig_in_dims": {"w": -128}},
    "bytes that no disk holds": {"tq3": {"source_bytes": 10**400}},
    "bytes below zero": {"tq3": {"source_bytes": -1}},
    "patterns that are numbers": {"sensitive_bits": 4, "sensitive_patterns": [1]},
    "a shape that is a number": {"tq3": {"shapes": {"w": 1}}},
    "a shape of texts": {"tq3": {"shapes": {"w": ["1", "2"]}}},
    "a shape with true": {"tq3": {"shapes": {"w": [True, 2]}}},
    "a shape below zero": {"tq3": {"shapes": {"w": [-1, -128]}}},
    "a shape without a dimension": {"tq3": {"shapes": {"w": []}}},
    "a shape of one dimension": {"tq3": {"shapes": {"w": [128]}}},
    "a reason that is a number": {"tq3": {"kept_source_dtype": {"w": 1}}},
    "norms without a reason": {"tq3": {"float32_norms": ["w"]}},
    "an error without its tensor": {"tq3": {"measured_error": {"mean": 0.1, "worst": 0.2}}},
    "an error that is a text": {
        "tq3": {"measured_error": {"mean": "0.1", "worst": 0.2, "worst_tensor": "w"}}
    },
    "a recipe that is a text": {"tq3": {"recipe": "native"}},
}


@pytest.mark.parametrize("changes", BROKEN.values(), ids=BROKEN)
def test_a_broken_config_is_refused_with_the_name_of_the_file(changes):
    with pytest.raises(BadInput) as caught:
        parse_tq_config(published(**changes))
    assert caught.value.file == "tq_config.json"


NESTED = '{"a": ' + "[" * 100 + "]" * 100 + "}"
NO_OBJECTS = ["", "[]", "null", "3", "{", '{"a": 1,}', "\ufeff{}", "[" * 200_000, NESTED]
NO_OBJECTS += ['{"a": 1, "a": 1}', '{"a": {"b": 1, "b": 1}}', '{"a": [' + "0," * 10_000_000]


@pytest.mark.parametrize("text", NO_OBJECTS, ids=range(len(NO_OBJECTS)))
def test_what_is_no_json_object_is_refused_with_the_name_of_the_file(text):
    with pytest.raises(BadInput) as caught:
        parse_object(text, "some.json")
    assert caught.value.file == "some.json"


def test_a_key_that_is_there_twice_may_be_allowed_and_then_the_last_one_counts():
    assert parse_object('{"a": 1, "a": 2}', "some.json", unique=False) == {"a": 2}


def test_the_name_of_a_folder_that_is_not_utf_8_does_not_end_the_run():
    config = TqConfig(3, 128, original_model="caf\udce9")
    assert parse_tq_config(config.to_json()).original_model == "caf?"


RECIPES = [
    Recipe(),
    Recipe(bits=4, group_size=32, keep=("*.a", "b"), only=("c*",), keep_dtype="source"),
    Recipe(sensitive_bits=4, sensitive_patterns=(), nonfinite="keep", max_shard_bytes=7),
    Recipe(scale="norm", norms="float16"),
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_goes_to_json_and_back(recipe):
    assert recipe_from_record(json.loads(json.dumps(recipe_record(recipe)))) == recipe


def test_keys_of_a_later_recipe_are_ignored():
    record = recipe_record(Recipe(bits=2)) | {"colour": "red"}
    assert recipe_from_record(record) == Recipe(bits=2)


def test_a_recipe_of_before_scales_were_searched_for_is_of_the_norm():
    record = recipe_record(Recipe())
    del record["scale"]
    assert recipe_from_record(record) == Recipe(scale="norm")


@pytest.mark.parametrize(
    "record", [{"bits": 5}, {"max_shard_bytes": "5GiB"}, {"keep": [5]}, {"scale": "best"}]
)
def test_a_record_that_is_no_recipe_is_bad_input_not_bad_usage(record):
    with pytest.raises(BadInput, match="tq3.recipe is not a recipe: .*; compress again, or fetch"):
        recipe_from_record(record)
