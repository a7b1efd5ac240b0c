"""Starts the program as a process of its own, waits for a moment of its run, and for its end."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PROGRAM = (str(Path(sys.executable).with_name("tq3")),)

# A test run in the background of a shell ignores SIGINT, and so would its children.
_IN_THE_FOREGROUND = """
import signal
from tq3.__main__ import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""


def start(*arguments: object, code: str = _IN_THE_FOREGROUND) -> subprocess.Popen[str]:
    """`tq3` with these arguments, in the midst of other `code` where that is given."""
    command = (sys.executable, "-c", code, *map(str, arguments))
    # Not here: Python looks for modules in its working folder first.
    there = Path(__file__).parent
    return subprocess.Popen(
        command, cwd=there, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_until(moment: Callable[[], object], run: subprocess.Popen[str]) -> None:
    """Until the moment has come; a run that ends before or takes too long fails the test."""
    end = time.monotonic() + 60
    while not moment():
        assert run.poll() is None, f"ended before its moment: {end_of(run)}"
        if time.monotonic() > end:
            run.kill()
        time.sleep(0.01)


def end_of(run: subprocess.Popen[str]) -> tuple[str, str]:
    """What a process said, once it has ended; one that hangs is killed and fails the test."""
    try:
        return run.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        run.kill()
        raise


def processor_seconds(run: subprocess.Popen[str]) -> float:
    """What a running process has used so far, in all of its threads."""
    fields = Path(f"/proc/{run.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime


def processor_seconds_of_ended() -> float:
    """What all processes have used that this one started, and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def has_done_work(out: Path) -> bool:
    """Whether there is something that a later run need not do again."""
    journal = out / ".tq3.part" / "journal"
    return journal.exists() and b'"block":' in journal.read_bytes()
