"""Runs `tq3` again and again in children of its own, and kills each at a chosen moment.

A program for `crashes.py`. It reads a request in JSON from each line of stdin, and answers with a
line. A child is a fork: all is imported already. Its steps are slowed and told in a log file, so
that a kill falls into any of them; data and journal are written in halves, so that it tears them.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tq3.__main__ import main
from tq3.pipelines import compress, restore
from tq3.pipelines.work import Worker
from tq3.plan.plan import Task
from tq3.storage import journal, shard_file
from tq3.storage.drafts import DraftFolder
from tq3.storage.journal import Journal
from tq3.storage.shard_file import ShardFile
from tq3.storage.target import TargetFolder

_LONGEST_RUN_SECONDS = 60
# phase -> what is slowed and told; the marks + and - in the log are its begin and end.
STEPS: dict[str, tuple[tuple[Any, str], ...]] = {
    "planning": ((compress, "plan_compression"), (restore, "plan_restoration")),
    "copying": ((TargetFolder, "copy"),),
    "encoding": ((Worker, "carry_out"),),
    "flushing": ((ShardFile, "_flush"),),
    "recording": ((Journal, "_append"),),
    "publishing": ((TargetFolder, "_take_name"),),
    "cleaning": ((DraftFolder, "remove"),),
}


class TornFile(io.FileIO):
    """A file that takes half of what it is given, and its time."""

    def write(self, data: Any) -> int:
        """As the system may do it."""
        time.sleep(0.001)
        return super().write(data[: len(data) // 2 + 1])


def slow_down(log: int, seconds: float, block_bytes: int) -> None:
    """Patch every step."""
    Task.blocks.__defaults__ = (block_bytes,)
    shard_file._FLUSH_SECONDS = 0.02
    for phase, places in STEPS.items():
        for owner, name in places:
            setattr(owner, name, _slow(getattr(owner, name), phase, log, seconds))
    if seconds:
        vars(journal)["open"] = lambda descriptor, mode, buffering: TornFile(descriptor, mode)
        shard_file._write_all = _write_in_halves


def _slow(step: Callable[..., Any], phase: str, log: int, seconds: float) -> Callable[..., Any]:
    def slowed(*arguments: Any, **options: Any) -> Any:
        os.write(log, f"+{phase}\n".encode())
        time.sleep(seconds)
        result = step(*arguments, **options)
        time.sleep(seconds)
        os.write(log, f"-{phase}\n".encode())
        return result

    return slowed


def _write_in_halves(descriptor: int, offset: int, data: memoryview) -> None:
    half = len(data) // 2
    os.pwrite(descriptor, data[:half], offset)
    time.sleep(0.001)
    os.pwrite(descriptor, data[half:], offset + half)


def run_and_kill(request: dict[str, Any]) -> int:
    """The wait status of a run; `kill`: a mark, which appearance of it, seconds after that."""
    log = Path(request["log"])
    log.write_bytes(b"")
    child = os.fork()
    if child == 0:
        be_the_run(request)
    mark, count, seconds = request["kill"] or ("", 0, 0)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if request["kill"] and log.read_text().count(mark) >= count:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)  # not reaped yet: it is still our child
            return os.waitpid(child, 0)[1]
        time.sleep(0.001)


def be_the_run(request: dict[str, Any]) -> None:
    """In the child: never returns."""
    signal.alarm(_LONGEST_RUN_SECONDS)
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND)
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for standard in (1, 2):
        os.dup2(output, standard)
    slow_down(log, request["slow"], request["block_bytes"])
    sys.argv = ["tq3", *request["arguments"]]
    code = 1
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    for line in sys.stdin:
        print(run_and_kill(json.loads(line)), flush=True)
