"""Kept tensors beside the source's: value by value, whatever their types."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tq3.codec import reference
from tq3.codec.backend import Backend, as_words
from tq3.codec.halves import first_lost
from tq3.codec.reference import Floats, Words
from tq3.plan.plan import Action, Block

NOWHERE = 2**63
# Rounded values measured in one go: the temporaries stay small beside a block.
_CHUNK_VALUES = 1 << 17

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Kept:
    """Elements of a kept tensor beside the source's.

    n_different: not the source's values rounded to the stored type; first_different: of these
    n_infinite: values that were finite in the source
    n_twice: values that were rounded to F16, and then once more to the stored type
    n_rounded: rightly rounded, but with another value than the source's
    largest_change: by rounding; largest_share: of the value itself
    first_lost: the first value of which too much is lost among others of which most are so
    """

    n_different: int = 0
    first_different: int = NOWHERE
    n_infinite: int = 0
    n_twice: int = 0
    n_rounded: int = 0
    largest_change: float = 0.0
    largest_share: float = 0.0
    first_lost: int = NOWHERE

    @property
    def is_exact(self) -> bool:
        """Whether every value is the source's."""
        return not (self.n_different or self.n_infinite or self.n_rounded)

    def __add__(self, other: Kept) -> Kept:
        return Kept(
            self.n_different + other.n_different,
            min(self.first_different, other.first_different),
            self.n_infinite + other.n_infinite,
            self.n_twice + other.n_twice,
            self.n_rounded + other.n_rounded,
            max(self.largest_change, other.largest_change),
            max(self.largest_share, other.largest_share),
            min(self.first_lost, other.first_lost),
        )


def compare_kept(
    block: Block, stored: Bytes, original: Bytes, codec: Backend, *, by_f16: bool = False
) -> Kept:
    """One block, from its bytes in the checkpoint and in the source.

    by_f16: whether the values were floats that became F16 before they got the stored type
    """
    tensor, source = (each.info for each in block.task.sources)
    if block.task.action is Action.COPY and not by_f16:
        return _different(block, stored, original)
    exact, kept = as_words(original, source.dtype), as_words(stored, tensor.dtype)
    before = "F16" if by_f16 else source.dtype
    words, n_infinite = _cast(exact, source.dtype, before, codec)
    cast, n_beyond = _cast(words, before, tensor.dtype, codec)
    found = _different(block, stored, cast.view(np.uint8)) + Kept(n_infinite=n_infinite + n_beyond)
    if found != Kept():
        return found
    if by_f16:
        back, _ = _cast(kept, tensor.dtype, "F16", codec)
        found += Kept(n_twice=int(np.count_nonzero(back != words)))
    found += _what_rounding_did(exact, source.dtype, kept, tensor.dtype, codec)
    if found.n_rounded and "F16" in (before, tensor.dtype):
        lost = first_lost(exact, source.dtype)
        found += Kept() if lost is None else Kept(first_lost=block.first + lost)
    return found


def _cast(words: Words, dtype: str, to: str, codec: Backend) -> tuple[Words, int]:
    """The nearest values of type `to`, and how many finite ones became infinite."""
    if dtype == to:
        return words, 0
    kind = as_words(np.empty(0, np.uint8), to).dtype
    out: Words = np.empty(len(words), kind)
    return out, codec.cast(_row(words), dtype, _row(out), to)


def _different(block: Block, stored: Bytes, expected: Bytes) -> Kept:
    if np.array_equal(stored, expected):
        return Kept()
    differing = (stored != expected).reshape(block.count, -1).any(1)
    places = np.flatnonzero(differing)
    return Kept(len(places), block.first + int(places[0]))


def _what_rounding_did(
    exact: Words, dtype: str, kept: Words, kept_dtype: str, codec: Backend
) -> Kept:
    # What was rounded to another type goes back exactly, and so differs from what it was.
    back, _ = _cast(kept, kept_dtype, dtype, codec)
    differing = np.flatnonzero(back != exact)
    found = Kept()
    for start in range(0, len(differing), _CHUNK_VALUES):
        at = differing[start : start + _CHUNK_VALUES]
        before = reference.to_float32(exact[at], dtype)
        found += _rounded(before, reference.to_float32(kept[at], kept_dtype))
    return found


def _rounded(exact: Floats, kept: Floats) -> Kept:
    """Describe what rounding did to these values; a NaN stays one, whatever its bits."""
    changed = (exact != kept) & ~np.isnan(exact)
    if not changed.any():
        return Kept()
    before, after = (values[changed].astype(np.float64) for values in (exact, kept))
    change = np.abs(after - before)
    share = change / np.abs(before)
    return Kept(
        n_rounded=len(change), largest_change=float(change.max()), largest_share=float(share.max())
    )


def _row(words: Words) -> Words:
    return words.reshape(1, -1)
