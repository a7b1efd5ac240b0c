"""A model of sentence-transformers, compressed: its modules travel along, and its vectors stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import tq3.integrations.transformers

st = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")

TEXTS = ["w1 w2 w3", "w9 w8 w30 w31"]


def write_base(folder: Path) -> Path:
    """A tiny BERT and its tokenizer of words."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(60))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Modules with weights at the top, below the top, and with none."""
    folder = tmp_path_factory.mktemp("embeddings")
    model = st.SentenceTransformer(
        modules=[
            modules.Transformer(str(write_base(folder / "base"))),
            modules.Pooling(128),
            modules.Dense(128, 96, bias=False),
            modules.Router.for_query_document([modules.Dense(96, 64)], [modules.Dense(96, 64)]),
            modules.Normalize(),
        ],
        device="cpu",
    )
    model.save(str(folder / "source"))
    return folder / "source"


def vectors(folder: Path, task: str) -> torch.Tensor:
    model = st.SentenceTransformer(str(folder), device="cpu")
    return model.encode(TEXTS, task=task, convert_to_tensor=True, show_progress_bar=False)


@pytest.mark.parametrize("task", ["query", "document"])
def test_packed_and_restored_models_give_vectors_near_the_sources(source, tmp_path, task):
    tq3.compress(source, tmp_path / "out")
    tq3.restore(tmp_path / "out", tmp_path / "back", dtype="float32")
    wanted, packed, restored = (
        vectors(folder, task) for folder in (source, tmp_path / "out", tmp_path / "back")
    )
    assert wanted.shape == (2, 64)
    assert ((packed * wanted).sum(-1) > 0.9).all()
    assert ((packed * restored).sum(-1) > 0.999).all()
