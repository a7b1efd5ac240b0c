"""The system refuses something in the midst of a run: a storage error, and the run can go on."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import xxhash
from support.factories import contents, mixed_tensors, tiny_checkpoint, too_large, visible
from support.pipelines.interrupting import BLOCK_BYTES, SHARD_BYTES

import tq3
from tq3.errors import StorageError, UsageError

FILE = "model-00001-of-00002.safetensors"
REFUSALS = {
    "pwrite": errno.ENOSPC,
    "fsync": errno.EIO,
    "posix_fallocate": errno.ENOSPC,
    "ftruncate": errno.EFBIG,
    "preadv": errno.EIO,
    "replace": errno.EACCES,
    "mkdir": errno.EACCES,
}


@pytest.fixture(autouse=True)
def shards_are_flushed_at_their_end(monkeypatch) -> None:
    """Once each, however long it takes: else the number of calls would depend on time."""
    monkeypatch.setattr("tq3.storage.shard_file._FLUSH_SECONDS", 3600)
    monkeypatch.setattr("tq3.storage.shard_file._LAST_FLUSH_SECONDS", 30)


@pytest.fixture
def source(tmp_path, set_block_bytes) -> Path:
    set_block_bytes(BLOCK_BYTES)
    source = tiny_checkpoint(tmp_path / "in", too_large(mixed_tensors(), 1), shards=2)
    (source / "deep").mkdir()
    (source / "deep" / "notes").write_text("n")
    return source


def compress(path: Path, out: str = "out", **options: object) -> tq3.Report:
    """The run that something happens to."""
    options = {"max_shard_size": SHARD_BYTES, **options}
    return tq3.compress(path / "in", path / out, **options)  # type: ignore[arg-type]


@pytest.fixture
def whole(source, tmp_path) -> dict[str, bytes]:
    """What an undisturbed run writes."""
    compress(tmp_path, "whole")
    return contents(tmp_path / "whole")


@contextmanager
def refused(call: str, number: int, code: int) -> Iterator[Callable[[], int]]:
    """The system's answer to this call of a function, and to all that follow; gives their count."""
    calls: list[None] = []
    function, lock = getattr(os, call), Lock()

    def answer(*arguments: object, **options: object) -> object:
        with lock:
            calls.append(None)
            if len(calls) >= number:
                raise OSError(code, os.strerror(code))
        return function(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, call, answer)
        yield lambda: len(calls)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("call", [call for call in REFUSALS if hasattr(os, call)])
