"""Models of vLLM whose layers are not named as their weights are, and what is said of the rest."""

from __future__ import annotations

import logging

import pytest
from checkpoints import make, tiny, without
from engine import answers, assert_same, bytes_of_layers, engine, greedy
from vllm.model_executor.layers.linear import UnquantizedLinearMethod

from tq3.errors import BadInput, UsageError
from tq3.integrations.stored import Matrix, Stored
from tq3.integrations.vllm import config as plugin
from tq3.integrations.vllm.config import Tq3Config

pytestmark = pytest.mark.vllm

FLOAT32 = "float32"
EXPERTS = "model.layers.0.block_sparse_moe.experts.routed_experts"
BODY = ["*proj*", "*_linear*", "*router*"]
PACKED, WIDER, KEPT = Matrix(256, 3, 2), Matrix(256, 4, 2), Matrix(256)


@pytest.mark.parametrize("name", ["granitemoeshared", "granitemoehybrid"])
def test_granites_stacks_of_experts_answer_as_the_dense_model(work, name):
    """One model brings them to the experts' loader, the other to parameters by their names."""
    pair = make(tiny(name), work / name, FLOAT32, only=BODY)
    dense = answers(pair.dense, FLOAT32)
    with engine(pair.packed, FLOAT32) as llm:
        assert_same(greedy(llm), dense, FLOAT32)
        (layers,) = bytes_of_layers(llm)
    assert layers[EXPERTS][0] == 4 * (2 * 344 * 2 + 192 * 3) * 52
    assert layers["model.layers.0.block_sparse_moe.gate"][0] == 4 * 2 * 52


def test_granites_experts_may_be_kept(work):
    kept = ["*block_sparse_moe*"]
    pair = make(tiny("granitemoeshared"), work / "granite_kept", FLOAT32, keep=kept)
    with engine(pair.packed, FLOAT32) as llm:
        (layers,) = bytes_of_layers(llm)
    assert EXPERTS not in layers


def test_prefixes_without_a_component_of_the_names_and_with_another_number(work):
    """Falcon-H1's attention is `layers.0.q_proj` there, and Mamba of layer 0 `model.2.mixer`."""
    pair = make(tiny("falcon_h1"), work / "falcon_h1", FLOAT32)
    dense = answers(pair.dense, FLOAT32)
    with engine(pair.packed, FLOAT32) as llm:
        assert_same(greedy(llm), dense, FLOAT32)
        (layers,) = bytes_of_layers(llm)
    assert "model.layers.1.self_attn.qkv_proj" in layers
    assert "model.layers.1.mamba.mamba.in_proj" in layers


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


def configured(matrices, model_type="", fused=None):
    config = Tq3Config(128)
    config.stored, config.model_type = Stored(matrices, 128), model_type
    config.packed_modules_mapping = fused or {}
    return config


def test_a_layer_that_may_be_one_of_several_widths_is_refused():
    layers = {"model.layers.0.mamba.in_proj.weight": PACKED}
    layers["model.layers.1.mamba.in_proj.weight"] = WIDER
    with pytest.raises(BadInput, match="names this layer otherwise.*layers.0.mamba"):
        configured(layers)._linear_method("model.2.mixer.in_proj")
    with pytest.raises(BadInput, match="has no weights for this layer"):
        configured(layers)._linear_method("model.2.mixer.out_proj")


def test_matrices_that_vllm_transposes_are_refused_for_that_if_they_are_packed():
    """A square one would be served, and wrong."""
    name = "transformer.h.0.attn.c_proj"
    with pytest.raises(UsageError, match="turns this layer's matrix around"):
        configured({f"{name}.weight": PACKED}, "gpt2")._linear_method(name)
    kept = configured({f"{name}.weight": KEPT}, "gpt2")._linear_method(name)
    assert isinstance(kept, UnquantizedLinearMethod)


def test_packed_matrices_that_no_layer_takes_are_named(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    monkeypatch.setattr(plugin.logger, "warning_once", plugin.logger.warning)
    config = configured({"a.up.weight": PACKED, "pooler.weight": PACKED, "norm.weight": KEPT})
    config._linear_method("a.up")
    mapper = config.get_checkpoint_weight_mapper()
    assert "1 of 2 packed matrices belong to no layer" in caplog.text
    assert "pooler.weight" in caplog.text
    assert mapper.map_name("a.up.weight.tq_packed") == "a.up.weight_packed"
