"""Values that cost much to make, kept for whoever asks again, as far as there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

_N_LOCKS = 64

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Cache(Generic[Key, Value]):
    """The values that were asked for last, for any number of threads.

    room: what the sizes of all values may add up to
    size: of one value; without it each counts as 1
    least: so many values are kept even where they have no room
    """

    def __init__(
        self, room: int, size: Callable[[Value], int] = lambda _: 1, *, least: int = 0
    ) -> None:
        self._room, self._size, self._least = room, size, least
        self._found: OrderedDict[Key, Value] = OrderedDict()  # the last one asked for is last
        self._taken = 0
        self._lock = Lock()
        self._making = [Lock() for _ in range(_N_LOCKS)]

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of this key, made once by whoever is first; others wait for it."""
        with self._making[hash(key) % _N_LOCKS]:
            with self._lock:
                if key in self._found:
                    self._found.move_to_end(key)
                    return self._found[key]
            made = make()
            with self._lock:
                self._found[key] = made
                self._taken += self._size(made)
                while self._taken > self._room and len(self._found) > self._least:
                    self._taken -= self._size(self._found.popitem(last=False)[1])
            return made
