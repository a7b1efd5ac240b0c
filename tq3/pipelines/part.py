"""Carries out one part of a job: its shards, and what their values say to the other parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tq3.codec.backend import Backend, get_backend
from tq3.events import Notice, Planned, Report, Run
from tq3.format.equalization import Factors
from tq3.format.options import RunOptions
from tq3.format.parts import Part, numbers_in_words
from tq3.pipelines.job import Job
from tq3.pipelines.learning import learn
from tq3.pipelines.machine import check_workers
from tq3.pipelines.run import changed_tensor
from tq3.pipelines.shards import write_shard
from tq3.pipelines.tally import Tally, make_report
from tq3.pipelines.verdicts import Verdicts
from tq3.plan.identity import Identity
from tq3.plan.plan import Plan
from tq3.plan.shares import idle, share
from tq3.storage.part_factors import alone, read_factors, write_factors
from tq3.storage.parts import PartFolder
from tq3.units import counted, size

_POLL_SECONDS = 0.5


def run_part(
    job: Job, out: Path, part: Part, options: RunOptions, request: Mapping[str, Any]
) -> Run[Report]:
    """Write the shards of the job's plan that are this part's, or what is left of them to do.

    request: what else the whole output depends on, as `PartManifest` keeps it
    """
    codec = get_backend(options.backend)
    workers = check_workers(options.workers, job.files.connections)
    with PartFolder(
        out,
        part,
        job.identity(),
        source=job.files.folder,
        overwrite=options.overwrite,
        resume=options.resume,
    ) as folder:
        doing = _PartRun(job, folder, codec, workers)
        return (yield from doing.run(request))


class _PartRun:
    """The course of one part."""

    def __init__(self, job: Job, folder: PartFolder, codec: Backend, workers: int) -> None:
        self._job, self._folder, self._codec, self._workers = job, folder, codec, workers
        self._verdicts = Verdicts()
        for manifest in folder.others():
            self._verdicts.take(manifest.verdicts)
        for record in folder.journal.verdicts:
            self._verdicts.take(record)
        self._told: set[str] = set()

    @property
    def _numbers(self) -> range:
        return share(self._job.plan, self._folder.part)

    def run(self, request: Mapping[str, Any]) -> Run[Report]:
        """Write the part's shards until none is otherwise than a whole run would have it."""
        job, folder = self._job, self._folder
        learn(job, self._verdicts)
        numbers = self._numbers
        folder.keep_only(job.plan, numbers)
        if changed := changed_tensor(job, folder.journal):
            folder.start_anew([f"tensor {changed!r} has other values"])
            self._verdicts = Verdicts()
            learn(job, self._verdicts)
            numbers = self._numbers
        yield Planned(part_of(job.plan, numbers), self._codec.name, self._workers)
        folder.go_on()
        tally = Tally(job.plan, folder.journal, job.files, self._workers, numbers)
        if tally.bytes_before:
            yield Notice(f"continuing an unfinished part, {tally.share_before:.0%} of it done")
        yield from self._notices()
        yield from map(Notice, share_in_words(job.plan, folder.part))
        folder.check_room(sum(job.plan.shards[number].file_bytes for number in numbers))
        while True:
            yield from self._write(numbers, tally)
            before = job.plan
            learn(job, self._verdicts)
            numbers = self._numbers
            folder.keep_only(job.plan, numbers, before if folder.journal.is_locked else None)
            tally.recount(job.plan, folder.journal, numbers)
            if self._is_done(numbers):
                break
        yield from self._notices()
        folder.seal(job.plan, numbers, request=request, verdicts=self._verdicts.to_record())
        return make_report(
            part_of(job.plan, numbers),
            tally,
            {},
            restored=False,
            backend=self._codec.name,
            workers=self._workers,
            part=folder.part,
        )

    def _write(self, numbers: range, tally: Tally) -> Run[None]:
        for number in numbers:
            shard = self._job.plan.shards[number]
            found = yield from write_shard(
                self._job, self._folder, tally, number, self._codec, self._workers
            )
            if found or not all(map(self._verdicts.knows, shard.tasks)):
                new = self._verdicts.note(shard.tasks, found)
                self._folder.journal.add_verdicts(new.to_record())

    def _is_done(self, numbers: range) -> bool:
        """Whether all blocks are written that can be: those with findings wait for other parts."""
        for number in numbers:
            if not self._folder.has_draft(self._job.plan, number):
                return False
            done = self._folder.journal.blocks(number)
            left = (each for each in self._job.plan.shards[number].blocks() if each.key not in done)
            if not all(self._verdicts.finding(block.task) for block in left):
                return False
        return True

    def _notices(self) -> Iterator[Notice]:
        """Those that were not told yet, although the plan may have been made more than once."""
        for notice in self._job.notices():
            if notice.text not in self._told:
                self._told.add(notice.text)
                yield notice


def part_of(plan: Plan, numbers: range) -> Plan:
    """The plan as if these shards were all."""
    return replace(plan, shards=plan.shards[numbers.start : numbers.stop])


def share_in_words(plan: Plan, part: Part) -> Iterator[str]:
    """Which shards are the part's, and which parts have none."""
    numbers, n = share(plan, part), len(plan.shards)
    mine = part_of(plan, numbers)
    if numbers:
        written = numbers_in_words([number + 1 for number in numbers])
        what = "shards" if len(numbers) > 1 else "shard"
        read = f"{size(mine.bytes_in)} of {size(plan.bytes_in)} to read"
        yield f"part {part}: {what} {written} of {n}, {read}"
    else:
        yield f"part {part} has nothing to do"
    if without := idle(plan, part.of):
        what = "part" if len(without) == 1 else "parts"
        has = "has" if len(without) == 1 else "have"
        yield (
            f"{counted(n, 'shard')} for {part.of} parts: {what} {numbers_in_words(without)} {has} "
            "nothing to do; a smaller --max-shard-size makes more shards"
        )


def shared_factors(
    out: Path, identity: Identity, estimate: Callable[[], Run[Factors]], *, overwrite: bool
) -> Run[Factors]:
    """The factors of all parts: estimated here, or read where another part did that, or does it.

    identity: the run's, as it is without factors
    """
    is_told = False
    while True:
        with alone(out) as is_alone:
            found = read_factors(out, identity, overwrite=overwrite)
            if found is None and is_alone:
                write_factors(out, identity, (yield from estimate()))
                continue
        if found is not None:
            return found
        if not is_told:
            yield Notice("another part measures the columns: waiting for what it finds")
            is_told = True
        time.sleep(_POLL_SECONDS)
