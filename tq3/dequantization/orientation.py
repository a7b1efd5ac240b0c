"""Stacks of experts in the other order: with outputs as rows where the file has inputs, or back.

A view of a stack is a virtual tensor with its last two dimensions exchanged, at a place behind all
places of the source that it is read from.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tq3.cache import Cache
from tq3.format.checkpoint import FIRST_OF_HOST, FIRST_TURNED, Checkpoint, Located
from tq3.format.files import ForwardingSource, Source
from tq3.format.header import DTYPE_BITS
from tq3.format.layout import GroupLayout
from tq3.plan.stacks import with_inputs_as_rows

Words = NDArray[Any]

_WORDS = {2: np.uint16, 4: np.uint32}
# Single matrices that are kept: two at least, for workers that are in different experts, and more
# of them as far as there is room.
_LEAST_KEPT, _KEPT_BYTES = 2, 64 * 2**20
# Columns that become rows at one time: their lines stay in a core's cache.
_STRIP = 16


def by_outputs(
    files: Source, checkpoint: Checkpoint, names: Collection[str]
) -> tuple[Source, Checkpoint]:
    """A source and its checkpoint in which some stacks are turned to [experts, outputs, inputs].

    files, checkpoint: a source that has, as hosts do, these stacks as [experts, inputs, outputs]
    names: of the stacks; where the checkpoint has none of them, it and its source are returned
    """
    stored = [tensor for tensor in checkpoint.tensors if tensor.info.name in names]
    if not stored:
        return files, checkpoint
    turned = {tensor.info.name: tensor.turned(FIRST_TURNED) for tensor in stored}
    tensors = tuple(turned.get(tensor.info.name, tensor) for tensor in checkpoint.tensors)
    return TurnedSource(files, stored, FIRST_TURNED), replace(checkpoint, tensors=tensors)


def turned_like(
    layouts: Iterable[GroupLayout], files: Source, checkpoint: Checkpoint
) -> tuple[Source, Checkpoint]:
    """A source in the order in which a checkpoint of these layouts was made from it."""
    is_turned = any(layout.transposed for layout in layouts)
    return by_outputs(files, checkpoint, set(with_inputs_as_rows(checkpoint)) if is_turned else ())


def with_host_views(files: Source, checkpoint: Checkpoint) -> Source:
    """A source from which `Located.of_host` of each tensor can be read."""
    transposed = [tensor for tensor in checkpoint.tensors if tensor.transposed]
    return TurnedSource(files, transposed, FIRST_OF_HOST) if transposed else files


def held_bytes(tensors: Iterable[Located]) -> int:
    """Bytes of matrices that are kept, at most, to read the views among these tensors."""
    views = (tensor for tensor in tensors if tensor.offset >= FIRST_TURNED)
    largest = max((prod(view.info.shape[1:]) * _width(view) for view in views), default=0)
    return max(_LEAST_KEPT * largest, _KEPT_BYTES) if largest else 0


class TurnedSource(ForwardingSource):
    """A source that has views of some of its stacks, too: `tensor.turned(first)` of each.

    A whole matrix of one expert is read at a time, and kept while others may ask for it.
    """

    def __init__(self, files: Source, tensors: Iterable[Located], first: int) -> None:
        super().__init__(files)
        self._first = first
        self._starts: dict[str, list[int]] = {}
        self._tensors: dict[str, list[Located]] = {}
        for tensor in sorted(tensors, key=lambda each: each.offset):
            if tensor.info.n_elements:
                self._starts.setdefault(tensor.file, []).append(tensor.offset)
                self._tensors.setdefault(tensor.file, []).append(tensor)
        self._kept = Cache[tuple[str, int], Words](
            _KEPT_BYTES, lambda matrix: matrix.nbytes, least=_LEAST_KEPT
        )

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Read bytes as `Files.read` does; those of a view are whole elements."""
        if offset < self._first:
            return self._files.read(name, offset, length)
        data = bytearray(length)
        self.read_into(name, offset, memoryview(data))
        return bytes(data)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Read as `Source.read_into` does, of a view whole elements."""
        if offset < self._first:
            self._files.read_into(name, offset, buffer)
        elif len(buffer):
            place = offset - self._first
            tensor = self._tensors[name][bisect_right(self._starts[name], place) - 1]
            width = _width(tensor)
            first, odd = divmod(place - tensor.offset, width)
            words = np.frombuffer(buffer, _WORDS[width])
            assert not odd and first + len(words) <= tensor.info.n_elements, "of one tensor"
            self._read_view(tensor, first, words)

    def _read_view(self, tensor: Located, first: int, out: Words) -> None:
        """Fill `out` with elements of the view, from number `first` on.  (n,)"""
        _, columns, rows = tensor.info.shape
        top, left = divmod(first, columns)
        bottom = -(-(first + len(out)) // columns)
        n = (bottom - top) * columns
        whole = out if len(out) == n else np.empty(n, out.dtype)
        lines, at = whole.reshape(-1, columns), top
        while at < bottom:
            expert, row = divmod(at, rows)
            count = min(rows - row, bottom - at)
            matrix = self._matrix(tensor, expert)
            _turn(matrix[:, row : row + count], lines[at - top : at - top + count])
            at += count
        if whole is not out:
            out[:] = whole[left : left + len(out)]

    def _matrix(self, tensor: Located, expert: int) -> Words:
        """The matrix of one expert as the source below has it.  (rows, columns)"""
        _, rows, columns = tensor.info.shape
        n_bytes = rows * columns * _width(tensor)
        place = tensor.file, tensor.offset + expert * n_bytes

        def read() -> Words:
            matrix: Words = np.empty((rows, columns), _WORDS[_width(tensor)])
            self._files.read_into(*place, matrix.reshape(-1).view(np.uint8).data)
            return matrix

        return self._kept.get(place, read)


def _turn(columns: Words, rows: Words) -> None:
    """Copy what are columns into rows.  (n, m) -> (m, n)"""
    for start in range(0, len(columns), _STRIP):
        rows[:, start : start + _STRIP] = columns[start : start + _STRIP].T


def _width(tensor: Located) -> int:
    return DTYPE_BITS[tensor.info.dtype] // 8
