"""The files of a repository on the Hub, read by byte range; nothing of them goes to the disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from threading import Event

from tq3.errors import NetworkError
from tq3.format.files import Origin
from tq3.hub import cache
from tq3.hub.options import HubOptions
from tq3.hub.ranges import RangeReader
from tq3.hub.repository import RemoteFile, find_repository
from tq3.storage.drafts import WORK_FOLDER
from tq3.storage.local import LocalFiles

# Files that are not large fit in one part: a server need not know ranges for them.
_PART_BYTES = 16 * 2**20
# What is fetched when the first bytes of a large file are asked for: most headers are shorter.
_HEAD_BYTES = 2**16


class HubFiles:
    """A repository at one commit, for any number of threads. A context manager: it may be left.

    Files that are in the Hub cache already are read from there.
    """

    folder: Path | None = None
    is_pinned = True

    def __init__(self, name: str, options: HubOptions) -> None:
        self._stop = Event()
        self._repository = find_repository(name, options, self._stop)
        if options.download:
            cache.download(self._repository, options, self._stop)
        self.label = self._repository.label
        self.origin = Origin(self._repository.name, self._repository.commit)
        self.connections = options.connections
        self._ranges = RangeReader(self._repository, options, self._stop)
        self._cached = cache.cached_files(self._repository)
        self._snapshot = _snapshot(self._cached)
        # A few: config.json and the index are read more than once.
        self._small = lru_cache(maxsize=4)(self._fetch_whole)
        self._heads: dict[str, bytes] = {}

    def __enter__(self) -> HubFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()
        if self._snapshot:
            self._snapshot.__exit__()

    @property
    def n_received(self) -> int:
        """Bytes that came over the network."""
        return self._ranges.n_received

    def expect(self, names: Iterable[str]) -> None:
        """Fetch the headers of these files at the same time: one by one they would take minutes."""
        files = [file for file in map(self._file, names) if file.large]
        with ThreadPoolExecutor(self.connections, thread_name_prefix="tq3") as pool:
            try:
                list(pool.map(self._head, files))
            except BaseException:
                self.cancel()
                raise

    def cancel(self) -> None:
        """Nobody waits for what is being read: have every thread that does so raise at once."""
        self._stop.set()
        self._ranges.interrupt()

    def names(self) -> list[str]:
        """The files at the top of the repository, sorted."""
        return [name for name in self.tree() if "/" not in name]

    def has(self, name: str) -> bool:
        """Whether the repository has the file."""
        return name.removeprefix("./") in self._repository.files

    def has_unfinished_run(self) -> bool:
        """Whether somebody uploaded a folder in which tq3 had not come to the end."""
        return any(name.startswith(f"{WORK_FOLDER}/") for name in self._repository.files)

    def tree(self) -> list[str]:
        """Every file of the repository, sorted."""
        return sorted(self._repository.files)

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return self._file(name).size

    def stamp(self, name: str) -> str:
        """Size and commit, which is a hash of all content; two of these fit into one sentence."""
        return f"{self.size(name)} bytes of commit {self._repository.commit}"

    def place(self, name: str) -> str:
        """The file as messages name it."""
        return f"{self._repository.name}/{name}"

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Just these bytes. Raises NetworkError, also when the file has fewer."""
        file = self._file(name)
        if not file.large:
            self._check_within(file, offset, length)
            return self._small(name)[offset : offset + length]
        if offset + length <= min(_HEAD_BYTES, file.size):
            return self._head(file)[offset : offset + length]
        buffer = bytearray(length)
        self.read_into(name, offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`. Raises NetworkError, also when the file has fewer bytes."""
        file = self._file(name)
        self._check_within(file, offset, len(buffer))
        if self._snapshot and file.name in self._cached:
            self._snapshot.read_into(file.name, offset, buffer)
        else:
            self._ranges.read_into(file, offset, buffer)

    def parts(self, name: str) -> Iterator[bytes]:
        """The whole file, piece by piece; raises NetworkError if its hash is not the listed one."""
        file = self._file(name)
        state = file.new_hash()
        for start in range(0, file.size, _PART_BYTES):
            part = bytearray(min(_PART_BYTES, file.size - start))
            self.read_into(name, start, memoryview(part))
            state.update(part)
            yield bytes(part)
        if state.hexdigest() != file.etag:
            raise NetworkError(
                "not the content that the Hub names",
                file=self.place(name),
                found=state.hexdigest(),
                expected=file.etag,
                fix="look at the proxy, or remove the file from the Hub cache",
            )

    def _fetch_whole(self, name: str) -> bytes:
        return b"".join(self.parts(name))

    def _head(self, file: RemoteFile) -> bytes:
        """The first bytes of a large file; kept, since a header is read in two steps."""
        if file.name not in self._heads:
            buffer = bytearray(min(_HEAD_BYTES, file.size))
            self.read_into(file.name, 0, memoryview(buffer))
            self._heads[file.name] = bytes(buffer)
        return self._heads[file.name]

    def _file(self, name: str) -> RemoteFile:
        file = self._repository.files.get(name.removeprefix("./"))
        if file is None:
            raise NetworkError(
                "no such file", file=self.place(name), fix="look at this revision's files"
            )
        return file

    def _check_within(self, file: RemoteFile, offset: int, length: int) -> None:
        if offset + length > file.size:
            raise NetworkError(
                "the file is shorter than what is to be read",
                file=self.place(file.name),
                found=f"{file.size} bytes",
                expected=f"{offset + length}",
            )


def _snapshot(cached: dict[str, Path]) -> LocalFiles | None:
    """The folder in the cache that has these files."""
    for name, path in cached.items():
        return LocalFiles(cache.folder_of(path, name))
    return None
