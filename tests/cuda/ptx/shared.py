"""Shared memory of some blocks: what was never written, and who may see what, between barriers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ptx.parsing import Fault

BANKS = 32
_BANK_BYTES = 4
# Instead of a thread: several, or none.
_SEVERAL, _NOBODY = -1, -2


@dataclass(slots=True)
class Conflicts:
    """Accesses of warps. passes: how often the banks were asked; ideal: without conflicts."""

    passes: int = 0
    ideal: int = 0


def passes(offsets: np.ndarray, size: int, active: np.ndarray) -> tuple[int, int]:
    """How often the banks are asked, and would be at best.  (warps, 32) offsets, active

    At once, 32 lanes ask for four bytes or less each, 16 for eight, 8 for sixteen.
    """
    words = max(1, size // _BANK_BYTES)
    together = BANKS // words
    asked = (offsets // _BANK_BYTES).reshape(-1, together, 1) + np.arange(words)
    asked = np.where(active.reshape(-1, together, 1), asked, -1).reshape(-1, together * words)
    in_order = np.sort(asked, axis=1)
    new = np.diff(in_order, axis=1, prepend=-1) != 0
    turn = np.broadcast_to(np.arange(len(in_order))[:, None], in_order.shape)[new]
    asks = np.bincount(turn * BANKS + in_order[new] % BANKS, minlength=len(in_order) * BANKS)
    return int(asks.reshape(-1, BANKS).max(1).sum()), len(np.unique(turn))


class Shared:
    """`size` bytes for each block of `block_threads` threads.

    Between two barriers a byte is written by one thread that alone reads it, or is read only:
    everything else is a race, also where this interpreter's order hides it.
    """

    def __init__(self, blocks: int, size: int, block_threads: int) -> None:
        self._size, self._stride = size, -(-size // 16) * 16
        self._block_threads = block_threads
        total = blocks * self._stride
        self._bytes, self._defined = np.zeros(total, np.uint8), np.zeros(total, bool)
        self._writer = np.full(total, _NOBODY)
        self._reader = np.full(total, _NOBODY)
        self.conflicts = Conflicts()

    def barrier(self, blocks: np.ndarray) -> None:
        """All threads of these blocks have come.  (blocks,) bool"""
        for who in (self._writer, self._reader):
            who.reshape(len(blocks), self._stride)[blocks] = _NOBODY

    def load(
        self, offsets: np.ndarray, active: np.ndarray, word: np.dtype, count: int
    ) -> np.ndarray:
        """As `Global.load`."""
        size = word.itemsize * count
        threads, places = self._places(offsets, active, size)
        if not self._defined[places].all():
            raise Fault("shared memory is read before it is written")
        self._need(self._writer[places], threads, "read", "written")
        before = self._reader[places]
        self._reader[places] = threads
        several = (self._reader[places] != threads) | ((before != _NOBODY) & (before != threads))
        self._reader[places[several]] = _SEVERAL
        found = np.zeros((len(offsets), count), word)
        found[active] = self._bytes[places].view(word)
        return found

    def store(self, offsets: np.ndarray, active: np.ndarray, values: np.ndarray) -> None:
        """As `Global.store`."""
        size = values.itemsize * values.shape[1]
        threads, places = self._places(offsets, active, size)
        self._need(self._writer[places], threads, "written", "written")
        self._need(self._reader[places], threads, "written", "read")
        self._writer[places] = threads
        if (self._writer[places] != threads).any():
            raise Fault("shared memory: two threads write one byte at once")
        chosen = np.ascontiguousarray(values[active])
        self._bytes[places] = chosen.view(np.uint8).reshape(places.shape)
        self._defined[places] = True

    def _need(self, who: np.ndarray, threads: np.ndarray, now: str, before: str) -> None:
        if ((who != _NOBODY) & (who != threads)).any():
            raise Fault(f"a race: shared memory is {now} that another thread has {before}")

    def _places(
        self, offsets: np.ndarray, active: np.ndarray, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Threads (active, 1) and the places of their bytes (active, size), checked and counted."""
        asked = offsets[active]
        if ((asked < 0) | (asked + size > self._size)).any():
            raise Fault(f"{size} bytes outside the {self._size} bytes of shared memory")
        if (asked % size).any():
            raise Fault(f"{size} bytes of shared memory at an offset that is no multiple")
        done, ideal = passes(offsets.reshape(-1, 32), size, active.reshape(-1, 32))
        self.conflicts.passes += done
        self.conflicts.ideal += ideal
        threads = np.flatnonzero(active)
        first = asked + threads // self._block_threads * self._stride
        return threads[:, None], first[:, None] + np.arange(size)
