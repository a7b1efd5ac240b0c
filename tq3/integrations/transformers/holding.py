"""Weights that modules read themselves: held decoded, or decoded at each use where offloaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from accelerate.utils import align_module_device, has_offloaded_params
from torch import nn
from transformers.utils import logging

from tq3.runtime.held import hold_decoded
from tq3.runtime.modules import PackedLinear, PackedWeight
from tq3.units import size

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
    _warn_of_memory(model, found)
    for _, owner, name, child in found:
        if getattr(owner, name) is child:
            hold_decoded(owner, name)
            _log.info(f"{type(owner).__name__} reads its {name} itself: it is held decoded, too")
            if has_offloaded_params(child):
                _decode_at_each_use(owner, name, child)
    return {parameter: child for parameter, _, _, child in found}


def _warn_of_memory(
    model: nn.Module, found: Iterable[tuple[str, nn.Module, str, PackedWeight]]
) -> None:
    """Say what the weights that are held decoded need, unless they are few, as routers are."""
    held = {id(weight): (weight, _reader(model, path, owner)) for path, owner, _, weight in found}
    everything = [part for part in model.modules() if isinstance(part, PackedWeight)]
    codes = sum(weight.n_bytes for weight, _ in held.values())
    values = sum(weight.numel() * weight.dtype.itemsize for weight, _ in held.values())
    if 10 * (values - codes) > sum(weight.n_bytes for weight in everything):
        readers = ", ".join(sorted({reader for _, reader in held.values()}))
        _log.warning(
            f"tq3: {len(held)} of {len(everything)} packed weights are held decoded, which needs "
            f"{size(values)} instead of {size(codes)}: code of {readers} reads them"
        )


def _reader(model: nn.Module, parameter: str, owner: nn.Module) -> str:
    """The class whose code reads it: around an nn.Linear, which itself would not have to."""
    if type(owner) is nn.Linear:
        owner = model.get_submodule(parameter.rpartition(".")[0].rpartition(".")[0])
    return type(owner).__name__


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
