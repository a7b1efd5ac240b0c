"""Tasks go into shards greedily and in order; nothing is split, lost or moved."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq3.format.checkpoint import Located, Pieces
from tq3.format.header import TensorInfo
from tq3.format.layout import GroupLayout
from tq3.format.quantised import Encoding
from tq3.plan.plan import Action, Plan, Task, arrange, cast_task, copy_task


def task(name: str, n_bytes: int) -> Task:
    """A copied tensor of so many bytes."""
    return copy_task(Located(TensorInfo(name, "U8", (n_bytes,)), "in", 0), "why")


def tasks_of(sizes: list[int]) -> list[Task]:
    """One copied tensor for each size."""
    return [task(f"t{i}", size) for i, size in enumerate(sizes)]


SIZES = st.lists(st.integers(0, 50), max_size=30)
LIMITS = st.integers(1, 120)


@given(sizes=SIZES, limit=LIMITS)
def test_nothing_is_split_lost_or_reordered(sizes, limit):
    tasks = tasks_of(sizes)
    plan = arrange(tasks, limit)
    assert list(plan.tasks) == tasks
    assert plan.bytes_out == sum(sizes)
    assert all(shard.tasks for shard in plan.shards) or not tasks


@given(sizes=SIZES, limit=LIMITS)
def test_a_shard_passes_the_limit_only_where_one_task_does(sizes, limit):
    for shard in arrange(tasks_of(sizes), limit).shards:
        assert shard.bytes_out <= limit or sum(t.bytes_out > 0 for t in shard.tasks) == 1


@given(sizes=SIZES, limit=LIMITS)
def test_a_shard_closes_only_before_what_would_not_have_fitted(sizes, limit):
    shards = arrange(tasks_of(sizes), limit).shards
    for one, following in zip(shards, shards[1:], strict=False):
        assert one.bytes_out + following.tasks[0].bytes_out > limit


@given(sizes=SIZES.filter(bool), limit=LIMITS, data=st.data())
def test_a_task_that_grows_moves_nothing_in_an_earlier_shard(sizes, limit, data):
    at = data.draw(st.integers(0, len(sizes) - 1))
    grown = [*sizes[:at], sizes[at] + data.draw(st.integers(1, 100)), *sizes[at + 1 :]]
    before, after = arrange(tasks_of(sizes), limit), arrange(tasks_of(grown), limit)
    home = next(i for i, s in enumerate(before.shards) if f"t{at}" in s.offsets)
    assert after.shards[:home] == before.shards[:home]


@given(sizes=SIZES, limit=LIMITS)
def test_index_names_and_files_agree_with_the_shards(sizes, limit):
    plan = arrange(tasks_of(sizes), limit)
    assert len(plan.shard_names) == len(set(plan.shard_names)) == len(plan.shards)
    if plan.index is None:
        assert plan.weight_files == ("model.safetensors",)
        return
    assert plan.weight_files == (*plan.shard_names, "model.safetensors.index.json")
    for file, shard in zip(plan.shard_names, plan.shards, strict=True):
        there = {n for n, f in plan.index["weight_map"].items() if f == file}  # type: ignore[attr-defined]
        assert there == set(shard.offsets)


def test_a_single_shard_is_a_single_file_without_index():
    assert arrange(tasks_of([5, 5]), 10).shard_names == ("model.safetensors",)
    assert arrange([], 10).shard_names == ("model.safetensors",)
    assert arrange(tasks_of([5, 6]), 10).shard_names == (
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    )


def encode_task(shape: tuple[int, ...], group: int = 128) -> Task:
    """A compressed BF16 tensor."""
    layout = GroupLayout(shape, 3, group)
    source = Located(TensorInfo("w", "BF16", shape), "in", 0)
    return Task(
        "w", Action.ENCODE, "why", (source,), layout.tensors("w"), layout.units, layout=layout
    )


def number_task(dtype: str) -> Task:
    """A tensor of no dimension, stored as F16 where it can be."""
    return cast_task(Located(TensorInfo("n", dtype, ()), "in", 0), "F16", "why")


FP8 = "F8_E4M3", (7, 384)
BLOCKED = {
    "whole groups": encode_task((7, 384)),
    "padded rows": encode_task((7, 300)),
    "experts": encode_task((3, 5, 128)),
    "cast": cast_task(Located(TensorInfo("n", "F32", (9, 11)), "in", 0), "F16", "why"),
    "copied float": copy_task(Located(TensorInfo("n", "BF16", (9, 11)), "in", 0), "why"),
    "copied bytes": copy_task(Located(TensorInfo("n", "I64", (9, 11)), "in", 0), "why"),
    "copied parts of bytes": copy_task(Located(TensorInfo("n", "F4", (10, 3)), "in", 0), "why"),
    "number": number_task("BF16"),
    "double": number_task("F64"),
    "empty": copy_task(Located(TensorInfo("n", "F32", (0, 4)), "in", 0), "why"),
}


@pytest.mark.parametrize("one", BLOCKED.values(), ids=BLOCKED)
@given(block_bytes=st.integers(1, 10_000))
def test_blocks_cover_every_unit_once_and_stay_near_the_size_asked_for(one, block_bytes):
    units: list[int] = []
    for block in one.blocks(block_bytes):
        assert block.count > 0
        units += range(block.first, block.first + block.count)
        n_bytes = (one.bytes_in + one.bytes_out) // one.units * block.count
        assert n_bytes <= block_bytes or block.count == 1
    assert units == list(range(one.units))


def test_blocks_of_weights_that_are_decoded_begin_with_a_row_where_one_fits():
    encoding = Encoding("e4m3", 8, (128, 128), "F32")
    codes, scales = (Located(TensorInfo("w", *info), "in", 0) for info in (FP8, ("F32", (1, 3))))
    virtual = Located(TensorInfo("w", "F32", FP8[1]), "in", 0, Pieces(encoding, codes, scales))
    one = replace(encode_task(FP8[1]), sources=(virtual,))
    row = one.bytes_held // 7
    assert [(block.first, block.count) for block in one.blocks(row * 3 - 1)] == [
        (0, 6),
        (6, 6),
        (12, 6),
        (18, 3),
    ]
    assert [block.count for block in one.blocks(row - 1)] == [2] * 10 + [1]


@pytest.mark.parametrize("one", BLOCKED.values(), ids=BLOCKED)
def test_every_unit_has_the_same_whole_bytes_in_each_source_and_target(one):
    for info in (*(source.info for source in one.sources), *one.targets):
        assert info.n_bytes % max(one.units, 1) == 0


def test_only_floats_are_cast_and_only_where_the_type_changes():
    def action(dtype: str) -> Action:
        return cast_task(Located(TensorInfo("n", dtype, (4,)), "in", 0), "F16", "why").action

    assert {dtype: action(dtype) for dtype in ("BF16", "F32", "F16", "F64", "I32", "F8_E4M3")} == {
        "BF16": Action.CAST,
        "F32": Action.CAST,
        "F16": Action.COPY,
        "F64": Action.COPY,
        "I32": Action.COPY,
        "F8_E4M3": Action.COPY,
    }


def test_a_plan_without_tensors_is_a_file_without_tensors():
    plan = arrange([], 10)
    assert isinstance(plan, Plan)
    assert (plan.bytes_in, plan.bytes_out, len(plan.shards)) == (0, 0, 1)
    assert plan.file_bytes == len(plan.shards[0].header)
