"""tq3_eval.json: what `tq3 eval --save` measured of a checkpoint, as its card shows it.

The manifest does not list the file: a checkpoint is measured after it was written. So the file
names the checkpoint by the manifest's checksum, and figures of other weights are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from tq3.errors import BadInput
from tq3.format import manifest
from tq3.format.files import Files, read_object, read_text

FILE_NAME = "tq3_eval.json"
_AGAIN = "measure again with `tq3 eval --save`, or take the file away"
# Keys of an evaluation that are kept: neither paths, nor what fills pages.
_KEYS = ("text", "n_tokens", "context", "bos", "dtype", "bits_per_weight", "measures")


def fingerprint(files: Files) -> str | None:
    """Checksum of the checkpoint's manifest; None for a folder without one."""
    if not files.has(manifest.FILE_NAME):
        return None
    return manifest.digest(read_text(files, manifest.FILE_NAME).encode())


def quality_text(evaluation: Mapping[str, Any], checkpoint: str | None) -> str:
    """The file's text.

    evaluation: `Evaluation.to_dict()`; checkpoint: `fingerprint` of what was measured
    """
    kept = {key: evaluation[key] for key in _KEYS}
    return json.dumps({"checkpoint": checkpoint, **kept}, indent=2) + "\n"


def read_quality(files: Files) -> dict[str, Any] | None:
    """The object in the file, None where nobody measured. Raises BadInput for other weights'."""
    if not files.has(FILE_NAME):
        return None
    figures = read_object(files, FILE_NAME)
    if figures.get("checkpoint") != fingerprint(files):
        raise BadInput(
            "the figures of other weights than those of this folder",
            file=FILE_NAME,
            fix=_AGAIN,
        )
    return figures


def quality_rows(measures: Any) -> Iterator[tuple[str, str, str]]:
    """Name, the source's figure and ours, of the `measures` of an evaluation. Raises BadInput."""
    found = measures if isinstance(measures, dict) else {}
    source, ours = (_number(found, key) for key in ("source_perplexity", "perplexity"))
    yield "perplexity", f"{source:.3f}", f"{ours:.3f} ± {_number(found, 'perplexity_error'):.3f}"
    kl, error = _number(found, "kl"), _number(found, "kl_error")
    yield "KL divergence from the source, nats a token", "", f"{kl:.4f} ± {error:.4f}"
    same, error = _number(found, "agreement"), _number(found, "agreement_error")
    yield "tokens with the source's first choice", "", f"{same:.1%} ± {error:.1%}"


def _number(measures: Mapping[str, Any], key: str) -> float:
    value = measures.get(key)
    # What was infinite is null in JSON.
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise BadInput(
            f"{key} is no figure",
            file=FILE_NAME,
            found=value,
            fix=_AGAIN,
        )
    return float(value)
