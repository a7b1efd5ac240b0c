"""Whether the source still is the one that an earlier run read."""

from __future__ import annotations

from tq3.pipelines.work import SEEN_BYTES, see
from tq3.plan.files import Source
from tq3.plan.plan import Plan
from tq3.storage.target import TargetFolder


def changed_tensor(files: Source, plan: Plan, target: TargetFolder) -> str | None:
    """The first tensor whose first bytes are not those that the earlier run saw; None if all are.

    A few kilobytes of each tensor: what stamps miss, such as another model of the same shapes that
    was copied with its times, differs in the first ones already. A pinned source is what it was.
    """
    if files.is_pinned:
        return None
    for number, shard in enumerate(plan.shards):
        done = target.journal.blocks(number)
        for task in shard.tasks:
            earlier = done.get((task.name, 0))
            if earlier and earlier.seen:
                source = task.sources[0]
                _, length = next(task.blocks()).span(source.info.n_bytes)
                data = files.read(source.file, source.offset, min(length, SEEN_BYTES))
                if see(memoryview(data)) != earlier.seen:
                    return task.name
    return None
