"""What a checkpoint can be made with, and what from_pretrained can be asked for."""

from __future__ import annotations

import pytest
import torch
import transformers
from safetensors.torch import save_file
from support.integrations.packed_models import (
    GPT2,
    PROMPT,
    Case,
    assert_close,
    assert_same_logits,
    changed,
    load,
    logits,
    make_case,
    packed_bytes,
)
from support.models.tiny_models import BY_NAME, SIZES, Architecture
from support.models.tq3_folder import read_tensors
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from tq3.errors import BadInput, UsageError
from tq3.integrations.transformers import quantizer
from tq3.runtime.modules import PackedExperts

LLAMA, QWEN3_MOE, QWEN3_5_MOE = (BY_NAME[each] for each in ("llama", "qwen3_moe", "qwen3_5_moe"))


def assert_computes_as_restored(case: Case, folder=None) -> transformers.PreTrainedModel:
    model = load(case.architecture, folder or case.compressed)
    assert_same_logits(case.architecture, model, load(case.architecture, case.restored))
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 2},
        {"bits": 4, "group_size": 64},
        {"sensitive_bits": 4},
        {"group_size": 256},
        {"keep": ["*.layers.0.*", "*.q_proj.weight"]},
    ],
    ids=str,
)
def test_widths_groups_and_kept_matrices_are_taken_from_the_tensors(options, tmp_path):
    assert_computes_as_restored(make_case(LLAMA, tmp_path, **options))


@pytest.mark.parametrize("architecture", [QWEN3_MOE, QWEN3_5_MOE], ids=lambda a: a.name)
@pytest.mark.parametrize("keep", ["*.down_proj*", "*.layers.0.mlp.experts.*"])
def test_some_experts_may_be_kept(architecture, keep, tmp_path):
    model = assert_computes_as_restored(make_case(architecture, tmp_path, keep=keep))
    assert any(isinstance(module, PackedExperts) for module in model.modules())


@pytest.mark.parametrize("architecture", [QWEN3_MOE, QWEN3_5_MOE], ids=lambda a: a.name)
def test_experts_may_have_other_widths_down_or_in_another_layer(architecture, tmp_path):
    """Down of layer 0 and all of layer 1 have 4 bits."""
    patterns = ["down_proj", "layers.1.mlp.experts"]
    case = make_case(architecture, tmp_path, sensitive_bits=4, sensitive_patterns=patterns)
    model = assert_computes_as_restored(case)
    experts = {n: m for n, m in model.named_modules() if isinstance(m, PackedExperts)}
    bits = {name: module.group_layout.bits for name, module in experts.items()}
    wide = {name for name in bits if "down_proj" in name or "layers.1." in name}
    assert {name for name in bits if bits[name] == 4} == wide < set(bits)


