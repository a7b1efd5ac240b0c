"""What differs between the architectures that tq3 knows, as data: a line for each.

Names of parts that they have in common, and what reads what: `tq3.equalization.channels`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Family:
    """How the layers of an architecture are built, apart from the names of their matrices.

    norms: in front of attention and MLP; None where none is stored (OLMo), or none is there and
    both read the residual stream itself (OLMo 2): then their columns have no factors
    after: norms behind attention and MLP, if there are some
    offset: what a norm adds to its stored weights to get its gains
    embedded: whether embeddings are multiplied by the root of their width
    gelu: the activation of MLPs, else SiLU
    values: whether o's columns may have factors; not where values are normed (Gemma 4)
    experts_norms: of experts beside an MLP: in front of them, behind the MLP, and behind them
    """

    norms: tuple[str | None, str | None] = ("input_layernorm", "post_attention_layernorm")
    after: tuple[str, str] | None = None
    offset: float = 0.0
    embedded: bool = False
    gelu: bool = False
    values: bool = True
    experts_norms: tuple[str, str, str] | None = None


_LLAMA = Family()
_LESS_ONE = Family(offset=1.0)
_GEMMA = Family(offset=1.0, embedded=True, gelu=True)
_SANDWICHED = replace(
    _GEMMA,
    norms=("input_layernorm", "pre_feedforward_layernorm"),
    after=("post_attention_layernorm", "post_feedforward_layernorm"),
)
_GEMMA_4 = replace(
    _SANDWICHED,
    offset=0.0,
    values=False,
    experts_norms=(
        "pre_feedforward_layernorm_2",
        "post_feedforward_layernorm_1",
        "post_feedforward_layernorm_2",
    ),
)
_OLMO_2 = Family(
    norms=(None, None), after=("post_attention_layernorm", "post_feedforward_layernorm")
)
_GLM_4 = Family(after=("post_self_attn_layernorm", "post_mlp_layernorm"))

_AS_LLAMA = (
    *("llama", "mistral", "mistral3", "ministral", "ministral3", "mixtral", "minimax_m2"),
    *("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen2_vl", "qwen2_vl_text"),
    *("qwen2_5_vl", "qwen2_5_vl_text", "qwen3_vl", "qwen3_vl_text"),
    *("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm_moe_dsa", "glm4_moe_lite"),
    *("glm", "glm4_moe", "phi3", "phimoe", "olmoe", "granite", "granitemoe"),
    *("smollm3", "seed_oss", "ernie4_5", "hunyuan_v1_dense"),
)
# model_type of config.json, and of its text_config.
FAMILIES = {
    **dict.fromkeys(_AS_LLAMA, _LLAMA),
    "glm4": _GLM_4,
    "olmo": Family(norms=(None, None)),
    **dict.fromkeys(("olmo2", "olmo3"), _OLMO_2),
    "qwen3_next": _LESS_ONE,
    **dict.fromkeys(("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"), _LESS_ONE),
    "gemma": _GEMMA,
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text"), _SANDWICHED),
    **dict.fromkeys(("gemma4", "gemma4_text"), _GEMMA_4),
}
