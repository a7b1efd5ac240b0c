"""Mixtures of experts, fused or not: packed, split over ranks, or refused."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from checkpoints import make, stored_tensors, tiny, with_half_norms, without
from engine import answers, assert_same, bytes_of_layers, engine, greedy, parameter

from tq3.errors import BadInput, UsageError
from tq3.integrations.stored import Matrix, Stored
from tq3.integrations.vllm.experts import expert_bits

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


def experts_layer(has_bias=False):
    """What is asked of vLLM's layer of experts."""
    return SimpleNamespace(
        ckpt_gate_proj_name="gate_proj",
        ckpt_up_proj_name="up_proj",
        ckpt_down_proj_name="down_proj",
        moe_config=SimpleNamespace(has_bias=has_bias),
    )


def bits(matrices, prefix="l.experts", has_bias=False):
    return expert_bits(Stored(matrices, 128), prefix, experts_layer(has_bias))


SINGLE = [f"l.experts.{e}.{p}_proj.weight" for e in range(2) for p in ("gate", "up", "down")]
SOME, OTHERS = Matrix(256, 3, 2), Matrix(256, 4, 2)
KEPT = Matrix(256)


def test_down_may_have_another_width_and_all_may_be_kept():
    all_alike = dict.fromkeys(SINGLE, SOME)
    down = {name: OTHERS for name in SINGLE if "down" in name}
    assert bits(all_alike) == (3, 3)
    assert bits(all_alike | down) == (3, 4)
    assert bits(dict.fromkeys(SINGLE, KEPT)) is bits({}) is None


@pytest.mark.parametrize(
    ("others", "matrix", "named"),
    [
        (SINGLE[3:], KEPT, ", such as 1.gate_proj.weight"),
        (SINGLE[2::3], KEPT, ", such as 0.down_proj.weight"),
        (SINGLE[1::3], OTHERS, "bits [3, 4] and [3]"),
    ],
    ids=["an expert kept", "down kept", "up wider"],
)
def test_experts_packed_in_several_ways_are_refused(others, matrix, named):
    with pytest.raises(BadInput, match="must all be packed.*" + re.escape(named)):
        bits(dict.fromkeys(SINGLE, SOME) | dict.fromkeys(others, matrix))


def test_packed_experts_with_biases_are_refused_for_their_biases():
    """GPT-OSS's, under the names that vLLM has for them."""
    names = [f"l.experts.{name}" for name in ("w13_weight", "w2_weight")]
    with pytest.raises(UsageError, match="experts with biases"):
        bits(dict.fromkeys(names, SOME) | {"l.experts.w13_bias": KEPT}, has_bias=True)
    assert bits(dict.fromkeys(names, KEPT), has_bias=True) is None


@pytest.mark.parametrize(
    ("prefix", "name"), [("l.ffn", "l.ffn.experts.mlp.v1"), ("l.experts", "l.gate_proj.weight")]
)
def test_packed_experts_of_unknown_names_are_refused(prefix, name):
    """DBRX's and Step-3.5's."""
    router = {"l.ffn.router.layer.weight": SOME}
    with pytest.raises(BadInput, match=rf"packed under these names.*found {name}, "):
        bits({name: SOME} | router, prefix)
    assert bits({name: KEPT} | router, prefix) is None


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
