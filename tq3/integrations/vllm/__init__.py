"""vLLM serves TQ3 checkpoints packed: the plugin that it loads.

`register` is the entry point `tq3` of the group `vllm.general_plugins`.
"""

from __future__ import annotations

from functools import cache, partial

from vllm.model_executor.custom_op import PluggableLayer, op_registry_oot
from vllm.model_executor.layers.quantization import (
    QUANTIZATION_METHODS,
    register_quantization_config,
)
from vllm.model_executor.model_loader import register_model_loader

from tq3.integrations.vllm import linear, vocabulary
from tq3.integrations.vllm.config import NAMES, Tq3Config, is_ours
from tq3.integrations.vllm.decoding import logger
from tq3.integrations.vllm.loader import Tq3ModelLoader

# vLLM warns of a load format that is registered twice.
_register_load_format = cache(partial(register_model_loader("tq3"), Tq3ModelLoader))


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
    _register_load_format()
    for name, layer in (linear.LAYERS | vocabulary.LAYERS).items():
        if name not in op_registry_oot:
            PluggableLayer.register_oot(name=name)(layer)
        elif op_registry_oot[name] is not layer:
            logger.warning("layer %s belongs to another package: a packed one can't load", name)
