"""Files take their names at the end, the marker last; what fails before leaves no checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from factories import contents
from runs import MARKER, plan_of, publish, write_drafts

from tq3.errors import StorageError
from tq3.storage.writer import TargetFolder


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Another file mode creation mask for a while."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def test_a_single_shard_is_header_and_data(out):
    plan = plan_of(1)
    publish(out, plan)
    assert contents(out) == {
        "model.safetensors": plan.shards[0].header + bytes(8),
        "marker.json": b"{}",
    }


def test_several_shards_have_an_index_and_their_numbers(out):
    plan = plan_of(3)
    publish(out, plan)
    found = contents(out)
    assert json.loads(found.pop("model.safetensors.index.json")) == plan.index
    assert found.keys() == {*plan.shard_names, "marker.json"}
    for number, name in enumerate(plan.shard_names):
        assert found[name] == plan.shards[number].header + bytes([number] * 8)


def test_copies_and_texts_arrive_byte_for_byte_in_nested_folders_too(out, tmp_path):
    original = tmp_path / "original"
    original.write_bytes(b"\r\n\xff\0")
    texts = {"a/b/text": "line\r\nüber\n", "top": "x"}
    publish(out, plan_of(1), copies={"deep/er/copy": original, "copy": original}, texts=texts)
    found = contents(out)
    assert found["deep/er/copy"] == found["copy"] == b"\r\n\xff\0"
    assert found["a/b/text"] == "line\r\nüber\n".encode()
    assert not [name for name in found if name.endswith(".part")]


def test_an_error_while_a_shard_is_written_leaves_nothing(out):
    plan = plan_of(2)
    with (
        pytest.raises(RuntimeError, match="stop"),
        TargetFolder(out, source=out.parent / "source", overwrite=False) as folder,
    ):
        write_drafts(folder, plan)
        with folder.shard(1, plan.shards[1]):
            raise RuntimeError("stop")
    assert not out.exists()


def test_leaving_without_publishing_leaves_nothing(out):
    with TargetFolder(out, source=out.parent / "source", overwrite=False) as folder:
        write_drafts(folder, plan_of(2))
        assert [path.name for path in out.iterdir()] == [".tq3.part"]
        assert len(contents(out)) == 2
    assert not out.exists()


@pytest.mark.parametrize("calls_before", range(6))
def test_a_failure_between_two_renames_leaves_nothing(out, tmp_path, monkeypatch, calls_before):
    out.mkdir()
    (out / MARKER[0]).write_text("of an older checkpoint")
    calls, replace = [], Path.replace

    def failing(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) > calls_before:
            raise OSError(5, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(StorageError, match="Input/output error"):
        original = tmp_path / "original"
        original.write_text("")
        copies, texts = {"nested/folders/copy": original}, {"config.json": "{}"}
        publish(out, plan_of(2), overwrite=True, copies=copies, texts=texts)
    assert len(calls) == calls_before + 1
    assert list(out.iterdir()) == []


def test_a_failure_keeps_nested_folders_that_were_there(out, tmp_path, monkeypatch):
    (out / "nested").mkdir(parents=True)
    monkeypatch.setattr(Path, "replace", lambda *_: os.replace(tmp_path / "gone", out))
    with pytest.raises(StorageError):
        publish(out, plan_of(1), overwrite=True, texts={"nested/more/text": ""})
    assert list(out.rglob("*")) == [out / "nested"]


def test_the_marker_takes_its_name_last(out, monkeypatch):
    names, replace = [], Path.replace

    def noting(self: Path, target: Path) -> Path:
        names.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", noting)
    publish(out, plan_of(2), texts={"config.json": "{}"})
    assert names == [*plan_of(2).weight_files, "config.json", MARKER[0]]


def test_overwriting_removes_stale_weights_of_any_format_and_keeps_foreign_files(out):
    publish(out, plan_of(3))
    mine = {"notes.txt", "tokenizer.json", "model-00001.safetensors.part", "sub/own.safetensors"}
    mine |= {"folder.safetensors/own"}
    for name in mine:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
    for name in ("pony.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json"):
        (out / name).write_text("stale: a host would load it")
    (out / "tq_config.json").write_text("stale: it would say what the weights are")
    publish(out, plan_of(1), overwrite=True)
    assert contents(out).keys() == {"model.safetensors", "marker.json", *mine}
    publish(out, plan_of(2), overwrite=True)
    assert contents(out).keys() == {*plan_of(2).weight_files, "marker.json", *mine}


def test_until_it_is_published_the_older_checkpoint_is_untouched(out):
    publish(out, plan_of(3))
    before = contents(out)
    with TargetFolder(out, source=out.parent / "source", overwrite=True) as folder:
        folder.copy(MARKER[0], Path(__file__))
        write_drafts(folder, plan_of(1))
    assert contents(out) == before


def test_a_text_that_cannot_be_written_costs_nothing_of_the_older_checkpoint(out):
    publish(out, plan_of(3))
    before = contents(out)
    with pytest.raises(StorageError, match="File name too long"):
        publish(out, plan_of(1), overwrite=True, texts={"config.json": "", "x" * 300: ""})
    assert contents(out) == before


def test_a_copy_that_cannot_be_read_fails_before_the_shards_and_names_the_source(out, tmp_path):
    publish(out, plan_of(1))
    before = contents(out)
    (tmp_path / "folder").mkdir()
    with TargetFolder(out, source=tmp_path / "source", overwrite=True) as folder:
        for original in (tmp_path / "gone", tmp_path / "folder"):
            with pytest.raises(StorageError, match="can't be read") as caught:
                folder.copy("side/file", original)
            assert caught.value.file == str(original)
    assert contents(out) == before


def test_a_copy_that_cannot_be_written_names_the_target(out, tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "original").write_bytes(b"x")
    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(StorageError, match="can't be written: No space left") as caught,
        TargetFolder(out, source=tmp_path / "source", overwrite=False) as folder,
    ):
        folder.copy("side/file", tmp_path / "original")
    assert caught.value.file == str(out / "side" / "file")


def test_an_older_marker_that_cannot_be_removed_is_a_storage_error(out, monkeypatch):
    publish(out, plan_of(1))
    before, unlink = contents(out), Path.unlink

    def denied(self: Path, missing_ok: bool = False) -> None:
        if self.name == MARKER[0] and self.parent == out:
            raise PermissionError(13, "Permission denied")
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", denied)
    with pytest.raises(StorageError, match="can't be written: Permission denied"):
        publish(out, plan_of(1), overwrite=True)
    assert contents(out) == before


def test_a_link_in_the_target_is_replaced_not_written_through(out, tmp_path):
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    out.mkdir()
    for name in ("model.safetensors", "text", "copy", MARKER[0]):
        (out / name).symlink_to(precious)
    publish(out, plan_of(1), overwrite=True, texts={"text": "t"}, copies={"copy": precious})
    assert precious.read_bytes() == b"mine"
    assert not [path for path in out.iterdir() if path.is_symlink()]
    assert contents(out)["copy"] == b"mine"


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_every_file_has_the_mode_that_the_umask_leaves(out, tmp_path, mask):
    original = tmp_path / "original"
    original.write_bytes(b"")
    original.chmod(0o400)
    with umask(mask):
        publish(out, plan_of(2), texts={"text": ""}, copies={"copy": original})
    modes = {path.name: path.stat().st_mode & 0o777 for path in out.iterdir()}
    assert set(modes.values()) == {0o666 & ~mask}
