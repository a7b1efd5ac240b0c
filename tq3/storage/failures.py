"""How a failed read or write is told: one sentence that names the file on the right side."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tq3.errors import StorageError


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """An OSError in the block becomes a StorageError that says `path` can't be read."""
    try:
        yield
    except OSError as error:
        broken = isinstance(error, FileNotFoundError) and os.path.islink(path)
        raise StorageError(
            f"can't be read: {error.strerror or error}",
            file=path,
            found="a link whose file is missing" if broken else None,
            fix="fetch the checkpoint again" if broken else None,
        ) from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError in the block becomes a StorageError that says `path` can't be written."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"can't be written: {error.strerror or error}",
            file=path,
            fix="see free space and permissions",
        ) from None
