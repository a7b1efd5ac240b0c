"""From hidden states to logits: by the model's own forward, whatever it does to them.

The base model in it answers with hidden states that are there already.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from tq3.evaluation.skeleton import Skeleton, Weights

# Logits of the source that are kept while those of the variants are computed.
_KEPT_BYTES = 1 << 29
# Tokens of which logits are computed at once.
_PIECE = 128


class Head:
    """The parts of a model outside of its base model.

    tensors: names in the checkpoint of all that they are made from
    """

    def __init__(self, skeleton: Skeleton) -> None:
        self._skeleton = skeleton
        self.tensors = tuple({name for part in skeleton.head for name in part.tensors})

    def portions(self, n_tokens: int) -> Iterator[slice]:
        """Ranges of tokens whose logits fit into memory together."""
        vocabulary = self._skeleton.model.config.get_text_config().vocab_size
        step = max(_PIECE, _KEPT_BYTES // (4 * vocabulary))
        yield from (slice(start, start + step) for start in range(0, n_tokens, step))

    def all_logits(self, output: Any, hidden: torch.Tensor, weights: Weights) -> torch.Tensor:
        """(tokens, columns) -> (tokens, vocabulary)"""
        start, found = 0, torch.empty(0)
        for piece in self.logits(output, hidden, weights):
            if not start:
                found = piece.new_empty(len(hidden), piece.shape[-1])
            found[start : start + len(piece)] = piece
            start += len(piece)
        return found

    def logits(self, output: Any, hidden: torch.Tensor, weights: Weights) -> Iterator[torch.Tensor]:
        """(tokens, columns) -> (some tokens, vocabulary), one after the other.

        output: any that the base model gave; the hidden states take the place of its own
        """
        model = self._skeleton.model
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            for part in self._skeleton.head:
                stack.enter_context(self._skeleton.holding(part, weights))
            for piece in hidden.split(_PIECE):
                with _answering(model.base_model, output, piece[None]):
                    ids = torch.zeros(1, len(piece), dtype=torch.int64)
                    yield model(input_ids=ids, use_cache=False).logits[0]


@contextmanager
def _answering(base: Any, output: Any, hidden: torch.Tensor) -> Iterator[None]:
    answer = copy.copy(output)
    answer["last_hidden_state"] = hidden
    base.forward = lambda *_, **__: answer
    try:
        yield
    finally:
        del base.forward
