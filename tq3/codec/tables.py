"""The constants of the format: codebook levels, the two sign vectors, the tables of trellis codes.

They are literals because published files depend on every bit of them. `tests/codec/test_tables.py`
derives levels again by Lloyd's iteration on N(0, 1), and signs by MT19937 seeded with 42;
docs/decisions/trellis.md says where the tables come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_Array = TypeVar("_Array", NDArray[np.float32], NDArray[np.int32])

# Positive half of each symmetric codebook for N(0, 1), before the factor 1/sqrt(group).
LEVELS: dict[int, tuple[float, ...]] = {
    2: (0.453, 1.51),
    3: (0.24509395640535865, 0.7560046735148500, 1.3439084494034667, 2.1519448861253618),
    4: (
        0.12596289635857610,
        0.38093242978774383,
        0.64548623807562250,
        0.92774131667741660,
        1.2393786501512904,
        1.6001883200982910,
        2.0515376438887170,
        2.7171369153166526,
    ),
}

# Bit i of the little-endian stream is the sign of weight i: 1 is +1, 0 is -1. The 512 first draws
# of the generator; for a group of G weights the first G are D1 and the next G are D2.
_SIGN_BITS = bytes.fromhex(
    "2242d73f177cab01f6ba4affe75f6b65"
    "07d021a85ce6402438d201c5cbbf2514"
    "26ceab17e2897d893dd3ac5836c9bc75"
    "027bf31b7ea93e9a3e53a5aaab248ab4"
)


# Weights of the longest ring of a trellis code.
LONGEST_CYCLE = 128


@dataclass(frozen=True)
class TrellisCode:
    """The constants of the trellis code of one width: docs/format.md, section 10.

    first, second: a weight of code c is worth first[c ^ that two before] + second[that before]
    rms: of all values, nearly: with the norm 1 a group of mean squares 1/group has values so large
    from_norm, from_peak: the scale of a group is from_norm * norm + from_peak * largest magnitude
    """

    bits: int
    first: NDArray[np.int32]
    second: NDArray[np.int32]
    rms: float
    from_norm: np.float32
    from_peak: np.float32

    def unit(self, group: int) -> float:
        """What one is worth in a group of the norm 1."""
        return float(np.float32(1 / (self.rms * np.sqrt(group))))


# bits -> first, second, rms, from_norm, from_peak: docs/decisions/trellis.md says why these.
_TRELLIS: dict[int, tuple[tuple[int, ...], tuple[int, ...], float, float, float]] = {
    3: (
        (34, 15, 0, -50, 58, -80, -16, -31),
        (34, -19, 22, 5, -40, 15, -5, 62),
        45.5,
        0.4,
        0.21,
    ),
    4: (
        (28, -4, 37, 76, -59, -30, 21, -7, 9, -16, 2, 48, -21, -45, 13, -36),
        (34, -12, -13, -6, 38, 6, -54, 3, 19, -21, -47, -27, 17, 12, -5, 26),
        39.0,
        0.38,
        0.22,
    ),
}


@cache
def trellis(bits: int) -> TrellisCode:
    """The trellis code of a width, one of `format.recipe.TRELLIS_WIDTHS`."""
    first, second, rms, from_norm, from_peak = _TRELLIS[bits]
    a, b = (_frozen(np.array(table, np.int32)) for table in (first, second))
    return TrellisCode(bits, a, b, rms, np.float32(from_norm), np.float32(from_peak))


@cache
def codebook(bits: int, group: int) -> NDArray[np.float32]:
    """All levels in ascending order, scaled by 1/sqrt(group).  (2**bits,) float32, read-only"""
    half = np.array(LEVELS[bits]) / np.sqrt(group)
    return _frozen(np.concatenate([-half[::-1], half]).astype(np.float32))


@cache
def boundaries(bits: int, group: int) -> NDArray[np.float32]:
    """Midpoints between neighbouring positive levels.  (2**(bits-1) - 1,) float32, read-only"""
    positive = codebook(bits, group)[1 << (bits - 1) :]
    return _frozen((positive[:-1] + positive[1:]) * np.float32(0.5))


@cache
def signs(group: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """D1 and D2, the diagonals of -1 and +1.  Two (group,) float32, read-only"""
    bits = np.unpackbits(np.frombuffer(_SIGN_BITS, np.uint8), bitorder="little")
    plus_minus = bits.astype(np.float32) * 2 - 1
    return _frozen(plus_minus[:group]), _frozen(plus_minus[group : 2 * group])


def _frozen(array: _Array) -> _Array:
    array.setflags(write=False)
    return array
