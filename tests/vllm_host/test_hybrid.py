"""Qwen3.5: Gated DeltaNet beside attention, dense and with fused experts, and MTP.

In bfloat16, as vLLM's Gated DeltaNet on CPUs knows nothing else.
"""

from __future__ import annotations

import pytest
from support.models.tiny_models import BY_NAME
from support.vllm_host.checkpoints import make, tiny
from support.vllm_host.engine import answers, assert_same, bytes_of_layers, drafted, engine, greedy

pytestmark = pytest.mark.vllm

BFLOAT16 = "bfloat16"
LAYER = "language_model.model.layers.0"
# Otherwise roundings choose between experts that the router finds equally good.
ALL_EXPERTS = {"num_experts_per_tok": 4}


@pytest.mark.parametrize("enforce_eager", [True, False], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_a_hybrid_model_answers_as_the_dense_one(work, name, enforce_eager):
    pair = make(tiny(name, ALL_EXPERTS), work / name, BFLOAT16)
    dense = answers(pair.dense, BFLOAT16)
    with engine(pair.packed, BFLOAT16, enforce_eager=enforce_eager) as llm:
        assert_same(greedy(llm), dense, BFLOAT16)
        (layers,) = bytes_of_layers(llm)
    assert all(held == packed for held, packed in layers.values())
    # 192 columns are two groups; keys twice, values twice.
    assert layers[f"{LAYER}.linear_attn.in_proj_qkvz"][0] == (2 * 128 + 2 * 256) * 2 * 52
    if name == "qwen3_5_moe":
        experts = f"{LAYER}.mlp.experts.routed_experts"
        assert layers[experts][0] == 4 * (2 * 160 * 2 + 192 * 2) * 52
        assert {f"{LAYER}.mlp.gate", f"{LAYER}.mlp.shared_expert_gate"} <= set(layers)


def test_two_ranks_answer_as_the_dense_model(work):
    # Two ranks split these along columns, and each has whole groups.
    sizes = {"moe_intermediate_size": 256, "shared_expert_intermediate_size": 256}
    pair = make(tiny("qwen3_5_moe", sizes | ALL_EXPERTS), work / "qwen3_5_moe2", BFLOAT16)
    dense = answers(pair.dense, BFLOAT16)
    options = {"tensor_parallel_size": 2, "mm_encoder_tp_mode": "data"}
    with engine(pair.packed, BFLOAT16, **options) as llm:
        # The sums of two ranks are rounded to bfloat16 once more.
        assert_same(greedy(llm), dense, BFLOAT16, may_differ=2)


def test_mtp_layers_are_packed_and_compute_what_the_dense_ones_do(work):
    """vLLM's CPU backend loads a hybrid model's draft, but lacks a kernel to run it."""
    pair = make(BY_NAME["qwen3_5"], work / "qwen3_5_mtp", BFLOAT16)
    draft = {"method": "mtp", "num_speculative_tokens": 1}
    with engine(pair.dense, BFLOAT16, speculative_config=draft) as llm:
        _, dense = drafted(llm)
    with engine(pair.packed, BFLOAT16, speculative_config=draft) as llm:
        names, packed = drafted(llm)
    matrices = ["fc", "layers.0.self_attn.qkv_proj", "layers.0.mlp.down_proj"]
    assert {f"{matrix}.weight_packed" for matrix in matrices} <= names
    for got, wanted in zip(packed, dense, strict=True):
        assert (got - wanted).norm() < 0.01 * wanted.norm()
