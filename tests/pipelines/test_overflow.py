"""A kept value that does not fit float16: its tensor keeps its type, and everybody is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
from support.factories import Tensor, Tensors, random_tensor, read_tensors, spoiled, tiny_checkpoint
from support.pipelines.kinds import as_float16, assert_same_tensors, encoded

import tq3
from tq3.events import Event, Notice, Progress

SHARD_BYTES = 3000


class Outcome(NamedTuple):
    """What a compression left and told."""

    tensors: dict[str, Tensor]
    notices: list[str]
    recorded: dict[str, str]
    events: list[Event]


def compressed(tmp_path: Path, tensors: Tensors, **options: object) -> Outcome:
    """Compress in shards of a few tensors."""
    source = tiny_checkpoint(tmp_path / "in", tensors)
    events: list[Event] = []
    tq3.compress(
        source,
        tmp_path / "out",
        max_shard_size=SHARD_BYTES,
        equalize=False,
        on_event=events.append,
        **options,  # type: ignore[arg-type]
    )
    config = json.loads((tmp_path / "out" / "tq_config.json").read_text())
    return Outcome(
        read_tensors(tmp_path / "out"),
        [event.text for event in events if isinstance(event, Notice)],
        config["tq3"]["kept_source_dtype"],
        events,
    )


def twelve() -> dict[str, Tensor]:
    """Kept and compressed tensors for several shards."""
    tensors: dict[str, Tensor] = {}
    for i in range(6):
        tensors[f"layers.{i}.norm.weight"] = random_tensor(512, seed=i)
        tensors[f"layers.{i}.up.weight"] = random_tensor(16, 128, seed=i + 10)
    return tensors


def output_of(tensors: Tensors) -> dict[str, Tensor]:
    """What no surprise would change."""
    output: dict[str, Tensor] = {}
    for name, one in tensors.items():
        output |= {name: as_float16(one)} if "norm" in name else encoded(name, one)
    return output


@pytest.mark.parametrize("layer", [0, 2, 5])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_tensor_with_a_large_value_keeps_its_type_in_any_shard(tmp_path, layer, workers):
    tensors = twelve()
    name = f"layers.{layer}.norm.weight"
    tensors[name] = spoiled(tensors[name], (300,), -98304.0)
    found = compressed(tmp_path, tensors, workers=workers)
    assert_same_tensors(found.tensors, output_of(twelve()) | {name: tensors[name]})
    assert list(found.recorded) == [name]
    (notice,) = found.notices
    assert name in notice
    for text in (notice, found.recorded[name]):
        assert "column 300" in text
        assert "does not fit F16" in text
        assert "-98304" in text


def test_every_tensor_with_a_large_value_is_found_also_several_in_a_shard(tmp_path):
    tensors = twelve()
    large = [f"layers.{i}.norm.weight" for i in (0, 1, 3, 5)]
    for name in large:
        tensors[name] = spoiled(tensors[name], (0,), 1e30)
    found = compressed(tmp_path, tensors)
    assert_same_tensors(found.tensors, output_of(twelve()) | {n: tensors[n] for n in large})
    assert list(found.recorded) == large
    assert len(found.notices) == len(large)


def test_shards_and_index_are_those_of_the_plan_that_was_carried_out(tmp_path):
    tensors = twelve()
    for name in list(tensors)[::2]:
        tensors[name] = spoiled(tensors[name], (0,), 1e30)
    found = compressed(tmp_path, tensors)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    n_bytes = sum(len(one.data) for one in found.tensors.values())
    assert index["metadata"]["total_size"] == n_bytes
    assert set(index["weight_map"]) == set(found.tensors)
    for file in set(index["weight_map"].values()):
        inside = [n for n, f in index["weight_map"].items() if f == file]
        assert sum(len(found.tensors[n].data) for n in inside) <= SHARD_BYTES


def test_the_largest_value_that_rounds_to_float16_is_cast(tmp_path):
    large = random_tensor(1025, 1024, dtype="F32")  # a smaller one would stay in F32
    tensors = {
        "fits.embed_tokens.weight": spoiled(large, (1, 1), 65519.996),
        "larger.embed_tokens.weight": spoiled(large, (1, 1), 65520.0),
    }
    found = compressed(tmp_path, tensors, keep="*").tensors
    fits, larger = tensors
    assert found == {fits: as_float16(tensors[fits]), larger: tensors[larger]}


def test_progress_ends_with_all_bytes_although_a_shard_was_written_twice(tmp_path):
    tensors = twelve()
    tensors["layers.0.norm.weight"] = spoiled(tensors["layers.0.norm.weight"], (0,), 1e30)
    steps = [e for e in compressed(tmp_path, tensors).events if isinstance(e, Progress)]
    assert steps[-1].bytes_done == steps[-1].bytes_total
    assert max(step.bytes_done for step in steps) == steps[-1].bytes_total


@pytest.mark.parametrize("block_bytes", [1, 64, 2**20])
@pytest.mark.parametrize("workers", [1, 4])
def test_the_value_that_is_named_depends_on_neither_blocks_nor_workers(
    tmp_path, set_block_bytes, block_bytes, workers
):
    set_block_bytes(block_bytes)
    one = spoiled(spoiled(random_tensor(8, 32), (2, 5), 2.0**20), (6, 7), 1e5)
    found = compressed(tmp_path, {"a.bias": one}, keep="*", workers=workers)
    assert "1.04858e+06 at row 2, column 5" in found.recorded["a.bias"]


def test_with_keep_dtype_source_nothing_can_overflow(tmp_path):
    one = spoiled(random_tensor(4), (1,), 1e30)
    tensors = {"a.bias": one, "a.weight": random_tensor(1, 128)}
    found = compressed(tmp_path, tensors, keep_dtype="source")
    assert found.tensors["a.bias"] == one
    assert (found.notices, found.recorded) == ([], {})


def test_inspect_gives_the_recorded_reason(tmp_path):
    one = spoiled(random_tensor(4), (1,), 1e30)
    compressed(tmp_path, {"a.bias": one}, keep="*")
    (line,) = tq3.inspect(tmp_path / "out").tensors
    assert (line.dtype, line.bits) == ("BF16", None)
    assert "does not fit F16" in line.reason
