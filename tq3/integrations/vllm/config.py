"""What vLLM asks of a quantisation: how a checkpoint is recognised and how each layer is held."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from itertools import chain
from typing import Any

import torch
from vllm.config import get_current_vllm_config_or_none
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.quantization import (
    QUANTIZATION_METHODS,
    get_quantization_config,
)
from vllm.model_executor.layers.quantization.base_config import (
    QuantizationConfig,
    QuantizeMethodBase,
)
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.utils import get_model_cls
from vllm.model_executor.models.utils import WeightsMapper
from vllm.transformers_utils.config import get_safetensors_params_metadata
from vllm.transformers_utils.repo_utils import get_hf_file_to_dict

from tq3.errors import BadInput, UsageError
from tq3.format.config import (
    FILE_NAME,
    TqConfig,
    find_in_model_config,
    group_of,
    parse_tq_config,
)
from tq3.format.formats import FORMATS
from tq3.format.layout import PACKED
from tq3.format.recognition import ALIAS, METHOD
from tq3.integrations.stored import Stored, read_shapes
from tq3.integrations.vllm import names
from tq3.integrations.vllm.casts import warn_once
from tq3.integrations.vllm.decoding import CheckpointMapper, Decoder, logger
from tq3.integrations.vllm.experts import (
    Tq3ExpertsMethod,
    are_turned,
    expert_bits,
    stacks_below,
)
from tq3.integrations.vllm.kept import (
    KeptEmbeddingMethod,
    KeptExpertsMethod,
    KeptLinearMethod,
)
from tq3.integrations.vllm.linear import Tq3LinearMethod
from tq3.integrations.vllm.vocabulary import Tq3VocabularyMethod
from tq3.runtime.arguments import DTYPES

NAMES = (METHOD, ALIAS)
# vLLM does not say which of them it read.
_SOURCES = f"config.json or {FILE_NAME}"


class Tq3Config(QuantizationConfig):
    """What the headers of one checkpoint say of each layer.

    taken: source names of the matrices that a layer holds packed; others are decoded
    """

    def __init__(self, group: int) -> None:
        super().__init__()
        self.stored = Stored({}, group)
        self.taken: set[str] = set()
        self.model_type = ""
        self.read_record: Callable[[], TqConfig | None] = lambda: None
        self._declared: dict[str, Any] = {}

    def get_name(self) -> str:
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return list(DTYPES)

    @classmethod
    def get_min_capability(cls) -> int:
        return 80  # Ampere, whose bfloat16 the models need

    @staticmethod
    def get_config_filenames() -> list[str]:
        return [FILE_NAME]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Tq3Config:
        """From config.json's `quantization_config` or, where that is missing, tq_config.json."""
        made = cls(group_of(config, _SOURCES))
        made._declared = config
        return made

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: dict[str, Any], user_quant: str | None, hf_config: Any = None
    ) -> Any:
        """Our name for a checkpoint whose config.json is in our format, or None."""
        method, written = hf_quant_cfg.get("quant_method"), hf_quant_cfg.get("format")
        if method not in NAMES or written not in FORMATS.values():
            return None
        ours = [name for name in NAMES if is_ours(name)]
        if user_quant is not None:
            return user_quant if user_quant in ours else None
        return ours[0] if ours else None

    def maybe_update_config(
        self, model_name: str, hf_config: Any = None, revision: str | None = None
    ) -> None:
        """Read the headers of the weight files, from the folder or the Hub."""
        headers = get_safetensors_params_metadata(model_name, revision=revision)
        shapes = {name: info["shape"] for name, info in headers.items() if "shape" in info}
        self.stored = read_shapes(shapes, self.stored.group).renamed(names.of_module)
        self.model_type = getattr(hf_config, "model_type", "")
        self.read_record = partial(_read_record, model_name, revision, self._declared)
        if not self.stored.n_packed:
            raise BadInput(
                names.why_none_is_packed(shapes),
                file=model_name,
                expected=f"tensors named *{PACKED}",
                fix="give a folder that `tq3 compress` wrote",
            )
        logger.info(
            "tq3: %d of %d matrices are packed", self.stored.n_packed, len(self.stored.matrices)
        )
        warn_once()

    def get_checkpoint_weight_mapper(self) -> WeightsMapper:
        """`up_proj.weight.tq_packed` is loaded into the parameter `weight_packed` of `up_proj`.

        vLLM asks for this when all layers are built and nothing is loaded.
        """
        packed = {m.source: m for m in self.stored.matrices.values() if m.is_packed}
        return CheckpointMapper(
            orig_to_new_suffix=names.suffixes(self.model_type),
            decoder=Decoder(packed, self.taken, self.stored.group, self.read_record),
        )

    def apply_vllm_mapper(self, hf_to_vllm_mapper: WeightsMapper) -> None:
        """The checkpoint's names become those of vLLM's modules."""
        self.stored = self.stored.renamed(hf_to_vllm_mapper.map_name)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """How vLLM holds and computes `layer`; None means as ever.

        What is not held packed here is decoded while it is loaded.
        """
        if isinstance(layer, LinearBase):
            return self._linear_method(prefix)
        if isinstance(layer, RoutedExperts):
            return self._experts_method(layer, prefix)
        if isinstance(layer, VocabParallelEmbedding):
            return self._vocabulary_method(layer, prefix)
        return None

    def packs(self, prefix: str) -> bool:
        """Whether this one unfused layer is packed."""
        matrix = self.stored.find(f"{prefix}.weight")
        return matrix is not None and matrix.is_packed

    def decode(self, matrices: Iterable[str]) -> None:
        """A layer that took these, by their names in vLLM, can't hold them packed after all."""
        self.taken -= {self.stored.matrices[name].source for name in matrices}

    def _take(self, matrices: Iterable[str]) -> None:
        self.taken |= {self.stored.matrices[name].source for name in matrices}

    def _linear_method(self, prefix: str) -> QuantizeMethodBase:
        meant = self._meant(prefix)
        parts = [self.stored.common(one) for one in meant]
        packs = any(part is not None and part.is_packed for part in parts)
        if not packs or names.is_transposed(self.model_type, prefix):
            return KeptLinearMethod()
        if names.is_reordered(self.model_type, prefix):
            raise UsageError(
                "vLLM puts the rows of this layer's matrices into another order before it asks tq3 "
                "for them",
                tensor=prefix,
                fix="compress with --keep '*.self_attn.[qkv]_proj.*', "
                "or serve what `tq3 restore` writes",
            )
        matrices = list(chain.from_iterable(meant))
        self._take(matrices)
        found = [part for part in parts if part]
        return Tq3LinearMethod(found, self.stored.group, partial(self.decode, matrices))

    def _meant(self, prefix: str) -> list[list[str]]:
        """What a layer is loaded from: itself, or the matrices that vLLM fuses in it.

        For each part the names that it may have, whose matrices are packed alike; none where that
        can't be told.
        """
        parent, _, last = prefix.rpartition(".")
        parts = self.packed_modules_mapping.get(last) or self._stacked.get(last, ())
        fused = [f"{parent}.{part}" for part in parts]
        sources = [[f"{name}.weight".lstrip(".") for name in way] for way in (fused, [prefix])]
        for look_up in (self.stored.named, self.stored.resembling):
            for way in sources:
                meant = [look_up(name) for name in way]
                if meant and all(self.stored.common(stored) for stored in meant):
                    return meant
        return []

    @cached_property
    def _stacked(self) -> dict[str, list[str]]:
        current = get_current_vllm_config_or_none()
        model = current and current.model_config
        return names.stacked_by(get_model_cls(model)) if model else {}

    def _experts_method(self, layer: RoutedExperts, prefix: str) -> QuantizeMethodBase:
        stacks = stacks_below(self.stored, prefix, layer)
        turns = names.turns_experts(self.model_type)
        bits = expert_bits(self.stored, stacks, layer, turns=turns)
        if bits is None:
            return KeptExpertsMethod(layer.moe_config)
        self._take(chain.from_iterable(stacks.values()))
        turned = are_turned(self.stored, stacks)
        return Tq3ExpertsMethod(layer.moe_config, bits, self.stored.group, turned=turned)

    def _vocabulary_method(
        self, layer: VocabParallelEmbedding, prefix: str
    ) -> QuantizeMethodBase | None:
        # Many models give their embeddings no name, and a tied head has no matrix of its own.
        own = self.stored.named(f"{prefix}.weight") if prefix else []
        is_own = self.stored.common(own) is not None
        meant = own if is_own else self.stored.tables(layer.org_vocab_size, layer.embedding_dim)
        matrix = self.stored.common(meant)
        if matrix is None or not matrix.is_packed:
            return None if isinstance(layer, ParallelLMHead) else KeptEmbeddingMethod()
        self._take(meant)
        decode = partial(self.decode, meant)
        return Tq3VocabularyMethod(matrix, self.stored.group, decode, is_own=is_own)


def _read_record(model: str, revision: str | None, declared: dict[str, Any]) -> TqConfig | None:
    """What tq_config.json says, or what stands for it in config.json."""
    found = get_hf_file_to_dict(FILE_NAME, model, revision)
    if found is None:
        return find_in_model_config({"quantization_config": declared})
    return parse_tq_config(json.dumps(found))


def is_ours(name: str) -> bool:
    """Whether vLLM would take our class for this quantisation."""
    return name in QUANTIZATION_METHODS and get_quantization_config(name) is Tq3Config
