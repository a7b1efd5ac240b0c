"""model.dequantize(), and the numbers of parameters before and after it."""

from __future__ import annotations

import copy
import io
import json

import pytest
import torch
from support.integrations.packed_models import load, logits, make_case, offloaded
from support.models.tiny_models import BY_NAME

from tq3.errors import UsageError


@pytest.fixture(scope="module", params=["llama", "tied", "qwen3_moe"])
def case(request, llama, tmp_path_factory):
    if request.param == "llama":
        return llama
    name = "llama" if request.param == "tied" else request.param
    return make_case(BY_NAME[name], tmp_path_factory.mktemp("case"), embeddings=4)


def test_it_is_the_restored_model(case, tmp_path):
    model, restored = (load(case.architecture, f) for f in (case.compressed, case.restored))
    assert model.dequantize() is model
    found, wanted = model.state_dict(), restored.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert torch.equal(logits(model), logits(restored))
    assert [type(part) for part in model.modules()] == [type(part) for part in restored.modules()]
    assert model.get_input_embeddings().weight.requires_grad
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(logits(load(case.architecture, tmp_path)), logits(restored))


def test_its_dtype_can_be_chosen(case):
    model = load(case.architecture, case.compressed, torch.bfloat16).dequantize(torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_offloaded_weights_are_refused(llama, tmp_path):
    model = offloaded(llama, tmp_path)
    with pytest.raises(UsageError, match="offloaded.*without device_map.*tq3 restore"):
        model.dequantize()


def test_weights_are_counted_not_the_bytes_of_codes(case):
    model, restored = (load(case.architecture, f) for f in (case.compressed, case.restored))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert model.num_parameters(only_trainable=True) == trainable
    for options in ({}, {"exclude_embeddings": True}):
        for part in ("", "model"):
            found, wanted = (
                m.get_submodule(part).num_parameters(**options) for m in (model, restored)
            )
            assert found == wanted
    assert model.dequantize().num_parameters(only_trainable=True) == restored.num_parameters()


def test_copies_count_their_own_weights(llama):
    model, file = load(llama.architecture, llama.compressed), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for again in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        del again.model.layers[1]
        assert again.num_parameters() < model.num_parameters()
