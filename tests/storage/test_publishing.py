"""Files take their names at the end, the marker last; what fails before leaves no checkpoint."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from factories import contents

from tq3.errors import StorageError
from tq3.format.header import TensorInfo
from tq3.plan.plan import Plan, arrange, copy_task
from tq3.plan.sources import Located
from tq3.storage.writer import TargetFolder

MARKER = ("marker.json", "{}")


def plan_of(n_shards: int) -> Plan:
    """One tensor of eight bytes in each shard."""
    infos = (TensorInfo(f"t{i}", "U8", (8,)) for i in range(n_shards))
    return arrange((copy_task(Located(info, "in", 0), "why") for info in infos), 8)


def write_drafts(folder: TargetFolder, plan: Plan) -> None:
    """Every shard's draft, filled with its number."""
    for number, shard in enumerate(plan.shards):
        with folder.shard(number, shard) as file:
            for name, offset in file.offsets.items():
                file.write(offset, memoryview(bytes([number] * 8)))
                assert name in shard.offsets


def publish(out: Path, plan: Plan, *, overwrite: bool = False, **more: object) -> None:
    """A whole run of the writer."""
    source = out.parent / "source"
    with TargetFolder(out, source=source, overwrite=overwrite) as folder:
        write_drafts(folder, plan)
        options = {"copies": {}, "texts": {}, "marker": MARKER} | more
        folder.publish(plan, **options)  # type: ignore[arg-type]


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Another file mode creation mask for a while."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


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
        assert len(list(out.iterdir())) == 2
    assert not out.exists()


@pytest.mark.parametrize("calls_before", range(5))
def test_a_failure_between_two_renames_leaves_nothing(out, monkeypatch, calls_before):
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
        publish(out, plan_of(2), overwrite=True, texts={"config.json": "{}"})
    assert contents(out) == {}


def test_the_marker_takes_its_name_last(out, monkeypatch):
    names, replace = [], Path.replace

    def noting(self: Path, target: Path) -> Path:
        names.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", noting)
    publish(out, plan_of(2), texts={"config.json": "{}"})
    assert names == [*plan_of(2).weight_files, "config.json", MARKER[0]]


def test_overwriting_removes_stale_weights_and_keeps_foreign_files(out):
    publish(out, plan_of(3))
    (out / "notes.txt").write_text("mine")
    (out / "pony.safetensors").write_text("stale: a host would load it")
    publish(out, plan_of(1), overwrite=True)
    assert contents(out).keys() == {"model.safetensors", "marker.json", "notes.txt"}
    publish(out, plan_of(2), overwrite=True)
    assert contents(out).keys() == {*plan_of(2).weight_files, "marker.json", "notes.txt"}


def test_until_it_is_published_the_older_checkpoint_is_untouched(out):
    publish(out, plan_of(3))
    before = contents(out)
    with TargetFolder(out, source=out.parent / "source", overwrite=True) as folder:
        write_drafts(folder, plan_of(1))
    assert contents(out) == before


def test_a_link_in_the_target_is_replaced_not_written_through(out, tmp_path):
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    out.mkdir()
    links = ("model.safetensors", "model-00001.safetensors.part", "text", "text.part")
    links += ("copy", "copy.part", MARKER[0])
    for name in links:
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


def test_a_shard_has_all_its_bytes_from_the_start(out):
    plan = plan_of(1)
    with (
        TargetFolder(out, source=out.parent / "source", overwrite=False) as folder,
        folder.shard(0, plan.shards[0]) as file,
    ):
        assert file.path.stat().st_size == plan.shards[0].file_bytes


def test_a_disk_that_fills_up_is_a_storage_error_and_leaves_nothing(out, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(StorageError, match="No space left"):
        publish(out, plan_of(1))
    assert not out.exists()


def test_a_file_system_that_cannot_reserve_is_written_all_the_same(out, monkeypatch):
    def unable(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unable, raising=False)
    publish(out, plan_of(1))
    assert (out / "model.safetensors").stat().st_size == plan_of(1).file_bytes


def test_a_failed_write_is_a_storage_error_naming_the_file(out, monkeypatch):
    def failing(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(StorageError, match="Input/output error") as caught:
        publish(out, plan_of(1))
    assert "model" in str(caught.value.file)
    assert not out.exists()


def test_every_file_is_flushed_to_the_disk_before_it_takes_its_name(out, tmp_path, monkeypatch):
    flushed, early, fsync, replace = set(), [], os.fsync, Path.replace

    def noting_fsync(descriptor: int) -> None:
        flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def checking_replace(self: Path, target: Path) -> Path:
        early.extend([] if self.stat().st_ino in flushed else [target.name])
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "replace", checking_replace)
    (tmp_path / "original").write_bytes(b"")
    publish(out, plan_of(2), texts={"text": ""}, copies={"copy": tmp_path / "original"})
    assert early == []
    assert out.stat().st_ino in flushed


def test_a_flush_that_fails_once_is_not_forgotten(out, monkeypatch):
    """Linux reports lost bytes to one caller only, here to the thread that flushes along."""
    failed, fsync = threading.Event(), os.fsync

    def failing_once(descriptor: int) -> None:
        if not failed.is_set():
            failed.set()
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing_once)
    plan = plan_of(1)
    with (
        pytest.raises(StorageError, match="Input/output error"),
        TargetFolder(out, source=out.parent / "source", overwrite=False) as folder,
        folder.shard(0, plan.shards[0]),
    ):
        failed.wait(timeout=5)
    assert not out.exists()


def test_a_source_that_vanishes_before_it_is_copied_is_a_storage_error(out, tmp_path):
    with pytest.raises(StorageError):
        publish(out, plan_of(1), copies={"gone": tmp_path / "gone"})
    assert MARKER[0] not in contents(out)
