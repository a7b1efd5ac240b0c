"""Variants of a model beside their source: all tokens go through one layer after the other.

Only hidden states are kept between layers. A layer's tensors are read once; it is then filled and
computed for the source and for each variant.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import torch

from tq3.evaluation.forwards import Forward, compute
from tq3.evaluation.heads import Head
from tq3.evaluation.measures import Beside, Measures
from tq3.evaluation.skeleton import Part, Skeleton, Weights
from tq3.events import Progress

# The tensor of a variant, from its name and the source's tensor.
Variant = Callable[[str, torch.Tensor], torch.Tensor]
SOURCE = "source"
# Sequences that are in a layer at one time.
_BATCH = 8


@dataclass(frozen=True, slots=True)
class TensorLost:
    """||variant - source||^2 and ||source||^2 of one tensor."""

    name: str
    error: float
    energy: float

    @property
    def relative(self) -> float:
        return self.error / self.energy if self.energy else 0.0


@dataclass(frozen=True, slots=True)
class LayerLost:
    """What the layer's tensors lost, and what it hands on.

    weights: ||variant - source||^2 / ||source||^2 of all its tensors together
    hidden: ||variant - source||^2 / ||source||^2 of a token's hidden state, mean over the tokens
    """

    name: str
    weights: float
    hidden: float


@dataclass(frozen=True, slots=True)
class Lost:
    """One variant beside the source; its layers in the order in which they are computed."""

    measures: Measures
    layers: tuple[LayerLost, ...]
    tensors: tuple[TensorLost, ...]


@dataclass(slots=True)
class _Track:
    """A variant on its way through the model, one forward for each batch of sequences."""

    name: str
    variant: Variant
    forwards: list[Forward]
    beside: Beside = field(default_factory=Beside)
    layers: list[LayerLost] = field(default_factory=list)
    tensors: list[TensorLost] = field(default_factory=list)


def compare(
    skeleton: Skeleton,
    source: Weights,
    variants: Mapping[str, Variant],
    texts: Sequence[torch.Tensor],
    n_bytes: Callable[[str], int],
) -> Generator[Progress, None, dict[str, Lost]]:
    """Measure each variant on all texts, in the arithmetic of the skeleton's dtype.

    texts: (sequences, tokens) int64 each; every token but the first of a sequence is predicted
    n_bytes: of a tensor of the source, for progress
    """
    batches = [batch for text in texts for batch in text.split(_BATCH)]
    clock = _Clock(skeleton.used, n_bytes, 1 + len(variants))
    with closing(_Run(skeleton, source, variants, batches)) as run:
        while part := run.next_part():
            for name in run.through(part):
                yield clock.after(part, name)
        for name, share in run.through_the_head():
            yield clock.at_the_head(skeleton.head, name, share)
        return run.lost()


class _Run:
    def __init__(
        self,
        skeleton: Skeleton,
        source: Weights,
        variants: Mapping[str, Variant],
        batches: Sequence[torch.Tensor],
    ) -> None:
        self._skeleton = skeleton
        self._source = source
        self._batches = batches
        self._threads = torch.get_num_threads()
        self._rest = {name: source(name) for name in skeleton.rest.tensors}
        self._tracks: list[_Track] = []
        for name, variant in [(SOURCE, _unchanged), *variants.items()]:
            track = _Track(name, variant, [])
            self._tracks.append(track)
            with skeleton.holding(skeleton.rest, _weights(track, self._rest)):
                for batch in batches:
                    track.forwards.append(Forward(partial(skeleton.start, batch)))

    def close(self) -> None:
        """End all threads."""
        for track in self._tracks:
            for forward in track.forwards:
                forward.close()
        torch.set_num_threads(self._threads)

    def next_part(self) -> Part | None:
        """The part that the first forward waits for; None when all have ended."""
        calls = (forward.call for track in self._tracks for forward in track.forwards)
        call = next(filter(None, calls), None)
        return self._skeleton.part_of(call.layer) if call else None

    def through(self, part: Part) -> Iterator[str]:
        """Run all forwards through this part; yields the name of each track that is through."""
        originals = {name: self._source(name) for name in part.tensors}
        exact: list[torch.Tensor] = []
        for track in self._tracks:
            weights = _weights(track, self._rest | originals)
            found = self._compute(track, part, weights)
            exact = exact or found
            if track.name != SOURCE:
                self._note(track, part, originals, _tokens_lost(exact, found))
            yield track.name

    def _compute(self, track: _Track, part: Part, weights: Weights) -> list[torch.Tensor]:
        """The part's output for each batch.  (sequences, tokens, columns)"""
        found = []
        skeleton = self._skeleton
        with skeleton.holding(skeleton.rest, weights), skeleton.holding(part, weights):
            for forward in track.forwards:
                if forward.call and forward.call.layer is part.module:
                    answer = compute(forward.call)
                    found.append(answer[0] if isinstance(answer, tuple) else answer)
                    forward.go_on(answer)
        return found

    def _note(
        self, track: _Track, part: Part, originals: dict[str, torch.Tensor], hidden: float
    ) -> None:
        tensors = [_tensor_lost(name, t, track.variant(name, t)) for name, t in originals.items()]
        track.tensors += tensors
        if part.is_layer:
            error, energy = sum(t.error for t in tensors), sum(t.energy for t in tensors)
            track.layers.append(LayerLost(part.name, error / energy if energy else 0.0, hidden))

    def through_the_head(self) -> Iterator[tuple[str, float]]:
        """Logits of all tracks beside the source's; yields a track, and what share is done."""
        head = Head(self._skeleton)
        originals = {name: self._source(name) for name in head.tensors}
        for track in self._tracks[1:]:
            track.tensors += [
                _tensor_lost(name, tensor, track.variant(name, tensor))
                for name, tensor in originals.items()
                if name not in {lost.name for lost in track.tensors}  # shared with the embedding
            ]
        targets = torch.cat([batch[:, 1:].flatten() for batch in self._batches])
        hidden = [_last_hidden(track) for track in self._tracks]
        output = self._tracks[0].forwards[0].result
        for rows in head.portions(len(targets)):
            exact = head.all_logits(output, hidden[0][rows], _weights(self._tracks[0], originals))
            for track, states in zip(self._tracks[1:], hidden[1:], strict=True):
                start = 0
                for ours in head.logits(output, states[rows], _weights(track, originals)):
                    end = start + len(ours)
                    track.beside.add(exact[start:end], ours, targets[rows][start:end])
                    start = end
                yield track.name, min(rows.stop / len(targets), 1.0)
            del exact  # before the next ones are made

    def lost(self) -> dict[str, Lost]:
        """The figures of every variant."""
        return {
            track.name: Lost(track.beside.measures(), tuple(track.layers), tuple(track.tensors))
            for track in self._tracks[1:]
        }


