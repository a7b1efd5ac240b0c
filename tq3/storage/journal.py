"""The journal of a run: what is safely on the disk, so that a later run can go on from there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from tq3.format.manifest import Piece
from tq3.plan.identity import VERSIONS
from tq3.plan.learned import NOTHING_LEARNED, Learned, learned_from_record
from tq3.storage.failures import writing
from tq3.storage.locking import is_at, open_locked
from tq3.storage.records import read_records, record_line

_PATIENCE_SECONDS = 0.5
# A task's name and the first of the units that were done in one go.
Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class DoneBlock:
    """A block whose bytes were written.

    pieces: where, and their checksums
    seen: checksum of the first source bytes, in a tensor's first block
    error: squared error and squared norm of a sample, in a compressed tensor's first block
    """

    task: str
    first: int
    pieces: tuple[Piece, ...]
    seen: str | None = None
    error: tuple[float, float] | None = None

    def to_record(self) -> list[Any]:
        """The block as JSON."""
        return [self.task, self.first, self.pieces, self.seen, self.error]


def done_block(record: list[Any]) -> DoneBlock:
    """The inverse of `DoneBlock.to_record`."""
    task, first, pieces, seen, error = record
    sample = None if error is None else (error[0], error[1])
    return DoneBlock(task, first, tuple(Piece(*piece) for piece in pieces), seen, sample)


class Journal:
    """An append-only file of records, read when it is opened, and the lock of a run.

    A record is appended only when what it tells is on the disk, and is then flushed itself: after a
    power loss it tells less than was done, never more. What a journal of another version tells is
    left alone. A context manager. Raises UsageError when another run has it open.

    shared: where the file system has no locks, several runs of one plan may write it, and what they
    write may be torn; `is_locked` says whether that can't be
    """

    def __init__(self, path: Path, *, shared: bool = False) -> None:
        self.path = path
        self.is_foreign = False
        self.identity: Any = None
        self.learned = NOTHING_LEARNED
        self.overwrite: bool | None = None
        self.is_refused = False
        self.verdicts: list[Any] = []
        self.joined: Any = None
        self._blocks: dict[int, dict[Key, DoneBlock]] = {}
        self._lock = Lock()
        self._is_closed = False
        with writing(path):
            descriptor, self.is_locked = open_locked(path, shared=shared)
            self._file = open(descriptor, "r+b", buffering=0)  # noqa: SIM115
            records, length = read_records(self._file.read())
            self._file.truncate(length)
        for record in records:
            self._apply(record)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed = True
        # A late flush may be writing its last records: then it closes the file, and no other run
        # has the lock before that.
        if self._lock.acquire(timeout=_PATIENCE_SECONDS):
            self._file.close()
            self._lock.release()

    @property
    def is_there(self) -> bool:
        """Whether the path still leads to this journal."""
        return not self._file.closed and is_at(self._file.fileno(), self.path)

    @property
    def is_publishing(self) -> bool:
        """Whether all blocks are done, and files may have their names already."""
        return self.overwrite is not None

    @property
    def has_work(self) -> bool:
        """Whether there is anything that a later run need not do again."""
        joins = self.joined is not None
        return self.is_foreign or self.is_publishing or joins or any(self._blocks.values())

    @property
    def begun(self) -> list[int]:
        """The numbers of the shards of which blocks are done."""
        return sorted(number for number, blocks in self._blocks.items() if blocks)

    def blocks(self, shard: int) -> Mapping[Key, DoneBlock]:
        """The blocks of a shard that are done."""
        return self._blocks.get(shard, {})

    def begin(self, identity: Any) -> None:
        """Forget everything and start the journal of the run with this identity (JSON)."""
        with writing(self.path):
            self._file.truncate(0)
        self.learned, self.overwrite, self._blocks = NOTHING_LEARNED, None, {}
        self.verdicts, self.joined = [], None
        self._append([{"run": identity}])

    def go_on(self, identity: Any) -> None:
        """A run with this identity continues what is told so far."""
        self._append([{"run": identity}])

    def add_blocks(self, shard: int, blocks: Iterable[DoneBlock]) -> None:
        """Record that these blocks of a shard are on the disk."""
        self._append({"shard": shard, "block": block.to_record()} for block in blocks)

    def add_verdicts(self, verdicts: Any) -> None:
        """Record what the values of a shard's tensors said (JSON)."""
        self._append([{"verdicts": verdicts}])

    def restart(self, shards: Iterable[int], learned: Learned = NOTHING_LEARNED) -> None:
        """The shards are written anew, in the plan that heeds what was learned from their values.

        In one record, for what is told of a shard holds in one plan only.
        """
        self._append([{"restart": sorted(shards), **learned.to_record()}])

    def join(self, joined: Any) -> None:
        """Record from what the run that joins parts knows what to do (JSON)."""
        self._append([{"joined": joined}])

    def publishing(self, *, overwrite: bool) -> None:
        """Record that files take their names; `overwrite`: an older checkpoint may be replaced."""
        self._append([{"publishing": overwrite}])

    def refuse(self) -> None:
        """The input was found to be bad: another run need not ask before it starts anew."""
        self._append([{"refused": True}])

    def _append(self, records: Iterable[Mapping[str, Any]]) -> None:
        with self._lock:
            if self._is_closed:
                raise ValueError("the journal is closed")
            try:
                self._write(list(records))
            finally:
                if self._is_closed:
                    self._file.close()

    def _write(self, records: list[Mapping[str, Any]]) -> None:
        with writing(self.path):
            lines = b"".join(map(record_line, records))
            while lines:
                lines = lines[self._file.write(lines) :]
            os.fsync(self._file.fileno())
        for record in records:
            self._apply(record)

    def _apply(self, record: Mapping[str, Any]) -> None:
        if "run" in record:
            self.identity, self.is_refused = record["run"], False
            self.is_foreign = self.identity.get("versions") != VERSIONS
        elif self.is_foreign:
            return
        elif "block" in record:
            done = done_block(record["block"])
            self._blocks.setdefault(record["shard"], {})[done.task, done.first] = done
        elif "joined" in record:
            self.joined = record["joined"]
        elif "verdicts" in record:
            self.verdicts.append(record["verdicts"])
        elif "restart" in record:
            for shard in record["restart"]:
                self._blocks.pop(shard, None)
            self.learned |= learned_from_record(record)
        elif "refused" in record:
            self.is_refused = True
        elif "publishing" in record:
            self.overwrite = record["publishing"]
