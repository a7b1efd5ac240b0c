"""vLLM with a GPU's kernels, which the emulated device runs: layers lie in tiles."""

from __future__ import annotations

import pytest
from support.cuda.emulated import Device
from support.vllm_host.architectures import TABLE
from support.vllm_host.checkpoints import make, tiny
from support.vllm_host.engine import engine, greedy

from tq3.runtime.cuda import support

pytestmark = pytest.mark.vllm

FLOAT32 = "float32"
FEW = 3


def assert_same_answers(packed, monkeypatch, **options):
    """In tiles and not, to the last bit; returns what the parameters in tiles look like."""
    options |= {"max_num_batched_tokens": 32}  # so many are multiplied exactly on every processor
    with engine(packed, FLOAT32, **options) as llm:
        on_processor = greedy(llm, FEW)
    monkeypatch.setattr(support, "launcher", lambda _: Device())
    with engine(packed, FLOAT32, **options) as llm:
        assert greedy(llm, FEW) == on_processor
        (shapes,) = llm.collective_rpc(_shapes)
    return shapes


def _shapes(worker):
    """By name, also in a worker of another process."""
    model = worker.model_runner.model
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("enforce_eager", [True, False], ids=["eager", "compiled"])
def test_fused_layers_of_several_widths_and_a_tied_head(work, monkeypatch, enforce_eager):
    pair = make(
        tiny("llama", {"vocab_size": 500}),
        work / f"tiles_{enforce_eager}",
        FLOAT32,
        only=["*proj*", "*embed_tokens*"],
        sensitive_bits=4,
        sensitive_patterns=["embed_tokens", "v_proj"],
    )
    shapes = assert_same_answers(pair.packed, monkeypatch, enforce_eager=enforce_eager)
    assert not any(name.endswith(("weight_packed", "weight_norms")) for name in shapes)
    of_qkv = {name.rpartition(".")[2]: shape for name, shape in shapes.items() if "qkv" in name}
    assert sorted(len(shape) for shape in of_qkv.values()) == [4, 4, 5, 5]
    assert {shape[2] for shape in of_qkv.values() if len(shape) == 5} == {3, 4}
    # The head's are the embeddings' own.
    assert not any("lm_head" in name for name in shapes)


def test_experts_answer_the_same_from_tiles(work, monkeypatch):
    pair = make(tiny("qwen3_moe"), work / "tiles_of_experts", FLOAT32, sensitive_bits=4)
    shapes = assert_same_answers(pair.packed, monkeypatch)
    experts = [shape for name, shape in shapes.items() if name.endswith("w2_weight_packed")]
    assert {len(shape) for shape in experts} == {6}


def test_latent_attention_decodes_its_keys_and_values_from_tiles(work, monkeypatch):
    pair = make(TABLE["deepseek_v3"].tiny("deepseek_v3"), work / "tiles_of_latent", FLOAT32)
    shapes = assert_same_answers(pair.packed, monkeypatch)
    latent = {name.rpartition(".")[2] for name in shapes if ".kv_b_proj." in name}
    assert latent == {"tq3_words_0", "tq3_norms_0"}
