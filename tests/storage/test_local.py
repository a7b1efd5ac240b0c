"""Reading a folder by byte range, plain or as the Hub cache lays it out."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.factories import contents, hub_snapshot, tiny_checkpoint

from tq3.errors import BadInput, StorageError
from tq3.format.checkpoint import read_checkpoint
from tq3.storage.local import LocalFiles


def folder_of(path: Path, **files: bytes) -> Path:
    """A folder with these files."""
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def open_descriptors() -> int:
    """How many this process has; 0 where the system doesn't tell."""
    folder = Path("/proc/self/fd")
    return len(os.listdir(folder)) if folder.exists() else 0


def test_names_are_those_at_the_top_and_the_tree_has_nested_folders_too(tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    for name in ("z", "a b", "b/c/ü", "b/a", ".hidden"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "empty").mkdir()
    with LocalFiles(tmp_path) as files:
        assert files.names() == [".hidden", "a b", "z"]
        assert files.tree() == [".hidden", "a b", "b/a", "b/c/ü", "z"]


def test_a_byte_range_is_just_these_bytes(tmp_path):
    with LocalFiles(folder_of(tmp_path, a=bytes(range(100)))) as files:
        assert files.read("a", 10, 5) == bytes(range(10, 15))
        assert files.read("a", 0, 100) == bytes(range(100))
        assert files.read("a", 100, 0) == b""
        assert files.size("a") == 100


@pytest.mark.parametrize(("offset", "length"), [(0, 101), (99, 2), (100, 1), (500, 1)])
def test_bytes_beyond_the_end_are_an_error_with_both_figures(tmp_path, offset, length):
    with (
        LocalFiles(folder_of(tmp_path, a=bytes(100))) as files,
        pytest.raises(StorageError, match="ended early") as caught,
    ):
        files.read("a", offset, length)
    assert caught.value.file == str(tmp_path / "a")
    assert caught.value.expected == str(offset + length)


def test_many_threads_read_the_same_file_without_mixing_their_bytes(tmp_path):
    content = os.urandom(100_000)
    with LocalFiles(folder_of(tmp_path, a=content)) as files, ThreadPoolExecutor(8) as pool:
        pieces = pool.map(lambda i: files.read("a", i * 100, 100), range(1000))
        assert b"".join(pieces) == content


def test_leaving_closes_every_file(tmp_path):
    before = open_descriptors()
    with LocalFiles(folder_of(tmp_path, a=b"1", b=b"2")) as files:
        files.read("a", 0, 1)
        files.read("b", 0, 1)
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("kind", "words", "fix"),
    [
        ("missing", "no such folder", "ORG/NAME"),
        ("file", "a file, not a folder", "that it lies in"),
    ],
)
def test_what_is_no_folder_is_refused_with_the_next_step(tmp_path, kind, words, fix):
    path = tmp_path / "it"
    if kind == "file":
        path.write_bytes(b"")
    with pytest.raises(BadInput, match=words) as caught:
        LocalFiles(path)
    assert caught.value.file == str(path)
    assert fix in str(caught.value.fix)


