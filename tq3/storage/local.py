"""A folder on this machine, read by byte range. Opened read-only; nothing here writes."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from threading import Lock

from tq3.errors import BadInput, StorageError

_AHEAD_BYTES = 8 * 2**20


class LocalFiles:
    """The files of a folder, for any number of threads. A context manager: it keeps files open."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.label = str(folder)
        if not self.folder.is_dir():
            raise BadInput(
                "no such folder",
                file=self.label,
                fix="give the path of a checkpoint folder (fetch one with `hf download`)",
            )
        self._open: dict[str, int] = {}
        self._lock = Lock()

    def __enter__(self) -> LocalFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def names(self) -> list[str]:
        """The regular files at the top of the folder, sorted.

        Links to files are followed (the Hub cache is made of them), links to folders are not.
        """
        return sorted(path.name for path in self.folder.iterdir() if path.is_file())

    def has(self, name: str) -> bool:
        """Whether `name` is a file in the folder or below it: never one outside."""
        path = PurePosixPath(name)
        inside = not path.is_absolute() and ".." not in path.parts
        return inside and (self.folder / path).is_file()

    def tree(self) -> list[str]:
        """Every regular file below the folder, as sorted relative paths with forward slashes."""
        found = []
        for folder, _, names in os.walk(self.folder):
            paths = (Path(folder, name) for name in names)
            found += [p.relative_to(self.folder).as_posix() for p in paths if p.is_file()]
        return sorted(found)

    def size(self, name: str) -> int:
        """Bytes of a file."""
        try:
            return (self.folder / name).stat().st_size
        except OSError as error:
            raise _read_error(name, error) from None

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Just these bytes. Raises StorageError when the file has fewer."""
        buffer = bytearray(length)
        self.read_into(name, offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`. Raises StorageError when the file has fewer bytes."""
        try:
            descriptor = self._descriptor(name)
            _read_ahead(descriptor, offset + _AHEAD_BYTES, len(buffer))
            done = 0
            while done < len(buffer):
                n = os.preadv(descriptor, [buffer[done:]], offset + done)
                if n == 0:
                    raise StorageError(
                        "the file ended early: it was cut short while it was read",
                        file=self.folder / name,
                        found=f"{offset + done} bytes",
                        expected=f"{offset + len(buffer)}",
                    )
                done += n
        except OSError as error:
            raise _read_error(self.folder / name, error) from None

    def _descriptor(self, name: str) -> int:
        with self._lock:
            if name not in self._open:
                self._open[name] = os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC)
            return self._open[name]


def _read_ahead(descriptor: int, offset: int, length: int) -> None:
    """Have the disk fetch what is read a little later, while this thread computes."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)


def _read_error(file: object, error: OSError) -> StorageError:
    return StorageError(f"can't be read: {error.strerror}", file=file)
