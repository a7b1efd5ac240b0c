"""From a record of what was asked for back to the command line that asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints

from tq3.format.config import recipe_record
from tq3.format.options import CompressKeywords, RestoreKeywords
from tq3.format.recipe import Recipe
from tq3.format.request import make_recipe, usual_with
from tq3.format.widths import BY_NAME, EXACT, is_recipe_file, recipe_names
from tq3.units import exact_size

_FLAGS: dict[str, str] = {
    name: option.flag(name)
    for kind in (CompressKeywords, RestoreKeywords)
    for name, hint in get_type_hints(kind, include_extras=True).items()
    for option in getattr(hint, "__metadata__", ())
}


def flag(keyword: str, value: object = None) -> str:
    """The option of a keyword, `--lm-head` of `lm_head`; what is no keyword stays as it is.

    value: False for the option that says no, `--no-equalize`
    """
    found = _FLAGS.get(keyword, keyword)
    return f"--no-{found.removeprefix('--')}" if value is False and found != keyword else found


def command_options(record: Mapping[str, Any]) -> Iterator[str]:
    """The words after `tq3 compress SOURCE OUT` that ask for the recipe of this record.

    They are the width or the recipe, and what isn't usual with it.
    """
    name = (record.get("widths") or {}).get("name")
    recipe = make_recipe(recipe=name) if name in recipe_names() else Recipe()
    usual = _width_options(recipe_record(recipe)) | _other_options(recipe_record(recipe))
    usual |= usual_with(name)
    usual["equalize"] = True  # a run whose record says so could do it, and so can the next
    for option, value in (_width_options(record) | _other_options(record)).items():
        if option in _FLAGS and (option in ("bits", "recipe") or value != usual.get(option)):
            yield from _words(option, value)


def option_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """ "--bits 3 became --bits 4" and so on.

    old, new: `Job.options` of two runs, such as `format.config.recipe_record`
    """
    before, after = _width_options(old), _width_options(new)
    first, then = next(iter(before.items())), next(iter(after.items()))
    if first == then:
        yield from _changes(before, after)
    else:  # what else differs in widths is the recipe's doing
        yield f"{_in_words(*first)} became {_in_words(*then)}"
    before, after = _other_options(old), _other_options(new)
    if old.get("widths") != new.get("widths"):  # these follow from them, unless they are asked for
        before |= {key: after.get(key) for key in usual_with(None)}
    if _norms_of_recipe(old) != _norms_of_recipe(new):
        before["norms"] = after.get("norms")
    yield from _changes(before, after)


def _norms_of_recipe(record: Mapping[str, Any]) -> Any:
    return (record.get("widths") or {}).get("norms")


def _width_options(record: Mapping[str, Any]) -> dict[str, Any]:
    """What asks for the widths of a recipe's record: first `bits` or `recipe`, then the rest.

    Keys that are no options are those of a recipe file, such as `target_width` and `roles.o`.
    """
    widths = record.get("widths") or {}
    name: str | None = widths.get("name")
    # `--lm-head 4` alone makes widths without a recipe, too.
    is_named = name is not None and (is_recipe_file(name) or name in recipe_names())
    options: dict[str, Any] = {"recipe": name} if is_named else {"bits": record.get("bits")}
    if is_named:
        options["split_qkv"] = widths.get("split_qkv", True)
    options |= {key: value for key, value in widths.items() if key.startswith("target_")}
    for role, choices in widths.get("roles", {}).items():
        if role in BY_NAME and len(choices) == 1 and choices != [EXACT]:
            options[role] = choices[0]
        elif is_named:
            options[f"roles.{role}"] = choices
    return options


def _other_options(record: Mapping[str, Any]) -> dict[str, Any]:
    names = {"max_shard_bytes": "max_shard_size"}
    return {names.get(k, k): v for k, v in record.items() if k not in ("bits", "widths")}


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys((*old, *new)):
        if old.get(key) != new.get(key):
            yield f"{_in_words(key, old.get(key))} became {_in_words(key, new.get(key))}"


def _in_words(name: str, value: Any) -> str:
    if value in (None, []):
        return f"no {flag(name)}"
    return " ".join(_words(name, value))


def _words(name: str, value: Any) -> Iterator[str]:
    """An option and its value, as they are asked for; of a recipe file, a key and its value."""
    if name in ("target_size", "max_shard_size"):
        value = _size(value)
    several = value if isinstance(value, list) else [value]
    if flag(name) == name:
        yield from (name, ", ".join(map(str, several)).lower())
    elif isinstance(value, bool):
        yield flag(name, value)
    elif value:
        for each in several:
            yield from (flag(name), str(each))


def _size(n_bytes: int) -> str:
    exact = exact_size(n_bytes)
    return str(n_bytes) if "byte" in exact else exact.replace(" ", "")
