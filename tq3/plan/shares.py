"""Which part of a divided run writes which shards: neighbours, balanced by bytes."""

from __future__ import annotations

from itertools import accumulate

from tq3.format.parts import Part
from tq3.plan.plan import Plan


def owners(plan: Plan, count: int) -> list[int]:
    """The number of the part that each shard belongs to, from 1 to `count`, never falling.

    All bytes, read and written, lie in a row and are cut into `count` equal lengths; a shard
    belongs to the length that its middle lies in. So no part moves more than its length and one
    shard, neighbouring shards share what they read, and a plan that changes a little moves few.
    """
    sizes = [shard.bytes_in + shard.file_bytes for shard in plan.shards]
    total = sum(sizes)
    ends = accumulate(sizes)
    # Twice the middle over twice the total: whole numbers are the same on every machine.
    return [
        min((2 * end - size) * count // (2 * total), count - 1) + 1
        for end, size in zip(ends, sizes, strict=True)
    ]


def share(plan: Plan, part: Part) -> range:
    """The numbers of the shards that a part writes, from 0; empty where others write them all."""
    owned = owners(plan, part.of)
    first = sum(owner < part.number for owner in owned)
    return range(first, first + owned.count(part.number))


def idle(plan: Plan, count: int) -> list[int]:
    """The parts that have no shard to write."""
    return sorted(set(range(1, count + 1)) - set(owners(plan, count)))
