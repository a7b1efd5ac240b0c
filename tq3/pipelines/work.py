"""What one worker does with one block: read bytes, one codec call, write bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import thread_time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tq3.codec import reference
from tq3.codec.backend import Backend, as_words
from tq3.codec.halves import first_lost
from tq3.codec.norms import fits_float16, read_norms, stored_norms
from tq3.codec.reference import WORD_TYPE, Floats, Words
from tq3.format.files import Source
from tq3.format.layout import GroupLayout
from tq3.format.manifest import digest
from tq3.format.recipe import CALIBRATED
from tq3.moments.feedbacks import Feedbacks
from tq3.pipelines.findings import (
    Finding,
    all_finite,
    bad_norm,
    is_norm,
    lossy,
    nonfinite,
    overflow,
    unfit_norm,
)
from tq3.plan.plan import Action, Block, Task
from tq3.storage.journal import DoneBlock
from tq3.storage.shard_file import ShardFile

Bytes = NDArray[np.uint8]

SAMPLED_GROUPS = 512
SEEN_BYTES = 2**16
_CACHE_LINE = 64
# Rows that become columns at one time.
_TURNED_ROWS = 64


@dataclass(frozen=True, slots=True)
class Done:
    """The outcome of one block: what was written, or the finding because of which nothing was.

    cpu_seconds: of everything but the reading
    """

    block: Block
    finding: Finding | None = None
    written: DoneBlock | None = None
    cpu_seconds: float = 0.0


class Worker:
    """One thread's buffers and the four ways to carry out a block."""

    def __init__(self, files: Source, backend: Backend, feedbacks: Feedbacks | None = None) -> None:
        self._files = files
        self._backend = backend
        self._feedbacks = feedbacks
        self._room = np.empty(0, np.uint8)
        self._used = 0
        self._reading_seconds = 0.0

    def carry_out(self, block: Block, shard: ShardFile) -> Done:
        """Read the block's bytes, transform them, write them to the shard."""
        self._make_room(block)
        started, self._reading_seconds = thread_time(), 0.0
        done = _ACTIONS[block.task.action](self, block, shard)
        if done.written:
            shard.finish(done.written)
        return replace(done, cpu_seconds=thread_time() - started - self._reading_seconds)

    def _encode(self, block: Block, shard: ShardFile) -> Done:
        layout = _layout(block.task)
        dtype = block.task.sources[0].info.dtype
        words = as_words(self._read(block, 0), dtype).reshape(block.count, -1)
        packed = self._target(block, 0).reshape(-1, layout.group_bytes)
        # Not from the room, which holds what is read and written: a hundredth of a block.
        norms = np.empty((block.count, len(packed) // block.count), np.float32)
        if block.task.scale == CALIBRATED:
            self._encode_calibrated(block, words, packed, norms)
        else:
            how = block.task.scale, layout.code
            self._backend.encode(words, dtype, layout.bits, layout.group, packed, norms, *how)
        if not np.isfinite(norms).all():
            return Done(block, nonfinite(block, words, dtype))
        if layout.norm_dtype == "F16" and not fits_float16(norms).all():
            return Done(block, unfit_norm(block, norms))
        stored = stored_norms(norms, layout.norm_dtype)
        error = self._sampled_error(block, words, packed, read_norms(stored, layout.norm_dtype))
        return self._write(block, shard, words, packed, stored, error=error)

    def _encode_calibrated(self, block: Block, words: Words, packed: Bytes, norms: Floats) -> None:
        """Whole rows, block by block of columns, of one matrix of a stack after the other."""
        assert self._feedbacks, "a plan with calibrated codes has moments"
        layout, name = _layout(block.task), block.task.name
        n, matrix_rows = layout.groups_per_row, layout.shape[-2]
        width = self._feedbacks.block_columns(name)
        dtype, shape = block.task.sources[0].info.dtype, (layout.bits, layout.group)
        starts = range(0, layout.cols, width)
        # Workers that begin together with one matrix begin with other blocks of it.
        turn = block.first // block.count % len(starts)
        at = 0
        while at < block.count:
            matrix, row = divmod(block.first + at, matrix_rows)
            stop = min(block.count, at + matrix_rows - row)
            rows, groups = slice(at, stop), slice(at * n, stop * n)
            arrays = words[rows], dtype, *shape, packed[groups], norms[rows]
            for number in (*range(turn, len(starts)), *range(turn)):
                feedback = self._feedbacks.get(name, matrix, number, layout.cols, layout.group)
                first = starts[number] // layout.group
                self._backend.encode_calibrated(*arrays, first, feedback, layout.norm_dtype)
            at = stop

    def _decode(self, block: Block, shard: ShardFile) -> Done:
        layout = _layout(block.task)
        dtype = block.task.targets[0].dtype
        packed = self._read(block, 0).reshape(-1, layout.group_bytes)
        norms = read_norms(self._read(block, 1), layout.norm_dtype).reshape(block.count, -1)
        if not is_norm(norms).all():
            return Done(block, bad_norm(block, norms))
        words = as_words(self._target(block, 0), dtype)
        if layout.transposed:
            norms = norms.reshape(-1, layout.groups_per_row)
            self._decode_turned(layout, packed, norms, words, dtype)
        else:
            rows = words.reshape(block.count, layout.unit_cols)
            self._backend.decode(packed, norms, layout.bits, layout.group, rows, dtype, layout.code)
        if not all_finite(words, dtype):
            exact = np.empty((len(norms), words.size // len(norms)), np.uint32)
            self._backend.decode(
                packed, norms, layout.bits, layout.group, exact, "F32", layout.code
            )
            return Done(block, overflow(block, exact, "F32", dtype))
        return self._write(block, shard, packed, words)

    def _decode_turned(
        self, layout: GroupLayout, packed: Bytes, norms: Floats, words: Words, dtype: str
    ) -> None:
        """Decode whole matrices into what hosts have, their rows as columns."""
        turned = words.reshape(-1, *layout.host_shape[1:])
        n, step = layout.groups_per_row, _TURNED_ROWS
        for expert, matrix in enumerate(turned):
            for first in range(0, layout.shape[1], step):
                start = expert * layout.shape[1] + first
                stop = min(start + step, (expert + 1) * layout.shape[1])
                rows = np.empty((stop - start, layout.cols), words.dtype)
                codes = packed[start * n : stop * n]
                these = norms[start:stop]
                self._backend.decode(
                    codes, these, layout.bits, layout.group, rows, dtype, layout.code
                )
                matrix[:, first : first + step] = rows.T

    def _cast(self, block: Block, shard: ShardFile) -> Done:
        dtype, target = block.task.sources[0].info.dtype, block.task.targets[0].dtype
        words = as_words(self._read(block, 0), dtype)
        if block.task.must_be_finite and not all_finite(words, dtype):
            return Done(block, nonfinite(block, words, dtype))
        out = as_words(self._target(block, 0), target)
        if self._backend.cast(words, dtype, out, target):
            return Done(block, overflow(block, words, dtype, target))
        if target == "F16" and (at := first_lost(words, dtype)) is not None:
            return Done(block, lossy(block, words, dtype, at))
        return self._write(block, shard, words, out)

    def _copy(self, block: Block, shard: ShardFile) -> Done:
        raw = self._read(block, 0)
        dtype = block.task.sources[0].info.dtype
        if block.task.must_be_finite and dtype in WORD_TYPE:
            words = as_words(raw, dtype)
            if not all_finite(words, dtype):
                return Done(block, nonfinite(block, words, dtype))
        return self._write(block, shard, raw, raw)

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
        self._backend.decode(codes, gains, layout.bits, layout.group, decoded, "F32", layout.code)
        dtype = block.task.sources[0].info.dtype
        exact = reference.to_float32(some, dtype).astype(np.float64)
        error = exact - decoded.view(np.float32)
        return _sum(error.ravel() ** 2), _sum(exact.ravel() ** 2)

    def _read(self, block: Block, index: int) -> Bytes:
        source = block.task.sources[index]
        start, length = block.span(source.info.n_bytes)
        buffer = self._take(length)
        started = thread_time()
        self._files.read_into(source.file, source.offset + start, buffer.data)
        self._reading_seconds += thread_time() - started
        return buffer

    def _target(self, block: Block, index: int) -> Bytes:
        _, length = block.span(block.task.targets[index].n_bytes)
        return self._take(length)

    def _write(
        self,
        block: Block,
        shard: ShardFile,
        source: NDArray[Any],
        *targets: NDArray[Any],
        error: tuple[float, float] | None = None,
    ) -> Done:
        """Write each target's range; `source`: what was read for it."""
        pieces = []
        for target, data in zip(block.task.targets, targets, strict=True):
            start, _ = block.span(target.n_bytes)
            raw = data.reshape(-1).view(np.uint8).data
            pieces.append(shard.write(shard.offsets[target.name] + start, raw))
        seen = None if block.first else fingerprint(source.reshape(-1).view(np.uint8).data)
        done = DoneBlock(block.task.name, block.first, tuple(pieces), seen, error)
        return Done(block, written=done)

    def _make_room(self, block: Block) -> None:
        """One piece of memory for all that the block reads and writes, kept for the next block."""
        infos = (*(source.info for source in block.task.sources), *block.task.targets)
        needed = sum(_aligned(block.span(info.n_bytes)[1]) for info in infos)
        if len(self._room) < needed:
            self._room = np.empty(0, np.uint8)  # let go of the old one first
            self._room = np.empty(needed, np.uint8)
        self._used = 0

    def _take(self, length: int) -> Bytes:
        taken = self._room[self._used : self._used + length]
        self._used += _aligned(length)
        return taken


# Not in the worker itself: its methods would keep it, and its memory, alive.
_ACTIONS: dict[Action, Callable[[Worker, Block, ShardFile], Done]] = {
    Action.ENCODE: Worker._encode,
    Action.DECODE: Worker._decode,
    Action.CAST: Worker._cast,
    Action.COPY: Worker._copy,
}


def fingerprint(source: memoryview) -> str:
    """A checksum of the first bytes, by which a later run knows them again."""
    return digest(source[:SEEN_BYTES])


def _sum(values: NDArray[np.float64]) -> float:
    """Added in halves, so in one order: numpy's own depends on the processor."""
    while len(values) > 1:
        half = (len(values) + 1) // 2
        folded = values[:half].copy()
        folded[: len(values) - half] += values[half:]
        values = folded
    return float(values[0])


def _aligned(length: int) -> int:
    """Up to the next cache line, so that every part starts on one."""
    return -(-length // _CACHE_LINE) * _CACHE_LINE


def _layout(task: Task) -> GroupLayout:
    assert task.layout is not None, "only compressed tensors are encoded or decoded"
    return task.layout
