"""What F16 keeps of kept values: the rule on precision of docs/format.md, section 5."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tq3.codec import reference
from tq3.codec.reference import Words
from tq3.format.precision import STRETCH

# Half a step of BF16: what a value may change by, relative to itself.
_ROUNDING = 2.0**-9
# 2**-16: from here on F16 keeps all values that well.
_KEPT_FROM = {"BF16": 0x3780, "F32": 0x3780_0000}
_SIGNLESS = {"BF16": 0x7FFF, "F32": 0x7FFF_FFFF}
# Of Gaussian weights one in a 16th is lost below a deviation of 2e-4: far below any layer's.
_ONE_IN = 16


def first_lost(words: Words, dtype: str) -> int | None:
    """The first value that F16 loses in a stretch where it loses too many; None without such a one.

    words: whole stretches and what is left at the end, (n,)
    """
    if dtype not in _KEPT_FROM:
        return None
    for start in range(0, words.size, STRETCH):
        stretch = words[start : start + STRETCH]
        if not _may_lose_many(stretch, dtype):
            continue
        lost, n_values = _lost(stretch, dtype)
        if _ONE_IN * np.count_nonzero(lost) > n_values:
            return start + int(lost.argmax())
    return None


def _may_lose_many(words: Words, dtype: str) -> bool:
    """Whether many values are small, which is quickly told."""
    magnitudes = words & words.dtype.type(_SIGNLESS[dtype])
    n_small = np.count_nonzero(magnitudes < _KEPT_FROM[dtype])
    if _ONE_IN * n_small <= words.size:  # zeros included: nearly always, and no need to count them
        return False
    n_values = np.count_nonzero(magnitudes)
    return bool(_ONE_IN * (n_small - words.size + n_values) > n_values)


def _lost(words: Words, dtype: str) -> tuple[NDArray[np.bool_], int]:
    """Which values F16 changes by more than BF16 would, and how many are not zero."""
    exact = reference.to_float32(words, dtype).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        change = np.abs(exact.astype(np.float16) - exact)
        lost: NDArray[np.bool_] = change > np.abs(exact) * _ROUNDING
    return lost, int(np.count_nonzero(exact))
