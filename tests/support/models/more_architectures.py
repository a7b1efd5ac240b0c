"""Tiny models of architectures whose columns can be equalized, and that no other test needs."""

from __future__ import annotations

from typing import Any

import transformers

from support.models.tiny_models import EXPERTS, QWEN_VISION, SHARED_EXPERT, SIZES, Architecture

# No head_dim in config.json.
_PLAIN = {key: value for key, value in SIZES.items() if key != "head_dim"}
_TEXT = _PLAIN | {"num_key_value_heads": 4}
_BIASES = {"attention_bias": True}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 160,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_LATENT = {
    "q_lora_rank": 96,
    "kv_lora_rank": 64,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 40,
    "v_head_dim": 48,
}
_SELECTED = {"index_topk": 8, "index_head_dim": 32, "index_n_heads": 2}  # of 20 tokens
_TOWER = {
    "hidden_size": 128,
    "intermediate_size": 200,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "image_size": 32,
    "patch_size": 8,
}
_GEMMA_4 = SIZES | {
    "num_hidden_layers": 3,
    "global_head_dim": 64,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
}
# The last layer has no keys and values of its own.
_PER_LAYER = {
    "hidden_size_per_layer_input": 24,
    "vocab_size_per_layer_input": 512,
    "num_kv_shared_layers": 1,
}
_BESIDE = {
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 160,
    "attention_k_eq_v": True,
}


def _rope(*sections: int) -> dict[str, Any]:
    kinds = {"rope_type": "default", "mrope_section": list(sections), "rope_theta": 1e4}
    return {"rope_parameters": kinds}


def _tiny(name: str, model: str, config: Any) -> Architecture:
    return Architecture(name, getattr(transformers, model), config, frozenset())


