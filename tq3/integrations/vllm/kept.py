"""Layers whose matrices are not packed: vLLM's own, and an error where nothing was loaded into one.

Loaders of some models pass over names that they do not know; vLLM itself asks of no quantised
model whether everything was loaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe import RoutedExperts, UnquantizedFusedMoEMethod
from vllm.model_executor.layers.linear import (
    UnquantizedLinearMethod,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.platforms import current_platform

from tq3.errors import BadInput


@register_weight_loader_v2_supported_method
class KeptLinearMethod(UnquantizedLinearMethod):
    """One number of each partition is none until it is loaded."""

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        *sizes: Any,
        **extra_weight_attrs: Any,
    ) -> None:
        super().create_weights(
            layer, input_size_per_partition, output_partition_sizes, *sizes, **extra_weight_attrs
        )
        ends = accumulate(output_partition_sizes)
        _mark(layer.weight, (end - 1 for end in ends))

    def process_weights_after_loading(self, layer: Any) -> None:
        _check(layer.weight, layer.prefix)
        super().process_weights_after_loading(layer)


class KeptEmbeddingMethod(UnquantizedEmbeddingMethod):
    """Prepared for products when it is first used as a head, which most tables never are.

    On a processor that is a second copy; vLLM makes it of each table when it is loaded.
    """

    def process_weights_after_loading(self, layer: Any) -> None:
        """Do nothing: rows are looked up where they were loaded."""

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x (..., columns) -> (..., rows)"""
        if current_platform.is_cpu() and not hasattr(layer, "cpu_linear"):
            super().process_weights_after_loading(layer)
        return super().apply(layer, x, bias)


class KeptExpertsMethod(UnquantizedFusedMoEMethod):
    """One number of each expert's gate, up and down matrix is none until it is loaded."""

    def create_weights(self, layer: RoutedExperts, *sizes: Any, **options: Any) -> None:
        super().create_weights(layer, *sizes, **options)
        _mark(layer.w13_weight, [0, layer.w13_weight.shape[1] // 2])  # gate lies above up
        _mark(layer.w2_weight, [0])

    def process_weights_after_loading(self, layer: RoutedExperts) -> None:
        _check(layer.w13_weight, layer.layer_name)
        _check(layer.w2_weight, layer.layer_name)
        super().process_weights_after_loading(layer)


def _mark(weight: torch.Tensor, rows: Iterable[int]) -> None:
    """In the first column, which is never one that vLLM fills up with."""
    weight.data[..., list(rows), 0] = torch.nan


def _check(weight: torch.Tensor, name: str) -> None:
    if weight.data[..., 0].isnan().any():
        raise BadInput(
            "nothing was loaded into this layer, or into a part of it",
            tensor=name,
            fix="vLLM's model does not know the names that the checkpoint has for it, or they are "
            "packed where it builds them otherwise; serve what `tq3 restore` writes",
        )
