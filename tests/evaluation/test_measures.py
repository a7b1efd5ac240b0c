"""The measures of one model's logits beside another's, compared with their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tq3.errors import BadInput
from tq3.evaluation import measures
from tq3.evaluation.measures import Beside, percentile

TOKENS, VOCABULARY = 300, 97


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    source = 3 * torch.randn(TOKENS, VOCABULARY, generator=generator)
    ours = source + 0.3 * torch.randn(TOKENS, VOCABULARY, generator=generator)
    return source, ours, torch.randint(VOCABULARY, (TOKENS,), generator=generator)


def softmax(logits: torch.Tensor) -> np.ndarray:
    """By the formula, which is exact enough for small logits."""
    powers = np.exp(logits.numpy().astype(np.float64))
    return powers / powers.sum(-1, keepdims=True)


def added(*portions: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> Beside:
    beside = Beside()
    for portion in portions:
        beside.add(*portion)
    return beside


def test_all_figures_are_those_of_their_formulas(logits):
    source, ours, targets = logits
    p, q = softmax(source), softmax(ours)
    found = added(logits).measures()
    rows = np.arange(TOKENS)
    losses = -np.log(q[rows, targets.numpy()])
    divergences = (p * np.log(p / q)).sum(-1)
    same = p.argmax(-1) == q.argmax(-1)

    assert found.n_tokens == TOKENS
    assert found.perplexity == pytest.approx(np.exp(losses.mean()), rel=1e-12)
    assert found.source_perplexity == pytest.approx(
        np.exp(-np.log(p[rows, targets.numpy()]).mean()), rel=1e-12
    )
    assert found.kl == pytest.approx(divergences.mean(), rel=1e-12)
    assert found.kl_tail == pytest.approx(np.quantile(divergences, 0.999), rel=1e-12)
    assert found.agreement == same.mean()
    root = math.sqrt(TOKENS)
    assert found.kl_error == pytest.approx(divergences.std(ddof=1) / root, rel=1e-12)
    assert found.agreement_error == pytest.approx(same.std(ddof=1) / root, rel=1e-12)
    assert found.perplexity_error == pytest.approx(
        found.perplexity * losses.std(ddof=1) / root, rel=1e-12
    )


def test_portions_and_chunks_change_nothing(logits, monkeypatch):
    whole = added(logits).measures()
    monkeypatch.setattr(measures, "_CHUNK_ELEMENTS", 5 * VOCABULARY)
    portions = zip(*(each.split((1, 100, 199)) for each in logits), strict=True)
    assert added(*portions).measures() == whole


def test_a_model_beside_itself_loses_nothing(logits):
    source, _, targets = logits
    found = added((source, source, targets)).measures()
    assert (found.kl, found.kl_tail, found.agreement) == (0, 0, 1)
    assert found.perplexity == found.source_perplexity


def test_a_small_divergence_of_bf16_logits_is_exact(logits):
    """In float32 the sum is off in its fifth digit."""
    source, _, targets = logits
    ours = source.bfloat16()
    ours[:, 0] += ours[:, 0].abs() * 2**-7  # the next bfloat16
    exact = (softmax(source.bfloat16().float()), softmax(ours.float()))
    wanted = (exact[0] * np.log(exact[0] / exact[1])).sum(-1).mean()
    found = added((source.bfloat16(), ours, targets)).measures().kl
    assert 0 < wanted < 1e-3
    assert found == pytest.approx(wanted, rel=1e-9)


def test_a_token_that_the_source_forbids_costs_nothing_and_one_that_only_we_forbid_everything(
    logits,
):
    source, ours, targets = logits
    source[:, 5], ours[:, 5], targets[:] = -math.inf, -math.inf, 0
    assert added((source, ours, targets)).measures().kl < math.inf
    ours[:, 6] = -math.inf
    assert added((source, ours, targets)).measures().kl == math.inf


def test_divergences_are_kept_in_the_order_of_the_tokens(logits):
    source, ours, targets = logits
    both = added(*((source[a:b], ours[a:b], targets[a:b]) for a, b in ((0, 40), (40, TOKENS))))
    for token in (0, 39, 40, 299):
        pair = slice(token, token + 1)
        (alone,) = added((source[pair], ours[pair], targets[pair])).divergences
        assert both.divergences[token] == pytest.approx(float(alone), rel=1e-12)


def test_nan_is_an_error_that_says_whose_it_is(logits):
    source, ours, targets = logits
    ours[7, 3] = math.nan
    with pytest.raises(BadInput, match="logits of the checkpoint are NaN"):
        added((source, ours, targets))


def test_shapes_that_do_not_fit_and_a_single_token_are_refused(logits):
    source, ours, targets = logits
    with pytest.raises(ValueError, match="do not fit"):
        added((source, ours[:, 1:], targets))
    with pytest.raises(ValueError, match="do not fit"):
        added((source, ours, targets[1:]))
    with pytest.raises(ValueError, match="1 tokens"):
        added((source[:1], ours[:1], targets[:1])).measures()


@pytest.mark.parametrize("n", [1, 2, 10, 999, 1000, 1001, 2001])
def test_the_percentile_is_that_of_numpy(n):
    values = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    assert percentile(values) == pytest.approx(np.quantile(values.numpy(), 0.999), rel=1e-12)
