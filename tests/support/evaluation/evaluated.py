"""Checkpoints with a tokenizer: a source, and what tq3 makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import tq3
from support.models.tiny_models import SIZES, Architecture, write_checkpoint
from tq3.evaluation.evaluate import evaluate
from tq3.evaluation.result import Evaluation
from tq3.events import Notice

BOS = "<s>"
TEXT = "Every byte of this text is a token of its own. " * 8


class Pair(NamedTuple):
    """The folders of a source and of its TQ3 checkpoint, and a text with some hundred tokens."""

    source: Path
    out: Path
    text: Path


def make_pair(architecture: Architecture, folder: Path, **options: Any) -> Pair:
    """A source and what compress makes of it: by default beside that source itself, to the bit."""
    pair = Pair(folder / "source", folder / "out", folder / "text.txt")
    write_checkpoint(architecture, pair.source)
    byte_tokenizer().save_pretrained(pair.source)
    tq3.compress(pair.source, pair.out, **{"equalize": False} | options)
    pair.text.write_text(TEXT)
    return pair


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, and BOS, which it does not add by itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {token: number for number, token in enumerate([*alphabet, BOS])}
    assert len(tokens) <= SIZES["vocab_size"]
    made = Tokenizer(models.BPE(vocab=tokens, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=BOS)


def evaluation_of(pair: Pair, **options: Any) -> tuple[Evaluation, list[str]]:
    """What `evaluate` returns, and its notices."""
    usual: dict[str, Any] = {"text": pair.text, "tokens": 90, "context": 32}
    run = evaluate(pair.out, pair.source, **usual | options)
    notices: list[str] = []
    while True:
        try:
            event = next(run)
        except StopIteration as end:
            return end.value, notices
        if isinstance(event, Notice):
            notices.append(event.text)
