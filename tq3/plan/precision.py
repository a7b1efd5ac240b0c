"""Matrices that a source keeps in F32 beside 16-bit ones: its maker means it, and they stay so."""

from __future__ import annotations

from collections.abc import Iterable

from tq3.format.header import TensorInfo
from tq3.format.precision import kept_dtype
from tq3.plan.classes import VISION, class_of
from tq3.plan.roles import OTHER, part_role_of

# tq_config.json names source dtypes as config.json does.
_DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_BESIDE = "in F32 beside 16-bit matrices"
_DECIDING = {
    "router": f"router {_BESIDE}: it decides which experts run",
    "linear_gates": f"gates of a state {_BESIDE}: their error stays in the state",
}
# A gate, a router of another name: what makes so few numbers decides by them.
_NARROW = f"narrow, and {_BESIDE}: what it does is not known"
_NARROW_BELOW = 128


def main_dtype(tensors: Iterable[TensorInfo]) -> str | None:
    """The dtype that holds most of these bytes, as config.json names it."""
    totals: dict[str, int] = {}
    for info in tensors:
        totals[info.dtype] = totals.get(info.dtype, 0) + info.n_bytes
    largest = max(totals, key=lambda dtype: totals[dtype], default=None)
    return _DTYPE_NAMES.get(largest, largest) if largest else None


def dtype_where_kept(info: TensorInfo, source_dtype: str | None) -> str:
    """The type in which a tensor is stored that stays, in a source of this `main_dtype`."""
    return kept_dtype(info, is_meant=why_meant(info, source_dtype) is not None)


def why_meant(info: TensorInfo, source_dtype: str | None) -> str | None:
    """Why a matrix stays in F32 in a source whose `main_dtype` is this one; None if it need not."""
    if info.dtype != "F32" or source_dtype not in ("bfloat16", "float16"):
        return None
    role = part_role_of(info.name)
    is_narrow = len(info.shape) == 2 and min(info.shape) < _NARROW_BELOW
    # A vision tower may be in F32 as a whole, and is compressed as ever.
    if role == OTHER and is_narrow and class_of(info.name) != VISION:
        return _NARROW
    return _DECIDING.get(role)
