"""What one worker does with one block: read bytes, one codec call, write bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tq3.codec import reference
from tq3.codec.backend import WORD_TYPE, Backend
from tq3.codec.reference import Floats, Words
from tq3.format.layout import GroupLayout
from tq3.pipelines.findings import Finding, all_finite, nonfinite, overflow
from tq3.plan.plan import Action, Block, Task
from tq3.storage.local import LocalFiles
from tq3.storage.writer import ShardFile

Bytes = NDArray[np.uint8]

SAMPLED_GROUPS = 512
_CACHE_LINE = 64


@dataclass(frozen=True, slots=True)
class Done:
    """The outcome of one block; `error`: squared error and squared norm of a sample, or None."""

    block: Block
    finding: Finding | None = None
    error: tuple[float, float] | None = None

    @property
    def bytes_in(self) -> int:
        task = self.block.task
        return task.bytes_in // max(task.units, 1) * self.block.count

    @property
    def weights(self) -> int:
        layout = self.block.task.layout
        return self.block.count * layout.unit_cols if layout else 0


class Worker:
    """One thread's buffers and the four ways to carry out a block."""

    def __init__(self, files: LocalFiles, backend: Backend) -> None:
        self._files = files
        self._backend = backend
        self._room = np.empty(0, np.uint8)
        self._used = 0
        self._actions: dict[Action, Callable[[Block, ShardFile], Done]] = {
            Action.ENCODE: self._encode,
            Action.DECODE: self._decode,
            Action.CAST: self._cast,
            Action.COPY: self._copy,
        }

    def carry_out(self, block: Block, shard: ShardFile) -> Done:
        """Read the block's bytes, transform them, write them to the shard."""
        self._make_room(block)
        return self._actions[block.task.action](block, shard)

    def _encode(self, block: Block, shard: ShardFile) -> Done:
        layout = _layout(block.task)
        dtype = block.task.sources[0].info.dtype
        words = _words(self._read(block, 0), dtype).reshape(block.count, layout.unit_cols)
        packed = self._target(block, 0).reshape(-1, layout.group_bytes)
        norms = self._target(block, 1).view(np.float32).reshape(block.count, -1)
        self._backend.encode(words, dtype, layout.bits, layout.group, packed, norms)
        if not np.isfinite(norms).all():
            return Done(block, nonfinite(block, words, dtype))
        self._write(block, shard, 0, packed)
        self._write(block, shard, 1, norms)
        return Done(block, error=self._sampled_error(block, words, packed, norms))

    def _decode(self, block: Block, shard: ShardFile) -> Done:
        layout = _layout(block.task)
        dtype = block.task.targets[0].dtype
        packed = self._read(block, 0).reshape(-1, layout.group_bytes)
        norms = self._read(block, 1).view(np.float32).reshape(block.count, -1)
        words = _words(self._target(block, 0), dtype).reshape(block.count, layout.unit_cols)
        self._backend.decode(packed, norms, layout.bits, layout.group, words, dtype)
        if np.isfinite(norms).all() and not all_finite(words, dtype):
            exact = np.empty(words.shape, np.uint32)
            self._backend.decode(packed, norms, layout.bits, layout.group, exact, "F32")
            return Done(block, overflow(block, exact, "F32", dtype))
        self._write(block, shard, 0, words)
        return Done(block)

    def _cast(self, block: Block, shard: ShardFile) -> Done:
        dtype, target = block.task.sources[0].info.dtype, block.task.targets[0].dtype
        words = _words(self._read(block, 0), dtype)
        if block.task.must_be_finite and not all_finite(words, dtype):
            return Done(block, nonfinite(block, words, dtype))
        out = _words(self._target(block, 0), target)
        if self._backend.cast(words, dtype, out, target):
            return Done(block, overflow(block, words, dtype, target))
        self._write(block, shard, 0, out)
        return Done(block)

    def _copy(self, block: Block, shard: ShardFile) -> Done:
        raw = self._read(block, 0)
        dtype = block.task.sources[0].info.dtype
        if block.task.must_be_finite and dtype in WORD_TYPE:
            words = _words(raw, dtype)
            if not all_finite(words, dtype):
                return Done(block, nonfinite(block, words, dtype))
        self._write(block, shard, 0, raw)
        return Done(block)

    def _sampled_error(
        self, block: Block, words: Words, packed: Bytes, norms: Floats
    ) -> tuple[float, float] | None:
        """Squared error and squared norm of the tensor's first groups: in its first block only."""
        if block.first:
            return None
        layout = _layout(block.task)
        count, n = norms.shape
        rows, groups = max(1, min(count, SAMPLED_GROUPS // n)), min(n, SAMPLED_GROUPS)
        some: Words = words[:rows, : groups * layout.group].copy()
        codes = packed.reshape(count, n, -1)[:rows, :groups].reshape(rows * groups, -1)
        gains = norms[:rows, :groups].copy()
        decoded = np.empty(some.shape, np.uint32)
        self._backend.decode(codes, gains, layout.bits, layout.group, decoded, "F32")
        dtype = block.task.sources[0].info.dtype
        exact = reference.to_float32(some, dtype).astype(np.float64)
        error = exact - decoded.view(np.float32)
        return float((error**2).sum()), float((exact**2).sum())

    def _read(self, block: Block, index: int) -> Bytes:
        source = block.task.sources[index]
        start, length = _span(block, source.info.n_bytes)
        buffer = self._take(length)
        self._files.read_into(source.file, source.offset + start, buffer.data)
        return buffer

    def _target(self, block: Block, index: int) -> Bytes:
        _, length = _span(block, block.task.targets[index].n_bytes)
        return self._take(length)

    def _write(self, block: Block, shard: ShardFile, index: int, data: NDArray[Any]) -> None:
        target = block.task.targets[index]
        start, _ = _span(block, target.n_bytes)
        shard.write(shard.offsets[target.name] + start, data.reshape(-1).view(np.uint8).data)

    def _make_room(self, block: Block) -> None:
        """One piece of memory for all that the block reads and writes, kept for the next block."""
        infos = (*(source.info for source in block.task.sources), *block.task.targets)
        needed = sum(_aligned(_span(block, info.n_bytes)[1]) for info in infos)
        if len(self._room) < needed:
            self._room = np.empty(0, np.uint8)  # let go of the old one first
            self._room = np.empty(needed, np.uint8)
        self._used = 0

    def _take(self, length: int) -> Bytes:
        taken = self._room[self._used : self._used + length]
        self._used += _aligned(length)
        return taken


def _span(block: Block, n_bytes: int) -> tuple[int, int]:
    """Where the block lies in a tensor of `n_bytes`: first byte, number of bytes."""
    unit = n_bytes // block.task.units
    return block.first * unit, block.count * unit


def _aligned(length: int) -> int:
    """Up to the next cache line, so that every part starts on one."""
    return -(-length // _CACHE_LINE) * _CACHE_LINE


def _layout(task: Task) -> GroupLayout:
    assert task.layout is not None, "only compressed tensors are encoded or decoded"
    return task.layout


def _words(raw: Bytes, dtype: str) -> Words:
    words: Words = raw.view(WORD_TYPE[dtype])
    return words
