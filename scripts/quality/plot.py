"""The picture: KL over bits a weight, a panel for each model and text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Family: colour, marker, line. Chosen widths are joined, and drawn over the others.
STYLES = {
    "published encoder": ("#888888", "x", ""),
    "tq3, F32 norms of 128": ("#6fa8dc", "o", ""),
    "tq3, by hand": ("#6fa8dc", "P", ""),
    "tq3, F16 norms of 128": ("#1f5f9e", "o", "-"),
    "tq3, F16 norms of 64": ("#0b2a4a", "o", "-"),
    "tq3 --equalize, F32 norms of 128": ("#c39bd3", "v", ""),
    "tq3 --equalize, F16 norms of 128": ("#8e44ad", "v", "-"),
    "tq3 --equalize, F16 norms of 64": ("#4a235a", "v", "-"),
    "llama.cpp, one type": ("#d9822b", "s", ""),
    "llama.cpp, mix": ("#a3360f", "D", ""),
    "HIGGS": ("#4a9a4a", "^", ""),
}
LEAST_BITS, MOST_BITS = 3.0, 4.7
TICKS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)


def draw(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """rows: as `curve.measure` gives them; out: an SVG file, the same bytes for the same rows."""
    mpl.rcParams["svg.hashsalt"] = "tq3"
    models, texts = (tuple(dict.fromkeys(row[key] for row in rows)) for key in ("model", "text"))
    figure = Figure(figsize=(11, 4.2 * len(texts)), layout="constrained")
    panels = figure.subplots(len(texts), len(models), squeeze=False)
    for text, line in zip(texts, panels, strict=True):
        for model, axes in zip(models, line, strict=True):
            _panel(axes, [row for row in rows if (row["model"], row["text"]) == (model, text)])
            axes.set_title(f"{model}, {text}")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(out, metadata={"Date": None})


def _panel(axes: Axes, rows: Iterable[dict[str, Any]]) -> None:
    rows = [row for row in rows if row["bits"] <= MOST_BITS]
    for family, (colour, marker, line) in STYLES.items():
        chosen = sorted((row["bits"], row["kl"], row) for row in rows if row["family"] == family)
        bits, kl = [each[0] for each in chosen], [each[1] for each in chosen]
        axes.plot(bits, kl, marker + line, color=colour, label=family, zorder=2 + bool(line), ms=5)
        for x, y, row in chosen if not line else ():
            axes.annotate(_short(row), (x, y), xytext=(4, 4), textcoords="offset points", size=7)
    axes.set(yscale="log", xlabel="bits a weight, scales counted", ylabel="KL, nats a token")
    axes.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.minorticks_off()
    axes.set_xlim(LEAST_BITS, MOST_BITS)
    axes.grid(visible=True, alpha=0.2)


def _short(row: dict[str, Any]) -> str:
    label = str(row["label"])
    if label.startswith("uniform "):
        return f"{int(row['bits'])} bits"
    if label.startswith("equalized, "):
        return label.rpartition(", ")[2]
    return label.removeprefix("mix ").removeprefix("by hand, ").removesuffix(" bits")
