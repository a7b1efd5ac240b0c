"""A part's manifest is whole or not there; another byte is found."""

from __future__ import annotations

import threading

import pytest

from tq3.errors import BadInput
from tq3.format.manifest import Piece
from tq3.format.parts import Part
from tq3.storage.journal import DoneBlock
from tq3.storage.part_manifest import (
    FILE_NAME,
    PartManifest,
    PartShard,
    read_part_manifest,
    read_whole,
    write_whole,
)

BLOCKS = (
    DoneBlock("a", 0, (Piece(8, 16, "0" * 16), Piece(24, 8, "f" * 16)), "ab" * 8, (0.25, 1e-300)),
    DoneBlock("é", 7, ()),
)
MANIFEST = PartManifest(
    part=Part(2, 3),
    identity={"plan": "x"},
    request={"source": "in"},
    overwrite=True,
    verdicts={"clean": ["a"], "findings": {}},
    shards={4: PartShard("0" * 16, BLOCKS), 5: PartShard("1" * 16, ())},
)


def test_what_is_written_is_read(tmp_path):
    assert read_part_manifest(tmp_path) is None
    MANIFEST.write(tmp_path)
    found = read_part_manifest(tmp_path)
    assert found
    assert found.part == Part(2, 3)
    assert {n: (shard.header, tuple(shard.blocks)) for n, shard in found.shards.items()} == {
        4: ("0" * 16, BLOCKS),
        5: ("1" * 16, ()),
    }
    assert (found.identity, found.request, found.overwrite, found.verdicts) == (
        MANIFEST.identity,
        MANIFEST.request,
        True,
        MANIFEST.verdicts,
    )
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_any_other_byte_is_found(tmp_path):
    MANIFEST.write(tmp_path)
    path = tmp_path / FILE_NAME
    data = path.read_bytes()
    spoiled = [data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :] for i in range(0, len(data), 7)]
    for other in [*spoiled, data[:-1], data + b"x", data + data, b""]:
        path.write_bytes(other)
        with pytest.raises(BadInput, match="damaged"):
            read_part_manifest(tmp_path)


def test_of_several_that_write_first_one_is_left_and_no_draft(tmp_path):
    path = tmp_path / "factors"
    threads = [
        threading.Thread(target=write_whole, args=(path, number), kwargs={"first": True})
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read_whole(path)
    assert found in range(4)
    write_whole(path, 9, first=True)
    assert read_whole(path) == found
    write_whole(path, 9)
    assert read_whole(path) == 9
    assert [each.name for each in tmp_path.iterdir()] == ["factors"]
