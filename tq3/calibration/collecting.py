"""Second moments of what every matrix multiplies: all tokens through one layer after the other.

Only hidden states are kept between layers, as when a checkpoint is measured (tq3.evaluation).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial

import torch

from tq3.calibration.watching import Place, Sums, Watch
from tq3.evaluation.forwards import Forward, compute
from tq3.evaluation.skeleton import Part, Skeleton, Weights
from tq3.events import Progress
from tq3.moments.writing import MomentsFile

# Sequences that are in a layer at one time.
_BATCH = 8
# A matrix of a stack that sees fewer tokens than a quarter of its columns shares all others' input.
_FEWEST = 4
_EXPERT = re.compile(r"\.experts\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Collected:
    """What was added to a file.

    readers: tensor of the checkpoint -> names of its inputs
    tokens: input -> tokens that it had
    scarce: stack of experts -> those that saw few tokens, and have the mean of all
    """

    readers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    scarce: dict[str, list[int]] = field(default_factory=dict)


def collect(
    skeleton: Skeleton,
    source: Weights,
    sequences: Sequence[torch.Tensor],
    file: MomentsFile,
    n_bytes: Callable[[str], int],
    device: torch.device,
) -> Generator[Progress, None, Collected]:
    """Add the moments of all inputs to the file, layer by layer.

    sequences: (sequences, tokens) int64 each; n_bytes: of a tensor of the source, for progress
    """
    batches = [batch.to(device) for some in sequences for batch in some.split(_BATCH)]
    total = sum(n_bytes(name) for part in skeleton.used for name in part.tensors)
    start, done = time.perf_counter(), 0
    collected = Collected()
    with closing(_Pass(skeleton, source, batches, device)) as run:
        while part := run.next_part():
            watch, readers = run.through(part)
            _keep(watch, readers, file, collected)
            del watch  # and with it the layer, before the next one is read
            done = min(done + sum(map(n_bytes, part.tensors)), total)
            yield Progress(done, 0, total, 0, time.perf_counter() - start, part.name)
    yield Progress(total, 0, total, 0, time.perf_counter() - start, "moments")
    return collected


class _Pass:
    def __init__(
        self,
        skeleton: Skeleton,
        source: Weights,
        batches: Sequence[torch.Tensor],
        device: torch.device,
    ) -> None:
        self._skeleton, self._source, self._device = skeleton, source, device
        self._threads = torch.get_num_threads()
        self._rest = {name: source(name) for name in skeleton.rest.tensors}
        self._forwards: list[Forward] = []
        for name, buffer in skeleton.model.named_buffers():
            if not buffer.is_meta:
                path, _, last = name.rpartition(".")
                setattr(skeleton.model.get_submodule(path), last, buffer.to(device))
        with self._holding(skeleton.rest, self._rest):
            for batch in batches:
                self._forwards.append(Forward(partial(skeleton.start, batch)))

    def close(self) -> None:
        """End all threads."""
        for forward in self._forwards:
            forward.close()
        torch.set_num_threads(self._threads)

    def next_part(self) -> Part | None:
        """The part that the first forward waits for; None when all have ended."""
        call = next((each.call for each in self._forwards if each.call), None)
        return self._skeleton.part_of(call.layer) if call else None

    def through(self, part: Part) -> tuple[Watch, dict[str, tuple[Place, ...]]]:
        """Run all forwards through this part.

        Gives what its matrices were multiplied with, and the matrices of each of its tensors.
        """
        originals = {name: self._source(name) for name in part.tensors}
        weights = self._rest | originals
        with self._holding(self._skeleton.rest, weights), self._holding(part, weights):
            own = {name: self._skeleton.parameter(name) for name in part.parameters}
            watch = Watch(own if part.is_layer else {})
            for forward in self._forwards:
                if forward.call and forward.call.layer is part.module:
                    with watch:
                        answer = compute(forward.call)
                    watch.forget_inputs()
                    forward.go_on(answer)
            filled = self._skeleton.filled
            return watch, {
                name: places
                for name, tensor in originals.items()
                for parameter in filled[name]
                if (places := _places(name, tensor, parameter, own.get(parameter)))
            }

    def _holding(self, part: Part, weights: Mapping[str, torch.Tensor]) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(self._skeleton.holding(part, weights.__getitem__))
        self._skeleton.move(part, self._device)
        return stack


def _places(
    name: str, tensor: torch.Tensor, parameter: str, value: torch.Tensor | None
) -> tuple[Place, ...]:
    """Where the matrices of a tensor of the checkpoint are in a parameter; none if that isn't told.

    One whose rows are not rows of the parameter is stored the other way round.
    """
    if value is None or tensor.ndim not in (2, 3) or tensor.shape[-1] != value.shape[-1]:
        return ()
    matrices = tensor if tensor.ndim == 3 else tensor[None]
    stack = value if value.ndim == 3 else value[None]
    if len(matrices) == len(stack):  # one of one, or all of a stack
        numbers = range(len(stack))
    elif (expert := _EXPERT.search(name)) and int(expert[1]) < len(stack):
        numbers = range(int(expert[1]), int(expert[1]) + 1)
    else:
        return ()
    for number, matrix in zip(numbers, matrices, strict=True):
        first = matrix[0].to(value)
        some = (stack[number][:, 0] == first[0]).nonzero()[:, 0]
        if not (stack[number][some] == first).all(-1).any():
            return ()
    return tuple((parameter, number) for number in numbers)


def _keep(
    watch: Watch,
    readers: Mapping[str, tuple[Place, ...]],
    file: MomentsFile,
    collected: Collected,
) -> None:
    """Write the moments of one layer, and say who reads them."""
    wanted = {watch.readers.get(place) for places in readers.values() for place in places}
    stacks: dict[str, dict[int, Sums]] = {}
    for place, sums in watch.found.items():
        if place in wanted:
            stacks.setdefault(place[0], {})[place[1]] = sums
    names: dict[Place, str] = {}
    for parameter, found in stacks.items():
        names |= _write(parameter, found, watch.n_matrices(parameter), file, collected)
    for tensor, places in readers.items():
        # An expert that no token came to is named by its own place, as one of its stack.
        inputs = [names.get(watch.readers.get(place, place), "") for place in places]
        if all(inputs):
            collected.readers[tensor] = tuple(inputs if len(set(inputs)) > 1 else inputs[:1])


def _write(
    parameter: str,
    found: Mapping[int, Sums],
    n_matrices: int,
    file: MomentsFile,
    collected: Collected,
) -> dict[Place, str]:
    """Add the moments of a parameter, or of a stack of experts; gives the names of each one's.

    An input that was always zero has none: they would say that no weight matters.
    """
    alive = {number: sums for number, sums in found.items() if sums.sums.any()}
    if not alive:
        return {}
    if not n_matrices:
        _add(parameter, [alive[0]], file, collected)
        return {(parameter, 0): parameter}
    names = {}
    for number, sums in alive.items():
        if _FEWEST * sums.tokens >= sums.columns:
            names[parameter, number] = f"{parameter}.{number}"
            _add(names[parameter, number], [sums], file, collected)
    scarce = [number for number in range(n_matrices) if (parameter, number) not in names]
    if scarce:
        mean = f"{parameter}.mean"
        _add(mean, list(found.values()), file, collected)
        collected.scarce[parameter] = scarce
        names |= {(parameter, number): mean for number in scarce}
    return names


def _add(name: str, parts: Sequence[Sums], file: MomentsFile, collected: Collected) -> None:
    tokens = sum(part.tokens for part in parts)
    total = parts[0].sums.clone()
    for part in parts[1:]:
        total += part.sums
    file.add(name, (total / tokens).cpu().numpy())
    collected.tokens[name] = tokens
