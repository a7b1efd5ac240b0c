"""A quantised checkpoint, read as if its weights lay on the disk as float32.

Whatever reads a source reads this one: any range of whole elements of a virtual tensor is decoded
from the codes and scales that it needs, in whatever files they lie. All else is read as it is.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from math import prod
from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tq3.cache import Cache
from tq3.codec.backend import get_backend
from tq3.codec.quantised import SCALE_TYPE, unpack
from tq3.dequantization.recognition import dequantised
from tq3.errors import BadInput
from tq3.format.checkpoint import FIRST_VIRTUAL, Checkpoint, Located, read_checkpoint
from tq3.format.files import CONFIG, ForwardingSource, Source
from tq3.format.header import DTYPE_BITS
from tq3.plan.ordinary import check_ordinary

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

_WORDS = {**SCALE_TYPE, "I8": np.uint8}
_HIGHEST_BIT = np.uint8(0x80)
# Codes that a thread reads at one time, as many as its memory is kept for.
_ROOM_BYTES = 8 * 2**20
# Scales are read in rows of about so many bytes, and the last ones of a model are kept.
_PIECE_BYTES = 2**20
KEPT_BYTES = 32 * 2**20


def open_original(files: Source, fix: str | None = None) -> tuple[Source, Checkpoint]:
    """An ordinary checkpoint, or a quantised one as if it were ordinary. Raises BadInput.

    fix: as for `plan.ordinary.check_ordinary`
    """
    stored = read_checkpoint(files)
    checkpoint = dequantised(stored, files)
    check_ordinary(checkpoint, fix)
    return (files if checkpoint is stored else DequantizedSource(files, checkpoint)), checkpoint


class DequantizedSource(ForwardingSource):
    """A source whose virtual tensors are decoded as they are read."""

    def __init__(self, files: Source, checkpoint: Checkpoint) -> None:
        super().__init__(files)
        self._pieces, room = _Kept(files), _Room()
        self._starts: dict[str, list[int]] = {}
        self._weights: dict[str, list[_Weight]] = {}
        for tensor in checkpoint.tensors:  # in the order of their places
            if tensor.pieces and tensor.info.n_elements:
                self._starts.setdefault(tensor.file, []).append(tensor.offset)
                weights = self._weights.setdefault(tensor.file, [])
                weights.append(_Weight(tensor, files, self._pieces, room))

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Read bytes as `Files.read` does; those of a virtual tensor are whole elements."""
        if offset < FIRST_VIRTUAL:
            return self._files.read(name, offset, length)
        data = bytearray(length)
        self.read_into(name, offset, memoryview(data))
        return bytes(data)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Read as `Source.read_into` does, of a virtual tensor whole elements."""
        if offset < FIRST_VIRTUAL:
            self._files.read_into(name, offset, buffer)
        elif len(buffer):
            weight = self._weights[name][bisect_right(self._starts[name], offset) - 1]
            weight.read_into(offset, np.frombuffer(buffer, np.float32))


class _Weight:
    """One virtual tensor as (stack * rows, columns)."""

    def __init__(self, tensor: Located, files: Source, kept: _Kept, room: _Room) -> None:
        assert tensor.pieces
        self._files, self._kept, self._room = files, kept, room
        self._codec = get_backend()
        self._tensor, self._pieces = tensor, tensor.pieces
        self._encoding = tensor.pieces.encoding
        *stack, self._matrix_rows, self._columns = (1, 1, *tensor.info.shape)
        if prod(stack) > 1 and tensor.pieces.scales.info.n_elements == 1:
            self._matrix_rows *= prod(stack)  # one scale for all of them
            self._encoding = replace(self._encoding, block=(self._matrix_rows, self._columns))
        self._row_bytes = self._encoding.row_bytes(self._columns)
        self._n_lines, self._groups = self._encoding.grid(self._matrix_rows, self._columns)
        self._is_checked = self._pieces.width is None

    def read_into(self, offset: int, values: Floats) -> None:
        """Fill `values` from the element at the virtual place `offset` on.  (n,)"""
        first, odd = divmod(offset - self._tensor.offset, values.itemsize)
        assert not odd and first + len(values) <= self._tensor.info.n_elements, "of one tensor"
        self._check_width()
        # Whole rows go where they belong; of the first and the last one a part may be wanted.
        width = self._columns
        top, left = divmod(first, width)
        if left:
            head = min(width - left, len(values))
            values[:head] = self._row(top)[left : left + head]
            top, values = top + 1, values[head:]
        n_whole, rest = divmod(len(values), width)
        if n_whole:
            self._decode(top, top + n_whole, values[: n_whole * width].reshape(n_whole, width))
        if rest:
            values[n_whole * width :] = self._row(top + n_whole)[:rest]

    def _row(self, number: int) -> Floats:
        row: Floats = np.empty(self._columns, np.float32)
        self._decode(number, number + 1, row[None])
        return row

    def _check_width(self) -> None:
        """Raise BadInput where the shape that lies beside the codes is another one.

        No header tells padding, nor whether config.json says the bits of these codes.
        """
        if self._is_checked or not self._pieces.width:
            return
        piece = self._pieces.width
        stored = np.frombuffer(self._files.read(piece.file, piece.offset, 16), "<i8").tolist()
        if stored != list(self._tensor.info.shape):
            raise BadInput(
                f"another shape than codes and scales make with the bits of {CONFIG}, or columns "
                "that don't fill their words",
                file=piece.file,
                tensor=piece.info.name,
                found=stored,
                expected=list(self._tensor.info.shape),
                fix=f"get {CONFIG} and weights from one revision, or compress the checkpoint that "
                "they were made from",
            )
        self._is_checked = True

    def _decode(self, top: int, bottom: int, out: Floats) -> None:
        """Decode the rows `top` to `bottom` of the stack into `out`.  (rows, columns)"""
        piece = self._pieces.codes
        codes = self._room.take((bottom - top) * self._row_bytes)
        start = piece.offset + top * self._row_bytes
        self._files.read_into(piece.file, start, codes.data)
        if self._encoding.is_signed:
            codes ^= _HIGHEST_BIT
        matrices, rows = np.divmod(np.arange(top, bottom), self._matrix_rows)
        lines = matrices * self._n_lines + rows // self._encoding.block[0]
        first, count = int(lines[0]), int(lines[-1] - lines[0]) + 1
        self._codec.dequantize(
            self._encoding,
            codes.reshape(bottom - top, self._row_bytes),
            self._lines(self._pieces.scales, first, count),
            out,
            lines=lines - first,
            zero_points=self._zero_points(first, count),
            global_scale=self._global_scale(matrices),
        )

    def _lines(self, piece: Located, first: int, count: int) -> NDArray[Any]:
        """Raw words of these lines of a tensor with a value for each group.  (count, groups)"""
        width = self._groups * DTYPE_BITS[piece.info.dtype] // 8
        raw = self._kept.read(piece, first * width, count * width, width)
        kind = _WORDS.get(piece.info.dtype, np.uint32)  # zero points are in words of 32 bits
        return raw.view(kind).reshape(count, self._groups)

    def _zero_points(self, first: int, count: int) -> Bytes | None:
        """The zero points of some lines; they lie packed along the lines.  (count, groups)"""
        if not self._pieces.zero_points:
            return None
        if self._encoding.is_signed:
            stored: Bytes = self._lines(self._pieces.zero_points, first, count)
            codes: Bytes = stored ^ _HIGHEST_BIT
            return codes
        bits, aligned = self._encoding.bits, first // 32 * 32  # where a word begins
        stop = -(-(first + count) * bits // 32)
        start = aligned * bits // 32
        words = self._lines(self._pieces.zero_points, start, stop - start)
        streams = np.ascontiguousarray(words.T).view(np.uint8)
        points = unpack(streams, bits, first + count - aligned)[:, first - aligned :]
        return np.ascontiguousarray(points.T)

    def _global_scale(self, matrices: NDArray[np.int64]) -> Floats | None:
        """The global scale of each row, whose matrices these are.  (rows,)"""
        piece = self._pieces.global_scale
        if not piece:
            return None
        values = self._kept.read(piece, 0, piece.info.n_bytes, piece.info.n_bytes).view("<f4")
        if not values.all():
            raise BadInput(
                "a global scale of zero: no weight can be known by it",
                file=piece.file,
                tensor=piece.info.name,
                found=0.0,
                expected="another number",
                fix="fetch the checkpoint again, or compress the one that it was made from",
            )
        return values[matrices] if len(values) > 1 else values.repeat(len(matrices))


class _Room(local):
    """Memory for codes, one piece for each thread: a new one would be mapped page by page."""

    def __init__(self) -> None:
        self._kept = np.empty(0, np.uint8)

    def take(self, n_bytes: int) -> Bytes:
        """Memory that is the caller's until the same thread asks again."""
        if n_bytes > _ROOM_BYTES:
            return np.empty(n_bytes, np.uint8)
        if len(self._kept) < n_bytes:
            self._kept = np.empty(n_bytes, np.uint8)
        return self._kept[:n_bytes]


class _Kept:
    """Scales that were read last, for any number of threads, in no more than `KEPT_BYTES`."""

    def __init__(self, files: Source) -> None:
        self._files = files
        self._found = Cache[tuple[str, int], Bytes](KEPT_BYTES, lambda piece: piece.nbytes)

    def read(self, tensor: Located, start: int, length: int, unit: int) -> Bytes:
        """Read a range of a tensor's bytes, in pieces of whole units."""
        step = max(1, _PIECE_BYTES // unit) * unit
        first = start // step * step
        parts = [
            self._piece(tensor, at, min(step, tensor.info.n_bytes - at))
            for at in range(first, start + length, step)
        ]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return whole[start - first : start - first + length]

    def _piece(self, tensor: Located, at: int, length: int) -> Bytes:
        place = tensor.file, tensor.offset + at

        def read() -> Bytes:
            piece = np.empty(length, np.uint8)
            self._files.read_into(*place, piece.data)
            return piece

        return self._found.get(place, read)