def test_a_refusal_at_any_call_is_a_storage_error_and_the_run_goes_on(
    source, whole, tmp_path, call, workers
):
    with refused(call, 10**9, 0) as count:
        compress(tmp_path, "counted", workers=workers)
    calls = count()
    assert calls >= 1
    for number in sorted({1, *range(2, calls, calls // 6 + 1), calls}):
        out = f"out {number}"
        with (
            refused(call, number, REFUSALS[call]),
            pytest.raises(StorageError, match=os.strerror(REFUSALS[call])) as caught,
        ):
            compress(tmp_path, out, workers=workers)
        assert caught.value.exit_code == 4
        assert caught.value.file
        seen = contents(tmp_path / out)
        # Refused after the last name, it is a whole checkpoint already.
        assert "tq_config.json" not in seen or whole.items() <= seen.items()
        compress(tmp_path, out, workers=workers)
        assert contents(tmp_path / out) == whole, f"{call} {number} of {calls}"


@contextmanager
def full_after(n_bytes: int) -> Iterator[None]:
    """A disk on which so much can be written, whole calls or a part of one."""
    room, pwrite, lock = [n_bytes], os.pwrite, Lock()

    def write_some(descriptor: int, data: memoryview, offset: int) -> int:
        with lock:
            taken = min(len(data), room[0])
            room[0] -= taken
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data[:taken], offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", write_some)
        yield


def test_a_disk_that_fills_up_again_and_again_costs_little(source, whole, tmp_path):
    n_runs = 0
    while "tq_config.json" not in contents(tmp_path / "out"):
        n_runs += 1
        assert n_runs < 30
        with full_after(5000):
            try:
                compress(tmp_path)
            except StorageError as error:
                assert "No space left on device" in error.message
    assert n_runs > 5
    assert contents(tmp_path / "out") == whole


def snapshot(source: Path) -> dict[str, tuple[str, int, int]]:
    """What a run must leave as it is: bytes, modes and times of every file and folder."""
    paths = [source, *sorted(source.rglob("*"))]
    return {
        str(path): (
            xxhash.xxh3_64_hexdigest(path.read_bytes() if path.is_file() else b""),
            path.stat().st_mode,
            path.stat().st_mtime_ns,
        )
        for path in paths
    }


def test_a_source_is_not_touched_by_runs_that_fail(source, tmp_path):
    before = snapshot(source)
    for call, number in (("pwrite", 20), ("fsync", 5), ("preadv", 20), ("replace", 2)):
        with refused(call, number, errno.EIO), pytest.raises(StorageError):
            compress(tmp_path)
        assert snapshot(source) == before
    run = tq3.compress_checkpoint(source, tmp_path / "out", tq3.Recipe())
    with pytest.raises(UsageError):
        next(run)
    compress(tmp_path)
    assert snapshot(source) == before


def test_a_source_is_opened_for_reading_only(source, tmp_path, monkeypatch):
    opened: list[tuple[Path, int]] = []
    os_open = os.open

    def noting(path: Any, flags: int, *more: Any, **options: Any) -> int:
        opened.append((Path(str(path)), flags))
        return os_open(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", noting)
    compress(tmp_path)
    mine = [flags for path, flags in opened if path.is_relative_to(source)]
    assert len(mine) >= 2
    assert all(flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_CREAT for flags in mine)
    for path in source.rglob("*"):
        path.chmod(0o555 if path.is_dir() else stat.S_IREAD)
    compress(tmp_path, "again")


def overwrite_in_place(file: Path) -> None:
    """As an editor of bytes does."""
    with file.open("r+b") as opened:
        opened.seek(-10, os.SEEK_END)
        opened.write(b"0123456789")


def rename_over(file: Path) -> None:
    """As most programs save a file; the old one stays open where it is open."""
    other = file.with_name("other")
    other.write_bytes(file.read_bytes())
    other.replace(file)


def append(file: Path) -> None:
    """It grows."""
    with file.open("ab") as opened:
        opened.write(b"more")


@pytest.mark.parametrize("change", [overwrite_in_place, rename_over, append])
@pytest.mark.parametrize("n_events", [1, 10, 30])
def test_a_source_that_changes_meanwhile_is_not_published(source, tmp_path, change, n_events):
    run = tq3.compress_checkpoint(
        source, tmp_path / "out", tq3.Recipe(max_shard_bytes=SHARD_BYTES), workers=1
    )
    for _ in range(n_events):
        next(run)
    change(source / FILE)
    with pytest.raises(StorageError, match="changed while it was read") as caught:
        list(run)
    assert caught.value.file == str(source / FILE)
    assert visible(tmp_path / "out") == {}
    if (tmp_path / "out").exists():
        with pytest.raises(tq3.Tq3Error, match=FILE):
            compress(tmp_path)


def test_a_file_in_the_way_of_the_drafts_is_a_storage_error(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".tq3.part").write_text("mine")
    with pytest.raises(StorageError) as caught:
        compress(tmp_path)
    assert caught.value.exit_code == 4
    assert (tmp_path / "out" / ".tq3.part").read_text() == "mine"


def test_a_target_on_a_file_of_the_way_is_an_error_of_use_or_storage(source, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out, kind in (("file", UsageError), ("file/out", StorageError)):
        with pytest.raises(kind):
            compress(tmp_path, out)
    assert (tmp_path / "file").read_text() == "mine"
