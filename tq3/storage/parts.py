"""A part of a divided run: its drafts, its journal and its manifest, in a folder of its own.

Parts of a run lie side by side in OUT/.tq3.part/.tq3.part, each in a folder such as 0003-of-0016
that no other part writes to.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tq3.errors import BadInput, UsageError
from tq3.format import config as tq_config
from tq3.format.manifest import digest
from tq3.format.parts import Part
from tq3.plan.identity import Identity
from tq3.plan.plan import Plan
from tq3.storage.drafts import ALL_ANEW, PARTS, WORK_FOLDER, DraftFolder
from tq3.storage.failures import reading, writing
from tq3.storage.journal import Journal
from tq3.storage.locking import open_locked
from tq3.storage.part_manifest import (
    FILE_NAME,
    PartManifest,
    PartShard,
    read_part_manifest,
)
from tq3.storage.records import read_records
from tq3.storage.shard_drafts import ShardDrafts, shard_draft
from tq3.storage.shard_file import flush_folder
from tq3.storage.target_checks import check_apart, check_free

# Records of what need not be done again.
_WORK = {"block", "publishing", "joined"}
_WAITS = (0.02, 0.1, 0.2)
_FOLDER = re.compile(r"(\d{4})-of-(\d{4})", re.ASCII)


class PartFolder(ShardDrafts):
    """What a part has written, with which a later run of it goes on. A context manager.

    identity: of the run that is divided; a part that left another one is given up where that is
    allowed
    overwrite, resume: as `TargetFolder` takes them; nothing of the target changes, nor of other
    parts, save that those of another division go with `overwrite`

    Raises UsageError when the same part is written elsewhere. Where the file system has no locks
    that is not seen: both write the same bytes, and what they tear is found and written again.
    """

    ANEW = ALL_ANEW

    def __init__(
        self,
        folder: str | os.PathLike[str],
        part: Part,
        identity: Identity,
        *,
        source: Path | None,
        overwrite: bool,
        resume: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self.part = part
        self._identity = identity
        self._overwrite = overwrite
        check_part(self.folder, part, source, overwrite=overwrite)
        with ExitStack() as undo:
            self._made = not self.folder.exists()
            with writing(self.folder):
                if overwrite:
                    _remove_other_divisions(self.folder, part)
                path = part_folder(self.folder, part)
                path.parent.mkdir(parents=True, exist_ok=True)
                self._drafts = DraftFolder(path)
            self.journal = undo.enter_context(open_journal(self.folder, part))
            undo.callback(self._remove_useless)
            left = self.journal.identity
            differences = identity.differences(left, stamps=False) if left and resume else []
            if not (left and resume) or differences:
                self.start_anew(differences)
            self._undo = undo.pop_all()

    def __enter__(self) -> PartFolder:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        with self._undo:
            if isinstance(error, BadInput) and self.journal.has_work:
                self.journal.refuse()

    def others(self) -> Iterator[PartManifest]:
        """The manifests of the run's parts, of this one too, where it was complete before.

        Raises UsageError for one of another run, unless it may go.
        """
        for part in parts_in(self.folder):
            with suppress(BadInput):  # `finish` names a damaged one
                manifest = read_part_manifest(part_folder(self.folder, part))
                if manifest is None:
                    continue
                differences = self._identity.differences(manifest.identity, stamps=False)
                if not differences:
                    yield manifest
                elif not self._overwrite:
                    raise UsageError(
                        f"part {part} in the target is of another run",
                        file=self.folder,
                        found="; ".join(differences[:3]),
                        fix=f"give all parts the same options, or {ALL_ANEW}",
                    )

    def keep_only(self, plan: Plan, numbers: Collection[int], before: Plan | None = None) -> None:
        """Give up what is done of shards that are not among these, or not as they were.

        before: the plan in which the drafts were written, where they need not be read again
        """
        kept = [n for n in numbers if not before or _same(before, plan, n)]
        if stale := [n for n in self.journal.begun if n not in kept]:
            self.journal.restart(stale)
        known = {self._shard_draft(number) for number in kept}
        with writing(self._drafts.path):
            for path in self._drafts.path.glob("model-*.part"):
                if path not in known:
                    path.unlink()
        if not before:
            self.forget_damaged(plan, kept)

    def has_draft(self, plan: Plan, number: int) -> bool:
        """Whether the shard has a file of its size and header."""
        return self._finished_draft(plan, number) is not None

    def seal(
        self,
        plan: Plan,
        numbers: Collection[int],
        *,
        request: Mapping[str, Any],
        verdicts: Mapping[str, Any],
    ) -> None:
        """Write the manifest: these shards of the plan are done. Raises StorageError."""
        shards = {
            number: PartShard(
                digest(plan.shards[number].header), [*self.journal.blocks(number).values()]
            )
            for number in numbers
        }
        PartManifest(
            part=self.part,
            identity=self._identity.to_record(),
            request=request,
            overwrite=self._overwrite,
            verdicts=verdicts,
            shards=shards,
        ).write(self._drafts.path)

    def _clear(self) -> None:
        super()._clear()
        for path in (self._drafts.path, *self._drafts.path.parents[:3]):
            flush_folder(path)  # the way to the journal

    def _remove_useless(self) -> None:
        """Leave nothing where there is nothing to continue."""
        if self.journal.has_work or (self._drafts.path / FILE_NAME).exists():
            return
        if self.journal.is_there:
            with suppress(OSError):  # what other parts wrote is in the folders above
                self._drafts.remove()
                for path in self._drafts.path.parents[: 3 if self._made else 2]:
                    path.rmdir()


def parts_folder(folder: Path) -> Path:
    """Where the parts lie of a run that writes the target `folder`."""
    return folder / WORK_FOLDER / PARTS


def part_folder(folder: Path, part: Part) -> Path:
    """The folder of one part of such a run."""
    return parts_folder(folder) / f"{part.number:04}-of-{part.of:04}"


def parts_in(folder: Path) -> list[Part]:
    """The parts that something was written of, sorted by count and number."""
    path = parts_folder(folder)
    if not path.is_dir():
        return []
    with reading(path):
        found = (_FOLDER.fullmatch(name) for name in os.listdir(path))
        parts = [Part(*map(int, match.groups())) for match in found if match]
    return sorted(parts, key=lambda part: (part.of, part.number))


def is_divided(folder: Path) -> bool:
    """Whether parts lie in a target that has no checkpoint yet."""
    return bool(parts_in(folder)) and not (folder / tq_config.FILE_NAME).exists()


def open_journal(folder: Path, part: Part) -> Journal:
    """A part's journal. Raises UsageError when another run has it open."""
    path = part_folder(folder, part) / DraftFolder.JOURNAL
    for seconds in _WAITS:
        try:
            return Journal(path, shared=True)
        except UsageError:
            time.sleep(seconds)  # somebody may only have looked whether it is written
    raise UsageError(
        f"part {part} is being written by another run", file=folder, fix="wait for its end"
    )


