"""What vLLM's models do with names and matrices of a checkpoint beyond what they tell plugins."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from tq3.format.layout import NORMS, PACKED

# A plugin hears what the outermost class of a model renames; Granite's is done by one inside of it.
_GATE, _GATE_UP, _DOWN = (
    f".block_sparse_moe.{name}.weight" for name in ("router.layer", "input_linear", "output_linear")
)
_RENAMED = {
    _GATE: ".block_sparse_moe.gate.weight",
    _GATE_UP: ".block_sparse_moe.experts.gate_up_proj",
    _DOWN: ".block_sparse_moe.experts.down_proj",
}
# Where the experts lie of models that have them with inputs as rows, and turn them while they are
# loaded. Codes with outputs as rows go into parameters that their loaders have no rule for.
_TURNED = {
    "gpt_oss": ".mlp.experts",
    "llama4": ".feed_forward.experts",
    "llama4_text": ".feed_forward.experts",
}
TURNED_GATE_UP, TURNED_DOWN = "tq3_w13", "tq3_w2"
# Models that put a tensor into the parameter of its name, without the experts' own loader.
_PARAMETERS = {
    **{
        model_type: {
            f"{path}.gate_up_proj": f"{path}.routed_experts.{TURNED_GATE_UP}",
            f"{path}.down_proj": f"{path}.routed_experts.{TURNED_DOWN}",
        }
        for model_type, path in _TURNED.items()
    },
    "granitemoehybrid": {
        _GATE_UP: ".block_sparse_moe.experts.routed_experts.w13_weight",
        _DOWN: ".block_sparse_moe.experts.routed_experts.w2_weight",
    },
}
# Layers whose matrices are stored [in, out], and turned around while they are loaded.
_TRANSPOSED = {"gpt2": {"c_attn", "c_proj", "c_fc"}}
# Whose rows get another order by names of dense matrices, before a plugin's mapper sees them.
_REORDERED = {"llama4": {"qkv_proj"}, "llama4_text": {"qkv_proj"}}

# Parameters that only our layers have, on a processor and in the order of a GPU's kernels.
_SAVED_STATE = re.compile(r"weight_norms$|\.tq3_(w\d+_norms|norms_\d+)$")


def of_module(name: str) -> str:
    """The name that a matrix has in vLLM."""
    for stored, renamed in _RENAMED.items():
        if name.endswith(stored):
            return name.removesuffix(stored) + renamed
    return name


def why_none_is_packed(tensors: Iterable[str]) -> str:
    """What to say of a checkpoint that has these tensors, and none that is packed."""
    if any(_SAVED_STATE.search(name) for name in tensors):
        return (
            "these are parameters of packed layers as vLLM saved them (sharded_state), "
            "which do not say of which matrices they are and how wide"
        )
    return "no packed weights in this checkpoint"


def suffixes(model_type: str) -> dict[str, str | None]:
    """Ends of the names of codes and norms -> those of the parameters that they are loaded into."""
    ends = {"": ""} | _RENAMED | _PARAMETERS.get(model_type, {})
    # vLLM applies them in order: the one for all others must come last.
    return {
        stored + suffix: renamed + parameter
        for stored, renamed in reversed(ends.items())
        for suffix, parameter in ((PACKED, "_packed"), (NORMS, "_norms"))
    }


def stacked_by(model_class: Any) -> dict[str, list[str]]:
    """Name of a fused layer -> names of its parts, as loaders of the model's module join them.

    Where a class does not say it in `packed_modules_mapping`, which is what plugins are told, its
    mapper of weights or that of a class inside of it does.
    """
    found: defaultdict[str, list[str]] = defaultdict(list)
    for kind in vars(sys.modules[model_class.__module__]).values():
        mapper = getattr(kind, "hf_to_vllm_mapper", None) if isinstance(kind, type) else None
        for part, (fused, _) in mapper.orig_to_new_stacked.items() if mapper else ():
            last, name = (path.strip(".").rpartition(".")[2] for path in (fused, part))
            if name not in found[last]:
                found[last].append(name)
    return dict(found)


def is_transposed(model_type: str, prefix: str) -> bool:
    """Whether vLLM turns this layer's matrix around while it loads it, which codes do not allow."""
    return prefix.rpartition(".")[2] in _TRANSPOSED.get(model_type, ())


def turns_experts(model_type: str) -> bool:
    """Whether vLLM exchanges rows and columns of this model's fused experts while it loads them."""
    return model_type in _TURNED


def is_reordered(model_type: str, prefix: str) -> bool:
    """Whether vLLM reorders this layer's rows, but not those of its codes and norms."""
    return prefix.rpartition(".")[2] in _REORDERED.get(model_type, ())
