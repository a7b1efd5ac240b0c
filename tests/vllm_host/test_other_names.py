"""Models of vLLM whose layers are not named as their weights are, or not loaded as they are."""

from __future__ import annotations

from typing import Any

import pytest
from support.vllm_host.checkpoints import make, tiny, without
from support.vllm_host.engine import answers, assert_same, bytes_of_layers, engine, greedy
from vllm.model_executor.layers.linear import UnquantizedLinearMethod

from tq3.errors import UsageError
from tq3.integrations.stored import Matrix, Stored
from tq3.integrations.vllm.config import Tq3Config

pytestmark = pytest.mark.vllm

FLOAT32 = "float32"
EXPERTS = "model.layers.0.block_sparse_moe.experts.routed_experts"
PACKED, KEPT = Matrix(256, 3, 2), Matrix(256)


def test_granites_experts_may_be_kept(work):
    kept = ["*block_sparse_moe*"]
    pair = make(tiny("granitemoeshared"), work / "granite_kept", FLOAT32, keep=kept)
    with engine(pair.packed, FLOAT32) as llm:
        (layers,) = bytes_of_layers(llm)
    assert EXPERTS not in layers


def test_layers_that_may_be_one_of_several_widths_are_decoded(work):
    """In Falcon-H1 Mamba of layer 0 is `model.2.mixer`, of which it can't be told what it is."""
    options: dict[str, Any] = {"sensitive_bits": 4, "sensitive_patterns": ["layers.1.mamba"]}
    pair = make(tiny("falcon_h1"), work / "falcon_h1_widths", FLOAT32, **options)
    dense = answers(pair.dense, FLOAT32)
    with engine(pair.packed, FLOAT32) as llm:
        assert_same(greedy(llm), dense, FLOAT32)
        (layers,) = bytes_of_layers(llm)
    assert "model.layers.1.self_attn.qkv_proj" in layers
    assert not any("mamba" in name for name in layers)


def test_rows_that_vllm_repeats_for_each_rank_are_decoded(work):
    """Those of Mamba 2 with one group."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "mamba_d_head": 64, "mamba_d_ssm": 512}
    pair = make(tiny("falcon_h1", sizes), work / "falcon_h1_ranks", FLOAT32)
    dense = answers(pair.dense, FLOAT32)
    with engine(pair.packed, FLOAT32, tensor_parallel_size=2) as llm:
        assert_same(greedy(llm), dense, FLOAT32)
        layers = bytes_of_layers(llm)[0]
    assert "model.layers.0.mamba.mamba.in_proj" not in layers
    assert "model.layers.0.mamba.mamba.out_proj" in layers


def test_a_kept_layer_into_which_nothing_was_loaded_is_an_error(work):
    """vLLM itself asks of no quantised model whether everything was loaded."""
    kept = ["*.experts.*", "*.self_attn.*"]
    pair = make(tiny("qwen3_moe"), work / "all_but_gates_kept", FLOAT32, keep=kept)
    for gone, layer in (
        ("model.layers.0.self_attn.k_proj.weight", "qkv_proj"),
        ("model.layers.1.mlp.experts.2.down_proj.weight", "experts"),
    ):
        folder = without(pair, gone)
        with (
            pytest.raises(Exception, match=f"{layer}.*nothing was loaded"),
            engine(folder, FLOAT32),
        ):
            pass


@pytest.mark.parametrize("prefix", ["model.2.mixer.in_proj", "model.2.mixer.out_proj"])
def test_a_layer_whose_matrix_is_not_found_is_loaded_decoded(prefix):
    layers = {f"model.layers.{n}.mamba.in_proj.weight": Matrix(256, 3 + n, 2) for n in range(2)}
    config = configured(layers)
    assert isinstance(config._linear_method(prefix), UnquantizedLinearMethod)
    assert not config.taken


def test_matrices_that_vllm_transposes_are_decoded():
    """A square one would be served, and wrong."""
    name = "transformer.h.0.attn.c_proj"
    config = configured({f"{name}.weight": PACKED}, "gpt2")
    assert isinstance(config._linear_method(name), UnquantizedLinearMethod)
    assert not config.taken


def test_rows_that_vllm_reorders_before_a_plugin_sees_them_are_refused_if_they_are_packed():
    """Llama 4's, for its rotary embeddings: they would be served, and wrong."""
    layer, fused = "model.layers.0.self_attn", {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    names = [f"{layer}.{name}.weight" for name in fused["qkv_proj"]]
    config = configured(dict.fromkeys(names, PACKED), "llama4_text")
    config.packed_modules_mapping = fused
    with pytest.raises(UsageError, match="puts the rows.*keep"):
        config._linear_method(f"{layer}.qkv_proj")
    config.stored = Stored(dict.fromkeys(names, KEPT), 128)
    assert isinstance(config._linear_method(f"{layer}.qkv_proj"), UnquantizedLinearMethod)


def configured(matrices, model_type=""):
    config = Tq3Config(128)
    config.stored, config.model_type = Stored(matrices, 128), model_type
    return config
