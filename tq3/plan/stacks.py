"""Fused experts that checkpoints store with inputs as rows, as some hosts compute with them.

Hosts multiply packed weights whose groups lie along the inputs, so such a stack has to be turned
before it is cut into groups. Two orders of one matrix can't be told apart by its values, and often
not by its shape: known are these architectures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tq3.format.checkpoint import Checkpoint
from tq3.format.header import FLOATS, TensorInfo

_OF_MLP = re.compile(r"(^|\.)mlp\.experts\.(gate_up|down)_proj$")
_OF_ARIA = re.compile(r"(^|\.)mlp\.experts\.(fc[12]\.weight|(gate_up|down)_proj)$")
_OF_FEED_FORWARD = re.compile(r"(^|\.)feed_forward\.experts\.(gate_up|down)_proj$")
# model_type, also that of the text model, -> names.
_TURNED = {
    "gpt_oss": _OF_MLP,
    "openai_privacy_filter": _OF_MLP,
    "aria_text": _OF_ARIA,
    "llama4": _OF_FEED_FORWARD,
    "llama4_text": _OF_FEED_FORWARD,
}


def with_inputs_as_rows(checkpoint: Checkpoint) -> Iterator[str]:
    """Names of the stacks whose rows are inputs, (experts, inputs, outputs), by config.json."""
    text_config = checkpoint.config.get("text_config")
    config = text_config if isinstance(text_config, dict) else checkpoint.config
    pattern, hidden = _TURNED.get(str(config.get("model_type"))), config.get("hidden_size")
    if pattern is None:
        return
    for tensor in checkpoint.tensors:
        info = tensor.info
        if not tensor.transposed and pattern.search(info.name) and _fits(info, hidden):
            yield info.name


def _fits(info: TensorInfo, hidden: object) -> bool:
    """Whether gate and up read, and down writes, `hidden` channels in this order."""
    if len(info.shape) != 3 or info.dtype not in FLOATS:
        return False
    reads = info.name.endswith(("gate_up_proj", "fc1.weight"))
    return info.shape[1 if reads else 2] == hidden
