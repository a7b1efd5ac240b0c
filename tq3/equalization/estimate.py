"""The factors of equalized columns, from weights alone: one pass over the layers, in their order.

A rotation spreads a group's error evenly over its columns. With factors d on the columns, w and a
the sizes (root mean squares) of a column's weights and of what it multiplies, the loss grows as
mean(w^2 d^2) * mean(a^2 / d^2), which is least where d^2 = a / w. Sizes a are estimated by sending
means and variances through the model, channels taken as independent, from the embeddings on:
attention as an average of values, the state of linear attention as its norm leaves it, experts as
their average. docs/quality.md has what this is worth.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import cast

import numpy as np

from tq3.equalization.channels import LayerTensors, Mlp
from tq3.equalization.column_stats import (
    ColumnStats,
    MatrixInput,
    Numbers,
    Signal,
    measure_columns,
    read_vector,
    read_words,
)
from tq3.equalization.scaled_source import storable
from tq3.equalization.scalings import Scalings
from tq3.events import Progress, Run
from tq3.format.checkpoint import Checkpoint
from tq3.format.equalization import LARGEST, STEPS
from tq3.format.files import Source

# d = a**A / w**(1 - A). Half would be best if sizes were known, not estimated.
_SHARE = 0.4
# Of a value's variance over tokens, what is left in an average over tokens.
_ATTENDED = 0.3
# Channels are not independent: what they add up to varies so many times more than if they were.
_TOGETHER = 4.0
# Sizes below this part of the usual one are taken for it: channels that are dead.
_LEAST = 1e-3
# Nodes at which activation functions are averaged, as multiples of the standard deviation.
_NODES = np.linspace(-3.5, 3.5, 41)
# What a NaN of the source gives is no number: a factor of 1, and told by whoever encodes it.
_QUIET = np.errstate(all="ignore")


def estimate_factors(
    files: Source, checkpoint: Checkpoint, scalings: Scalings, workers: int
) -> Run[dict[str, bytes]]:
    """Factors for the checkpoint: link -> exponents, as tq_config.json records them.

    scalings: as `plan_scalings` makes them of the checkpoint
    Reads each matrix of the text model once.
    """
    return (yield from _Pass(files, scalings, checkpoint, workers).run())


class _Pass:
    """The signal as it is at one layer, and the factors of those before."""

    def __init__(
        self, files: Source, scalings: Scalings, checkpoint: Checkpoint, workers: int
    ) -> None:
        self._files = files
        self._scalings = scalings
        self._model = scalings.model
        self._tensors = {tensor.info.name: tensor for tensor in checkpoint.tensors}
        self._workers = workers
        self._factors: dict[str, bytes] = {}
        self._started = time.perf_counter()
        names = {name for name, each in scalings.by_name.items() if each.columns}
        names |= {self._model.embeddings, *(layer.out for layer in self._model.layers)}
        self._n_total = sum(self._tensors[name].info.n_bytes for name in names)
        self._n_done = 0

    def run(self) -> Run[dict[str, bytes]]:
        """Go through the model layer by layer, and return the factors."""
        signal = yield from self._embedded()
        for layer in self._model.layers:
            signal += yield from self._attention(layer, signal)
            signal += yield from self._mlps(layer, signal)
        return self._factors

    def _embedded(self) -> Run[Signal]:
        """The signal behind the embeddings, every token as frequent as any other."""
        (table,) = yield from self._measured({self._model.embeddings: None})
        n_tokens, hidden = self._tensors[self._model.embeddings].info.shape
        mean = table.sums / n_tokens
        signal = Signal(mean, table.squares / n_tokens - mean**2)
        return signal.times(hidden**0.5) if self._model.family.sandwiched else signal

    def _attention(self, layer: LayerTensors, signal: Signal) -> Run[Signal]:
        normed = self._normed(layer.norm, signal)
        wanted: dict[str, Signal | None] = dict.fromkeys(layer.readers)
        if layer.value:
            wanted[layer.value] = normed
        stats = yield from self._measured(wanted)
        self._note_norm(layer.norm, normed, [each.squares for each in stats])
        width = self._tensors[layer.out].info.shape[1]
        attended = Signal(np.zeros((1, width)), np.ones((1, width)))
        values = None
        if layer.value:
            values = self._values(layer.value, stats[-1].result)
            attended = Signal(*map(self._spread(layer.out), (values.mean, values.variance)))
        (out,) = yield from self._measured({layer.out: attended})
        if values:
            scaling = self._scalings.by_name[layer.out]
            squares = out.squares.reshape(-1, scaling.repeats, scaling.run).sum(1)
            self._note(layer.out, values, [squares.reshape(1, -1)])
        return self._normed(layer.after[0], out.result) if layer.after else out.result

    def _mlps(self, layer: LayerTensors, signal: Signal) -> Run[Signal]:
        normed = self._normed(layer.mlp_norm, signal)
        readers = [name for mlp in layer.mlps for name in mlp.readers]
        names = (*readers, *layer.others)
        found = yield from self._measured(dict.fromkeys(names, normed))
        stats = dict(zip(names, found, strict=True))
        squares = [each.squares.sum(0, keepdims=True) for each in stats.values()]
        self._note_norm(layer.mlp_norm, normed, squares)
        given = {mlp.down: self._activated(mlp, stats) for mlp in layer.mlps}
        spread = {
            name: Signal(each.mean, each.variance * _TOGETHER) for name, each in given.items()
        }
        downs = yield from self._measured(spread)
        for (name, activated), down in zip(given.items(), downs, strict=True):
            self._note(name, activated, [down.squares])
        out = _together(layer.mlps, [down.result for down in downs])
        return self._normed(layer.after[1], out) if layer.after else out

    @_QUIET
    def _normed(self, norm: str, signal: Signal) -> Signal:
        gains = read_vector(self._files, self._tensors[norm]) + self._model.family.offset
        return signal.times(gains / np.sqrt(signal.square.mean()))

    def _values(self, value: str, made: Signal) -> Signal:
        bias = value.removesuffix(".weight") + ".bias"
        mean = made.mean
        if bias in self._tensors:
            mean = mean + read_vector(self._files, self._tensors[bias])
        return Signal(mean, made.variance * _ATTENDED)

    def _spread(self, out: str) -> Callable[[Numbers], Numbers]:
        """A function from channels of values to the columns of `out`."""
        scaling = self._scalings.by_name[out]

        def spread(channels: Numbers) -> Numbers:
            runs = channels.reshape(-1, 1, scaling.run)
            return runs.repeat(scaling.repeats, axis=1).reshape(1, -1)

        return spread

    @_QUIET
    def _activated(self, mlp: Mlp, stats: Mapping[str, ColumnStats]) -> Signal:
        """act(gate) * up"""
        gate, up = stats[mlp.gate].result, stats[mlp.up].result
        if mlp.gate == mlp.up:
            half = gate.mean.shape[1] // 2
            up = Signal(gate.mean[:, half:], gate.variance[:, half:])
            gate = Signal(gate.mean[:, :half], gate.variance[:, :half])
        mean, square = _averages(_gelu if self._model.family.sandwiched else _silu, gate)
        mean *= up.mean
        square *= up.square
        return Signal(mean, np.maximum(square - mean**2, 0))

    @_QUIET
    def _note(self, name: str, signal: Signal, squares: Sequence[Numbers]) -> None:
        """Factors of a link, from what it carries and the squares of the weights that read it."""
        sizes = _alive(np.sqrt(signal.square))
        weights = _alive(np.sqrt(sum(squares)))
        steps = STEPS * (_SHARE * np.log2(sizes) - (1 - _SHARE) * np.log2(weights))
        steps -= steps.mean(1, keepdims=True)
        steps[~np.isfinite(steps)] = 0
        rounded = np.clip(np.rint(steps), -LARGEST, LARGEST).astype(np.int8)
        self._factors[name] = rounded.tobytes()

    def _note_norm(self, name: str, signal: Signal, squares: Sequence[Numbers]) -> None:
        """Factors of the channels that a norm puts out: those by which its gains can be divided."""
        self._note(name, signal, squares)
        info, stored = self._tensors[name].info, read_words(self._files, self._tensors[name])
        offset = self._model.family.offset
        self._factors[name] = storable(self._factors[name], stored, info.dtype, offset)

    def _measured(self, given: Mapping[str, Signal | None]) -> Run[list[ColumnStats]]:
        matrices = [MatrixInput(self._tensors[name], signal) for name, signal in given.items()]
        looking = measure_columns(self._files, matrices, self._workers)
        with closing(looking):
            while True:
                try:
                    name, n_bytes = next(looking)
                except StopIteration as end:
                    return cast("list[ColumnStats]", end.value)
                self._n_done += n_bytes
                seconds = time.perf_counter() - self._started
                yield Progress(self._n_done, 0, self._n_total, 0, seconds, f"columns of {name}")


@_QUIET
def _together(mlps: Sequence[Mlp], results: Sequence[Signal]) -> Signal:
    """What the MLPs of a layer add: of routed experts their average, which no two tokens share."""
    total = Signal(np.zeros(1), np.zeros(1))
    routed = [result for mlp, result in zip(mlps, results, strict=True) if mlp.is_routed]
    if routed:
        mean = np.concatenate([each.mean for each in routed]).mean(0, keepdims=True)
        square = np.concatenate([each.square for each in routed]).mean(0, keepdims=True)
        total += Signal(mean, square - mean**2)
    for mlp, result in zip(mlps, results, strict=True):
        total += Signal(np.zeros(1), np.zeros(1)) if mlp.is_routed else result
    return total


def _averages(activation: Callable[[Numbers], Numbers], signal: Signal) -> tuple[Numbers, Numbers]:
    """Mean and mean square of the activation of normally distributed channels."""
    density = np.exp(-(_NODES**2) / 2)
    mean = square = np.zeros(1)
    deviation = np.sqrt(signal.variance)
    for node, share in zip(_NODES, density / density.sum(), strict=True):
        value = activation(signal.mean + node * deviation)
        mean = mean + share * value
        square = square + share * value**2
    return mean, square


def _silu(x: Numbers) -> Numbers:
    gated: Numbers = x / (1 + np.exp(-x))
    return gated


def _gelu(x: Numbers) -> Numbers:
    """Approximated by tanh, as Gemma does it."""
    gated: Numbers = x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return gated


def _alive(sizes: Numbers) -> Numbers:
    """Sizes without those of dead channels, of which no logarithm can be taken."""
    usual = np.median(sizes, axis=1, keepdims=True)
    return np.maximum(sizes, np.where(usual > 0, usual * _LEAST, 1))
