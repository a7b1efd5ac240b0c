"""Figures of quality in a checkpoint's folder: what `scripts/validate.py --json` writes of them.

The only place that knows the keys: the script makes its figures here, the card reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from tq3.errors import BadInput
from tq3.format.files import Files, read_object

FILE_NAME = "tq3_validation.json"
_TOKENS, _PERPLEXITY = "text_tokens", "perplexity"
_DIVERGENCE, _AGREEMENT = "kl_divergence", "same_first_choice"
_SOURCE, _PACKED = "source", "packed"


def quality_record(
    *, tokens: int, source: float, packed: float, divergence: float, agreement: float
) -> dict[str, Any]:
    """The figures as the file has them, among others.

    source, packed: perplexities; divergence: KL, nats a token; agreement: the part of the tokens
    to which both models give the same first choice
    """
    return {
        _TOKENS: tokens,
        _PERPLEXITY: {_SOURCE: source, _PACKED: packed},
        _DIVERGENCE: divergence,
        _AGREEMENT: agreement,
    }


def read_quality(files: Files) -> list[tuple[str, str, str]]:
    """The `quality_rows` of a folder, none where nobody measured. Raises BadInput."""
    return [*quality_rows(read_object(files, FILE_NAME))] if files.has(FILE_NAME) else []


def quality_rows(figures: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, the source's figure and ours, of every figure that is there. Raises BadInput."""
    if (perplexity := figures.get(_PERPLEXITY)) is not None:
        if not isinstance(perplexity, dict):
            raise _wrong(_PERPLEXITY, perplexity)
        tokens = figures.get(_TOKENS)
        of = f", {tokens} tokens" if isinstance(tokens, int) else ""
        source, packed = (_number(perplexity.get(kind), _PERPLEXITY) for kind in (_SOURCE, _PACKED))
        yield f"perplexity{of}", f"{source:.3f}", f"{packed:.3f}"
    if (divergence := figures.get(_DIVERGENCE)) is not None:
        number = _number(divergence, _DIVERGENCE)
        yield "KL divergence from the source, nats a token", "", f"{number:.4f}"
    if (agreement := figures.get(_AGREEMENT)) is not None:
        number = _number(agreement, _AGREEMENT)
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
