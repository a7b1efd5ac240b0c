"""Packed models behave as models: state dicts, pickles, dtypes, and edits that are saved."""

from __future__ import annotations

import io
import json

import pytest
import torch
import transformers
from packed_models import GPT2, load, logits, make_case
from tiny_models import BY_NAME, SIZES, Architecture
from tq3_folder import read_tensors

import tq3

QWEN3_MOE = BY_NAME["qwen3_moe"]  # its routers are held decoded
GEMMA = Architecture(  # scales its rows
    "gemma",
    transformers.Gemma3ForCausalLM,
    transformers.Gemma3TextConfig(**SIZES, pad_token_id=0),
    frozenset(),
)
ROUTER = "model.layers.0.mlp.gate.weight"


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    return make_case(QWEN3_MOE, tmp_path_factory.mktemp("moe"), embeddings=4)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return make_case(GPT2, tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    return make_case(GEMMA, tmp_path_factory.mktemp("gemma"), embeddings=4)


@pytest.fixture(params=["moe", "gpt2", "gemma"])
def made(request):
    return request.getfixturevalue(request.param)


def again(model, folder, dtype=torch.float32):
    """The model as it comes back from a folder, and the tensors there."""
    model.save_pretrained(folder)
    assert tq3.verify(folder).ok
    return type(model).from_pretrained(folder, dtype=dtype), read_tensors(folder)


def test_a_state_dict_can_be_loaded_into_its_model_and_into_another(made):
    model, other = (load(made.architecture, made.compressed) for _ in range(2))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    for to in (model, other):
        to.load_state_dict(model.state_dict(), strict=True)
        assert torch.equal(logits(to), logits(load(made.architecture, made.compressed)))


def test_a_pickled_model_is_the_same_and_is_saved_as_codes(made, tmp_path):
    model, file = load(made.architecture, made.compressed), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    found = torch.load(file, weights_only=False)
    assert torch.equal(logits(found), logits(model))
    assert again(found, tmp_path)[1].keys() == read_tensors(made.compressed).keys()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_dtype_of_a_model_is_that_of_its_activations_and_is_saved(made, dtype, tmp_path):
    model = load(made.architecture, made.compressed, dtype)
    assert model.dtype == logits(model).dtype == dtype
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype)[6:]


def zero(weight):
    weight.zero_()


def one_element(weight):
    weight[3, 5] += 1.0


def assign(weight):
    weight.data = torch.ones_like(weight)


@pytest.mark.parametrize("edit", [zero, one_element, assign])
def test_an_edited_router_is_saved_as_it_is_and_all_else_as_it_was(moe, edit, tmp_path):
    model = load(QWEN3_MOE, moe.compressed)
    with torch.no_grad():
        edit(model.model.layers[0].mlp.gate.weight)
    found, saved = again(model, tmp_path / "saved")
    assert torch.equal(saved[ROUTER], model.model.layers[0].mlp.gate.weight)
    assert torch.equal(logits(found), logits(model))
    stored = {n: t for n, t in read_tensors(moe.compressed).items() if not n.startswith(ROUTER)}
    assert saved.keys() == {*stored, ROUTER}
    assert all(torch.equal(saved[name].to(t.dtype), t) for name, t in stored.items())
    lines = {line.name: (line.bits, line.shape) for line in tq3.inspect(tmp_path / "saved").tensors}
    assert lines[ROUTER] == (None, (4, 192))
    tq3.restore(tmp_path / "saved", tmp_path / "restored", dtype="float32")
    assert torch.equal(read_tensors(tmp_path / "restored")[ROUTER], saved[ROUTER])


def test_an_edit_is_saved_again_and_again(moe, tmp_path):
    model = load(QWEN3_MOE, moe.compressed)
    with torch.no_grad():
        model.model.layers[0].mlp.gate.weight.zero_()
    first, _ = again(model, tmp_path / "first")
    with torch.no_grad():
        first.model.layers[1].mlp.gate.weight.zero_()
    second, saved = again(first, tmp_path / "second")
    assert {name for name in saved if ".mlp.gate." in name} == {ROUTER, ROUTER.replace("0", "1")}
    assert torch.equal(logits(second), logits(first))


def test_a_replaced_layer_is_saved_dense(moe, tmp_path):
    model = load(QWEN3_MOE, moe.compressed)
    attention = model.model.layers[0].self_attn
    attention.q_proj = torch.nn.Linear(192, 256, bias=False)
    found, saved = again(model, tmp_path)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(saved[name], attention.q_proj.weight)
    assert name not in json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert torch.equal(logits(found), logits(model))


def test_an_edited_stack_of_experts_is_saved(tmp_path):
    """Llama 4's are stored transposed, and so are held decoded."""
    config = transformers.Llama4TextConfig(**SIZES, intermediate_size_mlp=256, num_local_experts=4)
    architecture = Architecture("llama4", transformers.Llama4ForCausalLM, config, frozenset())
    model = load(architecture, make_case(architecture, tmp_path / "made").compressed)
    with torch.no_grad():
        model.model.layers[0].feed_forward.experts.down_proj[2] += 1.0
    found, saved = again(model, tmp_path / "saved")
    assert "model.layers.0.feed_forward.experts.down_proj" in saved
    assert "model.layers.0.feed_forward.experts.gate_up_proj.tq_packed" in saved
    assert torch.equal(logits(found), logits(model))


def test_a_cast_is_no_edit(gpt2, tmp_path):
    model = load(GPT2, gpt2.compressed, torch.bfloat16).to(torch.float16).to(torch.float32)
    assert again(model, tmp_path)[1].keys() == read_tensors(gpt2.compressed).keys()


def test_a_model_whose_packed_weights_were_all_edited_is_saved_as_a_dense_one(gpt2, tmp_path):
    model = load(GPT2, gpt2.compressed)
    with torch.no_grad():
        for block in model.transformer.h:
            for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
                layer.weight += 1.0
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert not any(".tq_" in name for name in read_tensors(tmp_path))
    found = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(logits(found), logits(model))
