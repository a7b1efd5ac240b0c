"""Carries out a plan: blocks on worker threads, shard by shard, into the target folder."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing

from tq3.codec.backend import Backend
from tq3.events import Progress
from tq3.parallel import in_parallel
from tq3.pipelines.findings import Finding
from tq3.pipelines.job import Job
from tq3.pipelines.tally import Tally
from tq3.pipelines.work import Done, Worker
from tq3.plan.plan import Block, Plan
from tq3.storage.shard_drafts import ShardDrafts
from tq3.storage.shard_file import ShardFile
from tq3.storage.target import TargetFolder


def write_shards(
    job: Job, target: TargetFolder, tally: Tally, *, backend: Backend, workers: int
) -> Iterator[Progress]:
    """Write every shard's draft, save the blocks that an earlier run has done.

    After a shard with findings there is a new plan. What it changes is written anew: this shard
    and, where hosts join a tensor with others, earlier ones.
    """
    number = 0
    while number < len(job.plan.shards):
        found = yield from write_shard(job, target, tally, number, backend, workers)
        if found:
            before, learned = job.plan, job.replan()
            begun = filter(target.journal.blocks, range(len(before.shards)))
            stale = {number, *_changed(begun, before, job.plan)}
            target.journal.restart(stale, learned)
            tally.recount(job.plan, target.journal)
            number = min(stale)
        else:
            number += 1


def write_shard(
    job: Job, target: ShardDrafts, tally: Tally, number: int, backend: Backend, workers: int
) -> Generator[Progress, None, list[Finding]]:
    """Write what is not done of a shard's draft, and return what its values were found to be."""
    done = target.journal.blocks(number)
    blocks = [block for block in job.plan.shards[number].blocks() if block.key not in done]
    findings: list[Finding] = []
    with (
        target.shard(job.plan, number) as file,
        closing(_carry_out(blocks, file, job, backend, workers)) as outcomes,
    ):
        for outcome in outcomes:
            tally.work(outcome.block, outcome.cpu_seconds)
            if outcome.finding:
                job.record(outcome.finding)
                findings.append(outcome.finding)
            if outcome.written:
                tally.add(outcome.block, outcome.written)
            yield tally.progress(outcome.block.task.name)
    job.check_sources()
    return findings


def _changed(numbers: Iterable[int], before: Plan, after: Plan) -> list[int]:
    """The numbers of shards that the new plan does not have as they were."""
    last = len(after.shards) - 1
    return [n for n in numbers if n > last or before.shards[n] != after.shards[n]]


def _carry_out(
    blocks: Iterable[Block], file: ShardFile, job: Job, backend: Backend, workers: int
) -> Generator[Done, None, None]:
    feedbacks = job.feedbacks(backend)

    def make_work() -> Callable[[Block], Done]:
        worker = Worker(job.files, backend, feedbacks)
        return lambda block: worker.carry_out(block, file)

    return in_parallel(blocks, make_work, workers, job.files.cancel)
