"""Reading a folder by byte range, plain or as the Hub cache lays it out."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from factories import contents, hub_snapshot, tiny_checkpoint

from tq3.errors import BadInput, StorageError
from tq3.plan.sources import read_checkpoint
from tq3.storage.local import LocalFiles


def folder_of(path: Path, **files: bytes) -> Path:
    """A folder with these files."""
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


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
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    with LocalFiles(folder_of(tmp_path, a=b"1", b=b"2")) as files:
        files.read("a", 0, 1)
        files.read("b", 0, 1)
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_what_is_no_folder_is_refused_with_the_next_step(tmp_path, kind):
    path = tmp_path / "it"
    if kind == "file":
        path.write_bytes(b"")
    with pytest.raises(BadInput, match="no such folder") as caught:
        LocalFiles(path)
    assert caught.value.file == str(path)
    assert "hf download" in str(caught.value.fix)


@pytest.mark.parametrize("access", ["size", "read"])
def test_a_file_that_has_gone_is_a_storage_error(tmp_path, access):
    with LocalFiles(tmp_path) as files, pytest.raises(StorageError, match="can't be read"):
        files.size("gone") if access == "size" else files.read("gone", 0, 1)


def test_the_links_of_the_hub_cache_are_followed(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "plain", shards=2)
    (checkpoint / "sub").mkdir()
    (checkpoint / "sub" / "readme.md").write_bytes(b"hello")
    snapshot = hub_snapshot(tmp_path / "cache", checkpoint)
    with LocalFiles(checkpoint) as plain, LocalFiles(snapshot) as linked:
        assert linked.tree() == plain.tree()
        for name, content in contents(checkpoint).items():
            assert linked.read(name, 0, linked.size(name)) == content
        assert read_checkpoint(linked) == read_checkpoint(plain)


def test_broken_links_and_links_to_folders_are_no_files(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "broken").symlink_to(tmp_path / "nowhere")
    (folder / "loop").symlink_to(folder)
    (folder / "file").write_bytes(b"")
    with LocalFiles(folder) as files:
        assert files.names() == files.tree() == ["file"]


def test_only_files_in_the_folder_or_below_are_there(tmp_path):
    (tmp_path / "outside").write_bytes(b"")
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "file").write_bytes(b"")
    with LocalFiles(folder) as files:
        assert files.has("below/file")
        outside = ("../outside", str(tmp_path / "outside"), "below/../../outside")
        assert not any(files.has(name) for name in ("below", "gone", *outside))
