"""What config.json says of a checkpoint."""

from __future__ import annotations

import json

import pytest

from tq3.format.recipe import Recipe
from tq3.format.recognition import HOW_TO_LOAD, mark, names_a_file, quantization_config, unmark

GAINED = {
    "transformers_weights": HOW_TO_LOAD,
    "quantization_config": {
        "quant_method": "turboquant",
        "format": "tq3_native",
        "bits": 4,
        "group_size": 64,
    },
}


@pytest.mark.parametrize("text", ["{}", '{"a": 1}', '{\n    "b":  1.0,\n    "a": "ü"\n}\n'])
def test_config_json_gains_two_keys_and_is_what_it_was_without_them(text):
    marked = mark(text, Recipe(bits=4, group_size=64))
    assert json.loads(marked) == json.loads(text) | GAINED
    assert list(json.loads(marked))[-2:] == list(GAINED)
    assert unmark(marked) == text


def test_they_take_the_place_of_the_sources():
    old = {"quantization_config": None, "transformers_weights": "other.safetensors", "a": 1}
    marked = mark(json.dumps(old), Recipe(bits=4, group_size=64))
    assert json.loads(marked) == {"a": 1} | GAINED


def test_the_sentence_for_transformers_is_no_file_that_it_would_take():
    assert not names_a_file(HOW_TO_LOAD)
    assert names_a_file("model.safetensors")
    assert names_a_file("other.safetensors.index.json")


def test_hosts_recognise_the_folder_by_these_values():
    assert quantization_config(Recipe(bits=4, group_size=64)) == GAINED["quantization_config"]
