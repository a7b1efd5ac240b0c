"""Figures of quality in a checkpoint's folder, as `scripts/validate.py --json` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import Any

from tq3.errors import BadInput
from tq3.plan.sources import Files, read_object

FILE_NAME = "tq3_validation.json"
_DENSE, _PACKED = "dense", "packed"


def quality_rows(files: Files) -> list[tuple[str, str, str]]:
    """Name, the source's figure and ours, of every figure that is there. Raises BadInput."""
    if not files.has(FILE_NAME):
        return []
    return [*_rows(read_object(files, FILE_NAME))]


def _rows(figures: Any) -> Iterator[tuple[str, str, str]]:
    if (perplexity := figures.get("perplexity")) is not None:
        if not isinstance(perplexity, dict):
            raise _wrong("perplexity", perplexity)
        tokens = figures.get("text_tokens")
        of = f", {tokens} tokens" if isinstance(tokens, int) else ""
        pair = (_number(perplexity.get(kind), "perplexity") for kind in (_DENSE, _PACKED))
        yield f"perplexity{of}", *(f"{number:.3f}" for number in pair)  # type: ignore[misc]
    if (divergence := figures.get("kl_divergence")) is not None:
        number = _number(divergence, "kl_divergence")
        yield "KL divergence from the source, nats a token", "", f"{number:.4f}"
    if (agreement := figures.get("same_first_choice")) is not None:
        number = _number(agreement, "same_first_choice")
        yield "tokens with the source's first choice", "", f"{number:.1%}"


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise _wrong(key, value)
    return float(value)


def _wrong(key: str, value: Any) -> BadInput:
    return BadInput(
        f"{key} is not what validate.py writes",
        file=FILE_NAME,
        found=value,
        fix="measure again, or take the file away",
    )
