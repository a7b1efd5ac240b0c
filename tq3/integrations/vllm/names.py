"""What vLLM's models do with names and matrices of a checkpoint and tell no plugin."""

from __future__ import annotations

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
# Models that put a tensor into the parameter of its name, without the experts' own loader.
_PARAMETERS = {
    "granitemoehybrid": {
        _GATE_UP: ".block_sparse_moe.experts.routed_experts.w13_weight",
        _DOWN: ".block_sparse_moe.experts.routed_experts.w2_weight",
    }
}
# Layers whose matrices are stored [in, out], and turned around while they are loaded.
_TRANSPOSED = {"gpt2": {"c_attn", "c_proj", "c_fc"}}


def of_module(name: str) -> str:
    """The name that a matrix has in vLLM."""
    for stored, renamed in _RENAMED.items():
        if name.endswith(stored):
            return name.removesuffix(stored) + renamed
    return name


def suffixes(model_type: str) -> dict[str, str | None]:
    """Ends of the names of codes and norms -> those of the parameters that they are loaded into."""
    ends = {"": ""} | _RENAMED | _PARAMETERS.get(model_type, {})
    # vLLM applies them in order: the one for all others must come last.
    return {
        stored + suffix: renamed + parameter
        for stored, renamed in reversed(ends.items())
        for suffix, parameter in ((PACKED, "_packed"), (NORMS, "_norms"))
    }


def is_transposed(model_type: str, prefix: str) -> bool:
    """Whether vLLM turns this layer's matrix around while it loads it, which codes do not allow."""
    return prefix.rpartition(".")[2] in _TRANSPOSED.get(model_type, ())
