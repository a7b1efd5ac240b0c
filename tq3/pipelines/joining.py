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
from tq3.pipelines.standing import Standing, faults_in_words
from tq3.pipelines.verdicts import Verdicts
from tq3.plan.plan import Shard
from tq3.plan.shares import owners
from tq3.storage.part_manifest import PartShard
from tq3.storage.parts import written_draft
from tq3.storage.shard_drafts import has_blocks
from tq3.storage.shard_file import is_draft

_CHANGED = "to be run again, for what values taught other parts changes its shards"
_GONE = "damaged: a shard is gone"
_DAMAGED = "damaged: a shard has other bytes than its manifest says"


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
        if not self.draft.exists():
            return _GONE
        return None if is_draft(self.draft, shard) else _DAMAGED

    @property
    def n_bytes(self) -> int:
        return sum(piece.length for block in self.written.blocks for piece in block.pieces)


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
        first = min(faults)
        raise BadInput(
            f"{len(faults)} of {of} parts not ready to be joined",
            file=out,
            found=faults_in_words(faults),
            fix=f"run these with the command that they all have (--part {first}/{of}), then "
            "tq3 finish again",
        )


def _read(shards: Sequence[WrittenShard], workers: int) -> Run[dict[int, str]]:
    """Read what the parts wrote, and give those of which a shard is not as they wrote it."""
    total, done, started = sum(each.n_bytes for each in shards), 0, time.perf_counter()
    damaged = {}

    def look(each: WrittenShard) -> tuple[WrittenShard, bool]:
        return each, has_blocks(each.draft, each.written.by_key)

    with closing(in_parallel(shards, lambda: look, workers)) as looking:
        for each, is_sound in looking:
            done += each.n_bytes
            if not is_sound:
                damaged[each.owner] = _DAMAGED
            seconds = time.perf_counter() - started
            yield Progress(done, 0, total, 0, seconds, f"checksums of part {each.owner}")
    return damaged
