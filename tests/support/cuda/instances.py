"""Every instance of a kernel that calls.py may ask for."""

from __future__ import annotations

from itertools import product

from support.runtime.layers import BITS, GROUPS, ROTATIONS
from tq3.runtime.cuda.calls import MOST_COLUMNS, MOST_SPLIT_TOKENS, columns_for

# Loops for sm_89 were as those for sm_80, and for sm_100 as those for sm_90, within 7 %.
ARCHITECTURES = ("sm_80", "sm_90", "sm_120")
KERNELS = ("rotate_quantise", "multiply", "split", "rotate", "decode")
DTYPES = ("Dtype::kBF16", "Dtype::kF16", "Dtype::kF32")


def instances(kernel: str) -> list[str]:
    """As the compiler for the device knows them by name."""
    if kernel in ("rotate_quantise", "rotate"):
        widths = [f"{group}, {rotation}" for group, rotation in ROTATIONS]
        return [f"{kernel}<{dtype}, {width}>" for dtype, width in product(DTYPES, widths)]
    if kernel == "split":
        columns = columns_for(MOST_SPLIT_TOKENS, 128)
        terms = [f"multiply_terms<{bits}, {g}, {columns}>" for bits, g in product(BITS, GROUPS)]
        return terms + [f"add_terms<{dtype}>" for dtype in DTYPES]
    if kernel == "decode":
        widths = [f"{bits}, {group}" for bits, group in product(BITS, GROUPS)]
        return [f"{kernel}<{dtype}, {width}>" for dtype, width in product(DTYPES, widths)]
    widths = [
        f"{bits}, {group}, {columns}"
        for bits, group, columns in product(BITS, GROUPS, (1, 2, 4, 8))
        if columns <= MOST_COLUMNS[group]
    ]
    return [f"{kernel}<{dtype}, {width}>" for dtype, width in product(DTYPES, widths)]
