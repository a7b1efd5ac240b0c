"""A target folder goes on from what the journal of an earlier run tells, or refuses to."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from support.factories import contents
from support.storage.runs import (
    IDENTITY,
    MARKER,
    done,
    plan_of,
    publish,
    target,
    visible,
    write_draft,
    write_drafts,
)

from tq3.errors import BadInput, StorageError, UsageError
from tq3.plan.identity import Identity
from tq3.storage.journal import DoneBlock
from tq3.storage.records import record_line


def half_done(out: Path) -> None:
    """The first of two shards is written."""
    with target(out) as folder:
        write_draft(folder, plan_of(2), 0)


OTHER = Identity("compress", {"in": "as it was"}, {"bits": 4}, "another digest")


def test_the_same_identity_continues(out, tmp_path):
    publish(tmp_path / "whole", plan_of(2))
    half_done(out)
    with target(out) as folder:
        assert done(folder, plan_of(2), 0)
        assert not done(folder, plan_of(2), 1)
        write_drafts(folder, plan_of(2))
        folder.publish(plan_of(2), texts={}, marker=MARKER, writer=None)
    assert contents(out) == contents(tmp_path / "whole")


def test_another_identity_is_refused_with_the_difference(out):
    half_done(out)
    before = contents(out)
    with pytest.raises(UsageError, match="unfinished run") as caught:
        target(out, OTHER)
    assert caught.value.found == "--bits 3 became --bits 4"
    assert "--overwrite" in str(caught.value.fix)
    assert contents(out) == before


@pytest.mark.parametrize("how", [{"overwrite": True}, {"resume": False}])
def test_another_identity_can_start_anew(out, how):
    half_done(out)
    with target(out, OTHER, **how) as folder:
        assert not done(folder, plan_of(2), 0)
        assert contents(out).keys() == {".tq3.part/journal"}
        write_draft(folder, plan_of(2), 0)
    with target(out, OTHER) as folder:
        assert done(folder, plan_of(2), 0)


def test_after_bad_input_another_run_may_start_anew_and_the_same_goes_on(out):
    with pytest.raises(BadInput), target(out) as folder:
        write_draft(folder, plan_of(2), 0)
        raise BadInput("not a finite weight")
    copy = contents(out)[".tq3.part/journal"]
    with target(out) as folder:
        assert done(folder, plan_of(2), 0)
    with pytest.raises(UsageError, match="unfinished run"):  # it has gone on since
        target(out, OTHER)
    (out / ".tq3.part" / "journal").write_bytes(copy)
    with target(out, OTHER) as folder:
        assert not done(folder, plan_of(2), 0)


def test_a_run_that_goes_on_leaves_its_own_options(out):
    """A later one must know what the last one let pass."""
    lenient = replace(IDENTITY, options={"nonfinite": "keep"})
    strict = replace(IDENTITY, options={"nonfinite": "error"})
    for identity in (strict, lenient):
        with target(out, identity) as folder:
            folder.go_on()
            write_draft(folder, plan_of(2), 0)
    with pytest.raises(UsageError, match="unfinished run") as caught:
        target(out, strict)
    assert caught.value.found == "--nonfinite keep became --nonfinite error"


def test_a_journal_of_another_version_is_left_alone_whatever_it_says(out):
    with target(out) as folder:
        write_draft(folder, plan_of(2), 0)
    later = IDENTITY.to_record() | {"versions": "format 9, journal 9"}
    lines = [record_line({"run": later}), record_line({"block": "in another form"})]
    (out / ".tq3.part" / "journal").write_bytes(b"".join(lines))
    with pytest.raises(UsageError, match="unfinished run") as caught:
        target(out)
    assert str(caught.value.found).startswith("versions format 9, journal 9 became")
    assert (out / ".tq3.part" / "journal").read_bytes() == b"".join(lines)
    with target(out, overwrite=True) as folder:
        assert not done(folder, plan_of(2), 0)


def test_a_folder_in_place_of_the_journal_is_a_storage_error(out):
    (out / ".tq3.part" / "journal").mkdir(parents=True)
    with pytest.raises(StorageError, match="can't be written"):
        target(out)


def test_a_flipped_bit_in_a_draft_has_the_shard_written_anew(out, tmp_path):
    half_done(out)
    draft = out / ".tq3.part" / "model-00001.safetensors.part"
    draft.write_bytes(draft.read_bytes()[:-1] + b"?")
    with target(out) as folder:
        assert not done(folder, plan_of(2), 0)
        write_drafts(folder, plan_of(2))
        folder.publish(plan_of(2), texts={}, marker=MARKER, writer=None)
    publish(tmp_path / "whole", plan_of(2))
    assert contents(out) == contents(tmp_path / "whole")


def test_no_run_begins_while_a_late_flush_of_the_last_one_writes_its_records(out, monkeypatch):
    waiting, appending, fsync = threading.Event(), threading.Event(), os.fsync
    half_done(out)
    with pytest.raises(KeyboardInterrupt), target(out) as folder:
        journal = folder.journal
        with folder.shard(plan_of(2), 1) as file:
            piece = file.write(file.offsets["t1"], memoryview(bytes([1] * 8)))

            def slow(descriptor: int) -> None:
                if os.path.samestat(os.fstat(descriptor), journal.path.stat()):
                    appending.set()
                    waiting.wait(timeout=10)
                fsync(descriptor)

            monkeypatch.setattr(os, "fsync", slow)
            file.finish(DoneBlock("t1", 0, (piece,)))
            appending.wait(timeout=10)
            raise KeyboardInterrupt
    with pytest.raises(UsageError, match="another run is writing here"):
        target(out)
    waiting.set()
    file._flusher.join(timeout=10)
    with target(out) as folder:
        assert done(folder, plan_of(2), 1)


@pytest.mark.parametrize("name", ["model.safetensors", "marker.json", "tq3_manifest.json"])
def test_what_is_in_the_way_is_found_before_the_older_checkpoint_is_touched(out, name):
    publish(out, plan_of(2))
    (out / name).unlink(missing_ok=True)
    (out / name).mkdir()
    before = visible(out)
    with pytest.raises(UsageError, match="a folder is in the way of a file") as caught:
        publish(out, plan_of(1), overwrite=True, writer="somebody")
    assert caught.value.file == str(out / name)
    assert visible(out) == before


def test_the_same_identity_can_start_anew_and_overwriting_alone_continues(out):
    half_done(out)
    with target(out, overwrite=True) as folder:
        assert done(folder, plan_of(2), 0)
    with target(out, resume=False) as folder:
        assert not done(folder, plan_of(2), 0)


def test_a_run_that_has_done_nothing_is_no_obstacle_for_another(out, monkeypatch):
    monkeypatch.setattr("tq3.storage.drafts.DraftFolder.remove", lambda _: None)
    with target(out):
        pass
    monkeypatch.undo()
    assert contents(out).keys() == {".tq3.part/journal"}
    with target(out, OTHER):
        pass
    assert not list(out.iterdir())


def test_values_that_changed_start_anew_only_if_that_may_be(out):
    half_done(out)
    with target(out) as folder, pytest.raises(UsageError, match="other values"):
        folder.start_anew(["tensor 't0' has other values"])
    with target(out, overwrite=True) as folder:
        folder.start_anew(["tensor 't0' has other values"])
        assert not done(folder, plan_of(2), 0)


@pytest.mark.parametrize("spoil", ["remove", "cut", "header", "link"])
def test_a_draft_that_is_not_what_the_journal_says_is_written_anew(out, tmp_path, spoil):
    half_done(out)
    draft = out / ".tq3.part" / "model-00001.safetensors.part"
    data = draft.read_bytes()
    draft.unlink()
    if spoil == "link":
        (tmp_path / "precious").write_bytes(data)
        draft.symlink_to(tmp_path / "precious")
    elif spoil != "remove":
        draft.write_bytes(data[:-1] if spoil == "cut" else data.replace(b"t0", b"t9"))
    with target(out) as folder:
        assert not done(folder, plan_of(2), 0)
        write_drafts(folder, plan_of(2))
        folder.publish(plan_of(2), texts={}, marker=MARKER, writer=None)
    publish(tmp_path / "whole", plan_of(2))
    assert contents(out) == contents(tmp_path / "whole")
    if spoil == "link":
        assert (tmp_path / "precious").read_bytes() == data


def test_a_shard_that_is_reopened_keeps_what_it_has(out):
    half_done(out)
    before = contents(out)[".tq3.part/model-00001.safetensors.part"]
    with target(out) as folder, folder.shard(plan_of(2), 0):
        pass
    assert contents(out)[".tq3.part/model-00001.safetensors.part"] == before


def test_an_older_checkpoint_beside_an_unfinished_run_needs_overwriting_again(out):
    publish(out, plan_of(1))
    before = visible(out)
    with target(out, overwrite=True) as folder:
        write_draft(folder, plan_of(2), 0)
    with pytest.raises(UsageError, match="not empty"):
        target(out)
    with target(out, overwrite=True) as folder:
        assert done(folder, plan_of(2), 0)
    assert visible(out) == before


def test_drafts_count_as_room(out, monkeypatch):
    """They are part of what the run needs."""
    half_done(out)
    with target(out) as folder:
        taken = (out / ".tq3.part" / "model-00001.safetensors.part").stat().st_blocks * 512
        usage = type("usage", (), {"free": 0})
        monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
        folder.check_room(taken)
        with pytest.raises(StorageError, match="not enough free space"):
            folder.check_room(taken + 1)


def test_an_identity_is_json(out):
    with target(out) as folder:
        assert folder.journal.identity == IDENTITY.to_record()
        assert IDENTITY.differences(folder.journal.identity) == []


def test_a_named_file_of_the_older_checkpoint_is_not_taken_for_ours(out, tmp_path):
    """Its header is the same, its bytes are not; our draft was removed while publishing."""
    publish(out, plan_of(2))
    older = out / plan_of(2).shard_names[0]
    older.write_bytes(older.read_bytes()[:-1] + b"?")
    link = tmp_path / "older"
    link.hardlink_to(older)
    with target(out, overwrite=True) as folder:
        write_drafts(folder, plan_of(2))
        folder.journal.publishing(overwrite=True)
    (out / ".tq3.part" / "model-00001.safetensors.part").unlink()
    with target(out) as folder:
        assert not done(folder, plan_of(2), 0)
        assert done(folder, plan_of(2), 1)
        write_drafts(folder, plan_of(2))
        folder.publish(plan_of(2), texts={}, marker=MARKER, writer=None)
    publish(tmp_path / "whole", plan_of(2))
    assert contents(out) == contents(tmp_path / "whole")
    assert link.read_bytes().endswith(b"?")


def test_a_failed_flush_ends_the_run_at_the_next_write(out, monkeypatch):
    failed = threading.Event()

    def failing(_: int) -> None:
        failed.set()
        raise OSError(5, "Input/output error")

    with (
        target(out) as folder,
        pytest.raises(StorageError, match="Input/output error"),
        folder.shard(plan_of(1), 0) as file,
    ):
        monkeypatch.setattr(os, "fsync", failing)
        failed.wait(timeout=5)
        file._flusher.join(timeout=5)
        file.write(file.offsets["t0"], memoryview(bytes(8)))
        pytest.fail("written although an earlier flush failed")
