"""Asynchronous copies from global into shared memory: they come when their thread waits for them,
which is as late as they may.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from support.cuda.ptx.shared import Shared


@dataclass(frozen=True, slots=True)
class _Asked:
    """Copies of n threads, and to which of its thread's batches each belongs.  places, values:
    (n, bytes)
    """

    threads: np.ndarray
    batches: np.ndarray
    places: np.ndarray
    values: np.ndarray

    def where(self, chosen: np.ndarray) -> _Asked:
        parts = self.threads, self.batches, self.places, self.values
        return _Asked(*(part[chosen] for part in parts))


class Copies:
    """What the threads of some blocks have asked for."""

    def __init__(self, to: Shared, threads: int) -> None:
        self._to, self._open = to, np.zeros(threads, np.int64)
        self._asked: list[_Asked] = []

    def ask(self, offsets: np.ndarray, active: np.ndarray, values: np.ndarray) -> None:
        """values: (threads, words), which lie in global memory now and never change"""
        found = np.ascontiguousarray(values[active]).view(np.uint8)
        places = self._to.begin_copies(offsets, active, found.shape[1])
        threads = np.flatnonzero(active)
        self._asked.append(_Asked(threads, self._open[threads], places, found))

    def end_batch(self, active: np.ndarray) -> None:
        """What the active threads have asked for since their last one; there may be none."""
        self._open += active

    def wait(self, active: np.ndarray, may_lack: int) -> None:
        """All batches of the active threads come, but the newest `may_lack` and the open ones."""
        left = []
        for asked in self._asked:
            due = active[asked.threads] & (asked.batches < self._open[asked.threads] - may_lack)
            if due.any():
                come = asked.where(due)
                self._to.end_copies(come.threads, come.places, come.values)
            if not due.all():
                left.append(asked.where(~due))
        self._asked = left
