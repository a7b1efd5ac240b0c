"""Shared memory of some blocks: what was never written, and who may see what, between barriers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from support.cuda.ptx.parsing import Fault
from support.cuda.ptx.values import LANES

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


class _Marks:
    """Who has accessed each byte since its block's last barrier: threads, and of which warp, and
    how many barriers that warp had had.
    """

    def __init__(self, size: int, threads: int) -> None:
        self._barriers = np.zeros(threads // LANES, np.int64)  # of each warp
        self._thread, self._warp = np.full(size, _NOBODY), np.full(size, _NOBODY)
        self._when = np.zeros(size, np.int64)

    def others(self, places: np.ndarray, threads: np.ndarray) -> np.ndarray:
        """Whether another thread's access is not in order with one of `threads` now."""
        who, warps = self._thread[places], threads // LANES
        before = (self._warp[places] == warps) & (self._when[places] < self._barriers[warps])
        return (who != _NOBODY) & (who != threads) & ~before

    def add(self, places: np.ndarray, threads: np.ndarray) -> None:
        """All that `others` says nothing of are forgotten."""
        several, warps = (
            self.others(places, threads),
            np.broadcast_to(threads // LANES, places.shape),
        )
        mixed = several & (self._warp[places] != warps)
        self._thread[places], self._warp[places] = threads, warps
        self._when[places] = self._barriers[warps]
        several |= self._thread[places] != threads
        mixed |= self._warp[places] != warps
        self._thread[places[several]] = _SEVERAL
        self._warp[places[mixed]] = _SEVERAL

    def forget(self, chosen: np.ndarray) -> None:
        """chosen: (size,) bool"""
        self._thread[chosen] = self._warp[chosen] = _NOBODY

    def warps_meet(self, warps: np.ndarray) -> None:
        """warps: (warps,) bool"""
        self._barriers += warps


class Shared:
    """`size` bytes for each block of `block_threads` threads.

    Between two barriers a byte is written by one thread that alone reads it, or is read only;
    threads of one warp may also meet at a barrier of the warp. Nobody touches a byte to which a
    copy is on its way. Everything else is a race, also where this interpreter's order hides it.
    """

    def __init__(self, blocks: int, size: int, block_threads: int) -> None:
        self._size, self._stride = size, -(-size // 16) * 16
        self._blocks, self._block_threads = blocks, block_threads
        total, threads = blocks * self._stride, blocks * block_threads
        self._bytes, self._defined = np.zeros(total, np.uint8), np.zeros(total, bool)
        self._writers, self._readers = _Marks(total, threads), _Marks(total, threads)
        self._awaited = np.zeros(total, bool)
        self.conflicts = Conflicts()

    def barrier(self, blocks: np.ndarray) -> None:
        """All threads of these blocks have come.  (blocks,) bool"""
        chosen = blocks.repeat(self._stride)
        self._writers.forget(chosen)
        self._readers.forget(chosen)

    def warps_meet(self, warps: np.ndarray) -> None:
        """All lanes of these warps have come.  (warps,) bool"""
        self._writers.warps_meet(warps)
        self._readers.warps_meet(warps)

    def load(
        self, offsets: np.ndarray, active: np.ndarray, word: np.dtype, count: int
    ) -> np.ndarray:
        """As `Global.load`."""
        size = word.itemsize * count
        threads, places = self._places(offsets, active, size)
        self._need_nothing_on_its_way(places)
        if not self._defined[places].all():
            raise Fault("shared memory is read before it is written")
        self._need(self._writers, threads, places, "read", "written")
        self._readers.add(places, threads)
        found = np.zeros((len(offsets), count), word)
        found[active] = self._bytes[places].view(word)
        return found

    def store(self, offsets: np.ndarray, active: np.ndarray, values: np.ndarray) -> None:
        """As `Global.store`."""
        threads, places = self._places(offsets, active, values.itemsize * values.shape[1])
        self._need_nothing_on_its_way(places)
        self._write(threads, places, values[active])

    def begin_copies(self, offsets: np.ndarray, active: np.ndarray, size: int) -> np.ndarray:
        """The active threads ask for copies of `size` bytes.  Where they will be, (active, size)"""
        threads, places = self._places(offsets, active, size)
        self._need_nothing_on_its_way(places)
        self._may_write(threads, places)
        self._awaited[places] = True
        return places

    def end_copies(self, threads: np.ndarray, places: np.ndarray, values: np.ndarray) -> None:
        """What threads (n,) asked for has come.  (n, size) places and bytes"""
        self._awaited[places] = False
        self._write(threads[:, None], places, values)

    def need_no_copies(self) -> None:
        """At the end: nothing may come to memory that is another block's by then."""
        if self._awaited.any():
            raise Fault("threads end before their copies have come")

    def _write(self, threads: np.ndarray, places: np.ndarray, values: np.ndarray) -> None:
        self._may_write(threads, places)
        self._writers.add(places, threads)
        self._bytes[places] = np.ascontiguousarray(values).view(np.uint8).reshape(places.shape)
        self._defined[places] = True

    def _may_write(self, threads: np.ndarray, places: np.ndarray) -> None:
        self._need(self._writers, threads, places, "written", "written")
        self._need(self._readers, threads, places, "written", "read")
        if len(np.unique(places)) != places.size:
            raise Fault("shared memory: two threads write one byte at once")

    def _need(
        self, marks: _Marks, threads: np.ndarray, places: np.ndarray, now: str, before: str
    ) -> None:
        if marks.others(places, threads).any():
            raise Fault(f"a race: shared memory is {now} that another thread has {before}")

    def _need_nothing_on_its_way(self, places: np.ndarray) -> None:
        if self._awaited[places].any():
            raise Fault("shared memory is used before a copy to it has been waited for")

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
