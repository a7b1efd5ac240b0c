"""From the options of a command or a call to a recipe: which of them go together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from tq3.errors import UsageError
from tq3.format.arguments import Unpack, of_its_types, several
from tq3.format.options import RecipeKeywords
from tq3.format.recipe import Recipe
from tq3.format.sizes import parse_size
from tq3.format.widths import BY_NAME, Widths, load_widths

# What a target alone asks for.
_DEFAULT_RECIPE = "best"
# What no recipe and no width by role asks for, too.
_PUBLISHED = "native"
_TARGETS = ("target_bytes", "target_bpw", "target_width")
_FIELDS = frozenset(field.name for field in fields(Recipe))


@of_its_types
def make_recipe(**options: Unpack[RecipeKeywords]) -> Recipe:
    """The recipe that these options ask for; None, where an option may be None, is not given.

    Raises UsageError for options that contradict each other, BadInput for a faulty recipe file.
    """
    asked: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    given = asked.get("recipe")
    if isinstance(given, Recipe):
        _check_alone(asked)
        return given
    _check_together(asked)
    widths = _make_widths(asked)
    settings = {name: value for name, value in asked.items() if name in _FIELDS}
    for name in ("keep", "only", "sensitive_patterns"):
        if texts := several(settings.pop(name, None)):
            settings[name] = texts
    if "max_shard_size" in asked:
        settings["max_shard_bytes"] = parse_size(asked["max_shard_size"])
    usual = usual_with(widths.name if widths else None)
    if widths and widths.norms:
        usual["norms"] = widths.norms
    return Recipe(**{**usual, **settings}, widths=widths)


def usual_with(recipe: str | None) -> dict[str, str]:
    """`keep_dtype` and `expert_groups` where none is asked for: as published writers have them, or
    as hosts serve them best.

    In the model's own type tensors are served from the file's pages; others are copied.
    recipe: the name of widths by role, None without any
    """
    if recipe in (None, _PUBLISHED):
        return {"keep_dtype": "float16", "expert_groups": "stored"}
    return {"keep_dtype": "source", "expert_groups": "inputs"}


def _check_alone(asked: Mapping[str, Any]) -> None:
    others = [name for name, value in asked.items() if name != "recipe" and value not in ([], ())]
    if others:
        raise UsageError(
            "a Recipe, and other options that make one",
            found=", ".join(others),
            fix="leave them out, or make a Recipe of all with tq3.make_recipe",
        )


def _check_together(asked: Mapping[str, Any]) -> None:
    """Raise UsageError for options of which one leaves nothing to another."""
    chooses = not asked.keys().isdisjoint(("recipe", "target_size", "target_bpw"))
    if chooses and "bits" in asked:
        raise UsageError(
            "--bits, and a recipe or a target",
            fix="leave --bits out, or the recipe and the target",
        )
    if "sensitive_bits" in asked and (chooses or not asked.keys().isdisjoint(BY_NAME)):
        raise UsageError(
            "--sensitive-bits, and widths by role",
            fix="leave --sensitive-bits out, or write a recipe file: docs/recipes.md",
        )
    if asked.get("sensitive_patterns") and "sensitive_bits" not in asked:
        raise UsageError(
            "--sensitive-pattern alone changes nothing", fix="add --sensitive-bits 2, 3 or 4"
        )
    if asked.keys() >= {"target_size", "target_bpw"}:
        raise UsageError("--target-size and --target-bpw", fix="give one of them")


def _make_widths(asked: Mapping[str, Any]) -> Widths | None:
    """Widths by role, where a recipe, a target or a role's own width asks for them."""
    named = {role: (asked[role],) for role in sorted(BY_NAME) if role in asked}
    target: dict[str, Any] = {}
    if "target_size" in asked:
        target["target_bytes"] = parse_size(asked["target_size"])
    if "target_bpw" in asked:
        target["target_bpw"] = asked["target_bpw"]
    if target or "recipe" in asked:
        widths = load_widths(os.fspath(asked.get("recipe", _DEFAULT_RECIPE)))
    elif named:
        bits = asked.get("bits", Recipe().bits)
        widths = Widths(f"{bits} bits", others=(bits,))
    else:
        return None
    if target:  # it takes the place of the recipe's own
        widths = replace(widths, **{**dict.fromkeys(_TARGETS), **target})
    return replace(widths, roles={**widths.roles, **named})
