"""Mixtures of experts, fused or not: packed, split over ranks, or refused."""

from __future__ import annotations

import pytest
import torch
from checkpoints import make, stored_tensors, tiny, with_half_norms, without
from engine import answers, assert_same, bytes_of_layers, engine, greedy, parameter

pytestmark = pytest.mark.vllm

FLOAT32 = "float32"
# Texts in which a router finds two experts about equally good, and roundings choose.
CLOSE_ROUTES = 3


@pytest.fixture(scope="module")
def two_ranks(work):
    """Qwen3-MoE, a tensor for each expert and projection; and what its dense model says.

    Its one head of keys and values is held by both ranks.
    """
    sizes = {"moe_intermediate_size": 256, "num_key_value_heads": 1}
    pair = make(tiny("qwen3_moe", sizes), work / "qwen3_moe2", FLOAT32)
    return pair, answers(pair.dense, FLOAT32)


def test_single_experts_of_two_widths_answer_as_the_dense_model(work):
    """The default pattern down_proj gets 4 bits; the router is packed, too."""
    pair = make(tiny("qwen3_moe"), work / "qwen3_moe", FLOAT32, sensitive_bits=4)
    dense = answers(pair.dense, FLOAT32)
    with engine(pair.packed, FLOAT32) as llm:
        assert_same(greedy(llm), dense, FLOAT32, CLOSE_ROUTES)
        (layers,) = bytes_of_layers(llm)
        codes = parameter(llm, "model.layers.1.mlp.experts.routed_experts.w2_weight_packed")
    gate_up, down = 4 * 2 * 160 * 2 * (48 + 4), 4 * 192 * 2 * (64 + 4)
    experts = layers["model.layers.0.mlp.experts.routed_experts"]
    assert experts == (gate_up + down, gate_up + down)
    assert layers["model.layers.0.mlp.gate"][0] == 4 * 2 * (48 + 4)
    # As they lie in the file.
    tensors = stored_tensors(pair.packed)
    names = [f"model.layers.1.mlp.experts.{e}.down_proj.weight.tq_packed" for e in range(4)]
    assert torch.equal(codes.flatten(), torch.cat([tensors[name].flatten() for name in names]))


def test_layers_of_experts_may_differ_in_width_and_norms_be_float16(work):
    options = {"sensitive_bits": 4, "sensitive_patterns": ["layers.1.mlp.experts"]}
    pair = make(tiny("qwen3_moe"), work / "experts_by_layer", FLOAT32, half_norms=True, **options)
    dense = answers(pair.dense, FLOAT32)
    with engine(with_half_norms(pair), FLOAT32) as llm:
        assert_same(greedy(llm), dense, FLOAT32, CLOSE_ROUTES)
        (layers,) = bytes_of_layers(llm)
    for layer, bits in ((0, 3), (1, 4)):
        held, _ = layers[f"model.layers.{layer}.mlp.experts.routed_experts"]
        assert held == 4 * (2 * 160 * 2 + 192 * 2) * (16 * bits + 4)


def test_two_ranks_split_each_expert(two_ranks):
    pair, dense = two_ranks
    with engine(pair.packed, FLOAT32, tensor_parallel_size=2) as llm:
        assert_same(greedy(llm), dense, FLOAT32, CLOSE_ROUTES)
        for rank in bytes_of_layers(llm):
            held, _ = rank["model.layers.0.mlp.experts.routed_experts"]
            assert held == 4 * (256 * 2 + 192) * 52


def test_two_ranks_share_out_the_experts(two_ranks):
    pair, dense = two_ranks
    options = {"tensor_parallel_size": 2, "enable_expert_parallel": True}
    with engine(pair.packed, FLOAT32, **options) as llm:
        assert_same(greedy(llm), dense, FLOAT32, CLOSE_ROUTES)


@pytest.mark.parametrize(
    "options",
    [
        {"keep": ["*.experts.2.*"]},
        {"keep": ["*.experts.*.down_proj.*"]},
        {"sensitive_bits": 4, "sensitive_patterns": ["up_proj"]},
    ],
)
def test_experts_packed_in_several_ways_are_refused(work, options, request):
    pair = make(tiny("qwen3_moe"), work / request.node.name, FLOAT32, **options)
    with pytest.raises(Exception, match="must all be packed"), engine(pair.packed, FLOAT32):
        pass


def test_a_folder_without_one_expert_is_refused(two_ranks):
    pair, _ = two_ranks
    folder = without(pair, "model.layers.1.mlp.experts.2.down_proj.weight")
    with pytest.raises(Exception, match="384 of 1536 norms are missing"), engine(folder, FLOAT32):
        pass


def test_kept_experts_beside_packed_layers(work):
    pair = make(tiny("qwen3_moe"), work / "kept_experts", FLOAT32, keep=["*.experts.*"])
    dense = answers(pair.dense, FLOAT32)
    with engine(pair.packed, FLOAT32) as llm:
        assert_same(greedy(llm), dense, FLOAT32, CLOSE_ROUTES)
