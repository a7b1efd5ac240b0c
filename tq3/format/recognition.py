"""The two keys of config.json that say what a folder is: to hosts that know, and to one that does
not.

Transformers only warns of a quantization method that it does not know, and leaves the compressed
layers random. But it reads the name of its weight file from config.json, where a model has one of
its own: a sentence in that place ends the loading, and is what the error says.
"""

from __future__ import annotations

from typing import Any

from tq3.format.config import TqConfig
from tq3.format.formats import FORMATS
from tq3.format.json_text import insert_key, remove_key
from tq3.format.recipe import Recipe

# The method that published checkpoints name, and one that no other package has.
METHOD, ALIAS = "turboquant", "tq3"
QUANTIZATION_CONFIG = "quantization_config"
TRANSFORMERS_WEIGHTS = "transformers_weights"
HOW_TO_LOAD = (
    "this model is packed by tq3. pip install 'tq3[transformers]', then tq3.load(folder), or "
    "import tq3.integrations.transformers before from_pretrained"
)


def quantization_config(recipe: Recipe | TqConfig) -> dict[str, Any]:
    """The value of the key by which hosts recognise the checkpoint."""
    return {
        "quant_method": METHOD,
        "format": FORMATS[recipe.code],
        "bits": recipe.bits,
        "group_size": recipe.group_size,
    }


def mark(model_config: str, recipe: Recipe | TqConfig) -> str:
    """The text of config.json with both keys. Raises ValueError for what is no JSON object.

    They take the place of the source's: a `quantization_config` of nothing, names of files that the
    checkpoint does not have.
    """
    plain = say_how_to_load(remove_key(model_config, QUANTIZATION_CONFIG))
    return insert_key(plain, QUANTIZATION_CONFIG, quantization_config(recipe))


def say_how_to_load(model_config: str) -> str:
    """The text of config.json with the sentence. Raises ValueError for what is no JSON object."""
    plain = remove_key(model_config, TRANSFORMERS_WEIGHTS)
    return insert_key(plain, TRANSFORMERS_WEIGHTS, HOW_TO_LOAD)


def unmark(model_config: str) -> str:
    """The text of config.json without them. Raises ValueError for what is no JSON object."""
    return remove_key(remove_key(model_config, QUANTIZATION_CONFIG), TRANSFORMERS_WEIGHTS)


def names_a_file(weights: str) -> bool:
    """Whether this value of `transformers_weights` is a file that Transformers would take."""
    return weights.endswith((".safetensors", ".safetensors.index.json"))
