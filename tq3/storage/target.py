"""The target folder: drafts until the last moment, then every file takes its name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from itertools import takewhile
from pathlib import Path

from tq3.errors import BadInput
from tq3.format import config as tq_config
from tq3.format import manifest
from tq3.format.manifest import Digest, Manifest, Piece, digest
from tq3.format.weight_files import INDEX
from tq3.plan.identity import Identity
from tq3.plan.plan import Plan
from tq3.storage.drafts import WORK_FOLDER, DraftFolder
from tq3.storage.failures import writing
from tq3.storage.journal import DoneBlock, Journal
from tq3.storage.shard_drafts import ShardDrafts
from tq3.storage.shard_file import flush_folder, is_draft
from tq3.storage.sidecars import is_loaded_by_hosts
from tq3.storage.target_checks import check_free, check_no_parts, check_places, check_target


class TargetFolder(ShardDrafts):
    """A complete checkpoint, or drafts and a journal with which a later run goes on.

    identity: a run that left the same one in its journal is continued
    overwrite: a folder that is not empty may be the target, and an unfinished run of another
    identity is given up. Until `publish` nothing in the folder changes; then the older checkpoint
    loses its marker, tq_config.json, and all that hosts may load with ours: weights at the top of
    the folder in any format, and an adapter. Files of the same names are replaced, any other file
    stays.
    resume: False gives up an unfinished run of any identity
    joins_parts: what parts wrote stays until `publish`; else it is in the way, save of an overwrite
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        identity: Identity,
        *,
        source: Path | None,
        overwrite: bool,
        resume: bool = True,
        joins_parts: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self._joins_parts = joins_parts
        self._identity = identity
        self._overwrite = overwrite
        self._made: list[Path] = []  # folders, outer ones first
        self._named: list[Path] = []
        self._written: dict[str, Piece] = {}  # side files and texts, by name
        check_target(self.folder, source, overwrite=overwrite)
        if not joins_parts:
            check_no_parts(self.folder, allowed=overwrite or not resume)
        with ExitStack() as undo:
            undo.callback(self._remove_made)
            with writing(self.folder):
                self._make(self.folder)
                self._drafts = DraftFolder(self.folder / WORK_FOLDER)
            journal = Journal(self._drafts.journal, shared=joins_parts)
            self.journal = undo.enter_context(journal)
            undo.callback(self._remove_useless)
            self._begin(resume)
            self._undo = undo.pop_all()

    def __enter__(self) -> TargetFolder:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        with self._undo:
            if isinstance(error, BadInput) and self.journal.has_work:
                self.journal.refuse()

    def check_room(self, n_bytes: int) -> None:
        """As of any drafts; a run that began to publish has all it needs."""
        if not self.journal.is_publishing:
            super().check_room(n_bytes)

    def adopt(self, number: int, draft: Path, blocks: Iterable[DoneBlock]) -> None:
        """Take a shard that a part wrote for one of this run; `draft`: where it lies."""
        own = self._shard_draft(number)
        with writing(own):
            if draft != own:
                draft.replace(own)
                flush_folder(own.parent)
        self.journal.add_blocks(number, blocks)

    def copy(self, name: str, parts: Iterable[bytes]) -> None:
        """Write a file to the draft of `name`, safely on the disk. Raises StorageError."""
        self._write_draft(name, parts)

    def check_names(self, names: Iterable[str]) -> None:
        """Raise UsageError where the folder has something that can't make way for such a file."""
        check_places(self.folder, names)

    def publish(
        self, plan: Plan, *, texts: Mapping[str, str], marker: tuple[str, str], writer: str | None
    ) -> None:
        """Give every file its name: shards, copies, index, texts, and last the marker.

        The marker (name and text) makes a folder a checkpoint. Everything is on the disk before an
        old one is removed, and everything has its name before the new one is there.
        writer: named in the manifest, which there is with a writer only
        """
        if plan.index is not None:
            texts = {INDEX: json.dumps(plan.index, indent=2, ensure_ascii=False) + "\n"} | {**texts}
        for name, text in (*texts.items(), marker):
            self._write_draft(name, [text.encode()])
        if writer:
            text = self._manifest(plan, writer).to_json()
            self._write_draft(manifest.FILE_NAME, [text.encode()])
        self.check_names((*plan.weight_files, *self._written))  # before anything is removed
        continued = self.journal.is_publishing
        self.journal.publishing(overwrite=self._may_overwrite)
        self._remove_older(plan, marker[0])
        for number, name in enumerate(plan.shard_names):
            draft = self._shard_draft(number)
            # Only an earlier run can have given a name: a draft that is gone now must be an error.
            if not continued or os.path.lexists(draft):
                self._take_name(draft, name)
        for name in [name for name in self._written if name != marker[0]]:
            self._take_name(self._drafts.draft(name), name)
        self._flush_folders()
        self._take_name(self._drafts.draft(marker[0]), marker[0])
        self._flush_folders()
        with suppress(OSError):  # as of drafts
            self._drafts.remove_parts()
        self._remove_drafts()

    @property
    def _may_overwrite(self) -> bool:
        """Asked for now, or by the run that began to publish."""
        return self._overwrite or bool(self.journal.overwrite)

    def _begin(self, resume: bool) -> None:
        """Continue what the journal tells of, or start anew."""
        left = self.journal.identity
        differences = self._identity.differences(left) if left and resume else []
        continued = left and resume and not differences
        # Again: a run may have published before we had the lock.
        ours = continued and self.journal.is_publishing
        check_free(self.folder, allowed=self._overwrite or ours)
        if not continued:
            self.start_anew(differences)

    def _make(self, folder: Path) -> None:
        """Make a folder and those above it, and remember which were made."""
        missing = takewhile(lambda path: not os.path.exists(path), (folder, *folder.parents))
        for path in reversed([*missing]):
            with suppress(FileExistsError):  # another run may make the same
                path.mkdir()
                self._made.append(path)

    def _remove_useless(self) -> None:
        """Leave nothing where there is nothing to continue."""
        if not self.journal.has_work:
            self._remove_drafts()

    def _remove_drafts(self) -> None:
        # Only as long as the folder is ours. What can't be removed is no checkpoint.
        if self.journal.is_there:
            with suppress(OSError):
                self._drafts.remove()

    def _remove_made(self) -> None:
        for folder in reversed(self._made):
            with suppress(OSError):  # something is in it
                folder.rmdir()

    def _clear(self) -> None:
        super()._clear()
        if not self._joins_parts:
            self._drafts.remove_parts()
        self._flush_made()

    def _finished_draft(self, plan: Plan, number: int) -> Path | None:
        """The file of a shard whose bytes are all reserved, perhaps with its name already."""
        path = self._shard_draft(number)
        if not (self.journal.is_publishing and self.journal.blocks(number)):
            return super()._finished_draft(plan, number)
        if not os.path.lexists(path):
            path = self.folder / plan.shard_names[number]
        with writing(path):
            return path if is_draft(path, plan.shards[number]) else None

    def _write_draft(self, name: str, parts: Iterable[bytes]) -> None:
        state = Digest()
        with writing(self.folder / name), self._drafts.new_draft(name).open("xb") as file:
            for part in parts:
                file.write(part)
                state.update(part)
            file.flush()
            os.fsync(file.fileno())
        self._written[name] = state.piece()

    def _manifest(self, plan: Plan, writer: str) -> Manifest:
        files: dict[str, tuple[Piece, ...]] = {
            name: (piece,) for name, piece in self._written.items()
        }
        for number, (name, shard) in enumerate(zip(plan.shard_names, plan.shards, strict=True)):
            header = Piece(0, len(shard.header), digest(shard.header))
            done = self.journal.blocks(number).values()
            files[name] = (header, *(piece for block in done for piece in block.pieces))
        return Manifest(writer, files)

    def _remove_older(self, plan: Plan, marker: str) -> None:
        """Remove the older checkpoint's markers, then weights that a host might load with ours."""
        with writing(self.folder):
            for name in (marker, tq_config.FILE_NAME, manifest.FILE_NAME):
                (self.folder / name).unlink(missing_ok=True)
            flush_folder(self.folder)
            for path in list(self.folder.iterdir()) if self._may_overwrite else []:
                ours = path.name in plan.weight_files or path.name in self._written
                stale = is_loaded_by_hosts(path.name) and not ours
                if stale and (path.is_symlink() or not path.is_dir()):
                    path.unlink()

    def _take_name(self, draft: Path, name: str) -> None:
        path = self.folder / name
        with writing(path):
            self._make(path.parent)
            self._named.append(path)
            draft.replace(path)

    def _flush_folders(self) -> None:
        """fsync every folder in which something was renamed."""
        changed = {path.parent for path in (*self._named, *self._made)}
        for folder in sorted(changed - set(self.folder.parents)):
            with writing(folder):
                flush_folder(folder)

    def _flush_made(self) -> None:
        """The way to the journal."""
        for folder in (*(made.parent for made in self._made), self.folder, self._drafts.path):
            with writing(folder):
                flush_folder(folder)
