"""The target folder: drafts until the last moment, then every file takes its name."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from tq3.errors import StorageError, UsageError
from tq3.format import config as tq_config
from tq3.plan.plan import Plan, Shard
from tq3.plan.sources import INDEX

_DRAFT = ".part"
_FLUSH_SECONDS = 0.1
_CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class ShardFile:
    """One open draft with all its bytes reserved; any thread may write anywhere in it."""

    def __init__(self, path: Path, shard: Shard) -> None:
        self.path = path
        self.offsets = shard.offsets
        with _write_errors(path):
            path.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o666)
            os.ftruncate(self._descriptor, shard.file_bytes)
            _reserve(self._descriptor, shard.file_bytes)
        self.write(0, memoryview(shard.header))
        self._closing = Event()
        # A daemon, because an interrupt may come before anybody can call `close`: the program would
        # then wait for this thread for ever.
        self._flusher = Thread(target=self._flush_along, name="tq3-flush", daemon=True)
        self._flush_error: OSError | None = None
        self._flusher.start()

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at `offset`. Raises StorageError."""
        with _write_errors(self.path):
            done = 0
            while done < len(data):
                done += os.pwrite(self._descriptor, data[done:], offset + done)

    def close(self, *, flush: bool) -> None:
        """Close the file, its bytes safely on the disk if `flush`. Raises StorageError."""
        self._closing.set()
        self._flusher.join()
        try:
            if flush:
                with _write_errors(self.path):
                    if self._flush_error:
                        raise self._flush_error
                    os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

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
    """A complete checkpoint or none: leaving without `publish` removes what was written."""

    def __init__(self, folder: str | os.PathLike[str], *, source: Path, overwrite: bool) -> None:
        self.folder = Path(folder)
        self._made = [p for p in (self.folder, *self.folder.parents) if not p.exists()]
        self._unmarked: list[Path] = []  # files with their names, as long as the marker is missing
        self._check_apart(source)
        self._check_free(overwrite)
        with _write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_drafts()

    def __enter__(self) -> TargetFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._remove_drafts()
        for path in self._unmarked:
            path.unlink(missing_ok=True)
        for folder in self._made:
            if any(folder.iterdir()):
                break
            folder.rmdir()

    def check_room(self, n_bytes: int) -> None:
        """Raise StorageError when the disk can't hold `n_bytes` more."""
        free = shutil.disk_usage(self.folder).free
        if free < n_bytes:
            raise StorageError(
                "not enough free space",
                file=self.folder,
                found=f"{free:,} bytes",
                expected=f"{n_bytes:,}",
                fix="free some space or choose a target on another disk",
            )

    @contextmanager
    def shard(self, number: int, shard: Shard) -> Iterator[ShardFile]:
        """A new draft, safely on the disk when the block ends well.

        Its name says which shard it is, not of how many: the values may still change that.
        """
        file = ShardFile(self._draft(number), shard)
        complete = False
        try:
            yield file
            complete = True
        finally:
            file.close(flush=complete)

    def publish(
        self,
        plan: Plan,
        *,
        copies: Mapping[str, Path],
        texts: Mapping[str, str],
        marker: tuple[str, str],
    ) -> None:
        """Give every file its name: shards, index, copied files, texts, and last the marker.

        The marker (name and text) makes a folder a checkpoint; an old one is removed before
        anything changes.
        """
        for old in (tq_config.FILE_NAME, marker[0]):
            (self.folder / old).unlink(missing_ok=True)
        self._remove_stale_weights(plan)
        for number, name in enumerate(plan.shard_names):
            with _write_errors(self.folder / name):
                self._take_name(self._draft(number), self.folder / name)
        if plan.index is not None:
            self._write_text(INDEX, json.dumps(plan.index, indent=2, ensure_ascii=False) + "\n")
        for name, source in copies.items():
            self._copy(name, source)
        for name, text in texts.items():
            self._write_text(name, text)
        self._write_text(*marker)
        self._unmarked.clear()
        _flush_folder(self.folder)

    def _check_apart(self, source: Path) -> None:
        here, there = self.folder.resolve(), source.resolve()
        if here.is_relative_to(there) or there.is_relative_to(here):
            raise UsageError(
                "source and target lie inside each other",
                file=self.folder,
                fix="give a target beside the source",
            )

    def _check_free(self, overwrite: bool) -> None:
        if self._made or overwrite and self.folder.is_dir():
            return
        if not self.folder.is_dir():
            raise UsageError("the target is a file", file=self.folder, fix="give another path")
        drafts = set(self._drafts_there())
        if any(path not in drafts for path in self.folder.iterdir()):
            raise UsageError(
                "the target folder is not empty",
                file=self.folder,
                fix="give another path, or --overwrite to replace what is there",
            )

    def _draft(self, number: int) -> Path:
        return self.folder / f"model-{number + 1:05d}.safetensors{_DRAFT}"

    def _drafts_there(self) -> Iterator[Path]:
        """Shard drafts in the folder, also those of a run that was killed."""
        return self.folder.glob(f"model-*.safetensors{_DRAFT}")

    def _remove_drafts(self) -> None:
        for draft in self._drafts_there():
            draft.unlink(missing_ok=True)

    def _remove_stale_weights(self, plan: Plan) -> None:
        """Hosts that read every *.safetensors would load what an earlier checkpoint left."""
        for path in (*self.folder.glob("*.safetensors"), self.folder / INDEX):
            if path.name not in plan.weight_files:
                path.unlink(missing_ok=True)

    def _copy(self, name: str, source: Path) -> None:
        with self._draft_of(name) as draft:
            shutil.copyfile(source, draft)

    def _write_text(self, name: str, text: str) -> None:
        with self._draft_of(name) as draft:
            draft.write_text(text, encoding="utf-8", newline="")

    def _take_name(self, draft: Path, path: Path) -> None:
        self._unmarked.append(path)
        draft.replace(path)

    @contextmanager
    def _draft_of(self, name: str) -> Iterator[Path]:
        """A path to write to, flushed and renamed to `name` when the block ends well."""
        path = self.folder / name
        draft = path.with_name(path.name + _DRAFT)
        with _write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.unlink(missing_ok=True)
            try:
                yield draft
                with draft.open("rb+") as file:
                    os.fsync(file.fileno())
                self._take_name(draft, path)
            finally:
                draft.unlink(missing_ok=True)


def _reserve(descriptor: int, n_bytes: int) -> None:
    """Allocate the blocks now: a full disk shows early, and writing into them is faster."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, n_bytes)
    except OSError as error:
        if error.errno not in _CANNOT_RESERVE:
            raise


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"can't be written: {error.strerror or error}",
            file=path,
            fix="see free space and permissions",
        ) from None
