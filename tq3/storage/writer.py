"""The target folder: drafts until the last moment, then every file takes its name."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from threading import Event, Thread

from tq3.errors import StorageError, UsageError
from tq3.format import config as tq_config
from tq3.plan.plan import Plan, Shard
from tq3.plan.sources import INDEX
from tq3.storage.drafts import WORK_FOLDER, DraftFolder
from tq3.storage.failures import reading, writing
from tq3.storage.sidecars import is_weight_file

_FLUSH_SECONDS = 0.1
_COPIED_AT_ONCE = 2**20
_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class ShardFile:
    """One open draft with all its bytes reserved; any thread may write anywhere in it."""

    def __init__(self, path: Path, shard: Shard) -> None:
        self.path = path
        self.offsets = shard.offsets
        self._closing = Event()
        self._flush_error: OSError | None = None
        with writing(path):
            path.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o666)
        try:
            self._begin(shard)
        except BaseException:
            os.close(self._descriptor)
            raise

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at `offset`. Raises StorageError."""
        with writing(self.path):
            done = 0
            while done < len(data):
                done += os.pwrite(self._descriptor, data[done:], offset + done)

    def close(self, *, flush: bool) -> None:
        """Close the file, its bytes safely on the disk if `flush`. Raises StorageError."""
        try:
            self._closing.set()
            self._flusher.join()
            if flush:
                with writing(self.path):
                    if self._flush_error:
                        raise self._flush_error
                    os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

    def _begin(self, shard: Shard) -> None:
        with writing(self.path):
            os.ftruncate(self._descriptor, shard.file_bytes)
            _reserve(self._descriptor, shard.file_bytes)
        self.write(0, memoryview(shard.header))
        # A daemon, because an interrupt may come before anybody can call `close`: the program would
        # then wait for this thread for ever.
        self._flusher = Thread(target=self._flush_along, name="tq3-flush", daemon=True)
        self._flusher.start()

    def _flush_along(self) -> None:
        """Write to the disk while blocks are still computed, so that the last flush is short.

        A failed flush is reported once only, to whoever asked: it must not be lost in this thread.
        """
        try:
            while not self._closing.wait(_FLUSH_SECONDS):
                os.fsync(self._descriptor)
        except OSError as error:
            self._flush_error = error


