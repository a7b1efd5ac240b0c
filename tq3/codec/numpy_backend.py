"""The references as a backend: their results into arrays of the caller, which are checked."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tq3.codec import calibrated, quantised, reference, tables, trellis
from tq3.codec.calibrated import BLOCK, PANEL, Feedback
from tq3.codec.reference import WORD_TYPE, Floats, Words
from tq3.format.quantised import Encoding
from tq3.format.recipe import CODES, GROUP_SIZES, SCALES, TRELLIS_WIDTHS

Packed = NDArray[np.uint8]


class NumpyBackend:
    """The references, a few thousand groups at a time so that its temporaries stay small."""

    name = "numpy"
    _CHUNK_WEIGHTS = 1 << 18

    def encode(
        self,
        words: Words,
        dtype: str,
        bits: int,
        group: int,
        packed: Packed,
        norms: Floats,
        scale: str = "norm",
        code: str = "scalar",
    ) -> None:
        n = _check_matrix(words, dtype, bits, group, packed, norms)
        codec = _codec(code, bits)
        if scale not in SCALES:
            raise ValueError(f"scale: found {scale!r}, expected 'norm' or 'search'")
        for rows in self._row_chunks(words.shape):
            packed[rows.start * n : rows.stop * n], norms[rows] = codec.encode(
                words[rows], dtype, bits, group, scale
            )

    def encode_calibrated(
        self,
        words: Words,
        dtype: str,
        bits: int,
        group: int,
        packed: Packed,
        norms: Floats,
        first_group: int,
        feedback: Feedback,
        norm_dtype: str,
    ) -> None:
        n = _check_matrix(words, dtype, bits, group, packed, norms)
        _check_feedback(feedback, group, first_group, n)
        here = slice(first_group, first_group + len(feedback.order))
        block = words[:, here.start * group : here.stop * group]
        codes, norms[:, here] = calibrated.encode(block, dtype, bits, group, feedback, norm_dtype)
        packed.reshape(len(words), n, -1)[:, here] = codes

    def decompose(self, matrix: NDArray[np.float64]) -> None:
        _check("matrix", matrix, (len(matrix), len(matrix)), np.float64)
        if len(matrix) > BLOCK:
            raise ValueError(f"matrix.shape: found {matrix.shape}, expected at most {BLOCK} rows")
        calibrated.decompose(matrix)

    def decode(
        self,
        packed: Packed,
        norms: Floats,
        bits: int,
        group: int,
        words: Words,
        dtype: str,
        code: str = "scalar",
    ) -> None:
        codec = _codec(code, bits)
        n = _check_matrix(words, dtype, bits, group, packed, norms)
        cols = words.shape[1]
        for rows in self._row_chunks(words.shape):
            chunk = packed[rows.start * n : rows.stop * n]
            values = codec.decode(chunk, norms[rows], bits, group, cols)
            words[rows] = reference.from_float32(np.ascontiguousarray(values), dtype)

    def cast(self, words: Words, dtype: str, out: Words, out_dtype: str) -> int:
        _check("words", words, words.shape, _word_type(dtype))
        _check("out", out, words.shape, _word_type(out_dtype))
        source, target = words.reshape(-1), out.reshape(-1)
        overflowed = 0
        for start in range(0, source.size, self._CHUNK_WEIGHTS):
            chunk = slice(start, start + self._CHUNK_WEIGHTS)
            values = reference.to_float32(source[chunk], dtype)
            target[chunk] = reference.from_float32(values, out_dtype)
            infinite = np.isinf(reference.to_float32(target[chunk], out_dtype))
            overflowed += int(np.count_nonzero(infinite & np.isfinite(values)))
        return overflowed

    def dequantize(
        self,
        encoding: Encoding,
        codes: NDArray[np.uint8],
        scales: NDArray[Any],
        out: Floats,
        *,
        lines: NDArray[np.int64] | None = None,
        zero_points: NDArray[np.uint8] | None = None,
        global_scale: Floats | None = None,
    ) -> None:
        lines = np.arange(len(out)) if lines is None else lines
        _check_quantised(encoding, codes, scales, lines, out, zero_points, global_scale)
        for rows in self._row_chunks(out.shape):
            out[rows] = quantised.decode(
                encoding,
                codes[rows],
                scales,
                out.shape[1],
                lines=lines[rows],
                zero_points=zero_points,
                global_scale=None if global_scale is None else global_scale[rows],
            )

    def _row_chunks(self, shape: tuple[int, ...]) -> list[slice]:
        rows, cols = shape
        step = max(1, self._CHUNK_WEIGHTS // max(1, cols))
        return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _check_matrix(
    words: Words, dtype: str, bits: int, group: int, packed: Packed, norms: Floats
) -> int:
    """Refuse what module.cpp refuses, in the same words; groups in a row."""
    check_width(bits, group)
    if words.ndim != 2:
        raise ValueError(f"words.shape: found {words.shape}, expected two dimensions, (rows, cols)")
    rows, cols = words.shape
    n: int = -(-cols // group)
    _check("words", words, words.shape, _word_type(dtype))
    _check("norms", norms, (rows, n), np.float32)
    _check("packed", packed, (rows * n, group * bits // 8), np.uint8)
    return n


def _check_feedback(feedback: Feedback, group: int, first_group: int, n_groups: int) -> None:
    """Refuse what module.cpp refuses, in the same words."""
    order, m = feedback.order, len(feedback.order)
    n = m * group
    _check("order", order, (m,), np.int64)
    if not 0 < n <= BLOCK:
        expected = f"at most {BLOCK} columns in groups"
        raise ValueError(f"order.shape: found {order.shape}, expected {expected}")
    for at in order[(order < 0) | (order >= m)]:
        raise ValueError(f"order: found {at}, expected a group of the block")
    if first_group + m > n_groups:
        expected = "that of a block inside the row"
        raise ValueError(f"first_group: found {first_group}, expected {expected}")
    _check("spread", feedback.spread, (n // PANEL, n, PANEL), np.float32)
    _check("weight", feedback.weight, (n,), np.float32)


def _check_quantised(
    encoding: Encoding,
    codes: NDArray[np.uint8],
    scales: NDArray[Any],
    lines: NDArray[np.int64],
    out: Floats,
    zero_points: NDArray[np.uint8] | None,
    global_scale: Floats | None,
) -> None:
    """Refuse what module.cpp refuses, in the same words."""
    kind, bits = encoding.kind, encoding.bits
    if bits not in quantised.BITS[kind]:
        raise ValueError(f"bits: found {bits}, expected what codes of kind {kind!r} have")
    if encoding.scale_dtype not in quantised.SCALE_TYPE:
        known = "'F32', 'BF16', 'F16', 'F8_E8M0', 'U8' or 'F8_E4M3'"
        raise ValueError(f"scale_dtype: found {encoding.scale_dtype!r}, expected {known}")
    if out.ndim != 2:
        raise ValueError(f"out.shape: found {out.shape}, expected two dimensions, (rows, columns)")
    rows, columns = out.shape
    grid = len(scales), encoding.grid(rows, columns)[1]
    _check("out", out, out.shape, np.float32)
    _check("codes", codes, (rows, encoding.row_bytes(columns)), np.uint8)
    _check("scales", scales, grid, quantised.SCALE_TYPE[encoding.scale_dtype])
    _check("lines", lines, (rows,), np.int64)
    for line in lines[(lines < 0) | (lines >= len(scales))]:
        raise ValueError(f"lines: found {line}, expected a row of scales")
    if zero_points is not None:
        if kind != "packed_int":
            raise ValueError("zero_points: found some, expected none for this kind")
        _check("zero_points", zero_points, grid, np.uint8)
    if (global_scale is not None) != (kind == "nvfp4"):
        found = "none" if global_scale is None else "some"
        raise ValueError(f"global_scale: found {found}, expected some for 'nvfp4' only")
    if global_scale is not None:
        _check("global_scale", global_scale, (rows,), np.float32)


def _codec(code: str, bits: int) -> ModuleType:
    check_code(code, bits)
    return trellis if code == "trellis" else reference


def check_code(code: str, bits: int) -> None:
    """Refuse codes that the format does not have."""
    if code not in CODES:
        raise ValueError(f"code: found {code!r}, expected 'scalar' or 'trellis'")
    if code == "trellis" and bits not in TRELLIS_WIDTHS:
        raise ValueError(f"bits: found {bits}, expected 3 or 4 for a trellis code")


def check_width(bits: int, group: int) -> None:
    """Refuse widths and groups that the format does not have."""
    if bits not in tables.LEVELS:
        raise ValueError(f"bits: found {bits}, expected 2, 3 or 4")
    if group not in GROUP_SIZES:
        raise ValueError(f"group: found {group}, expected 32, 64, 128 or 256")


def _check(what: str, array: NDArray[Any], shape: tuple[int, ...], dtype: type) -> None:
    if array.dtype != dtype:
        raise ValueError(f"{what}.dtype: found {array.dtype}, expected {np.dtype(dtype)}")
    if array.shape != shape:
        raise ValueError(f"{what}.shape: found {array.shape}, expected {shape}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{what}: found strided memory, expected a C-contiguous array")


def _word_type(dtype: str) -> type:
    if dtype not in WORD_TYPE:
        raise ValueError(f"dtype: found {dtype!r}, expected 'BF16', 'F16' or 'F32'")
    return WORD_TYPE[dtype]
