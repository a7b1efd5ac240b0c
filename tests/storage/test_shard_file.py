"""A shard's draft: its bytes reserved, flushed along, its descriptor given back."""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.factories import contents
from support.storage.runs import MARKER, needs_proc, plan_of, publish, target, visible, write_draft

from tq3.errors import StorageError
from tq3.storage.journal import DoneBlock, Journal
from tq3.storage.shard_file import ShardFile


def test_a_shard_has_all_its_bytes_from_the_start(out):
    plan = plan_of(1)
    with (
        target(out) as folder,
        folder.shard(plan, 0) as file,
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

    plan = plan_of(1)
    with (
        pytest.raises(StorageError, match="Input/output error"),
        target(out) as folder,
        folder.shard(plan, 0),
    ):
        monkeypatch.setattr(os, "fsync", failing_once)
        failed.wait(timeout=5)
    assert not out.exists()


def test_the_folder_is_flushed_when_the_old_marker_is_gone_and_before_the_new_one_comes(
    out, monkeypatch
):
    publish(out, plan_of(1))
    flushed, fsync = [], os.fsync

    def noting(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), out.stat()):
            flushed.append({path.name for path in out.iterdir()} - {".tq3.part"})
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    publish(out, plan_of(2), overwrite=True)
    weights = {*plan_of(2).weight_files}
    old = {"model.safetensors"}
    assert flushed == [old | {MARKER[0]}, old, weights, weights | {MARKER[0]}]


def test_a_file_system_that_cannot_flush_folders_is_no_failure(out, monkeypatch):
    fsync = os.fsync

    def unable(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", unable)
    publish(out, plan_of(1))
    assert MARKER[0] in contents(out)


@needs_proc
@pytest.mark.parametrize("place", ["os.posix_fallocate", "os.pwrite", "threading.Thread.start"])
def test_a_shard_that_fails_to_begin_leaves_no_descriptor(out, monkeypatch, place):
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(place, fail)
    with pytest.raises((StorageError, OSError), match="Input/output error"):
        publish(out, plan_of(1))
    assert os.listdir("/proc/self/fd") == before


@needs_proc
def test_an_interrupt_while_the_flusher_ends_leaves_no_descriptor(tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = os.listdir("/proc/self/fd")
    file = ShardFile(tmp_path / "draft", plan_of(1).shards[0], lambda _: None)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(threading.Thread, "join", interrupted)
        file.close(complete=True)
    file._flusher.join()
    assert os.listdir("/proc/self/fd") == before


def test_a_block_is_recorded_only_when_its_bytes_are_on_the_disk(tmp_path, monkeypatch):
    """And the record is on the disk itself before anybody may rely on it."""
    calls, fsync, pwrite = [], os.fsync, os.pwrite

    def name_of(descriptor: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{descriptor}")).name

    def noting_fsync(descriptor: int) -> None:
        calls.append(("fsync", name_of(descriptor)))
        fsync(descriptor)

    def noting_pwrite(descriptor: int, *rest: Any) -> int:
        calls.append(("pwrite", name_of(descriptor)))
        return pwrite(descriptor, *rest)

    append = Journal.add_blocks

    def noting_append(self: Journal, *rest: Any) -> None:
        calls.append(("append", "journal"))
        append(self, *rest)

    out = tmp_path / "out"
    with target(out) as folder:
        monkeypatch.setattr(os, "fsync", noting_fsync)
        monkeypatch.setattr(os, "pwrite", noting_pwrite)
        monkeypatch.setattr(Journal, "add_blocks", noting_append)
        write_draft(folder, plan_of(1), 0)
    shard = "model-00001.safetensors.part"
    ordered = [("pwrite", shard), ("fsync", shard), ("append", "journal"), ("fsync", "journal")]
    assert [call for call in calls if call[1] != ".tq3.part"][-4:] == ordered


def test_a_slow_disk_does_not_hold_up_an_interrupted_run(out, monkeypatch):
    """What was not flushed in time is not recorded, even when the flush ends later."""
    waiting, fsync, ended = threading.Event(), os.fsync, threading.Event()

    def slow(descriptor: int) -> None:
        waiting.wait(timeout=10)
        fsync(descriptor)
        ended.set()

    plan = plan_of(1)
    with pytest.raises(KeyboardInterrupt), target(out) as folder, folder.shard(plan, 0) as file:
        monkeypatch.setattr(os, "fsync", slow)
        piece = file.write(file.offsets["t0"], memoryview(bytes(8)))
        file.finish(DoneBlock("t0", 0, (piece,)))
        start = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - start < 3
    waiting.set()
    ended.wait(timeout=10)
    file._flusher.join(timeout=10)
    assert visible(out) == {}
    assert not out.exists()
