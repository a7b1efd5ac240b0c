"""Adapters beside packed layers, and what else of a packed model can be trained."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from support.integrations.packed_models import PROMPT, load, logits, make_case
from support.models.tiny_models import ARCHITECTURES

from tq3.errors import UsageError
from tq3.runtime.modules import PackedLinear, PackedWeight

# Of PEFT's about names in Transformers, and about what it finds no target for.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("FutureWarning", "UserWarning", "RuntimeWarning")
]
CAUSAL: dict[str, Any] = {"task_type": "CAUSAL_LM"}
# Of each step's loss, relative: a packed layer's output is within 1.1e-3 of the restored one's
# (docs/kernels.md, measured error), and 12 steps of Adam make a little more of that.
SAME_LOSS = 5e-3


@pytest.fixture(scope="module")
def in_full(tmp_path_factory):
    """All is packed: the tied embeddings and head, too."""
    folder = tmp_path_factory.mktemp("in_full")
    return make_case(ARCHITECTURES[0], folder, embeddings=4, lm_head=4)


def losses(model, n_steps=12):
    """Of full-batch steps of Adam on all that is trainable."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, 1e-2)
    found = []
    for _ in range(n_steps):
        loss = model(input_ids=PROMPT, labels=PROMPT).loss
        found.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found


def with_lora(model, **options):
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(**CAUSAL, target_modules="all-linear", **options))


def test_lora_learns_as_it_does_on_the_restored_model(llama):
    packed, restored = (
        losses(with_lora(load(llama.architecture, folder)))
        for folder in (llama.compressed, llama.restored)
    )
    assert packed[-1] < packed[0] / 2
    assert packed == pytest.approx(restored, rel=SAME_LOSS)


def test_all_linear_finds_every_packed_layer_and_changes_none(in_full):
    model = load(in_full.architecture, in_full.compressed)
    layers = [m for m in model.modules() if isinstance(m, PackedLinear)]
    before = copy.deepcopy([m.weight.stored() for m in layers])
    adapted = with_lora(model)
    losses(adapted, 2)
    loras = [m for m in adapted.modules() if isinstance(m, peft.tuners.lora.Linear)]
    assert {m.base_layer for m in loras} == set(layers) - {model.lm_head}
    assert all(m.lora_B["default"].get_parameter("weight").any() for m in loras)
    for layer, (codes, norms) in zip(layers, before, strict=True):
        assert torch.equal(layer.weight.tq_packed, codes)
        assert torch.equal(layer.weight.tq_norms, norms)


def test_a_saved_adapter_is_loaded_by_peft_and_by_transformers(llama, tmp_path):
    adapted = with_lora(load(llama.architecture, llama.compressed), init_lora_weights=False)
    adapted.save_pretrained(tmp_path)
    expected = logits(adapted)
    by_peft = peft.PeftModel.from_pretrained(load(llama.architecture, llama.compressed), tmp_path)
    by_transformers = load(llama.architecture, llama.compressed)
    assert not torch.equal(logits(by_transformers), expected)
    by_transformers.load_adapter(tmp_path)
    assert torch.equal(logits(by_peft.eval()), expected)
    assert torch.equal(logits(by_transformers), expected)


METHODS = {
    "LoRA on packed embeddings": LoraConfig(**CAUSAL, target_modules=["embed_tokens"]),
    "DoRA": LoraConfig(**CAUSAL, target_modules=["q_proj"], use_dora=True),
    "AdaLoRA": peft.AdaLoraConfig(**CAUSAL, target_modules=["q_proj"], total_step=9),
    "LoHa": peft.LoHaConfig(**CAUSAL, target_modules=["q_proj"]),
    "prompts": peft.PromptTuningConfig(**CAUSAL, num_virtual_tokens=4),
}


@pytest.mark.parametrize("config", METHODS.values(), ids=METHODS)
def test_other_methods_learn(config, in_full):
    torch.manual_seed(0)
    model = get_peft_model(load(in_full.architecture, in_full.compressed), copy.deepcopy(config))
    first, *_, last = losses(model, 4)
    assert last < first


