"""A checkpoint whose columns are equalized, read as if it lay on the disk.

Headers and sizes are those of the source; weights are scaled as they are read and rounded to their
own type. So whatever reads a source reads this one: to compress it, to compare with it.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tq3.codec import reference
from tq3.codec.backend import Backend, as_words, get_backend
from tq3.codec.reference import Words
from tq3.equalization.scalings import FIX, Scaling, Scalings, plan_scalings
from tq3.errors import BadInput, UsageError
from tq3.format.checkpoint import Checkpoint, Located
from tq3.format.equalization import LARGEST, STEPS, Factors
from tq3.format.files import ForwardingSource, Source

# What is said where a source is compared.
SCALED = (
    "columns are equalized: before it was compared, the source was scaled by the factors that the "
    "checkpoint records"
)
# Weights scaled at one time: their float32 values stay in a core's cache.
_CHUNK_WEIGHTS = 1 << 17
_SCALERS = 32
# What a gain may be off, relatively: BF16's rounding of a number that is not stored less one.
_GAIN_ERROR = 2**-8

Floats = NDArray[np.float32]


def equalized(files: Source, checkpoint: Checkpoint, factors: Factors) -> Source:
    """`files` with every tensor scaled by the recorded factors; without any `files` themselves.

    checkpoint: what `files` hold. Raises BadInput where the factors are not for it.
    """
    if not factors:
        return files
    try:
        scalings = plan_scalings(checkpoint)
    except (UsageError, BadInput) as error:
        before = "not the source whose columns were equalized"
        raise BadInput.retold(error, before, file=error.file, fix=FIX) from None
    scalings.check(factors)
    return ScaledSource(files, checkpoint, scalings, factors)


class ScaledSource(ForwardingSource):
    """A source whose weights are scaled as they are read; all else is answered as it answers."""

    def __init__(
        self, files: Source, checkpoint: Checkpoint, scalings: Scalings, factors: Factors
    ) -> None:
        super().__init__(files)
        self._codec = get_backend()
        self._starts: dict[str, list[int]] = {}
        self._tensors: dict[str, list[Located]] = {}
        for tensor in sorted(checkpoint.tensors, key=lambda each: each.offset):
            if not tensor.info.n_elements:
                continue  # it begins where the next one does, and would be taken for it
            self._starts.setdefault(tensor.file, []).append(tensor.offset)
            self._tensors.setdefault(tensor.file, []).append(tensor)
        self._scalings = scalings.only(factors)
        # A few tensors are read at one time. All factors as floats could take a gigabyte.
        self._scaler = lru_cache(_SCALERS)(lambda name: _Scaler(self._scalings[name], factors))

    def column_factors(self, name: str) -> Floats | None:
        """What the columns of a tensor are multiplied by.  (stack or 1, columns) or None"""
        return self._scaler(name).columns if name in self._scalings else None

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Read bytes as `Files.read` does, scaled where they are weights."""
        data = bytearray(self._files.read(name, offset, length))
        self._scale(name, offset, memoryview(data))
        return bytes(data)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Read whole elements of one tensor as `Source.read_into` does, scaled."""
        self._files.read_into(name, offset, buffer)
        self._scale(name, offset, buffer)

    def _scale(self, file: str, offset: int, buffer: memoryview) -> None:
        at = bisect_right(self._starts.get(file, []), offset) - 1
        if at < 0 or not len(buffer):
            return  # a header, or no weights
        tensor = self._tensors[file][at]
        if tensor.info.name not in self._scalings:
            return
        size = tensor.info.n_bytes // tensor.info.n_elements
        first, odd = divmod(offset - tensor.offset, size)
        raw = np.frombuffer(buffer, np.uint8)
        assert not odd and not len(raw) % size, "whole elements are read"
        assert offset + len(raw) <= tensor.offset + tensor.info.n_bytes, "of one tensor"
        dtype = tensor.info.dtype
        scaler = self._scaler(tensor.info.name)
        scaler.scale(as_words(raw, dtype), first, dtype, self._codec)


class _Scaler:
    """Scales any stretch of one tensor.

    columns: (stack, columns) or None; rows: (stack * rows,) or None, both float32
    """

    def __init__(self, scaling: Scaling, factors: Factors) -> None:
        stack, rows, columns = scaling.shape
        self._shape = scaling.shape
        self._offset = scaling.offset
        self.columns: Floats | None = None
        self._rows: Floats | None = None
        if link := scaling.columns:
            runs = factors_of(factors[link.name]).reshape(-1, 1, scaling.run)
            repeated = np.broadcast_to(runs, (len(runs), scaling.repeats, scaling.run))
            self.columns = np.broadcast_to(repeated.reshape(link.stack, columns), (stack, columns))
        if link := scaling.rows:
            n_runs = scaling.row_runs
            divided = np.ones((stack, n_runs, rows // n_runs), np.float32)
            inverses = factors_of(factors[link.name], sign=-1)
            divided[:, :, -(link.size // n_runs) :] = inverses.reshape(stack, n_runs, -1)
            self._rows = divided.reshape(-1)

    def scale(self, words: Words, first: int, dtype: str, codec: Backend) -> None:
        """Overwrite `words`, the elements from number `first` on, with scaled ones."""
        columns = self._shape[2]
        step = max(1, _CHUNK_WEIGHTS // columns) * columns
        start = 0
        while start < len(words):  # up to the end of a row, so that later chunks begin with one
            stop = min(len(words), start + step - (first + start) % columns)
            part = words[start:stop]
            _rescale(part, dtype, self._stretch(first + start, len(part)), self._offset, codec)
            start = stop

    def _stretch(self, first: int, count: int) -> Floats:
        """The factors of `count` elements.  (count,) float32"""
        stack, rows, columns = self._shape
        top, left = divmod(first, columns)
        numbers = np.arange(top, -(-(first + count) // columns))
        factors: Floats = np.ones((1, 1), np.float32)
        if self.columns is not None:
            factors = self.columns[numbers // rows] if stack > 1 else self.columns
        if self._rows is not None:
            factors = factors * self._rows[numbers, None]
        whole = np.broadcast_to(factors, (len(numbers), columns))
        return whole.reshape(-1)[left : left + count]


def storable(wanted: bytes, stored: Words, dtype: str, offset: float) -> bytes:
    """The exponent nearest to the wanted one that divides each gain of a norm faithfully.

    stored: the gains less `offset`, raw words of `dtype`. What is next to -1 has coarse steps
    there, by which a small gain would lose percents, or all of itself, while its readers' columns
    were multiplied in full. It must fit F16, too, in which most checkpoints keep norms.
    """
    codec = get_backend()
    exponents = np.arange(-LARGEST, LARGEST + 1, dtype=np.int8)
    inverses = factors_of(exponents.tobytes(), sign=-1)[:, None]
    shape = len(exponents), len(stored)
    words: Words = stored[None].repeat(shape[0], axis=0)
    halves = np.empty(shape, np.uint16)
    _rescale(words.reshape(-1), dtype, inverses.repeat(shape[1]), offset, codec)
    codec.cast(words, dtype, halves, "F16")
    with np.errstate(invalid="ignore"):
        exact = (reference.to_float32(stored, dtype).astype(np.float64) + offset) * inverses
        lost = np.abs(halves.view(np.float16) + np.float64(offset) - exact)
        fits = lost <= _GAIN_ERROR * np.abs(exact)
    fits[exponents == 0] = True  # as the source has it
    steps = exponents[:, None].astype(np.int64) - np.frombuffer(wanted, np.int8)
    nearest = np.where(fits, np.abs(steps), 3 * LARGEST).argmin(0)
    return bytes(exponents[nearest])


def _rescale(words: Words, dtype: str, factors: Floats, offset: float, codec: Backend) -> None:
    """Multiply elements plus `offset`, and store them again without it.  words, factors: (n,)"""
    values = np.empty((1, len(words)), np.float32)
    codec.cast(words.reshape(1, -1), dtype, values.view(np.uint32), "F32")
    with np.errstate(over="ignore", invalid="ignore"):
        if offset:
            values += np.float32(offset)
        values *= factors
        if offset:
            values -= np.float32(offset)
    codec.cast(values.view(np.uint32), "F32", words.reshape(1, -1), dtype)


def factors_of(exponents: bytes, sign: int = 1) -> Floats:
    """2 ** (exponent / STEPS), or its inverse, the same on every machine.  (n,) float32"""
    steps = sign * np.frombuffer(exponents, np.int8).astype(np.int64)
    mantissas = np.array([2 ** (i / STEPS) for i in range(STEPS)], np.float32)
    return np.ldexp(mantissas[steps % STEPS], steps // STEPS)
