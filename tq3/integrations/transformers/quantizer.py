"""Tq3Quantizer: puts packed modules into a model before Transformers loads its weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import WeightConverter, WeightRenaming
from transformers.quantizers import HfQuantizer
from transformers.utils import logging

from tq3.errors import BadInput, UsageError
from tq3.format.config import stand_in
from tq3.format.recognition import TRANSFORMERS_WEIGHTS, names_a_file
from tq3.integrations.transformers import adapters, counting, dequantizing, experts, saving
from tq3.integrations.transformers.convolving import convolve_in_float32
from tq3.integrations.transformers.distribution import refuse_cuts
from tq3.integrations.transformers.holding import hold_all
from tq3.integrations.transformers.mapped import MappedFiles, copy_once
from tq3.integrations.transformers.placing import (
    Place,
    check_names,
    find_kept,
    find_places,
    read_pairs,
)
from tq3.integrations.transformers.reading import is_only_read
from tq3.integrations.transformers.tying import shared_places, tie
from tq3.runtime.arguments import DTYPES
from tq3.runtime.modules import (
    PackedExperts,
    PackedLinear,
    PackedRows,
    PackedWeight,
    look_up_packed,
    note_siblings,
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
        self._held: dict[str, PackedWeight] = {}
        self._experts_asked: list[str] = []
        self._experts_before: str | None = None
        self._files = MappedFiles(())
        self._weight_file = ""

    def update_attn_implementation(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Called before Transformers looks for files. It shall take the usual ones, which
        `transformers_weights` keeps it from where this package was not imported.
        """
        self._experts_asked = experts.asked_for(config)
        weights = getattr(config, TRANSFORMERS_WEIGHTS, None)
        if weights is not None and not names_a_file(weights):
            delattr(config, TRANSFORMERS_WEIGHTS)
        return config

    update_tp_plan = update_attn_implementation  # 5.16 calls only this one

    def get_new_dtype(
        self, converter: WeightRenaming | WeightConverter, param: Any, dtype: torch.dtype | None
    ) -> torch.dtype | None:
        """Called for each tensor before it is read, from 5.21 on; None for a step that casts it."""
        wanted = super().get_new_dtype(converter, param, dtype)
        return None if copy_once(converter, param, wanted, self._files) else wanted

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> None:
        refuse_cuts(model.config)
        if not checkpoint_files or not all(f.endswith(".safetensors") for f in checkpoint_files):
            raise UsageError(
                "TQ3 weights are loaded from safetensors files only",
                found=list(checkpoint_files or []) or "a state dict, or no weights at all",
                fix="call from_pretrained with the checkpoint's folder, or its id on the Hub",
            )
        if model.dtype not in DTYPES:
            raise UsageError(
                "packed layers take no activations of this dtype",
                found=model.dtype,
                expected=", ".join(map(str, DTYPES)),
                fix="give from_pretrained another `dtype`",
            )
        self._files = MappedFiles(checkpoint_files)
        self._weight_file = checkpoint_files[0]
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
        owners = experts.owners_of_packed(model)
        if owners:
            adapters.watch(model)
        if any(map(experts.can_be_chosen, owners)):
            if self._experts_asked:
                _log.warning(
                    f"tq3: experts_implementation={self._experts_asked[0]!r} is not used: packed "
                    f"experts are computed by {experts.IMPLEMENTATION!r} alone"
                )
            self._experts_before = model.config._experts_implementation
            model.set_experts_implementation(experts.IMPLEMENTATION)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        self._held = hold_all(model)
        convolve_in_float32(model)
        note_siblings(model)
        for weight in self._held.values():
            for part in weight.parameters():
                self._files.let_go(part)
        for module in model.modules():
            if isinstance(module, PackedWeight):
                module.arrange()
            elif isinstance(module, PreTrainedModel):
                # No hook of the host's asks anybody, as it does for 4 bits of bitsandbytes.
                module.num_parameters = partial(counting.num_parameters, module)
                module.save_pretrained = partial(saving.save_pretrained, module)
                module.set_experts_implementation = partial(experts.choose, module)

    def _dequantize(
        self, model: PreTrainedModel, dtype: torch.dtype | str | None = None
    ) -> PreTrainedModel:
        """Called by model.dequantize(), which then forgets that the model was packed.

        dtype: also its name, which config.json has, and the model's config from save_pretrained on
        """
        before = model.dtype
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype or before
        dequantizing.dequantize(model, dtype)
        if self._experts_before is not None:
            model.set_experts_implementation(self._experts_before)
        for module in model.modules():
            if isinstance(module, experts.RepeatedExperts):
                module.back()
            for name in ("num_parameters", "set_experts_implementation"):
                vars(module).pop(name, None)
        return model if dtype == before else model.to(dtype)

    def get_state_dict_and_metadata(
        self, model: PreTrainedModel
    ) -> tuple[dict[str, torch.Tensor] | None, dict[str, str]]:
        """Called by save_pretrained, before it writes config.json: that gains what tq_config.json
        would say, or no longer says that the model is packed where all of it was edited.
        """
        state = saving.state_to_save(model, self._held)
        if all(place.parameter in state for place in self._places):
            self.remove_quantization_config(model)
        else:
            group = self.quantization_config.group_size
            shapes = saving.shapes_to_record(model, self._places, state, group)
            factors = saving.factors_beside(self._weight_file, self.quantization_config)
            self.quantization_config.tq3 = stand_in(shapes, factors)
        return state, {}

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """save_pretrained writes codes and norms, of all but edited weights as they were loaded."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether adapters can be trained; what is packed stays as it is."""
        return True

    @property
    def is_compileable(self) -> bool:
        """The operators can be traced."""
        return True


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
    about = {"dtype": parameter.dtype, "device": parameter.device, "tensor": place.tensor}
    if isinstance(owner, nn.Embedding) and owner in tokens and owner.max_norm is None:
        look_up_packed(owner, PackedRows(place.layout, **about))
        return
    is_stack = len(place.layout.shape) == 3
    are_experts = is_stack and experts.are_experts(owner, name, place.layout)
    kind = PackedExperts if are_experts else PackedWeight
    weight = kind(place.layout, stacked=is_stack and place.converted, **about)
    # Classes derived from nn.Linear may read their weight themselves.
    if type(owner) is nn.Linear and not is_only_read(*_parent(model, path)):
        packed = PackedLinear(weight, owner.bias)
        # Or the host would initialise it, as it does any nn.Linear.
        vars(packed)["_is_hf_initialized"] = True
        model.set_submodule(path, packed.train(owner.training))
    else:
        delattr(owner, name)
        setattr(owner, name, weight)
        if are_experts:
            experts.RepeatedExperts.becomes(owner)


def _parent(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    return model.get_submodule(parent), name
