"""What differs between the options of two runs, in the words of the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tq3.format.widths import BY_NAME
from tq3.units import exact_size

# Recorded under another name than the option has, or as a plain number of bytes.
_NAMES = {"max_shard_bytes": "max-shard-size", "sensitive_patterns": "sensitive-pattern"}
_SIZES = {"max_shard_bytes", "target_size"}
_OF_FILES = {"target_width", "split_qkv"}  # in recipe files alone


def option_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """ "--bits 3 became --bits 4" and so on.

    old, new: `Job.options` of two runs, such as `format.config.recipe_record`
    """
    before, after = _recipe(old), _recipe(new)
    if before == after:
        yield from _changes(_widths(old), _widths(new))
    else:  # what else differs in widths is the recipe's doing
        yield f"{before} became {after}"
    others = {"bits", "widths"}
    if old.get("widths") != new.get("widths"):
        others.add("keep_dtype")  # which follows from them, unless it is asked for
    yield from _changes(
        *({key: run[key] for key in run if key not in others} for run in (old, new))
    )


def _recipe(options: Mapping[str, Any]) -> str:
    bits = f"{options.get('bits')} bits"
    name = (options.get("widths") or {}).get("name", bits)
    # `--lm-head 4` alone makes widths of this name.
    return f"--bits {options.get('bits')}" if name == bits else f"--recipe {name}"


def _widths(options: Mapping[str, Any]) -> dict[str, Any]:
    widths = options.get("widths") or {}
    roles = {
        role if role in BY_NAME else f"roles.{role}": choices
        for role, choices in widths.get("roles", {}).items()
    }
    # Without widths by role there are none for head and embeddings, and one for all others.
    roles.setdefault("roles.others", [options.get("bits")])
    targets = {key: widths[key] for key in widths if key not in ("name", "roles", "split_qkv")}
    return {"split_qkv": str(widths.get("split_qkv", True)).lower()} | targets | roles


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys((*old, *new)):
        if old.get(key) != new.get(key):
            yield f"{_words(key, old.get(key))} became {_words(key, new.get(key))}"


def _words(key: str, value: Any) -> str:
    """An option and its value, as they are asked for."""
    in_file = key in _OF_FILES or key.startswith("roles.")
    name = key if in_file else "--" + _NAMES.get(key, key).replace("_", "-")
    if value is None or value is False or value == []:
        return f"no {name}"
    if value is True:
        return name
    if key in _SIZES:
        return f"{name} {exact_size(value)}"
    several = value if isinstance(value, list) else [value]
    return f"{name} {', '.join(map(str, several))}"
