"""A folder of files as plans and runs see it, wherever it lies, and the JSON files in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tq3.errors import BadInput
from tq3.format.json_reading import parse_object

CONFIG = "config.json"
_MAX_JSON_FILE = 128 * 2**20


class Files(Protocol):
    """A folder of files, wherever it lies."""

    label: str

    def names(self) -> list[str]:
        """The files at the top of the folder, sorted."""

    def tree(self) -> list[str]:
        """Every file, as sorted relative paths with forward slashes."""

    def has(self, name: str) -> bool:
        """Whether `name` is a file in the folder or below it: never one outside."""

    def has_unfinished_run(self) -> bool:
        """Whether tq3 began to write here and did not come to the end."""

    def size(self, name: str) -> int: ...

    def stamp(self, name: str) -> str:
        """A text that changes when the file does."""

    def expect(self, names: Iterable[str]) -> None:
        """The headers of these files will be asked for next, one after the other."""

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Just these bytes; raises StorageError or NetworkError when the file has fewer."""


class Origin(NamedTuple):
    """Whose weights these are: a model's name, and its revision where it has one."""

    model: str
    revision: str | None


class Source(Files, Protocol):
    """Files that are read to the last byte, by any number of threads.

    folder: where they lie on this machine; None: elsewhere
    is_pinned: whether the content can't change while its stamp stays
    connections: threads that it takes to keep it busy
    n_received: bytes that came over a network; None: there is none
    """

    @property
    def folder(self) -> Path | None: ...
    @property
    def origin(self) -> Origin: ...
    @property
    def is_pinned(self) -> bool: ...
    @property
    def connections(self) -> int: ...
    @property
    def n_received(self) -> int | None: ...

    def place(self, name: str) -> str:
        """The file as messages name it."""

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`; raises StorageError or NetworkError."""

    def parts(self, name: str) -> Iterator[bytes]:
        """The whole file, piece by piece."""

    def cancel(self) -> None:
        """Have reads under way end soon, by any error: nobody waits for them."""


class ForwardingSource:
    """A source that answers as another one does, for classes that change a part of it."""

    def __init__(self, files: Source) -> None:
        self._files = files
        self.label = files.label

    @property
    def folder(self) -> Path | None:
        return self._files.folder

    @property
    def origin(self) -> Origin:
        return self._files.origin

    @property
    def is_pinned(self) -> bool:
        return self._files.is_pinned

    @property
    def connections(self) -> int:
        return self._files.connections

    @property
    def n_received(self) -> int | None:
        return self._files.n_received

    def names(self) -> list[str]:
        return self._files.names()

    def tree(self) -> list[str]:
        return self._files.tree()

    def has(self, name: str) -> bool:
        return self._files.has(name)

    def has_unfinished_run(self) -> bool:
        return self._files.has_unfinished_run()

    def size(self, name: str) -> int:
        return self._files.size(name)

    def stamp(self, name: str) -> str:
        return self._files.stamp(name)

    def expect(self, names: Iterable[str]) -> None:
        self._files.expect(names)

    def read(self, name: str, offset: int, length: int) -> bytes:
        return self._files.read(name, offset, length)

    def place(self, name: str) -> str:
        return self._files.place(name)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        self._files.read_into(name, offset, buffer)

    def parts(self, name: str) -> Iterator[bytes]:
        return self._files.parts(name)

    def cancel(self) -> None:
        self._files.cancel()


def read_object(files: Files, name: str) -> dict[str, Any]:
    """A JSON object from the folder. Raises BadInput."""
    # People edit config.json by hand; of a key that is there twice every host takes the last.
    return parse_object(read_text(files, name), name, unique=name != CONFIG)


def read_text(files: Files, name: str) -> str:
    """A text file of a size that a JSON file may have. Raises BadInput."""
    size = files.size(name)
    if size > _MAX_JSON_FILE:
        raise BadInput(
            "too large for a JSON file",
            file=name,
            found=f"{size} bytes",
            expected=f"at most {_MAX_JSON_FILE}",
        )
    try:
        return files.read(name, 0, size).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"not UTF-8: {error}", file=name) from None
