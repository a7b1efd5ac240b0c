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
from factories import Tensor, random_tensor, spoiled, visible

from tq3.pipelines.events import Event, Run
from tq3.pipelines.work import Done, Worker
from tq3.plan.plan import Block
from tq3.storage.shard_file import ShardFile

SHARD_BYTES = 8000
BLOCK_BYTES = 3000


def mixed_tensors() -> dict[str, Tensor]:
    """Compressed, padded, 3-D, cast and copied tensors: about fifty blocks in several shards."""
    tensors: dict[str, Tensor] = {}
    for i in range(4):
        tensors |= {
            f"layers.{i}.norm.weight": random_tensor(700, seed=5 * i),
            f"layers.{i}.up.weight": random_tensor(40, 128, seed=5 * i + 1),
            f"layers.{i}.padded.weight": random_tensor(9, 300, dtype="F32", seed=5 * i + 2),
            f"layers.{i}.mlp.experts.gate_up_proj": random_tensor(3, 8, 128, seed=5 * i + 3),
            f"layers.{i}.scale": random_tensor(900, dtype="F16", seed=5 * i + 4),
        }
    return tensors


def too_large(tensors: dict[str, Tensor], *layers: int) -> dict[str, Tensor]:
    """The same with a value in these layers that doesn't fit float16."""
    for i in layers:
        name = f"layers.{i}.norm.weight"
        tensors[name] = spoiled(tensors[name], (500,), 1e30)
    return tensors


def end_after(run: Run, n_events: int) -> list[Event]:
    """The first events of a run, which is then closed as its caller's end would close it."""
    events = list(islice(run, n_events))
    run.close()
    return events


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
