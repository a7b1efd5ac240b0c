"""tq3_manifest.json: size and checksums of every other file of a checkpoint.

Checksums find damage, not malice: XXH3 with 64 bits, over pieces that follow each other without a
gap. Pieces are what was written in one go, so that many can be computed, and checked, at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import xxhash

from tq3.errors import BadInput
from tq3.format.json_reading import parse_object

FILE_NAME = "tq3_manifest.json"
_VERSION = 1
_ALGORITHM = "xxh3_64"
_DIGEST_CHARACTERS = 16


class Piece(NamedTuple):
    """A range of a file, in bytes, and its checksum: 16 hexadecimal digits."""

    offset: int
    length: int
    digest: str


class Digest:
    """The checksum of a piece that comes in parts."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_64()
        self._length = 0

    def update(self, data: bytes | memoryview) -> None:
        """Take in the next part."""
        self._state.update(data)
        self._length += len(data)

    def piece(self, offset: int = 0) -> Piece:
        """One piece, beginning at `offset`, of all parts so far."""
        return Piece(offset, self._length, self._state.hexdigest())


def digest(data: bytes | memoryview) -> str:
    """The checksum of these bytes: 16 hexadecimal digits."""
    return xxhash.xxh3_64_hexdigest(data)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Relative path -> its pieces in order, which cover the file."""

    writer: str
    files: Mapping[str, tuple[Piece, ...]]

    def to_json(self) -> str:
        """The file's text, a line for each file. Its last line is a checksum of all before it."""
        head = {"format_version": _VERSION, "algorithm": _ALGORITHM, "writer": self.writer}
        members = [f"{_text(key)}: {_text(value)}" for key, value in head.items()]
        lines = [
            f"{_text(name)}: {_text(_record(self.files[name]))}" for name in sorted(self.files)
        ]
        members.append('"files": {\n    ' + ",\n    ".join(lines) + "\n  }")
        return _sealed("{\n  " + ",\n  ".join(members) + ",\n")


def parse_manifest(text: str) -> Manifest:
    """Read what `to_json` wrote. Raises BadInput for anything else, down to a flipped bit."""
    raw = parse_object(text, FILE_NAME)
    version = raw.get("format_version")
    if version != _VERSION or raw.get("algorithm") != _ALGORITHM:
        raise BadInput(
            "unknown version or algorithm",
            file=FILE_NAME,
            found=f"{version}, {raw.get('algorithm')}",
            expected=f"{_VERSION}, {_ALGORITHM}",
            fix="pip install -U tq3",
        )
    if _sealed(text[: text.rfind('  "digest": ')]) != text:
        raise BadInput("damaged: its last line does not fit the lines before", file=FILE_NAME)
    files = raw.get("files")
    if not isinstance(files, dict):
        raise BadInput("files is not an object", file=FILE_NAME)
    pieces = {name: tuple(_pieces(name, record)) for name, record in files.items()}
    return Manifest(str(raw.get("writer")), pieces)


def _text(value: Any) -> str:
    # ASCII only: a file's name need not be UTF-8, and what is left of it then is half a surrogate.
    return json.dumps(value)


def _sealed(lines: str) -> str:
    """The text with its checksum."""
    return f'{lines}  "digest": "{digest(lines.encode())}"\n}}\n'


def _record(pieces: Iterable[Piece]) -> dict[str, Any]:
    """A file's pieces as JSON: their lengths and checksums, from the first byte on."""
    ordered = sorted(pieces)
    position = 0
    for piece in ordered:
        if piece.offset != position:
            raise ValueError(f"pieces with a gap or overlap at byte {position}")
        position += piece.length
    return {"size": position, "pieces": [[piece.length, piece.digest] for piece in ordered]}


def _pieces(name: str, record: Any) -> Iterable[Piece]:
    bad = BadInput("not a file's size and pieces", file=FILE_NAME, found=repr(name))
    if not isinstance(record, dict) or not isinstance(record.get("pieces"), list):
        raise bad
    position = 0
    for item in record["pieces"]:
        if not _is_piece(item):
            raise bad
        yield Piece(position, *item)
        position += item[0]
    if record.get("size") != position:
        raise bad


def _is_piece(item: Any) -> bool:
    if not isinstance(item, list) or len(item) != 2:
        return False
    length, text = item
    is_length = type(length) is int and 0 <= length < 2**63
    return is_length and isinstance(text, str) and len(text) == _DIGEST_CHARACTERS
