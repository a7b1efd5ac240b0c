"""In which type a kept tensor is stored, and what it loses by that: docs/format.md, section 5."""

from __future__ import annotations

from tq3.format.header import FLOATS, TensorInfo

# What is no larger is small beside any model; of what is larger, so many values are judged
# together.
STRETCH = 2**20
NOTHING = "nothing"
_LOSSES = {"BF16": "bits below 2^-24", "F32": "2^-11 of a value, bits below 2^-24"}


def kept_dtype(info: TensorInfo, *, is_meant: bool = False) -> str:
    """F16 for floats, but F32 for what is in F32 and a vector or small, or where that is meant."""
    if info.dtype not in FLOATS:
        return info.dtype
    is_small = len(info.shape) < 2 or info.n_elements <= STRETCH
    return "F32" if info.dtype == "F32" and (is_small or is_meant) else "F16"


def what_is_lost(source: str, stored: str) -> str:
    """What values of type `source` lose that are stored as they are, as F16 or as BF16."""
    if stored == "BF16" and source == "F32":
        return "2^-9 of a value"
    return NOTHING if stored == source else _LOSSES[source]


def what_may_be_lost(stored: str) -> str:
    """What values may lose that are stored as `stored`, where their own type is not known."""
    return "nothing, or what F16 can't hold" if stored == "F16" else NOTHING
