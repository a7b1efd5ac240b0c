"""Embeddings and output heads that are packed: one matrix or two, on one rank or two."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import TABLE
from checkpoints import make, stored_tensors, tiny, with_half_norms
from engine import answers, assert_same, bytes_of_layers, engine, greedy, parameter
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

pytestmark = pytest.mark.vllm

FLOAT32, BFLOAT16 = "float32", "bfloat16"
EMBEDDINGS = "model.embed_tokens"
# vLLM fills a vocabulary of 500 up to 512 rows.
ROWS, PADDED = 500, 512


@pytest.fixture(scope="module")
def tied(work):
    """Llama gives its embeddings no name. Two groups of 192 columns, the second one padded."""
    return make(
        tiny("llama", {"vocab_size": ROWS}),
        work / "tied",
        FLOAT32,
        only=["*proj*", "*embed_tokens*"],
        sensitive_bits=4,
        sensitive_patterns=["embed_tokens"],
    )


@pytest.mark.parametrize("enforce_eager", [True, False], ids=["eager", "compiled"])
def test_a_head_tied_to_its_embeddings_shares_their_codes(tied, enforce_eager):
    with engine(tied.packed, FLOAT32, enforce_eager=enforce_eager) as llm:
        assert_same(greedy(llm), answers(tied.dense, FLOAT32), FLOAT32)
        for part in ("packed", "norms"):
            codes, shared = (
                parameter(llm, f"{layer}.weight_{part}") for layer in (EMBEDDINGS, "lm_head")
            )
            assert codes.data_ptr() == shared.data_ptr()
            # As they lie in the file, and zeros for the rows beyond.
            stored = stored_tensors(tied.packed)[f"{EMBEDDINGS}.weight.tq_{part}"]
            assert torch.equal(codes[:ROWS].flatten(), stored.flatten())
            assert not codes[ROWS:].any()
        (layers,) = bytes_of_layers(llm)
    assert layers[EMBEDDINGS] == (PADDED * 2 * 68, PADDED * 2 * 68)


def test_two_ranks_share_out_the_vocabulary_and_fused_layers_of_several_widths(work):
    """With float16 norms. q and k have 3 bits and v 4, gate and up 3 and down 4."""
    pair = make(
        tiny("qwen2", {"vocab_size": ROWS, "hidden_size": 256, "intermediate_size": 512}),
        work / "tied2",
        FLOAT32,
        half_norms=True,
        only=["*proj.weight", "*embed_tokens*"],
        sensitive_bits=4,
        sensitive_patterns=["v_proj", "down_proj", "embed_tokens"],
    )
    dense = answers(pair.dense, FLOAT32)
    with engine(with_half_norms(pair), FLOAT32, tensor_parallel_size=2) as llm:
        assert_same(greedy(llm), dense, FLOAT32)
        for rank in bytes_of_layers(llm):
            assert rank[EMBEDDINGS][0] == PADDED // 2 * 2 * 68
            qkv = (256 + 128) * 2 * 52 + 128 * 2 * 68 + 4 * (256 + 2 * 128)
            assert rank["model.layers.0.self_attn.qkv_proj"][0] == qkv // 2
            assert rank["model.layers.0.mlp.gate_up_proj"][0] == 2 * 512 * 2 * 52 // 2
            assert rank["model.layers.0.mlp.down_proj"][0] == 256 * 4 * 68 // 2


@pytest.mark.parametrize("ranks", [1, 2])
def test_embeddings_and_a_head_of_its_own_have_a_width_each(work, ranks):
    pair = make(
        tiny("qwen3", {"vocab_size": ROWS, "hidden_size": 256, "intermediate_size": 512}),
        work / "untied",
        FLOAT32,
        only=["*proj*", "*embed_tokens*", "lm_head*"],
        sensitive_bits=4,
        sensitive_patterns=["lm_head"],
    )
    dense = answers(pair.dense, FLOAT32)
    with engine(pair.packed, FLOAT32, tensor_parallel_size=ranks) as llm:
        assert_same(greedy(llm), dense, FLOAT32)
        for rank in bytes_of_layers(llm):
            assert rank[EMBEDDINGS][0] == PADDED // ranks * 2 * 52
            assert rank["lm_head"][0] == PADDED // ranks * 2 * 68


@pytest.mark.parametrize("packed", ["embed_tokens", "lm_head"])
def test_one_of_them_may_be_packed_alone(work, packed):
    pair = make(tiny("qwen3"), work / packed, FLOAT32, only=["*proj*", f"*{packed}*"])
    dense = answers(pair.dense, FLOAT32)
    with engine(pair.packed, FLOAT32) as llm:
        assert_same(greedy(llm), dense, FLOAT32)
        (layers,) = bytes_of_layers(llm)
    assert ("lm_head" in layers) == (packed == "lm_head")
    assert (EMBEDDINGS in layers) == (packed == "embed_tokens")


def test_embeddings_that_a_model_builds_without_a_quantisation(work):
    """Qwen3.5's. A narrower one is too undecided to compare texts."""
    pair = make(
        tiny("qwen3_5", {"hidden_size": 512}),
        work / "qwen3_5_embeddings",
        BFLOAT16,
        only=["*proj*", "*embed_tokens*", "lm_head*"],
        scale="norm",
    )
    dense = answers(pair.dense, BFLOAT16)
    with engine(pair.packed, BFLOAT16) as llm:
        assert_same(greedy(llm), dense, BFLOAT16)
        (layers,) = bytes_of_layers(llm)
    assert {"language_model.model.embed_tokens", "language_model.lm_head"} <= set(layers)


def test_a_kept_table_is_prepared_for_products_where_it_is_a_head_alone(work):
    """vLLM on a processor makes a second copy of whatever it multiplies by."""
    pair = make(tiny("llama"), work / "llama", FLOAT32)
    with engine(pair.packed, FLOAT32) as llm:
        assert_same(greedy(llm), answers(pair.dense, FLOAT32), FLOAT32)
        prepared = llm.collective_rpc(_prepared)[0]
    assert prepared == ["lm_head"]
    # Its class has no other head than its embeddings.
    pair = make(TABLE["gemma2"].tiny("gemma2"), work / "table_gemma2", FLOAT32)
    with engine(pair.packed, FLOAT32) as llm:
        greedy(llm, 1)
        assert llm.collective_rpc(_prepared)[0] == [EMBEDDINGS]


def _prepared(worker: Any) -> list[str]:
    """Tables and heads of which vLLM has made its own copy."""
    layers = worker.get_model().named_modules()
    return [name for name, layer in layers if "cpu_linear" in vars(layer) and _is_table(layer)]


def _is_table(layer: torch.nn.Module) -> bool:
    return isinstance(layer, VocabParallelEmbedding)
