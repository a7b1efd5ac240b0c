"""Weights of a source that is quantised already, as float32: docs/format.md in numpy, to be read.

This file defines which values are right. Every faster backend equals it bit for bit.

A stretch is some neighbouring rows of a matrix, or of a stack of matrices one below the other. Its
codes are bytes as they lie on the disk; its scales are raw words of their type, those of the blocks
that its rows have a part in. Blocks begin at the first row of each matrix.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tq3.codec import reference
from tq3.codec.reference import Floats
from tq3.format.quantised import Encoding

SCALE_TYPE: dict[str, type] = {
    "F32": np.uint32,
    "BF16": np.uint16,
    "F16": np.uint16,
    "F8_E8M0": np.uint8,
    "U8": np.uint8,  # the exponents of F8_E8M0 under another name
    "F8_E4M3": np.uint8,
}
BITS = {"e4m3": (8,), "e2m1": (4,), "nvfp4": (4,), "packed_int": (3, 4, 5, 6, 7, 8)}

_E2M1_SIZES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E2M1: Floats = np.concatenate([_E2M1_SIZES, -_E2M1_SIZES])


def decode(
    encoding: Encoding,
    codes: NDArray[np.uint8],
    scales: NDArray[Any],
    columns: int,
    *,
    first_row: int = 0,
    matrix_rows: int | None = None,
    zero_points: NDArray[np.uint8] | None = None,
    global_scales: Floats | None = None,
) -> Floats:
    """The weights of a stretch: value of code * scale, and then the global scale.

    codes: (rows, encoding.row_bytes(columns))
    scales, zero_points: (blocks below each other, blocks side by side); zero points as `encoding`
        offsets codes, 2**(bits-1) for none; without any they all are that
    first_row: number of the stretch's first row in its stack
    matrix_rows: rows of each matrix of the stack; None: there is one matrix
    global_scales: (matrices that the rows lie in,), of nvfp4 only

    Returns (rows, columns). Each product and quotient is rounded once. What is not a number gives
    NaN, and what is too large infinity.
    """
    rows = np.arange(first_row, first_row + len(codes))
    matrix_rows = matrix_rows or first_row + len(codes)
    blocks = block_row(encoding, rows, matrix_rows) - block_row(encoding, first_row, matrix_rows)

    def of_weights(grid: NDArray[Any]) -> NDArray[Any]:
        spread: NDArray[Any] = grid[blocks].repeat(min(encoding.block[1], columns), axis=1)
        return spread[:, :columns]

    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        values: Floats = _values(encoding, codes, columns)
        if encoding.kind == "packed_int":
            middle = np.float32(1 << (encoding.bits - 1))
            values -= middle if zero_points is None else of_weights(zero_points)
        values *= of_weights(scale_values(scales, encoding.scale_dtype))
        if global_scales is not None:
            factors = global_scales[rows // matrix_rows - first_row // matrix_rows, None]
            values = values / factors if encoding.is_divided else values * factors
    return values


def block_row(encoding: Encoding, row: Any, matrix_rows: int) -> Any:
    """Which row of a stack's scales belongs to a row of the stack."""
    blocks = -(-matrix_rows // encoding.block[0])
    return row // matrix_rows * blocks + row % matrix_rows // encoding.block[0]


def scale_values(scales: NDArray[Any], dtype: str) -> Floats:
    """Scales as float32, exactly."""
    if dtype == "F8_E4M3":
        return e4m3_values(scales)
    if dtype not in ("F8_E8M0", "U8"):
        return reference.to_float32(scales, dtype)
    powers = np.where(scales == 0, 1 << 22, scales.astype(np.uint32) << 23)  # 2**-127 is denormal
    return np.where(scales == 255, 0x7FC00000, powers).astype(np.uint32).view(np.float32)


def e4m3_values(codes: NDArray[np.uint8]) -> Floats:
    """Floats of 8 bits: a sign, 4 bits of exponent with bias 7, 3 of mantissa; no infinity."""
    exponent, mantissa = codes >> 3 & 15, (codes & 7).astype(np.float32)
    sizes = np.where(exponent == 0, mantissa, mantissa + 8)
    sizes = np.ldexp(sizes, np.maximum(exponent, 1).astype(np.int32) - 10)
    sizes = np.where(codes & 127 == 127, np.float32(np.nan), sizes)
    return np.where(codes > 127, -sizes, sizes).astype(np.float32)


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """The first codes of each row's little-endian bit stream.  (rows, count)"""
    planes = np.unpackbits(packed, axis=1, bitorder="little")[:, : count * bits]
    planes = planes.reshape(len(packed), count, bits) << np.arange(bits, dtype=np.uint8)
    codes: NDArray[np.uint8] = planes.sum(-1, dtype=np.uint8)
    return codes


def zero_point_words(bits: int, first: int, count: int) -> range:
    """Which rows of words hold the zero points of rows first .. first+count-1 of the scales."""
    return range(first * bits // 32, -(-(first + count) * bits // 32))


def unpack_zero_points(
    words: NDArray[np.uint32], bits: int, first: int, count: int
) -> NDArray[np.uint8]:
    """Zero points as `decode` takes them; they are packed along the rows, not the columns.

    words: (those of zero_point_words(bits, first, count), groups).  Returns (count, groups)
    """
    start = zero_point_words(bits, first, count).start * 32
    streams = np.ascontiguousarray(words.T).view(np.uint8)
    planes = np.unpackbits(streams, axis=1, bitorder="little")[:, first * bits - start :]
    stretch = np.packbits(planes[:, : count * bits], axis=1, bitorder="little")
    return np.ascontiguousarray(unpack(stretch, bits, count).T)


def _values(encoding: Encoding, codes: NDArray[np.uint8], columns: int) -> Floats:
    if encoding.kind == "e4m3":
        return e4m3_values(codes)
    numbers = unpack(codes, encoding.bits, columns)
    return numbers.astype(np.float32) if encoding.kind == "packed_int" else E2M1[numbers]
