"""Tq3Quantizer: puts packed modules into a model before Transformers loads its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.quantizers import HfQuantizer
from transformers.utils import logging

from tq3.errors import BadInput, UsageError
from tq3.format.config import stand_in
from tq3.format.layout import PACKED
from tq3.integrations.transformers import experts
from tq3.integrations.transformers.placing import (
    Place,
    check_names,
    find_kept,
    find_places,
    read_pairs,
)
from tq3.integrations.transformers.tying import shared_places, tie
from tq3.runtime.arguments import DTYPES
from tq3.runtime.modules import (
    PackedExperts,
    PackedLinear,
    PackedRows,
    PackedWeight,
    hold_decoded,
    look_up_packed,
)

_log = logging.get_logger(__name__)


class Tq3Quantizer(HfQuantizer):
    """Weights stay packed: module keys are the checkpoint's, so that nothing is converted."""

    def __init__(self, quantization_config: Any, **options: Any) -> None:
        # True also where config.json is silent, as that of a published checkpoint is. But releases
        # without this hook leave kept tensors of quantised models in FP16 wherever they rename one.
        options["pre_quantized"] = hasattr(HfQuantizer, "get_new_dtype")
        super().__init__(quantization_config, **options)
        self._places: list[Place] = []

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> None:
        if not checkpoint_files or not all(f.endswith(".safetensors") for f in checkpoint_files):
            raise UsageError(
                "TQ3 weights are loaded from safetensors files only",
                found=list(checkpoint_files or []) or "a state dict, or no weights at all",
                fix="call from_pretrained with the checkpoint's folder, or its id on the Hub",
            )
        if model.dtype not in DTYPES:
            allowed = ", ".join(map(str, DTYPES))
            raise UsageError("activations of this dtype", found=model.dtype, expected=allowed)
        pairs, others = read_pairs(checkpoint_files)
        kept = find_kept(model, others)
        places = find_places(model, pairs, kept, self.quantization_config.group_size)
        if not places:
            found = next(iter(pairs), "no compressed tensor at all")
            raise BadInput(
                f"no compressed tensor belongs to a {type(model).__name__}",
                file=model.name_or_path,
                found=found,
                fix="check `architectures` in config.json with `tq3 inspect`",
            )
        shared = shared_places(model.all_tied_weights_keys, places, set(kept))
        self._places = places + shared
        tie(model, {place.parameter for place in self._places})
        tokens = _token_embeddings(model, shared)
        for place in places:
            _install(model, place, tokens)
        check_names(model, pairs)
        for place in shared:
            _install(model, place, tokens)
        if any(isinstance(module, PackedExperts) for module in model.modules()):
            model.set_experts_implementation(experts.IMPLEMENTATION)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        model.requires_grad_(False)
        for owner in list(model.modules()):
            for name, child in list(owner.named_children()):
                if type(child) is PackedWeight and not isinstance(owner, PackedLinear):
                    _hold_decoded(owner, name, child)
        for module in model.modules():
            if isinstance(module, PackedWeight):
                module.arrange()

    def get_state_dict_and_metadata(
        self, model: PreTrainedModel
    ) -> tuple[dict[str, torch.Tensor] | None, dict[str, str]]:
        """Called by save_pretrained, before it writes config.json: that gains what tq_config.json
        would say. The state dict is the model's.
        """
        dense = {
            place.parameter: torch.empty(place.layout.shape, device="meta")
            for place in self._places
            if place.parameter + PACKED not in model.all_tied_weights_keys
        }
        group = self.quantization_config.group_size
        saved = {
            name: tuple(tensor.shape)
            for name, tensor in revert_weight_conversion(model, dense).items()
            if tensor.ndim != 2 or tensor.shape[-1] % group
        }
        self.quantization_config.tq3 = stand_in(saved)
        return _state_of_tiles(model), {}

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """save_pretrained writes the codes and norms that were loaded."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Packed weights have no gradient."""
        return False

    @property
    def is_compileable(self) -> bool:
        """The operators can be traced."""
        return True


def _state_of_tiles(model: PreTrainedModel) -> dict[str, torch.Tensor] | None:
    """What is saved of a model whose weights lie in tiles; None if there are none.

    Each module gives codes as the checkpoint has them: tied ones are one tensor again here.
    """
    if not any(isinstance(part, PackedWeight) and part.is_tiled for part in model.modules()):
        return None
    state: dict[str, torch.Tensor] = model.state_dict()
    ties = model.all_tied_weights_keys.items()
    return state | {target: state[source] for target, source in ties if target in state}


def _token_embeddings(model: PreTrainedModel, shared: Sequence[Place]) -> set[nn.Module]:
    """The embeddings that nothing is done with but looking rows up.

    Those of the model's tokens, others of their class, if that is one of their own, and all that
    share a packed weight. Tables of positions may be read as a whole.
    """
    owners = {model.get_submodule(place.parameter.rpartition(".")[0]) for place in shared}
    try:
        inputs = model.get_input_embeddings()
    except NotImplementedError:
        return owners
    return owners | {
        module
        for module in model.modules()
        if module is inputs or type(module) is type(inputs) is not nn.Embedding
    }


def _install(model: PreTrainedModel, place: Place, tokens: set[nn.Module]) -> None:
    """Replace a parameter on meta by a packed module, also on meta."""
    path, _, name = place.parameter.rpartition(".")
    owner = model.get_submodule(path)
    parameter = owner.get_parameter(name)
    of_parameter = {"dtype": parameter.dtype, "device": parameter.device}
    if isinstance(owner, nn.Embedding) and owner in tokens and owner.max_norm is None:
        look_up_packed(owner, PackedRows(place.layout, **of_parameter))
        return
    is_stack = len(place.layout.shape) == 3
    kind = PackedExperts if is_stack and experts.are_experts(owner, name) else PackedWeight
    weight = kind(place.layout, stacked=is_stack and place.converted, **of_parameter)
    # Classes derived from nn.Linear may read their weight themselves.
    if type(owner) is nn.Linear:
        packed = PackedLinear(weight, owner.bias)
        model.set_submodule(path, packed.train(owner.training))
    else:
        delattr(owner, name)
        setattr(owner, name, weight)


def _hold_decoded(owner: nn.Module, name: str, weight: PackedWeight) -> None:
    if weight.tq_packed.is_meta:
        raise UsageError(
            f"{type(owner).__name__}.{name} must be decoded, but is offloaded",
            fix="give a device_map that keeps the whole model in memory",
        )
    hold_decoded(owner, name)
    _log.info(f"{type(owner).__name__} reads its {name} itself: it is held decoded, too")
