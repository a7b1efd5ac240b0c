"""The shards that parts wrote: whether all are those of one plan, and whole to the byte."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tq3.errors import BadInput
from tq3.events import Progress, Run
from tq3.parallel import in_parallel
from tq3.pipelines.job import Job
from tq3.pipelines.learning import learn
from tq3.pipelines.standing import OF_ANOTHER, Standing, faults_in_words, size_fault
from tq3.pipelines.verdicts import Verdicts
from tq3.plan.plan import Shard
from tq3.plan.shares import owners
from tq3.storage.part_manifest import PartShard
from tq3.storage.parts import written_draft
from tq3.storage.shard_drafts import has_blocks
from tq3.storage.shard_file import is_draft

_SHOWN = 4  # parts in the sentence that says what to do
_CHANGED = "to be run again, for what values taught other parts changes its shards"


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A shard that a part wrote, and where its draft lies. number: from 0; owner: the part's"""

    number: int
    owner: int
    draft: Path
    written: PartShard

    def fault(self, shard: Shard) -> str | None:
        """Why it is not this shard of the plan, as far as that is seen without reading it."""
        if not self.written.is_of(shard):
            return _CHANGED
        fault = size_fault(self.draft, shard.file_bytes)
        return fault or (None if is_draft(self.draft, shard) else self.other_bytes)

    @property
    def other_bytes(self) -> str:
        return f"damaged: {self.draft.name} has other bytes than its manifest says"


def ready_shards(job: Job, out: Path, standing: Standing, workers: int) -> Run[list[WrittenShard]]:
    """The shards of the plan that a whole run would have come to, each read by its checksums.

    Has the job plan so. Raises BadInput that names each part which is not ready, and why.
    """
    verdicts = Verdicts()
    for manifest in standing.whole.values():
        verdicts.take(manifest.verdicts)
    learn(job, verdicts)
    owned = owners(job.plan, standing.of)
    faults = {n: why for n, why in standing.faults.items() if n in owned}
    found = []
    for each in written_shards(job, out, standing):
        found.append(each)
        if fault := each.fault(job.plan.shards[each.number]):
            faults.setdefault(each.owner, fault)
    missing = set(range(len(owned))) - {each.number for each in found}
    for number in missing:
        faults.setdefault(owned[number], _CHANGED)
    refuse(out, standing.of, faults)
    damaged = yield from _read(found, workers)
    refuse(out, standing.of, damaged)
    return found


def written_shards(job: Job, out: Path, standing: Standing) -> list[WrittenShard]:
    """What whole parts wrote of the shards that are theirs in the job's plan."""
    return [
        WrittenShard(number, owner, written_draft(out, standing.part(owner), number), written)
        for number, owner in enumerate(owners(job.plan, standing.of))
        if owner in standing.whole
        if (written := standing.whole[owner].shards.get(number))
    ]


def refuse(out: Path, of: int, faults: Mapping[int, str]) -> None:
    """Raise BadInput for parts that can't be joined, where there are any."""
    if faults:
        commands = [f"--part {number}/{of}" for number in sorted(faults)]
        shown = [*commands[:_SHOWN], *(["and so on"] if commands[_SHOWN:] else [])]
        is_odd = any(why.startswith(OF_ANOTHER) for why in faults.values())
        anew = "those of another run with --overwrite, " if is_odd else ""
        raise BadInput(
            f"{len(faults)} of {of} parts not ready to be joined",
            file=out,
            found=faults_in_words(faults),
            fix=f"run these with the command that they all have ({', '.join(shown)}), "
            f"{anew}then tq3 finish again",
        )


def _read(shards: Sequence[WrittenShard], workers: int) -> Run[dict[int, str]]:
    """Read what the parts wrote, and give those of which a shard is not as they wrote it."""
    total, done, started = sum(each.written.n_bytes for each in shards), 0, time.perf_counter()
    damaged: dict[int, str] = {}

    def look(each: WrittenShard) -> tuple[WrittenShard, bool]:
        return each, has_blocks(each.draft, each.written.by_key)

    with closing(in_parallel(shards, lambda: look, workers)) as looking:
        for each, is_sound in looking:
            done += each.written.n_bytes
            if not is_sound:
                damaged.setdefault(each.owner, each.other_bytes)
            seconds = time.perf_counter() - started
            yield Progress(done, 0, total, 0, seconds, f"checksums of part {each.owner}")
    return damaged