class _Clock:
    """Progress by the bytes of the source that each track has been through."""

    def __init__(self, parts: Sequence[Part], n_bytes: Callable[[str], int], tracks: int) -> None:
        self._n_bytes = n_bytes
        self._tracks = tracks
        self._total = tracks * sum(map(self._of, parts))
        self._done = 0
        self._start = time.perf_counter()

    def _of(self, part: Part) -> int:
        return sum(map(self._n_bytes, part.tensors))

    def after(self, part: Part, track: str) -> Progress:
        self._done = min(self._done + self._of(part), self._total)
        return self._progress(self._done, f"{part.name} ({track})")

    def at_the_head(self, head: Sequence[Part], track: str, share: float) -> Progress:
        left = self._tracks * sum(map(self._of, head)) * (1 - share)
        return self._progress(max(self._done, self._total - int(left)), f"logits ({track})")

    def _progress(self, done: int, what: str) -> Progress:
        seconds = time.perf_counter() - self._start
        return Progress(done, 0, self._total, 0, seconds, what)


def _unchanged(_: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _weights(track: _Track, originals: Mapping[str, torch.Tensor]) -> Weights:
    return lambda name: track.variant(name, originals[name])


def _tensor_lost(name: str, source: torch.Tensor, ours: torch.Tensor) -> TensorLost:
    exact = source.float()
    error = (ours.float() - exact).square_().sum(dtype=torch.float64)
    return TensorLost(name, float(error), float(exact.square().sum(dtype=torch.float64)))


def _tokens_lost(source: list[torch.Tensor], ours: list[torch.Tensor]) -> float:
    """Relative squared error of each token's state, and of these the mean.

    Not of all states together: a few tokens are a thousand times larger than all others.
    """
    lost = []
    for exact, found in zip(source, ours, strict=True):
        error = (found.float() - exact.float()).square().sum(-1)
        lost.append((error / exact.float().square().sum(-1).clamp(min=1e-30)).flatten())
    return float(torch.cat(lost).double().mean())


def _last_hidden(track: _Track) -> torch.Tensor:
    """Hidden states of all tokens that another one follows.  (tokens, columns)"""
    states = (forward.result.last_hidden_state for forward in track.forwards)
    return torch.cat([state[:, :-1].flatten(0, 1) for state in states])
