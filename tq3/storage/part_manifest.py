"""What a part wrote, once it is whole: a file beside its drafts, which appears in one step."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tq3.errors import BadInput
from tq3.format.manifest import digest
from tq3.format.parts import Part
from tq3.plan.plan import Shard
from tq3.storage.failures import reading, writing
from tq3.storage.journal import DoneBlock, Key, done_block
from tq3.storage.records import read_records, record_line
from tq3.storage.shard_file import flush_folder

FILE_NAME = "manifest"


@dataclass(frozen=True, slots=True)
class PartShard:
    """One shard of a part: the checksum of its header, and all its blocks."""

    header: str
    blocks: Sequence[DoneBlock]

    @property
    def by_key(self) -> dict[Key, DoneBlock]:
        return {(block.task, block.first): block for block in self.blocks}

    @property
    def n_bytes(self) -> int:
        """Bytes of tensors."""
        return sum(piece.length for block in self.blocks for piece in block.pieces)

    @property
    def end(self) -> int:
        """Bytes of the file up to the end of its last tensor; 0 where none has any."""
        ends = (piece.offset + piece.length for block in self.blocks for piece in block.pieces)
        return max(ends, default=0)

    def is_of(self, shard: Shard) -> bool:
        """Whether it is this one, and all of it was written."""
        keys = {block.key for block in shard.blocks()}
        return self.header == digest(shard.header) and self.by_key.keys() == keys


@dataclass(frozen=True, slots=True)
class PartManifest:
    """identity: the run's, as its record
    request: what else the whole output depends on, as JSON
    overwrite: whether what the target has may be replaced
    verdicts: what values said of tensors, of those in other plans too, as JSON
    shards: number, from 0 -> what was written
    """

    part: Part
    identity: Mapping[str, Any]
    request: Mapping[str, Any]
    overwrite: bool
    verdicts: Mapping[str, Any]
    shards: Mapping[int, PartShard]

    def write(self, folder: Path) -> None:
        """Put it into the part's folder, safely on the disk. Raises StorageError."""
        shards = {
            str(number): [shard.header, [block.to_record() for block in shard.blocks]]
            for number, shard in self.shards.items()
        }
        record = {
            "part": list(self.part),
            "identity": dict(self.identity),
            "request": dict(self.request),
            "overwrite": self.overwrite,
            "verdicts": dict(self.verdicts),
            "shards": shards,
        }
        write_whole(folder / FILE_NAME, record)


def read_part_manifest(folder: Path) -> PartManifest | None:
    """The manifest in a part's folder; None where there is none. Raises BadInput, StorageError."""
    record = read_whole(folder / FILE_NAME)
    if record is None:
        return None
    shards = {
        int(number): PartShard(header, [*map(done_block, blocks)])
        for number, (header, blocks) in record["shards"].items()
    }
    return PartManifest(
        part=Part(*record["part"]),
        identity=record["identity"],
        request=record["request"],
        overwrite=record["overwrite"],
        verdicts=record["verdicts"],
        shards=shards,
    )


def write_whole(path: Path, value: Any, *, first: bool = False) -> None:
    """Put a record into a file that is whole whenever it is there. Raises StorageError.

    first: what is there already stays. Else the last of several processes that write it has it.
    """
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    with writing(path):
        with draft.open("xb") as file:
            file.write(record_line(value))
            file.flush()
            os.fsync(file.fileno())
        _take_name(draft, path, first)
        flush_folder(path.parent)


def read_whole(path: Path) -> Any:
    """What `write_whole` wrote; None where there is nothing. Raises BadInput for other bytes."""
    if not os.path.lexists(path):
        return None
    with reading(path):
        data = path.read_bytes()
    records, length = read_records(data)
    if len(records) != 1 or length != len(data):
        raise BadInput("damaged: its checksum is not that of its bytes", file=path)
    return records[0]


def _take_name(draft: Path, path: Path, first: bool) -> None:
    if not first:
        draft.replace(path)
        return
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        draft.replace(path)
        return
    draft.unlink()
