"""The journal tells a later run what it was told, whatever happened to its tail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tq3.errors import StorageError
from tq3.format.manifest import Piece
from tq3.plan.identity import VERSIONS
from tq3.plan.learned import Learned
from tq3.storage.journal import DoneBlock, Journal

RUN = {"command": "compress", "versions": VERSIONS}
BLOCKS = (
    DoneBlock("a", 0, (Piece(8, 4, "0" * 16), Piece(12, 1, "1" * 16)), "2" * 16, (0.5, 8.0)),
    DoneBlock("é", 7, (Piece(13, 4, "3" * 16),)),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def written(path: Path) -> Path:
    """The journal of a run that began to publish."""
    with Journal(path) as journal:
        journal.begin(RUN)
        journal.add_blocks(0, BLOCKS[:1])
        journal.restart([1], Learned({"b": "it overflows"}, {"d": "large"}))
        journal.add_blocks(1, BLOCKS[1:])
        journal.publishing(overwrite=True)
    return path


def test_a_new_journal_knows_nothing(path):
    with Journal(path) as journal:
        assert journal.identity is None
        assert not journal.has_work
        assert not journal.is_publishing
        assert journal.blocks(0) == {}


def test_what_was_told_is_known_at_once_and_later(path):
    with Journal(written(path)) as journal:
        assert journal.identity == RUN
        assert journal.blocks(0) == {("a", 0): BLOCKS[0]}
        assert journal.blocks(1) == {("é", 7): BLOCKS[1]}
        assert journal.learned == Learned({"b": "it overflows"}, {"d": "large"})
        assert journal.is_publishing
        assert journal.overwrite
        journal.add_blocks(2, BLOCKS)
        assert journal.blocks(2).keys() == {("a", 0), ("é", 7)}


def test_a_restart_forgets_the_blocks_of_these_shards_only(path):
    with Journal(written(path)) as journal:
        journal.add_blocks(2, BLOCKS)
        journal.restart([2, 1], Learned({"c": "too"}, {"e": "small"}))
        assert journal.blocks(0)
        assert not journal.blocks(1)
        assert not journal.blocks(2)
    with Journal(path) as journal:
        assert journal.blocks(0)
        assert not journal.blocks(1)
        assert not journal.blocks(2)
        assert journal.learned == Learned(
            {"b": "it overflows", "c": "too"}, {"d": "large", "e": "small"}
        )


def test_to_begin_forgets_everything(path):
    with Journal(written(path)) as journal:
        journal.begin(RUN | {"command": "restore"})
        assert not journal.has_work
        assert journal.learned == Learned()
    with Journal(path) as journal:
        assert journal.identity == RUN | {"command": "restore"}
        assert not journal.has_work


def test_after_any_cut_the_rest_is_sound_and_more_can_be_told(path):
    whole = written(path).read_bytes()
    known = []
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        with Journal(path) as journal:
            known.append(len(path.read_bytes()))
            journal.add_blocks(5, BLOCKS)
        with Journal(path) as journal:
            assert journal.blocks(5).keys() == {("a", 0), ("é", 7)}
    assert known == sorted(known)
    assert len(set(known)) == 6


def test_a_journal_in_place_of_which_there_is_a_link_is_refused(path, tmp_path):
    path.symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError, match="can't be written"):
        Journal(path)
    assert not (tmp_path / "precious").exists()


def test_a_closed_journal_takes_no_record(path):
    with Journal(path) as journal:
        journal.begin({})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="closed"):
        journal.add_blocks(0, BLOCKS)
    assert path.read_bytes() == before
