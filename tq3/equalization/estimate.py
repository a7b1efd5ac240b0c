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

from tq3.equalization.column_stats import (
    ColumnStats,
    MatrixInput,
    Numbers,
    Signal,
    measure_columns,
    read_vector,
    read_words,
)
from tq3.equalization.layers import Block, Latent, LayerTensors, Mlp, Value
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
        names = {self._model.embeddings}
        for layer in self._model.layers:
            names |= {layer.out, *layer.readers}
            names |= {name for latent in layer.latents for name in latent.readers}
            names |= {name for block in layer.blocks for name in block.readers}
            names |= {mlp.down for block in layer.blocks for mlp in block.mlps}
        self._n_total = sum(self._tensors[name].info.n_bytes for name in names)
        self._n_done = 0

    def run(self) -> Run[dict[str, bytes]]:
        """Go through the model layer by layer, and return the factors."""
        signal = yield from self._embedded()
        for layer in self._model.layers:
            signal += yield from self._attention(layer, signal)
            signal += yield from self._mlps(layer, signal)
            if layer.scalar:
                signal = signal.times(read_vector(self._files, self._tensors[layer.scalar]))
        return self._factors

    def _embedded(self) -> Run[Signal]:
        """The signal behind the embeddings, every token as frequent as any other."""
        (table,) = yield from self._measured({self._model.embeddings: None})
        n_tokens, hidden = self._tensors[self._model.embeddings].info.shape
        mean = table.sums / n_tokens
        signal = Signal(mean, table.squares / n_tokens - mean**2)
        return signal.times(hidden**0.5) if self._model.family.embedded else signal

    def _attention(self, layer: LayerTensors, signal: Signal) -> Run[Signal]:
        normed = self._normed(layer.norm, signal)
        sources = {latent.source for latent in layer.latents}
        wanted: dict[str, Signal | None] = dict.fromkeys(layer.readers)
        for name in wanted:
            if name in sources or (layer.value and name == layer.value.matrix):
                wanted[name] = normed
        stats = dict(zip(wanted, (yield from self._measured(wanted)), strict=True))
        self._note_norm(layer.norm, normed, [each.squares for each in stats.values()])
        for latent in layer.latents:
            stats |= yield from self._latent(latent, stats[latent.source].result)
        width = self._tensors[layer.out].info.shape[1]
        attended = Signal(np.zeros((1, width)), np.ones((1, width)))
        values = None
        if layer.value:
            values = self._values(layer.value, stats[layer.value.matrix].result)
            attended = Signal(*map(self._spread(layer.out), (values.mean, values.variance)))
        (out,) = yield from self._measured({layer.out: attended})
        if values:
            scaling = self._scalings.by_name[layer.out]
            squares = out.squares.reshape(-1, scaling.repeats, scaling.run).sum(1)
            self._note(layer.out, values, [squares.reshape(1, -1)])
        return self._normed(layer.after[0], out.result) if layer.after else out.result

    def _latent(self, latent: Latent, made: Signal) -> Run[dict[str, ColumnStats]]:
        """What reads a latent of keys and values, or of queries."""
        size = self._tensors[latent.norm].info.n_elements
        normed = self._normed(latent.norm, made.part(slice(size)))
        found = yield from self._measured(dict.fromkeys(latent.readers, normed))
        self._note_norm(latent.norm, normed, [each.squares for each in found])
        return dict(zip(latent.readers, found, strict=True))

    def _mlps(self, layer: LayerTensors, signal: Signal) -> Run[Signal]:
        total = Signal(np.zeros(1), np.zeros(1))
        for block in layer.blocks:
            total += yield from self._block(block, signal)
        return self._normed(layer.after[1], total) if layer.after else total

    def _block(self, block: Block, signal: Signal) -> Run[Signal]:
        normed = self._normed(block.norm, signal)
        found = yield from self._measured(dict.fromkeys(block.readers, normed))
        stats = dict(zip(block.readers, found, strict=True))
        squares = [each.squares.sum(0, keepdims=True) for each in found]
        self._note_norm(block.norm, normed, squares)
        given = {mlp.down: self._activated(mlp, stats) for mlp in block.mlps}
        spread = {
            name: Signal(each.mean, each.variance * _TOGETHER) for name, each in given.items()
        }
        downs = yield from self._measured(spread)
        for (name, activated), down in zip(given.items(), downs, strict=True):
            self._note(name, activated, [down.squares])
        out = _together(block.mlps, [down.result for down in downs])
        return self._normed(block.after, out) if block.after else out

    @_QUIET
    def _normed(self, norm: str | None, signal: Signal) -> Signal:
        """Behind a norm; without one as it is, or normed without gains."""
        if norm is None and self._model.family.after:
            return signal
        normed = signal.times(1 / np.sqrt(signal.square.mean()))
        if norm is None:
            return normed
        gains = read_vector(self._files, self._tensors[norm]) + self._model.family.offset
        return self._biased(norm, normed.times(gains))

    def _biased(self, name: str, made: Signal) -> Signal:
        bias = name.removesuffix(".weight") + ".bias"
        if bias not in self._tensors:
            return made
        return Signal(made.mean + read_vector(self._files, self._tensors[bias]), made.variance)

    def _values(self, value: Value, made: Signal) -> Signal:
        """The rows of values, averaged over tokens."""
        made = self._biased(value.matrix, made)
        n_rows = made.mean.shape[1] // value.heads
        n_values = n_rows if value.size is None else value.size // value.heads
        mean, variance = (
            each.reshape(value.heads, n_rows)[:, n_rows - n_values :].reshape(1, -1)
            for each in (made.mean, made.variance)
        )
        return Signal(mean, variance * _ATTENDED)

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
            gate, up = gate.part(slice(half)), gate.part(slice(half, None))
        mean, square = _averages(_gelu if self._model.family.gelu else _silu, gate)
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

    def _note_norm(self, name: str | None, signal: Signal, squares: Sequence[Numbers]) -> None:
        """Factors of the channels that a norm puts out: those by which its gains can be divided."""
        if name is None:
            return
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
