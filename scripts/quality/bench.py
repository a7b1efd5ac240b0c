"""Models times texts times ways to write: every figure is made once and kept in a folder.

`Bench.reading` is the only way from a configuration to a figure, so that all experiments read the
same tokens of the same models.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel

from quality import models, texts
from quality.ours import Coded, Way
from quality.subject import Reading, Subject


@dataclass(frozen=True)
class Figure:
    """One configuration on one text.

    bits: of those weights that it codes, on average; n_weights: their number
    error: their mean relative squared error, each matrix counted by its weights
    """

    bits: float
    n_weights: int
    error: float
    reading: Reading

    def __str__(self) -> str:
        return f"{self.bits:.4f} bits, error {self.error:.5f}, KL {self.kl:.4f}"

    @property
    def kl(self) -> float:
        return float(self.reading.divergence.double().mean())

    @property
    def kl_error(self) -> float:
        """One standard error, as if tokens were independent."""
        return standard_error(self.reading.divergence)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def relative_error(exact: Mapping[str, torch.Tensor], coded: Mapping[str, torch.Tensor]) -> float:
    """Mean over matrices of |w - w'|^2 / |w|^2, each counted by its weights."""
    total = 0.0
    for name, weight in coded.items():
        total += float(((weight - exact[name]).norm() / exact[name].norm()) ** 2) * weight.numel()
    return total / max(1, sum(weight.numel() for weight in coded.values()))


def standard_error(values: torch.Tensor) -> float:
    return float(values.double().std() / len(values) ** 0.5)


class Bench:
    """work: a folder that keeps models, texts and figures; n_tokens: of each text."""

    def __init__(self, work: Path, n_tokens: int = 4096):
        self.work, self._n_tokens = work, n_tokens

    def figures(self, model: str, label: str, way: Way, names: Sequence[str]) -> dict[str, Figure]:
        """By text. `label` names the way: what the folder has under its label isn't made again."""
        files = {text: self._folder(model, text) / f"{label}.pt" for text in names}
        missing = [text for text, file in files.items() if not file.exists()]
        if missing:
            started = time.time()
            coded = self._coded(model, missing[0], way)
            bits = sum(each.bits for each in coded.values())
            weights = {name: each.weight for name, each in coded.items()}
            for text in missing:
                subject = self.subject(model, text)
                n_weights = sum(subject.weights[name].numel() for name in weights)
                error = relative_error(subject.weights, weights)
                figure = Figure(bits / max(n_weights, 1), n_weights, error, subject.read(weights))
                torch.save(figure, files[text])
                say(f"{model}, {text}, {label}: {figure}, {time.time() - started:.0f} s")
        return {text: torch.load(file, weights_only=False) for text, file in files.items()}

    def n_weights(self, model: str) -> int:
        """Of all linear layers."""
        weights = self.subject(model, texts.TUNING).weights
        return sum(weight.numel() for weight in weights.values())

    def n_layers(self, model: str) -> int:
        return int(self._model(model).config.num_hidden_layers)

    def folder(self, model: str) -> Path:
        """The model's checkpoint."""
        return models.folder_of(model, self.work)

    def _coded(self, model: str, text: str, way: Way) -> dict[str, Coded]:
        weights = self.subject(model, text).weights
        coded = {name: way(name, weight) for name, weight in weights.items()}
        return {name: each for name, each in coded.items() if each is not None}

    @cache  # noqa: B019  a bench lives as long as the program
    def subject(self, model: str, text: str) -> Subject:
        folder = self.folder(model)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        is_gemma = model.startswith("gemma")
        windows = texts.windows(text, tokenizer, self.work, self._n_tokens, is_gemma)
        return Subject(self._model(model), windows, self._folder(model, text) / "exact.pt")

    @cache  # noqa: B019
    def _model(self, model: str) -> PreTrainedModel:
        return models.load(self.folder(model))

    def _folder(self, model: str, text: str) -> Path:
        folder = self.work / "figures" / model / f"{text}-{self._n_tokens}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder
