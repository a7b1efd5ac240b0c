"""Weights that were lost when they were saved, and those that only change another model's."""

from __future__ import annotations

import pytest
from support.plan.listings import checkpoint

from tq3.errors import BadInput
from tq3.format.header import TensorInfo
from tq3.plan.ordinary import check_ordinary

PLAIN = TensorInfo("model.norm.weight", "BF16", (8,))


def refusal(*infos: TensorInfo) -> BadInput:
    """The error of a source with these tensors."""
    with pytest.raises(BadInput) as caught:
        check_ordinary(checkpoint(*infos))
    return caught.value


def test_a_file_without_tensors_is_no_model():
    error = refusal()
    assert (error.file, error.message) == ("model.safetensors", "no tensors")


def test_a_weight_of_shape_0_was_saved_in_parts():
    error = refusal(PLAIN, TensorInfo("model.layers.0.mlp.up_proj.weight", "BF16", (0,)))
    assert error.tensor == "model.layers.0.mlp.up_proj.weight"
    assert "zero_to_fp32.py" in str(error.fix)
    assert "stage3_gather_16bit_weights_on_model_save" in str(error.fix)


@pytest.mark.parametrize(("name", "shape"), [("a.weight", (0, 128)), ("a.buffer", (0,))])
def test_other_empty_tensors_are_ordinary(name, shape):
    check_ordinary(checkpoint(PLAIN, TensorInfo(name, "BF16", shape)))


Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"
ADAPTERS = {
    "LoRA": (f"{Q_PROJ}.lora_A.weight", f"{Q_PROJ}.lora_B.weight"),
    "LoRA, named": (f"{Q_PROJ}.lora_A.default.weight", f"{Q_PROJ}.lora_B.default.weight"),
    "DoRA": (f"{Q_PROJ}.lora_A.weight", f"{Q_PROJ}.lora_magnitude_vector"),
    "of an embedding": ("base_model.model.wte.lora_embedding_A",),
    "MLX": ("model.layers.0.self_attn.q_proj.lora_a", "model.layers.0.self_attn.q_proj.lora_b"),
    "kohya": ("lora_unet_down_blocks_0.lora_down.weight", "lora_unet_down_blocks_0.alpha"),
    "diffusers": ("transformer.blocks.0.attn.to_q.lora_A.weight",),
    "IA3": (f"{Q_PROJ}.ia3_l",),
    "LoHa": (f"{Q_PROJ}.hada_w1_a", f"{Q_PROJ}.hada_w2_b", f"{Q_PROJ}.hada_t1"),
    "LoKr": (f"{Q_PROJ}.lokr_w1", f"{Q_PROJ}.lokr_w2_a"),
    "VeRA": (f"{Q_PROJ}.vera_lambda_b", f"{Q_PROJ}.vera_lambda_d"),
    "OFT": (f"{Q_PROJ}.oft_R.weight",),
    "prompts": ("prompt_embeddings",),
}


@pytest.mark.parametrize("names", ADAPTERS.values(), ids=ADAPTERS)
def test_nothing_but_an_adapter_is_refused_in_a_file_of_any_name(names):
    error = refusal(*(TensorInfo(name, "BF16", (256, 16)) for name in names))
    assert "an adapter" in str(error)
    assert names[0] in str(error.found)
    assert "merge_and_unload" in str(error.fix)


def test_a_model_that_has_adapters_of_its_own_is_a_model():
    parts = ("base_layer.weight", "lora_A.vision.weight", "lora_B.vision.weight")
    check_ordinary(checkpoint(*(TensorInfo(f"q_proj.{p}", "BF16", (256, 256)) for p in parts)))


@pytest.mark.parametrize("name", ["flora_A.weight", "x.lora_alpha.weight", "alphabet.weight"])
def test_look_alikes_are_ordinary(name):
    check_ordinary(checkpoint(TensorInfo(name, "BF16", (256, 256))))
