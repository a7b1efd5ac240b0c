"""What vLLM asks of a quantisation: how a checkpoint is recognised and how each layer is held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm.logger import init_logger
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
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models.utils import WeightsMapper
from vllm.transformers_utils.config import get_safetensors_params_metadata

from tq3.errors import BadInput, UsageError
from tq3.format.config import FILE_NAME, FORMAT
from tq3.format.layout import PACKED
from tq3.format.recipe import GROUP_SIZES
from tq3.integrations.stored import Matrix, Stored, read_shapes
from tq3.integrations.vllm import names
from tq3.integrations.vllm.casts import warn_once
from tq3.integrations.vllm.experts import Tq3ExpertsMethod, expert_bits
from tq3.integrations.vllm.kept import KeptExpertsMethod, KeptLinearMethod
from tq3.integrations.vllm.linear import Tq3LinearMethod
from tq3.integrations.vllm.vocabulary import Tq3VocabularyMethod

# The first is the method of published checkpoints, the second only ours.
NAMES = ("turboquant", "tq3")
# vLLM does not say which of them it read.
_SOURCES = f"config.json or {FILE_NAME}"
# Below vLLM's own logger, so that its settings hold for it.
logger = init_logger("vllm.plugins.tq3")


class Tq3Config(QuantizationConfig):
    """What the headers of one checkpoint say of each layer.

    taken: names of the matrices that a layer was built for
    """

    def __init__(self, group: int) -> None:
        super().__init__()
        self.stored = Stored({}, group)
        self.taken: set[str] = set()
        self.model_type = ""

    def get_name(self) -> str:
        return NAMES[0]

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        return 80  # Ampere, whose bfloat16 the models need

    @staticmethod
    def get_config_filenames() -> list[str]:
        return [FILE_NAME]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Tq3Config:
        """From config.json's `quantization_config` or, where that is missing, tq_config.json."""
        if config.get("format") != FORMAT:
            raise BadInput(
                "unknown format",
                file=_SOURCES,
                found=config.get("format"),
                expected=FORMAT,
                fix="another package may have written it",
            )
        group = config.get("group_size")
        if group not in GROUP_SIZES:
            allowed = " or ".join(map(str, GROUP_SIZES))
            raise BadInput("bad group_size", file=_SOURCES, found=repr(group), expected=allowed)
        return cls(group)

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: dict[str, Any], user_quant: str | None, hf_config: Any = None
    ) -> Any:
        """Our name for a checkpoint whose config.json is in our format, or None."""
        method, written = hf_quant_cfg.get("quant_method"), hf_quant_cfg.get("format")
        if method not in NAMES or written != FORMAT:
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
        if not self.stored.n_packed:
            raise BadInput(
                "no packed weights in this checkpoint",
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
        self._report_what_is_left()
        return WeightsMapper(orig_to_new_suffix=names.suffixes(self.model_type))

    def apply_vllm_mapper(self, hf_to_vllm_mapper: WeightsMapper) -> None:
        """The checkpoint's names become those of vLLM's modules."""
        self.stored = self.stored.renamed(hf_to_vllm_mapper.map_name)
        renamed = (hf_to_vllm_mapper.map_name(name) for name in self.taken)
        self.taken = {name for name in renamed if name}

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """How vLLM holds and computes `layer`; None means as ever."""
        if isinstance(layer, LinearBase):
            return self._linear_method(prefix)
        if isinstance(layer, RoutedExperts):
            bits = expert_bits(self.stored, prefix, layer)
            self.taken |= {f"{prefix}.{name}" for name in self.stored.below(prefix)}
            if bits is None:
                return KeptExpertsMethod(layer.moe_config)
            return Tq3ExpertsMethod(layer.moe_config, bits, self.stored.group)
        if isinstance(layer, VocabParallelEmbedding):
            return self._vocabulary_method(layer, prefix)
        return None

    def packs(self, prefix: str) -> bool:
        """Whether this one unfused layer is packed."""
        matrix = self.stored.find(f"{prefix}.weight")
        return matrix is not None and matrix.is_packed

    def _linear_method(self, prefix: str) -> QuantizeMethodBase:
        parts = self._linear_parts(prefix)
        if not any(part.is_packed for part in parts):
            return KeptLinearMethod()
        if names.is_transposed(self.model_type, prefix):
            raise UsageError(
                "vLLM turns this layer's matrix around while it loads it, which codes do not allow",
                tensor=prefix,
                fix="serve what `tq3 restore` writes, or load the folder in Transformers",
            )
        return Tq3LinearMethod(parts, self.stored.group)

    def _linear_parts(self, prefix: str) -> list[Matrix]:
        """What a layer is loaded from: itself, or the matrices that vLLM fuses in it."""
        parent, _, last = prefix.rpartition(".")
        fused = [f"{parent}.{part}" for part in self.packed_modules_mapping.get(last, ())]
        sources = [[f"{name}.weight".lstrip(".") for name in way] for way in (fused, [prefix])]
        for look_up in (self.stored.named, self.stored.resembling):
            for way in sources:
                meant = [look_up(name) for name in way]
                parts = [self.stored.common(stored) for stored in meant]
                found = [part for part in parts if part]
                if found and len(found) == len(parts):
                    self.taken.update(*meant)
                    return found
        expected = sources[0] or sources[1]
        similar = sorted(n for name in expected for n in self.stored.resembling(name))
        raise BadInput(
            "vLLM names this layer otherwise than the checkpoint does, and similar names are "
            "packed in several ways"
            if similar
            else "the checkpoint has no weights for this layer of vLLM's",
            tensor=prefix,
            found=_few(similar) or None,
            expected=" and ".join(expected),
            fix="compress these with one width, or keep them all"
            if similar
            else "serve what `tq3 restore` writes",
        )

    def _vocabulary_method(
        self, layer: VocabParallelEmbedding, prefix: str
    ) -> QuantizeMethodBase | None:
        # Many models give their embeddings no name, and a tied head has no matrix of its own.
        own = self.stored.named(f"{prefix}.weight") if prefix else []
        is_own = self.stored.common(own) is not None
        meant = own if is_own else self.stored.tables(layer.org_vocab_size, layer.embedding_dim)
        matrix = self.stored.common(meant)
        if matrix is None or not matrix.is_packed:
            return None
        self.taken.update(meant)
        return Tq3VocabularyMethod(matrix, self.stored.group, is_own=is_own)

    def _report_what_is_left(self) -> None:
        packed = {name for name, matrix in self.stored.matrices.items() if matrix.is_packed}
        if left := sorted(packed - self.taken):
            logger.warning_once(
                "tq3: %d of %d packed matrices belong to no layer that vLLM built for this %s, and "
                "are not read: %s",
                len(left),
                len(packed),
                self.model_type or "model",
                _few(left),
            )


def _few(items: Sequence[str]) -> str:
    return ", ".join(items[:3]) + (", ..." if len(items) > 3 else "")


def is_ours(name: str) -> bool:
    """Whether vLLM would take our class for this quantisation."""
    return name in QUANTIZATION_METHODS and get_quantization_config(name) is Tq3Config