def test_a_path_that_is_too_long_is_no_folder_and_no_file(tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        LocalFiles(tmp_path / ("x" * 5000))
    with LocalFiles(tmp_path) as files:
        assert not files.has("x" * 5000)


@pytest.mark.parametrize("access", ["size", "read"])
def test_a_file_that_has_gone_is_a_storage_error(tmp_path, access):
    with (
        LocalFiles(tmp_path) as files,
        pytest.raises(StorageError, match="can't be read") as caught,
    ):
        files.size("gone") if access == "size" else files.read("gone", 0, 1)
    assert caught.value.file == str(tmp_path / "gone")


@pytest.mark.parametrize("unreadable", [".", "sub"])
def test_a_folder_that_cannot_be_read_is_a_storage_error_with_its_name(
    tmp_path, monkeypatch, unreadable
):
    (tmp_path / "sub").mkdir()
    listdir, scandir = os.listdir, os.scandir

    def denying(real: Callable[[Path], object]) -> Callable[[Path], object]:
        def look(path: Path) -> object:
            if Path(path) == tmp_path / unreadable:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        return look

    monkeypatch.setattr(os, "listdir", denying(listdir))
    monkeypatch.setattr(os, "scandir", denying(scandir))
    with LocalFiles(tmp_path) as files:
        with pytest.raises(StorageError, match="Permission denied") as caught:
            files.tree()
        assert caught.value.file == str(tmp_path / unreadable)
        if unreadable == ".":
            with pytest.raises(StorageError, match="Permission denied"):
                files.names()


def test_a_file_that_cannot_be_looked_at_is_listed_so_that_reading_it_says_why(
    tmp_path, monkeypatch
):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_bytes(b"")
    stat = os.stat

    def denying(path: Path, **options: bool) -> os.stat_result:
        if str(path).endswith("file"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", denying)
    with LocalFiles(tmp_path) as files:
        assert files.tree() == ["sub/file"]


def test_only_some_files_stay_open_however_many_are_read(tmp_path):
    names = [f"{i:03d}" for i in range(100)]
    folder = folder_of(tmp_path, **{name: name.encode() for name in names})
    before = open_descriptors()
    with LocalFiles(folder) as files:
        for name in names * 2:
            assert files.read(name, 0, 3) == name.encode()
            assert open_descriptors() <= before + 16
    assert open_descriptors() == before


def test_a_file_that_is_being_read_is_not_closed_for_others(tmp_path):
    """More files than stay open, read by more threads than that, in an order that evicts them."""
    names = [f"{i:03d}" for i in range(60)]
    contents = {name: os.urandom(5000) for name in names}
    before = open_descriptors()
    with (
        LocalFiles(folder_of(tmp_path, **contents)) as files,
        ThreadPoolExecutor(24) as pool,
    ):
        read = pool.map(lambda i: files.read(names[i % 60], i % 5000, 1) or b"", range(20_000))
        assert all(
            piece == contents[names[i % 60]][i % 5000 : i % 5000 + 1]
            for i, piece in enumerate(read)
        )
    assert open_descriptors() == before


def test_the_links_of_the_hub_cache_are_followed(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "plain", shards=2)
    (checkpoint / "sub").mkdir()
    (checkpoint / "sub" / "readme.md").write_bytes(b"hello")
    snapshot = hub_snapshot(tmp_path / "cache", checkpoint)
    with LocalFiles(checkpoint) as plain, LocalFiles(snapshot) as linked:
        assert linked.tree() == plain.tree()
        for name, content in contents(checkpoint).items():
            assert linked.read(name, 0, linked.size(name)) == content
        assert read_checkpoint(linked).tensors == read_checkpoint(plain).tensors


def test_a_stamp_is_size_and_time_of_the_file_behind_a_link(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    os.utime(tmp_path / "file", ns=(0, 1_000_000_001))
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with LocalFiles(tmp_path) as files:
        assert files.stamp("link") == "3 bytes of 1970-01-01 00:00:01.000000001 UTC"
        (tmp_path / "file").write_bytes(b"abcd")
        os.utime(tmp_path / "file", ns=(0, 1_000_000_001))
        assert files.stamp("link") == "4 bytes of 1970-01-01 00:00:01.000000001 UTC"
        os.utime(tmp_path / "file", ns=(0, 1_000_000_002))
        assert files.stamp("link") == "4 bytes of 1970-01-01 00:00:01.000000002 UTC"
        with pytest.raises(StorageError, match="can't be read"):
            files.stamp("gone")


def test_a_broken_link_is_a_file_that_fails_with_its_name(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("broken", "sub/broken"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    with LocalFiles(tmp_path) as files:
        assert files.names() == ["broken"]
        assert files.tree() == ["broken", "sub/broken"]
        assert files.has("sub/broken")
        for access in (files.size, lambda name: files.read(name, 0, 1)):
            with pytest.raises(StorageError, match="link whose file is missing") as caught:
                access("sub/broken")
            assert caught.value.file == str(tmp_path / "sub" / "broken")
            assert "fetch" in str(caught.value.fix)


@pytest.mark.parametrize("access", ["size", "read"])
@pytest.mark.parametrize("kind", ["a pipe", "a device", "a socket"])
def test_what_is_no_regular_file_is_there_and_is_never_waited_for(
    tmp_path, monkeypatch, kind, access
):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "a pipe":
            os.mkfifo("it")
        elif kind == "a device":
            os.symlink("/dev/zero", "it")
        else:
            listener.bind("it")
        with LocalFiles(tmp_path) as files:
            assert (files.names(), files.has("it"), files.tree()) == (["it"], True, [])
            with pytest.raises((BadInput, StorageError)) as caught:
                files.size("it") if access == "size" else files.read("it", 0, 1)
    assert caught.value.file == str(tmp_path / "it")
    if (kind, access) != ("a socket", "read"):  # the system itself does not open one
        assert caught.value.found == kind


def test_a_link_to_a_folder_is_listed_with_a_slash_and_not_followed(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "loop").symlink_to(folder)
    (folder / "file").write_bytes(b"")
    with LocalFiles(folder) as files:
        assert files.names() == ["file"]
        assert files.tree() == ["file", "loop/"]
        assert not files.has("loop")


def test_only_files_in_the_folder_or_below_are_there(tmp_path):
    (tmp_path / "outside").write_bytes(b"")
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "file").write_bytes(b"")
    with LocalFiles(folder) as files:
        assert files.has("below/file")
        outside = ("../outside", str(tmp_path / "outside"), "below/../../outside")
        assert not any(files.has(name) for name in ("below", "gone", *outside))
