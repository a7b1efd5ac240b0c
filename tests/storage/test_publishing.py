"""Files take their names at the end, the marker last; what fails before leaves no checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import xxhash
from support.factories import contents
from support.storage.runs import MARKER, parts, plan_of, publish, target, visible, write_drafts

from tq3.errors import StorageError
from tq3.format.manifest import parse_manifest


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


def test_until_it_is_published_nothing_is_visible(out):
    plan = plan_of(2)
    with pytest.raises(RuntimeError, match="stop"), target(out) as folder:
        write_drafts(folder, plan)
        with folder.shard(plan, 1):
            raise RuntimeError("stop")
    assert visible(out) == {}
    with target(out) as folder:
        write_drafts(folder, plan)
    assert visible(out) == {}


@pytest.mark.parametrize("writer", [None, "somebody"])
@pytest.mark.parametrize("calls_before", range(7))
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_failure_between_two_renames_is_made_good_by_the_next_run(
    out, tmp_path, monkeypatch, calls_before, writer, overwrite
):
    original = tmp_path / "original"
    original.write_text("")
    rest: dict[str, Any] = {"texts": {"config.json": "{}"}}
    rest["copies"] = {"nested/folders/copy": original}
    publish(tmp_path / "whole", plan_of(2), **rest, writer=writer)
    out.mkdir()
    if overwrite:
        (out / MARKER[0]).write_text("of an older checkpoint")
        (out / "stale.safetensors").write_text("of an older checkpoint")
    calls, replace = [], Path.replace

    def failing(self: Path, path: Path) -> Path:
        calls.append(path)
        if len(calls) == calls_before + 1:
            raise OSError(5, "Input/output error")
        return replace(self, path)

    monkeypatch.setattr(Path, "replace", failing)
    if calls_before < 6 or writer:
        with pytest.raises(StorageError, match="Input/output error"):
            publish(out, plan_of(2), overwrite=overwrite, **rest, writer=writer)
        assert MARKER[0] not in visible(out)
        publish(out, plan_of(2), **rest, writer=writer)  # --overwrite is remembered
    else:
        publish(out, plan_of(2), overwrite=overwrite, **rest, writer=writer)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_draft_that_vanishes_before_publishing_is_an_error_and_nothing_is_complete(out):
    with pytest.raises(StorageError, match="No such file"), target(out) as folder:
        write_drafts(folder, plan_of(2))
        (out / ".tq3.part" / "model-00002.safetensors.part").unlink()
        folder.publish(plan_of(2), texts={}, marker=MARKER, writer=None)
    assert MARKER[0] not in contents(out)
    publish(out, plan_of(2))
    assert MARKER[0] in contents(out)


def test_a_run_that_was_killed_when_all_was_done_is_done_again(out, monkeypatch):
    """After the last rename and before the working folder was removed."""
    monkeypatch.setattr("tq3.storage.drafts.DraftFolder.remove", lambda _: None)
    publish(out, plan_of(2))
    monkeypatch.undo()
    before = visible(out)
    publish(out, plan_of(2))
    assert contents(out) == before


def test_weights_that_appear_while_a_new_folder_is_written_are_not_removed(out):
    with target(out) as folder:
        write_drafts(folder, plan_of(1))
        (out / "mine.safetensors").write_text("mine")
        folder.publish(plan_of(1), texts={}, marker=MARKER, writer=None)
    assert contents(out)["mine.safetensors"] == b"mine"


def test_the_manifest_tells_size_and_checksum_of_every_other_file(out, tmp_path):
    (tmp_path / "original").write_bytes(b"copy")
    copies = {"side/copy": tmp_path / "original"}
    publish(out, plan_of(2), texts={"config.json": "{}"}, copies=copies, writer="somebody")
    found = contents(out)
    manifest = parse_manifest(found.pop("tq3_manifest.json").decode())
    assert manifest.writer == "somebody"
    assert manifest.files.keys() == found.keys()
    for name, data in found.items():
        pieces = manifest.files[name]
        assert sum(piece.length for piece in pieces) == len(data)
        for piece in pieces:
            part = data[piece.offset : piece.offset + piece.length]
            assert piece.digest == xxhash.xxh3_64_hexdigest(part)


def test_without_a_writer_there_is_no_manifest_and_an_older_one_goes(out):
    publish(out, plan_of(1), writer="somebody")
    assert "tq3_manifest.json" in contents(out)
    publish(out, plan_of(1), overwrite=True)
    assert "tq3_manifest.json" not in contents(out)


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
    with target(out, overwrite=True) as folder:
        folder.copy(MARKER[0], parts(Path(__file__)))
        write_drafts(folder, plan_of(1))
    assert visible(out) == before


def test_a_text_that_cannot_be_written_costs_nothing_of_the_older_checkpoint(out):
    publish(out, plan_of(3))
    before = contents(out)
    with pytest.raises(StorageError, match="File name too long"):
        publish(out, plan_of(1), overwrite=True, texts={"config.json": "", "x" * 300: ""})
    assert visible(out) == before


def test_a_copy_that_cannot_be_read_fails_before_the_shards_and_names_the_source(out, tmp_path):
    publish(out, plan_of(1))
    before = contents(out)
    (tmp_path / "folder").mkdir()
    with target(out, overwrite=True) as folder:
        for original in (tmp_path / "gone", tmp_path / "folder"):
            with pytest.raises(StorageError, match="can't be read") as caught:
                folder.copy("side/file", parts(original))
            assert caught.value.file == str(original)
    assert contents(out) == before


def test_a_copy_that_cannot_be_written_names_the_target(out, tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "original").write_bytes(b"x")
    with (
        pytest.raises(StorageError, match="can't be written: No space left") as caught,
        target(out) as folder,
    ):
        monkeypatch.setattr(os, "fsync", full)
        folder.copy("side/file", parts(tmp_path / "original"))
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
    assert visible(out) == before


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
