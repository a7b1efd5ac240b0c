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
    n_rounded: rightly rounded, but with another value than the source's
    largest_change: by rounding; largest_share: of the value itself
    first_lost: the first value of which too much is lost among others of which most are so
    """

    n_different: int = 0
    first_different: int = NOWHERE
    n_infinite: int = 0
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
            self.n_rounded + other.n_rounded,
            max(self.largest_change, other.largest_change),
            max(self.largest_share, other.largest_share),
            min(self.first_lost, other.first_lost),
        )


def compare_kept(block: Block, stored: Bytes, original: Bytes, codec: Backend) -> Kept:
    """One block, from its bytes in the checkpoint and in the source."""
    if block.task.action is Action.COPY:
        return _different(block, stored, original)
    tensor, source = (each.info for each in block.task.sources)
    exact, kept = as_words(original, source.dtype), as_words(stored, tensor.dtype)
    cast = np.empty_like(kept)
    n_infinite = codec.cast(_row(exact), source.dtype, _row(cast), tensor.dtype)
    found = _different(block, stored, cast.view(np.uint8)) + Kept(n_infinite=n_infinite)
    if found != Kept():
        return found
    # What was rounded to another type goes back exactly, and so differs from what it was.
    back = np.empty_like(exact)
    codec.cast(_row(kept), tensor.dtype, _row(back), source.dtype)
    differing = np.flatnonzero(back != exact)
    for start in range(0, len(differing), _CHUNK_VALUES):
        at = differing[start : start + _CHUNK_VALUES]
        before = reference.to_float32(exact[at], source.dtype)
        found += _rounded(before, reference.to_float32(kept[at], tensor.dtype))
    lost = first_lost(exact, source.dtype) if found.n_rounded and tensor.dtype == "F16" else None
    return found if lost is None else found + Kept(first_lost=block.first + lost)


def _different(block: Block, stored: Bytes, expected: Bytes) -> Kept:
    if np.array_equal(stored, expected):
        return Kept()
    differing = (stored != expected).reshape(block.count, -1).any(1)
    places = np.flatnonzero(differing)
    return Kept(len(places), block.first + int(places[0]))


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
