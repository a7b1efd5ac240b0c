"""From the options of a command or a call to a recipe: which of them go together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from tq3.errors import UsageError
from tq3.format.arguments import of_its_types
from tq3.format.recipe import (
    DEFAULT_SENSITIVE_PATTERNS,
    DEFAULT_SHARD_SIZE,
    NORMS,
    WIDTHS,
    Recipe,
    parse_size,
)
from tq3.format.widths import BY_NAME, Widths, is_recipe_file, load_widths, recipe_names

DEFAULT_BITS = 3
# What a target alone asks for.
DEFAULT_RECIPE = "best"
# What no recipe and no width by role asks for, too.
PUBLISHED = "native"


@of_its_types
def make_recipe(
    *,
    bits: int | None = None,
    recipe: str | os.PathLike[str] | None = None,
    target_size: float | str | None = None,
    target_bpw: float | None = None,
    lm_head: int | None = None,
    embeddings: int | None = None,
    sensitive_bits: int | None = None,
    sensitive_patterns: str | Sequence[str] | None = None,
    keep: str | Sequence[str] | None = (),
    only: str | Sequence[str] | None = (),
    max_shard_size: float | str = DEFAULT_SHARD_SIZE,
    keep_dtype: str | None = None,
    norms: str | None = None,
    **others: Any,
) -> Recipe:
    """The recipe that these options ask for; `others` are fields of `Recipe` as they are.

    bits: of every compressed tensor; None for what `recipe` says, else 3
    recipe: the name of a recipe, or the path of a file that ends in .toml
    target_size: bytes, or a text such as "13GiB"; target_bpw: see `Widths`
    lm_head, embeddings: their width; None for what the recipe says, else uncompressed
    keep_dtype: see `Recipe`; None for that of `recipe`: float16 as published, source for any other
    norms: see `Recipe`; None for float32

    Raises UsageError for options that contradict each other, BadInput for a faulty recipe file.
    """
    named = _named(lm_head=lm_head, embeddings=embeddings)
    chooses = any(x is not None for x in (recipe, target_size, target_bpw))
    if chooses and bits is not None:
        raise UsageError(
            "--bits, and a recipe or a target",
            fix="leave --bits out, or the recipe and the target",
        )
    if sensitive_bits is not None and (chooses or named):
        raise UsageError(
            "--sensitive-bits, and widths by role",
            fix="leave --sensitive-bits out, or write a recipe file: docs/recipes.md",
        )
    if sensitive_patterns and sensitive_bits is None:
        raise UsageError(
            "--sensitive-pattern alone changes nothing", fix="add --sensitive-bits 2, 3 or 4"
        )
    bits = DEFAULT_BITS if bits is None else bits
    widths = None
    if chooses:
        widths = _with_target(
            load_widths(DEFAULT_RECIPE if recipe is None else os.fspath(recipe)),
            target_size,
            target_bpw,
        )
    elif named:
        widths = Widths(f"{bits} bits", others=(bits,))
    return Recipe(
        bits=bits,
        widths=replace(widths, roles={**widths.roles, **named}) if widths else None,
        sensitive_bits=sensitive_bits,
        sensitive_patterns=_texts(sensitive_patterns) or DEFAULT_SENSITIVE_PATTERNS,
        keep=_texts(keep),
        only=_texts(only),
        max_shard_bytes=parse_size(max_shard_size),
        keep_dtype=kept_as(widths) if keep_dtype is None else keep_dtype,
        norms=NORMS[0] if norms is None else norms,
        **others,
    )


def kept_as(widths: Widths | None) -> str:
    """`keep_dtype` where none is asked for: F16 as published writers have it, else the source's.

    In the model's own type tensors are served from the file's pages; others are copied.
    """
    return "float16" if widths is None or widths.name == PUBLISHED else "source"


def width_options(recipe: Recipe) -> Iterator[str]:
    """The options by which the command chooses the same widths."""
    widths = recipe.widths
    if not widths:
        yield from ("--bits", str(recipe.bits))
        return
    known = load_widths(widths.name) if widths.name in recipe_names() else None
    if known or is_recipe_file(widths.name):
        yield from ("--recipe", widths.name)
    else:
        yield from ("--bits", str(recipe.bits))
    if widths.target_bytes is not None and (not known or known.target_bytes != widths.target_bytes):
        yield from ("--target-size", str(widths.target_bytes))
    if widths.target_bpw is not None and (not known or known.target_bpw != widths.target_bpw):
        yield from ("--target-bpw", f"{widths.target_bpw:g}")
    for role in sorted(BY_NAME, reverse=True):
        choices = widths.choices(role)
        if known and choices == known.choices(role):
            continue
        if len(choices) == 1 and choices != (None,):
            yield from (f"--{role.replace('_', '-')}", str(choices[0]))


def _named(**roles: int | None) -> dict[str, tuple[int]]:
    """Roles whose width is asked for by an option of their own."""
    for role, bits in roles.items():
        if bits not in (None, *WIDTHS):
            option = role.replace("_", "-")
            raise UsageError(f"--{option} is {bits!r}", expected="one of 2, 3, 4")
    return {role: (bits,) for role, bits in roles.items() if bits is not None}


def _with_target(
    widths: Widths, target_size: float | str | None, target_bpw: float | None
) -> Widths:
    """A target that is asked for takes the place of the recipe's own."""
    if target_size is not None and target_bpw is not None:
        raise UsageError("--target-size and --target-bpw", fix="give one of them")
    if target_size is target_bpw is None:
        return widths
    n_bytes = None if target_size is None else parse_size(target_size)
    return replace(widths, target_bytes=n_bytes, target_bpw=target_bpw, target_width=None)


def _texts(found: str | Sequence[str] | None) -> tuple[str, ...]:
    return (found,) if isinstance(found, str) else tuple(found or ())
