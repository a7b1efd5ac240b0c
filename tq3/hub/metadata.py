"""The metadata of a model card, the YAML at its top: what a source's says, and what ours says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from tq3.errors import BadInput
from tq3.format.repositories import is_repository_name

# Finds what huggingface_hub finds; one line end each, or a card of empty lines would take for ever.
_BLOCK = re.compile(r"\s*---[\r\n](.*?)[\r\n]---(?:\r\n|\r|\n|$)", re.DOTALL)
_INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag")
_OUR_TAGS = ("tq3", "turboquant", "quantized")
# The Hub derives these tags from other keys, which hold for the source and not for its copy.
_DERIVED = ("base_model:", "license:", "dataset:", "region:")
# Not transformers: the snippet that the Hub shows for it would leave the packed layers random.
_LIBRARY = "tq3"

Metadata = Mapping[str, Any]


def read_metadata(card: str, file: str) -> dict[str, Any]:
    """The metadata of a card, every scalar as the text that is there; {} for a card without any.

    Raises BadInput naming `file` for a block that is no YAML mapping.
    """
    block = _BLOCK.match(card)
    if block is None:
        return {}
    try:
        # Texts only: to other loaders the language `no` is False.
        found = yaml.load(block[1], yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        what = str(error).split("\n", maxsplit=1)[0]
        raise BadInput(f"its metadata is not YAML: {what}", file=file, fix=_MEND) from None
    if found in (None, ""):
        return {}
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise BadInput("its metadata is not a mapping", file=file, found=kind, fix=_MEND)
    return {str(key): value for key, value in found.items()}


_MEND = "correct the block between the lines of dashes"


def make_metadata(source: Metadata, base_model: str | None, bits: int) -> dict[str, Any]:
    """The metadata of the compressed model; `source`: of the card of the model it was made from."""
    made: dict[str, Any] = {}
    if base_model:
        made |= {"base_model": base_model, "base_model_relation": "quantized"}
    made |= {key: source[key] for key in _INHERITED if _is_text(source.get(key))}
    tags = source.get("tags")
    inherited = tags if isinstance(tags, list) and _is_text(tags) else []
    kept = [tag for tag in inherited if not tag.startswith(_DERIVED)]
    ours = [tag for tag in (*_OUR_TAGS, f"{bits}-bit") if tag not in kept]
    return {**made, "library_name": _LIBRARY, "tags": [*kept, *ours]}


def metadata_block(metadata: Metadata) -> str:
    """The metadata as YAML between lines of dashes."""
    text = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)
    return f"---\n{text}---"


def is_model_id(text: str) -> bool:
    """Whether this names a repository as ORGANISATION/NAME."""
    return "/" in text and is_repository_name(text)


def _is_text(value: Any) -> bool:
    """A text, or a list of texts, that says something."""
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(isinstance(one, str) and one for one in values)
