"""A file of second moments as it grows: blocks as they come, its header at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from tq3.moments.facts import Facts, Readers, Tokens, to_metadata
from tq3.storage.failures import writing

# What the entry of a tensor takes in the header beside its name, and a name in the list of readers.
_ENTRY_BYTES, _QUOTES = 128, 16
_FACTS_BYTES = 8192


class MomentsFile:
    """Moments behind the room that is left for a header."""

    def __init__(self, file: BinaryIO, room: int) -> None:
        self._file, self._room = file, room
        self._shapes: dict[str, tuple[int, ...]] = {}
        file.seek(room)

    def add(self, name: str, moments: NDArray[np.float32]) -> None:
        """Write the moments of one input, (blocks, columns, columns)."""
        self._shapes[name] = moments.shape
        self._file.write(np.ascontiguousarray(moments, "<f4").data)

    def finish(self, facts: Facts, readers: Readers, tokens: Tokens) -> None:
        """Write the header: a safetensors file of what was added."""
        entries: dict[str, object] = {"__metadata__": to_metadata(facts, readers, tokens)}
        start = 0
        for name, shape in self._shapes.items():
            stop = start + 4 * int(np.prod(shape))
            entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}
            start = stop
        text = json.dumps(entries, separators=(",", ":")).encode()
        assert len(text) <= self._room - 8, "the header fits the room that was left for it"
        self._file.seek(0)
        self._file.write((self._room - 8).to_bytes(8, "little") + text.ljust(self._room - 8))


@contextmanager
def moments_file(
    path: Path, inputs: Iterable[str], readers: Iterable[str]
) -> Iterator[MomentsFile]:
    """A new file, in a new folder if need be, which takes its name when all is well.

    Raises StorageError.

    inputs: at least the names of all that may be added; readers: each tensor as often as it reads
    """
    room = _FACTS_BYTES + sum(3 * len(name) + _ENTRY_BYTES for name in inputs)
    # JSON in a JSON string: quotes are escaped, and names of inputs are as long as their readers'.
    room += sum(3 * len(name) + _QUOTES for name in readers)
    draft = path.with_name(f"{path.name}.part")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as file:
                yield MomentsFile(file, -(-room // 8) * 8)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