def test_packed_experts_have_one_implementation(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(quantizer._log, "warning", said.append)
    case = make_case(QWEN3_MOE, tmp_path)
    model = load(QWEN3_MOE, case.compressed, experts_implementation="eager")
    assert ["experts_implementation='eager' is not used" in text for text in said] == [True]
    expected = logits(model)
    for part in (model, model.model):
        with pytest.raises(UsageError, match="found eager, expected 'tq3'.*`model.dequantize"):
            part.set_experts_implementation("eager")
    model.set_experts_implementation("tq3")
    assert torch.equal(logits(model), expected)
    model.dequantize().set_experts_implementation("eager")
    assert_close(logits(model), expected)


def test_a_bias_is_added(tmp_path):
    config = transformers.Qwen2Config(**SIZES, tie_word_embeddings=True)
    case = make_case(
        Architecture("qwen2", transformers.Qwen2ForCausalLM, config, frozenset()), tmp_path
    )
    model = assert_computes_as_restored(case)
    assert model.model.layers[0].self_attn.q_proj.bias.abs().max() > 0


def test_weights_of_other_modules_are_held_decoded_and_saved_as_they_were(tmp_path):
    """GPT-2 multiplies by transposed matrices: codes of their rows can't be used as they are."""
    case = make_case(GPT2, tmp_path)
    model = assert_computes_as_restored(case)
    assert isinstance(model.transformer.h[0].mlp.c_fc, Conv1D)
    model.save_pretrained(tmp_path / "again")
    stored, saved = read_tensors(case.compressed), read_tensors(tmp_path / "again")
    assert set(saved) == set(stored)
    assert all(torch.equal(saved[name].to(t.dtype), t) for name, t in stored.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_everything_but_codes_and_norms_has_the_dtype_asked_for(llama, dtype):
    model = load(LLAMA, llama.compressed, dtype)
    kinds = {name.rpartition(".tq_")[2]: p.dtype for name, p in model.named_parameters()}
    assert kinds.pop("packed") == torch.uint8
    assert kinds.pop("norms") == torch.float32
    assert set(kinds.values()) == {dtype}
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".tq_" in n)
    assert logits(model).dtype == dtype
    loose = {torch.bfloat16: 0.05, torch.float16: 0.02, torch.float32: 0.01}[dtype]
    assert_close(logits(model).float(), logits(load(LLAMA, llama.restored)), loose)


def test_the_dtype_of_config_json_is_the_default(llama):
    assert AutoModelForCausalLM.from_pretrained(llama.compressed).dtype == torch.bfloat16


def test_a_model_without_a_language_head_loads_from_the_same_folder(llama):
    model = transformers.LlamaModel.from_pretrained(llama.compressed, dtype=torch.float32)
    full = load(LLAMA, llama.compressed)
    with torch.no_grad():
        assert torch.equal(model(PROMPT)[0], full.model(PROMPT)[0])
    assert packed_bytes(model) == packed_bytes(full)


NAME = "model.layers.0.mlp.up_proj.weight"


def cut_rows(tensors):
    for part, rows in (("tq_packed", 4), ("tq_norms", 2)):
        tensors[f"{NAME}.{part}"] = tensors[f"{NAME}.{part}"][:-rows].contiguous()


def cut_bytes(tensors):
    packed = f"{NAME}.tq_packed"
    tensors[packed] = tensors[packed][:, :-1].contiguous()


def round_norms(tensors):
    tensors[f"{NAME}.tq_norms"] = tensors[f"{NAME}.tq_norms"].bfloat16()


@pytest.mark.parametrize(
    "change, message",
    [
        (cut_rows, r"do not fit .*codes U8 \[684, 48\].*\[344, 192\]"),
        (cut_bytes, "do not fit .*groups of 128"),
        (round_norms, r"do not fit .*norms BF16 \[344, 2\]"),
        (lambda t: t.pop(f"{NAME}.tq_norms"), "its .tq_norms is missing"),
        (lambda t: t.pop(f"{NAME}.tq_packed"), "its .tq_packed is missing"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(llama, tmp_path, change, message):
    folder = changed(llama.compressed, tmp_path / "bad", change)
    with pytest.raises(BadInput, match=rf"model.safetensors: tensor '{NAME}.*{message}"):
        load(LLAMA, folder)


def test_a_config_of_another_group_size_is_refused(llama, tmp_path):
    folder = changed(llama.compressed, tmp_path / "bad", lambda t: None)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"group_size": 128', '"group_size": 64'))
    with pytest.raises(BadInput, match="groups of 64"):
        load(LLAMA, folder)
    (folder / "config.json").write_text(text.replace('"tq3_native"', '"tq4_native"'))
    with pytest.raises(BadInput, match="unknown format .*'?tq4_native"):
        load(LLAMA, folder)


def test_a_folder_without_compressed_tensors_is_refused(llama, tmp_path):
    folder = changed(llama.compressed, tmp_path / "bad", lambda t: None)
    save_file(read_tensors(llama.restored), folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match="no compressed tensor belongs to a LlamaForCausalLM"):
        load(LLAMA, folder)


def test_a_state_dict_is_refused(llama):
    with pytest.raises(UsageError, match="from safetensors files only"):
        LLAMA.model_class.from_pretrained(
            None,
            config=transformers.AutoConfig.from_pretrained(llama.compressed),
            state_dict=read_tensors(llama.compressed),
        )
