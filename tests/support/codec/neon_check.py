"""Compare the kernels inside tests/codec/neon_driver.cpp with the reference.

    PYTHONPATH=tests python -m support.codec.neon_check COMMAND...

The command starts the driver, for instance in an emulator.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.codec.matrices import (
    BITS,
    DTYPES,
    GROUPS,
    ROW_KINDS,
    assert_same_words,
    decode,
    encode,
    matrix,
    quiet_float32,
    to_words,
)
from support.codec.moments import correlated, feedback_of
from support.codec.quantised import ENCODINGS, dequantize, stretch
from tq3.codec import calibrated, quantised, reference, tables, trellis
from tq3.codec.calibrated import Feedback
from tq3.codec.reference import Floats
from tq3.format.quantised import Encoding
from tq3.format.recipe import SCALES, TRELLIS_WIDTHS

KERNELS = ("neon", "portable")  # in the order of dispatch.cpp
ENCODE, DECODE, CAST, DEQUANTIZE, ENCODE_CALIBRATED, DECOMPOSE = range(6)
# In the order of kernels.h.
CODES = {"e4m3": 0, "e2m1": 1, "nvfp4": 1, "packed_int": 2}
SCALE_TYPES = {"F32": 0, "BF16": 1, "F16": 2, "F8_E8M0": 3, "U8": 3, "F8_E4M3": 4}


class DrivenBackend:
    """A backend in another process; see neon_driver.cpp for what is said."""

    def __init__(self, process: subprocess.Popen[bytes], name: str) -> None:
        self.name = name
        self._process = process

    def encode(
        self,
        words: NDArray[Any],
        dtype: str,
        bits: int,
        group: int,
        packed: NDArray[Any],
        norms: NDArray[Any],
        scale: str = "norm",
        code: str = "scalar",
    ) -> None:
        data, outputs = words.tobytes(), [packed, norms]
        out, _ = self._ask(
            ENCODE, bits, group, words.shape, dtype, dtype, data, outputs, scale, code
        )
        packed[:] = out[: packed.nbytes].reshape(packed.shape)
        norms[:] = out[packed.nbytes :].view(np.float32).reshape(norms.shape)

    def decode(
        self,
        packed: NDArray[Any],
        norms: NDArray[Any],
        bits: int,
        group: int,
        words: NDArray[Any],
        dtype: str,
        code: str = "scalar",
    ) -> None:
        data = packed.tobytes() + norms.tobytes()
        out, _ = self._ask(DECODE, bits, group, words.shape, dtype, dtype, data, [words], code=code)
        words[:] = out.view(words.dtype).reshape(words.shape)

    def cast(self, words: NDArray[Any], dtype: str, out: NDArray[Any], out_dtype: str) -> int:
        shape = (1, words.size)
        answer, overflowed = self._ask(CAST, 2, 32, shape, dtype, out_dtype, words.tobytes(), [out])
        out[:] = answer.view(out.dtype).reshape(out.shape)
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
        zeros = b"" if zero_points is None else zero_points.tobytes()
        factors = np.ones(len(out), np.float32) if global_scale is None else global_scale
        data = lines.tobytes() + factors.tobytes() + scales.tobytes() + zeros + codes.tobytes()
        joined = 0 if global_scale is None else 1 + encoding.is_divided
        more = [CODES[encoding.kind], encoding.bits, SCALE_TYPES[encoding.scale_dtype], joined]
        more += [encoding.block[1], scales.nbytes, len(zeros)]
        answer, _ = self._ask(DEQUANTIZE, 2, 32, out.shape, "F32", "F32", data, [out], more=more)
        out[:] = answer.view(np.float32).reshape(out.shape)

    def encode_calibrated(
        self,
        words: NDArray[Any],
        dtype: str,
        bits: int,
        group: int,
        packed: NDArray[Any],
        norms: NDArray[Any],
        first_group: int,
        feedback: Feedback,
        norm_dtype: str,
    ) -> None:
        parts = feedback.order, feedback.weight, feedback.spread, words
        data, outputs = b"".join(part.tobytes() for part in parts), [packed, norms]
        more = (0, 0, 0, int(norm_dtype == "F16"), len(feedback.order), 0, 0)
        shape, operation = words.shape, ENCODE_CALIBRATED
        out, _ = self._ask(operation, bits, group, shape, dtype, dtype, data, outputs, more=more)
        packed[:] = out[: packed.nbytes].reshape(packed.shape)
        norms[:] = out[packed.nbytes :].view(np.float32).reshape(norms.shape)

    def decompose(self, matrix: NDArray[np.float64]) -> None:
        data, outputs = matrix.tobytes(), [matrix]
        out, _ = self._ask(DECOMPOSE, 2, 32, matrix.shape, "F32", "F32", data, outputs)
        matrix[:] = out.view(np.float64).reshape(matrix.shape)

    def _ask(
        self,
        operation: int,
        bits: int,
        group: int,
        shape: tuple[int, ...],
        dtype: str,
        other: str,
        data: bytes,
        outputs: list[NDArray[Any]],
        scale: str = "norm",
        code: str = "scalar",
        more: Sequence[int] = (0,) * 7,
    ) -> tuple[NDArray[np.uint8], int]:
        n_out = sum(output.nbytes for output in outputs)
        dtypes = DTYPES.index(dtype), DTYPES.index(other)
        kernel = KERNELS.index(self.name)
        fields = [operation, kernel, bits, group, *shape, *dtypes, SCALES.index(scale)]
        fields += [code == "trellis", len(data), n_out, *more]
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(np.array(fields, np.int64).tobytes())
        constants: list[NDArray[Any]] = [
            tables.codebook(bits, group),
            tables.boundaries(bits, group),
        ]
        constants += [*tables.signs(group), np.sqrt([group]), 1 / np.sqrt([group])]
        if code == "trellis":
            of_code = tables.trellis(bits)
            others = of_code.rms, of_code.from_norm, of_code.from_peak, of_code.unit(group)
            constants += [of_code.first, of_code.second, np.array(others)]
        for constant in constants:
            self._process.stdin.write(constant.astype(np.float32).tobytes())
        self._process.stdin.write(data)
        self._process.stdin.flush()
        answer = self._process.stdout.read(n_out + 8)
        assert len(answer) == n_out + 8, "the driver stopped"
        overflowed = int(np.frombuffer(answer[n_out:], np.int64)[0])
        return np.frombuffer(answer[:n_out], np.uint8), overflowed


def check_encode_and_decode(
    backend: DrivenBackend, dtype: str, bits: int, group: int, scale: str, code: str, cols: int
) -> None:
    """Every kind of row, decoded to the same dtype."""
    codec = trellis if code == "trellis" else reference
    words = matrix([*ROW_KINDS, "gaussian", "gaussian"], cols, dtype, seed=bits * cols)
    packed, norms = encode(backend, words, dtype, bits, group, scale, code)
    with np.errstate(invalid="ignore"):
        expected_packed, expected_norms = codec.encode(words, dtype, bits, group, scale)
    np.testing.assert_array_equal(packed, expected_packed)
    assert_same_words(norms.view(np.uint32), expected_norms.view(np.uint32), "F32")

    decoded = decode(backend, packed, norms, bits, group, cols, dtype, code)
    expected = to_words(codec.decode(packed, norms, bits, group, cols), dtype)
    assert_same_words(decoded, expected, dtype)


def check_cast(backend: DrivenBackend, source: str, target: str) -> None:
    """Every 16-bit word; for float32 every upper half around its rounding points."""
    words: NDArray[Any] = np.arange(1 << 16, dtype=np.uint16)
    if source == "F32":
        lower = np.array([0, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001], np.uint32)
        words = ((words.astype(np.uint32) << 16)[:, None] | lower).ravel()
    out = np.empty(words.shape, np.uint32 if target == "F32" else np.uint16)
    overflowed = backend.cast(words, source, out, target)
    values = quiet_float32(words, source)
    expected = to_words(values, target)
    assert_same_words(out, expected, target)
    now_infinite = np.isfinite(values) & np.isinf(quiet_float32(expected, target))
    assert overflowed == np.count_nonzero(now_infinite)


def check_dequantize(backend: DrivenBackend) -> None:
    """Every encoding; rows that end in mid-block, in mid-vector and behind what is spread."""
    for encoding in ENCODINGS.values():
        for rows, columns in ((1, 1), (5, 33), (40, 1100)):
            codes, scales, others = stretch(encoding, rows, columns, seed=columns)
            expected = quantised.decode(encoding, codes, scales, columns, **others)
            found = dequantize(backend, encoding, codes, scales, columns, **others)
            assert_same_words(found.view(np.uint32), expected.view(np.uint32), "F32")


def check_calibrated(backend: DrivenBackend, dtype: str, bits: int, group: int) -> None:
    """Every kind of row; a row that ends in a group, and norms of both types."""
    for cols, norm_dtype in ((2 * group - 7, "F16"), (2 * group, "F32")):
        feedback = feedback_of(correlated(cols), group)
        words = matrix([*ROW_KINDS, "gaussian", "gaussian"], cols, dtype, seed=bits * cols)
        packed = np.empty((len(words) * 2, group * bits // 8), np.uint8)
        norms = np.empty((len(words), 2), np.float32)
        arrays = packed, norms, 0, feedback, norm_dtype
        backend.encode_calibrated(words, dtype, bits, group, *arrays)
        expected = calibrated.encode(words, dtype, bits, group, feedback, norm_dtype)
        np.testing.assert_array_equal(packed, expected[0].reshape(packed.shape))
        np.testing.assert_array_equal(norms, expected[1])


def check_decompose(backend: DrivenBackend) -> None:
    """All that is on the diagonal and above it."""
    _, expected = calibrated.rotated_moments(correlated(96), 1.0, 32, 0.01)
    found = expected.copy()
    backend.decompose(found)
    calibrated.decompose(expected)
    np.testing.assert_array_equal(np.triu(found), np.triu(expected))


def main(command: list[str]) -> None:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for name in KERNELS:
            backend = DrivenBackend(process, name)
            ways = 0
            for dtype, bits, group, scale in product(DTYPES, BITS, GROUPS, SCALES):
                ways += 1
                # Ends of rows inside a group and at its end.
                for cols in (group - 7, 2 * group + 1, 2 * group):
                    check_encode_and_decode(backend, dtype, bits, group, scale, "scalar", cols)
            for bits, group, scale in product(TRELLIS_WIDTHS, GROUPS, SCALES):
                ways += 1
                check_encode_and_decode(backend, "BF16", bits, group, scale, "trellis", group - 7)
            for source in DTYPES:
                for target in DTYPES:
                    check_cast(backend, source, target)
            check_dequantize(backend)
            for calibration in product(DTYPES, BITS, GROUPS):
                check_calibrated(backend, *calibration)
            check_decompose(backend)
            print(
                f"{name}: {ways} ways to encode and decode, 9 casts and {len(ENCODINGS)} "
                "encodings of quantised sources equal the reference, and calibrated codes"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
