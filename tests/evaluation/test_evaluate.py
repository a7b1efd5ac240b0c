"""From two folders to figures."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, astuple, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.evaluation.evaluated import Pair, byte_tokenizer, evaluation_of, make_pair
from support.models.tiny_models import ARCHITECTURES, Architecture
from support.models.tq3_folder import read_tensors
from transformers import AutoTokenizer

import tq3
from tq3.equalization.scaled_source import SCALED
from tq3.errors import BadInput, Tq3Error, UsageError
from tq3.evaluation import texts
from tq3.evaluation.measures import Beside

LLAMA = ARCHITECTURES[0]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(LLAMA, tmp_path_factory.mktemp("llama"))


@pytest.fixture
def copied(pair: Pair, tmp_path: Path) -> Pair:
    """The same, to be changed."""
    for name in ("source", "out"):
        shutil.copytree(getattr(pair, name), tmp_path / name)
    return Pair(tmp_path / "source", tmp_path / "out", pair.text)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_figures_are_those_of_source_and_restored_model(architecture: Architecture, tmp_path):
    pair = make_pair(architecture, tmp_path)
    found, _ = evaluation_of(pair)
    tq3.restore(pair.out, tmp_path / "restored", dtype="float32")
    models = [
        architecture.model_class.from_pretrained(folder, dtype=torch.float32).eval()
        for folder in (pair.source, tmp_path / "restored")
    ]
    tokenizer = AutoTokenizer.from_pretrained(pair.source)
    ids = torch.tensor(tokenizer(pair.text.read_text()).input_ids[:90])
    beside = Beside()
    for start in range(0, 90, 32):
        window = ids[None, start : start + 32]
        with torch.no_grad():
            exact, compressed = (model(window).logits[0, :-1] for model in models)
        beside.add(exact, compressed, window[0, 1:])
    assert astuple(found.measures) == pytest.approx(astuple(beside.measures()), rel=1e-3)
    assert found.measures.kl > 1e-3
    assert found.measures.n_tokens == 31 + 31 + 25


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_equalized_columns_are_compared_with_the_equalized_source(architecture, tmp_path):
    """Else every tensor would be all error, and a class alone would not be the same model."""
    pair = make_pair(architecture, tmp_path, bits=4, equalize=True)
    found, notices = evaluation_of(pair, by_class=True)
    assert SCALED in notices
    assert all(tensor.error < 0.02 for tensor in found.tensors)
    assert found.measures.kl < 0.5
    assert all(each.measures.kl < 0.5 for each in found.classes)


def test_a_quantised_source_is_the_model_that_it_means(copied, tmp_path):
    """In FP8, by torch's own conversion; beside the same weights in float32."""
    weights: dict[str, torch.Tensor] = {}
    for shard in copied.source.glob("*.safetensors"):
        weights |= load_file(shard)
        shard.unlink()
    (copied.source / "model.safetensors.index.json").unlink()
    stored: dict[str, torch.Tensor] = {}
    meant: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        if name.endswith("proj.weight"):
            codes = (weight.float() * 64).to(torch.float8_e4m3fn)
            scale = torch.full([-(-n // 32) for n in codes.shape], 1 / 64)
            stored |= {name: codes, f"{name}_scale_inv": scale}
            meant[name] = codes.float() / 64
        else:
            stored[name] = meant[name] = weight
    plain = shutil.copytree(copied.source, tmp_path / "plain")
    save_file(meant, plain / "model.safetensors", {"format": "pt"})
    save_file(stored, copied.source / "model.safetensors", {"format": "pt"})
    config = json.loads((copied.source / "config.json").read_text())
    method = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    text = json.dumps(config | {"quantization_config": method})
    (copied.source / "config.json").write_text(text)
    tq3.compress(copied.source, tmp_path / "packed", keep_dtype="source", equalize=False)
    packed = copied._replace(out=tmp_path / "packed")
    found, _ = evaluation_of(packed)
    same, _ = evaluation_of(packed._replace(source=plain))
    assert found.measures == same.measures
    assert found.measures.kl > 1e-3


def test_a_class_alone_is_the_model_with_that_class_compressed(pair, tmp_path):
    found, _ = evaluation_of(pair, by_class=True)
    assert [each.label for each in found.classes] == ["attention", "MLP"]
    only = ("*.mlp.*", "*.self_attn.*")
    for each, pattern in zip(found.classes, reversed(only), strict=True):
        out = tmp_path / each.label
        tq3.compress(pair.source, out, only=[pattern], keep_dtype="source", equalize=False)
        alone, _ = evaluation_of(pair._replace(out=out))
        assert astuple(each.measures) == pytest.approx(astuple(alone.measures), rel=1e-6)
        assert each.n_compressed == len(alone.tensors)


def test_errors_of_tensors_are_those_that_verify_measures(pair):
    found, _ = evaluation_of(pair)
    lines = {line.tensor: line for line in tq3.verify(pair.out, source=pair.source).comparisons}
    assert len(found.tensors) == 14
    for tensor in found.tensors:
        assert tensor.error == pytest.approx(lines[tensor.name].error, rel=1e-4)
        assert tensor.bits == 3
    worst = found.worst_tensors(2)
    assert [t.error for t in worst] == sorted((t.error for t in found.tensors), reverse=True)[:2]


def test_a_checkpoint_with_nothing_compressed_loses_nothing(pair, tmp_path):
    tq3.compress(pair.source, tmp_path / "same", keep=["*"], keep_dtype="source")
    found, _ = evaluation_of(pair._replace(out=tmp_path / "same"))
    assert (found.measures.kl, found.measures.agreement) == (0, 1)
    assert (found.tensors, found.classes) == ((), ())


def test_sequences_begin_with_bos_where_config_names_it_and_the_tokenizer_has_it(copied):
    assert evaluation_of(copied)[0].bos is None  # config.json has 1, the tokenizer 256
    config = json.loads((copied.source / "config.json").read_text())
    (copied.source / "config.json").write_text(json.dumps(config | {"bos_token_id": 256}))
    with_bos, _ = evaluation_of(copied)
    assert with_bos.bos == 256
    assert with_bos.measures.n_tokens == 90  # every token of the text is predicted
    assert evaluation_of(copied, bos=False)[0].bos is None


def test_json_has_everything_and_no_number_that_json_has_not(pair):
    found, _ = evaluation_of(pair, by_class=True)
    assert json.loads(json.dumps(found.to_dict())) == json.loads(json.dumps(asdict(found)))
    endless = replace(found, bits_per_weight=math.inf)
    assert endless.to_dict()["bits_per_weight"] is None


def test_it_says_when_the_text_is_short_or_of_no_kind(pair):
    assert evaluation_of(pair)[1] == ["90 tokens are few: mind the errors of the means"]
    text = pair.text.read_text()
    few = evaluation_of(pair, tokens=5000)[1][0]
    assert few == f"the text has {len(text)} tokens, not 5000: all are used"
    assert "--text FILE" in evaluation_of(pair, text=None)[1][0]


def test_the_built_in_text_is_long_enough_to_say_something():
    ids = byte_tokenizer()(texts.read_text(texts.SAMPLE)).input_ids
    assert len(ids) > 12_000  # bytes; of a real tokenizer's tokens about a quarter


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 1}, "--tokens is 1"),
        ({"context": 1}, "--context is 1"),
        ({"dtype": "int8"}, "dtype is 'int8'.*bfloat16, float16, float32"),
    ],
)
def test_impossible_options_are_refused(pair, options, message):
    with pytest.raises(UsageError, match=message):
        evaluation_of(pair, **options)


