"""The classes by which tensors are counted."""

from __future__ import annotations

import pytest

from tq3.plan.classes import LABELS, class_of

NAMES = {
    "model.layers.0.self_attn.q_proj.weight": "attention",
    "h.0.attn.c_attn.weight": "attention",
    "bert.encoder.layer.0.attention.self.query.weight": "attention",
    "model.layers.0.mlp.up_proj.weight": "MLP",
    "model.layers.0.mlp.experts.3.up_proj.weight": "experts",
    "model.layers.0.mlp.experts.gate_up_proj": "experts",
    "model.layers.0.mlp.shared_expert.up_proj.weight": "experts",
    "model.layers.0.block_sparse_moe.gate.weight": "MLP",
    "model.language_model.layers.0.linear_attn.in_proj_qkv.weight": "linear attention",
    "model.visual.blocks.0.attn.qkv.weight": "vision",
    "vision_tower.vision_model.embeddings.patch_embedding.weight": "vision",
    "mtp.layers.0.mlp.up_proj.weight": "MTP",
    "mtp.fc.weight": "MTP",
    "model.embed_tokens.weight": "embeddings",
    "lm_head.weight": "embeddings",
    "wte.weight": "embeddings",
    "model.norm.weight": "other",
    "television.fc.weight": "other",
}


@pytest.mark.parametrize(("name", "label"), NAMES.items())
def test_a_name_belongs_to_the_class_of_its_components(name, label):
    assert class_of(name) == label
    assert label in LABELS
