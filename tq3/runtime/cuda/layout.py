"""How a packed layer and its activations lie in a device's memory, for the integer kernel.

A *unit* is 128 inputs of a row: four products of the 32 that a tensor core takes at once. Of each
32, lane t of four multiplies inputs 8 t to 8 t + 7. The integer sums are exact in any order.
A *tile* is 32 rows. The words of a unit of a tile, `bits` times four for each lane, hold the codes
of rows r, r + 8, r + 16 and r + 24 for lane 4 r + t. docs/kernels.md has pictures.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from tq3.runtime.generic import unpack

UNIT = 128
TILE = 32
# Weights repacked at a time: their codes and words need 110 MiB, 160 at 4 bits.
PIECE_WEIGHTS = 1 << 23


def padded_groups(n: int, group: int) -> int:
    """Groups of a row, made up to whole units."""
    a_unit = max(1, UNIT // group)
    return -(-n // a_unit) * a_unit


class Tiles(NamedTuple):
    """A layer in tiles and units; for several layers, with a dimension for them before.

    words: (tiles, units, bits, 32 lanes, 4) int32, of the size of the codes when nothing is padded
    norms: (tiles, padded groups, 8, 4) float32, of rows r, r + 8, r + 16, r + 24; 0 for padding
    """

    words: torch.Tensor
    norms: torch.Tensor


def repack(packed: torch.Tensor, norms: torch.Tensor, bits: int, group: int) -> Tiles:
    """A layer, or several, in tiles and units.

    packed: the bytes of (rows * n) groups, in any shape; norms: (rows, n) or (layers, rows, n)
    """
    *lead, rows, n = norms.shape
    tiles, units = -(-rows // TILE), padded_groups(n, group) * group // UNIT
    words = packed.new_empty(*lead, tiles, units, bits, 32, 4, dtype=torch.int32)
    in_tiles = norms.new_zeros(*lead, tiles, padded_groups(n, group), 8, 4)
    codes = packed.view(-1, rows * n, group * bits // 8)
    places = words.view(-1, *words.shape[-5:]), in_tiles.view(-1, *in_tiles.shape[-4:])
    for layer in zip(codes, norms.view(-1, rows, n), *places, strict=True):
        _repack_into(*layer)
    settle(words.device)
    return Tiles(words, in_tiles)


def settle(device: torch.device) -> None:
    """Wait for what is queued on a GPU: a kernel may ask for weights before what is directly ahead
    of it in the stream has ended (launches.Call), so nothing that writes them may be.
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def restore(tiles: Tiles, rows: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What was repacked.  (..., rows * n, group * bits / 8) uint8, (..., rows, n) float32"""
    bits, group = tiles.words.shape[-3], _group_of(tiles)
    lead = tiles.words.shape[:-5]
    packed = tiles.words.new_empty(*lead, rows, n * group * bits // 8, dtype=torch.uint8)
    norms = tiles.norms.new_empty(*lead, rows, n)
    words = tiles.words.view(-1, *tiles.words.shape[-5:])
    in_tiles = tiles.norms.view(-1, *tiles.norms.shape[-4:])
    step = max(1, PIECE_WEIGHTS // (n * group))
    numbers = torch.arange(rows, device=packed.device)
    for i, (of_layer, norms_of_layer) in enumerate(zip(words, in_tiles, strict=True)):
        for chosen in numbers.split(step):
            codes = rows_of(of_layer, chosen)[:, : n * group]
            packed.view(-1, *packed.shape[-2:])[i, chosen] = _pack(codes, bits)
        norms.view(-1, rows, n)[i] = norms_of(norms_of_layer, numbers)[:, :n]
    return packed.view(*lead, rows * n, group * bits // 8), norms


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


def _repack_into(
    packed: torch.Tensor, norms: torch.Tensor, words: torch.Tensor, in_tiles: torch.Tensor
) -> None:
    (rows, n), (tiles, units, bits) = norms.shape, words.shape[:3]
    columns = units * UNIT
    group = packed.shape[1] * 8 // bits
    step = max(1, PIECE_WEIGHTS // (TILE * columns))
    for first in range(0, tiles, step):
        part = words[first : first + step]
        groups = slice(first * TILE * n, (first + step) * TILE * n)
        codes = unpack(packed[groups], bits).reshape(-1, n * group)
        missing = columns - n * group, len(part) * TILE - len(codes)
        part.copy_(_words(F.pad(codes, (0, missing[0], 0, missing[1])), bits))
    padded = F.pad(norms, (0, 0, 0, tiles * TILE - rows))
    in_tiles[:, :n] = padded.reshape(tiles, 4, 8, n).permute(0, 3, 2, 1)


def _group_of(tiles: Tiles) -> int:
    return tiles.words.shape[-4] * UNIT // tiles.norms.shape[-3]


def _pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """(rows, columns) int32 -> (rows, columns * bits / 8) uint8, as the format has them"""
    shifts = torch.arange(0, 8 * bits, bits, dtype=torch.int32, device=codes.device)
    words = (codes.reshape(len(codes), -1, 8) << shifts).sum(-1, dtype=torch.int32)
    parts = [words >> 8 * i & 255 for i in range(bits)]
    return torch.stack(parts, -1).to(torch.uint8).reshape(len(codes), -1)


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