REFUSED = {
    "merging": lambda model: with_lora(model).merge_and_unload(),
    "a copy that is trained": lambda model: with_lora(model, modules_to_save=["k_proj"]),
    "PiSSA": lambda model: with_lora(model, init_lora_weights="pissa"),
    "all of it": lambda model: model.requires_grad_(True),
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_what_would_change_packed_weights_is_refused(change, llama):
    with pytest.raises(UsageError, match="packed weight.*`tq3 restore` the checkpoint"):
        change(load(llama.architecture, llama.compressed))


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    architecture = next(a for a in ARCHITECTURES if a.name == "qwen3_moe")
    return make_case(architecture, tmp_path_factory.mktemp("experts"))


def with_experts(*targets):
    return LoraConfig(**CAUSAL, target_modules=["q_proj"], target_parameters=list(targets))


REFUSED_EXPERTS = "can't change the packed experts of Qwen3MoeExperts.*target_parameters.*--keep"


def test_an_adapter_of_dense_experts_is_not_left_out_in_silence(experts, tmp_path):
    dense = load(experts.architecture, experts.restored)
    get_peft_model(dense, with_experts("gate_up_proj")).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=REFUSED_EXPERTS):
        peft.PeftModel.from_pretrained(load(experts.architecture, experts.compressed), tmp_path)
    by_transformers = load(experts.architecture, experts.compressed)
    by_transformers.load_adapter(tmp_path)
    with pytest.raises(UsageError, match=REFUSED_EXPERTS):
        logits(by_transformers)


@pytest.mark.parametrize("target", ["gate_up_proj", "model.layers.0.mlp.experts.down_proj"])
@pytest.mark.parametrize("is_copy", [False, True])
def test_an_adapter_for_packed_experts_ends_where_it_would_train_nothing(experts, target, is_copy):
    model = load(experts.architecture, experts.compressed)
    adapted = get_peft_model(copy.deepcopy(model) if is_copy else model, with_experts(target))
    with pytest.raises(UsageError, match=f"{target}.*{REFUSED_EXPERTS}"):
        losses(adapted, 1)


def test_an_adapter_beside_packed_experts_learns(experts):
    """Through them, and of what is a parameter."""
    model = load(experts.architecture, experts.compressed)
    first, *_, last = losses(get_peft_model(model, with_experts("mlp.gate.weight")), 4)
    assert last < first


def test_an_adapter_can_be_merged_where_the_model_was_made_dense(llama):
    model = load(llama.architecture, llama.compressed)
    adapted = with_lora(model, init_lora_weights=False)
    expected = logits(adapted)
    model.dequantize()
    merged = adapted.merge_and_unload()
    assert not any(isinstance(part, PackedWeight) for part in merged.modules())
    torch.testing.assert_close(logits(merged), expected, rtol=5e-3, atol=3e-2)


def test_a_trainer_takes_adapters_and_checkpointing(llama, tmp_path):
    model = load(llama.architecture, llama.compressed)
    model.add_adapter(LoraConfig(target_modules="all-linear"))
    arguments = transformers.TrainingArguments(
        tmp_path,
        max_steps=2,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        gradient_checkpointing=True,
    )
    examples = [{"input_ids": tokens, "labels": tokens} for tokens in PROMPT]
    before = model(input_ids=PROMPT, labels=PROMPT).loss.item()
    transformers.Trainer(model, arguments, train_dataset=examples).train()
    assert model(input_ids=PROMPT, labels=PROMPT).loss.item() < before


def test_a_fresh_head_and_what_was_kept_are_trainable(llama):
    model = transformers.LlamaForSequenceClassification.from_pretrained(
        llama.compressed, dtype=torch.float32, num_labels=3, pad_token_id=0
    )
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"score.weight", "model.norm.weight", "model.embed_tokens.weight"} <= trainable
    assert not any(".tq_" in name for name in trainable)
    model(input_ids=PROMPT, labels=torch.tensor([1, 2])).loss.backward()
    assert model.score.weight.grad.any()
    assert model.model.embed_tokens.weight.grad.any()
