"""Norms as they are stored: as F32, or rounded to F16. The codec itself knows float32 only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tq3.codec.reference import Floats

Norms = NDArray[np.float32] | NDArray[np.float16]

NORM_TYPES: dict[str, type[np.float32 | np.float16]] = {"F32": np.float32, "F16": np.float16}
# The smallest normal number of F16, and the first one that rounds to infinity.
_SMALLEST = np.float32(2.0**-14)
_TOO_LARGE = np.float32(65520)


def stored_norms(norms: Floats, dtype: str) -> Norms:
    """The norms as they are stored in `dtype`: F16 rounds to nearest, ties to even."""
    return norms.astype(np.float16) if dtype == "F16" else norms


def read_norms(stored: NDArray[Any], dtype: str) -> Floats:
    """Stored norms, or their bytes, as float32: a view of F32, a copy of F16."""
    return stored.view(NORM_TYPES[dtype]).astype(np.float32, copy=False)


def fits_float16(norms: Floats) -> NDArray[np.bool_]:
    """A mask of the finite norms that F16 keeps to 2**-11 of their size: 0 and its normal ones."""
    fits: NDArray[np.bool_] = (norms == 0) | (norms >= _SMALLEST) & (norms < _TOO_LARGE)
    return fits
