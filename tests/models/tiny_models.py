"""Tiny random checkpoints of real architectures, with the tensor names of the published ones.

Hidden and intermediate sizes are no multiples of 128, so that padded groups occur in every model.
Every parameter is noise, norms and biases too: a tensor that is lost or swapped changes the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig, PreTrainedModel

SIZES = {
    "hidden_size": 192,
    "intermediate_size": 344,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 512,
    "max_position_embeddings": 256,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 160}
SHARED_EXPERT = {"shared_expert_intermediate_size": 160}
GATED_DELTANET = {
    "num_hidden_layers": 4,  # three layers of linear attention, then one of full attention
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 128,
    "intermediate_size": 200,
    "num_heads": 4,
    "out_hidden_size": SIZES["hidden_size"],
    "num_position_embeddings": 64,
    "patch_size": 8,
}
SIGLIP_VISION = {
    "hidden_size": 128,
    "intermediate_size": 200,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "vision_use_head": False,
}
QWEN3_5_KEPT = frozenset(
    {
        "lm_head.weight",
        "model.language_model.embed_tokens.weight",
        "model.visual.pos_embed.weight",
    }
)
TOO_LARGE_FOR_FP16 = 1e5


def random_image(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)


# One image of 4x4 patches. A patch of Qwen's has 3 channels, 2 frames, 8x8 pixels.
QWEN_IMAGE = {
    "pixel_values": random_image(16, 3 * 2 * 8 * 8),
    "image_grid_thw": torch.tensor([[1, 4, 4]]),
}
SIGLIP_IMAGE = {"pixel_values": random_image(1, 3, 32, 32)}


@dataclass(frozen=True)
class Architecture:
    """How to make one tiny checkpoint, and what to expect of it.

    kept_matrices: the 2-D tensors that stay floating point although they are large enough
    image: arguments of `get_image_features`, for models with a vision tower
    """

    name: str
    model_class: type[PreTrainedModel]
    config: PreTrainedConfig
    kept_matrices: frozenset[str]
    save_options: Mapping[str, Any] = field(default_factory=dict)
    image: Mapping[str, torch.Tensor] = field(default_factory=dict)
    has_mtp: bool = False


ARCHITECTURES = (
    Architecture(  # tied embeddings, several shards and an index
        "llama",
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
        kept_matrices=frozenset({"model.embed_tokens.weight"}),
        save_options={"max_shard_size": "500KB"},
    ),
    Architecture(
        "qwen3",
        transformers.Qwen3ForCausalLM,
        transformers.Qwen3Config(**SIZES, tie_word_embeddings=False),
        kept_matrices=frozenset({"model.embed_tokens.weight", "lm_head.weight"}),
    ),
    Architecture(  # one tensor for each expert and projection
        "qwen3_moe",
        transformers.Qwen3MoeForCausalLM,
        transformers.Qwen3MoeConfig(**SIZES, **EXPERTS),
        kept_matrices=frozenset({"model.embed_tokens.weight", "lm_head.weight"}),
    ),
    Architecture(
        "qwen3_5",
        transformers.Qwen3_5ForConditionalGeneration,
        transformers.Qwen3_5Config(text_config=SIZES | GATED_DELTANET, vision_config=QWEN_VISION),
        kept_matrices=QWEN3_5_KEPT,
        image=QWEN_IMAGE,
        has_mtp=True,
    ),
    Architecture(  # fused experts: the "original format" would split them
        "qwen3_5_moe",
        transformers.Qwen3_5MoeForConditionalGeneration,
        transformers.Qwen3_5MoeConfig(
            text_config=SIZES | GATED_DELTANET | EXPERTS | SHARED_EXPERT,
            vision_config=QWEN_VISION,
        ),
        kept_matrices=QWEN3_5_KEPT,
        save_options={"save_original_format": False},
        image=QWEN_IMAGE,
        has_mtp=True,
    ),
    Architecture(  # its projection of image tokens has no name ending in `.weight`
        "gemma3",
        transformers.Gemma3ForConditionalGeneration,
        transformers.Gemma3Config(
            text_config=SIZES, vision_config=SIGLIP_VISION, mm_tokens_per_image=4
        ),
        kept_matrices=frozenset(
            {
                "language_model.model.embed_tokens.weight",
                "vision_tower.embeddings.position_embedding.weight",
            }
        ),
        image=SIGLIP_IMAGE,
    ),
)
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


def write_checkpoint(architecture: Architecture, folder: Path) -> None:
    """Save a model whose every parameter is moved by N(0, 0.05), in bf16."""
    torch.manual_seed(0)
    model = architecture.model_class(architecture.config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.to(torch.bfloat16).save_pretrained(folder, **architecture.save_options)
    if architecture.has_mtp:
        add_mtp_tensors(folder)


def add_mtp_tensors(folder: Path) -> None:
    """Add `mtp.*` to the saved file: published models have it, Transformers knows nothing of it.

    Its layer has the tensors of a full-attention layer. One norm holds a value that FP16 cannot.
    """
    tensors = load_file(folder / "model.safetensors")
    layer = "model.language_model.layers.3."
    hidden = SIZES["hidden_size"]
    mtp = {
        name.replace(layer, "mtp.layers.0."): torch.randn_like(tensor)
        for name, tensor in tensors.items()
        if name.startswith(layer)
    }
    mtp["mtp.fc.weight"] = torch.randn(hidden, 2 * hidden, dtype=torch.bfloat16)
    for norm in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
        mtp[f"mtp.{norm}.weight"] = torch.randn(hidden, dtype=torch.bfloat16)
    mtp["mtp.norm.weight"][0] = TOO_LARGE_FOR_FP16
    save_file(tensors | mtp, folder / "model.safetensors", metadata={"format": "pt"})
