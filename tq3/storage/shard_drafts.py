"""The drafts of a run's shards, and the journal that says what of them is safely on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tq3.errors import StorageError
from tq3.plan.identity import Identity
from tq3.plan.plan import Plan
from tq3.storage.drafts import DraftFolder
from tq3.storage.failures import reading, writing
from tq3.storage.journal import DoneBlock, Journal, Key
from tq3.storage.shard_file import ShardFile, holds, is_draft
from tq3.storage.target_checks import START_ANEW, check_changes


class ShardDrafts:
    """What a run has written of its shards, in a folder of its own: a target's, or a part's.

    folder: the target, as messages name it
    ANEW: how an unfinished run is given up, as messages tell it
    """

    ANEW = START_ANEW

    folder: Path
    journal: Journal
    _drafts: DraftFolder
    _identity: Identity
    _overwrite: bool

    def go_on(self) -> None:
        """Let the journal speak of this run from here on; its options may be others."""
        record = self._identity.to_record()
        if self.journal.identity != record or self.journal.is_refused:
            self.journal.go_on(record)

    def start_anew(self, differences: Sequence[str]) -> None:
        """Give up what is left of an earlier run.

        Raises UsageError if that could be continued but for these differences, and may not go.
        """
        if not self._overwrite:
            check_changes(self.folder, self.journal, differences, self.ANEW)
        # In this order: a journal never tells of drafts that are gone.
        self.journal.begin(self._identity.to_record())
        with writing(self.folder):
            self._clear()

    def forget_damaged(self, plan: Plan, numbers: Iterable[int]) -> bool:
        """Have every shard written anew whose file is not what the journal says, to the byte.

        numbers: of the shards to look at. Returns whether there was any.
        """
        damaged = []
        for number in numbers:
            blocks = self.journal.blocks(number)
            path = self._finished_draft(plan, number) if blocks else None
            if blocks and (path is None or not has_blocks(path, blocks)):
                damaged.append(number)
                self.journal.restart([number])
        return bool(damaged)

    @contextmanager
    def shard(self, plan: Plan, number: int) -> Iterator[ShardFile]:
        """The draft of a shard, safely on the disk when the block ends well.

        Its name says which shard it is, not of how many: the values may still change that.
        """
        path = self._finished_draft(plan, number) or self._shard_draft(number)
        record = partial(self.journal.add_blocks, number)
        file = ShardFile(path, plan.shards[number], record)
        complete = False
        try:
            yield file
            complete = True
        finally:
            file.close(complete=complete)

    def check_room(self, n_bytes: int) -> None:
        """Raise StorageError when the disk can't hold `n_bytes`, drafts that are there included."""
        with writing(self.folder):
            free = shutil.disk_usage(self.folder).free + self._drafts.n_bytes
        if free < n_bytes:
            raise StorageError(
                "not enough free space",
                file=self.folder,
                found=f"{free:,} bytes",
                expected=f"{n_bytes:,}",
                fix="free some space or choose a target on another disk",
            )

    def _clear(self) -> None:
        """Remove what an earlier run left. May raise OSError."""
        self._drafts.clear()

    def _finished_draft(self, plan: Plan, number: int) -> Path | None:
        """The file of a shard whose bytes are all reserved."""
        path = self._shard_draft(number)
        with writing(path):
            return path if is_draft(path, plan.shards[number]) else None

    def _shard_draft(self, number: int) -> Path:
        return shard_draft(self._drafts.path, number)


def shard_draft(folder: Path, number: int) -> Path:
    """The path of a shard's draft in a working folder."""
    return folder / f"model-{number + 1:05d}.safetensors.part"


def has_blocks(path: Path, blocks: Mapping[Key, DoneBlock]) -> bool:
    """Whether a file has the bytes of these blocks, by their checksums. Raises StorageError."""
    with reading(path):
        return holds(path, (piece for block in blocks.values() for piece in block.pieces))
