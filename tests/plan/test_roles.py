"""What each tensor does, and which belong together: real names of many models."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from support.plan.listings import qwen

from tq3.format.widths import ROLES
from tq3.plan.classes import EMBEDDINGS, class_of
from tq3.plan.roles import fused_set_of, layer_of, role_of

NAMES = {
    # Llama, Qwen, Mistral, Gemma
    "model.layers.0.self_attn.q_proj.weight": "q",
    "model.layers.0.self_attn.k_proj.weight": "k",
    "model.layers.0.self_attn.v_proj.weight": "v",
    "model.layers.0.self_attn.o_proj.weight": "o",
    "model.layers.0.mlp.gate_proj.weight": "gate_up",
    "model.layers.0.mlp.up_proj.weight": "gate_up",
    "model.layers.0.mlp.down_proj.weight": "down",
    "model.layers.0.per_layer_input_gate.weight": "other",
    # Meta's own files
    "layers.0.attention.wq.weight": "q",
    "layers.0.feed_forward.w2.weight": "down",
    "layers.0.feed_forward.w3.weight": "gate_up",
    "output.weight": "lm_head",
    "tok_embeddings.weight": "embeddings",
    # Phi, InternLM, Baichuan, Falcon, GPT-NeoX, MPT: fused ones
    "model.layers.0.self_attn.qkv_proj.weight": "qkv",
    "model.layers.0.mlp.gate_up_proj.weight": "gate_up",
    "model.layers.0.attention.wqkv.weight": "qkv",
    "model.layers.0.self_attn.W_pack.weight": "qkv",
    "gpt_neox.layers.0.attention.query_key_value.weight": "qkv",
    "gpt_neox.layers.0.attention.dense.weight": "o",
    "gpt_neox.layers.0.mlp.dense_h_to_4h.weight": "gate_up",
    "gpt_neox.layers.0.mlp.dense_4h_to_h.weight": "down",
    "gpt_neox.embed_in.weight": "embeddings",
    "embed_out.weight": "lm_head",
    "transformer.blocks.0.attn.Wqkv.weight": "qkv",
    # GPT-2, GPT-J
    "h.0.attn.c_attn.weight": "qkv",
    "h.0.attn.c_proj.weight": "o",
    "h.0.mlp.c_fc.weight": "gate_up",
    "h.0.mlp.c_proj.weight": "down",
    "wte.weight": "embeddings",
    "wpe.weight": "other",
    "transformer.h.0.mlp.fc_in.weight": "gate_up",
    # BERT, T5, OPT
    "bert.encoder.layer.0.attention.self.query.weight": "q",
    "bert.encoder.layer.0.attention.output.dense.weight": "o",
    "bert.encoder.layer.0.intermediate.dense.weight": "gate_up",
    "bert.encoder.layer.0.output.dense.weight": "down",
    "bert.embeddings.word_embeddings.weight": "embeddings",
    "bert.embeddings.position_embeddings.weight": "other",
    "cls.predictions.decoder.weight": "lm_head",
    "encoder.block.0.layer.0.SelfAttention.q.weight": "q",
    "decoder.block.0.layer.2.DenseReluDense.wo.weight": "down",
    "shared.weight": "embeddings",
    "model.decoder.layers.0.self_attn.out_proj.weight": "o",
    "model.decoder.layers.0.fc1.weight": "gate_up",
    "model.decoder.layers.0.fc2.weight": "down",
    # Mixtral, Qwen-MoE, DeepSeek, gpt-oss
    "model.layers.0.block_sparse_moe.experts.3.w1.weight": "expert_gate_up",
    "model.layers.0.block_sparse_moe.experts.3.w2.weight": "expert_down",
    "model.layers.0.block_sparse_moe.gate.weight": "router",
    "model.layers.0.mlp.experts.3.gate_proj.weight": "expert_gate_up",
    "model.layers.0.mlp.experts.gate_up_proj": "expert_gate_up",
    "model.layers.0.mlp.experts.down_proj": "expert_down",
    "model.layers.0.mlp.experts.down_proj_bias": "other",
    "model.layers.0.mlp.shared_experts.up_proj.weight": "shared_gate_up",
    "model.layers.0.mlp.shared_expert.down_proj.weight": "shared_down",
    "model.layers.0.mlp.shared_expert_gate.weight": "router",
    "model.layers.0.mlp.gate.weight": "router",
    "model.layers.0.mlp.gate.e_score_correction_bias": "other",
    "model.layers.0.mlp.router.weight": "router",
    "model.layers.0.router.proj.weight": "router",
    "model.layers.0.router.weight": "router",
    "model.layers.0.moe_gate.weight": "router",
    "model.layers.0.sparse_moe.gate.weight": "router",
    "backbone.layers.1.mixer.gate.weight": "router",
    # experts by other names: Granite, JetMoe, Step-3.5, DBRX, Inkling
    "model.layers.0.block_sparse_moe.input_linear.weight": "expert_gate_up",
    "model.layers.0.block_sparse_moe.output_linear.weight": "expert_down",
    "model.layers.0.block_sparse_moe.router.layer.weight": "router",
    "model.layers.0.shared_mlp.input_linear.weight": "shared_gate_up",
    "model.layers.0.shared_mlp.output_linear.weight": "shared_down",
    "model.layers.0.mlp.input_linear.weight": "expert_gate_up",
    "model.layers.0.self_attention.experts.input_linear.weight": "q",
    "model.layers.0.self_attention.experts.output_linear.weight": "o",
    "model.layers.0.self_attention.experts.router.layer.weight": "router",
    "model.layers.4.moe.gate_proj.weight": "expert_gate_up",
    "model.layers.4.moe.down_proj.weight": "expert_down",
    "model.layers.4.moe.gate.weight": "router",
    "model.layers.4.share_expert.up_proj.weight": "shared_gate_up",
    "transformer.blocks.0.ffn.experts.mlp.v1": "expert_gate_up",
    "transformer.blocks.0.ffn.experts.mlp.w2": "expert_down",
    "model.llm.layers.0.mlp.experts.w13_weight": "expert_gate_up",
    "model.llm.layers.0.mlp.shared_experts.shared_w2_weight": "shared_down",
    # multi-head latent attention
    "model.layers.0.self_attn.q_a_proj.weight": "q",
    "model.layers.0.self_attn.q_b_proj.weight": "q",
    "model.layers.0.self_attn.kv_a_proj_with_mqa.weight": "v",
    "model.layers.0.self_attn.kv_b_proj.weight": "v",
    "model.layers.0.self_attn.kv_a_layernorm.weight": "other",
    # Gated DeltaNet, Mamba
    "model.layers.0.linear_attn.in_proj_qkv.weight": "linear_in",
    "model.layers.0.linear_attn.in_proj_z.weight": "linear_in",
    "model.layers.0.linear_attn.in_proj_qkvz.weight": "linear_in",
    "model.layers.0.linear_attn.in_proj_ba.weight": "linear_gates",
    "model.layers.0.linear_attn.in_proj_a.weight": "linear_gates",
    "model.layers.0.linear_attn.out_proj.weight": "linear_out",
    "model.layers.0.linear_attn.conv1d.weight": "other",
    "backbone.layers.0.mixer.in_proj.weight": "linear_in",
    "backbone.layers.0.mixer.x_proj.weight": "linear_gates",
    # towers and heads
    "model.visual.blocks.0.attn.qkv.weight": "vision",
    "vision_tower.vision_model.embeddings.patch_embedding.weight": "vision",
    "multi_modal_projector.linear_1.weight": "vision",
    "mtp.layers.0.self_attn.v_proj.weight": "mtp",
    "mtp.fc.weight": "mtp",
    "mtp.layers.0.mlp.experts.gate_up_proj": "mtp",
    "lm_head.weight": "lm_head",
    "classifier.weight": "other",
    # vectors, and what only looks like a part
    "model.layers.0.self_attn.q_proj.bias": "other",
    "model.layers.0.self_attn.q_norm.weight": "other",
    "model.layers.0.self_attn.my_v_proj.weight": "other",
    "model.layers.0.gate_proj_free.weight": "other",
    "television.v_proj.weight": "other",
}


@pytest.mark.parametrize(("name", "role"), NAMES.items())
def test_a_name_has_the_role_of_its_last_components_at_its_place(name, role):
    assert role_of(name) == role
    assert role in ROLES


def test_heads_and_token_embeddings_are_of_the_class_of_embeddings():
    names = [name for name, role in NAMES.items() if role in ("lm_head", "embeddings")]
    assert {class_of(name) for name in names} == {EMBEDDINGS}


def test_every_matrix_of_a_hybrid_model_has_its_role():
    matrices = [t.info.name for t in qwen().tensors if len(t.info.shape) == 2]
    assert Counter(map(role_of, matrices)) == {
        **dict.fromkeys("qkvo", 16),
        "gate_up": 128,
        "down": 64,
        "linear_in": 96,
        "linear_out": 48,
        "linear_gates": 96,
        "vision": 27 * 4 + 3,
        "mtp": 8,
        "lm_head": 1,
        "embeddings": 1,
    }


def sets(*names: str, split_qkv: bool = True) -> int:
    """How many widths these tensors may have."""
    return len({fused_set_of(name, split_qkv=split_qkv) for name in names})


JOINED = {
    "gate and up": ("layers.0.mlp.gate_proj.weight", "layers.0.mlp.up_proj.weight"),
    "of MTP": ("mtp.layers.0.mlp.gate_proj.weight", "mtp.layers.0.mlp.up_proj.weight"),
    "of a shared expert": (
        "mlp.shared_expert.gate_proj.weight",
        "mlp.shared_expert.up_proj.weight",
    ),
    "in-projections": ("linear_attn.in_proj_qkv.weight", "linear_attn.in_proj_z.weight"),
    "gates": ("linear_attn.in_proj_a.weight", "linear_attn.in_proj_b.weight"),
    "experts": ("mlp.experts.0.up_proj.weight", "mlp.experts.17.gate_proj.weight"),
    "experts' other half": ("mlp.experts.0.w2.weight", "mlp.experts.17.w2.weight"),
    "experts of MTP": ("mtp.0.mlp.experts.0.w2.weight", "mtp.0.mlp.experts.17.w2.weight"),
}
APART = {
    "layers": ("layers.0.mlp.gate_proj.weight", "layers.1.mlp.up_proj.weight"),
    "halves of experts": ("mlp.experts.0.w1.weight", "mlp.experts.0.w2.weight"),
    "shared and other experts": ("mlp.experts.0.w1.weight", "mlp.shared_expert.w1.weight"),
    "down of two layers": ("layers.0.mlp.down_proj.weight", "layers.1.mlp.down_proj.weight"),
    "gates and inputs": ("linear_attn.in_proj_a.weight", "linear_attn.in_proj_z.weight"),
    "what has no role": ("layers.0.x.weight", "layers.0.y.weight"),
}


@pytest.mark.parametrize("names", JOINED.values(), ids=JOINED)
def test_what_a_host_joins_has_one_width(names):
    assert sets(*names) == 1


@pytest.mark.parametrize("names", APART.values(), ids=APART)
def test_what_no_host_joins_is_chosen_on_its_own(names):
    assert sets(*names) == 2


@pytest.mark.parametrize(("split_qkv", "n"), [(True, 3), (False, 1)])
@pytest.mark.parametrize("prefix", ["model.layers.0.self_attn", "mtp.layers.0.self_attn"])
def test_q_k_and_v_differ_only_where_they_may(prefix, split_qkv, n):
    names = [f"{prefix}.{part}_proj.weight" for part in "qkv"]
    assert sets(*names, split_qkv=split_qkv) == n


def test_the_layer_is_the_first_number_of_a_name():
    assert layer_of("model.layers.17.mlp.experts.3.w1.weight") == 17
    assert layer_of("h.0.attn.c_attn.weight") == 0
    assert layer_of("lm_head.weight") is None
    assert layer_of("layers.q4.weight") is None


@pytest.mark.parametrize("part", ["a_", ".a", ".mlp", ".experts", ".0", "experts.0.", "q_proj."])
def test_a_name_of_a_megabyte_has_its_role_at_once(part):
    name = "x" + part * (10**6 // len(part))
    started = time.process_time()
    assert role_of(name)
    assert fused_set_of(name, split_qkv=False)
    layer_of(name)
    assert time.process_time() - started < 5
