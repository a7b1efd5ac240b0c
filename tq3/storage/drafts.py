"""A working folder inside a target: where the drafts and the journal of one run lie."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path, PurePosixPath

WORK_FOLDER = ".tq3.part"
# In the working folder of a target: those of parts. No side file can lie there, for none travels
# that has such a name on its path.
PARTS = WORK_FOLDER
ALL_ANEW = "run every part with --overwrite to start anew"
_STAT_BLOCK = 512  # the unit of st_blocks, whatever the file system's own is


class DraftFolder:
    """A working folder, made if need be. Every call may raise OSError."""

    JOURNAL = "journal"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.mkdir(exist_ok=True)
        if self.path.is_symlink():
            raise NotADirectoryError(f"{path.name} in it is a link")

    @property
    def journal(self) -> Path:
        """The path of the journal."""
        return self.path / self.JOURNAL

    @property
    def n_bytes(self) -> int:
        """Disk space that the drafts take."""
        drafts = (left for left in os.scandir(self.path) if left.path != str(self.journal))
        return sum(left.stat(follow_symlinks=False).st_blocks * _STAT_BLOCK for left in drafts)

    def draft(self, name: str) -> Path:
        """The path of the draft of a file whose path in the target will be `name`."""
        return self.path / f"{name}.part"

    def new_draft(self, name: str) -> Path:
        """The path of a new draft: folders above it are made, and no file is there."""
        # One by one, for `parents=True` would make a target again that was removed meanwhile.
        for above in reversed(PurePosixPath(name).parents[:-1]):
            (self.path / above).mkdir(exist_ok=True)
        draft = self.draft(name)
        draft.unlink(missing_ok=True)
        return draft

    def clear(self) -> None:
        """Remove all that an earlier run left, save its journal and what parts wrote."""
        for left in list(os.scandir(self.path)):
            if left.path == str(self.journal) or left.name == PARTS:
                continue
            if left.is_dir(follow_symlinks=False):
                shutil.rmtree(left.path)
            else:
                os.unlink(left.path)

    def remove_parts(self) -> None:
        """Remove what parts wrote."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.path / PARTS)

    def remove(self) -> None:
        """Remove the folder. The journal goes last: with it the same command clears the rest.

        What parts wrote stays, and the folder with it: an OSError.
        """
        self.clear()
        self.journal.unlink()
        self.path.rmdir()
