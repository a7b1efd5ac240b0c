"""How a packed layer and its activations lie in a device's memory, for the integer kernel.

A *unit* is 128 inputs of a row: four products of the 32 that a tensor core takes at once. Of each
32, lane t of four multiplies inputs 8 t to 8 t + 7. The integer sums are exact in any order.
A *tile* is 32 rows. The words of a unit of a tile, `bits` times four for each lane, hold the codes
of rows r, r + 8, r + 16 and r + 24 for lane 4 r + t. docs/kernels.md has pictures.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tq3.runtime.generic import unpack

UNIT = 128
TILE = 32
# Weights repacked at a time: their codes and words need about 25 MiB.
PIECE_WEIGHTS = 1 << 21


def padded_groups(n: int, group: int) -> int:
    """Groups of a row, made up to whole units."""
    a_unit = max(1, UNIT // group)
    return -(-n // a_unit) * a_unit


def repack(
    packed: torch.Tensor, norms: torch.Tensor, bits: int, group: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer in tiles and units.

    packed: (rows * n, group * bits / 8) uint8; norms: (rows, n) float32
    Returns words (tiles, units, bits, 32 lanes, 4) int32, of the size of packed when nothing is
    padded, and norms (tiles, padded groups, 8, 4) float32, of rows r, r + 8, r + 16, r + 24.
    Padding has the norm 0.
    """
    rows, n = norms.shape
    tiles, units = -(-rows // TILE), padded_groups(n, group) * group // UNIT
    words = packed.new_empty(tiles, units, bits, 32, 4, dtype=torch.int32)
    step = max(1, PIECE_WEIGHTS // (TILE * units * UNIT))
    for first in range(0, tiles, step):
        part = words[first : first + step]
        groups = slice(first * TILE * n, (first + step) * TILE * n)
        codes = unpack(packed[groups], bits).reshape(-1, n * group)
        missing = units * UNIT - n * group, len(part) * TILE - len(codes)
        part.copy_(_words(F.pad(codes, (0, missing[0], 0, missing[1])), bits))
    missing = padded_groups(n, group) - n, tiles * TILE - rows
    padded = F.pad(norms, (0, missing[0], 0, missing[1]))
    in_tiles = padded.reshape(tiles, 4, 8, -1).permute(0, 3, 2, 1)
    return words, in_tiles.contiguous()


def rows_of(words: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The codes of some rows, as they were before.  (len(rows), units * 128) int32

    rows: int64, below tiles * 32
    """
    tiles, units, bits = words.shape[:3]
    tile, row = rows // TILE, rows % TILE
    # tile, unit, chunk, r, t, word of the chunk  ->  row, unit, t, row / 8, word
    lanes = words.view(tiles, units, bits, 8, 4, 4)[tile, :, :, row % 8]
    lanes = lanes.permute(0, 1, 3, 2, 4).reshape(len(rows), units, 4, 4, bits)
    mine = lanes[torch.arange(len(rows), device=rows.device), :, :, row // 8]
    eights = _spread(mine).transpose(2, 3)
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    codes = eights[..., None] >> shifts & (1 << bits) - 1
    return _exchanged(codes, bits).reshape(len(rows), units * UNIT)


def norms_of(in_tiles: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The norms of some rows.  (len(rows), padded groups)"""
    return in_tiles[rows // TILE, :, rows % 8, rows % TILE // 8]


def _words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """(rows, columns) int32, whole tiles and units -> (tiles, units, bits, 32, 4) int32"""
    tiles, units = len(codes) // TILE, codes.shape[1] // UNIT
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=codes.device)
    # Codes of eight neighbours, in nibbles: how the device chooses bytes.
    nibbles = _exchanged(codes, bits).reshape(tiles, 4, 8, units, 4, 4, 8) << shifts
    # tile, row / 8, r, unit, stretch of 32, t  ->  tile, unit, r, t, row / 8, stretch
    eights = nibbles.sum(-1, dtype=torch.int32).permute(0, 3, 2, 5, 1, 4)
    words = _squeeze(eights, bits)
    return words.reshape(tiles, units, 32, bits, 4).transpose(2, 3)


def _exchanged(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """At 4 bits, the two highest bits exchanged: the highest then chooses between two levels of one
    sign (codes.cuh). Twice, it is the code.
    """
    return codes & 3 | (codes & 4) << 1 | (codes & 8) >> 1 if bits == 4 else codes


def _squeeze(eights: torch.Tensor, bits: int) -> torch.Tensor:
    """Four words of codes in nibbles, without their unused bits.  (..., 4) -> (..., bits)"""
    a, b, c, d = eights.unbind(-1)
    if bits == 4:
        return eights
    if bits == 2:
        return torch.stack((a | b << 2, c | d << 2), -1)
    ones = 0x11111111
    return torch.stack((a | (d & ones) << 3, b | (d & 2 * ones) << 2, c | (d & 4 * ones) << 1), -1)


def _spread(words: torch.Tensor) -> torch.Tensor:
    """What `_squeeze` was given; above a code may lie other bits.  (..., bits) -> (..., 4)"""
    if words.shape[-1] == 4:
        return words
    if words.shape[-1] == 2:
        a, c = words.unbind(-1)
        return torch.stack((a, a >> 2, c, c >> 2), -1)
    a, b, c = words.unbind(-1)
    ones = 0x11111111
    d = a >> 3 & ones | b >> 2 & 2 * ones | c >> 1 & 4 * ones
    return torch.stack((a, b, c, d), -1)


def integers(quantised: torch.Tensor) -> torch.Tensor:
    """What the kernel's bytes of activations stand for, in the order of the inputs.

    (units, tokens, 2, 128) int8, high and low -> (tokens, units * 128) int32
    """
    units, tokens = quantised.shape[:2]
    values = 256 * quantised[:, :, 0].int() + quantised[:, :, 1].int()
    # Bytes lie as [half of the unit][lane t][32 of the half][8]: a lane reads 16 at once.
    ordered = values.reshape(units, tokens, 2, 4, 2, 8).permute(1, 0, 2, 4, 3, 5)
    return ordered.reshape(tokens, units * UNIT)
