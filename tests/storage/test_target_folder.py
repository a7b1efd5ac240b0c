"""A target folder is a complete checkpoint or none; what may be a target at all."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest
from factories import contents

from tq3.errors import StorageError, UsageError
from tq3.storage import writer
from tq3.storage.writer import TargetFolder


def target(path: Path, *, overwrite: bool = False, source: Path | None = None) -> TargetFolder:
    """A target folder whose source lies beside it."""
    return TargetFolder(path, source=source or path.parent / "source", overwrite=overwrite)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_a_new_folder_is_made_and_removed_again_when_nothing_was_published(out):
    with target(out):
        assert out.is_dir()
    assert not out.exists()


def test_folders_above_that_were_made_for_it_are_removed_too(tmp_path):
    with target(tmp_path / "a" / "b" / "out", source=tmp_path / "source"):
        assert (tmp_path / "a" / "b" / "out").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_that_was_there_stays(out):
    out.mkdir()
    with target(out):
        pass
    assert out.is_dir()


def test_a_folder_with_anything_in_it_is_refused_and_untouched(out):
    out.mkdir()
    (out / "precious").write_text("mine")
    with pytest.raises(UsageError, match="not empty") as caught:
        target(out)
    assert "--overwrite" in str(caught.value.fix)
    assert contents(out) == {"precious": b"mine"}


def test_drafts_of_a_killed_run_are_no_obstacle_and_are_removed(out):
    out.mkdir()
    (out / "model-00001.safetensors.part").write_bytes(b"half")
    with target(out):
        assert contents(out) == {}
    assert out.is_dir()


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_file_is_no_target(out, overwrite):
    out.write_text("a file")
    with pytest.raises(UsageError, match="is a file"):
        target(out, overwrite=overwrite)
    assert out.read_text() == "a file"


@pytest.mark.parametrize(
    ("source", "out"),
    [("m", "m"), ("m", "m/out"), ("m/inner", "m"), ("m", "other/../m/out"), ("m", "link")],
)
def test_source_and_target_may_not_lie_inside_each_other(tmp_path, source, out):
    (tmp_path / source).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "m")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="inside each other"):
        target(tmp_path / out, source=tmp_path / source, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_neighbours_with_the_same_beginning_are_apart(tmp_path):
    (tmp_path / "model").mkdir()
    with target(tmp_path / "model-TQ3", source=tmp_path / "model"):
        pass


def test_a_disk_without_room_is_refused_with_both_figures(out, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: usage(2000, 1001, 999))
    with target(out) as folder:
        folder.check_room(999)
        with pytest.raises(StorageError, match="not enough free space") as caught:
            folder.check_room(1000)
    assert (caught.value.found, caught.value.expected) == ("999 bytes", "1,000")


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="can't be written"):
        target(tmp_path / "file" / "out", source=tmp_path / "source")
