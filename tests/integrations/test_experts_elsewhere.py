"""Experts that lie below other names or in other shapes: compressed, restored, served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.integrations.packed_models import BOUND, assert_close
from support.models.tq3_folder import compressed_names, read_tensors

import tq3
from tq3.errors import BadInput
from tq3.runtime.modules import PackedExperts

SIZES = {
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_hidden_layers": 1,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GRANITE = SIZES | {"num_attention_heads": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
PROMPT = torch.arange(24).reshape(2, 12) * 7 % 60 + 3


def granite() -> transformers.PreTrainedModel:
    return transformers.GraniteMoeForCausalLM(transformers.GraniteMoeConfig(**GRANITE))


def granite_shared() -> transformers.PreTrainedModel:
    config = transformers.GraniteMoeSharedConfig(**GRANITE, shared_intermediate_size=128)
    return transformers.GraniteMoeSharedForCausalLM(config)


def jetmoe() -> transformers.PreTrainedModel:
    config = transformers.JetMoeConfig(
        **SIZES, kv_channels=32, num_local_experts=4, num_experts_per_tok=2
    )
    return transformers.JetMoeForCausalLM(config)


def dbrx() -> transformers.PreTrainedModel:
    config = transformers.DbrxConfig(
        d_model=128,
        n_heads=4,
        n_layers=1,
        vocab_size=64,
        max_seq_len=64,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        ffn_config={"ffn_hidden_size": 160, "moe_num_experts": 4, "moe_top_k": 2},
    )
    return transformers.DbrxForCausalLM(config)


def step() -> transformers.PreTrainedModel:
    text = SIZES | {
        "num_attention_heads": 2,
        "head_dim": 64,
        "moe_intermediate_size": 160,
        "share_expert_dim": 128,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["full_attention"],
        "mlp_layer_types": ["sparse"],
    }
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "image_size": 28}
    config = transformers.Step3p7Config(
        text_config=text, vision_config=vision | {"num_attention_heads": 2}
    )
    return transformers.Step3p7ForConditionalGeneration(config)


def compressed(make: Callable[[], transformers.PreTrainedModel], folder: Path) -> Any:
    """Write `folder`/source and `folder`/tq3; the model's class."""
    torch.manual_seed(0)
    model = make().to(torch.bfloat16)
    model.save_pretrained(folder / "source")
    tq3.compress(folder / "source", folder / "tq3")
    return type(model)


@pytest.mark.parametrize(
    ("make", "name", "n_packed"),
    [
        (granite, "model.layers.0.block_sparse_moe.input_linear.weight", 2),
        (granite_shared, "model.layers.0.block_sparse_moe.output_linear.weight", 2),
        # These read their weights themselves, which are held decoded.
        (jetmoe, "model.layers.0.self_attention.experts.input_linear.weight", 0),
        (dbrx, "transformer.blocks.0.ffn.experts.mlp.w1", 0),
    ],
)
@torch.no_grad()
def test_experts_are_compressed_and_served_as_the_restored_ones(make, name, n_packed, tmp_path):
    kind = compressed(make, tmp_path)
    assert name in compressed_names(read_tensors(tmp_path / "tq3"))
    tq3.restore(tmp_path / "tq3", tmp_path / "restored", dtype="float32")
    restored = kind.from_pretrained(tmp_path / "restored", dtype=torch.float32)
    packed = tq3.load(tmp_path / "tq3", dtype="float32")
    assert sum(isinstance(part, PackedExperts) for part in packed.modules()) == n_packed
    assert_close(packed(PROMPT).logits, restored(PROMPT).logits, BOUND)


def test_stacks_that_the_host_would_join_are_refused_by_name(tmp_path):
    compressed(step, tmp_path)
    assert "model.layers.0.moe.down_proj.weight" in compressed_names(read_tensors(tmp_path / "tq3"))
    with pytest.raises(BadInput, match=r"moe.gate_proj.weight'.*rearranges.*Concatenate.*restore"):
        tq3.load(tmp_path / "tq3")
