"""A load format for models whose code puts tensors into parameters by hand.

They ask no quantisation how the checkpoint's tensors are called in vLLM. With `--load-format tq3`
codes and norms have these names, or are decoded, before a model's code sees them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from vllm.config import LoadConfig, ModelConfig, get_current_vllm_config
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from tq3.errors import UsageError
from tq3.integrations.vllm.config import Tq3Config


class Tq3ModelLoader(DefaultModelLoader):
    """vLLM's own loader, and the mapper of the quantisation before all others."""

    def __init__(self, load_config: LoadConfig) -> None:
        super().__init__(replace(load_config, load_format="auto"))

    def get_all_weights(
        self, model_config: ModelConfig, model: torch.nn.Module
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Dense tensors, and codes and norms under the names of vLLM's parameters."""
        config = get_current_vllm_config().quant_config
        if not isinstance(config, Tq3Config):
            raise UsageError(
                "load format tq3 is for TQ3 checkpoints",
                file=model_config.model,
                fix="leave --load-format out",
            )
        weights = super().get_all_weights(model_config, model)
        yield from config.get_checkpoint_weight_mapper().apply(weights)
