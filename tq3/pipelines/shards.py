"""Carries out a plan: blocks on worker threads, shard by shard, into the target folder."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from math import prod
from threading import Event, Lock
from typing import TypeVar

from tq3.codec.backend import Backend
from tq3.pipelines.events import Progress, Report
from tq3.pipelines.findings import Finding
from tq3.pipelines.machine import peak_memory_bytes
from tq3.pipelines.work import Done, Worker
from tq3.plan.plan import Block, Plan, Shard
from tq3.storage.local import LocalFiles
from tq3.storage.sidecars import Sidecars
from tq3.storage.writer import ShardFile, TargetFolder

_POLL_SECONDS = 0.05

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Tally:
    """What all blocks together have done so far."""

    bytes_total: int
    bytes_done: int = 0
    weights_done: int = 0
    started: float = field(default_factory=time.perf_counter)
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def add(self, done: Done) -> None:
        """Count one block."""
        self.bytes_done += done.bytes_in
        self.weights_done += done.weights
        if done.error:
            squared_error, squared_norm = done.error
            relative = squared_error / squared_norm if squared_norm else 0.0
            self.errors[done.block.task.name] = relative

    def progress(self, tensor: str) -> Progress:
        """The state as an event."""
        return Progress(self.bytes_done, self.bytes_total, self.weights_done, self.seconds, tensor)


def make_report(
    plan: Plan, tally: Tally, sidecars: Sidecars, *, restored: bool, backend: str, workers: int
) -> Report:
    """The figures of a plan that was carried out."""
    coded = [task for task in plan.tasks if task.layout]
    n_coded = sum(prod(task.layout.shape) for task in coded if task.layout)
    n_kept = sum(task.sources[0].info.n_elements for task in plan.tasks if not task.layout)
    worst = max(tally.errors, key=lambda name: tally.errors[name], default=None)
    return Report(
        restored=restored,
        source_bytes=plan.bytes_in,
        output_bytes=plan.bytes_out,
        bits_per_weight=plan.bytes_out * 8 / max(n_coded + n_kept, 1),
        compressed_bits_per_weight=sum(task.bytes_out for task in coded) * 8 / n_coded
        if coded
        else None,
        n_compressed=len(coded),
        n_kept=len(plan.tasks) - len(coded),
        mean_error=sum(tally.errors.values()) / len(tally.errors) if tally.errors else None,
        worst_error=tally.errors[worst] if worst else None,
        worst_tensor=worst,
        seconds=tally.seconds,
        peak_memory_bytes=peak_memory_bytes(),
        backend=backend,
        workers=workers,
        left_out=sidecars.left_out,
    )


def write_shards(
    plan: Plan,
    heed: Callable[[Finding], None],
    replan: Callable[[], Plan],
    files: LocalFiles,
    target: TargetFolder,
    tally: Tally,
    *,
    backend: Backend,
    workers: int,
) -> Iterator[Progress]:
    """Write every shard's draft.

    `heed` hears each finding at once, and raises if it ends the run. After a shard with findings
    `replan` gives the plan that heeds them. Sharding is greedy and in order, so only this shard and
    later ones change; this one is then written again.
    """
    number = 0
    while number < len(plan.shards):
        shard = plan.shards[number]
        found: set[str] = set()
        before = tally.bytes_done, tally.weights_done
        with target.shard(number, shard) as file:
            for done in _carry_out(shard, file, files, backend, workers):
                tally.add(done)
                if done.finding:
                    heed(done.finding)
                    found.add(done.finding.tensor)
                yield tally.progress(done.block.task.name)
        if found:
            tally.bytes_done, tally.weights_done = before
            for name in found:
                tally.errors.pop(name, None)
            plan = replan()
        else:
            number += 1


def _carry_out(
    shard: Shard, file: ShardFile, files: LocalFiles, backend: Backend, workers: int
) -> Iterator[Done]:
    blocks = (block for task in shard.tasks for block in task.blocks())

    def make_work() -> Callable[[Block], Done]:
        worker = Worker(files, backend)
        return lambda block: worker.carry_out(block, file)

    return in_parallel(blocks, make_work, workers)


def in_parallel(
    items: Iterable[Item], make_work: Callable[[], Callable[[Item], Result]], workers: int
) -> Iterator[Result]:
    """Results of `work(item)` in any order; `make_work` is called once in each thread.

    The first exception of a worker ends all of them and is raised here. Leaving the iteration stops
    the workers after the item that each has in hand.
    """
    if workers == 1:  # no thread between the user's debugger and the work
        yield from map(make_work(), items)
        return
    source, lock, stop = iter(items), Lock(), Event()
    results: deque[Result] = deque()

    def run() -> None:
        work = make_work()
        while not stop.is_set():
            with lock:
                item = next(source, None)
            if item is None:
                return
            results.append(work(item))

    with ThreadPoolExecutor(workers, thread_name_prefix="tq3") as pool:
        try:
            running = {pool.submit(run) for _ in range(workers)}
            while running:
                # Not woken for each result: on few processors that would cost the workers time.
                ended, running = wait(running, _POLL_SECONDS, FIRST_COMPLETED)
                for worker in ended:
                    worker.result()
                while results:
                    yield results.popleft()
        finally:
            stop.set()
