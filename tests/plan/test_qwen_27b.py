"""The plan of a real model of 27 billion weights, from its 1199 names and shapes alone."""

from __future__ import annotations

import time

import pytest
from support.plan.listings import qwen

from tq3.format.recipe import Recipe
from tq3.plan.classes import class_of
from tq3.plan.compressing import plan_compression
from tq3.plan.plan import Action, Plan


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_compression(qwen(), Recipe())


def test_the_listing_is_the_published_model():
    checkpoint = qwen()
    assert len({tensor.info.name for tensor in checkpoint.tensors}) == 1199
    assert sum(tensor.info.n_bytes for tensor in checkpoint.tensors) == 55_562_855_904


def test_the_plan_gives_the_published_figures_to_the_byte(plan):
    assert sum(task.action is Action.ENCODE for task in plan.tasks) == 614
    assert plan.bytes_out == 15_351_354_528
    assert len(plan.shards) == 3
    assert plan.shard_names == tuple(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))


def test_no_tensor_is_lost_or_doubled(plan):
    assert [task.name for task in plan.tasks] == [t.info.name for t in qwen().tensors]
    assert plan.bytes_in == 55_562_855_904
    targets = [target.name for task in plan.tasks for target in task.targets]
    assert len(targets) == len(set(targets)) == 1199 + 614
    assert plan.index is not None
    assert plan.index["metadata"] == {"total_size": 15_351_354_528}
    assert set(plan.index["weight_map"]) == set(targets)


def test_every_shard_is_filled_without_a_gap_and_keeps_the_limit(plan):
    for shard in plan.shards:
        assert shard.bytes_out <= 5 * 2**30
        sizes = {target.name: target.n_bytes for task in shard.tasks for target in task.targets}
        assert sizes.keys() == shard.offsets.keys()
        position = len(shard.header)
        for name in sorted(sizes, key=lambda name: (shard.offsets[name], sizes[name])):
            assert shard.offsets[name] == position
            position += sizes[name]
        assert position == shard.file_bytes


def test_each_kind_of_tensor_has_its_reason(plan):
    reasons: dict[str, int] = {}
    for task in plan.tasks:
        if task.action is not Action.ENCODE:
            reasons[task.reason.partition(":")[0]] = 1 + reasons.get(
                task.reason.partition(":")[0], 0
            )
    assert reasons == {
        "output head": 1,
        "token embedding": 1,
        "position embedding": 1,
        "patch embedding": 1,
        "norm": (1 + 64 * 2 + 48 + 16 * 2) + (1 + 2 + 2 + 2) + (27 * 2 + 1),
        "read raw by the causal-convolution kernel": 48,
        "decay of the recurrent state": 96,
        "bias": 1 + 27 * 6 + 3,
    }


def test_the_classes_share_out_the_tensors(plan):
    counts: dict[str, int] = {}
    for task in plan.tasks:
        counts[class_of(task.name)] = counts.get(class_of(task.name), 0) + 1
    assert counts == {
        "embeddings": 2,
        "linear attention": 48 * 9,
        "attention": 16 * 6,
        "MLP": 64 * 3,
        "MTP": 15,
        "vision": 333,
        "other": 64 * 2 + 1,
    }


def test_planning_takes_less_than_a_second():
    checkpoint = qwen()
    start = time.process_time()
    plan_compression(checkpoint, Recipe())
    assert time.process_time() - start < 1
