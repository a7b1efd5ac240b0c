"""One shard under way: a draft with all its bytes reserved, flushed while it is written."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from threading import Event, Lock, Thread

from tq3.format.manifest import Piece, digest
from tq3.plan.plan import Shard
from tq3.storage.failures import writing
from tq3.storage.journal import DoneBlock

_FLUSH_SECONDS = 0.1
# An interrupted run ends within a second, however slow the disk is.
_LAST_FLUSH_SECONDS = 0.5
_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class ShardFile:
    """An open draft; any thread may write anywhere in it.

    path: an earlier run's draft, if `is_draft` says so, else a new one
    record: called in a thread of its own with blocks whose bytes are on the disk
    """

    def __init__(
        self, path: Path, shard: Shard, record: Callable[[Sequence[DoneBlock]], None]
    ) -> None:
        self.path = path
        self.offsets = shard.offsets
        self._record = record
        self._written: list[DoneBlock] = []
        self._lock = Lock()
        self._closing = Event()
        self._error: Exception | None = None
        with writing(path):
            self._descriptor = _reopen(path) if is_draft(path, shard) else _create(path, shard)
        try:
            self._flusher = self._start_flusher()
        except BaseException:
            os.close(self._descriptor)
            raise

    def write(self, offset: int, data: memoryview) -> Piece:
        """Write all of `data` at `offset`. Raises StorageError, for an earlier flush too."""
        with writing(self.path):
            if self._error:
                raise self._error
            _write_all(self._descriptor, offset, data)
        return Piece(offset, len(data), digest(data))

    def finish(self, block: DoneBlock) -> None:
        """Note that all pieces of the block are written: it is recorded after the next flush."""
        with self._lock:
            self._written.append(block)

    def close(self, *, complete: bool) -> None:
        """Close the file; `complete`: only when all is on the disk. Raises StorageError."""
        self._closing.set()
        try:
            self._flusher.join(None if complete else _LAST_FLUSH_SECONDS)
            if complete and self._error:
                with writing(self.path):
                    raise self._error
        finally:
            os.close(self._descriptor)

    def _start_flusher(self) -> Thread:
        # It has a descriptor of its own, since it may outlive `close` when a flush takes long. A
        # daemon, because an interrupt may come before anybody can call `close`: the program would
        # then wait for this thread for ever.
        own = os.dup(self._descriptor)
        flusher = Thread(target=self._flush_along, args=(own,), name="tq3-flush", daemon=True)
        try:
            flusher.start()
        except BaseException:
            os.close(own)
            raise
        return flusher

    def _flush_along(self, descriptor: int) -> None:
        """Write to the disk while blocks are still computed, so that the last flush is short.

        The system reports a failed flush once only, so it must not be lost in this thread.
        """
        try:
            while not self._closing.wait(_FLUSH_SECONDS):
                self._flush(descriptor)
            self._flush(descriptor)
        except Exception as error:
            self._error = error
        finally:
            os.close(descriptor)

    def _flush(self, descriptor: int) -> None:
        with self._lock:
            written, self._written = self._written, []
        os.fsync(descriptor)
        if written:
            self._record(written)


def is_draft(path: Path, shard: Shard) -> bool:
    """Whether a file has the size and the header of this shard."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != shard.file_bytes:
        return False
    with path.open("rb") as file:
        return file.read(len(shard.header)) == shard.header


def holds(path: Path, pieces: Iterable[Piece]) -> bool:
    """Whether a file has these bytes, by their checksums."""
    with path.open("rb") as file:
        for piece in pieces:
            file.seek(piece.offset)
            if digest(file.read(piece.length)) != piece.digest:
                return False
    return True


def _reopen(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _create(path: Path, shard: Shard) -> int:
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        os.ftruncate(descriptor, shard.file_bytes)
        _reserve(descriptor, shard.file_bytes)
        _write_all(descriptor, 0, memoryview(shard.header))
        flush_folder(path.parent)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _write_all(descriptor: int, offset: int, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)


def _reserve(descriptor: int, n_bytes: int) -> None:
    """Allocate the blocks now: a full disk shows early, and writing into them is faster."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, n_bytes)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise


def flush_folder(folder: Path) -> None:
    """fsync a folder, where the system can, so that renames in it survive a power loss."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (*_NOT_SUPPORTED, errno.EACCES):
            raise
