"""Runs that end before their time, and what the next one does of the work."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from threading import Lock

import pytest

from support.factories import visible
from tq3.events import Report, Run
from tq3.pipelines.work import Done, Worker
from tq3.plan.plan import Block
from tq3.storage.shard_file import ShardFile

SHARD_BYTES = 8000
BLOCK_BYTES = 3000


def end_after(run: Run[Report], n_events: int) -> bool:
    """Close a run after so many events, as its caller's end would; whether it was complete."""
    n_seen = sum(1 for _ in islice(run, n_events))
    run.close()
    return n_seen < n_events


def unfinished(out: Path) -> bool:
    """Whether a run left something to go on from; then nothing else may be there."""
    left = (out / ".tq3.part" / "journal").exists()
    assert visible(out) == {}
    return left or not out.exists()


def copy_of(folder: Path, to: Path) -> Path:
    """The folder with all that is in it, in place of what was there."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    return to


class Stopped(Exception):
    """What ends a run in these tests."""


@contextmanager
def counted_blocks(limit: float = math.inf) -> Iterator[list[tuple[str, int]]]:
    """The keys of all blocks that are carried out meanwhile; after so many the run is stopped."""
    carried: list[tuple[str, int]] = []
    carry_out, lock = Worker.carry_out, Lock()

    def counting(self: Worker, block: Block, shard: ShardFile) -> Done:
        with lock:
            if len(carried) >= limit:
                raise Stopped
            carried.append(block.key)
        return carry_out(self, block, shard)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "carry_out", counting)
        yield carried


def number_of_calls(function: Callable[[], object], owner: type, name: str) -> int:
    """How often a method is called in the course of a function."""
    calls: list[None] = []
    method = getattr(owner, name)

    def counting(*arguments: object, **options: object) -> object:
        calls.append(None)
        return method(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, counting)
        function()
    return len(calls)
