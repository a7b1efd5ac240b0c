"""One model reading one text: how far a quantised body's next token is from the exact one's.

The head is the same for both, which saves most of the work: with z = W h, and m = sum of p W over
the vocabulary, kept once for each token,

    KL(p || q) = ln sum exp z_q - ln sum exp z_p + m . (h_p - h_q)

so that a quantised body needs its own logits only for one sum. tests/quality compares this
with tq3/evaluation/measures.py.

Matrix products take their inputs in bf16 and add in float32, as a server's do (three times as fast
here as float32); what enters the head is rounded to bf16 in both models, so the formula is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

_TOKENS_AT_ONCE = 512
_VOCABULARY_AT_ONCE = 4096  # with 512 tokens 8 MB of logits, which stay in the cache
_WINDOWS_AT_ONCE = 2


@dataclass(frozen=True)
class Reading:
    """One number a token: KL from the exact model in nats, -ln of the text's next token, and
    whether the first choices are the same.  Three (tokens,) float32"""

    divergence: torch.Tensor
    loss: torch.Tensor
    same: torch.Tensor


class Subject:
    """A model in float32 and a text, (windows, context) int64. `cache` keeps the exact reading."""

    def __init__(self, model: PreTrainedModel, windows: torch.Tensor, cache: Path | None = None):
        self.model, self._windows = model, windows
        self._head = model.get_output_embeddings().weight.detach()
        self.linears = {
            f"{name}.weight": module
            for name, module in model.model.named_modules(prefix="model")
            if isinstance(module, torch.nn.Linear)
        }
        self.weights = {name: module.weight.detach() for name, module in self.linears.items()}
        self._targets = windows[:, 1:].flatten()
        if cache is None or not cache.exists():
            self._exact = self._read_exactly()
            if cache is not None:
                torch.save(self._exact, cache)
        else:
            self._exact = torch.load(cache)

    @torch.inference_mode()
    def read(
        self,
        weights: Mapping[str, torch.Tensor],
        embeddings: torch.Tensor | None = None,
        head: torch.Tensor | None = None,
    ) -> Reading:
        """With these weights instead of the linear layers' own; those not named stay exact.

        embeddings, head: (vocabulary, hidden), bf16 values, instead of the model's
        """
        table = self.model.get_input_embeddings()
        exact_table = table.weight
        try:
            for name, weight in weights.items():
                self.linears[name].weight = _parameter(weight)
            if embeddings is not None:
                table.weight = _parameter(embeddings)
            return self.beside(self.hidden(), head)
        finally:
            table.weight = exact_table
            for name in weights:
                self.linears[name].weight = _parameter(self.weights[name])

    @torch.inference_mode()
    def hidden(self) -> torch.Tensor:
        """What the head is given at every token but the last of a window.  (tokens, hidden)"""
        batches = self._windows.split(_WINDOWS_AT_ONCE)
        with _products_of_bf16():
            states = [self.model.model(batch, use_cache=False)[0] for batch in batches]
        return torch.cat([state[:, :-1].flatten(0, 1) for state in states]).bfloat16().float()

    @torch.inference_mode()
    def beside(self, hidden: torch.Tensor, head: torch.Tensor | None = None) -> Reading:
        """Compare with the exact reading.  hidden: (tokens, hidden), bf16 values; head as above"""
        exact = self._exact
        mean_row = exact["mean_row"]
        if head is None:
            head, its_mean_row = self._head, mean_row
        else:
            its_mean_row = self._mean_row(exact["hidden"], exact["log_sum"], head)
        log_sum, first = self._sums_and_firsts(hidden, head)
        shift = (exact["hidden"] * mean_row - hidden * its_mean_row).sum(-1)
        loss = log_sum - (hidden * head[self._targets]).sum(-1)
        same = (first == exact["first"]).float()
        return Reading(log_sum - exact["log_sum"] + shift, loss, same)

    @torch.inference_mode()
    def _read_exactly(self) -> dict[str, torch.Tensor]:
        hidden = self.hidden()
        log_sum, first = self._sums_and_firsts(hidden, self._head)
        return {
            "hidden": hidden,
            "log_sum": log_sum,
            "first": first,
            "mean_row": self._mean_row(hidden, log_sum, self._head),
            "loss": log_sum - (hidden * self._head[self._targets]).sum(-1),
        }

    def _mean_row(
        self, hidden: torch.Tensor, log_sum: torch.Tensor, head: torch.Tensor
    ) -> torch.Tensor:
        """m: rows of `head`, weighted with the exact model's probabilities.  (tokens, hidden)"""
        mean = torch.zeros_like(hidden)
        rows = (each.split(_VOCABULARY_AT_ONCE) for each in (self._head, head))
        for exact, other in zip(*rows, strict=True):
            mean += (hidden @ exact.T - log_sum[:, None]).exp_() @ other
        return mean

    @property
    def exact_loss(self) -> torch.Tensor:
        """-ln of the text's next token by the exact model.  (tokens,) float32"""
        return self._exact["loss"]

    def _sums_and_firsts(
        self, hidden: torch.Tensor, head: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """ln of the sum of exp of all logits, and the token of the largest one, of each token."""
        parts = [_sum_and_first(part, head) for part in hidden.split(_TOKENS_AT_ONCE)]
        sums, firsts = zip(*parts, strict=True)
        return torch.cat(sums), torch.cat(firsts)


def _sum_and_first(hidden: torch.Tensor, head: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    log_sum = torch.full((len(hidden),), -torch.inf)
    largest, first = log_sum.clone(), torch.zeros(len(hidden), dtype=torch.int64)
    for start in range(0, len(head), _VOCABULARY_AT_ONCE):
        with _products_of_bf16():
            logits = hidden @ head[start : start + _VOCABULARY_AT_ONCE].T
        its_largest, its_first = logits.max(-1)
        first = torch.where(its_largest > largest, start + its_first, first)
        largest = torch.maximum(largest, its_largest)
        sums = logits.sub_(its_largest[:, None]).exp_().sum(-1)
        log_sum = torch.logaddexp(log_sum, its_largest + sums.log())
    return log_sum, first


def _parameter(weight: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(weight, requires_grad=False)


@contextmanager
def _products_of_bf16() -> Iterator[None]:
    """Matrix products of float32 take their inputs in bf16, and add in float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
