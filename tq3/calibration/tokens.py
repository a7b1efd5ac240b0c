"""The tokens that are sent through a model: of a text, at random, or what it says itself."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

RANDOM, SELF = "random", "self"
# What the diagonal of moments gets, as a part of its mean: tokens that are no language say less.
DAMPING_OF_TEXT, DAMPING_OF_RANDOM = 0.3, 1.0


def random_tokens(tokenizer: Any, n_tokens: int) -> list[int]:
    """Any tokens of the vocabulary, the same every time."""
    generator = torch.Generator().manual_seed(0)
    ids: list[int] = torch.randint(0, len(tokenizer), (n_tokens,), generator=generator).tolist()
    return ids


def tokens_digest(sequences: Sequence[torch.Tensor]) -> str:
    """SHA-256 of all ids as little-endian int64, first to last."""
    state = hashlib.sha256()
    for some in sequences:
        state.update(some.numpy().astype("<i8").tobytes())
    return state.hexdigest()
