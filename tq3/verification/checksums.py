"""Reads the checkpoint's bytes once: checksums by the manifest, and the norms among them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from tq3.codec.norms import NORM_TYPES, read_norms
from tq3.errors import BadInput, StorageError
from tq3.format.checkpoint import Located
from tq3.format.config import FILE_NAME as TQ_CONFIG
from tq3.format.files import CONFIG, Source
from tq3.format.layout import NORMS
from tq3.format.manifest import Digest, Piece
from tq3.plan.plan import BLOCK_BYTES
from tq3.verification.checks import Fault, Faults, unreadable
from tq3.verification.structure import Structure

_LONGEST_NORM = 4


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes of a file that one worker reads: a piece of the manifest, or norms outside of any.

    tensors: those that have a byte in it
    """

    file: str
    start: int
    stop: int
    tensors: tuple[Located, ...]
    piece: Piece | None = None

    @property
    def n_bytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Checked:
    """A stretch that was read, and what is wrong with it."""

    stretch: Stretch
    faults: tuple[Fault, ...]


def plan_stretches(files: Source, structure: Structure) -> list[Stretch]:
    """The stretches that are to be read. Faults that need no reading go to the structure's."""
    tensors = defaultdict(list)
    for tensor in structure.tensors:
        if tensor.info.n_bytes:
            tensors[tensor.file].append(tensor)
    pieces = _sound_pieces(files, structure) if structure.manifest else {}
    stretches: list[Stretch] = []
    for file, in_file in pieces.items():
        stretches += _stretches_of_pieces(file, in_file, tensors[file])
    for file in tensors.keys() - pieces.keys():
        stretches += _stretches_of_norms(tensors[file])
    return sorted(stretches, key=lambda each: (each.file, each.start))


def _sound_pieces(files: Source, structure: Structure) -> dict[str, tuple[Piece, ...]]:
    """The pieces of every file that is there and has its size."""
    manifest, faults = structure.manifest, structure.faults
    assert manifest is not None
    for name in _own_files(files, structure):
        if name not in manifest.files:
            faults.add(Fault("TQ405", "nothing is known of its bytes", name))
    return {
        name: pieces
        for name, pieces in manifest.files.items()
        if _has_its_size(files, name, sum(piece.length for piece in pieces), faults)
    }


def _own_files(files: Source, structure: Structure) -> Iterator[str]:
    yield from (file for file in structure.weight_files if files.has(file))
    names = (structure.index, CONFIG, TQ_CONFIG)
    yield from (name for name in names if name and files.has(name))


def _has_its_size(files: Source, name: str, expected: int, faults: Faults) -> bool:
    told = faults.covers(name)  # then it is told already why it is missing or can't be read
    if not files.has(name):
        if not told:
            faults.add(Fault("TQ402", "missing", name))
        return False
    size = None
    with (Faults() if told else faults).catching("TQ109", name):
        size = files.size(name)
    if size is not None and size != expected:
        sizes = f"{size} bytes", f"{expected}"
        faults.add(Fault("TQ403", "not of the size that was written", name, None, *sizes))
    return size == expected


def _stretches_of_pieces(
    file: str, pieces: Iterable[Piece], tensors: list[Located]
) -> Iterator[Stretch]:
    starts = [tensor.offset for tensor in tensors]
    stops = [_stop(tensor) for tensor in tensors]
    for piece in pieces:
        stop = piece.offset + piece.length
        inside = slice(bisect_right(stops, piece.offset), bisect_left(starts, stop))
        yield Stretch(file, piece.offset, stop, tuple(tensors[inside]), piece)


def _stretches_of_norms(tensors: Iterable[Located]) -> Iterator[Stretch]:
    for tensor in filter(_is_norms, tensors):
        stop = _stop(tensor)
        for start in range(tensor.offset, stop, BLOCK_BYTES):
            yield Stretch(tensor.file, start, min(start + BLOCK_BYTES, stop), (tensor,))


def _stop(tensor: Located) -> int:
    """The first byte behind it."""
    return tensor.offset + tensor.info.n_bytes


def _is_norms(tensor: Located) -> bool:
    return tensor.info.name.endswith(NORMS) and tensor.info.dtype in NORM_TYPES


class Reader:
    """One thread's buffer."""

    def __init__(self, files: Source) -> None:
        self._files = files
        self._buffer = bytearray()

    def check(self, stretch: Stretch) -> Checked:
        """Read it once, a block at a time."""
        faults, digest = Faults(), Digest()
        try:
            norms = [tensor for tensor in stretch.tensors if _is_norms(tensor)]
            last = max((_stop(tensor) for tensor in norms), default=stretch.stop)
            for start in range(stretch.start, stretch.stop, BLOCK_BYTES):
                stop = min(start + BLOCK_BYTES, stretch.stop)
                # A few bytes more: a piece may end within a norm, which belongs to its first byte.
                more = max(stop, min(stop + _LONGEST_NORM - 1, last))
                data = self._read(stretch.file, start, more)
                digest.update(data[: stop - start])
                for tensor in norms:
                    _check_norms(tensor, data, start, stop, faults)
        except (BadInput, StorageError) as error:
            faults.add(unreadable(error, stretch.file))
        else:
            _check_digest(stretch, digest, faults)
        return Checked(stretch, tuple(faults))

    def _read(self, file: str, start: int, stop: int) -> memoryview:
        if len(self._buffer) < stop - start:
            self._buffer = bytearray(stop - start)
        data = memoryview(self._buffer)[: stop - start]
        self._files.read_into(file, start, data)
        return data


def _check_digest(stretch: Stretch, digest: Digest, faults: Faults) -> None:
    piece = stretch.piece
    if piece is None:
        return
    found = digest.piece(piece.offset)
    if found != piece:
        at = f"bytes {piece.offset} to {stretch.stop} are not those that were written"
        tensor = stretch.tensors[0].info.name if len(stretch.tensors) == 1 else None
        digests = found.digest, piece.digest
        faults.add(Fault("TQ404", at, stretch.file, tensor, *digests, at=piece.offset))


def _check_norms(tensor: Located, data: memoryview, start: int, stop: int, faults: Faults) -> None:
    """The norms whose first byte lies between `start` and `stop`; `data` begins at `start`."""
    norm_bytes = tensor.info.n_bytes // tensor.info.n_elements
    first = max(0, -(-(start - tensor.offset) // norm_bytes))
    last = min(tensor.info.n_elements, -(-(stop - tensor.offset) // norm_bytes))
    if first >= last:
        return
    where = tensor.offset + first * norm_bytes - start
    stored = np.frombuffer(data, np.uint8, (last - first) * norm_bytes, where)
    norms = read_norms(stored, tensor.info.dtype)
    if norms.min() >= 0 and norms.max() < np.inf:  # false for a NaN as well
        return
    finite = np.isfinite(norms)
    for check, bad in (("TQ301", ~finite), ("TQ302", finite & (norms < 0))):
        places = np.flatnonzero(bad)
        if len(places):
            place = int(places[0])
            fault = _bad_norm(check, tensor, first + place, float(norms[place]))
            faults.add(replace(fault, count=len(places)))


def _bad_norm(check: str, tensor: Located, index: int, value: float) -> Fault:
    row, group = divmod(index, tensor.info.shape[-1] if tensor.info.shape else 1)
    return Fault(
        check,
        f"the norm of row {row}, group {group}",
        tensor.file,
        tensor.info.name,
        found=f"{value:g}",
        expected="finite" if check == "TQ301" else "at least 0",
        at=tensor.offset + index * (tensor.info.n_bytes // tensor.info.n_elements),
    )
