"""A packed model made dense in memory: what `tq3 restore` makes of its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate.utils import has_offloaded_params
from torch import nn
from transformers import PreTrainedModel

from tq3.errors import UsageError
from tq3.format.layout import NORMS, PACKED
from tq3.runtime.modules import PackedWeight, unpack


def dequantize(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Put decoded parameters of `dtype` in the place of all packed ones, one after the other.

    Those that shared their codes share the parameter. Raises UsageError where weights are
    offloaded: there is no memory that they were to be held in.
    """
    packed = [
        (owner, name, weight)
        for owner in model.modules()
        for name, weight in owner.named_children()
        if isinstance(weight, PackedWeight)
    ]
    offloaded = next((weight for _, _, weight in packed if has_offloaded_params(weight)), None)
    if offloaded is not None:
        raise UsageError(
            "weights that are offloaded can't be made dense in memory",
            tensor=offloaded.tensor,
            fix="load the model without device_map, or `tq3 restore` the checkpoint",
        )
    decoded: dict[int, nn.Parameter] = {}
    for owner, name, weight in packed:
        shared = id(weight.tq_packed)
        if shared not in decoded:
            decoded[shared] = nn.Parameter(weight.decoded().to(dtype))
        unpack(owner, name, decoded[shared])
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.all_tied_weights_keys = _of_whole(part.all_tied_weights_keys)
            if "_tied_weights_keys" in vars(part):  # where `tying` told the host of codes
                part._tied_weights_keys = _of_whole(part._tied_weights_keys)


def _of_whole(ties: Mapping[str, str]) -> dict[str, str]:
    """Ties between parameters, for those between their codes and between their norms."""

    def whole(name: str) -> str:
        return name.removesuffix(PACKED).removesuffix(NORMS)

    return {whole(target): whole(source) for target, source in ties.items()}
