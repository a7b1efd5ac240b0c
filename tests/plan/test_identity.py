"""Two runs are the same when source, plan and format are; else the difference is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.factories import FakeFiles, random_tensor, safetensors_bytes

from tq3.format.checkpoint import read_checkpoint
from tq3.format.config import recipe_record
from tq3.format.recipe import Recipe
from tq3.plan.compressing import plan_compression
from tq3.plan.identity import Identity, before_factors, identify, with_factors

TENSORS = {"a.weight": random_tensor(4, 256, seed=1), "b.weight": random_tensor(8, 128, seed=2)}


def identity(tensors: Any = TENSORS, command: str = "compress", **options: Any) -> Identity:
    """Of a run over a folder in memory, whose stamps are sizes."""
    files = FakeFiles({"model.safetensors": safetensors_bytes(tensors)})
    checkpoint, recipe = read_checkpoint(files), Recipe(**options)
    plan = plan_compression(checkpoint, recipe)
    return identify(command, checkpoint, plan, recipe_record(recipe))


def through_json(one: Identity) -> Any:
    """As a journal gives it back."""
    return json.loads(json.dumps(one.to_record()))


def test_the_same_run_has_no_difference():
    assert identity().differences(through_json(identity())) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"bits": 4}, "--bits 3 became --bits 4"),
        ({"group_size": 64}, "--group-size 128 became --group-size 64"),
        ({"keep": ("a.*",)}, "no --keep became --keep a.*"),
        ({"max_shard_bytes": 600}, "--max-shard-size 5GiB became --max-shard-size 600"),
    ],
)
def test_an_option_that_changes_the_plan_is_named(options, told):
    assert identity(**options).differences(through_json(identity())) == [told]


def test_an_option_that_changes_nothing_is_no_difference():
    """What it would change at the end is written at the end."""
    relaxed = identity(nonfinite="keep", max_shard_bytes=10**9)
    assert relaxed.differences(through_json(identity())) == []


def test_another_stamp_is_named_with_both():
    old = through_json(identity())
    old["sources"] = {"model.safetensors": "7 bytes", "gone.safetensors": "8 bytes"}
    told = identity().differences(old)
    size = len(safetensors_bytes(TENSORS))
    assert told == [
        f"model.safetensors 7 bytes became {size} bytes",
        "gone.safetensors 8 bytes became not there",
    ]


def test_other_tensors_in_a_file_of_the_same_size_are_another_plan():
    """Also where the stamp says nothing: the plan knows every header."""
    swapped = {"a.weight": random_tensor(8, 128, seed=1), "b.weight": random_tensor(4, 256, seed=2)}
    told = identity(swapped).differences(through_json(identity()))
    assert told == ["the tensors in the source, or what this version of tq3 makes of them"]


def test_another_command_and_another_version_are_named():
    old = through_json(identity())
    assert identity(command="restore").differences(old) == ["command compress became restore"]
    old["versions"] = "format 0, journal 0"
    (told,) = identity().differences(old)
    assert told.startswith("versions format 0, journal 0 became ")


def test_other_blocks_are_another_plan(monkeypatch):
    old = through_json(identity())
    monkeypatch.setattr("tq3.plan.identity.BLOCK_BYTES", 1000)
    assert identity().differences(old)


def test_a_record_of_another_kind_differs_in_that_alone():
    assert len(identity().differences({})) == 2


def test_before_factors_are_known_all_else_is_compared():
    one, other = (with_factors(identity(equalize=True), {"norm": bytes([e])}) for e in (1, 2))
    unsaid = ["the tensors in the source, or what this version of tq3 makes of them"]
    assert one.differences(through_json(other)) == unsaid
    for earlier, told in ((other, []), (identity(), ["no --equalize became --equalize"])):
        record = through_json(earlier)
        assert before_factors(identity(equalize=True), record).differences(record) == told
    assert identity().differences(through_json(one)) == ["--equalize became no --equalize"]
