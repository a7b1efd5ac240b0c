"""From a checkpoint and a text to a file of second moments."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tq3.calibration.collecting import Collected, collect
from tq3.calibration.cost import Cost, cost_of
from tq3.calibration.speaking import load_whole, speak
from tq3.calibration.tokens import (
    DAMPING_OF_RANDOM,
    DAMPING_OF_TEXT,
    RANDOM,
    SELF,
    random_tokens,
    tokens_digest,
)
from tq3.dequantization.source import open_original
from tq3.errors import BadInput, UsageError
from tq3.evaluation import texts
from tq3.evaluation.hosts import find_class, find_config, find_tokenizer, small_files
from tq3.evaluation.skeleton import Skeleton, build
from tq3.evaluation.tensors import Tensors
from tq3.events import Notice, Run
from tq3.format.arguments import of_its_types
from tq3.format.checkpoint import Checkpoint
from tq3.format.files import Source
from tq3.format.options import StrPath
from tq3.format.weight_files import SUFFIX
from tq3.hub.options import HubOptions
from tq3.moments.facts import CALIBRATION_TOKENS, ENOUGH_TOKENS, Facts
from tq3.moments.reading import Moments, is_moments_file, open_moments, source_digest
from tq3.moments.writing import moments_file
from tq3.pipelines.machine import peak_memory_bytes
from tq3.pipelines.opening import FOLDER, open_source

_TOLD = 8  # experts in one sentence
_INSTEAD = "calibrate the unquantised checkpoint that it was made from, or is restored to"


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The figures of a pass.

    n_inputs, n_readers: moments in the file, tensors that read them
    scarce: stack of experts -> how many of them have the mean of all
    """

    path: str
    source: str
    facts: Facts
    n_inputs: int
    n_readers: int
    scarce: dict[str, int]
    n_bytes: int
    seconds: float
    peak_memory_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON."""
        return asdict(self)


@of_its_types
def calibrate(
    source: StrPath,
    out: StrPath,
    *,
    text: str = RANDOM,
    tokens: int = CALIBRATION_TOKENS,
    context: int = 512,
    overwrite: bool = False,
    reuse: bool = False,
    hub: HubOptions = FOLDER,
) -> Run[Calibrated]:
    """Write the second moments of what every matrix of `source` multiplies to the file `out`.

    source: a folder, or the id of a repository on the Hub; out: its name ends in .safetensors
    text: a file in UTF-8, "random" for tokens drawn at random, or "self" for what the model writes,
    for which all its weights must fit into memory
    tokens: how many, at most; context: of one sequence, BOS included
    reuse: take `out` as it is where it is of the same tokens through the same model

    In the memory of one layer; on a CUDA device where there is one. Raises UsageError, BadInput,
    StorageError or NetworkError; then `out` is as it was.
    """
    path = Path(out)
    check_least("--tokens", tokens)
    check_least("--context", context)
    _check_place(path, overwrite or reuse)
    _check_text(text)
    start = time.perf_counter()
    with open_source(source, hub) as opened:
        files, checkpoint = open_original(opened, _INSTEAD)
        original = Tensors(files, checkpoint, {})
        host = _Host(files, os.fspath(source))
        skeleton = host.skeleton(original)
        if reuse and text == SELF and (left := _said(path, checkpoint, tokens, context)):
            yield Notice(f"{path} has the moments of what the model wrote already")
            return _result(path, source, left, {}, start)
        sequences = yield from host.sequences(text, tokens, context)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        n_tokens = sum(some.numel() for some in sequences)
        facts = _facts(files, checkpoint, text, sequences, context)
        if reuse and (left := _left(path, facts)):
            yield Notice(f"{path} has the moments of these {n_tokens} tokens already")
            return _result(path, source, left, {}, start)
        yield from _notices(cost_of(skeleton, n_tokens, device), n_tokens)
        names = [name for part in skeleton.used for name in _inputs(skeleton, part.parameters)]
        readers = [name for part in skeleton.used for name in part.tensors]
        with moments_file(path, names, [*readers, *names]) as file:
            n_bytes = original.n_bytes.__getitem__
            collected = yield from collect(skeleton, original, sequences, file, n_bytes, device)
            file.finish(facts, collected.readers, collected.tokens)
    yield from _scarce(collected)
    with open_moments(path) as made:
        return _result(path, source, made, collected.scarce, start)


def _result(
    path: Path,
    source: StrPath,
    moments: Moments,
    scarce: Mapping[str, Sequence[int]],
    start: float,
) -> Calibrated:
    return Calibrated(
        path=os.fspath(path),
        source=os.fspath(source),
        facts=moments.facts,
        n_inputs=len(moments.tokens),
        n_readers=len(moments.readers),
        scarce={name: len(numbers) for name, numbers in scarce.items()},
        n_bytes=path.stat().st_size,
        seconds=time.perf_counter() - start,
        peak_memory_bytes=peak_memory_bytes(),
    )


def _left(path: Path, facts: Facts) -> Moments | None:
    """What an earlier pass made of the same tokens and model; None where it is of others."""
    left = _open_left(path)
    return left if left and left.facts == facts else None


def _open_left(path: Path) -> Moments | None:
    if not path.is_file():
        return None
    try:
        with open_moments(path) as moments:
            return moments
    except BadInput:
        return None  # cut short, or of another version


def check_least(option: str, tokens: int) -> None:
    """Raise UsageError where an option asks for fewer tokens than a sequence has."""
    if tokens < texts.LEAST:
        raise UsageError(f"{option} is {tokens}", expected=f"at least {texts.LEAST}")


def _check_text(text: str) -> None:
    path = Path(text)
    if text in (RANDOM, SELF) or (path.exists() and not path.is_dir()):
        return
    raise BadInput(
        "a folder" if path.is_dir() else "no such file",
        file=text,
        expected="a plain text, or one of the words random and self",
        fix="name the text to send through the model, or let it be random",
    )


def _check_place(path: Path, overwrite: bool) -> None:
    above = next((folder for folder in path.parents if folder.exists()), path)
    if path.is_dir() or not above.is_dir():
        what = "a folder" if path.is_dir() else f"{above} is no folder"
        raise UsageError(f"no place for a file: {what}", file=path, fix="name another with --out")
    if not is_moments_file(path):
        raise UsageError(
            "not a name of moments, by which `tq3 compress --calibrate` knows them from a text",
            file=path,
            expected=f"one that ends in {SUFFIX}",
            fix=f"name it {path.with_suffix(SUFFIX).name}",
        )
    if path.exists() and not overwrite:
        raise UsageError("the file is there", file=path, fix="name another, or --overwrite")


class _Host:
    """What Transformers makes of a checkpoint's small files."""

    def __init__(self, files: Source, label: str) -> None:
        self._label, self._folder = label, files.folder
        with small_files(files) as folder:
            self._config = find_config(folder, label)
            self._tokenizer = find_tokenizer(folder, label)
        self._class = find_class(self._config, label)
        # Experts one after the other: others gather them into matrices that can't be told apart.
        self._config._experts_implementation = "eager"
        self._first = texts.first_token(self._tokenizer, self._config)

    def skeleton(self, original: Tensors) -> Skeleton:
        """The model without weights. Raises UsageError for one that can't go layer by layer."""
        model = build(self._class, self._config, torch.float32)
        if model.base_model is model:
            raise UsageError(
                "Transformers' class for it has no base model and head",
                file=self._label,
                found=type(model).__name__,
                fix="compress without --calibrate",
            )
        return Skeleton(model, original.shapes)

    def sequences(self, text: str, tokens: int, context: int) -> Run[list[torch.Tensor]]:
        """(sequences, context) int64, and perhaps a shorter rest."""
        if text == SELF:
            yield Notice("the model writes the text; all its weights are in memory")
            model = load_whole(self._class, self._folder, self._label)
            first = self._tokenizer.eos_token_id if self._first is None else self._first
            spoken = yield from speak(model, first or 0, _n_spoken(tokens, context), context)
            return [spoken]
        if text == RANDOM:
            ids = random_tokens(self._tokenizer, tokens)
        else:
            ids = texts.tokens_of(texts.read_text(Path(text)), self._tokenizer, tokens, text)
        return texts.sequences(ids, context, self._first)


