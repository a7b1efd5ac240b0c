"""How large the columns of matrices are, and what they make of a signal: matrices read once."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from tq3.codec import reference
from tq3.codec.backend import as_words
from tq3.codec.reference import Words
from tq3.format.checkpoint import Located
from tq3.format.files import Source
from tq3.parallel import in_parallel

Numbers = NDArray[np.float64]

# Weights that a worker reads at one time, and of these in float64 at one time. They decide in which
# order numbers are added, so they are the same for any number of workers.
_PIECE_WEIGHTS = 1 << 20
_CHUNK_WEIGHTS = 1 << 16


@dataclass(frozen=True, slots=True)
class Signal:
    """What channels carry, over tokens.  Two (stack, channels) float64; stack: experts, else 1"""

    mean: Numbers
    variance: Numbers

    @property
    def square(self) -> Numbers:
        """The mean square."""
        return self.mean**2 + self.variance

    def __add__(self, other: Signal) -> Signal:
        return Signal(self.mean + other.mean, self.variance + other.variance)

    def part(self, channels: slice) -> Signal:
        """Some of the channels."""
        return Signal(self.mean[:, channels], self.variance[:, channels])

    def times(self, factor: Numbers | float) -> Signal:
        """Each channel multiplied."""
        return Signal(self.mean * factor, self.variance * factor**2)


@dataclass(frozen=True, slots=True)
class MatrixInput:
    """A matrix or a stack of them, and what it multiplies, if that is to be known."""

    tensor: Located
    given: Signal | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(stack, rows, columns)"""
        *stack, rows, columns = self.tensor.info.shape
        return prod(stack), rows, columns


@dataclass(frozen=True, slots=True)
class ColumnStats:
    """Of a matrix, or of each of a stack.

    sums, squares: of the columns' weights, (stack, columns); sums only where nothing is given
    result: what it makes of `given`
    """

    sums: Numbers
    squares: Numbers
    result: Signal


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some rows of one matrix of the stack of matrix number `of`."""

    of: int
    matrix: MatrixInput
    layer: int
    rows: range


@dataclass(frozen=True, slots=True)
class _Sums:
    sums: Numbers
    squares: Numbers
    mean: Numbers
    variance: Numbers


def measure_columns(
    files: Source, matrices: Sequence[MatrixInput], workers: int
) -> Generator[tuple[str, int], None, list[ColumnStats]]:
    """Yield name and number of bytes of each piece that was read; return stats of each matrix."""
    found = [_nothing_yet(matrix.shape) for matrix in matrices]
    pieces = list(_pieces(matrices))
    early: dict[int, _Sums] = {}
    n_added = 0

    def make_work() -> Callable[[int], tuple[int, _Sums]]:
        return lambda number: (number, _measure_piece(files, pieces[number]))

    for number, sums in in_parallel(range(len(pieces)), make_work, workers, files.cancel):
        early[number] = sums
        while n_added in early:  # added in their order, whoever is first
            _add(found, pieces[n_added], early.pop(n_added))
            n_added += 1
        info = pieces[number].matrix.tensor.info
        size = info.n_bytes // info.n_elements
        yield info.name, len(pieces[number].rows) * info.shape[-1] * size
    return found


def read_vector(files: Source, tensor: Located) -> Numbers:
    """The values of a small tensor.  (1, n) float64"""
    values = reference.to_float32(read_words(files, tensor), tensor.info.dtype)
    return values.astype(np.float64).reshape(1, -1)


def read_words(files: Source, tensor: Located) -> Words:
    """The elements of a small tensor.  (n,) raw words"""
    raw = np.frombuffer(files.read(tensor.file, tensor.offset, tensor.info.n_bytes), np.uint8)
    return as_words(raw, tensor.info.dtype)


def _nothing_yet(shape: tuple[int, int, int]) -> ColumnStats:
    stack, rows, columns = shape
    by_column, by_row = np.zeros((2, stack, columns)), np.zeros((2, stack, rows))
    return ColumnStats(by_column[0], by_column[1], Signal(by_row[0], by_row[1]))


def _pieces(matrices: Sequence[MatrixInput]) -> Iterator[_Piece]:
    for of, matrix in enumerate(matrices):
        stack, rows, columns = matrix.shape
        step = max(1, _PIECE_WEIGHTS // columns)
        for layer in range(stack):
            for start in range(0, rows, step):
                yield _Piece(of, matrix, layer, range(start, min(start + step, rows)))


def _add(found: Sequence[ColumnStats], piece: _Piece, sums: _Sums) -> None:
    stats, layer = found[piece.of], piece.layer
    rows = slice(piece.rows.start, piece.rows.stop)
    stats.sums[layer] += sums.sums
    stats.squares[layer] += sums.squares
    stats.result.mean[layer, rows] = sums.mean
    stats.result.variance[layer, rows] = sums.variance


def _measure_piece(files: Source, piece: _Piece) -> _Sums:
    tensor, given = piece.matrix.tensor, piece.matrix.given
    _, n_rows, columns = piece.matrix.shape
    size = tensor.info.n_bytes // tensor.info.n_elements
    raw = np.empty(len(piece.rows) * columns * size, np.uint8)
    first = piece.layer * n_rows + piece.rows.start
    files.read_into(tensor.file, tensor.offset + first * columns * size, raw.data)
    words = as_words(raw, tensor.info.dtype).reshape(-1, columns)
    sums, squares = np.zeros((2, columns))
    mean, variance = np.zeros((2, len(words)))
    step = max(1, _CHUNK_WEIGHTS // columns)
    # What a NaN of the source gives is no number, and is told by whoever encodes it.
    with np.errstate(all="ignore"):
        for start in range(0, len(words), step):
            rows = slice(start, start + step)
            weights = reference.to_float32(words[rows], tensor.info.dtype).astype(np.float64)
            squared = weights**2
            squares += squared.sum(0)
            if not given:
                sums += weights.sum(0)
            else:  # not by BLAS, which adds in another order with another number of threads
                at = piece.layer if len(given.mean) > 1 else 0
                mean[rows] = np.einsum("ij,j->i", weights, given.mean[at])
                variance[rows] = np.einsum("ij,j->i", squared, given.variance[at])
    return _Sums(sums, squares, mean, variance)
