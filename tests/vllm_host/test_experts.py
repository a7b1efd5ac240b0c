"""Mixtures of experts, fused or not: packed, split over ranks, or decoded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from support.vllm_host.checkpoints import make, stored_tensors, tiny, with_half_norms, without
from support.vllm_host.engine import (
    answers,
    assert_same,
    bytes_of_layers,
    engine,
    greedy,
    parameter,
)

from tq3.integrations.stored import Matrix, Stored
from tq3.integrations.vllm.experts import expert_bits, stacks_below

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


def bits(matrices, prefix="l.experts", *, has_bias=False, turns=False):
    """Of four experts of 192 columns, 160 of them inside."""
    sizes = SimpleNamespace(has_bias=has_bias, hidden_dim_unpadded=192, intermediate_size=160)
    layer = SimpleNamespace(
        ckpt_gate_proj_name="gate_proj",
        ckpt_up_proj_name="up_proj",
        ckpt_down_proj_name="down_proj",
        moe_config=sizes,
    )
    stored = Stored(matrices, 128)
    return expert_bits(stored, stacks_below(stored, prefix, layer), layer, turns=turns)


def stack(rows, width=3, *, transposed=False):
    return Matrix(rows, width, 2, transposed=transposed) if width else Matrix(rows)


SINGLE = {
    f"l.experts.{e}.{name}_proj.weight": stack(192 if name == "down" else 160)
    for e in range(2)
    for name in ("gate", "up", "down")
}


def changed(names, width):
    return SINGLE | {name: stack(SINGLE[name].rows, width) for name in names}


def test_down_may_have_another_width_and_all_may_be_kept():
    assert bits(SINGLE) == (3, 3)
    assert bits(changed([name for name in SINGLE if "down" in name], 4)) == (3, 4)
    assert bits(changed(SINGLE, 0)) is bits({}) is None


@pytest.mark.parametrize(
    ("others", "width"),
    [
        (list(SINGLE)[3:], 0),
        (list(SINGLE)[2::3], 0),
        (list(SINGLE)[:2], 0),
        (list(SINGLE)[1::3], 4),
    ],
    ids=["an expert kept", "down kept", "gate and up of one kept", "up wider"],
)
def test_experts_packed_in_several_ways_are_decoded(others, width):
    assert bits(changed(others, width)) is None


TURNED = {
    "w13_weight": stack(4 * 320, transposed=True),
    "w2_weight": stack(4 * 192, transposed=True),
}


def below_experts(matrices):
    return {f"l.experts.{name}": matrix for name, matrix in matrices.items()}


def test_stacks_whose_rows_are_outputs_stay_packed_where_the_model_turns_dense_ones():
    assert bits(below_experts(TURNED), turns=True) == (3, 3)
    assert bits(below_experts(TURNED), turns=True, has_bias=True) == (3, 3)
    assert bits(below_experts(TURNED)) is None
    assert bits(SINGLE, turns=True) == (3, 3)  # of single experts no model turns any


@pytest.mark.parametrize(
    ("matrices", "options"),
    [
        ({"w13_weight": stack(4 * 320), "w2_weight": stack(4 * 192)}, {"turns": True}),
        (TURNED | {"w2_weight": stack(4 * 192)}, {"turns": True}),
        ({"gate_up_proj": stack(4 * 320), "down_proj": stack(4 * 192)}, {"has_bias": True}),
        ({"gate_up_proj": Matrix(4 * 192, 3, 3), "down_proj": stack(4 * 160)}, {}),
        ({"mlp.v1": stack(4 * 160), "mlp.w1": stack(4 * 160), "mlp.w2": stack(4 * 160)}, {}),
    ],
    ids=["as stored", "down as stored", "biases", "transposed", "unknown names"],
)
def test_experts_that_vllm_takes_in_no_other_way_are_decoded(matrices, options):
    assert bits(below_experts(matrices), **options) is None


@pytest.mark.parametrize("options", [{}, {"enable_expert_parallel": True}], ids=["split", "shared"])
def test_two_ranks_have_experts_with_biases_whose_gate_and_up_are_interleaved(work, options):
    sizes = {"intermediate_size": 256, "num_experts_per_tok": 4}
    pair = make(tiny("gpt_oss", sizes), work / "gpt_oss2", FLOAT32, expert_groups="inputs")
    dense = answers(pair.dense, FLOAT32)
    with engine(pair.packed, FLOAT32, tensor_parallel_size=2, **options) as llm:
        assert_same(greedy(llm), dense, FLOAT32, CLOSE_ROUTES)
        for rank in bytes_of_layers(llm):
            held, codes = rank["model.layers.0.mlp.experts.routed_experts"]
            assert codes == (2 * (512 * 2 + 192 * 2) if options else 4 * (256 * 2 + 192)) * 52
            biases = (2 * (512 + 192) if options else 4 * (256 + 192)) * 4
            assert held - codes == biases + (4 * 4 if options else 0)  # and whose expert is where


def test_experts_of_which_gate_and_up_are_kept_answer_as_the_dense_model(work):
    """Their down matrices are decoded, as vLLM holds all of a layer in one way."""
    pair = make(tiny("qwen3_moe"), work / "down_only", FLOAT32, keep=["*gate_proj*", "*up_proj*"])
    dense = answers(pair.dense, FLOAT32)
    with engine(pair.packed, FLOAT32) as llm:
        assert_same(greedy(llm), dense, FLOAT32, CLOSE_ROUTES)
        (layers,) = bytes_of_layers(llm)
    assert "model.layers.0.mlp.gate" in layers
    assert not any("experts" in name for name in layers)


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
