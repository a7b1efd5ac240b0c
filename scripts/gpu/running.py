"""Sections in processes of their own, within limits of time: a fault of one ends no other."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress

from gpu.rows import Row, parsed

# torch and a context take some seconds: a section with less than this isn't begun.
LEAST_SECONDS = 15
# A section ends by itself between two cases; one that doesn't is killed so much later.
GRACE_SECONDS = 10
NO_GPU = 2


class NoGpu(Exception):
    """There is none; the process has said so."""


def rows_of(command: list[str], seconds: float) -> Iterator[Row]:
    """The rows that a process prints; what else it prints is shown.

    One that ends badly, or not within `seconds`, gets a fault that names the case it was at.
    """
    start = time.monotonic()
    case, words = "its start", deque[str](maxlen=5)
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        killer = threading.Timer(seconds, _kill, (process,))
        killer.start()
        try:
            for line in process.stdout or ():
                row = parsed(line)
                if row is None:
                    words.append(line.strip())
                    print(line, end="", flush=True)
                elif "begins" in row:
                    case = row["begins"]
                else:
                    yield row
            process.wait()
        finally:
            killer.cancel()
            _kill(process)
    if process.returncode == NO_GPU:
        raise NoGpu
    if time.monotonic() - start >= seconds:
        yield {"case": case, "fault": f"killed after {seconds:.0f} s"}
    elif process.returncode:
        said = " | ".join(words)
        yield {"case": case, "fault": f"ended with code {process.returncode}: {said}"}


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        # With what it has started itself.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
