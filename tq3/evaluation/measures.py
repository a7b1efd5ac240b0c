"""What one model's logits say beside another's: perplexity, KL divergence, agreement.

Logits come in chunks of tokens; one number a token is kept of each, so that tokens x vocabulary
is never in memory whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tq3.errors import BadInput

TAIL = 0.999
# Elements of the float64 arrays at work: 4 MB each, of which there are about six.
_CHUNK_ELEMENTS = 1 << 19
_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True, slots=True)
class Measures:
    """Two models on the same tokens. p: the source's distribution of the next token, q: ours.

    n_tokens: how many were predicted
    source_perplexity, perplexity: exp(mean of -ln p(t)), exp(mean of -ln q(t)); t: what follows
    kl: mean of KL(p || q) = sum of p (ln p - ln q) over the vocabulary, in nats a token
    kl_tail: what one token in a thousand exceeds, the 99.9th percentile; of fewer than a thousand
    tokens it says little
    agreement: share of tokens at which both models have the same first choice, 0 to 1

    *_error: one standard error, as if tokens were independent. Those of one text are not quite:
    take it for the least that it is.
    """

    n_tokens: int
    source_perplexity: float
    source_perplexity_error: float
    perplexity: float
    perplexity_error: float
    kl: float
    kl_error: float
    kl_tail: float
    agreement: float
    agreement_error: float


class Beside:
    """Takes the logits of both models for some tokens after others, in any order and portions.

    divergences: KL(p || q) of each token so far, (tokens,) float64, in nats
    """

    def __init__(self) -> None:
        self._parts: list[torch.Tensor] = []  # each (4, tokens) float64

    def add(self, source: torch.Tensor, ours: torch.Tensor, targets: torch.Tensor) -> None:
        """source, ours: (tokens, vocabulary) logits in any float type, on any one device.

        targets: (tokens,) int64, the token that follows each in the text. Raises ValueError for
        other shapes, BadInput for logits that are NaN.
        """
        if source.shape != ours.shape or source.shape[:1] != targets.shape:
            shapes = [list(each.shape) for each in (source, ours, targets)]
            raise ValueError(f"logits and targets do not fit: {shapes}")
        rows = max(1, _CHUNK_ELEMENTS // max(source.shape[-1], 1))
        for chunk in zip(*(each.split(rows) for each in (source, ours, targets)), strict=True):
            self._parts.append(_of_each_token(*chunk).cpu())

    @property
    def divergences(self) -> torch.Tensor:
        return self._all()[2]

    def measures(self) -> Measures:
        """The figures of all that was added. Raises ValueError for fewer than two tokens."""
        source, ours, divergences, same = self._all()
        if len(same) < 2:
            raise ValueError(f"{len(same)} tokens have no mean with an error")
        perplexities = [_perplexity(each) for each in (source, ours)]
        kl, agreement = _mean(divergences), _mean(same)
        return Measures(
            len(same), *perplexities[0], *perplexities[1], *kl, percentile(divergences), *agreement
        )

    def _all(self) -> torch.Tensor:
        empty = torch.empty(4, 0, dtype=torch.float64)
        return torch.cat(self._parts, 1) if self._parts else empty


def percentile(values: torch.Tensor, share: float = TAIL) -> float:
    """The value that `share` of all are not above, interpolated between neighbours. (n,), n > 0"""
    ordered = values.sort().values
    place = share * (len(ordered) - 1)
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    return float(torch.lerp(below, above, place - math.floor(place)))


def _of_each_token(source: torch.Tensor, ours: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Rows: -ln p(t), -ln q(t), KL(p || q), whether the first choices are one.  (4, tokens)

    In float64: KL of a good model is a small difference of large sums.
    """
    ln_p, ln_q = (logits.double().log_softmax(-1) for logits in (source, ours))
    likelihoods = [-each.gather(-1, targets[:, None])[:, 0] for each in (ln_p, ln_q)]
    # 0 ln 0 is 0: some models forbid tokens by logits of -inf.
    terms = torch.where(ln_p == -math.inf, 0.0, ln_p.exp() * (ln_p - ln_q))
    same = source.argmax(-1) == ours.argmax(-1)
    found = torch.stack([*likelihoods, terms.sum(-1), same.double()])
    for name, losses in zip(("the source", "the checkpoint"), found, strict=False):
        if losses.isnan().any():
            raise BadInput(f"logits of {name} are NaN", fix="try --dtype float32, or tq3 verify")
    return found


def _perplexity(losses: torch.Tensor) -> tuple[float, float]:
    mean, error = _mean(losses)
    perplexity = math.exp(mean) if mean < _LARGEST_EXPONENT else math.inf
    return perplexity, perplexity * error


def _mean(values: torch.Tensor) -> tuple[float, float]:
    """Mean and standard error."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))
