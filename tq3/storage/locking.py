"""A file that one run at a time has open, where the file system can see to that."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from tq3.errors import UsageError

_CANNOT_LOCK = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def open_locked(path: Path, *, shared: bool = False) -> tuple[int, bool]:
    """A descriptor for reading and appending, of a file that is made if need be; if it is locked.

    shared: where the file system has no locks, any number may have it open: then it is not locked

    The lock ends with the last copy of the descriptor, or with the process. Raises OSError, and
    UsageError if another run has it.
    """
    # For writing, which locks on a network need.
    flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor, made = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666), True
    except FileExistsError:
        descriptor, made = os.open(path, flags), False
    try:
        locked = _lock(descriptor, path, made or shared)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, locked


def is_at(descriptor: int, path: Path) -> bool:
    """Whether the path still leads to the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except OSError:
        return False


def _lock(descriptor: int, path: Path, may_lack: bool) -> bool:
    """Lock the file, or say False where there are no locks and it `may_lack` one."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Where the file system has no locks, having made the file is the lock.
        if error.errno in _CANNOT_LOCK and may_lack:
            return False
        if error.errno in _CANNOT_LOCK:
            fix = f"remove {path.parent.name} in it if there is none"
        elif isinstance(error, BlockingIOError):
            fix = "wait for its end, or give another path"
        else:
            raise
        raise _another_run(path, fix) from None
    # The run that held it may have removed it between our opening and our locking.
    if not is_at(descriptor, path):
        raise _another_run(path, "start again")
    return True


def _another_run(path: Path, fix: str) -> UsageError:
    return UsageError("another run is writing here", file=path.parent.parent, fix=fix)
