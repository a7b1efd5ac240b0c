"""How far a TQ3 checkpoint is from its source, from opening both to the figures.

Evaluated is what the codes say: weights are decoded as `tq3 restore --dtype float32` does it, and
the host computes with them in float32, or as asked. The kernels that serve packed weights round
otherwise, by far less than the codes do (docs/kernels.md).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tq3.equalization.scaled_source import SCALED
from tq3.errors import UsageError
from tq3.evaluation import texts
from tq3.evaluation.hosts import find_class, find_config, find_tokenizer, small_files
from tq3.evaluation.result import ClassLost, Evaluation, TensorError
from tq3.evaluation.skeleton import Skeleton, build
from tq3.evaluation.streaming import Lost, Variant, compare
from tq3.evaluation.tensors import (
    Tensors,
    bits_per_weight,
    check_belong_together,
    open_both,
)
from tq3.events import Notice, Run
from tq3.format.arguments import of_its_types
from tq3.format.options import FloatDtype, StrPath
from tq3.hub.options import HubOptions
from tq3.pipelines.machine import peak_memory_bytes
from tq3.pipelines.opening import FOLDER, open_source
from tq3.plan.classes import LABELS, class_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Tokens at which a mean begins to say something.
_FEW = 2000
_WHOLE = "compressed"


@of_its_types
def evaluate(
    path: StrPath,
    source: StrPath,
    *,
    text: Path | None = None,
    tokens: int = 4096,
    context: int = 512,
    dtype: FloatDtype = "float32",
    by_class: bool = False,
    bos: bool | None = None,
    hub: HubOptions = FOLDER,
    source_hub: HubOptions = FOLDER,
) -> Run[Evaluation]:
    """Measure the checkpoint at `path` beside `source`, in the memory of one layer.

    path, source: folders, or ids of repositories on the Hub
    text: UTF-8; by default a short one that is built in
    tokens: of the text, at most; context: of one sequence, BOS included
    dtype: of the arithmetic
    by_class: also with one class of tensors compressed and all others as in the source
    bos: whether sequences begin with BOS; None: as `texts.first_token` says
    """
    _check(tokens, context)
    start = time.perf_counter()
    with open_source(source, source_hub) as originals, open_source(path, hub) as compressed:
        path, source = os.fspath(path), os.fspath(source)
        original, ours, is_equalized = open_both(originals, compressed)
        if is_equalized:
            yield Notice(SCALED)
        check_belong_together(ours, original, path, source)
        with small_files(originals) as folder:
            config = find_config(folder, source)
            tokenizer = find_tokenizer(folder, source)
            skeleton = _skeleton(config, original, source, dtype)
        read = texts.read_text(text or texts.SAMPLE)
        ids = texts.tokens_of(read, tokenizer, tokens, str(text or texts.SAMPLE))
        first = _first(bos, tokenizer, config, source)
        yield from _notices(len(ids), tokens, text)
        used = {name for part in skeleton.used for name in part.tensors}
        variants = {_WHOLE: _taken(ours)} | (_by_class(ours, used) if by_class else {})
        sequences = texts.sequences(ids, context, first)
        texts.check_predicted(sequences)
        with _sentences(source):
            lost = yield from compare(
                skeleton, original, variants, sequences, original.n_bytes.__getitem__
            )
    return Evaluation(
        path=path,
        source=source,
        text=text.name if text else "built in",
        n_tokens=len(ids),
        context=context,
        bos=first,
        dtype=dtype,
        bits_per_weight=bits_per_weight(ours, ours.shapes),
        measures=lost[_WHOLE].measures,
        layers=lost[_WHOLE].layers,
        tensors=tuple(_tensor_errors(lost[_WHOLE], ours)),
        classes=tuple(_classes(lost, ours)),
        seconds=time.perf_counter() - start,
        peak_memory_bytes=peak_memory_bytes(),
    )


def _check(tokens: int, context: int) -> None:
    for name, value in (("--tokens", tokens), ("--context", context)):
        if value < texts.LEAST:
            raise UsageError(f"{name} is {value}", expected=f"at least {texts.LEAST}")


def _skeleton(config: Any, original: Tensors, label: str, dtype: str) -> Skeleton:
    model = build(find_class(config, label), config, DTYPES[dtype])
    if model.base_model is model:
        raise UsageError(
            "Transformers' class for it has no base model and head",
            file=label,
            found=type(model).__name__,
            fix="measure the checkpoint that `tq3 restore` makes with other programs",
        )
    return Skeleton(model, original.shapes)


def _first(bos: bool | None, tokenizer: Any, config: Any, label: str) -> int | None:
    if bos is None:
        return texts.first_token(tokenizer, config)
    if bos and tokenizer.bos_token_id is None:
        raise UsageError("--bos, but the tokenizer has no BOS token", file=label)
    return tokenizer.bos_token_id if bos else None


def _notices(n_tokens: int, wanted: int, text: Path | None) -> Iterator[Notice]:
    if text is None:
        yield Notice(
            f"{n_tokens} tokens of the built-in text, which is of no particular kind: "
            "give one of what the model is for with --text FILE"
        )
    elif n_tokens < wanted:
        yield Notice(f"the text has {n_tokens} tokens, not {wanted}: all are used")
    if n_tokens < _FEW:
        yield Notice(f"{n_tokens} tokens are few: mind the errors of the means")


def _taken(ours: Tensors, label: str | None = None) -> Variant:
    """The tensors of ours; with a label only compressed ones of that class, else the source's."""

    def take(name: str, original: torch.Tensor) -> torch.Tensor:
        is_ours = label is None or (name in ours.layouts and class_of(name) == label)
        return ours(name) if is_ours else original

    return take


def _by_class(ours: Tensors, used: Collection[str]) -> dict[str, Variant]:
    """A variant for each class of which something is compressed that the text goes through."""
    found = {class_of(name) for name in ours.layouts if name in used}
    return {label: _taken(ours, label) for label in LABELS if label in found}


def _tensor_errors(lost: Lost, ours: Tensors) -> Iterator[TensorError]:
    for tensor in lost.tensors:
        if layout := ours.layouts.get(tensor.name):
            yield TensorError(
                name=tensor.name,
                label=class_of(tensor.name),
                bits=layout.bits,
                weights=math.prod(layout.shape),
                error=tensor.relative,
            )


def _classes(lost: Mapping[str, Lost], ours: Tensors) -> Iterator[ClassLost]:
    for label, each in lost.items():
        if label != _WHOLE:
            names = [name for name in ours.shapes if class_of(name) == label]
            compressed = [name for name in names if name in ours.layouts]
            bits = bits_per_weight(ours, names)
            yield ClassLost(label, len(compressed), bits, each.measures)


@contextmanager
def _sentences(label: str) -> Iterator[None]:
    """A weight that is asked for outside of its module is not there: the host says so its way."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        if "meta" not in str(error):
            raise
        raise UsageError(
            "this model's code reads weights of one module in another: it can't go layer by layer",
            file=label,
            found=str(error).partition("\n")[0],
            fix="measure the checkpoint that `tq3 restore` makes with other programs",
        ) from error