@contextmanager
def held(folder: Path, parts: Iterable[Part]) -> Iterator[set[int]]:
    """Nobody begins to write these parts within the block, save the numbers that are written now.

    Parts of which there is nothing are left out. May raise StorageError.
    """
    busy = set()
    with ExitStack() as undo:
        for part in parts:
            path = part_folder(folder, part) / DraftFolder.JOURNAL
            if not path.is_file():
                continue
            with writing(path):
                try:
                    undo.callback(os.close, open_locked(path, shared=True)[0])
                except UsageError:
                    busy.add(part.number)
                except PermissionError:
                    continue  # who may only read can't tell
        yield busy


def check_part(folder: Path, part: Part, source: Path | None, *, overwrite: bool) -> None:
    """Raise UsageError for a folder in which no such part could begin or go on."""
    if source:
        check_apart(folder, source)
    check_free(folder, allowed=overwrite)
    if begun := whole_run(folder):
        joins = any("joined" in record for record in begun)
        what = "parts that are being joined are" if joins else "a run that is not divided is"
        end = "`tq3 finish`" if joins else "its own command, without --part"
        raise UsageError(
            f"{what} in the target",
            file=folder,
            fix=f"end that by {end}, or remove {WORK_FOLDER} in it",
        )
    others = sorted({each.of for each in parts_in(folder)} - {part.of})
    if others and not overwrite:
        raise UsageError(
            f"parts of a run divided by {others[0]} are in the target",
            file=folder,
            fix=f"give a part of {others[0]}, or {ALL_ANEW}",
        )


def written_draft(folder: Path, part: Part, number: int) -> Path:
    """Where the draft lies that a part wrote of a shard: with it, or in the working folder."""
    for path in (part_folder(folder, part), folder / WORK_FOLDER):
        draft = shard_draft(path, number)
        if draft.exists():
            break
    return draft


def whole_run(folder: Path) -> list[Mapping[str, Any]]:
    """The journal's records of an ordinary run, or of `finish`, that has done something here."""
    path = folder / WORK_FOLDER / DraftFolder.JOURNAL
    if not path.is_file():
        return []
    with reading(path):
        records, _ = read_records(path.read_bytes())
    return records if any(_WORK.intersection(record) for record in records) else []


def _remove_other_divisions(folder: Path, part: Part) -> None:
    for each in parts_in(folder):
        if each.of != part.of:
            shutil.rmtree(part_folder(folder, each), ignore_errors=True)


def _same(before: Plan, after: Plan, number: int) -> bool:
    return number < len(before.shards) and before.shards[number] == after.shards[number]
