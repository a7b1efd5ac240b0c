"""Parts of a plan: neighbouring shards, all of them once, balanced by bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tq3.format.checkpoint import Located
from tq3.format.header import TensorInfo
from tq3.format.parts import Part
from tq3.plan.plan import Plan, arrange, copy_task
from tq3.plan.shares import idle, owners, share

SIZES = st.lists(st.integers(0, 10**6), min_size=1, max_size=40)


def plan_of(sizes: list[int]) -> Plan:
    """A shard for each size."""
    infos = (TensorInfo(f"t{i}", "U8", (size,)) for i, size in enumerate(sizes))
    return arrange((copy_task(Located(info, "in", 0), "why") for info in infos), 1)


@given(sizes=SIZES, of=st.integers(1, 60))
def test_every_shard_is_written_by_one_part_and_none_writes_much_more_than_its_share(sizes, of):
    plan = plan_of(sizes)
    shares = [share(plan, Part(number, of)) for number in range(1, of + 1)]
    assert [number for each in shares for number in each] == [*range(len(plan.shards))]
    assert idle(plan, of) == [n for n, each in enumerate(shares, 1) if not each]
    weights = [shard.bytes_in + shard.file_bytes for shard in plan.shards]
    loads = [sum(weights[number] for number in each) for each in shares]
    assert max(loads) <= sum(weights) / of + max(weights)


def test_equal_shards_are_dealt_evenly():
    assert owners(plan_of([1000] * 8), 4) == [1, 1, 2, 2, 3, 3, 4, 4]
    assert owners(plan_of([1000] * 5), 4) == [1, 2, 3, 3, 4]
    assert owners(plan_of([1000] * 2), 2) == [1, 2]


def test_what_goes_on_in_an_empty_plan():
    assert owners(plan_of([0]), 3) == [2]
