"""Times without the host and without caches: graphs that go round a ring of layers.

Each layer exists many times over, more than the last cache holds, and a graph calls one after the
other. Bytes are those of codes and norms; a share is one of what a kernel that only reads reads in
the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from gpu.machine import Machine
from gpu.rows import Row

from tq3.runtime.cuda import layout
from tq3.runtime.cuda.calls import Call, Launcher
from tq3.runtime.cuda.layout import Tiles

GROUP = 128
DTYPE = torch.bfloat16
EMPTY_KERNELS = 1000
# Where each call takes long, such a part of the ring is enough: still more than a cache holds.
PART_FOR_MANY = 4
Item = TypeVar("Item")


class Ceilings(NamedTuple):
    """copy, read: bytes a second, a copy's both ways. gap: seconds from one kernel of a graph to
    the next, where they do nothing.
    """

    copy: float
    read: float
    gap: float


def ceilings(gpu: Machine, n_bytes: int) -> Ceilings:
    """Of random bytes, with clocks raised: zeros are faster."""
    gpu.warm()
    source = torch.empty(n_bytes // 4, dtype=torch.int32, device=gpu.device).random_()
    target = torch.empty_like(source)
    copy = gpu.seconds(lambda: target.copy_(source))
    read = gpu.seconds(source.view(torch.float32).sum)

    def nothing() -> None:
        for _ in range(EMPTY_KERNELS):
            gpu.empty()

    gap = gpu.seconds(gpu.capture(nothing).replay) / EMPTY_KERNELS
    return Ceilings(2 * source.nbytes / copy, source.nbytes / read, gap)


class Through:
    """A device that is told other multiprocessors or another crossing than it has, on which depends
    how a layer is launched; it remembers what it launches.

    in_turn: kernels that may start before the one ahead has ended don't
    """

    def __init__(
        self,
        on: Launcher,
        processors: int | None = None,
        in_turn: bool = False,
        **crossing: Any,
    ) -> None:
        self._on, self.crossing = on, on.crossing._replace(**crossing)
        self._in_turn = in_turn
        self.processors = on.processors if processors is None else processors
        self.calls: list[Call] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._on, name)

    def launch(self, call: Call) -> None:
        """On the device itself."""
        if self._in_turn:
            call = call._replace(early=False)
        self.calls.append(call)
        self._on.launch(call)


def seconds_a_call(gpu: Machine, ring: Sequence[Item], call: Callable[[Item], object]) -> float:
    """Of a graph that goes round the ring once."""

    def once_round() -> None:
        for item in ring:
            call(item)

    return gpu.seconds(gpu.capture(once_round).replay) / len(ring)


def seconds_of_kernels(
    gpu: Machine, ring: Sequence[Item], call: Callable[[Launcher, Item], object], gap: float
) -> dict[str, float]:
    """Of each kernel that `call` launches on the device it is given, by itself, less the gap: that
    is one between kernels in turn.
    """
    of_kernels: dict[str, list[list[Call]]] = {}
    for item in ring:
        through = Through(gpu.on, in_turn=True)
        call(through, item)
        names = [each.instance.partition("<")[0] for each in through.calls]
        for name in dict.fromkeys(names):
            mine = [each for each, of in zip(through.calls, names, strict=True) if of == name]
            of_kernels.setdefault(name, []).append(mine)
    times = {}
    for name, calls in of_kernels.items():
        flat = [each for of_layer in calls for each in of_layer]
        a_layer = len(flat) / len(ring)
        times[name] = (seconds_a_call(gpu, flat, gpu.on.launch) - gap) * a_layer
    return times


def speed(seconds: float, n_bytes: int, most: Ceilings) -> Row:
    """What a call's time is as bytes a second."""
    rate = n_bytes / seconds
    return {"us": seconds * 1e6, "GB/s": rate / 1e9, "% of read": 100 * rate / most.read}


def ring_of(make: Callable[[], Item], n_bytes: int, least: int) -> list[Item]:
    """So many, of `n_bytes` each, that they have `least` bytes."""
    return [make() for _ in range(max(2, -(-least // n_bytes)))]


def tiles_of(
    gpu: Machine, lead: tuple[int, ...], shape: tuple[int, int], bits: int, least: int
) -> list[Tiles]:
    """A ring of layers as `layout.repack` makes them: any words are codes."""
    rows, columns = shape
    tiles, units = -(-rows // layout.TILE), columns // layout.UNIT
    words = torch.empty(*lead, tiles, units, bits, 32, 4, dtype=torch.int32, device=gpu.device)
    words.random_(-(2**31), 2**31)
    norms = torch.rand(*lead, tiles, columns // GROUP, 8, 4, device=gpu.device)
    one = Tiles(words, norms)
    return ring_of(lambda: Tiles(words.clone(), norms.clone()), bytes_of(one), least)


def bytes_of(layer: Tiles) -> int:
    """Of codes and norms."""
    return sum(part.nbytes for part in layer)


def dense_of(gpu: Machine, shape: tuple[int, ...], least: int) -> list[torch.Tensor]:
    """A ring of weights of bfloat16."""
    weight = torch.randn(shape, dtype=DTYPE, device=gpu.device)
    return ring_of(weight.clone, weight.nbytes, least)


activations = partial(torch.randn, dtype=DTYPE)
