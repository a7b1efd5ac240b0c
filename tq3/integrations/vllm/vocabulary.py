"""Embeddings and output heads of vLLM whose rows stay packed, split over ranks as vLLM does it."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)

from tq3.integrations.stored import Matrix
from tq3.integrations.vllm.linear import (
    PARAMETERS,
    Tq3LinearMethod,
    config_of_the_model,
    tiles_of,
)


class Tq3VocabularyMethod(Tq3LinearMethod):
    """Rows are looked up, or multiplied as those of any layer; the two may share one matrix.

    is_own: whether the checkpoint has this matrix, and not only the embeddings that a head shares
    """

    is_filled_up = True

    def __init__(
        self, matrix: Matrix, group: int, decode: Callable[[], None], *, is_own: bool
    ) -> None:
        super().__init__([matrix], group, decode)
        self.is_own = is_own

    def embedding(self, layer: Any, ids: torch.Tensor) -> torch.Tensor:
        """ids of this rank's rows, of any shape -> (*ids.shape, columns), as the model's dtype."""
        (run,) = layer.tq3_runs
        of_rows = layer.embedding_dim, layer.params_dtype
        if tiles := tiles_of(layer, run.first_norm):
            return torch.ops.tq3.embedding_tiled(ids, *tiles, self.group, *of_rows)
        parts = layer.weight_packed, layer.weight_norms
        return torch.ops.tq3.embedding(ids, *parts, run.bits, self.group, *of_rows)

    def tie_weights(self, layer: Any, embed_tokens: Any) -> Any:
        """Before anything is loaded: the head's codes and norms become the embeddings'."""
        if not self.is_own:
            for name in PARAMETERS:
                if hasattr(layer, name):
                    setattr(layer, name, getattr(embed_tokens, name))
        return layer


class _Configured:
    """Packed where the checkpoint's is, also in models that build theirs without a quantisation."""

    def __init__(self, *args: Any, **options: Any) -> None:
        call = signature(super().__init__).bind(*args, **options)
        if call.arguments.get("quant_config") is None:
            call.arguments["quant_config"] = config_of_the_model()
        super().__init__(*call.args, **call.kwargs)


class PackedEmbedding(_Configured, VocabParallelEmbedding):
    """vLLM's embeddings."""


class PackedLMHead(_Configured, ParallelLMHead):
    """vLLM's output head."""


# For vLLM's registry of layers: name of the layer -> what is built in its place.
LAYERS = {"VocabParallelEmbedding": PackedEmbedding, "ParallelLMHead": PackedLMHead}
