"""Sequences of tokens from a text, as a model wants them to begin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tq3.errors import BadInput, UsageError

SAMPLE = Path(__file__).with_name("sample.txt")
LEAST = 2


def read_text(path: Path) -> str:
    """A file's text. Raises BadInput for what is not UTF-8; OSError as it comes."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        fix = "give a plain text in UTF-8"
        raise BadInput(f"not UTF-8: {error}", file=path, fix=fix) from None


def first_token(tokenizer: Any, config: Any) -> int | None:
    """The tokens that a sequence begins with: BOS, or none.

    What the tokenizer itself puts before a text. Where it puts nothing, but has a BOS token which
    config.json names as such, that one: tokenizers made from GGUF files forget it, and some models
    (Gemma) say nothing sensible without.
    """
    marked, plain = (tokenizer("a", add_special_tokens=add).input_ids for add in (True, False))
    if marked[: len(plain)] != plain:
        return int(marked[0])
    bos = tokenizer.bos_token_id
    return bos if bos is not None and bos == config.get_text_config().bos_token_id else None


def tokens_of(text: str, tokenizer: Any, n_tokens: int, label: str) -> list[int]:
    """The first `n_tokens` of a text, or all it has. Raises UsageError for fewer than two."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    if len(ids) < LEAST:
        raise UsageError(
            "the text is too short",
            file=label,
            found=f"{len(ids)} tokens",
            expected=f"at least {LEAST}, better some thousands",
            fix="give another file with --text",
        )
    return ids[:n_tokens]


def check_predicted(sequences: Sequence[torch.Tensor]) -> None:
    """Raise UsageError where fewer than two tokens are predicted: one has no error of a mean."""
    predicted = sum(len(some) * (some.shape[1] - 1) for some in sequences)
    if predicted < LEAST:
        raise UsageError(
            "too few tokens are predicted",
            found=predicted,
            expected=f"at least {LEAST}, better some thousands",
            fix="give more --tokens of a longer text, or a larger --context",
        )


def sequences(ids: Sequence[int], context: int, first: int | None) -> list[torch.Tensor]:
    """(sequences, tokens) int64 of `context` tokens each, then the rest if it predicts anything.

    Each begins with `first`, where that is not None.
    """
    start = [] if first is None else [first]
    step = context - len(start)
    pieces = [[*start, *ids[i : i + step]] for i in range(0, len(ids), step)]
    whole = [piece for piece in pieces if len(piece) == context]
    rest = [piece for piece in pieces if LEAST <= len(piece) < context]
    return [torch.tensor(part, dtype=torch.int64) for part in (whole, rest) if part]
