"""Parts of a compression, joined: the bytes of one run, whatever values say and in any order."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from support.dequantization.quantised import around, fp4, fp8
from support.factories import (
    contents,
    expert_tensors,
    mixed_tensors,
    random_tensor,
    spoiled,
    tiny_checkpoint,
    too_large,
    visible,
    whole_llama,
    whole_llama_config,
    with_nan,
)
from support.pipelines.divided import drafts_of, join, run_parts
from support.pipelines.interrupting import counted_blocks, end_after

import tq3
from tq3.errors import BadInput, UsageError
from tq3.events import Event, Notice, Planned
from tq3.storage.parts import part_folder, parts_in

OPTIONS: dict[str, Any] = {"max_shard_size": 8000, "workers": 1}
LATE = "model.layers.0.mlp.experts.3.down_proj.weight"
LATER = "model.layers.1.mlp.experts.2.up_proj.weight"
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
QUANTISED = (
    fp8("model.layers.0.self_attn.q_proj", (256, 384)),
    fp4("model.layers.0.mlp.experts.0.up_proj", (130, 256)),
    fp8("model.layers.0.mlp.gate_proj", (192, 200), scale="BF16"),
)


@pytest.fixture(autouse=True)
def small_blocks(set_block_bytes, monkeypatch) -> None:
    set_block_bytes(3000)
    monkeypatch.setattr("tq3.storage.shard_file._LAST_FLUSH_SECONDS", 30)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    found = tiny_checkpoint(tmp_path / "in", mixed_tensors(), shards=3)
    (found / "tokenizer.json").write_text("{}")
    return found


def whole(source: Path, **options: Any) -> dict[str, bytes]:
    """What one run makes of it."""
    tq3.compress(source, source.parent / "whole", **OPTIONS | options)
    return contents(source.parent / "whole")


def small_norms() -> dict[str, Any]:
    """Rows whose norms F16 does not hold, in two shards."""
    tensors = mixed_tensors()
    for i in (1, 3):
        name = f"layers.{i}.up.weight"
        tensors[name] = spoiled(tensors[name], (7, 3), 1e6)
    return tensors


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_joined_parts_are_the_bytes_of_one_run(source, tmp_path, of):
    reports = run_parts(source, tmp_path / "out", of, **OPTIONS)
    assert visible(tmp_path / "out") == {}
    report = tq3.finish(tmp_path / "out")
    assert contents(tmp_path / "out") == whole(source)
    assert [each.part for each in reports] == [(number, of) for number in range(1, of + 1)]
    assert sum(each.source_bytes for each in reports) == report.source_bytes
    assert sum(each.n_compressed for each in reports) == report.n_compressed
    assert (report.part, report.share_before) == (None, 1.0)


@pytest.mark.parametrize(
    ("tensors", "config", "options"),
    [
        (mixed_tensors(), {}, {"target_size": 70_000}),
        (mixed_tensors(), {}, {"keep": "*", "also": "notes"}),
        (mixed_tensors(), {}, {"recipe": "mixed", "verbatim_config": True}),
        (around(QUANTISED), {"quantization_config": FP8, "expert_dtype": "fp4"}, {}),
        (whole_llama(), whole_llama_config(), {}),  # equalized unasked
        (small_norms(), {}, {"norms": "float16"}),
        (too_large(mixed_tensors(), 0, 2), {}, {}),
        (with_nan(with_nan(expert_tensors(), LATE), LATER), {}, {"nonfinite": "keep"}),
    ],
    ids=["target", "kept", "mixed", "quantised", "equalized", "norms", "overflow", "joined"],
)
def test_so_they_are_for_any_recipe_and_whatever_values_say(tmp_path, tensors, config, options):
    source = tiny_checkpoint(tmp_path / "in", tensors, shards=2, config=config)
    (source / "notes.gguf" if "also" in options else source / "notes").write_text("n")
    options = {**OPTIONS, **options, **({"also": "notes.gguf"} if "also" in options else {})}
    run_parts(source, tmp_path / "out", 3, (3, 1, 2), **options)
    join(source, tmp_path / "out", 3, **options)
    assert contents(tmp_path / "out") == whole(source, **options)


def test_parts_that_run_at_once_share_one_estimate_of_factors(tmp_path, monkeypatch):
    source = tiny_checkpoint(tmp_path / "in", whole_llama(), 2, whole_llama_config())
    options = {**OPTIONS, "max_shard_size": 30_000, "equalize": True}
    expected = whole(source, **options)
    notices: list[str] = []
    monkeypatch.setattr("tq3.pipelines.part._POLL_SECONDS", 0.01)

    def hear(event: Event) -> None:
        if isinstance(event, Notice):
            notices.append(event.text)

    def part(number: int) -> None:
        run_parts(source, tmp_path / "out", 3, [number], on_event=hear, **options)

    threads = [threading.Thread(target=part, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([text for text in notices if "first pass" in text]) == 1
    tq3.finish(tmp_path / "out")
    assert contents(tmp_path / "out") == expected


def test_factors_are_those_of_the_part_that_wrote_them_first(tmp_path, monkeypatch):
    """Another processor may round sums otherwise: its parts take what is there all the same."""
    source = tiny_checkpoint(tmp_path / "in", whole_llama(), 2, whole_llama_config())
    options = {**OPTIONS, "max_shard_size": 30_000, "equalize": True}
    run_parts(source, tmp_path / "out", 2, [2], **options)
    monkeypatch.setattr("tq3.pipelines.compress.estimate_factors", None)
    run_parts(source, tmp_path / "out", 2, [1], **options)
    tq3.finish(tmp_path / "out")
    monkeypatch.undo()
    assert contents(tmp_path / "out").keys() == whole(source, **options).keys()


def test_what_one_part_learns_has_only_those_run_again_whose_shards_it_moves(tmp_path):
    """F32, so that a kept tensor is larger than a cast one."""
    tensors = {f"layers.{i}.norm.weight": random_tensor(1500) for i in range(6)}
    tensors |= {f"layers.{i}.x.weight": random_tensor(1500, dtype="F32") for i in range(6, 9)}
    tensors["layers.0.up.weight"] = random_tensor(128, 128)
    name = "layers.4.norm.weight"
    tensors[name] = spoiled(tensors[name], (3,), 1e30)
    source = tiny_checkpoint(tmp_path / "in", tensors)
    run_parts(source, tmp_path / "out", 3, **OPTIONS)
    assert tq3.parts(tmp_path / "out").faults == {}
    assert join(source, tmp_path / "out", 3, **OPTIONS) == 0  # BF16 as large as F16: nothing moves
    assert contents(tmp_path / "out") == whole(source)


def test_a_part_that_stands_is_not_written_again_and_one_that_ended_goes_on(source, tmp_path):
    out = tmp_path / "out"
    recipe = tq3.Recipe(max_shard_bytes=8000)
    with counted_blocks() as all_blocks:
        list(tq3.compress_checkpoint(source, tmp_path / "other", recipe, part="1/2", workers=1))
    run = tq3.compress_checkpoint(source, out, recipe, part=(1, 2), workers=1)
    assert not end_after(run, len(all_blocks) // 2)
    with counted_blocks() as rest:
        run_parts(source, out, 2, [1], **OPTIONS)
    assert 0 < len(rest) < len(all_blocks)
    run_parts(source, out, 2, [2], **OPTIONS)
    with counted_blocks() as again:
        run_parts(source, out, 2, **OPTIONS)
    assert again == []
    tq3.finish(out)
    assert contents(out) == whole(source)


@pytest.mark.parametrize("step", [1, 4])
def test_a_part_that_ends_after_any_event_goes_on_to_the_same_bytes(source, tmp_path, step):
    out, recipe = tmp_path / "out", tq3.Recipe(max_shard_bytes=8000)
    run_parts(source, out, 3, [1, 2], **OPTIONS)
    for n in range(step, 1000, 7):
        if end_after(tq3.compress_checkpoint(source, out, recipe, part=(3, 3), workers=1), n):
            break
    tq3.finish(out)
    assert contents(out) == whole(source)


def test_two_runs_of_one_part_exclude_each_other_and_other_parts_do_not(source, tmp_path):
    out, recipe = tmp_path / "out", tq3.Recipe(max_shard_bytes=8000)
    run = tq3.compress_checkpoint(source, out, recipe, part=(1, 2), workers=1)
    while not isinstance(next(run), Planned):
        pass
    with pytest.raises(UsageError, match="part 1/2 is being written by another run"):
        run_parts(source, out, 2, [1], **OPTIONS)
    run_parts(source, out, 2, [2], **OPTIONS)
    with pytest.raises(BadInput, match=r"1 of 2 parts.*part 1: being written"):
        tq3.finish(out)
    assert tq3.parts(out).faults == {1: "being written"}
    list(run)
    tq3.finish(out)
    assert contents(out) == whole(source)


@pytest.mark.parametrize("lead", [1, 5, 12])
def test_where_there_are_no_locks_two_runs_of_one_part_do_no_harm(
    source, tmp_path, monkeypatch, lead
):
    expected = whole(source)
    monkeypatch.setattr("tq3.storage.locking.fcntl.flock", _no_locks)
    out, recipe = tmp_path / "out", tq3.Recipe(max_shard_bytes=8000)
    run_parts(source, out, 2, [2], **OPTIONS)
    runs = [tq3.compress_checkpoint(source, out, recipe, part=(1, 2), workers=1) for _ in range(2)]
    for _ in range(lead):
        next(runs[0])
    while runs:  # each an event ahead of the other in turn
        runs = [run for run in runs if next(run, None)]
    tq3.finish(out)
    assert contents(out) == expected


def _no_locks(*_: object) -> None:
    raise OSError(37, "No locks available")


def test_parts_with_nothing_to_do_say_so_and_need_not_run(source, tmp_path):
    notices = tq3.preview(source, part="3/3").notices
    assert any("1 shard for 3 parts: parts 1 and 3 have nothing to do" in n for n in notices)
    heard: list[Event] = []
    run_parts(source, tmp_path / "out", 3, [1], workers=1, on_event=heard.append)
    assert "part 1/3 has nothing to do" in [e.text for e in heard if isinstance(e, Notice)]
    run_parts(source, tmp_path / "out", 3, [2], workers=1)
    tq3.finish(tmp_path / "out")
    assert contents(tmp_path / "out") == whole(source, max_shard_size=None)


def test_an_older_checkpoint_stays_until_the_parts_are_joined(source, tmp_path):
    expected = whole(source)
    out = tmp_path / "out"
    tq3.compress(source, out, bits=2)
    older = visible(out)
    with pytest.raises(UsageError, match="not empty"):
        run_parts(source, out, 2, [1], **OPTIONS)
    run_parts(source, out, 2, overwrite=True, **OPTIONS)
    assert visible(out) == older
    tq3.finish(out)
    assert contents(out) == expected


def test_a_whole_run_and_parts_do_not_mix_unasked(source, tmp_path):
    out, recipe = tmp_path / "out", tq3.Recipe(max_shard_bytes=8000)
    run_parts(source, out, 2, [1], **OPTIONS)
    with pytest.raises(UsageError, match="tq3 finish"):
        tq3.compress(source, out, **OPTIONS)
    with pytest.raises(UsageError, match="divided by 2"):
        run_parts(source, out, 3, [1], **OPTIONS)
    run_parts(source, out, 3, [1], overwrite=True, **OPTIONS)
    assert parts_in(out) == [(1, 3)]
    assert not end_after(
        tq3.compress_checkpoint(source, out, recipe, overwrite=True, workers=1), 20
    )
    with pytest.raises(UsageError, match="a run that is not divided is in the target"):
        run_parts(source, out, 2, [1], **OPTIONS)
    tq3.compress(source, out, **OPTIONS)
    assert contents(out) == whole(source)


def test_a_nan_that_is_not_to_be_kept_ends_the_part(tmp_path):
    source = tiny_checkpoint(tmp_path / "in", with_nan(expert_tensors(), LATER))
    with pytest.raises(BadInput, match="not a finite weight"):
        run_parts(source, tmp_path / "out", 2, **OPTIONS)
    with pytest.raises(BadInput, match="part 2: not complete"):
        tq3.finish(tmp_path / "out")


@pytest.mark.parametrize("given", ["4/3", (0, 1)])
def test_what_is_no_part_is_refused_before_anything_is_read(tmp_path, given):
    with pytest.raises(UsageError, match="no part"):
        tq3.compress(tmp_path / "nowhere", tmp_path / "out", part=given)


def test_a_part_keeps_to_its_own_folder(source, tmp_path):
    out = tmp_path / "out"
    run_parts(source, out, 3, [2], **OPTIONS)
    assert {path.parent for path in drafts_of(out)} == {part_folder(out, parts_in(out)[0])}
    before = contents(out)
    run_parts(source, out, 3, [3], **OPTIONS)
    assert before.items() <= contents(out).items()
