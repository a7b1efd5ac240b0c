"""A packed layer times activations as calls of kernels: which instance, how many blocks, with what.

Nothing here needs a GPU: a *device* is what launches calls, and tests have one that runs them on
the processor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from tq3.runtime import arithmetic as fixed
from tq3.runtime.cuda.layout import TILE, UNIT, padded_groups

# Tokens of a launch, and those that a product of tensor cores takes.
MOST_TOKENS = 32
TOKENS_A_COLUMN = 4
# Of a block.
WARPS = 8
THREADS = 256
DTYPES = {torch.bfloat16: "kBF16", torch.float16: "kF16", torch.float32: "kF32"}


@dataclass(frozen=True, slots=True)
class Call:
    """A kernel, its grid, and its arguments: tensors, whole numbers (32 bits) and floats."""

    kernel: str
    instance: str
    blocks: int
    threads: int
    arguments: tuple[torch.Tensor | int | float, ...]


class Launcher(Protocol):
    """Where calls run, one after the other."""

    def launch(self, call: Call) -> None: ...


def quantise(
    on: Launcher, x: torch.Tensor, n: int, bits: int, group: int, rotation: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations (tokens, columns) of rows of `n` groups, as the multiplication reads them.

    Returns integers (units, tokens, 2, 128) int8, and worths (padded groups, tokens) float32.
    """
    tokens, columns = x.shape
    padded = padded_groups(n, group)
    quantised = x.new_empty(padded * group // UNIT, tokens, 2, UNIT, dtype=torch.int8)
    worths = x.new_empty(padded, tokens, dtype=torch.float32)
    first, second = fixed.signs(group, x.device)
    unit = fixed.unit(bits, group, rotation)
    on.launch(
        Call(
            "rotate_quantise",
            f"rotate_quantise<Dtype::{DTYPES[x.dtype]}, {group}, {rotation}>",
            -(-padded * tokens // WARPS),
            THREADS,
            (x, columns, tokens, padded, first, second, unit, quantised, worths),
        )
    )
    return quantised, worths


def multiply(
    on: Launcher,
    layer: tuple[torch.Tensor, torch.Tensor],
    activations: tuple[torch.Tensor, torch.Tensor],
    rows: int,
    group: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """(tokens, rows) in `dtype`: a launch for every 32 tokens, each of which reads the weights.

    layer: words and norms of `layout.repack`; activations: what `quantise` returns
    """
    (words, norms), (quantised, worths) = layer, activations
    units, tokens = quantised.shape[:2]
    y = words.new_empty(tokens, rows, dtype=dtype)
    tiles_a_block = max(1, UNIT // group)
    for first in range(0, tokens, MOST_TOKENS):
        width = f"{words.shape[2]}, {group}, {_columns(tokens - first)}"
        on.launch(
            Call(
                "multiply",
                f"multiply<Dtype::{DTYPES[dtype]}, {width}>",
                -(-rows // (TILE * tiles_a_block)),
                THREADS,
                (words, norms, quantised, worths, y, rows, units, tokens, first),
            )
        )
    return y


def _columns(tokens: int) -> int:
    """Products of four tokens each that a launch takes for so many: 1, 2, 4 or 8."""
    needed = -(-min(tokens, MOST_TOKENS) // TOKENS_A_COLUMN)
    return 1 << (needed - 1).bit_length()
