"""Which norm should a searched group store: the one of the smallest error, or a larger one?

Least squares makes every weight smaller by half of its relative squared error. The other two rules
don't, at a larger error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from quality.bench import Bench, standard_error
from quality.models import TWINS
from quality.ours import RULES, Format, everywhere
from quality.texts import ASIDE, TUNING

TEXTS = (TUNING, ASIDE)


def measure(bench: Bench) -> list[dict[str, Any]]:
    """A row for each model, width and text; differences are token by token from least squares."""
    return [row for model in TWINS for bits in (3, 4) for row in _rows(bench, model, bits)]


def _rows(bench: Bench, model: str, bits: int) -> Iterator[dict[str, Any]]:
    formats = {"norm": Format(bits, scale="norm")}
    formats |= {rule: Format(bits, rule=rule) for rule in RULES}
    by_rule = {
        rule: bench.figures(model, f"uniform {each}", everywhere(each), TEXTS)
        for rule, each in formats.items()
    }
    for text in TEXTS:
        base = by_rule["least squares"][text].reading.divergence
        row: dict[str, Any] = {"model": model, "text": text, "bits": bits}
        for rule, figures in by_rule.items():
            difference = figures[text].reading.divergence - base
            row[rule] = {
                "kl": figures[text].kl,
                "kl_error": figures[text].kl_error,
                "difference": float(difference.mean()),
                "difference_error": standard_error(difference),
            }
        yield row