# One for each way in which layers are built.
QUICK = (
    _tiny(  # q, k and v in one matrix, gate and up in one
        "phi3", "Phi3ForCausalLM", transformers.Phi3Config(**_PLAIN, pad_token_id=0)
    ),
    _tiny(  # latent attention, with biases; a layer without experts and one with
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        transformers.DeepseekV3Config(**_TEXT, **_LATENT, **_ROUTED, **_BIASES),
    ),
    _tiny(  # norms with biases; experts called w1, w2, w3
        "phimoe",
        "PhimoeForCausalLM",
        transformers.PhimoeConfig(**_PLAIN, **_LOCAL_EXPERTS, **_BIASES),
    ),
    _tiny("olmo2", "Olmo2ForCausalLM", transformers.Olmo2Config(**_PLAIN)),  # no norms in front
    _tiny(  # experts beside an MLP
        "gemma4_text", "Gemma4ForCausalLM", transformers.Gemma4TextConfig(**_GEMMA_4 | _BESIDE)
    ),
)
SLOW = (
    _tiny("mixtral", "MixtralForCausalLM", transformers.MixtralConfig(**SIZES, **_LOCAL_EXPERTS)),
    _tiny(
        "minimax_m2",
        "MiniMaxM2ForCausalLM",
        transformers.MiniMaxM2Config(**SIZES, **_LOCAL_EXPERTS),
    ),
    _tiny(
        "granite",
        "GraniteForCausalLM",
        transformers.GraniteConfig(**_PLAIN, embedding_multiplier=3.0, residual_multiplier=0.5),
    ),
    _tiny(
        "granitemoe",
        "GraniteMoeForCausalLM",
        transformers.GraniteMoeConfig(**_PLAIN, **_LOCAL_EXPERTS),
    ),
    _tiny(
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        transformers.DeepseekV2Config(**_TEXT, **_LATENT | {"q_lora_rank": None}, **_ROUTED),
    ),
    _tiny(
        "deepseek_v32",
        "DeepseekV32ForCausalLM",
        transformers.DeepseekV32Config(**_TEXT, **_LATENT, **_ROUTED, **_SELECTED),
    ),
    _tiny(
        "glm_moe_dsa",
        "GlmMoeDsaForCausalLM",
        transformers.GlmMoeDsaConfig(**_TEXT, **_LATENT, **_ROUTED, **_SELECTED),
    ),
    _tiny(
        "glm4_moe_lite",
        "Glm4MoeLiteForCausalLM",
        transformers.Glm4MoeLiteConfig(**_TEXT, **_LATENT, **_ROUTED),
    ),
    _tiny("glm", "GlmForCausalLM", transformers.GlmConfig(**SIZES, **_BIASES, pad_token_id=0)),
    _tiny("glm4", "Glm4ForCausalLM", transformers.Glm4Config(**SIZES, **_BIASES, pad_token_id=0)),
    _tiny(
        "glm4_moe",
        "Glm4MoeForCausalLM",
        transformers.Glm4MoeConfig(**SIZES, **_ROUTED, **_BIASES, use_qk_norm=True),
    ),
    _tiny("olmo", "OlmoForCausalLM", transformers.OlmoConfig(**_PLAIN)),
    _tiny("olmo3", "Olmo3ForCausalLM", transformers.Olmo3Config(**_PLAIN)),
    _tiny(  # a clamp stands between v and o
        "olmoe",
        "OlmoeForCausalLM",
        transformers.OlmoeConfig(**_PLAIN, num_experts=4, num_experts_per_tok=2, clip_qkv=2.0),
    ),
    _tiny("smollm3", "SmolLM3ForCausalLM", transformers.SmolLM3Config(**_PLAIN, pad_token_id=0)),
    _tiny("seed_oss", "SeedOssForCausalLM", transformers.SeedOssConfig(**SIZES, **_BIASES)),
    _tiny("ministral", "MinistralForCausalLM", transformers.MinistralConfig(**SIZES)),
    _tiny("ministral3", "Ministral3ForCausalLM", transformers.Ministral3Config(**SIZES)),
    _tiny("ernie4_5", "Ernie4_5ForCausalLM", transformers.Ernie4_5Config(**SIZES, use_bias=True)),
    _tiny("hunyuan", "HunYuanDenseV1ForCausalLM", transformers.HunYuanDenseV1Config(**SIZES)),
    _tiny(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        transformers.Qwen2MoeConfig(**_PLAIN, **EXPERTS, **SHARED_EXPERT),
    ),
    _tiny("gemma", "GemmaForCausalLM", transformers.GemmaConfig(**SIZES)),
    _tiny("gemma2", "Gemma2ForCausalLM", transformers.Gemma2Config(**SIZES)),
    _tiny(  # per-layer embeddings, and a vision tower
        "gemma4",
        "Gemma4ForConditionalGeneration",
        transformers.Gemma4Config(
            text_config=_GEMMA_4 | _PER_LAYER, vision_config=_TOWER, audio_config=None
        ),
    ),
    _tiny(
        "qwen3_vl",
        "Qwen3VLForConditionalGeneration",
        transformers.Qwen3VLConfig(
            text_config=SIZES | _rope(8, 12, 12),
            vision_config=QWEN_VISION | {"deepstack_visual_indexes": [0]},
        ),
    ),
    _tiny(
        "qwen2_5_vl",
        "Qwen2_5_VLForConditionalGeneration",
        transformers.Qwen2_5_VLConfig(
            text_config=_PLAIN | _rope(8, 8, 8), vision_config=QWEN_VISION
        ),
    ),
    _tiny(
        "qwen2_vl",
        "Qwen2VLForConditionalGeneration",
        transformers.Qwen2VLConfig(
            text_config=_PLAIN | _rope(8, 8, 8),
            vision_config={
                "depth": 2,
                "embed_dim": 128,
                "hidden_size": 192,
                "num_heads": 4,
                "patch_size": 8,
            },
        ),
    ),
    _tiny(
        "mistral3",
        "Mistral3ForConditionalGeneration",
        transformers.Mistral3Config(
            text_config=SIZES | {"model_type": "mistral"},
            vision_config=_TOWER | {"model_type": "pixtral"},
        ),
    ),
)
