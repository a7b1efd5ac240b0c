"""Encode and decode in plain numpy: the arithmetic of docs/format.md, written to be read.

This file defines which bytes are right. Every faster backend equals it bit for bit.

A matrix of weights arrives as *words*: its raw little-endian elements, uint16 for BF16 and F16,
uint32 for F32.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tq3.codec import tables

Words = NDArray[np.uint16] | NDArray[np.uint32]
Floats = NDArray[np.float32]
AnyFloats = TypeVar("AnyFloats", NDArray[np.float32], NDArray[np.float64])
WORD_TYPE: dict[str, type] = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32}

# The search halves its step, from a quarter of the norm's scale on. docs/quality.md says why.
SEARCH_STEPS = (0.25, 0.125, 0.0625, 0.03125)


def encode(
    words: Words, dtype: str, bits: int, group: int, scale: str = "norm"
) -> tuple[NDArray[np.uint8], Floats]:
    """Codes and norms: (rows, cols) words -> (rows*n, group*bits/8) uint8, (rows, n) float32.

    `n` is ceil(cols / group); a last group that is not full is padded with zeros. A group whose sum
    of squares is not finite in float32 gets a norm that is not finite: the caller decides what that
    means. `scale` says how codes and norms are chosen: "norm" corrects the norm, "search" looks for
    the smallest error.
    """
    norm, rotated = rotated_groups(words, dtype, group)
    with np.errstate(over="ignore", invalid="ignore"):
        unit = norm * np.float32(np.sqrt(group))
        boundaries = tables.boundaries(bits, group)
        if scale == "search":
            unit, gain = search(np.abs(rotated), unit, bits)
            codes = nearest_codes(rotated, unit, boundaries)
            stored_norm = np.where(np.isfinite(norm), gain * np.float32(1 / np.sqrt(group)), norm)
        else:
            codes = nearest_codes(rotated, unit, boundaries)
            stored_norm = norm / _norm_of_levels(codes, bits)
    return pack(codes, bits), stored_norm.reshape(len(words), -1)


def rotated_groups(words: Words, dtype: str, group: int) -> tuple[Floats, Floats]:
    """Norm and D2 * H' * D1 * x of each group x; H' is not normalised.

    (rows, cols) words -> (rows*n,) and (rows*n, group) float32
    """
    rows, cols = words.shape
    n = -(-cols // group)
    padded = np.zeros((rows, n * group), np.float32)
    padded[:, :cols] = to_float32(words, dtype)
    groups = padded.reshape(rows * n, group)
    d1, d2 = tables.signs(group)
    with np.errstate(over="ignore", invalid="ignore"):
        norm = np.sqrt(sum_in_index_order(groups * groups))
        return norm, hadamard(groups * d1) * d2


def decode(packed: NDArray[np.uint8], norms: Floats, bits: int, group: int, cols: int) -> Floats:
    """The weights again: (rows*n, group*bits/8) uint8, (rows, n) float32 -> (rows, cols) float32.

    w = norm * D1 * H * D2 * level; H is butterflies, then a factor float32(1/sqrt(group)).
    """
    d1, d2 = tables.signs(group)
    levels = tables.codebook(bits, group)[unpack(packed, bits)]
    with np.errstate(over="ignore", invalid="ignore"):
        unit = hadamard(levels * d2) * np.float32(1 / np.sqrt(group)) * d1
        weights: Floats = unit * norms.reshape(-1, 1)
    return weights.reshape(len(norms), -1)[:, :cols]


def hadamard(groups: AnyFloats) -> AnyFloats:
    """Walsh-Hadamard transform of each row, not normalised.  (n_groups, group)

    Natural (Sylvester) order.
    Strides group/2, group/4, ..., 1: the order of the float32 additions is part of the definition.
    """
    stride = groups.shape[1] // 2
    while stride:
        pairs = groups.reshape(len(groups), -1, 2, stride)
        a, b = pairs[:, :, 0], pairs[:, :, 1]
        groups = np.stack([a + b, a - b], axis=2).reshape(groups.shape)
        stride //= 2
    return groups


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Code i starts at bit i*bits of a little-endian stream.

    (n_groups, group) uint8, 0 .. 2**bits - 1 -> (n_groups, group*bits/8) uint8
    """
    planes = (codes[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(planes.reshape(len(codes), -1), axis=-1, bitorder="little")


def unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The inverse of `pack`.  (n_groups, group*bits/8) -> (n_groups, group) uint8"""
    planes = np.unpackbits(packed, axis=-1, bitorder="little").reshape(len(packed), -1, bits)
    codes: NDArray[np.uint8] = (planes << np.arange(bits, dtype=np.uint8)).sum(-1, dtype=np.uint8)
    return codes


def to_float32(words: Words, dtype: str) -> Floats:
    """The exact float32 value of each word of a BF16, F16 or F32 matrix."""
    if dtype == "BF16":
        return (words.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F16":
        return words.view(np.float16).astype(np.float32)
    return words.view(np.float32)


def from_float32(values: Floats, dtype: str) -> Words:
    """Words of `dtype` nearest to each value, ties to even; what is too large becomes infinite."""
    if dtype == "F32":
        return values.view(np.uint32)
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet_nan = (bits >> 16) | 0x40
    return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16)


def sum_in_index_order(values: Floats) -> Floats:
    """Sum of each group, added from the first value to the last.  (n_groups,) float32"""
    total = np.zeros(len(values), np.float32)
    for column in values.T:
        total += column
    return total


def search(sizes: Floats, unit: Floats, bits: int) -> tuple[Floats, Floats]:
    """The scale of the thresholds that gives the smallest error, and the gain of its levels.

    Each step tries a smaller and a larger scale than the best one so far.
    (n_groups, group) magnitudes, (n_groups,) -> two (n_groups,) float32
    """
    ratio = np.ones_like(unit)
    length, gain = _fit(sizes, unit, bits)
    for step in SEARCH_STEPS:
        for other in (ratio - np.float32(step), ratio + np.float32(step)):
            its_length, its_gain = _fit(sizes, unit * other, bits)
            longer = its_length > length
            length = np.where(longer, its_length, length)
            gain = np.where(longer, its_gain, gain)
            ratio = np.where(longer, other, ratio)
    return unit * ratio, gain


def _fit(sizes: Floats, scale: Floats, bits: int) -> tuple[Floats, Floats]:
    """Least squares for the levels c that thresholds of this scale choose.

    The length of y's projection on c, which is the longer the smaller the error is, and the gain
    that makes it from c: y.c / |c| and y.c / c.c.  Two (n_groups,) float32
    """
    group = sizes.shape[1]
    levels = tables.codebook(bits, group)[1 << (bits - 1) :]
    squares = levels * levels
    product = sum_in_index_order(sizes) * levels[0]
    square = np.full(len(sizes), np.float32(group) * squares[0])
    for k, boundary in enumerate(tables.boundaries(bits, group)):
        above = sizes > (scale * boundary)[:, None]
        sum_above = sum_in_index_order(np.where(above, sizes, np.float32(0)))
        product += sum_above * (levels[k + 1] - levels[k])
        square += above.sum(axis=1).astype(np.float32) * (squares[k + 1] - squares[k])
    return product / np.sqrt(square), product / square


def nearest_codes(rotated: Floats, unit: Floats, boundaries: Floats) -> NDArray[np.uint8]:
    """Count thresholds below |y|, then the sign picks the half: zero takes the lower one."""
    thresholds = unit[:, None] * boundaries
    exceeds = np.abs(rotated)[:, :, None] > thresholds[:, None, :]
    magnitude: NDArray[np.uint8] = exceeds.sum(axis=-1, dtype=np.uint8)
    half = len(boundaries) + 1
    codes = np.where(rotated > 0, half + magnitude, half - 1 - magnitude)
    return codes.astype(np.uint8)


def _norm_of_levels(codes: NDArray[np.uint8], bits: int) -> Floats:
    """Norm of the chosen levels, float64 from their counts, rounded once.  (n_groups,) float32"""
    group, half = codes.shape[1], 1 << (bits - 1)
    squares = tables.codebook(bits, group)[half:].astype(np.float64) ** 2
    total = np.zeros(len(codes))
    for magnitude, square in enumerate(squares):
        inner, outer = half - 1 - magnitude, half + magnitude
        total += ((codes == inner) | (codes == outer)).sum(axis=1) * square
    return np.sqrt(total).astype(np.float32)
