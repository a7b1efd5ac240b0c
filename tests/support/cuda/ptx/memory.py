"""Global memory: tensors between guards, and how much of it each access of a warp touches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from support.cuda.ptx.parsing import Fault

SECTOR = 32
# Above what 32 bits can address: a lost half of an address is seen.
_BASE = 0x7000_0000_0000
_ALIGN = 256
_GUARD = 4096


@dataclass(slots=True)
class Traffic:
    """Accesses of warps to one tensor. sectors: those touched; ideal: the fewest that hold the
    bytes which each access asks for.
    """

    requests: int = 0
    sectors: int = 0
    ideal: int = 0


def sectors(addresses: np.ndarray, size: int, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many each warp touches, and could.  (warps, 32) addresses of aligned accesses, active"""
    touched = _distinct(addresses // SECTOR, active)
    asked = _distinct(addresses, active) * size
    return touched, -(-asked // SECTOR)


def _distinct(numbers: np.ndarray, active: np.ndarray) -> np.ndarray:
    in_order = np.sort(np.where(active, numbers, -1), axis=1)
    new = np.diff(in_order, axis=1, prepend=-1) != 0
    return new.sum(1)


class Global:
    """What a launch finds in memory: a copy of each of `tensors`, (bytes,) uint8."""

    def __init__(self, tensors: list[np.ndarray]) -> None:
        self.starts, size = np.zeros(len(tensors), np.int64), _GUARD
        for i, tensor in enumerate(tensors):
            self.starts[i] = size
            size += -(-len(tensor) // _ALIGN) * _ALIGN + _GUARD
        self.ends = self.starts + np.array([len(tensor) for tensor in tensors], np.int64)
        self._bytes, self._written = np.zeros(size, np.uint8), np.zeros(size, bool)
        for tensor, start, end in zip(tensors, self.starts, self.ends, strict=True):
            self._bytes[start:end] = tensor
        self.traffic = [{"ld": Traffic(), "st": Traffic()} for _ in tensors]

    def address(self, i: int) -> int:
        """Of the tensor `i`."""
        return _BASE + int(self.starts[i])

    def content(self, i: int) -> np.ndarray:
        """The bytes of the tensor `i` as they are now."""
        return self._bytes[self.starts[i] : self.ends[i]]

    def load(
        self, addresses: np.ndarray, active: np.ndarray, word: np.dtype, count: int, constant: bool
    ) -> np.ndarray:
        """`count` words of each thread, zeros for those that are not active.  (threads, count)

        constant: the kernel promised that no thread writes there
        """
        places = self._places("ld", addresses, active, word.itemsize * count)
        if constant and self._written[places[:, None] + np.arange(word.itemsize * count)].any():
            raise Fault("read as constant after it was written")
        found = np.zeros((len(addresses), count), word)
        first = places // word.itemsize
        found[active] = self._bytes.view(word)[first[:, None] + np.arange(count)]
        return found

    def store(self, addresses: np.ndarray, active: np.ndarray, values: np.ndarray) -> None:
        """values: (threads, words of each)"""
        size = values.itemsize * values.shape[1]
        places = self._places("st", addresses, active, size)
        first = places // values.itemsize
        self._bytes.view(values.dtype)[first[:, None] + np.arange(values.shape[1])] = values[active]
        self._written[places[:, None] + np.arange(size)] = True

    def _places(
        self, kind: str, addresses: np.ndarray, active: np.ndarray, size: int
    ) -> np.ndarray:
        """Of the active threads, checked and counted."""
        places = addresses - _BASE
        asked = places[active]
        tensor = np.maximum(np.searchsorted(self.starts, asked, "right") - 1, 0)
        outside = (asked < self.starts[tensor]) | (asked + size > self.ends[tensor])
        if outside.any():
            i = int(outside.argmax())
            raise Fault(
                f"{size} bytes at {int(asked[i] - self.starts[tensor[i]])} of tensor "
                f"{int(tensor[i])}, which has {int((self.ends - self.starts)[tensor[i]])}"
            )
        if (asked % size).any():
            raise Fault(f"{size} bytes at an address that is no multiple")
        self._count(kind, places, active, size)
        return asked

    def _count(self, kind: str, places: np.ndarray, active: np.ndarray, size: int) -> None:
        by_warp, active_by_warp = places.reshape(-1, 32), active.reshape(-1, 32)
        touched, ideal = sectors(by_warp, size, active_by_warp)
        first = by_warp[np.arange(len(by_warp)), active_by_warp.argmax(1)]
        tensor = np.searchsorted(self.starts, first, "right") - 1
        for i in np.unique(tensor[touched > 0]):
            of = (tensor == i) & (touched > 0)
            traffic = self.traffic[i][kind]
            traffic.requests += int(of.sum())
            traffic.sectors += int(touched[of].sum())
            traffic.ideal += int(ideal[of].sum())
