"""The manifest: what is written is read again, and nothing else is."""

from __future__ import annotations

import json

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tq3.errors import BadInput
from tq3.format.manifest import Digest, Manifest, Piece, digest, parse_manifest

TEXT = """{
  "format_version": 1,
  "algorithm": "xxh3_64",
  "writer": "tq3 0.1.0",
  "files": {
    "a/\\u00e9.json": {"size": 0, "pieces": []},
    "model.safetensors": {"size": 12, "pieces": [[8, "000000000000abcd"], [4, "0123456789abcdef"]]}
  },
  "digest": "%s"
}
"""
MANIFEST = Manifest(
    "tq3 0.1.0",
    {
        "model.safetensors": (Piece(0, 8, "000000000000abcd"), Piece(8, 4, "0123456789abcdef")),
        "a/é.json": (),
    },
)


def known_text() -> str:
    """The text above, with the checksum of its lines."""
    lines = TEXT[: TEXT.rindex('  "digest"')]
    return TEXT % xxhash.xxh3_64_hexdigest(lines.encode())


def test_a_known_manifest_is_a_known_text_and_back():
    assert MANIFEST.to_json() == known_text()
    assert parse_manifest(known_text()) == MANIFEST
    assert json.loads(known_text())["files"]["model.safetensors"]["size"] == 12


def test_pieces_may_come_in_any_order():
    model = MANIFEST.files["model.safetensors"]
    shuffled = Manifest(MANIFEST.writer, {"a/é.json": (), "model.safetensors": model[::-1]})
    assert shuffled.to_json() == known_text()


@pytest.mark.parametrize("offset", [7, 9])
def test_pieces_with_a_gap_or_an_overlap_are_a_mistake(offset):
    pieces = (Piece(0, 8, "0" * 16), Piece(offset, 4, "0" * 16))
    with pytest.raises(ValueError, match="gap or overlap at byte 8"):
        Manifest("w", {"f": pieces}).to_json()


def test_every_flipped_bit_is_found():
    text = known_text().encode()
    for bit in range(8 * len(text)):
        damaged = bytearray(text)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            as_text = damaged.decode()
        except UnicodeDecodeError:
            continue
        with pytest.raises(BadInput):
            parse_manifest(as_text)


def test_every_cut_is_found():
    text = known_text()
    for length in range(len(text)):
        with pytest.raises(BadInput):
            parse_manifest(text[:length])


@pytest.mark.parametrize(
    "record",
    [
        "[]",
        "{}",
        '{"size": 1, "pieces": []}',
        '{"size": 0, "pieces": {}}',
        '{"size": 1, "pieces": [[1]]}',
        '{"size": 1, "pieces": [[true, "0123456789abcdef"]]}',
        '{"size": -1, "pieces": [[-1, "0123456789abcdef"]]}',
        '{"size": 1, "pieces": [[1, "0123"]]}',
        '{"size": 1, "pieces": [[1, 5]]}',
    ],
)
def test_a_sealed_text_that_is_no_manifest_is_refused(record):
    lines = '{\n  "format_version": 1,\n  "algorithm": "xxh3_64",\n'
    lines += f'  "files": {{\n    "f": {record}\n  }},\n'
    with pytest.raises(BadInput, match="not a file's size and pieces"):
        parse_manifest(f'{lines}  "digest": "{digest(lines.encode())}"\n}}\n')


def test_a_later_version_is_refused_with_what_to_do():
    with pytest.raises(BadInput, match="pip install -U tq3"):
        parse_manifest(known_text().replace('"format_version": 1', '"format_version": 2'))


@given(st.lists(st.binary(max_size=50)))
def test_a_digest_in_parts_is_the_digest_of_the_whole(parts):
    state = Digest()
    for part in parts:
        state.update(part)
    whole = b"".join(parts)
    assert state.piece(5) == Piece(5, len(whole), digest(whole))
