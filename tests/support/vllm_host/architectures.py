"""Tiny models of the architectures that vLLM serves on a processor, and how they are asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import transformers

from support.models.tiny_models import SIZES, Architecture

MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 48, "mamba_d_state": 16}
# All experts for each token: otherwise roundings choose between some that are equally good.
FOUR = {"num_experts_per_tok": 4}
EXPERTS = FOUR | {"num_experts": 4, "moe_intermediate_size": 160}
SHARED = EXPERTS | {"shared_expert_intermediate_size": 160}
LOCAL = FOUR | {"num_local_experts": 4, "shared_intermediate_size": 160}
ROUTED = FOUR | {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "moe_intermediate_size": 160,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
MLA = ROUTED | {
    "q_lora_rank": 96,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 64,
    "num_key_value_heads": 4,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
}
# Square: whether rows are inputs or outputs does not show in the shape of down.
GPT_OSS = FOUR | {"num_local_experts": 4, "intermediate_size": 192}
GPT2 = {"n_embd": 192, "n_head": 4, "n_inner": 344, "n_layer": 2, "n_positions": 256}
CLASSES = {"num_labels": 3, "pad_token_id": 0}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MODERNBERT = IDS | {"cls_token_id": 1, "sep_token_id": 2}


@dataclass(frozen=True)
class Served:
    """One row of the table.

    model, config: classes of Transformers
    sizes: in place of those that all have, or beside them; None for one that it does not take
    decoded: ends of the paths of modules that vLLM takes only decoded
    keep: patterns of matrices that must be kept
    expert_groups: how compress cuts fused experts whose rows are inputs
    asked_for: text, an embedding or a class
    load_format: of vLLM, for the packed one
    """

    model: str
    config: str
    sizes: Mapping[str, Any] = field(default_factory=dict)
    decoded: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    expert_groups: str = "stored"
    asked_for: str = "text"
    load_format: str = "auto"

    def tiny(self, name: str) -> Architecture:
        """How to make its checkpoint."""
        sizes = {key: size for key, size in {**SIZES, **self.sizes}.items() if size is not None}
        config = getattr(transformers, self.config)(**sizes)
        return Architecture(name, getattr(transformers, self.model), config, frozenset())


TABLE = {
    "llama": Served("LlamaForCausalLM", "LlamaConfig"),
    "mistral": Served("MistralForCausalLM", "MistralConfig"),
    "qwen2": Served("Qwen2ForCausalLM", "Qwen2Config"),
    "qwen2_moe": Served("Qwen2MoeForCausalLM", "Qwen2MoeConfig", SHARED),
    "qwen3": Served("Qwen3ForCausalLM", "Qwen3Config"),
    "qwen3_moe": Served("Qwen3MoeForCausalLM", "Qwen3MoeConfig", EXPERTS),
    "gemma2": Served("Gemma2ForCausalLM", "Gemma2Config"),
    "gemma3": Served("Gemma3ForCausalLM", "Gemma3TextConfig"),
    "phi": Served("PhiForCausalLM", "PhiConfig", {"num_key_value_heads": 4}),
    "phi3": Served("Phi3ForCausalLM", "Phi3Config", {"pad_token_id": 0}),
    "mixtral": Served("MixtralForCausalLM", "MixtralConfig", LOCAL),
    "glm4": Served("Glm4ForCausalLM", "Glm4Config", {"pad_token_id": 0}),
    "glm4_moe": Served("Glm4MoeForCausalLM", "Glm4MoeConfig", ROUTED),
    "deepseek_v3": Served("DeepseekV3ForCausalLM", "DeepseekV3Config", MLA),
    # By default the class divides scores by nothing, which makes every error 2.3 times as large.
    "granite": Served("GraniteForCausalLM", "GraniteConfig", {"attention_multiplier": 0.125}),
    "granitemoe": Served("GraniteMoeForCausalLM", "GraniteMoeConfig", LOCAL),
    "granitemoeshared": Served("GraniteMoeSharedForCausalLM", "GraniteMoeSharedConfig", LOCAL),
    "granitemoehybrid": Served(
        "GraniteMoeHybridForCausalLM",
        "GraniteMoeHybridConfig",
        LOCAL | MAMBA | {"layer_types": ["mamba", "attention"]},
    ),
    "falcon_h1": Served("FalconH1ForCausalLM", "FalconH1Config", MAMBA | {"mamba_d_ssm": 384}),
    "nemotron_h": Served(
        "NemotronHForCausalLM",
        "NemotronHConfig",
        {
            "mamba_num_heads": 8,
            "mamba_head_dim": 48,
            "ssm_state_size": 16,
            "n_groups": 2,
            "num_hidden_layers": 4,
            "hybrid_override_pattern": "M*-M",
        },
    ),
    "mamba2": Served(
        "Mamba2ForCausalLM",
        "Mamba2Config",
        {
            "num_heads": 8,
            "head_dim": 48,
            "state_size": 16,
            "n_groups": 2,
            "intermediate_size": 384,
        },
    ),
    "llama4": Served(
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        {"num_experts_per_tok": 1, "num_local_experts": 4, "intermediate_size_mlp": 344},
        keep=("*.self_attn.[qkv]_proj.*",),
        expert_groups="inputs",
    ),
    "gpt_oss": Served("GptOssForCausalLM", "GptOssConfig", GPT_OSS, expert_groups="inputs"),
    "gpt_oss_as_stored": Served(
        "GptOssForCausalLM",
        "GptOssConfig",
        GPT_OSS,
        ("experts.gate_up_proj", "experts.down_proj"),
    ),
    "gpt2": Served("GPT2LMHeadModel", "GPT2Config", GPT2, ("c_attn", "c_proj", "c_fc")),
    "gptj": Served("GPTJForCausalLM", "GPTJConfig", GPT2 | {"rotary_dim": 16}),
    "gpt_neox": Served("GPTNeoXForCausalLM", "GPTNeoXConfig", {"head_dim": 48}),
    "olmo2": Served("Olmo2ForCausalLM", "Olmo2Config"),
    "olmoe": Served("OlmoeForCausalLM", "OlmoeConfig", EXPERTS),
    "falcon": Served(
        "FalconForCausalLM",
        "FalconConfig",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "head_dim": None},
    ),
    "opt": Served("OPTForCausalLM", "OPTConfig", {"ffn_dim": 344, "word_embed_proj_dim": 192}),
    "bloom": Served("BloomForCausalLM", "BloomConfig", {"n_head": 4, "n_layer": 2}),
    "stablelm": Served("StableLmForCausalLM", "StableLmConfig"),
    "cohere": Served("CohereForCausalLM", "CohereConfig", {"logit_scale": 1.0}),
    "starcoder2": Served("Starcoder2ForCausalLM", "Starcoder2Config"),
    "exaone4": Served("Exaone4ForCausalLM", "Exaone4Config"),
    "smollm3": Served("SmolLM3ForCausalLM", "SmolLM3Config", {"pad_token_id": 0}),
    "ernie4_5_moe": Served(
        "Ernie4_5_MoeForCausalLM",
        "Ernie4_5_MoeConfig",
        {"moe_num_experts": 4, "moe_k": 4, "moe_intermediate_size": 160},
    ),
    "bert": Served("BertModel", "BertConfig", asked_for="an embedding"),
    "roberta": Served("RobertaModel", "RobertaConfig", asked_for="an embedding"),
    "modernbert": Served(
        "ModernBertModel",
        "ModernBertConfig",
        MODERNBERT,
        asked_for="an embedding",
        load_format="tq3",
    ),
    "qwen2_embedding": Served("Qwen2Model", "Qwen2Config", asked_for="an embedding"),
    "bert_classifier": Served(
        "BertForSequenceClassification",
        "BertConfig",
        CLASSES,
        ("pooler.dense",),
        asked_for="a class",
    ),
    "llama_classifier": Served(
        "LlamaForSequenceClassification", "LlamaConfig", CLASSES, asked_for="a class"
    ),
}