def _n_spoken(tokens: int, context: int) -> int:
    return max(1, tokens // context)


def _said(path: Path, checkpoint: Checkpoint, tokens: int, context: int) -> Moments | None:
    """What an earlier pass made of the model's own text, which then need not be written again."""
    left = _open_left(path)
    wanted = SELF, _n_spoken(tokens, context) * context, context, source_digest(checkpoint)
    facts = left and left.facts
    is_same = facts and (facts.text, facts.tokens, facts.context, facts.source) == wanted
    return left if is_same else None


def _facts(
    files: Source,
    checkpoint: Checkpoint,
    text: str,
    sequences: list[torch.Tensor],
    context: int,
) -> Facts:
    return Facts(
        text=text if text in (RANDOM, SELF) else Path(text).name,
        tokens=sum(some.numel() for some in sequences),
        context=context,
        digest=tokens_digest(sequences),
        damping=DAMPING_OF_RANDOM if text == RANDOM else DAMPING_OF_TEXT,
        model=files.origin.model,
        revision=files.origin.revision,
        source=source_digest(checkpoint),
    )


def _inputs(skeleton: Skeleton, parameters: tuple[str, ...]) -> Iterator[str]:
    """Every name that moments of these parameters may get."""
    for name in parameters:
        shape = skeleton.parameter(name).shape
        if len(shape) == 2:
            yield name
        elif len(shape) == 3:
            yield from (f"{name}.{number}" for number in (*range(shape[0]), "mean"))


def _notices(cost: Cost, n_tokens: int) -> Iterator[Notice]:
    yield Notice(str(cost))
    if n_tokens < ENOUGH_TOKENS:
        yield Notice(
            f"{n_tokens} tokens are few: moments of fewer than {ENOUGH_TOKENS} are damped in "
            f"proportion, here {ENOUGH_TOKENS / n_tokens:.3g} times as much"
        )


def _scarce(collected: Collected) -> Iterator[Notice]:
    for name, numbers in collected.scarce.items():
        some = ", ".join(map(str, numbers[:_TOLD])) + (", ..." if len(numbers) > _TOLD else "")
        yield Notice(f"{name}: {len(numbers)} experts saw few tokens, and take their mean: {some}")
