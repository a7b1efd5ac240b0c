"""Whatever becomes of drafts and journal between two runs, the second writes the right bytes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest
from support.factories import (
    contents,
    file_bytes,
    mixed_tensors,
    random_tensor,
    tiny_checkpoint,
    too_large,
)
from support.pipelines.interrupting import (
    BLOCK_BYTES,
    SHARD_BYTES,
    copy_of,
    counted_blocks,
    end_after,
)

import tq3
from tq3.storage.journal import Journal

SHARD_1, SHARD_2 = "model-00001.safetensors.part", "model-00002.safetensors.part"


class Left(NamedTuple):
    """What a run left in `out` when it was ended, and what it would have written."""

    out: Path
    whole: dict[str, bytes]
    n_blocks: int

    @property
    def drafts(self) -> Path:
        """The folder of drafts and journal."""
        return self.out / ".tq3.part"

    def go_on(self) -> int:
        """Complete the run and compare; gives the number of blocks that were carried out."""
        with counted_blocks() as carried:
            source = self.out.parent / "in"
            tq3.compress(source, self.out, max_shard_size=SHARD_BYTES, workers=1)
        assert contents(self.out) == self.whole
        return len(carried)


@pytest.fixture
def left(tmp_path, set_block_bytes, monkeypatch) -> Left:
    """A run with a finding that was ended in its third shard of four."""
    set_block_bytes(BLOCK_BYTES)
    monkeypatch.setattr("tq3.storage.shard_file._LAST_FLUSH_SECONDS", 30)
    source = tiny_checkpoint(tmp_path / "in", too_large(mixed_tensors(), 1), shards=2)
    recipe = tq3.Recipe(max_shard_bytes=SHARD_BYTES)
    with counted_blocks() as carried:
        list(tq3.compress_checkpoint(source, tmp_path / "whole", recipe, workers=1))
    run = tq3.compress_checkpoint(source, tmp_path / "out", recipe, workers=1)
    end_after(run, len(carried) * 3 // 4)
    assert len(list((tmp_path / "out" / ".tq3.part").glob("*.safetensors.part"))) >= 3
    return Left(tmp_path / "out", contents(tmp_path / "whole"), len(carried))


def test_an_undamaged_rest_is_used(left):
    assert left.go_on() < 0.4 * left.n_blocks


def remove(path: Path) -> None:
    """As if it had never been there."""
    path.unlink()


def shorten(path: Path) -> None:
    """By one byte."""
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    """To nothing."""
    os.truncate(path, 0)


def lengthen(path: Path) -> None:
    """By one byte."""
    path.write_bytes(path.read_bytes() + b"x")


def reheaded(path: Path) -> None:
    """Another header, the same size."""
    header = file_bytes({"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}})
    path.write_bytes(header + path.read_bytes()[len(header) :])


def linked(path: Path) -> None:
    """A link to the same bytes elsewhere, which are not ours to write."""
    elsewhere = path.parents[2] / f"elsewhere {path.name}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


DAMAGES = [remove, shorten, empty, lengthen, reheaded, linked]


@pytest.mark.parametrize("name", [SHARD_1, SHARD_2])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_draft_is_written_anew(left, damage, name):
    damage(left.drafts / name)
    done = left.go_on()
    assert 0.2 * left.n_blocks < done < left.n_blocks
    for path in left.out.parent.glob("elsewhere*"):
        assert path.read_bytes() != b""
        assert not path.is_symlink()


def test_without_any_draft_everything_is_done_anew(left):
    for path in left.drafts.glob("*.safetensors.part"):
        path.unlink()
    assert left.go_on() > 0.7 * left.n_blocks


def test_without_the_journal_everything_is_done_anew(left):
    (left.drafts / "journal").unlink()
    assert left.go_on() >= left.n_blocks


@pytest.mark.parametrize("step", [5, 7])
def test_a_flipped_bit_in_the_journal_costs_only_what_comes_after_it(left, tmp_path, step):
    kept = copy_of(left.out, tmp_path / "kept")
    text = (kept / ".tq3.part" / "journal").read_bytes()
    for share in range(1, step):
        copy_of(kept, left.out)
        at = len(text) * share // step
        flipped = text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :]
        (left.drafts / "journal").write_bytes(flipped)
        assert left.go_on() <= (1.15 - 0.6 * share / step) * left.n_blocks


def line_ends(text: bytes) -> list[int]:
    """Where the records of a journal end."""
    return [at + 1 for at, byte in enumerate(text) if byte == ord("\n")]


def some_lengths(text: bytes, step: int) -> set[int]:
    """Around the end of each record, and every so many bytes."""
    around = {end + by for end in line_ends(text) for by in (-1, 0, 1)}
    return (around | {*range(0, len(text), step)}) - {len(text) + 1}


def test_a_torn_journal_tells_its_whole_records_and_nothing_else(left, tmp_path):
    text = (left.drafts / "journal").read_bytes()
    copy = tmp_path / "journal"
    states: dict[int, object] = {}
    for length in sorted(some_lengths(text, 13)):
        copy.write_bytes(text[:length])
        with Journal(copy) as journal:
            told = (journal.identity, journal.learned, [dict(journal.blocks(i)) for i in range(5)])
        whole = max((end for end in line_ends(text) if end <= length), default=0)
        assert copy.read_bytes() == text[:whole]
        assert states.setdefault(whole, told) == told
    assert len(states) == len(line_ends(text)) + 1


def test_a_run_goes_on_from_a_torn_journal(left, tmp_path):
    kept = copy_of(left.out, tmp_path / "kept")
    text = (kept / ".tq3.part" / "journal").read_bytes()
    for length in sorted(some_lengths(text, 700))[::4]:
        copy_of(kept, left.out)
        os.truncate(left.drafts / "journal", length)
        left.go_on()


def test_a_small_run_goes_on_from_a_journal_torn_at_every_byte(tmp_path, monkeypatch):
    source = tiny_checkpoint(tmp_path / "in", {"a.weight": random_tensor(4, 128)})
    tq3.compress(source, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    recipe = tq3.Recipe(equalize=False)
    end_after(tq3.compress_checkpoint(source, tmp_path / "kept", recipe, workers=1), 2)
    text = (tmp_path / "kept" / ".tq3.part" / "journal").read_bytes()
    assert len(line_ends(text)) == 2
    monkeypatch.setattr("os.fsync", lambda _: None)  # of no matter here, and slow
    for length in range(len(text) + 1):
        out = copy_of(tmp_path / "kept", tmp_path / "out")
        os.truncate(out / ".tq3.part" / "journal", length)
        report = tq3.compress(source, out, workers=1)
        assert contents(out) == whole
        assert report.share_before == (length == len(text))
