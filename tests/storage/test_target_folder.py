"""What may be a target at all, and what a run leaves that has done nothing."""

from __future__ import annotations

import errno
import fcntl
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from support.factories import contents
from support.storage.runs import parts, target

from tq3.errors import StorageError, UsageError


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


def left_by_a_killed_run(out: Path) -> None:
    """Drafts that nobody holds, and no journal of them."""
    (out / ".tq3.part" / "sub").mkdir(parents=True)
    (out / ".tq3.part" / "model-00001.safetensors.part").write_bytes(b"half")
    (out / ".tq3.part" / "sub" / "notes.part").write_bytes(b"half")


def test_drafts_without_a_journal_are_no_obstacle_and_are_removed(out):
    left_by_a_killed_run(out)
    with target(out):
        assert contents(out).keys() == {".tq3.part/journal"}
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_second_run_is_refused_and_harms_nothing(out, overwrite):
    with target(out) as first:
        first.copy("notes", parts(Path(__file__)))
        before = contents(out)
        with pytest.raises(UsageError, match="another run is writing here") as caught:
            target(out, overwrite=overwrite)
        assert caught.value.file == str(out)
        assert caught.value.fix
        assert contents(out) == before
        with pytest.raises(UsageError):  # nor has the refusal given the lock away
            target(out, overwrite=overwrite)
    assert not out.exists()
    with target(out):
        pass


def test_a_folder_removed_between_opening_and_locking_is_not_taken(out, monkeypatch):
    """The run that held it has ended: what we locked is not what the next one will find there."""
    out.mkdir()

    def late(descriptor: int, _: int) -> None:
        shutil.rmtree(out / ".tq3.part")
        (out / ".tq3.part").mkdir()

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(UsageError, match="another run"):
        target(out)
    assert [path.name for path in out.iterdir()] == [".tq3.part"]


def test_the_working_folder_of_the_next_run_is_not_removed(out):
    with target(out):
        shutil.rmtree(out)
        left_by_a_killed_run(out)
        before = contents(out)
    assert contents(out) == before


def test_a_checkpoint_that_appears_before_the_lock_is_ours_is_not_replaced(out, monkeypatch):
    out.mkdir()

    def late(descriptor: int, _: int) -> None:
        (out / "model.safetensors").write_bytes(b"published")

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(UsageError, match="not empty"):
        target(out)
    assert contents(out) == {"model.safetensors": b"published"}
    assert len(list(out.iterdir())) == 1


def test_without_locks_having_made_the_working_folder_is_the_lock(out, monkeypatch):
    def unable(*_: object) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", unable)
    with target(out), pytest.raises(UsageError, match="another run") as caught:
        target(out)
    assert ".tq3.part" in str(caught.value.fix)
    assert not out.exists()


def test_foreign_drafts_are_not_touched(out):
    out.mkdir()
    (out / "model-00001.safetensors.part").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        target(out)
    with target(out, overwrite=True):
        pass
    assert contents(out) == {"model-00001.safetensors.part": b"mine"}


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_working_folder_that_is_none_is_refused_and_stays(out, tmp_path, kind):
    out.mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("mine")
    work = out / ".tq3.part"
    work.write_text("mine") if kind == "file" else work.symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError, match="can't be written"):
        target(out)
    assert contents(tmp_path / "precious") == {"file": b"mine"}
    assert work.is_symlink() if kind == "link" else work.read_text() == "mine"


def test_a_target_that_is_removed_meanwhile_is_a_storage_error(out):
    with pytest.raises(StorageError), target(out) as folder:
        shutil.rmtree(out)
        folder.check_room(1)
    with pytest.raises(StorageError, match="can't be written"), target(out) as folder:
        shutil.rmtree(out)
        folder.copy("sub/notes", parts(Path(__file__)))
    assert not out.exists()


def test_a_path_that_is_too_long_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="File name too long"):
        target(tmp_path / "made" / ("x" * 5000), source=tmp_path / "source")
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_cannot_be_read_is_a_storage_error(out, monkeypatch):
    def denied(_: object) -> list[str]:
        raise PermissionError(13, "Permission denied")

    out.mkdir()
    monkeypatch.setattr("os.listdir", denied)
    with pytest.raises(StorageError, match="Permission denied"):
        target(out)


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
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2000, 1001, 999))
    with target(out) as folder:
        folder.check_room(999)
        with pytest.raises(StorageError, match="not enough free space") as caught:
            folder.check_room(1000)
    assert (caught.value.found, caught.value.expected) == ("999 bytes", "1,000")


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="can't be written"):
        target(tmp_path / "file" / "out", source=tmp_path / "source")
