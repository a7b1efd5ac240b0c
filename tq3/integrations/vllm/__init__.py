"""vLLM serves TQ3 checkpoints packed: the plugin that it loads.

`register` is the entry point `tq3` of the group `vllm.general_plugins`.
"""

from __future__ import annotations

from vllm.model_executor.custom_op import PluggableLayer, op_registry_oot
from vllm.model_executor.layers.quantization import (
    QUANTIZATION_METHODS,
    register_quantization_config,
)

from tq3.integrations.vllm import linear, vocabulary
from tq3.integrations.vllm.config import NAMES, Tq3Config, is_ours
from tq3.integrations.vllm.decoding import logger


def register() -> None:
    """Make the quantisation known. vLLM calls this in every process; twice does no harm."""
    for name in NAMES:
        if name not in QUANTIZATION_METHODS:
            register_quantization_config(name)(Tq3Config)
            logger.debug("quantization %r is served by tq3", name)
        elif not is_ours(name):
            logger.warning(
                "quantization %r belongs to another package and was left to it; "
                "tq3 serves its own checkpoints as 'tq3'",
                name,
            )
    for name, layer in (linear.LAYERS | vocabulary.LAYERS).items():
        if name not in op_registry_oot:
            PluggableLayer.register_oot(name=name)(layer)
        elif op_registry_oot[name] is not layer:
            logger.warning("layer %s belongs to another package: a packed one can't load", name)
