"""Weights that modules read themselves: held decoded, or decoded at each use where offloaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from accelerate.utils import align_module_device, has_offloaded_params
from torch import nn
from transformers.utils import logging

from tq3.runtime.held import hold_decoded
from tq3.runtime.modules import PackedLinear, PackedWeight

_log = logging.get_logger(__name__)


def hold_all(model: nn.Module) -> dict[str, PackedWeight]:
    """Decode what no packed layer reads. Parameter -> its codes.

    A module that has several names has its parameters under each of them.
    """
    found = [
        (f"{path}.{name}" if path else name, owner, name, child)
        for path, owner in model.named_modules(remove_duplicate=False)
        if not isinstance(owner, PackedLinear)
        for name, child in owner.named_children()
        if type(child) is PackedWeight
    ]
    for _, owner, name, child in found:
        if getattr(owner, name) is child:
            hold_decoded(owner, name)
            _log.info(f"{type(owner).__name__} reads its {name} itself: it is held decoded, too")
            if has_offloaded_params(child):
                _decode_at_each_use(owner, name, child)
    return {parameter: child for parameter, _, _, child in found}


class _Decoding(Mapping[str, torch.Tensor]):
    """What an offloading hook finds for the parameters of a module, one of which is packed."""

    def __init__(self, name: str, weight: PackedWeight, others: Mapping[str, torch.Tensor]) -> None:
        self._name, self._weight, self._others = name, weight, others

    def __getitem__(self, name: str) -> torch.Tensor:
        if name != self._name:
            return self._others[name]
        with align_module_device(self._weight, torch.device("cpu")):
            return self._weight.dequantize()

    def __contains__(self, name: object) -> bool:
        return name == self._name or name in self._others

    def __iter__(self) -> Iterator[str]:
        yield self._name
        yield from self._others

    def __len__(self) -> int:
        return 1 + len(self._others)


def _decode_at_each_use(owner: nn.Module, name: str, weight: PackedWeight) -> None:
    """Have the owner offloaded as its packed weight was, whose codes stay where they are."""
    of_weight: Any = weight._hf_hook
    of_owner: Any = owner._hf_hook if has_offloaded_params(owner) else None
    hook = AlignDevicesHook(
        execution_device=of_weight.execution_device,
        offload=True,
        weights_map=_Decoding(name, weight, of_owner.weights_map if of_owner else {}),
        offload_buffers=of_weight.offload_buffers,
        skip_keys=of_weight.skip_keys,
    )
    add_hook_to_module(owner, hook)
