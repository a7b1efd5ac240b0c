"""What 4 bits cost in the embeddings and in the output head, which these models tie.

The matrix is written once; it is read in one place or in both, all else exact.
"""

from __future__ import annotations

import json
from typing import Any

from quality.bench import Bench, relative_error, standard_error
from quality.models import TWINS
from quality.ours import Format
from quality.texts import TUNING

PLACES = {"embeddings": (True, False), "head": (False, True), "both": (True, True)}


def measure(bench: Bench, bits: tuple[int, ...] = (4,)) -> list[dict[str, Any]]:
    """A row for each model and width: KL by place, and alpha = KL / t^2."""
    return [_row(bench, model, each) for model in TWINS for each in bits]


def _row(bench: Bench, model: str, bits: int) -> dict[str, Any]:
    kept = bench.work / "figures" / f"{model} head {bits}.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    subject = bench.subject(model, TUNING)
    exact = subject.model.get_input_embeddings().weight.detach()
    written = Format(bits).code(exact).weight.bfloat16().float()
    error = relative_error({"it": exact}, {"it": written})
    row: dict[str, Any] = {"model": model, "bits": bits, "error": error}
    for place, (embeddings, head) in PLACES.items():
        reading = subject.read({}, written if embeddings else None, written if head else None)
        kl, kl_error = float(reading.divergence.mean()), standard_error(reading.divergence)
        row[place] = {"kl": kl, "kl_error": kl_error, "alpha": kl / error}
    kept.write_text(json.dumps(row))
    return row
