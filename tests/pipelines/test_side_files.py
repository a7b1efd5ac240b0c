"""Side files from source to output and back: parts that a host asks for, and what is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.factories import contents, of_another_writer, read_tensors, tiny_checkpoint

import tq3
from tq3.errors import BadInput, UsageError
from tq3.events import Notice

PARTS = {
    "spk_dict.pt": b"voices",
    "speech_tokenizer/config.json": b"{}",
    "speech_tokenizer/model.safetensors": b"tokens",
    "assets/token2wav/campplus.onnx": b"sounds",
    "1_Router/query_0_Dense/model.safetensors": b"queries",
}
COPIES = {
    "pytorch_model.bin": b"again",
    "model.gguf": b"and again",
    "onnx/model.onnx": b"and again",
    "onnx/config.json": b"{}",
    "checkpoint-5/optimizer.pt": b"moments",
}
ADAPTER = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"delta"}


def add(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return add(tiny_checkpoint(tmp_path / "in"), PARTS | COPIES | ADAPTER)


def has(folder: Path, files: dict[str, bytes]) -> bool:
    return files.items() <= contents(folder).items()


def run(function, *arguments: object, **options: object) -> tuple[Any, list[str]]:
    """What the function gives, and its notices."""
    heard: list[object] = []
    result = function(*arguments, on_event=heard.append, **options)
    return result, [event.text for event in heard if isinstance(event, Notice)]


def test_parts_travel_there_and_back_and_copies_of_the_model_do_not(source, tmp_path):
    report, _ = run(tq3.compress, source, tmp_path / "out")
    assert has(tmp_path / "out", PARTS)
    assert report.left_out.keys() == {*COPIES, *ADAPTER}
    assert tq3.verify(tmp_path / "out").ok
    report, _ = run(tq3.restore, tmp_path / "out", tmp_path / "back")
    assert has(tmp_path / "back", PARTS)
    assert report.left_out == {}


def test_weights_that_travel_and_what_may_be_missed_are_told(source, tmp_path):
    add(source, {"value_head.safetensors": b"v"})
    _, notices = run(tq3.compress, source, tmp_path / "out", equalize=False)
    travels, stays = notices
    shown = "1_Router/, assets/, speech_tokenizer/, spk_dict.pt"
    assert travels == f"copied as they are, 25 bytes of weights: {shown}"
    assert stays.startswith("not copied: adapter_config.json (an adapter's: hosts would attach it")
    assert "value_head.safetensors (weights that are not part of this checkpoint" in stays
    assert stays.endswith("; use --also for what a host needs")
    assert "gguf" not in stays


def test_a_flipped_bit_in_a_part_is_found(source, tmp_path):
    tq3.compress(source, tmp_path / "out")
    (tmp_path / "out" / "speech_tokenizer" / "model.safetensors").write_bytes(b"tokenz")
    (fault,) = tq3.verify(tmp_path / "out").faults
    assert (fault.check, fault.file) == ("TQ404", "speech_tokenizer/model.safetensors")


def test_what_is_asked_for_travels_is_sound_and_comes_back(source, tmp_path):
    tq3.compress(source, tmp_path / "out", also=["onnx", "*.gguf", "adapter_*"], without="assets")
    asked = ADAPTER | {name: COPIES[name] for name in COPIES if "onnx" in name or "gguf" in name}
    assert has(tmp_path / "out", asked)
    assert not (tmp_path / "out" / "assets").exists()
    assert tq3.verify(tmp_path / "out").ok
    tq3.restore(tmp_path / "out", tmp_path / "back", without="spk_dict.pt")
    assert has(tmp_path / "back", asked)
    assert not (tmp_path / "back" / "spk_dict.pt").exists()


def test_a_part_put_there_later_is_no_stray_and_an_adapter_is(source, tmp_path):
    tq3.compress(source, tmp_path / "out", without=["spk_dict.pt", "assets"])
    add(tmp_path / "out", PARTS)
    assert tq3.verify(tmp_path / "out").ok
    add(tmp_path / "out", ADAPTER)
    faults = tq3.verify(tmp_path / "out").faults
    assert [(fault.check, fault.file) for fault in faults] == [("TQ108", name) for name in ADAPTER]


def test_of_another_writers_folder_names_decide(source, tmp_path):
    out = tmp_path / "out"
    tq3.compress(source, out, also="onnx")
    of_another_writer(out)
    assert tq3.verify(out).ok
    tq3.restore(out, tmp_path / "back")
    assert has(tmp_path / "back", PARTS)
    assert not (tmp_path / "back" / "onnx").exists()
    tq3.restore(out, tmp_path / "all", also="onnx")
    assert (tmp_path / "all" / "onnx" / "model.onnx").exists()


def test_no_side_file_takes_the_place_of_the_weights(tmp_path):
    source = tiny_checkpoint(tmp_path / "in", shards=2, names=["a.safetensors", "b.safetensors"])
    tq3.compress(source, tmp_path / "out", max_shard_size=40_000)
    stray = min(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    add(source, {stray: b"x"})
    with pytest.raises(UsageError, match="in place of the weights that are written") as caught:
        tq3.compress(source, tmp_path / "more", also="*.safetensors", max_shard_size=40_000)
    assert caught.value.fix == f"leave it out: --without {stray}"


@pytest.mark.parametrize("shard", ["part.safetensors", "parts/1.safetensors"])
def test_a_shard_that_was_not_taken_is_the_model_once_more_whatever_its_name(tmp_path, shard):
    source = tiny_checkpoint(tmp_path / "in")
    data = (source / "model.safetensors").read_bytes()
    index = json.dumps({"weight_map": dict.fromkeys(read_tensors(source), shard)}).encode()
    add(source, {shard: data, "model.safetensors.index.json": index})
    report, notices = run(tq3.compress, source, tmp_path / "out", equalize=False)
    assert report.left_out == {shard: "other weights of this model"}
    (notice,) = notices
    assert f"and not the shard {shard}, which vLLM would take" in notice


@pytest.mark.parametrize("equalize", [False, True])
def test_a_slip_of_the_pen_ends_the_run_before_it_begins(source, tmp_path, equalize):
    with pytest.raises(UsageError, match="--also 'onxx' matches no file"):
        tq3.compress(source, tmp_path / "out", also="onxx", equalize=equalize)
    assert not (tmp_path / "out").exists()


def test_overwriting_takes_stale_weights_and_adapters_away_and_nothing_else(tmp_path):
    source = add(tiny_checkpoint(tmp_path / "in"), {"value.safetensors": b"new"})
    out = add(tmp_path / "out", PARTS | COPIES | ADAPTER | {"value.safetensors": b"old"})
    tq3.compress(source, out, overwrite=True, also="value.safetensors")
    kept = {name: data for name, data in COPIES.items() if "/" in name}
    assert has(out, PARTS | kept | {"value.safetensors": b"new"})
    assert not contents(out).keys() & {"pytorch_model.bin", "model.gguf", *ADAPTER}
    assert tq3.verify(out).ok


def test_a_part_that_is_missing_is_told_when_it_is_restored(source, tmp_path):
    tq3.compress(source, tmp_path / "out")
    (tmp_path / "out" / "spk_dict.pt").unlink()
    _, notices = run(tq3.restore, tmp_path / "out", tmp_path / "back")
    assert "not copied: spk_dict.pt (in the manifest, and not there)" in notices


def test_a_name_of_two_lines_is_weights_by_its_ending(source, tmp_path):
    add(source, {"two\nlines.safetensors": b"x", "HEAD.SAFETENSORS": b"x"})
    _, notices = run(tq3.compress, source, tmp_path / "out")
    assert any("two\nlines.safetensors (weights" in notice for notice in notices)
    assert not contents(tmp_path / "out").keys() & {"two\nlines.safetensors", "HEAD.SAFETENSORS"}
    add(tmp_path / "out", {"two\nlines.safetensors": b"x"})
    assert [fault.check for fault in tq3.verify(tmp_path / "out").faults] == ["TQ108"]


def test_a_config_that_the_user_leaves_behind_is_not_offered(tmp_path):
    source = add(tiny_checkpoint(tmp_path / "in"), {"adapter_config.json": b"{}"})
    left = {"without": "adapter_config.json", "equalize": False}
    _, notices = run(tq3.compress, source, tmp_path / "out", **left)
    assert notices == []


def test_a_damaged_manifest_cannot_say_what_travels(source, tmp_path):
    tq3.compress(source, tmp_path / "out")
    (tmp_path / "out" / "tq3_manifest.json").write_text("{}")
    with pytest.raises(BadInput, match="can't say what travels along") as caught:
        tq3.restore(tmp_path / "out", tmp_path / "back")
    assert "or remove it" in str(caught.value.fix)


def test_a_plan_shows_what_would_be_copied_and_what_not(source):
    plan = tq3.inspect(source)
    assert plan.side_files == {name: len(data) for name, data in PARTS.items()}
    assert plan.left_out.keys() == {*COPIES, *ADAPTER}


def test_a_plan_copies_and_refuses_what_the_run_does(tmp_path):
    source = add(tiny_checkpoint(tmp_path / "in"), {"README.md": b"x", "README.source.md": b"y"})
    plan = tq3.inspect(source)
    report = tq3.compress(source, tmp_path / "out")
    assert plan.left_out == report.left_out == {"README.source.md": "README.md takes its name"}
    options: dict[str, Any] = {"max_shard_size": 40_000, "also": "*-of-*"}
    add(source, {min(tq3.preview(source, max_shard_size=40_000).shards): b"x"})
    with pytest.raises(UsageError, match="in place of the weights that are written"):
        tq3.preview(source, **options)
    with pytest.raises(UsageError, match="in place of the weights that are written"):
        tq3.compress(source, tmp_path / "more", **options)


def test_a_plan_counts_a_config_that_is_copied_as_it_is(source, tmp_path):
    plan = tq3.preview(source, verbatim_config=True)
    assert plan.side_files.keys() - tq3.preview(source).side_files.keys() == {"config.json"}