def refuse(pair: Pair, kind: type[Tq3Error], message: str, **options: object) -> None:
    with pytest.raises(kind, match=message):
        evaluation_of(pair, **options)


def test_a_text_of_one_token_and_one_that_is_no_text_are_refused(pair, tmp_path):
    (tmp_path / "short.txt").write_text("a")
    refuse(pair, UsageError, r"short\.txt.*too short.*1 tokens", text=tmp_path / "short.txt")
    (tmp_path / "odd.txt").write_bytes(b"\xff\xfe\x00")
    refuse(pair, BadInput, r"odd\.txt.*not UTF-8", text=tmp_path / "odd.txt")


def test_a_source_of_other_names_or_shapes_is_refused(pair, tmp_path):
    other = make_pair(ARCHITECTURES[1], tmp_path)
    refuse(pair._replace(source=other.source), BadInput, "is missing.*made from as --source")
    tensors = read_tensors(pair.source)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name][:100].clone()
    for file in (*other.source.glob("*.safetensors*"),):
        file.unlink()
    module_save(tensors, other.source / "model.safetensors")
    message = rf"{name}.*not of the source's shape.*\[344, 192\].*\[100, 192\]"
    refuse(pair._replace(source=other.source), BadInput, message)


def module_save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    from safetensors.torch import save_file  # noqa: PLC0415

    save_file(tensors, path, metadata={"format": "pt"})


def test_the_source_must_be_the_ordinary_one_and_out_the_compressed_one(pair):
    swapped = pair._replace(source=pair.out, out=pair.source)
    message = "already quantised.*--source must be the original checkpoint, and OUT the folder"
    for wrong in (pair._replace(source=pair.out), swapped):
        refuse(wrong, BadInput, message)
    refuse(pair._replace(out=pair.source), BadInput, "not a TQ3 checkpoint")


@pytest.mark.parametrize(
    "model_type", ["llama", "qwen2"]
)  # of the latter the host makes an empty one
def test_without_a_tokenizer_it_says_so(copied, model_type):
    for file in copied.source.glob("token*"):
        file.unlink()
    config = json.loads((copied.source / "config.json").read_text())
    (copied.source / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
    refuse(copied, UsageError, "no tokenizer that Transformers can load")


def test_an_architecture_that_transformers_does_not_know_is_named(copied):
    config = json.loads((copied.source / "config.json").read_text())
    for change in ({"model_type": "no_such_model"}, {"architectures": ["T5EncoderModel"]}):
        (copied.source / "config.json").write_text(json.dumps(config | change))
        refuse(copied, UsageError, "can't build this model|does not predict the next token")


def test_a_model_that_reads_weights_elsewhere_is_refused_in_words(pair, monkeypatch):
    """Nothing is computed with a weight that is not there."""
    from transformers.models.llama.modeling_llama import LlamaModel  # noqa: PLC0415

    ordinary = LlamaModel.forward

    def curious(self, *args, **kwargs):
        kwargs["inputs_embeds"] = self.embed_tokens.weight[kwargs.pop("input_ids")]
        return ordinary(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", curious)
    refuse(pair, UsageError, "reads weights of one module in another")
