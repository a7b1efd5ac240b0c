"""Weights of a source that is quantised already, as float32: docs/format.md in numpy, to be read.

This file defines which values are right. Every faster backend equals it bit for bit.

Codes are bytes as they lie on the disk, row by row. Scales are raw words of their type; those of
one row of blocks are a line.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tq3.codec import reference
from tq3.codec.reference import Floats
from tq3.format.quantised import Encoding

Bytes = NDArray[np.uint8]

SCALE_TYPE: dict[str, type] = {
    **reference.WORD_TYPE,
    "F8_E8M0": np.uint8,
    "U8": np.uint8,  # F8_E8M0 under another name
    "F8_E4M3": np.uint8,
}
BITS = {"e4m3": (8,), "e2m1": (4,), "nvfp4": (4,), "packed_int": (3, 4, 5, 6, 7, 8)}

_SIZES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E2M1: Floats = np.concatenate([_SIZES, -_SIZES])


def decode(
    encoding: Encoding,
    codes: Bytes,
    scales: NDArray[Any],
    columns: int,
    *,
    lines: NDArray[np.int64] | None = None,
    zero_points: Bytes | None = None,
    global_scale: Floats | None = None,
) -> Floats:
    """Rows of weights: the value of a code times its scale, then times or by the global scale.

    codes: (rows, encoding.row_bytes(columns))
    scales, zero_points: (lines, blocks side by side); without zero points, integers have their
        middle, 2**(bits-1), for zero
    lines: (rows,), which line each row has; None: its own
    global_scale: (rows,), of nvfp4 only

    Returns (rows, columns). Each product and quotient is rounded once; where an operand is no
    number the weight is none, and what is too large becomes infinite.
    """
    if lines is None:
        lines = np.arange(len(codes))

    def of_weights(grid: NDArray[Any]) -> NDArray[Any]:
        spread: NDArray[Any] = grid[lines].repeat(min(encoding.block[1], columns), axis=1)
        return spread[:, :columns]

    with np.errstate(all="ignore"):
        values: Floats = _values(encoding, codes, columns)
        if encoding.kind == "packed_int":
            middle = np.float32(1 << (encoding.bits - 1))
            values = values - (middle if zero_points is None else of_weights(zero_points))
        values = values * of_weights(scale_values(scales, encoding.scale_dtype))
        if global_scale is not None:
            factor = global_scale[:, None]
            values = values / factor if encoding.is_divided else values * factor
    return values


def scale_values(scales: NDArray[Any], dtype: str) -> Floats:
    """Scales as float32, exactly, from their words or bytes."""
    words: NDArray[Any] = scales.view(SCALE_TYPE[dtype])
    if dtype == "F8_E4M3":
        return e4m3_values(words)
    if dtype not in ("F8_E8M0", "U8"):
        return reference.to_float32(words, dtype)
    bits = words.astype(np.uint32) << 23
    bits[words == 0] = 1 << 22  # 2**-127 is denormal
    bits[words == 255] = 0x7FC00000
    return bits.view(np.float32)


def e4m3_values(codes: Bytes) -> Floats:
    """Floats of 8 bits: a sign, 4 bits of exponent with bias 7, 3 of mantissa; no infinity."""
    exponent, mantissa = codes >> 3 & 15, (codes & 7).astype(np.float32)
    sizes = np.where(exponent == 0, mantissa, mantissa + 8)
    sizes = np.ldexp(sizes, np.maximum(exponent, 1).astype(np.int32) - 10)
    sizes = np.where(codes & 127 == 127, np.float32(np.nan), sizes)
    values: Floats = np.where(codes > 127, -sizes, sizes)
    return values


def unpack(packed: Bytes, bits: int, count: int) -> Bytes:
    """The first codes of each row's little-endian bit stream.  (rows, n) -> (rows, count)"""
    planes = np.unpackbits(packed, axis=1, bitorder="little")[:, : count * bits]
    planes = planes.reshape(len(packed), count, bits) << np.arange(bits, dtype=np.uint8)
    codes: Bytes = planes.sum(-1, dtype=np.uint8)
    return codes


def _values(encoding: Encoding, codes: Bytes, columns: int) -> Floats:
    if encoding.kind == "e4m3":
        return e4m3_values(codes)
    numbers = unpack(codes, encoding.bits, columns)
    return numbers.astype(np.float32) if encoding.kind == "packed_int" else E2M1[numbers]
