"""What save_pretrained writes of a packed model: codes where they still are the weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import CONFIG_NAME

from tq3.format import config as tq_config
from tq3.format import manifest
from tq3.format.equalization import NO_FACTORS, Factors
from tq3.format.layout import NORMS, PACKED
from tq3.format.recognition import ALIAS, METHOD, QUANTIZATION_CONFIG, say_how_to_load
from tq3.integrations.transformers.placing import Place
from tq3.runtime.held import describes
from tq3.runtime.modules import PackedWeight


def save_pretrained(
    model: PreTrainedModel,
    save_directory: Any,
    is_main_process: bool = True,
    *others: Any,
    **options: Any,
) -> None:
    """What the host saves, in a folder that the host without this package refuses to load, and
    which says nothing of the checkpoint that it may have held before.

    The host drops the key that makes it refuse just before it writes config.json, and asks nobody
    after that. What it uploads itself (`push_to_hub=True`) it uploads without the key.
    """
    type(model).save_pretrained(model, save_directory, is_main_process, *others, **options)
    folder, is_adapter = Path(save_directory), getattr(model, "_hf_peft_config_loaded", False)
    path = folder / CONFIG_NAME
    if not is_main_process or is_adapter or not path.is_file():
        return
    for stale in (tq_config.FILE_NAME, manifest.FILE_NAME):
        (folder / stale).unlink(missing_ok=True)
    text = path.read_text("utf-8")
    declared = json.loads(text).get(QUANTIZATION_CONFIG) or {}
    if declared.get("quant_method") in (METHOD, ALIAS):
        path.write_text(say_how_to_load(text), "utf-8")


def factors_beside(weight_file: str, declared: Any) -> Factors:
    """The factors of equalized columns that the checkpoint of this file records.

    declared: its quantization_config, which has them where the host saved it

    From the Hub a host fetches no more than it needs, and there is nothing to read them from.
    """
    path = Path(weight_file).with_name(tq_config.FILE_NAME)
    if path.is_file():
        return tq_config.parse_tq_config(path.read_text("utf-8")).factors
    found = tq_config.find_in_model_config({QUANTIZATION_CONFIG: declared.to_dict()})
    return found.factors if found else NO_FACTORS


def state_to_save(
    model: PreTrainedModel, held: Mapping[str, PackedWeight]
) -> dict[str, torch.Tensor]:
    """The model's state dict, but that codes stand for the decoded weights that they describe.

    An edited weight is saved as it is, and so is packed no longer. held: parameter -> codes
    """
    state: dict[str, torch.Tensor] = model.state_dict()
    for name, weight in held.items():
        if name not in state:  # as where an adapter stands in the module's place
            continue
        values = _values(model, name)
        with align_module_device(weight):
            if describes(weight, values):
                del state[name]
                state[name + PACKED], state[name + NORMS] = weight.stored()
    return state | _tied(model, state)


def shapes_to_record(
    model: PreTrainedModel, places: Iterable[Place], state: Mapping[str, torch.Tensor], group: int
) -> dict[str, tuple[int, ...]]:
    """Shapes by name in the checkpoint, where they can't be derived from the tensors in `state`."""
    dense = {
        place.parameter: torch.empty(place.layout.shape, device="meta")
        for place in places
        if place.parameter + PACKED in state
        and place.parameter + PACKED not in model.all_tied_weights_keys
    }
    return {
        name: tuple(tensor.shape)
        for name, tensor in revert_weight_conversion(model, dense).items()
        if tensor.ndim != 2 or tensor.shape[-1] % group
    }


def _values(model: PreTrainedModel, name: str) -> torch.Tensor:
    path, _, name = name.rpartition(".")
    owner = model.get_submodule(path)
    with align_module_device(owner):
        values: torch.Tensor = owner.get_parameter(name).detach()
        return values


def _tied(model: PreTrainedModel, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What is tied, and was made anew for the state dict, as one tensor again."""
    return {
        target: state[source]
        for target, source in model.all_tied_weights_keys.items()
        if target in state and source in state and _are_same(state[target], state[source])
    }


def _are_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    # The host compares parameters on meta itself.
    alike = one.device == other.device and not one.is_meta
    return alike and torch.equal(one, other)
