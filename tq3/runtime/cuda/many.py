"""A packed layer times many tokens: pieces of it are decoded, and torch multiplies.

Nothing waits for the device, and what is launched depends on shapes only: a CUDA graph can hold it.
"""

from __future__ import annotations

import torch

from tq3.runtime import arithmetic as fixed
from tq3.runtime.cuda.calls import DTYPES, THREADS, WARPS
from tq3.runtime.cuda.launches import Call, Launcher
from tq3.runtime.cuda.layout import TILE, Tiles


def multiply_decoded(
    on: Launcher,
    layer: Tiles,
    x: torch.Tensor,
    rows: int,
    n: int,
    group: int,
    rotation: int,
) -> torch.Tensor:
    """(tokens, rows) in the dtype of x, which is also that of the decoded weights.

    layer: words and norms of `layout.repack`, of `rows` rows of `n` groups
    """
    words, norms = layer
    tiles, columns = len(words), n * group
    rotated = rotate(on, x, n, group, rotation)
    pieces = -(-tiles // max(1, on.crossing.piece_weights // (TILE * columns)))
    step = -(-tiles // pieces)
    weights = x.new_empty(min(step * TILE, rows), columns)
    y = x.new_empty(len(x), rows)
    for first in range(0, tiles, step):
        piece = slice(first, first + step)
        results = y[:, first * TILE : (first + step) * TILE]
        decoded = weights[: results.shape[1]]
        decode(on, Tiles(words[piece], norms[piece]), group, decoded)
        torch.mm(rotated, decoded.T, out=results)
    return y


def rotate(on: Launcher, x: torch.Tensor, n: int, group: int, rotation: int) -> torch.Tensor:
    """As `generic.rotate`, rounded once to the dtype of x.  (tokens, n * group)"""
    tokens, columns = x.shape
    rotated = x.new_empty(tokens, n * group)
    first, _ = fixed.signs(group, x.device)
    factors = fixed.factors(group, rotation, x.device)
    on.launch(
        Call(
            "rotate",
            f"rotate<Dtype::{DTYPES[x.dtype]}, {group}, {rotation}>",
            (-(-tokens * n // WARPS), 1, 1),
            THREADS,
            (x, columns, tokens, n, first, factors, rotated),
        )
    )
    return rotated


def decode(on: Launcher, layer: Tiles, group: int, weights: torch.Tensor) -> None:
    """As `generic.decode`, rounded once to the dtype of `weights`, into which they are written.

    layer: words and norms of `layout.repack`, of the tiles that hold the rows of `weights`
    weights: (rows, n * group), contiguous
    """
    words, norms = layer
    tiles, units, bits = words.shape[:3]
    rows, columns = weights.shape
    on.launch(
        Call(
            "decode",
            f"decode<Dtype::{DTYPES[weights.dtype]}, {bits}, {group}>",
            (-(-tiles * units // WARPS), 1, 1),
            THREADS,
            (
                words,
                norms,
                fixed.codebook(bits, group, words.device),
                weights,
                rows,
                columns,
                units,
            ),
        )
    )
