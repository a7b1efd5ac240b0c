"""Compares one block of a checkpoint with its source: what one worker does in one go."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tq3.codec.backend import Backend, as_words
from tq3.codec.expected import group_error_limit
from tq3.codec.norms import read_norms
from tq3.codec.reference import Floats, Words
from tq3.errors import BadInput, StorageError
from tq3.format.files import Source
from tq3.format.layout import GroupLayout
from tq3.format.recipe import CALIBRATED
from tq3.plan.plan import Block
from tq3.verification.checks import Fault, unreadable
from tq3.verification.kept import NOWHERE, Kept, compare_kept

# A threshold met exactly may go either way in other arithmetic, and a norm may round differently.
HAIR = 0.01
# Two arrays of float32 of this size stay in a core's cache.
_CHUNK_WEIGHTS = 1 << 17
# Sums of float32 squares are good between these.
_SMALLEST, _LARGEST = 1e-30, 1e36

Bytes = NDArray[np.uint8]
Energies = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Coded:
    """Groups of a compressed tensor beside the source's.

    error, energy, decoded: sums of squares, of the differences, the source, the checkpoint
    energy_squared: sum of the squared energies of the groups
    recoded: squared error of encoding again, of those groups that were
    n_worse: groups whose error is larger than that
    worst_error: the largest relative error of a group
    """

    error: float = 0.0
    energy: float = 0.0
    decoded: float = 0.0
    energy_squared: float = 0.0
    recoded: float = 0.0
    n_worse: int = 0
    first_worse: int = NOWHERE
    worst_error: float = -1.0
    worst_group: int = NOWHERE

    def __add__(self, other: Coded) -> Coded:
        worst = max(self, other, key=_badness)
        return Coded(
            error=self.error + other.error,
            energy=self.energy + other.energy,
            decoded=self.decoded + other.decoded,
            energy_squared=self.energy_squared + other.energy_squared,
            recoded=self.recoded + other.recoded,
            n_worse=self.n_worse + other.n_worse,
            first_worse=min(self.first_worse, other.first_worse),
            worst_error=worst.worst_error,
            worst_group=worst.worst_group,
        )


@dataclass(frozen=True, slots=True)
class Compared:
    """One block, and what it shows: nothing where the checkpoint's bytes can't be read."""

    block: Block
    coded: Coded | None = None
    kept: Kept | None = None
    fault: Fault | None = None


class Comparer:
    """One thread's buffers.

    again: the second look, at suspects. Every group is encoded again, not just odd ones, and what
        was kept is compared as what became F16 first
    """

    def __init__(self, files: Source, originals: Source, backend: Backend, *, again: bool) -> None:
        self._files = files
        self._originals = originals
        self._backend = backend
        self._again = again
        self._rooms: dict[str, Bytes] = {}

    def compare(self, block: Block) -> Compared:
        """Read the block on both sides and set one against the other."""
        *stored, original = block.task.sources
        try:
            parts = [self._read(self._files, block, i) for i in range(len(stored))]
        except (BadInput, StorageError) as error:
            return Compared(block, fault=unreadable(error, stored[0].file))
        words = self._read(self._originals, block, len(stored))
        # What a damaged norm or a NaN of the source gives is no number, and is told as a fault.
        with np.errstate(all="ignore"):
            if block.task.layout:
                norms = read_norms(parts[1], block.task.layout.norm_dtype)
                coded = self._coded(block, block.task.layout, parts[0], norms, words)
                return Compared(block, coded)
            kept = compare_kept(block, parts[0], words, self._backend, by_f16=self._again)
            return Compared(block, kept=kept)

    def _coded(
        self, block: Block, layout: GroupLayout, packed: Bytes, norms: Floats, raw: Bytes
    ) -> Coded:
        dtype = block.task.sources[-1].info.dtype
        words = as_words(raw, dtype).reshape(block.count, layout.unit_cols)
        per_unit = len(norms) // block.count
        packed = packed.reshape(-1, layout.group_bytes)
        step = max(1, _CHUNK_WEIGHTS // layout.unit_cols)
        total = Coded()
        for start in range(0, block.count, step):
            units = words[start : start + step]
            groups = slice(start * per_unit, (start + len(units)) * per_unit)
            weights = self._weights(units, dtype, per_unit * layout.group)
            weights = weights.reshape(-1, layout.group)
            first = block.first * per_unit + groups.start
            numbers = np.arange(first, first + len(weights))
            decoded = self._decode(packed[groups], norms[groups], layout, numbers)
            total += self._measure(weights, decoded, layout, numbers, block.task.scale)
        return total

    def _weights(self, words: Words, dtype: str, cols: int) -> Floats:
        """Exact values of the words, each row padded with zeros to `cols`."""
        values = self._room("values", words.shape)
        self._backend.cast(words, dtype, values.view(np.uint32), "F32")
        if values.shape[1] == cols:
            return values
        padded = self._room("padded", (len(values), cols))
        padded[:, : values.shape[1]] = values
        padded[:, values.shape[1] :] = 0
        return padded

    def _decode(
        self, packed: Bytes, norms: Floats, layout: GroupLayout, numbers: NDArray[np.int64]
    ) -> Floats:
        """Weights of these groups; what only pads a row is zero."""
        decoded = self._room("decoded", (len(packed), layout.group))
        column = np.ascontiguousarray(norms).reshape(-1, 1)
        words = decoded.view(np.uint32)
        self._backend.decode(packed, column, layout.bits, layout.group, words, "F32", layout.code)
        if layout.is_padded:
            n = layout.groups_per_row
            decoded[numbers % n == n - 1, layout.cols % layout.group :] = 0
        return decoded

    def _measure(
        self,
        weights: Floats,
        decoded: Floats,
        layout: GroupLayout,
        numbers: NDArray[np.int64],
        scale: str,
    ) -> Coded:
        energy, error, total = self._energies(weights, decoded)
        limit = -1.0
        if not self._again:
            calibrated, code = scale == CALIBRATED, layout.code
            limit = group_error_limit(layout.bits, layout.group, code, calibrated=calibrated)
        odd = np.flatnonzero(~(error <= limit * energy))
        recoded = self._recoded_error(weights[odd], layout, numbers[odd], scale)
        worse = odd[~(error[odd] <= recoded * (1 + HAIR))]
        relative = np.where(error == 0, 0, error / energy)
        worst = int(relative.argmax())
        return Coded(
            error=float(error.sum(dtype=np.float64)),
            energy=float(energy.sum(dtype=np.float64)),
            decoded=total,
            energy_squared=float(np.square(energy, dtype=np.float64).sum()),
            recoded=float(recoded.sum(dtype=np.float64)),
            n_worse=len(worse),
            first_worse=int(numbers[worse[0]]) if len(worse) else NOWHERE,
            worst_error=float(relative[worst]),
            worst_group=int(numbers[worst]),
        )

    def _energies(self, weights: Floats, decoded: Floats) -> tuple[Energies, Energies, float]:
        """Each group's sum of squares, of the weights and of the error; that of all decoded.

        Overwrites `decoded`: a third array would not stay in the cache.
        """
        energy: Energies = np.einsum("ij,ij->i", weights, weights)
        if energy.min() > _SMALLEST and energy.max() < _LARGEST:
            flat = decoded.reshape(-1)
            total = float(np.dot(flat, flat))
            difference = np.subtract(weights, decoded, out=decoded)
            return energy, np.einsum("ij,ij->i", difference, difference), total
        exact, stored = weights.astype(np.float64), decoded.astype(np.float64)
        return (exact**2).sum(1), ((exact - stored) ** 2).sum(1), float((stored**2).sum())

    def _recoded_error(
        self, weights: Floats, layout: GroupLayout, numbers: NDArray[np.int64], scale: str
    ) -> Energies:
        """Squared error of each group as the format codes it, by this scale: nothing to go by for
        calibrated codes, whose moments are not here.
        """
        if not len(weights) or scale == CALIBRATED:
            return np.zeros(len(weights))
        packed = np.empty((len(weights), layout.group_bytes), np.uint8)
        norms = np.empty((len(weights), 1), np.float32)
        words = weights.view(np.uint32)
        how = scale, layout.code
        self._backend.encode(words, "F32", layout.bits, layout.group, packed, norms, *how)
        decoded = self._decode(packed, norms, layout, numbers)
        return self._energies(weights, decoded)[1]

    def _read(self, files: Source, block: Block, index: int) -> Bytes:
        source = block.task.sources[index]
        start, length = block.span(source.info.n_bytes)
        buffer = self._bytes(f"source {index}", length)
        files.read_into(source.file, source.offset + start, buffer.data)
        return buffer

    def _room(self, name: str, shape: tuple[int, ...]) -> Floats:
        """A float32 array of this thread, to be filled."""
        room = self._bytes(name, 4 * math.prod(shape))
        return room.view(np.float32).reshape(shape)

    def _bytes(self, name: str, length: int) -> Bytes:
        if len(self._rooms.get(name, ())) < length:
            self._rooms.pop(name, None)  # let go of the old one first
            self._rooms[name] = np.empty(length, np.uint8)
        return self._rooms[name][:length]


def _badness(coded: Coded) -> tuple[float, int]:
    """Sorts by the worst group: an error that is no number last, of equal ones the first group."""
    error = coded.worst_error
    return math.inf if math.isnan(error) else error, -coded.worst_group
