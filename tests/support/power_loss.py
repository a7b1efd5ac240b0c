"""A disk that loses power: it holds what was flushed, and of the rest whatever chance wants.

No write is traced: a file is flushed with the content that it has when `os.fsync` is called,
a folder with its names. After a power loss each sector and each name is the flushed one or the
newest one, but a rename happened at both its ends or at none, as journaling file systems promise.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_SECTOR = 512

Names = dict[str, int]


class Disk:
    """The part of a disk below a folder, which is flushed to begin with."""

    def __init__(self, root: Path) -> None:
        # Held open, so that no number is given to another file. Number -> descriptor.
        self._held: dict[int, int] = {}
        self._flushed: dict[int, bytes | Names] = {}
        self._root = self._hold(str(root))
        for number in list(self._below(self._root)):
            self._flushed[number] = self._newest(number)

    def flush(self, descriptor: int) -> None:
        """What `os.fsync` promises, with what is there when it is called."""
        number = self._hold(f"/proc/self/fd/{descriptor}")
        self._flushed[number] = self._newest(number)

    def close(self) -> None:
        """Let go of all files."""
        for descriptor in self._held.values():
            os.close(descriptor)

    def write_what_is_left(self, to: Path, rng: random.Random) -> None:
        """One of the states that a power loss could leave now."""
        self._rng = rng
        self._coins: dict[object, bool] = {}
        newest = {n: self._names(n) for n in self._below(self._root) if self._is_folder(n)}
        before, after = _places(self._flushed), _places(newest)
        self._moved = {n for n in before.keys() & after.keys() if before[n] != after[n]}
        self._rebuild(self._root, to)

    def _rebuild(self, number: int, to: Path) -> None:
        to.mkdir()
        old, new = self._flushed.get(number, {}), self._names(number)
        assert isinstance(old, dict)
        for name in sorted(old.keys() | new.keys()):
            ends = [old.get(name), new.get(name)]
            moved = next((n for n in ends if n in self._moved), object())
            chosen = ends[self._coins.setdefault(moved, self._rng.random() < 0.5)]
            if chosen is not None and self._is_folder(chosen):
                self._rebuild(chosen, to / name)
            elif chosen is not None:
                flushed = self._flushed.get(chosen, b"")
                assert isinstance(flushed, bytes)
                (to / name).write_bytes(self._mixed(flushed, self._content(chosen)))

    def _mixed(self, old: bytes, new: bytes) -> bytes:
        size = self._rng.choice([len(old), len(new)])
        sectors = (
            self._rng.choice([old, new])[at : at + _SECTOR].ljust(_SECTOR, b"\0")
            for at in range(0, size, _SECTOR)
        )
        return b"".join(sectors)[:size]

    def _hold(self, path: str) -> int:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        number = os.fstat(descriptor).st_ino
        if number in self._held:
            os.close(descriptor)
        else:
            self._held[number] = descriptor
        return number

    def _newest(self, number: int) -> bytes | Names:
        return self._names(number) if self._is_folder(number) else self._content(number)

    def _names(self, number: int) -> Names:
        here = f"/proc/self/fd/{self._held[number]}"
        return {name: self._hold(f"{here}/{name}") for name in os.listdir(here)}

    def _content(self, number: int) -> bytes:
        descriptor = self._held[number]
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)

    def _is_folder(self, number: int) -> bool:
        return stat.S_ISDIR(os.fstat(self._held[number]).st_mode)

    def _below(self, number: int) -> Iterator[int]:
        yield number
        if self._is_folder(number):
            for inner in self._names(number).values():
                yield from self._below(inner)


def _places(folders: Mapping[int, bytes | Names]) -> dict[int, tuple[int, str]]:
    """Where each file lies: number -> its folder and name."""
    listed = ((folder, names) for folder, names in folders.items() if isinstance(names, dict))
    return {n: (folder, name) for folder, names in listed for name, n in names.items()}


@contextmanager
def watched_disk(root: Path, at: Callable[[Disk], None]) -> Iterator[None]:
    """All flushes below `root` go to a disk like this; `at` is called before each of them.

    Also before each file takes its name.
    """
    disk, replace = Disk(root), Path.replace

    def fsync(file: Any) -> None:
        at(disk)
        disk.flush(file if isinstance(file, int) else file.fileno())

    def watched_replace(self: Path, target: Path) -> Path:
        at(disk)
        return replace(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(Path, "replace", watched_replace)
        yield
        at(disk)
    disk.close()
