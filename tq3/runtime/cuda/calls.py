"""A packed layer times activations as calls of kernels: which instance, what grid, with what.

Nothing here needs a GPU: a *device* is what launches calls (launches.py), and tests have one that
runs them on the processor.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from tq3.runtime import arithmetic as fixed
from tq3.runtime.cuda.launches import Call, Launcher
from tq3.runtime.cuda.layout import TILE, UNIT, Tiles, padded_groups

# Tokens that a product of tensor cores takes, and the most such products of a block, which decodes
# its weights once for all of them: what the registers of 128 a thread hold, of which two blocks run
# on a multiprocessor. Groups of other widths need more of them.
TOKENS_A_COLUMN = 4
MOST_COLUMNS = {32: 2, 64: 4, 128: 8, 256: 4}
# Of a block.
WARPS = 8
THREADS = 256
# Of partial sums in memory at a time, but for what one block leaves there: within the last cache of
# an A100, which has 40 MB.
SUMS_BYTES = 32 << 20
# Of shared memory, which the driver keeps for each block.
RESERVED_BYTES = 1024
DTYPES = {torch.bfloat16: "kBF16", torch.float16: "kF16", torch.float32: "kF32"}

Activations = tuple[torch.Tensor, torch.Tensor]


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
    if columns > 1:
        return _multiply_shared(on, layer, activations, rows, group, dtype, None, columns)
    parts = parts_of_a_tile(tiles, units, group, on.processors)
    if parts > 1:
        return _multiply_split(on, layer, activations, rows, group, dtype, parts)
    y = words.new_empty(tokens, rows, dtype=dtype)
    on.launch(
        Call(
            "multiply",
            f"multiply<Dtype::{DTYPES[dtype]}, {bits}, {group}>",
            (1, -(-tiles // max(1, UNIT // group)), 1),
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
    if columns > 1:
        return _multiply_shared(on, layers, activations, rows, group, dtype, jobs, columns)
    (words, norms), (quantised, worths) = layers, activations
    tiles, units, bits = words.shape[1:4]
    tokens = quantised.shape[1]
    y = words.new_empty(tokens, rows, dtype=dtype)
    on.launch(
        Call(
            "multiply",
            f"multiply<Dtype::{DTYPES[dtype]}, {bits}, {group}>",
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


def parts_of_a_tile(tiles: int, units: int, group: int, processors: int) -> int:
    """How many blocks share a tile's units for up to four tokens, so that each multiprocessor has
    two blocks. 1: the plain kernel, whose terms never leave a processor.
    """
    steps = units // max(1, group // UNIT)
    blocks = -(-tiles // max(1, UNIT // group))
    if blocks >= processors:
        return 1
    return max(1, min(2 * processors // tiles, steps // WARPS))


def turns_of_a_block(on: Launcher, blocks: int, bits: int, group: int, columns: int) -> int:
    """How many of a tile's turns a block does one after another: a power of two.

    As many as leave two blocks for each multiprocessor, where two have room. Each time twice as
    many are half as many sums that go through memory.
    blocks: how many there would be if each had all
    """
    turns = most = fixed.PARTIAL_SUMS // max(1, UNIT // group)
    while turns > 1 and (
        blocks * most // turns < 2 * on.processors
        or 2 * (shared_bytes(bits, group, columns, turns) + RESERVED_BYTES) > on.shared_bytes
    ):
        turns //= 2
    return turns


def shared_bytes(bits: int, group: int, columns: int, turns: int) -> int:
    """Shared memory of a block of share.cu: two units of codes and norms a warp, activations with
    their worths, and what waits for sums of other turns.
    """
    groups_a_unit, tokens = max(1, UNIT // group), columns * TOKENS_A_COLUMN
    weights = WARPS * (TILE * UNIT * bits // 8 + TILE * 4 * groups_a_unit)
    inputs = tokens * (2 * UNIT + 4 * groups_a_unit)
    waiting = WARPS * TILE * tokens * 4 * groups_a_unit
    return 2 * (weights + inputs) + (turns.bit_length() - 1) * waiting


def _multiply_shared(
    on: Launcher,
    layers: Tiles,
    activations: Activations,
    rows: int,
    group: int,
    dtype: torch.dtype,
    jobs: torch.Tensor | None,
    columns: int,
) -> torch.Tensor:
    """Blocks of eight tiles, whose warps share activations. jobs: None for one layer

    So many rows at a time that what goes through memory is no more than a cache holds.
    """
    (words, norms), (quantised, worths) = layers, activations
    tiles, units, bits = words.shape[-5:-2]
    tokens = quantised.shape[1]
    of_tokens = -(-tokens // (TOKENS_A_COLUMN * columns)) if jobs is None else len(jobs)
    turns = turns_of_a_block(on, of_tokens * -(-tiles // WARPS), bits, group, columns)
    parts = fixed.PARTIAL_SUMS // max(1, UNIT // group) // turns
    bytes_a_block = fixed.PARTIAL_SUMS // turns * tokens * WARPS * TILE * 4
    step = max(1, SUMS_BYTES // bytes_a_block) * WARPS
    y = worths.new_empty(tokens, rows, dtype=dtype)
    for first in range(0, tiles, step):
        of_rows = min(step * TILE, rows - first * TILE)
        sums = worths.new_empty(fixed.PARTIAL_SUMS // turns, tokens, of_rows)
        place = rows, first, of_rows, units, tokens, turns
        on.launch(
            Call(
                "share",
                f"multiply_shared<{bits}, {group}, {columns}>",
                (of_tokens, -(-of_rows // (TILE * WARPS)), parts),
                THREADS,
                (words, norms, quantised, worths, sums, *place, jobs),
                early=True,
                shared_bytes=shared_bytes(bits, group, columns, turns),
            )
        )
        _add(on, sums, y, first * TILE)
    return y


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
    on.launch(
        Call(
            "split",
            f"multiply_terms<{bits}, {group}>",
            (parts, tiles, 1),
            THREADS,
            (words, norms, quantised, worths, terms, rows, units, tokens),
            early=True,
        )
    )
    y = terms.new_empty(tokens, rows, dtype=dtype)
    _add(on, terms, y, 0)
    return y


def _add(on: Launcher, terms: torch.Tensor, y: torch.Tensor, first_row: int) -> None:
    """Terms of groups, or partial sums, in the order of section 2.5 of docs/kernels.md.

    terms: (groups, tokens, of_rows) float32; y: (tokens, rows), of which these rows are written
    """
    groups, tokens, of_rows = terms.shape
    on.launch(
        Call(
            "split",
            f"add_terms<Dtype::{DTYPES[y.dtype]}>",
            (-(-tokens * of_rows // THREADS), 1, 1),
            THREADS,
            (terms, y, groups, tokens, first_row, of_rows, y.shape[1]),
            early=True,
        )
    )
