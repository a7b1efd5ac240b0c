"""A packed layer times activations as calls of kernels: which instance, what grid, with what.

Nothing here needs a GPU: a *device* is what launches calls, and tests have one that runs them on
the processor.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple, Protocol

import torch

from tq3.runtime import arithmetic as fixed
from tq3.runtime.cuda.crossings import Crossing
from tq3.runtime.cuda.layout import UNIT, Tiles, padded_groups

# Tokens that a product of tensor cores takes, and the most such products of a block, which decodes
# its weights once for all of them: what registers hold. Small groups need more of them.
TOKENS_A_COLUMN = 4
MOST_COLUMNS = {32: 4, 64: 8, 128: 8, 256: 8}
# Up to so many tokens, blocks may share a tile. A term has 4 bytes, for each group of a row and
# each token; 128 weights of 3 bits have 48.
MOST_SPLIT_TOKENS = 4
# Of a block.
WARPS = 8
THREADS = 256
DTYPES = {torch.bfloat16: "kBF16", torch.float16: "kF16", torch.float32: "kF32"}

Activations = tuple[torch.Tensor, torch.Tensor]


class Call(NamedTuple):
    """A kernel, its grid of blocks, and its arguments: tensors, whole numbers (32 bits), floats,
    and None for no tensor.

    early: it may start before the kernel ahead in the stream has ended, for whose end it waits
    itself. What it reads of the weights before then, nothing directly ahead may have written.
    """

    kernel: str
    instance: str
    grid: tuple[int, int, int]
    threads: int
    arguments: tuple[torch.Tensor | int | float | None, ...]
    early: bool = False


class Launcher(Protocol):
    """Where calls run, one after the other. processors: multiprocessors of the device."""

    @property
    def processors(self) -> int: ...

    @property
    def crossing(self) -> Crossing: ...

    def load(self, kernel: str, instance: str) -> object: ...

    def launch(self, call: Call) -> None: ...

    def sequence(self) -> Hashable:
        """Another one wherever what was launched before may not have run, or not be replayed."""


Quantise = Callable[[Launcher, torch.Tensor, int, int, int, int], Activations]


def quantise(
    on: Launcher, x: torch.Tensor, n: int, bits: int, group: int, rotation: int
) -> Activations:
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
            (-(-padded * tokens // WARPS), 1, 1),
            THREADS,
            (x, columns, tokens, padded, first, second, unit, quantised, worths),
            early=True,
        )
    )
    return quantised, worths


def multiply(
    on: Launcher,
    layer: Tiles,
    activations: Activations,
    rows: int,
    group: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """(tokens, rows) in `dtype`.

    layer: words and norms of `layout.repack`; activations: what `quantise` returns
    """
    (words, norms), (quantised, worths) = layer, activations
    tiles, units, bits = words.shape[:3]
    tokens = quantised.shape[1]
    columns = columns_for(tokens, group)
    parts = parts_of_a_tile(tiles, units, tokens, group, on.processors)
    if parts > 1:
        return _multiply_split(on, layer, activations, rows, group, dtype, parts)
    y = words.new_empty(tokens, rows, dtype=dtype)
    of_tokens = -(-tokens // (TOKENS_A_COLUMN * columns))
    on.launch(
        Call(
            "multiply",
            f"multiply<Dtype::{DTYPES[dtype]}, {bits}, {group}, {columns}>",
            (of_tokens, -(-tiles // max(1, UNIT // group)), 1),
            THREADS,
            (words, norms, quantised, worths, y, rows, units, tokens, None),
            early=True,
        )
    )
    return y


def multiply_jobs(
    on: Launcher,
    layers: Tiles,
    activations: Activations,
    rows: int,
    group: int,
    dtype: torch.dtype,
    jobs: torch.Tensor,
    columns: int,
) -> torch.Tensor:
    """The same for several layers of one shape: (tokens, rows), of tokens that no job has nothing.

    layers: as `multiply` takes them, with a dimension for the layers before
    jobs: (any, 4) int32, each a layer, the first token and the one after the last, of
    `TOKENS_A_COLUMN` * columns at most, and 0; one without tokens is no work
    """
    (words, norms), (quantised, worths) = layers, activations
    tiles, units, bits = words.shape[1:4]
    tokens = quantised.shape[1]
    y = words.new_empty(tokens, rows, dtype=dtype)
    on.launch(
        Call(
            "multiply",
            f"multiply<Dtype::{DTYPES[dtype]}, {bits}, {group}, {columns}>",
            (len(jobs), -(-tiles // max(1, UNIT // group)), 1),
            THREADS,
            (words, norms, quantised, worths, y, rows, units, tokens, jobs),
            early=True,
        )
    )
    return y


def columns_for(tokens: int, group: int) -> int:
    """Products of four tokens each that a block does for so many tokens: 1, 2, 4 or 8."""
    needed = min(-(-tokens // TOKENS_A_COLUMN), MOST_COLUMNS[group])
    return 1 << (needed - 1).bit_length()


def parts_of_a_tile(tiles: int, units: int, tokens: int, group: int, processors: int) -> int:
    """How many blocks share a tile's units, so that each multiprocessor has two blocks.

    1: the plain kernel, whose terms never leave a processor; more only where there are few tokens,
    whose terms are small beside the weights.
    """
    steps = units // max(1, group // UNIT)
    blocks = -(-tiles // max(1, UNIT // group))
    if tokens > MOST_SPLIT_TOKENS or blocks >= processors:
        return 1
    return max(1, min(2 * processors // tiles, steps // WARPS))


def _multiply_split(
    on: Launcher,
    layer: Tiles,
    activations: Activations,
    rows: int,
    group: int,
    dtype: torch.dtype,
    parts: int,
) -> torch.Tensor:
    (words, norms), (quantised, worths) = layer, activations
    tiles, units, bits = words.shape[:3]
    groups, tokens = worths.shape
    terms = worths.new_empty(groups, tokens, rows)
    columns = columns_for(tokens, group)
    on.launch(
        Call(
            "split",
            f"multiply_terms<{bits}, {group}, {columns}>",
            (parts, tiles, -(-tokens // (TOKENS_A_COLUMN * columns))),
            THREADS,
            (words, norms, quantised, worths, terms, rows, units, tokens),
            early=True,
        )
    )
    y = words.new_empty(tokens, rows, dtype=dtype)
    results = tokens * rows
    on.launch(
        Call(
            "split",
            f"add_terms<Dtype::{DTYPES[dtype]}>",
            (-(-results // THREADS), 1, 1),
            THREADS,
            (terms, y, groups, results),
            early=True,
        )
    )
    return y
