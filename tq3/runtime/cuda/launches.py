"""A launch of a kernel as a value, and who carries launches out: a device, or a test's own."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, Protocol

import torch

from tq3.runtime.cuda.crossings import Crossing


class Call(NamedTuple):
    """A kernel, its grid of blocks, and its arguments: tensors, whole numbers (32 bits), floats,
    and None for no tensor.

    early: it may start before the kernel ahead in the stream has ended, for whose end it waits
    itself. What it reads of the weights before then, nothing directly ahead may have written.
    shared_bytes: of shared memory for each block, beside what the kernel declares
    """

    kernel: str
    instance: str
    grid: tuple[int, int, int]
    threads: int
    arguments: tuple[torch.Tensor | int | float | None, ...]
    early: bool = False
    shared_bytes: int = 0


class Launcher(Protocol):
    """Where calls run, one after the other. processors: multiprocessors of the device;
    shared_bytes: of shared memory in each.
    """

    @property
    def processors(self) -> int: ...

    @property
    def shared_bytes(self) -> int: ...

    @property
    def crossing(self) -> Crossing: ...

    def load(self, kernel: str, instance: str) -> object: ...

    def launch(self, call: Call) -> None: ...

    def sequence(self) -> Hashable:
        """Another one wherever what was launched before may not have run, or not be replayed."""
