"""Embeddings and output heads that are packed, alone or as one matrix that both share."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from support.integrations.packed_models import (
    BOUND,
    BOUND_4_BITS,
    PROMPT,
    Case,
    assert_close,
    assert_greedy,
    assert_same_logits,
    changed,
    generated,
    load,
    logits,
    make_case,
)
from support.models.tiny_models import BY_NAME, SIZES, Architecture
from support.models.tq3_folder import compressed_names, read_tensors
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

import tq3
from tq3.errors import UsageError
from tq3.runtime.modules import PackedEmbedding, PackedLinear

TIED = ["*proj*", "*embed_tokens*"]
EVERYTHING = [*TIED, "lm_head*"]
LLAMA = BY_NAME["llama"]
UNTIED = BY_NAME["qwen3"]
# Where both the embeddings and the head are padded rows of 4 bits.
OPTIONS = {"sensitive_bits": 4, "sensitive_patterns": ["embed_tokens", "lm_head"]}


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma3", "qwen3_5_moe"])
def made(request, tmp_path_factory) -> Case:
    """Llama's embeddings are tied, and Gemma's, whose embeddings are scaled."""
    folder = tmp_path_factory.mktemp(request.param)
    only = TIED if request.param in ("llama", "gemma3") else EVERYTHING
    return make_case(BY_NAME[request.param], folder, only=only, **OPTIONS)


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> Case:
    return make_case(LLAMA, tmp_path_factory.mktemp("tied"), only=TIED, **OPTIONS)


@pytest.fixture(scope="module")
def model(made):
    return load(made.architecture, made.compressed)


def test_embeddings_and_head_stay_packed_as_one_matrix_where_they_are_tied(made, model):
    stored = read_tensors(made.compressed)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embeddings, PackedEmbedding)
    assert isinstance(head, PackedLinear)
    assert embeddings.weight.group_layout.bits == head.weight.group_layout.bits == 4
    is_tied = embeddings.weight.tq_packed is head.weight.tq_packed
    assert is_tied == ("lm_head.weight.tq_packed" not in stored)
    assert is_tied == (embeddings.weight.tq_norms is head.weight.tq_norms)
    held = {id(part): part.nbytes for m in (embeddings, head) for part in m.parameters()}
    both = [t for name, t in stored.items() if "embed_tokens." in name or "lm_head." in name]
    assert sum(held.values()) == sum(tensor.nbytes for tensor in both)


def test_logits_and_greedy_tokens_are_those_of_the_restored_model(made, model):
    restored = load(made.architecture, made.restored)
    assert_same_logits(made.architecture, model, restored)
    assert_greedy(generated(model, 4), restored)


def test_embeddings_are_the_restored_ones_to_the_bit_scaled_or_not(made, model):
    restored = load(made.architecture, made.restored)
    ids = torch.arange(512)
    found, wanted = (m.get_input_embeddings()(ids) for m in (model, restored))
    assert torch.equal(found, wanted)
    assert found.norm() > 0


def test_a_saved_model_has_the_keys_and_the_bytes_of_its_checkpoint(made, model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    stored, saved = read_tensors(made.compressed), read_tensors(tmp_path / "saved")
    stored = {name: t for name, t in stored.items() if not name.startswith("mtp.")}
    assert set(saved) == set(stored)
    for name in compressed_names(stored):
        for part in (f"{name}.tq_packed", f"{name}.tq_norms"):
            assert torch.equal(saved[part], stored[part]), part
    assert torch.equal(logits(load(made.architecture, tmp_path / "saved")), logits(model))
    assert tq3.verify(tmp_path / "saved").ok
    tq3.restore(tmp_path / "saved", tmp_path / "restored", dtype="float32")
    load(made.architecture, tmp_path / "restored")


def test_commands_inspect_verify_and_restore_the_checkpoint(made):
    widths = {line.name: line.bits for line in tq3.inspect(made.compressed).tensors}
    assert any(bits == 4 for name, bits in widths.items() if "embed_tokens" in name)
    assert tq3.verify(made.compressed).ok
    assert tq3.verify(made.compressed, source=made.source).ok


def test_a_compiler_sees_one_graph(tied):
    torch.compiler.reset()
    model = load(LLAMA, tied.compressed)
    whole = torch.compile(model.forward, backend="aot_eager", fullgraph=True)
    prompt = torch.arange(12).reshape(1, 12)
    assert_close(whole(prompt, use_cache=False).logits, logits(model, prompt), 1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_leaves_codes_and_norms_shared(tied, dtype):
    model = load(LLAMA, tied.compressed)
    before = model.lm_head.weight.tq_norms.clone()
    assert model.to(dtype).get_input_embeddings()(torch.arange(3)).dtype == dtype
    assert model.lm_head.weight.tq_norms is model.model.embed_tokens.weight.tq_norms
    assert model.lm_head.weight.tq_packed is model.model.embed_tokens.weight.tq_packed
    assert torch.equal(model.lm_head.weight.tq_norms, before)


DISK = {"model.layers": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
MAPS = [
    "auto",
    DISK | {"model.embed_tokens": "cpu", "lm_head": "cpu"},
    DISK | {"model.embed_tokens": "disk", "lm_head": "disk"},
]


@pytest.mark.parametrize("device_map", MAPS, ids=["auto", "cpu", "disk"])
def test_device_maps(tied, device_map, tmp_path):
    model = load(LLAMA, tied.compressed, device_map=device_map, offload_folder=tmp_path)
    whole = load(LLAMA, tied.compressed)
    with torch.no_grad():
        assert torch.equal(model(PROMPT).logits, logits(whole))


def test_tying_again_changes_nothing(tied):
    model = load(LLAMA, tied.compressed)
    before = logits(model)
    model.tie_weights()
    assert model.lm_head.weight.tq_packed is model.model.embed_tokens.weight.tq_packed
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("rows", [500, 520])
@pytest.mark.filterwarnings("ignore:The new embeddings")
def test_another_number_of_tokens_is_refused_in_words(tied, rows):
    model = load(LLAMA, tied.compressed)
    before = logits(model)
    assert model.resize_token_embeddings(512) is model.get_input_embeddings()
    with pytest.raises(UsageError, match="neither added to nor cut.*tq3 restore"):
        model.resize_token_embeddings(rows)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("only", [["*proj*", "lm_head*"], TIED], ids=str)
def test_one_of_them_may_be_packed_alone(only, tmp_path):
    case = make_case(UNTIED, tmp_path, only=only)
    model = load(UNTIED, case.compressed)
    assert_same_logits(UNTIED, model, load(UNTIED, case.restored))
    assert isinstance(model.lm_head, PackedLinear) == ("lm_head*" in only)
    assert isinstance(model.model.embed_tokens, PackedEmbedding) == ("lm_head*" not in only)


def test_a_tied_matrix_may_be_stored_as_the_heads(tied, tmp_path):
    def rename(tensors):
        for part in ("tq_packed", "tq_norms"):
            tensors[f"lm_head.weight.{part}"] = tensors.pop(f"model.embed_tokens.weight.{part}")

    model = load(LLAMA, changed(tied.compressed, tmp_path / "head", rename))
    assert model.lm_head.weight.tq_packed is model.model.embed_tokens.weight.tq_packed
    assert torch.equal(logits(model), logits(load(LLAMA, tied.compressed)))


@pytest.mark.parametrize("bits", [3, 4])
def test_a_head_of_its_own_is_served_although_config_json_ties_it(bits, tmp_path):
    """Transformers compares the two; what differs stays apart."""
    case = make_case(UNTIED, tmp_path, only=EVERYTHING, bits=bits, **OPTIONS)
    config = json.loads((case.compressed / "config.json").read_text())
    config["tie_word_embeddings"] = True
    (case.compressed / "config.json").write_text(json.dumps(config))
    model = load(UNTIED, case.compressed)
    assert model.lm_head.weight.tq_packed is not model.model.embed_tokens.weight.tq_packed
    bound = BOUND_4_BITS if bits == 4 else BOUND
    assert_close(logits(model), logits(load(UNTIED, case.restored)), bound)


def test_a_kept_head_beside_packed_embeddings_although_config_json_ties_it(tmp_path):
    case = make_case(UNTIED, tmp_path, only=TIED)
    config = json.loads((case.compressed / "config.json").read_text())
    config["tie_word_embeddings"] = True
    (case.compressed / "config.json").write_text(json.dumps(config))
    model = load(UNTIED, case.compressed)
    assert_same_logits(UNTIED, model, load(UNTIED, case.restored))


def test_an_encoder_and_a_decoder_share_one_packed_table(tmp_path):
    config = transformers.T5Config(
        vocab_size=512,
        d_model=192,
        d_kv=64,
        d_ff=344,
        num_layers=1,
        num_heads=3,
        tie_word_embeddings=True,
    )
    architecture = Architecture("t5", transformers.T5ForConditionalGeneration, config, frozenset())
    case = make_case(architecture, tmp_path, only=["shared.weight", "*.SelfAttention.*"])
    model, restored = (load(architecture, f) for f in (case.compressed, case.restored))
    codes = {
        id(part.weight.tq_packed)
        for part in (model.shared, model.encoder.embed_tokens, model.decoder.embed_tokens)
    }
    assert len(codes) == 1
    ids = torch.arange(6)[None]
    with torch.no_grad():
        found, wanted = (m(input_ids=ids, decoder_input_ids=ids).logits for m in (model, restored))
    assert_close(found, wanted)


def test_a_table_of_positions_is_held_decoded(tmp_path):
    config = transformers.GPT2Config(n_embd=192, n_layer=1, n_head=4, vocab_size=512)
    architecture = Architecture("gpt2", transformers.GPT2LMHeadModel, config, frozenset())
    case = make_case(architecture, tmp_path, only=["*wte*", "*wpe*"])
    model = load(architecture, case.compressed)
    assert isinstance(model.transformer.wte, PackedEmbedding)
    assert type(model.transformer.wpe) is torch.nn.Embedding
    assert_same_logits(architecture, model, load(architecture, case.restored))


def test_a_scaled_embedding_keeps_its_class_and_its_scale(tmp_path):
    case = make_case(BY_NAME["gemma3"], tmp_path, only=TIED)
    embeddings = load(case.architecture, case.compressed).get_input_embeddings()
    assert isinstance(embeddings, Gemma3TextScaledWordEmbedding)
    assert embeddings.embed_scale == torch.tensor(SIZES["hidden_size"] ** 0.5)
    assert embeddings.padding_idx == 0
