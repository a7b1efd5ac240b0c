"""The trellis code in plain numpy: docs/format.md, section 10, written to be read.

This file defines which bytes are right. Every faster backend equals it bit for bit.

A *cycle* is a group, or half of a group of 256. Its codes are a ring: the value of a weight
depends on its own code and on the two before it, and those before the first are the last ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tq3.codec import tables
from tq3.codec.reference import Floats, Words, hadamard, rotated_groups
from tq3.codec.tables import TrellisCode

Codes = NDArray[np.uint8]
Integers = NDArray[np.int32]

# The search halves its step. docs/decisions/trellis.md says why.
SEARCH_STEPS = (0.08, 0.04)
# Weights before and after a cycle's edge that decide which codes are held there.
WINDOW = 16
# A weight is rounded to parts of a level, and to whole levels for the path.
FRACTION = 128
_MOST = 65535  # costs stop there


def encode(
    words: Words, dtype: str, bits: int, group: int, scale: str = "norm"
) -> tuple[NDArray[np.uint8], Floats]:
    """Codes and norms: (rows, cols) words -> (rows*n, group*bits/8) uint8, (rows, n) float32.

    `n` is ceil(cols / group); a last group that is not full is padded with zeros. A group whose sum
    of squares is not finite in float32 gets a norm that is not finite. `scale`: "norm" takes the
    scale that norm and largest weight of a group suggest, "search" looks for the smallest error
    around it.
    """
    norm, rotated = rotated_groups(words, dtype, group)
    code = tables.trellis(bits)
    with np.errstate(over="ignore", invalid="ignore"):
        rotated[~np.isfinite(norm)] = 0
        peak = np.abs(rotated).max(axis=1)
        first = code.from_norm * norm + code.from_peak * peak
        best = _Coded(code, rotated, norm, first)
        ratio = np.ones_like(norm)
        for step in SEARCH_STEPS if scale == "search" else ():
            for other in (ratio - np.float32(step), ratio + np.float32(step)):
                better = best.take(_Coded(code, rotated, norm, first * other))
                ratio = np.where(better, other, ratio)
        stored = np.where(np.isfinite(norm), best.norm, norm)
    return pack(best.codes, bits), stored.reshape(len(words), -1)


def decode(packed: NDArray[np.uint8], norms: Floats, bits: int, group: int, cols: int) -> Floats:
    """The weights again: (rows*n, group*bits/8) uint8, (rows, n) float32 -> (rows, cols) float32.

    w = norm * D1 * H * D2 * (value * unit), in the order of `reference.decode`.
    """
    code = tables.trellis(bits)
    d1, d2 = tables.signs(group)
    levels = values(unpack(packed, bits), code).astype(np.float32) * np.float32(code.unit(group))
    with np.errstate(over="ignore", invalid="ignore"):
        unit = hadamard(levels * d2) * np.float32(1 / np.sqrt(group)) * d1
        weights: Floats = unit * norms.reshape(-1, 1)
    return weights.reshape(len(norms), -1)[:, :cols]


def values(codes: Codes, code: TrellisCode) -> Integers:
    """What the codes of groups stand for.  (n_groups, group) -> (n_groups, group) int32"""
    ring = _cycles(codes)
    before, before_that = np.roll(ring, 1, axis=1), np.roll(ring, 2, axis=1)
    found: Integers = code.first[ring ^ before_that] + code.second[before]
    return found.reshape(codes.shape)


def pack(codes: Codes, bits: int) -> NDArray[np.uint8]:
    """Codes of a cycle in planes of one byte for each eight weights, a *column*.

    Byte b of plane p has codes 8b+p in its low and 8b+4+p in its high nibble. At 3 bits there are
    three planes, and codes 8b+3 and 8b+7 are in the highest bits of their nibbles, a bit in each.

    (n_groups, group) uint8 -> (n_groups, group*bits/8) uint8
    """
    columns = _cycles(codes).reshape(-1, _cycle(codes.shape[1]) // 8, 2, 4)
    nibbles = columns[:, :, 0] | columns[:, :, 1] << 4
    if bits == 3:
        places = np.arange(3, dtype=np.uint8)
        nibbles = nibbles[:, :, :3] | (nibbles[:, :, 3:] >> places & 0x11) << 3
    packed: NDArray[np.uint8] = nibbles.transpose(0, 2, 1).reshape(len(codes), -1)
    return packed


def unpack(packed: NDArray[np.uint8], bits: int) -> Codes:
    """The inverse of `pack`.  (n_groups, group*bits/8) -> (n_groups, group) uint8"""
    group = packed.shape[1] * 8 // bits
    nibbles = packed.reshape(-1, bits, _cycle(group) // 8).transpose(0, 2, 1)
    if bits == 3:
        places = np.arange(3, dtype=np.uint8)
        last = (nibbles >> 3 & 0x11) << places
        nibbles = np.concatenate([nibbles & 0x77, last.sum(-1, np.uint8, keepdims=True)], axis=2)
    columns = np.stack([nibbles & 15, nibbles >> 4], axis=2)
    return columns.reshape(len(packed), group)


def _cycle(group: int) -> int:
    return min(group, tables.LONGEST_CYCLE)


def _cycles(codes: Codes) -> Codes:
    """(n_groups, group) -> (n_cycles, cycle)"""
    return codes.reshape(-1, _cycle(codes.shape[1]))


class _Coded:
    """Groups coded at one scale.

    length: of the projection of a group on its values, the longer the smaller the error is
    """

    def __init__(self, code: TrellisCode, rotated: Floats, norm: Floats, scale: Floats) -> None:
        usable = np.isfinite(norm) & (norm > 0)
        one = np.float32(FRACTION * code.rms)
        inverse = np.divide(one, scale, np.zeros_like(scale), where=usable)
        fine = np.rint(rotated * inverse[:, None]).astype(np.int32)
        levels = np.clip((fine + FRACTION // 2) // FRACTION, -128, 128)
        ring = levels.reshape(-1, _cycle(levels.shape[1]))
        self.codes = _best_ring(ring, code).reshape(levels.shape)
        chosen = values(self.codes, code)
        product = (fine * chosen).sum(axis=1).astype(np.float32)
        square = (chosen * chosen).sum(axis=1).astype(np.float32)
        self.length = scale * (product / np.sqrt(square))
        norm_of_best = scale * (product / (square * np.float32(FRACTION)))
        self.norm = np.where(product > 0, norm_of_best, np.float32(0))

    def take(self, other: _Coded) -> NDArray[np.bool_]:
        """Take the groups that `other` coded better; which those are."""
        better: NDArray[np.bool_] = other.length > self.length
        self.codes = np.where(better[:, None], other.codes, self.codes)
        self.length = np.where(better, other.length, self.length)
        self.norm = np.where(better, other.norm, self.norm)
        return better


def _best_ring(levels: Integers, code: TrellisCode) -> Codes:
    """The codes of cycles: Viterbi's algorithm once around the edge, once around the ring.

    The first time tells which two codes stand before the edge; they are held the second time.
    """
    n = 1 << code.bits
    around = np.arange(-WINDOW, WINDOW) % levels.shape[1]
    free = np.zeros((len(levels), n, n), np.int32)
    end, path = _walk(levels[:, around], free, code)
    least = end.reshape(len(end), -1).argmin(axis=1)
    held = _back(path[WINDOW:], least // n, least % n)[1]
    start = np.full_like(free, _MOST)
    start[np.arange(len(levels)), held[0], held[1]] = 0
    return _back(_walk(levels, start, code)[1], *held)[0]


def _walk(levels: Integers, cost: Integers, code: TrellisCode) -> tuple[Integers, list[Codes]]:
    """Costs of the best paths to each pair of last codes, and the code before each pair.

    levels: (cycles, steps); cost: (cycles, last code, the one before)
    """
    value = code.first[:, None] + code.second  # of new ^ old, last
    new = np.arange(1 << code.bits)
    path = []
    for step, level in enumerate(levels.T):
        error = (level[:, None, None] - value) ** 2
        best = np.full_like(cost, _MOST + 1)
        choice = np.zeros(cost.shape, np.uint8)
        for old in new:
            total = np.minimum(cost[:, None, :, old] + error[:, new ^ old], _MOST)
            choice[total < best] = old  # the first of equal ones
            best = np.minimum(best, total)
        cost = best - best.min(axis=(1, 2), keepdims=True) if step % 8 == 7 else best
        path.append(choice)
    return cost, path


def _back(path: list[Codes], last: Codes, before: Codes) -> tuple[Codes, tuple[Codes, Codes]]:
    """The codes of the path that ends with two codes, and the two codes ahead of it."""
    each = np.arange(len(last))
    codes = []
    for choice in reversed(path):
        codes.append(last)
        last, before = before, choice[each, last, before]
    return np.stack(codes[::-1], axis=1).astype(np.uint8), (last, before)
