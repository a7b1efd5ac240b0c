"""The standard streams as the commands need them: there, and fit for any text.

A stream may be closed, full, or of an encoding that lacks a character. Data that can't be written
is an error; words that nobody hears are not, and never end a run.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tq3.errors import StorageError

# What shells report of a program whose reader went away: 128 + SIGPIPE.
NOBODY_READS = 141


@contextmanager
def fit() -> Iterator[None]:
    """Put fit streams in the place of those of this process; end with a sentence what still fails.

    Screen tells the errors of a run; what is printed outside of one is help or the version.
    """
    number = _descriptor(sys.stdin, 0)
    if sys.stdin is None:
        sys.stdin = open(number, closefd=False)  # noqa: SIM115  as long as the process
    sys.stdout = _text(_Data(_descriptor(sys.stdout, 1), "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Words(_descriptor(sys.stderr, 2), "w", closefd=False), sys.stderr)
    try:
        yield
    except StorageError as error:
        print(f"tq3: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


class _Data(io.FileIO):
    """A reader that went away ends the command quietly, anything else with a sentence."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            _lead_nowhere(self)
            if error.errno == errno.EIO:
                raise  # a closed terminal: Screen ends the run as one that was stopped
            if isinstance(error, BrokenPipeError):
                raise SystemExit(NOBODY_READS) from None
            raise StorageError(
                f"can't be written: {error.strerror}", file="stdout", repeatable=False
            ) from None


class _Words(io.FileIO):
    """A log on a full disk, or a pipe that nobody reads, takes no words; a closed terminal ends."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno == errno.EIO:
                _lead_nowhere(self)
                raise
            return len(data)


def _lead_nowhere(file: io.FileIO) -> None:
    """So that what is left in buffers can't fail once more when the process ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file.fileno())
    os.close(nowhere)


def _descriptor(stream: object, number: int) -> int:
    """`number`, or where that was closed when the process began, a way to nowhere."""
    # The lowest free number is `number` itself: no weights file may get it.
    return os.open(os.devnull, os.O_RDWR) if stream is None else number


def _text(raw: io.FileIO, old: Any) -> io.TextIOWrapper:
    encoding = getattr(old, "encoding", "utf-8")
    text = io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=raw.isatty()
    )
    if isinstance(raw, _Words):
        text.reconfigure(write_through=True, line_buffering=True)
    return text
