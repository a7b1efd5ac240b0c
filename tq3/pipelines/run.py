"""Carries out a job, from what an earlier run left to the last name in the target."""

from __future__ import annotations

from collections.abc import Collection

from tq3.codec.backend import Backend, get_backend
from tq3.events import Notice, Planned, Report, Run
from tq3.format.options import RunOptions, StrPath
from tq3.pipelines.job import Job
from tq3.pipelines.machine import check_workers
from tq3.pipelines.shards import write_shards
from tq3.pipelines.tally import Tally, make_report
from tq3.pipelines.work import SEEN_BYTES, fingerprint
from tq3.storage.journal import Journal
from tq3.storage.target import TargetFolder


def run_job(job: Job, out: StrPath, options: RunOptions) -> Run[Report]:
    """Carry out the job's plan in the folder `out`, or what an earlier run left of it to do."""
    codec = get_backend(options.backend)
    workers = check_workers(options.workers, job.files.connections)
    with TargetFolder(
        out,
        job.identity(),
        source=job.files.folder,
        overwrite=options.overwrite,
        resume=options.resume,
    ) as target:
        job.apply(target.journal.learned)
        if changed := changed_tensor(job, target.journal):
            target.start_anew([f"tensor {changed!r} has other values"])
            job.forget()
        return (yield from complete(job, target, codec, workers))


def complete(
    job: Job, target: TargetFolder, codec: Backend, workers: int, sound: Collection[int] = ()
) -> Run[Report]:
    """Do what is left to do, and publish; `sound`: shards whose drafts were read just now."""
    sidecars = job.sidecars()
    copies = sidecars.copied.values()
    target.check_names((*job.plan.weight_files, *job.written_names(), *copies))
    yield Planned(job.plan, codec.name, workers)
    target.go_on()
    target.forget_damaged(job.plan, (n for n in range(len(job.plan.shards)) if n not in sound))
    tally = Tally(job.plan, target.journal, job.files, workers)
    if tally.bytes_before and not sound:
        yield Notice(f"continuing an unfinished run, {tally.share_before:.0%} of it done")
    yield from job.notices()
    yield from job.side_notices(sidecars)
    target.check_room(job.plan.file_bytes + sum(map(job.files.size, sidecars.copied)))
    for name, stored in sidecars.copied.items():
        target.copy(stored, job.files.parts(name))
    for progress in write_shards(job, target, tally, backend=codec, workers=workers):
        yield from job.notices()
        yield progress
    marker = job.marker(tally.measured_error())
    target.publish(job.plan, texts=job.texts(), marker=marker, writer=job.writer)
    return make_report(
        job.plan,
        tally,
        sidecars.left_out,
        restored=not job.writer,
        backend=codec.name,
        workers=workers,
    )


def changed_tensor(job: Job, journal: Journal) -> str | None:
    """The first tensor whose first bytes are not those that the earlier run saw; None if all are.

    A few kilobytes of each tensor: what stamps miss, such as another model of the same shapes that
    was copied with its times, differs in the first ones already. A pinned source is what it was.
    """
    files = job.files
    if files.is_pinned:
        return None
    for number, shard in enumerate(job.plan.shards):
        done = journal.blocks(number)
        for task in shard.tasks:
            earlier = done.get((task.name, 0))
            if earlier and earlier.seen:
                source = task.sources[0]
                _, length = next(task.blocks()).span(source.info.n_bytes)
                data = files.read(source.file, source.offset, min(length, SEEN_BYTES))
                if fingerprint(memoryview(data)) != earlier.seen:
                    return task.name
    return None
