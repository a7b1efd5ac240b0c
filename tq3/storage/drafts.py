"""The working folder inside a target: every draft of one run, locked against another run."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path, PurePosixPath

from tq3.errors import UsageError

WORK_FOLDER = ".tq3.part"
_STAT_BLOCK = 512  # the unit of st_blocks, whatever the file system's own is
_CANNOT_LOCK = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class DraftFolder:
    """`.tq3.part` in a folder, held until `__exit__` or the end of the process.

    Raises UsageError when another run holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / WORK_FOLDER
        self._descriptor = _hold(self.path)

    def __enter__(self) -> DraftFolder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def clear(self) -> None:
        """Remove all that an earlier run left, save its journal. Raises OSError."""
        for left in list(os.scandir(self.path)):
            if left.is_dir(follow_symlinks=False):
                shutil.rmtree(left.path)
            elif left.path != str(self.journal):
                os.unlink(left.path)

    def remove(self) -> None:
        """Remove the folder, as far as possible: what stays is no checkpoint."""
        # While it is held: later it could be the next run's.
        if _is_at(self._descriptor, self.path):
            with suppress(OSError):
                self.clear()  # the journal goes last: with it the same command clears the rest
            shutil.rmtree(self.path, ignore_errors=True)

    @property
    def journal(self) -> Path:
        """Where the journal lies."""
        return self.path / "journal"

    @property
    def n_bytes(self) -> int:
        """Disk space that the drafts take. Raises OSError."""
        drafts = (left for left in os.scandir(self.path) if left.path != str(self.journal))
        return sum(left.stat(follow_symlinks=False).st_blocks * _STAT_BLOCK for left in drafts)

    def draft(self, name: str) -> Path:
        """Where the draft of a file lies, whose path in the target will be `name`."""
        return self.path / f"{name}.part"

    def new_draft(self, name: str) -> Path:
        """The same, with the folders above it made and no file there. Raises OSError."""
        # One by one, for `parents=True` would make a target again that was removed meanwhile.
        for above in reversed(PurePosixPath(name).parents[:-1]):
            (self.path / above).mkdir(exist_ok=True)
        draft = self.draft(name)
        draft.unlink(missing_ok=True)
        return draft


def _hold(path: Path) -> int:
    """A descriptor of this folder, made if need be; closing it, or dying, gives the lock back."""
    made = _make(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _lock(descriptor, path, made)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _make(path: Path) -> bool:
    """Whether the folder was not there before."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def _lock(descriptor: int, path: Path, made: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Where the file system has no locks, having made the folder is the lock.
        if error.errno in _CANNOT_LOCK and made:
            return
        if error.errno in _CANNOT_LOCK:
            fix = f"remove {path.name} in it if there is none"
        elif isinstance(error, BlockingIOError):
            fix = "wait for its end, or give another path"
        else:
            raise
        raise _another_run(path, fix) from None
    # The run that held it may have removed it between our opening and our locking.
    if not _is_at(descriptor, path):
        raise _another_run(path, "start again")


def _another_run(path: Path, fix: str) -> UsageError:
    return UsageError("another run is writing here", file=path.parent, fix=fix)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the path still leads to the open folder."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except OSError:
        return False
