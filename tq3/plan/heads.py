"""Output heads: those whose names nobody knows, by their shape, and those that a table is, too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from tq3.errors import UsageError
from tq3.format.checkpoint import Checkpoint
from tq3.format.recipe import Recipe
from tq3.plan.classes import TOKEN_EMBEDDING
from tq3.plan.policy import why_kept
from tq3.plan.roles import layer_of, role_of

AS_A_HEAD = "as large as the token table, and in no layer: taken for the output head"
_TABLE = re.compile(TOKEN_EMBEDDING)


def heads_by_shape(checkpoint: Checkpoint) -> Iterator[str]:
    """Names of matrices outside of layers that have the shape of a table of tokens.

    A model's own code may call its head anything. Nothing else outside of layers has as many rows
    as there are tokens.
    """
    infos = [tensor.info for tensor in checkpoint.tensors if len(tensor.info.shape) == 2]
    tables = {info.shape for info in infos if _TABLE.search(info.name)}
    for info in infos:
        is_matrix = info.shape in tables and info.name.endswith(".weight")
        if is_matrix and layer_of(info.name) is None and not why_kept(info.name):
            yield info.name


def with_tied_head(recipe: Recipe, checkpoint: Checkpoint) -> Recipe:
    """The recipe for a tied head: what is asked for the head is meant for the embedding, too.

    Raises UsageError where something else is asked for the embeddings, or no head is known.
    """
    widths = recipe.widths
    if not widths or "lm_head" not in widths.roles:
        return recipe
    if any(role_of(tensor.info.name) == "lm_head" for tensor in checkpoint.tensors):
        return recipe
    _check_tied(checkpoint)
    head = widths.roles["lm_head"]
    if widths.roles.get("embeddings", head) != head:
        raise UsageError(
            "one width for lm_head, another one for embeddings",
            found="a model whose embeddings are its head, too",
            fix="ask for the same width, or for one of them",
        )
    return replace(recipe, widths=replace(widths, roles={**widths.roles, "embeddings": head}))


def _check_tied(checkpoint: Checkpoint) -> None:
    """Raise UsageError where the head can't be the table of tokens, and has no known name."""
    unknown = next(heads_by_shape(checkpoint), None)
    text_config = checkpoint.config.get("text_config")
    configs = (checkpoint.config, text_config if isinstance(text_config, dict) else {})
    if unknown or any(config.get("tie_word_embeddings") is False for config in configs):
        raise UsageError(
            "a width for lm_head, and tq3 knows no output head in this model",
            found=f"{unknown!r}, whose name may be one" if unknown else "tie_word_embeddings false",
            fix="leave the head as it is: ask for no width of lm_head",
        )
