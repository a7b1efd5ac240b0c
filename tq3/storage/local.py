"""A folder on this machine, read by byte range. Opened read-only; nothing here writes."""

from __future__ import annotations

import os
import stat
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Lock

from tq3.errors import BadInput, StorageError
from tq3.format.files import Origin
from tq3.storage.drafts import WORK_FOLDER
from tq3.storage.failures import reading

_AHEAD_BYTES = 8 * 2**20
_PART_BYTES = 2**20
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}
_MAX_OPEN = 16  # as long as no more threads than that read different files


@dataclass(slots=True)
class _OpenFile:
    descriptor: int
    readers: int = 0


class LocalFiles:
    """The files of a folder, for any number of threads. A context manager: it keeps files open."""

    is_pinned = False
    connections = 1
    n_received = None

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.label = str(folder)
        if os.path.isfile(self.folder):
            raise BadInput(
                "a file, not a folder",
                file=self.label,
                fix="give the path of the checkpoint folder that it lies in",
            )
        if not os.path.isdir(self.folder):
            raise BadInput(
                "no such folder",
                file=self.label,
                fix="give the path of a checkpoint folder, or a repository on the Hub as ORG/NAME",
            )
        self._open: OrderedDict[str, _OpenFile] = OrderedDict()  # the last one read is last
        self._lock = Lock()

    def __enter__(self) -> LocalFiles:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            os.close(self._open.popitem()[1].descriptor)

    @property
    def origin(self) -> Origin:
        """Name and revision: the Hub's for a snapshot in its cache, else the folder's name.

        The cache's layout is models--ORG--NAME/snapshots/REVISION (huggingface_hub's docs).
        """
        path = self.folder.resolve()
        if path.parent.name == "snapshots" and path.parts[-3].startswith("models--"):
            name = path.parts[-3].removeprefix("models--").replace("--", "/")
            return Origin(name, path.name)
        return Origin(path.name, None)

    def expect(self, names: Iterable[str]) -> None:
        """A disk gives the headers soon enough."""

    def cancel(self) -> None:
        """A disk does not keep anybody waiting."""

    def place(self, name: str) -> str:
        """The file's path."""
        return str(self.folder / name)

    def names(self) -> list[str]:
        """The names at the top of the folder that are no folders, sorted.

        Links to files are followed (the Hub cache is made of them), links to folders are not. What
        can't be read, such as a pipe or a link whose file is missing, fails with its name when it
        is: nobody shall take it for absent.
        """
        with reading(self.folder):
            names = os.listdir(self.folder)
            return sorted(name for name in names if not os.path.isdir(self.folder / name))

    def has(self, name: str) -> bool:
        """Whether `name` is in the folder or below it, and no folder: never one outside."""
        path = PurePosixPath(name)
        inside = not path.is_absolute() and ".." not in path.parts
        there = inside and os.path.lexists(self.folder / path)
        return there and not os.path.isdir(self.folder / path)

    def has_unfinished_run(self) -> bool:
        """Whether tq3 began to write here and did not come to the end."""
        return os.path.isdir(self.folder / WORK_FOLDER)

    def tree(self) -> list[str]:
        """Every file below the folder, as sorted relative paths with forward slashes.

        Pipes and devices are left out; a link to a folder is listed with a slash at its end.
        """
        found = []
        for folder, folders, names in os.walk(self.folder, onerror=_refuse):
            here = Path(folder)
            files = (here / name for name in names)
            links = (here / name for name in folders if os.path.islink(here / name))
            found += [path.relative_to(self.folder).as_posix() for path in files if _is_file(path)]
            found += [path.relative_to(self.folder).as_posix() + "/" for path in links]
        return sorted(found)

    def size(self, name: str) -> int:
        """Bytes of a file."""
        with reading(self.folder / name):
            found = (self.folder / name).stat()
        self._refuse_special(name, found.st_mode)
        return found.st_size

    def stamp(self, name: str) -> str:
        """Size and time of the last change: what differs when a file was replaced or written."""
        with reading(self.folder / name):
            status = (self.folder / name).stat()
        seconds, nanoseconds = divmod(status.st_mtime_ns, 10**9)
        changed = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
        return f"{status.st_size} bytes of {changed}.{nanoseconds:09} UTC"

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Just these bytes. Raises StorageError when the file has fewer."""
        buffer = bytearray(length)
        self.read_into(name, offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`. Raises StorageError when the file has fewer bytes."""
        with reading(self.folder / name), self._opened(name) as descriptor:
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
                        fix="get the source again, and start anew with --overwrite",
                        repeatable=False,
                    )
                done += n

    def parts(self, name: str) -> Iterator[bytes]:
        """The whole file, piece by piece. Raises StorageError."""
        path = self.folder / name
        with reading(path), path.open("rb") as file:
            while part := file.read(_PART_BYTES):
                yield part

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        """The file's descriptor, which nobody closes within the block."""
        with self._lock:
            if name not in self._open:
                self._close_idle()
                self._open[name] = _OpenFile(self._open_regular(name))
            self._open.move_to_end(name)
            file = self._open[name]
            file.readers += 1
        try:
            yield file.descriptor
        finally:
            with self._lock:
                file.readers -= 1

    def _open_regular(self, name: str) -> int:
        # A pipe that nobody writes to would keep a plain open waiting for ever.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(self.folder / name, flags)
        try:
            self._refuse_special(name, os.fstat(descriptor).st_mode)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _refuse_special(self, name: str, mode: int) -> None:
        if not stat.S_ISREG(mode):
            raise BadInput(
                "not a regular file",
                file=self.folder / name,
                found=_KINDS.get(stat.S_IFMT(mode), "something else"),
                fix="put the file itself there",
            )

    def _close_idle(self) -> None:
        """Make room for one more, closing what was not read for longest."""
        for name in [name for name, file in self._open.items() if not file.readers]:
            if len(self._open) < _MAX_OPEN:
                return
            os.close(self._open.pop(name).descriptor)


def _is_file(path: Path) -> bool:
    """Whether an existing entry is a file; one that can't be looked at is: reading says why."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True


def _refuse(error: OSError) -> None:
    with reading(Path(error.filename)):
        raise error


def _read_ahead(descriptor: int, offset: int, length: int) -> None:
    """Have the disk fetch what is read a little later, while this thread computes."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)
