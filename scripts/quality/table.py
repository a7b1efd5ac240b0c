"""The figures of the picture as a Markdown table: a row for each way, a column for each text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

_SHORT = {"float32": "F32", "float16": "F16"}


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """rows: as `curve.measure` gives them"""
    models, texts = (tuple(dict.fromkeys(row[key] for row in rows)) for key in ("model", "text"))
    return "\n".join(line for model in models for line in _table(rows, model, texts)) + "\n"


def _table(rows: Sequence[dict[str, Any]], model: str, texts: Sequence[str]) -> Iterator[str]:
    kl = {(row["label"], row["text"]): row for row in rows if row["model"] == model}
    ways = {row["label"]: row for row in rows if row["model"] == model}
    columns = (f"KL, {text}" for text in texts)
    yield f"## {model}\n"
    yield f"| bits | family | way | error | {' | '.join(columns)} |"
    yield "| --- " * (4 + len(texts)) + "|"
    for label, way in sorted(ways.items(), key=lambda item: (item[1]["bits"], item[0])):
        figures = " | ".join(_with_error(kl[label, text]) for text in texts)
        name = _name(label)
        yield f"| {way['bits']:.3f} | {way['family']} | {name} | {way['error']:.4f} | {figures} |"
    yield ""


def _with_error(row: dict[str, Any]) -> str:
    return f"{row['kl']:.3f} ± {row['kl_error']:.3f}"


def _name(label: str) -> str:
    """What the family doesn't say: 3 bits of `uniform Format(bits=3, ...)`."""
    if label.startswith("uniform "):
        return f"{label.partition('bits=')[2][0]} bits everywhere"
    return label.rpartition(", ")[2]