class TargetFolder:
    """A complete checkpoint or none: leaving without `publish` removes what was written.

    overwrite: a folder that is not empty may be the target. Until `publish` nothing in it changes;
    then the older checkpoint loses its marker, tq_config.json, and all weights at the top of the
    folder in any format. Files of the same names are replaced, any other file stays.
    """

    def __init__(self, folder: str | os.PathLike[str], *, source: Path, overwrite: bool) -> None:
        self.folder = Path(folder)
        self._made: list[Path] = []  # folders, outer ones first
        self._named: list[Path] = []  # files with their names, as long as the marker is missing
        self._copies: list[str] = []
        self._check_apart(source)
        self._check_free(overwrite)
        with ExitStack() as undo, writing(self.folder):
            undo.callback(self._take_back)
            self._make(self.folder)
            self._drafts = undo.enter_context(DraftFolder(self.folder))
            self._check_free(overwrite)  # again: a run may have published before we had the lock
            self._undo = undo.pop_all()

    def __enter__(self) -> TargetFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def check_room(self, n_bytes: int) -> None:
        """Raise StorageError when the disk can't hold `n_bytes` more."""
        with writing(self.folder):
            free = shutil.disk_usage(self.folder).free
        if free < n_bytes:
            raise StorageError(
                "not enough free space",
                file=self.folder,
                found=f"{free:,} bytes",
                expected=f"{n_bytes:,}",
                fix="free some space or choose a target on another disk",
            )

    def copy(self, name: str, source: Path) -> None:
        """Copy a file to the draft of `name`, safely on the disk. Raises StorageError."""
        self._write_draft(name, _pieces(source))
        self._copies.append(name)

    @contextmanager
    def shard(self, number: int, shard: Shard) -> Iterator[ShardFile]:
        """A new draft, safely on the disk when the block ends well.

        Its name says which shard it is, not of how many: the values may still change that.
        """
        file = ShardFile(self._shard_draft(number), shard)
        complete = False
        try:
            yield file
            complete = True
        finally:
            file.close(flush=complete)

    def publish(self, plan: Plan, *, texts: Mapping[str, str], marker: tuple[str, str]) -> None:
        """Give every file its name: shards, copies, index, texts, and last the marker.

        The marker (name and text) makes a folder a checkpoint. Everything is on the disk before an
        old one is removed, and everything has its name before the new one is there.
        """
        if plan.index is not None:
            texts = {INDEX: json.dumps(plan.index, indent=2, ensure_ascii=False) + "\n"} | {**texts}
        for name, text in (*texts.items(), marker):
            self._write_draft(name, [text.encode()])
        self._remove_older(plan, marker[0])
        for number, name in enumerate(plan.shard_names):
            self._take_name(self._shard_draft(number), name)
        for name in dict.fromkeys((*self._copies, *texts)):
            self._take_name(self._drafts.draft(name), name)
        self._flush_folders()
        self._take_name(self._drafts.draft(marker[0]), marker[0])
        self._flush_folders()
        self._named.clear()
        self._made.clear()

    def _check_apart(self, source: Path) -> None:
        here, there = (Path(os.path.realpath(path)) for path in (self.folder, source))
        if here.is_relative_to(there) or there.is_relative_to(here):
            raise UsageError(
                "source and target lie inside each other",
                file=self.folder,
                fix="give a target beside the source",
            )

    def _check_free(self, overwrite: bool) -> None:
        if not os.path.exists(self.folder):
            return
        if not os.path.isdir(self.folder):
            raise UsageError("the target is a file", file=self.folder, fix="give another path")
        with writing(self.folder):
            names = set(os.listdir(self.folder))
        if names - {WORK_FOLDER} and not overwrite:
            raise UsageError(
                "the target folder is not empty",
                file=self.folder,
                fix="give another path, or --overwrite to replace what is there",
            )

    def _make(self, folder: Path) -> None:
        """Make a folder and those above it, and remember which were made."""
        missing = takewhile(lambda path: not os.path.exists(path), (folder, *folder.parents))
        for path in reversed([*missing]):
            with suppress(FileExistsError):  # another run may make the same
                path.mkdir()
                self._made.append(path)

    def _take_back(self) -> None:
        """Remove what has a name already, the marker first, and the folders that were made."""
        for file in reversed(self._named):
            with suppress(OSError):
                file.unlink()
        for folder in reversed(self._made):
            with suppress(OSError):  # others may have put something there
                folder.rmdir()

    def _shard_draft(self, number: int) -> Path:
        return self._drafts.draft(f"model-{number + 1:05d}.safetensors")

    def _write_draft(self, name: str, pieces: Iterable[bytes]) -> None:
        with writing(self.folder / name), self._drafts.new_draft(name).open("xb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())

    def _remove_older(self, plan: Plan, marker: str) -> None:
        """Remove the older checkpoint's markers, then weights that a host might load with ours."""
        with writing(self.folder):
            for name in (marker, tq_config.FILE_NAME):
                (self.folder / name).unlink(missing_ok=True)
            _flush_folder(self.folder)
            for path in list(self.folder.iterdir()):
                stale = is_weight_file(path.name) and path.name not in plan.weight_files
                if stale and (path.is_symlink() or not path.is_dir()):
                    path.unlink()

    def _take_name(self, draft: Path, name: str) -> None:
        path = self.folder / name
        with writing(path):
            self._make(path.parent)
            self._named.append(path)
            draft.replace(path)

    def _flush_folders(self) -> None:
        """Those in which files or folders took their names."""
        changed = {path.parent for path in (*self._named, *self._made)}
        for folder in sorted(changed - set(self.folder.parents)):
            with writing(folder):
                _flush_folder(folder)


def _pieces(source: Path) -> Iterator[bytes]:
    with reading(source), source.open("rb") as file:
        while piece := file.read(_COPIED_AT_ONCE):
            yield piece


def _reserve(descriptor: int, n_bytes: int) -> None:
    """Allocate the blocks now: a full disk shows early, and writing into them is faster."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, n_bytes)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise


def _flush_folder(folder: Path) -> None:
    """Its names, safely on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
    finally:
        os.close(descriptor)
