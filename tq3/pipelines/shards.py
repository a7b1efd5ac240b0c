"""Carries out a plan: blocks on worker threads, shard by shard, into the target folder."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing
from threading import Event, Lock
from typing import TypeVar

from tq3.codec.backend import Backend
from tq3.pipelines.events import Progress
from tq3.pipelines.job import Job
from tq3.pipelines.tally import Tally
from tq3.pipelines.work import Done, Worker
from tq3.plan.files import Source
from tq3.plan.plan import Block, Plan
from tq3.storage.shard_file import ShardFile
from tq3.storage.target import TargetFolder

_POLL_SECONDS = 0.05

Item = TypeVar("Item")
Result = TypeVar("Result")


def write_shards(
    job: Job, target: TargetFolder, tally: Tally, *, backend: Backend, workers: int
) -> Iterator[Progress]:
    """Write every shard's draft, save the blocks that an earlier run has done.

    After a shard with findings there is a new plan. What it changes is written anew: this shard
    and, where hosts join a tensor with others, earlier ones.
    """
    number = 0
    while number < len(job.plan.shards):
        done = target.journal.blocks(number)
        blocks = [block for block in job.plan.shards[number].blocks() if block.key not in done]
        found = False
        with (
            target.shard(job.plan, number) as file,
            closing(_carry_out(blocks, file, job.files, backend, workers)) as outcomes,
        ):
            for outcome in outcomes:
                tally.work(outcome.block, outcome.cpu_seconds)
                if outcome.finding:
                    job.heed(outcome.finding)
                    found = True
                if outcome.written:
                    tally.add(outcome.block, outcome.written)
                yield tally.progress(outcome.block.task.name)
        job.check_sources()
        if found:
            before, learned = job.plan, job.replan()
            begun = filter(target.journal.blocks, range(len(before.shards)))
            stale = {number, *_changed(begun, before, job.plan)}
            target.journal.restart(stale, learned)
            tally.recount(job.plan, target)
            number = min(stale)
        else:
            number += 1


def _changed(numbers: Iterable[int], before: Plan, after: Plan) -> list[int]:
    """Those of the shards that the new plan does not have as they were."""
    last = len(after.shards) - 1
    return [n for n in numbers if n > last or before.shards[n] != after.shards[n]]


def _carry_out(
    blocks: Iterable[Block], file: ShardFile, files: Source, backend: Backend, workers: int
) -> Generator[Done, None, None]:
    def make_work() -> Callable[[Block], Done]:
        worker = Worker(files, backend)
        return lambda block: worker.carry_out(block, file)

    return in_parallel(blocks, make_work, workers, files.give_up)


def in_parallel(
    items: Iterable[Item],
    make_work: Callable[[], Callable[[Item], Result]],
    workers: int,
    give_up: Callable[[], None] = lambda: None,
) -> Generator[Result, None, None]:
    """Results of `work(item)` in any order; `make_work` is called once in each thread.

    The first exception of a worker ends all of them and is raised here. Leaving the iteration stops
    the workers after the item that each has in hand; `give_up` is called to make that soon.
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
        except BaseException:
            give_up()
            raise
        finally:
            stop.set()
