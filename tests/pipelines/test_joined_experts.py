"""A value that keeps one expert keeps what hosts join it with, also in shards already written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.factories import (
    contents,
    expert_tensors,
    read_tensors,
    spoiled,
    tiny_checkpoint,
    with_nan,
)
from support.pipelines.interrupting import end_after, unfinished
from support.pipelines.kinds import as_float16, assert_same_tensors, encoded

import tq3
from tq3.events import Notice, Progress
from tq3.plan.roles import expert_set_of

SHARD_BYTES, BLOCK_BYTES = 6000, 1500
RECIPE = tq3.Recipe(max_shard_bytes=SHARD_BYTES, nonfinite="keep")
LATE = "model.layers.0.mlp.experts.3.down_proj.weight"
LATER = "model.layers.1.mlp.experts.2.up_proj.weight"


@pytest.fixture(autouse=True)
def small_blocks(set_block_bytes, monkeypatch) -> None:
    set_block_bytes(BLOCK_BYTES)
    monkeypatch.setattr("tq3.storage.shard_file._LAST_FLUSH_SECONDS", 30)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two NaNs, each after much of what it changes is written."""
    tensors = with_nan(with_nan(expert_tensors(), LATE), LATER)
    return tiny_checkpoint(tmp_path / "in", tensors, shards=3)


def set_of(name: str, names: object) -> set[str]:
    return {each for each in names if expert_set_of(each) == expert_set_of(name)}  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [1, 3])
def test_the_whole_set_is_kept_whatever_shard_it_lies_in(source, tmp_path, workers):
    events = list(tq3.compress_checkpoint(source, tmp_path / "out", RECIPE, workers=workers))
    tensors = with_nan(with_nan(expert_tensors(), LATE), LATER)
    kept = set_of(LATE, tensors) | set_of(LATER, tensors)
    expected = {}
    for name, one in tensors.items():
        if name in (LATE, LATER):
            expected[name] = one
        elif name in kept or "norm" in name:
            expected[name] = as_float16(one)
        else:
            expected |= encoded(name, one)
    assert_same_tensors(read_tensors(tmp_path / "out"), expected)
    config = json.loads((tmp_path / "out" / "tq_config.json").read_text())
    assert config["tq3"]["kept_source_dtype"].keys() == {LATE, LATER}
    notices = [event.text for event in events if isinstance(event, Notice)]
    assert any(LATE in text and "nan" in text for text in notices)
    joined = [text for text in notices if "hosts join these" in text]
    assert len(joined) == 2
    assert "and 2 more are kept with mlp.experts.3.down_proj.weight of the same layer" in joined[0]
    steps = [event for event in events if isinstance(event, Progress)]
    assert steps[-1].bytes_done == steps[-1].bytes_total


def test_the_weights_are_those_of_a_run_that_was_asked_for_it_from_the_start(source, tmp_path):
    list(tq3.compress_checkpoint(source, tmp_path / "out", RECIPE))
    names = expert_tensors()
    keep = sorted((set_of(LATE, names) | set_of(LATER, names)) - {LATE, LATER})
    tq3.compress(
        source, tmp_path / "asked", max_shard_size=SHARD_BYTES, nonfinite="keep", keep=keep
    )
    found, asked = contents(tmp_path / "out"), contents(tmp_path / "asked")
    weights = [name for name in found if name.startswith("model")]
    assert len(weights) > 8
    assert {name: found[name] for name in weights} == {
        name: data for name, data in asked.items() if name.startswith("model")
    }


def test_that_values_left_nothing_to_compress_is_said_once_it_is_known(tmp_path):
    tensors = expert_tensors()
    for name in [name for name in tensors if ".experts.0." in name]:
        tensors = with_nan(tensors, name)
    source = tiny_checkpoint(tmp_path / "in", tensors)
    assert not any("compressed" in text for text in tq3.preview(source, recipe=RECIPE).notices)
    events = tq3.compress_checkpoint(source, tmp_path / "out", RECIPE)
    notices = [event.text for event in events if isinstance(event, Notice)]
    assert len([text for text in notices if text.startswith("nothing is compressed: ")]) == 1


@pytest.mark.parametrize("workers", [1, 3])
def test_a_run_that_ends_after_any_event_goes_on_to_the_same_bytes(source, tmp_path, workers):
    n_events = len(list(tq3.compress_checkpoint(source, tmp_path / "whole", RECIPE)))
    whole = contents(tmp_path / "whole")
    for n in range(1, n_events, 30):
        out = tmp_path / str(n)
        end_after(tq3.compress_checkpoint(source, out, RECIPE, workers=workers), n)
        assert unfinished(out)
        list(tq3.compress_checkpoint(source, out, RECIPE, workers=workers))
        assert contents(out) == whole, f"after {n} events"


def test_a_run_that_ends_again_and_again_comes_to_an_end(source, tmp_path):
    list(tq3.compress_checkpoint(source, tmp_path / "whole", RECIPE))
    for _ in range(100):
        if end_after(tq3.compress_checkpoint(source, tmp_path / "out", RECIPE, workers=1), 25):
            break
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_a_kept_expert_can_not_hold_keeps_its_type_as_well(tmp_path):
    """An earlier shard, written anew, has something to say, too."""
    early = LATE.replace(".3.", ".0.")
    tensors = with_nan(expert_tensors(), LATE)
    tensors[early] = spoiled(tensors[early], (3, 7), 70000.0)
    source = tiny_checkpoint(tmp_path / "in", tensors, shards=3)
    list(tq3.compress_checkpoint(source, tmp_path / "out", RECIPE))
    found = read_tensors(tmp_path / "out")
    assert (found[early].dtype, found[early.replace(".0.down", ".1.down")].dtype) == ("BF16", "F16")
    config = json.loads((tmp_path / "out" / "tq_config.json").read_text())
    assert "does not fit F16" in config["tq3"]["kept_source_dtype"][early]
    assert not [fault for fault in tq3.verify(tmp_path / "out").faults]


def test_inspect_says_with_what_a_tensor_was_kept(source, tmp_path):
    list(tq3.compress_checkpoint(source, tmp_path / "out", RECIPE))
    reasons = {line.name: line.reason for line in tq3.inspect(tmp_path / "out").tensors}
    assert "nan" in reasons[LATE]
    why = "kept with mlp.experts.3.down_proj.weight of the same layer: hosts join these"
    assert reasons[LATE.replace(".3.", ".0.")] == why
