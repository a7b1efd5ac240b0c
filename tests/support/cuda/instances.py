"""Every instance of a kernel that calls.py may ask for."""

from __future__ import annotations

from itertools import product

from support.runtime.layers import BITS, GROUPS, ROTATIONS
from tq3.runtime.cuda.calls import MOST_COLUMNS

# Loops for sm_89 were as those for sm_80, and for sm_100 as those for sm_90, within 7 %.
ARCHITECTURES = ("sm_80", "sm_90", "sm_120")
KERNELS = ("rotate_quantise", "multiply", "share", "split", "rotate", "decode")
# Products of four tokens that warps do which share activations.
SHARED_COLUMNS = (2, 4, 8)
DTYPES = ("Dtype::kBF16", "Dtype::kF16", "Dtype::kF32")


def instances(kernel: str) -> list[str]:
    """As the compiler for the device knows them by name."""
    if kernel in ("rotate_quantise", "rotate"):
        widths = [f"{group}, {rotation}" for group, rotation in ROTATIONS]
        return [f"{kernel}<{dtype}, {width}>" for dtype, width in product(DTYPES, widths)]
    if kernel == "split":
        terms = [f"multiply_terms<{bits}, {group}>" for bits, group in product(BITS, GROUPS)]
        return terms + [f"add_terms<{dtype}>" for dtype in DTYPES]
    if kernel == "share":
        return [
            f"multiply_shared<{bits}, {group}, {columns}>"
            for bits, group, columns in product(BITS, GROUPS, SHARED_COLUMNS)
            if columns <= MOST_COLUMNS[group]
        ]
    widths = [f"{bits}, {group}" for bits, group in product(BITS, GROUPS)]
    return [f"{kernel}<{dtype}, {width}>" for dtype, width in product(DTYPES, widths)]
