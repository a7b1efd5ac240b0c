"""The tables that eval ends with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table

from tq3.cli.cells import add, columns, facts
from tq3.units import count, counted, duration, size

if TYPE_CHECKING:
    from tq3.evaluation.result import Evaluation

# Of a deep model as many layers as fit on a screen: evenly spaced, and those that add most.
_SPACED = 10
_WORST_LAYERS = 3
_WORST_TENSORS = 5


def of_evaluation(e: Evaluation) -> Iterator[Table]:
    """The figures, then classes, layers, and the tensors that lost most."""
    yield _figures(e)
    if e.classes:
        yield _classes(e)
    if e.layers:
        yield _layers(e)
    if e.tensors:
        yield _tensors(e)


def _figures(e: Evaluation) -> Table:
    table, m = facts(), e.measures
    add(table, "checkpoint", f"{e.path}, {e.bits_per_weight:.2f} bits a weight")
    add(table, "source", e.source)
    begins = "" if e.bos is None else f", each begins with token {e.bos}"
    tokens = f"{count(e.n_tokens)} tokens in sequences of {e.context}"
    add(table, "text", f"{e.text}: {tokens}{begins}")
    pair = (
        f"source {m.source_perplexity:.3f} ± {m.source_perplexity_error:.3f}",
        f"compressed {m.perplexity:.3f} ± {m.perplexity_error:.3f}",
    )
    add(table, "perplexity", ", ".join(pair))
    tail = f"one token in a thousand above {m.kl_tail:.2f}"
    add(table, "KL divergence", f"{m.kl:.4f} ± {m.kl_error:.4f} nats a token, {tail}")
    add(table, "same first choice", f"{m.agreement:.1%} ± {m.agreement_error:.1%} of tokens")
    add(table, "time", f"{duration(e.seconds)}, computed in {e.dtype}")
    add(table, "peak memory", size(e.peak_memory_bytes))
    return table


def _classes(e: Evaluation) -> Table:
    head = ("compressed", "bits a weight", "KL", "99.9 %", "same first choice")
    table = columns("only this class compressed", *head)
    for line in e.classes:
        m = line.measures
        add(
            table,
            line.label,
            counted(line.n_compressed, "tensor"),
            f"{line.bits_per_weight:.2f}",
            f"{m.kl:.4f} ± {m.kl_error:.4f}",
            f"{m.kl_tail:.2f}",
            f"{m.agreement:.1%}",
        )
    return table


def _layers(e: Evaluation) -> Table:
    """Relative squared errors; what a layer adds is its own doing."""
    before = [0.0, *(layer.hidden for layer in e.layers)]
    added = [layer.hidden - last for layer, last in zip(e.layers, before, strict=False)]
    shown = _shown(added)
    title = "layer" if len(shown) == len(added) else f"layer ({len(shown)} of {len(added)})"
    table = columns(title, "weights lost", "states lost", "added here")
    for i in shown:
        layer = e.layers[i]
        add(table, layer.name, f"{layer.weights:.4f}", f"{layer.hidden:.4f}", f"{added[i]:+.4f}")
    return table


def _shown(added: list[float]) -> list[int]:
    last = len(added) - 1
    spaced = {round(i * last / (_SPACED - 1)) for i in range(_SPACED)}
    worst = sorted(range(len(added)), key=lambda i: -added[i])[:_WORST_LAYERS]
    return sorted(spaced | set(worst))


def _tensors(e: Evaluation) -> Table:
    table = columns("largest errors of weights", "class", "bits", "error")
    for tensor in e.worst_tensors(_WORST_TENSORS):
        add(table, tensor.name, tensor.label, str(tensor.bits), f"{tensor.error:.4f}")
    return table
