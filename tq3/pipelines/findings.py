"""Facts that only the values can tell: a NaN, an infinity, a value too large for its target."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from tq3.codec import reference
from tq3.codec.norms import fits_float16
from tq3.codec.reference import Floats, Words
from tq3.plan.plan import Block

_SIGNLESS = {"BF16": 0x7FFF, "F16": 0x7FFF, "F32": 0x7FFF_FFFF}
# Words looked at in one go: the temporaries stay small beside a block.
_CHUNK_WORDS = 1 << 18
_INFINITY = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F80_0000}


class Kind(IntEnum):
    """Kinds of findings, the gravest first."""

    NONFINITE = 0  # a value that is no number or infinite, or that no norm can hold
    OVERFLOW = 1  # finite, but too large for the target
    PRECISION = 2  # most values are too small for F16
    NORM = 3  # a norm that F16 does not hold well


@dataclass(frozen=True, slots=True)
class Finding:
    """A value that the plan did not foresee in a block, which was therefore not written.

    first: the block's first unit
    """

    file: str
    tensor: str
    kind: Kind
    text: str
    first: int

    @property
    def gravity(self) -> tuple[Kind, int]:
        """Sorts a tensor's findings: the gravest first, then the first in the tensor."""
        return self.kind, self.first


def _magnitudes(words: Words, dtype: str) -> Words:
    """Bit patterns without their signs: in this form they are ordered as their values are."""
    magnitudes: Words = words & words.dtype.type(_SIGNLESS[dtype])
    return magnitudes


def all_finite(words: Words, dtype: str) -> bool:
    """Whether no word is a NaN or an infinity of `dtype`."""
    flat = words.reshape(-1)
    chunks = (flat[i : i + _CHUNK_WORDS] for i in range(0, flat.size, _CHUNK_WORDS))
    return all(_magnitudes(chunk, dtype).max() < _INFINITY[dtype] for chunk in chunks)


def nonfinite(block: Block, words: Words, dtype: str) -> Finding:
    """The first value that is not finite, or the one whose square is not."""
    magnitudes = _magnitudes(words, dtype).reshape(-1)
    faults = np.flatnonzero(magnitudes >= _INFINITY[dtype])
    at = int(faults[0]) if len(faults) else int(magnitudes.argmax())
    text = _value_and_place(block, words, dtype, at)
    if not len(faults):
        text += ", and its square does not fit float32"
    return Finding(*_origin(block), Kind.NONFINITE, text, block.first)


def overflow(block: Block, words: Words, dtype: str, target: str) -> Finding:
    """The largest finite value, which does not fit `target`."""
    magnitudes = _magnitudes(words, dtype).reshape(-1)
    magnitudes[magnitudes >= _INFINITY[dtype]] = 0
    text = _value_and_place(block, words, dtype, int(magnitudes.argmax()))
    return Finding(*_origin(block), Kind.OVERFLOW, f"{text} does not fit {target}", block.first)


def lossy(block: Block, words: Words, dtype: str, at: int) -> Finding:
    """The first value that F16 does not hold well, among too many others."""
    place = _value_and_place(block, words, dtype, at)
    text = f"F16 loses too many of its values, the first {place}"
    return Finding(*_origin(block), Kind.PRECISION, text, block.first)


def is_norm(norms: Floats) -> NDArray[np.bool_]:
    """A mask of the values that can be norms: finite and not negative."""
    return np.isfinite(norms) & (norms >= 0)


def bad_norm(block: Block, norms: Floats) -> Finding:
    """The first value among the norms that is none."""
    _, stored = block.task.sources
    text = f"not a norm: {_first_norm(block, norms, ~is_norm(norms))}"
    return Finding(stored.file, stored.info.name, Kind.NONFINITE, text, block.first)


def unfit_norm(block: Block, norms: Floats) -> Finding:
    """The first norm that F16 does not hold well."""
    text = f"the norm {_first_norm(block, norms, ~fits_float16(norms))} is beyond F16's range"
    return Finding(*_origin(block), Kind.NORM, text, block.first)


def _first_norm(block: Block, norms: Floats, odd: NDArray[np.bool_]) -> str:
    """Value and place of the first of these norms of the block."""
    layout = block.task.layout
    assert layout is not None, "only compressed tensors have norms"
    at = int(np.flatnonzero(odd)[0])
    start, _ = block.span(layout.rows * layout.groups_per_row)
    row, group = divmod(start + at, layout.groups_per_row)
    return f"{norms.reshape(-1)[at]:g} at row {row}, group {group}"


def _origin(block: Block) -> tuple[str, str]:
    return block.task.sources[0].file, block.task.name


def _value_and_place(block: Block, words: Words, dtype: str, at: int) -> str:
    value = reference.to_float32(words.reshape(-1)[at : at + 1], dtype)[0]
    layout, shape = block.task.layout, block.task.sources[0].info.shape
    flat = block.first * (words.size // block.count) + at
    place = [int(i) for i in np.unravel_index(flat, layout.shape if layout else shape)]
    if not place:
        return f"{value:g}"
    named = [f"column {place[-1]}"]
    named[:0] = [f"row {place[-2]}"] if place[:-1] else []
    named[:0] = [f"index {i}" for i in place[:-2]]
    return f"{value:g} at {', '.join(named)}"
