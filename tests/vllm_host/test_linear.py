"""Dense models: packed layers answer as the dense ones do, however they are fused and split."""

from __future__ import annotations

import pytest
import torch
from support.vllm_host.checkpoints import make, stored_tensors, tiny, without
from support.vllm_host.engine import (
    answers,
    assert_same,
    bytes_of_layers,
    engine,
    greedy,
    parameter,
)

pytestmark = pytest.mark.vllm

# float32, so that only the order of additions differs and nearly every token can be compared.
FLOAT32 = "float32"
# Bytes of the qkv_proj below: kept, of 3 bits, of 4 bits, biases.
MIXED_QKV = 256 * 256 * 4 + 128 * 2 * (48 + 4) + 128 * 2 * (64 + 4) + 4 * (256 + 2 * 128)


@pytest.fixture(scope="module")
def llama(work):
    return make(tiny("llama"), work / "llama", FLOAT32)


def test_compiled_it_answers_as_the_dense_model(llama):
    with engine(llama.packed, FLOAT32, enforce_eager=False) as llm:
        assert_same(greedy(llm), answers(llama.dense, FLOAT32), FLOAT32)


def test_layers_hold_codes_and_norms_and_nothing_else(llama):
    """192 columns are two groups of 48 bytes and a norm."""
    layer = "model.layers.0.self_attn"
    with engine(llama.packed, FLOAT32) as llm:
        (layers,) = bytes_of_layers(llm)
        codes = parameter(llm, f"{layer}.qkv_proj.weight_packed")
    assert len(layers) == 8
    assert all(held == packed for held, packed in layers.values())
    assert layers[f"{layer}.qkv_proj"][0] == (256 + 2 * 128) * 2 * 52
    assert layers["model.layers.1.mlp.down_proj"][0] == 192 * 3 * 52
    # As they lie in the file.
    tensors = stored_tensors(llama.packed)
    q_k_v = [tensors[f"{layer}.{part}_proj.weight.tq_packed"] for part in "qkv"]
    assert torch.equal(codes.flatten(), torch.cat(q_k_v).flatten())


@pytest.fixture(scope="module")
def mixed(work):
    """qkv_proj has biases, a kept part, one of 3 bits and one of 4; gate_up_proj two widths."""
    return make(
        tiny("qwen2", {"hidden_size": 256, "intermediate_size": 512}),
        work / "qwen2",
        FLOAT32,
        keep=["*.0.self_attn.q_proj.weight", "*.1.self_attn.k_proj.weight", "*.1.mlp.*"],
        sensitive_bits=4,
        sensitive_patterns=["v_proj", "up_proj"],
    )


def test_biases_and_kept_and_wider_parts_of_fused_layers(mixed):
    with engine(mixed.packed, FLOAT32) as llm:
        assert_same(greedy(llm), answers(mixed.dense, FLOAT32), FLOAT32)
        (layers,) = bytes_of_layers(llm)
    assert layers["model.layers.0.self_attn.qkv_proj"][0] == MIXED_QKV
    assert "model.layers.1.mlp.gate_up_proj" not in layers


def test_two_ranks_hold_half_of_each_part_and_answer_as_the_dense_model(mixed):
    with engine(mixed.packed, FLOAT32, tensor_parallel_size=2) as llm:
        assert_same(greedy(llm), answers(mixed.dense, FLOAT32), FLOAT32)
        for rank in bytes_of_layers(llm):
            assert rank["model.layers.0.self_attn.qkv_proj"][0] == MIXED_QKV // 2
            assert rank["model.layers.0.mlp.down_proj"][0] == 256 * 2 * 52


@pytest.mark.parametrize(("bits", "group"), [(2, 32), (4, 256)])
def test_other_widths_and_groups(work, bits, group):
    pair = make(tiny("qwen3"), work / f"q{bits}", FLOAT32, bits=bits, group_size=group)
    dense = answers(pair.dense, FLOAT32)
    with engine(pair.packed, FLOAT32) as llm:
        assert_same(greedy(llm), dense, FLOAT32)


def test_two_ranks_that_would_split_a_group_are_refused(llama, capfd):
    with (
        pytest.raises(Exception, match="initialization failed"),
        engine(llama.packed, FLOAT32, tensor_parallel_size=2),
    ):
        pass
    said = "".join(capfd.readouterr())
    assert "the largest tensor parallel size up to 2 for this layer is 1" in said


def test_a_folder_without_one_matrix_is_refused(mixed):
    folder = without(mixed, "model.layers.0.self_attn.o_proj.weight")
    with pytest.raises(Exception, match="512 of 512 norms are missing"), engine(folder, FLOAT32):
        pass
