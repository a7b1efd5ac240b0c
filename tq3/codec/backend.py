"""Which implementation does the arithmetic: the one place where a backend is chosen.

Every backend fills the same bytes (tests/codec/test_backends.py); they differ in speed only.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tq3.codec import reference, tables
from tq3.codec.calibrated import Feedback
from tq3.codec.compiled import unbroken
from tq3.codec.numpy_backend import NumpyBackend, check_code, check_width
from tq3.codec.reference import Floats, Words
from tq3.errors import UsageError
from tq3.format.quantised import Encoding

try:
    with unbroken("tq3.codec._native"):
        import tq3.codec._native as _native  # noqa: PLR0402  so that a missing one is told as such
except ModuleNotFoundError:  # installed without a C++ compiler
    _native = None  # type: ignore[assignment]

Packed = NDArray[np.uint8]


def as_words(raw: NDArray[np.uint8], dtype: str) -> Words:
    """The elements of BF16, F16 or F32 in these bytes, as raw words."""
    words: Words = raw.view(reference.WORD_TYPE[dtype])
    return words


class Backend(Protocol):
    """Encode, decode and cast without allocating the result. All arrays are C-contiguous.

    words: (rows, cols), uint16 for BF16 and F16, uint32 for F32
    packed: (rows*n, group*bits/8) uint8, n = ceil(cols / group)
    norms: (rows, n) float32

    Native backends release the interpreter lock, and denormals are numbers to them even where the
    calling thread flushes them to zero; numpy computes in the mode of its thread.
    """

    @property
    def name(self) -> str: ...

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
        """Fill packed and norms, chosen as `scale` says: one of `format.recipe.SCALES`.

        code: one of `format.recipe.CODES`, for decoding, too
        """

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
        """Fill the groups of one block in every row, from `first_group` on: `calibrated.encode`."""

    def decompose(self, matrix: NDArray[np.float64]) -> None:
        """What `calibrated.decompose` does to a matrix of at most BLOCK columns, above and on its
        diagonal.
        """

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
        """Fill words."""

    def cast(self, words: Words, dtype: str, out: Words, out_dtype: str) -> int:
        """Fill `out`, of the same shape, with the nearest values.

        Returns how many finite values became infinite.
        """

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
        """Fill `out`, (rows, columns) float32, with what `quantised.decode` says."""


def available_backends() -> tuple[str, ...]:
    """Names of the backends that run on this machine, best first. The last is always "numpy"."""
    return tuple(_backends())


def get_backend(name: str | None = None) -> Backend:
    """The backend of that name, by default the best."""
    backends = _backends()
    if name is None:
        return next(iter(backends.values()))
    if name not in backends:
        raise UsageError(
            "no such backend on this machine",
            found=repr(name),
            expected=f"one of {', '.join(backends)}",
            fix="leave the backend out to get the best one",
        )
    return backends[name]


@cache
def _backends() -> dict[str, Backend]:
    kernels = _native.kernels_that_run_here() if _native else []
    backends: list[Backend] = [*map(NativeBackend, kernels), NumpyBackend()]
    return {backend.name: backend for backend in backends}


class NativeBackend:
    """One instruction set of the compiled module, which checks the arrays itself."""

    def __init__(self, kernels: _native.Kernels) -> None:
        self.name: str = kernels.name
        self._kernels = kernels

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
        made, trellis = _native_tables(bits, group), _native_trellis(code, bits, group)
        self._kernels.encode(made, words, dtype, packed, norms, scale, trellis)

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
        self._kernels.encode_calibrated(
            _native_tables(bits, group),
            words,
            dtype,
            first_group,
            feedback.order,
            feedback.spread,
            feedback.weight,
            norm_dtype == "F16",
            packed,
            norms,
        )

    def decompose(self, matrix: NDArray[np.float64]) -> None:
        self._kernels.decompose(matrix)

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
        made, trellis = _native_tables(bits, group), _native_trellis(code, bits, group)
        self._kernels.decode(made, packed, norms, words, dtype, trellis)

    def cast(self, words: Words, dtype: str, out: Words, out_dtype: str) -> int:
        return self._kernels.cast(words, dtype, out, out_dtype)

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
        self._kernels.dequantize(
            encoding.kind,
            encoding.bits,
            encoding.block[1],
            encoding.scale_dtype,
            encoding.is_divided,
            codes,
            scales,
            np.arange(len(out)) if lines is None else lines,
            out,
            zero_points,
            global_scale,
        )


@cache
def _native_tables(bits: int, group: int) -> _native.Tables:
    check_width(bits, group)
    d1, d2 = tables.signs(group)
    return _native.Tables(
        bits=bits,
        group=group,
        levels=tables.codebook(bits, group),
        boundaries=tables.boundaries(bits, group),
        d1=d1,
        d2=d2,
        root_group=float(np.float32(np.sqrt(group))),
        inverse_root_group=float(np.float32(1 / np.sqrt(group))),
    )


@cache
def _native_trellis(code: str, bits: int, group: int) -> _native.Trellis | None:
    check_code(code, bits)
    if code != "trellis":
        return None
    constants = tables.trellis(bits)
    return _native.Trellis(
        _native_tables(bits, group),
        first=constants.first.astype(np.float32),
        second=constants.second.astype(np.float32),
        rms=constants.rms,
        from_norm=float(constants.from_norm),
        from_peak=float(constants.from_peak),
        unit=constants.unit(group),
    )
