"""A host's model without weights, into which those of one part at a time are put.

The host builds it and converts tensors as it does when it loads a whole checkpoint: names that it
changes and experts that it joins come out as there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging

from tq3.errors import BadInput
from tq3.evaluation.forwards import stop_at
from tq3.integrations.transformers.placing import Renaming

Weights = Callable[[str], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Part:
    """What is in memory at one time: a layer, or a module outside of all layers.

    name: its path in the model
    is_layer: whether it is one of a list of modules, as decoder blocks are
    tensors: names in the checkpoint of all that its parameters are made from
    """

    name: str
    module: nn.Module
    is_layer: bool
    parameters: tuple[str, ...]
    tensors: tuple[str, ...]


class Skeleton:
    """A model of which only buffers are in memory, and its parts.

    head: the parts outside of the base model, which make logits
    rest: parameters that belong to no part
    used: the parts that text goes through, as far as that can be told beforehand
    filled: tensor of the checkpoint -> the parameters it ends up in; none for what is not loaded
    """

    def __init__(self, model: PreTrainedModel, tensors: Collection[str]) -> None:
        self.model = model
        self._state = model.state_dict()
        self._tied: Mapping[str, str] = model.all_tied_weights_keys
        self.filled = _filled_by(model, self._state, tensors)
        self._loading = LoadStateDictConfig(
            dtype=model.dtype,
            dtype_plan=model._get_dtype_plan(model.dtype),
            weight_mapping=get_model_conversion_mapping(model),
        )
        found = list(_modules(model))
        parts = tuple(self._part(name, module, is_layer) for name, module, is_layer in found)
        inside = {name for part in parts for name in part.parameters}
        outside = tuple(name for name in self._state if name not in inside)
        self.rest = Part("", model, False, outside, self._made_from(outside))
        base = model.base_model_prefix + "."
        self.head = tuple(part for part in parts if not part.name.startswith(base))
        decoder = set(model.get_decoder().modules())
        self.used = tuple(p for p in parts if p in self.head or p.module in decoder)
        self._parts = {part.module: part for part in parts}
        for part in parts:
            stop_at(part.module)

    def start(self, ids: torch.Tensor) -> Any:
        """The base model's output for (sequences, tokens) int64; to be run in a `Forward`."""
        return self.model.base_model(input_ids=ids, use_cache=False)

    def part_of(self, module: nn.Module) -> Part:
        """The part that a `Forward` stopped at."""
        return self._parts[module]

    def parameter(self, name: str) -> torch.Tensor:
        """A parameter as it is now: without a value while no part `holding` it is in memory."""
        return self._get(name)

    def move(self, part: Part, device: torch.device) -> None:
        """Move what `holding` the part has put into memory; to be called within."""
        for name in part.parameters:
            value = self._get(name)
            if value.device != device:
                self._set(name, nn.Parameter(value.to(device), requires_grad=False))

    @contextmanager
    def holding(self, part: Part, weights: Weights) -> Iterator[None]:
        """The part with its weights, inside of the with statement. Raises BadInput."""
        if not part.parameters:
            yield
            return
        before = {name: self._get(name) for name in self._touched(part)}
        try:
            self._load(part, {name: self._cast(weights(name)) for name in part.tensors})
            yield
        finally:
            for name, value in before.items():
                self._set(name, value)

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Floats to float32, where that is wanted: the host would do it in threads, and what they
        allocate is not given back. To narrower types it knows which tensors not to cast.
        """
        wanted = self.model.dtype
        is_wider = tensor.is_floating_point() and wanted == torch.float32
        return tensor.to(wanted) if is_wider else tensor

    def _load(self, part: Part, state: dict[str, torch.Tensor]) -> None:
        with _no_bars():
            info, _ = convert_and_load_state_dict_in_model(self.model, state, self._loading)
        for name, found, expected in info.mismatched_keys:
            raise BadInput(
                "not of the shape that config.json says",
                tensor=name,
                found=list(found),
                expected=list(expected),
                fix="fetch checkpoint and config.json again, from one revision",
            )
        for name, error in info.conversion_errors.items():
            raise BadInput("Transformers can't convert it", tensor=name, found=error)
        for name in part.parameters:
            if self._get(name).is_meta and name in self._tied:
                self._set(name, self._get(self._tied[name]))
            if self._get(name).is_meta:
                raise BadInput(
                    "the checkpoint has no tensor for this parameter",
                    tensor=name,
                    fix="check `architectures` in config.json, and fetch the checkpoint again",
                )

    def _part(self, name: str, module: nn.Module, is_layer: bool) -> Part:
        start = name + "."
        parameters = tuple(key for key in self._state if key.startswith(start))
        return Part(name, module, is_layer, parameters, self._made_from(parameters))

    def _made_from(self, parameters: Collection[str]) -> tuple[str, ...]:
        """The tensors that these parameters are built from; tied ones, stored once, count once."""
        stored = {name for names in self.filled.values() for name in names}
        wanted = {p if p in stored else self._tied.get(p, p) for p in parameters}
        return tuple(n for n, filled in self.filled.items() if not wanted.isdisjoint(filled))

    def _touched(self, part: Part) -> set[str]:
        """Every parameter and buffer that loading the part's tensors fills."""
        return {*part.parameters, *(p for name in part.tensors for p in self.filled[name])}

    def _get(self, name: str) -> torch.Tensor:
        path, _, last = name.rpartition(".")
        value: torch.Tensor = getattr(self.model.get_submodule(path), last)
        return value

    def _set(self, name: str, value: torch.Tensor) -> None:
        path, _, last = name.rpartition(".")
        setattr(self.model.get_submodule(path), last, value)


def build(model_class: Any, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model with all parameters on meta, and buffers as they are computed from the config."""
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = model_class._from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


@contextmanager
def _no_bars() -> Iterator[None]:
    """The host would draw one for each part."""
    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()


def _modules(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module, bool]]:
    """Entries of module lists, and modules in which there is no such list; outermost ones only."""
    for name, child in model.named_children():
        place = f"{path}.{name}" if path else name
        if isinstance(child, nn.ModuleList):
            yield from ((f"{place}.{i}", entry, True) for i, entry in enumerate(child))
        elif any(isinstance(module, nn.ModuleList) for module in child.modules()):
            yield from _modules(child, place)
        elif next(child.parameters(), None) is not None:
            yield place, child, False


def _filled_by(
    model: PreTrainedModel, state: dict[str, torch.Tensor], tensors: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """Tensor of the checkpoint -> the parameters it ends up in; none for what is not loaded."""
    rename = Renaming(model)
    renamed = {name: rename(name, state)[0] for name in tensors}
    filled = {name: tuple(p for p in places if p in state) for name, places in renamed.items()}
    return {name: places for name, places in filled.items() if places}
