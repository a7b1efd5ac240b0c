"""One picture of an evaluation: KL divergence by class of tensors, errors by layer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tq3.errors import UsageError
from tq3.evaluation.result import Evaluation

FORMATS = (".pdf", ".png", ".svg")
_WIDTH, _LAYERS_HEIGHT, _BAR_HEIGHT, _REST = 8.0, 3.4, 0.34, 1.3
# Distinct in print and for eyes that mix up red and green.
_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#666666"


def check_file(path: Path) -> None:
    """Raise UsageError for a name that can't be drawn to, before hours of work."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            "what kind of picture is it?",
            file=path,
            found=path.suffix or "a name without an ending",
            expected=", ".join(FORMATS),
        )
    if not path.parent.is_dir() or path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(
            "the picture can't be written there",
            file=path,
            expected="a file in a folder that exists and may be written to",
        )


def draw(evaluation: Evaluation, path: Path) -> None:
    """Write the picture; without classes the layers alone. OSError as it comes."""
    bars = _REST + _BAR_HEIGHT * (len(evaluation.classes) + 1) if evaluation.classes else 0.0
    figure = Figure(figsize=(_WIDTH, bars + _LAYERS_HEIGHT + 0.6), layout="constrained")
    figure.suptitle(_title(evaluation), fontsize=11)
    if evaluation.classes:
        ratios = [bars, _LAYERS_HEIGHT]
        above, below = figure.subplots(2, 1, gridspec_kw={"height_ratios": ratios})
        _draw_classes(above, evaluation)
        _draw_layers(below, evaluation)
    else:
        _draw_layers(figure.subplots(), evaluation)
    figure.savefig(path, dpi=150)


def _title(e: Evaluation) -> str:
    name = Path(e.path).name or e.path
    lost = f"KL {e.measures.kl:.3f} ± {e.measures.kl_error:.3f} nats a token"
    return f"{name}, {e.bits_per_weight:.2f} bits a weight: {lost}, {e.measures.n_tokens:,} tokens"


def _draw_classes(axes: Any, e: Evaluation) -> None:
    ordered = sorted(e.classes, key=lambda each: each.measures.kl)
    names = [f"{each.label} ({each.bits_per_weight:.2f} bits)" for each in ordered]
    names.append("all of them")
    values = [each.measures.kl for each in ordered] + [e.measures.kl]
    errors = [each.measures.kl_error for each in ordered] + [e.measures.kl_error]
    colours = [_BLUE] * len(ordered) + [_GREY]
    axes.barh(names, values, xerr=errors, color=colours, height=0.65, error_kw={"elinewidth": 1})
    for i, (value, error) in enumerate(zip(values, errors, strict=True)):
        axes.annotate(
            f"{value:.3g}",
            (value + error, i),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.set_title("KL divergence with only this class compressed", loc="left", fontsize=10)
    axes.set_xlabel("nats a token")
    _tidy(axes)


def _draw_layers(axes: Any, e: Evaluation) -> None:
    numbers = range(len(e.layers))
    for kind, label, colour in (
        ("hidden", "hidden states after the layer", _ORANGE),
        ("weights", "weights of the layer", _BLUE),
    ):
        values = [getattr(layer, kind) for layer in e.layers]
        axes.plot(numbers, values, marker="o", markersize=3, color=colour, label=label)
    axes.set_ylim(bottom=0)
    axes.set_title("Relative squared error by layer", loc="left", fontsize=10)
    axes.set_xlabel("layer")
    axes.set_ylabel("‖ours − source‖² / ‖source‖²")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9)
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
