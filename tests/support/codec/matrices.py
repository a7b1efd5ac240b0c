"""Matrices of weights for the backend tests: ordinary ones and every kind of trouble."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from tq3.codec import reference
from tq3.codec.backend import Backend
from tq3.codec.reference import WORD_TYPE

BITS = (2, 3, 4)
GROUPS = (32, 64, 128, 256)
DTYPES = ("BF16", "F16", "F32")

# Around the lanes of every instruction set, and around the blocks they are read in.
ROWS = (1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33)


def to_words(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Nearest words, without a warning where a value overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        floats = np.ascontiguousarray(values).astype(np.float32)
        return reference.from_float32(floats, dtype)


def _any_word(rng: np.random.Generator, cols: int, dtype: str) -> NDArray[Any]:
    """Any bit pattern: every exponent, infinities and NaN of both signs among them."""
    return np.frombuffer(rng.bytes(cols * np.dtype(WORD_TYPE[dtype]).itemsize), WORD_TYPE[dtype])


def _denormal(rng: np.random.Generator, cols: int, dtype: str) -> NDArray[Any]:
    """Denormal words of both signs."""
    mantissa, sign = {"BF16": (7, 15), "F16": (10, 15), "F32": (23, 31)}[dtype]
    words = rng.integers(0, 1 << mantissa, cols) | rng.integers(0, 2, cols) << sign
    return words.astype(WORD_TYPE[dtype])


def _one_hot(rng: np.random.Generator, cols: int, dtype: str) -> NDArray[Any]:
    """One weight among zeros of both signs."""
    values = np.where(rng.integers(0, 2, cols), 0.0, -0.0)
    values[rng.integers(cols)] = rng.standard_normal()
    return to_words(values, dtype)


ROW_KINDS = {
    "gaussian": lambda rng, cols, dtype: to_words(0.02 * rng.standard_normal(cols), dtype),
    "heavy tails": lambda rng, cols, dtype: to_words(rng.standard_cauchy(cols), dtype),
    "zeros": lambda rng, cols, dtype: np.zeros(cols, WORD_TYPE[dtype]),
    "constant": lambda rng, cols, dtype: to_words(np.full(cols, rng.standard_normal()), dtype),
    # Few values make many sums that cancel to exactly zero.
    "small integers": lambda rng, cols, dtype: to_words(rng.integers(-1, 2, cols), dtype),
    "one hot": _one_hot,
    "denormal": _denormal,
    "squares underflow": lambda rng, cols, dtype: to_words(
        1e-21 * rng.standard_normal(cols), dtype
    ),
    "squares overflow": lambda rng, cols, dtype: to_words(1e19 * rng.standard_normal(cols), dtype),
    "sums overflow": lambda rng, cols, dtype: to_words(3e38 * rng.choice([-1, 1], cols), dtype),
    "any word": _any_word,
}


def matrix(kinds: list[str], cols: int, dtype: str, seed: int) -> NDArray[Any]:
    """One row of each kind.  (len(kinds), cols) words"""
    rng = np.random.default_rng(seed)
    return np.stack([ROW_KINDS[kind](rng, cols, dtype) for kind in kinds])


@st.composite
def matrices(draw: st.DrawFn, dtype: str, group: int) -> NDArray[Any]:
    """Rows of all kinds mixed; one to three groups a row, the last one full or not."""
    n_rows = draw(st.sampled_from(ROWS))
    cols = draw(st.integers(1, 3)) * group - draw(st.sampled_from([0, 0, 1, 8, 13, group - 1]))
    kinds = draw(st.lists(st.sampled_from(sorted(ROW_KINDS)), min_size=n_rows, max_size=n_rows))
    return matrix(kinds, cols, dtype, seed=draw(st.integers(0, 2**32 - 1)))


def encode(
    backend: Backend,
    words: NDArray[Any],
    dtype: str,
    bits: int,
    group: int,
    scale: str = "norm",
    code: str = "scalar",
) -> Any:
    """(packed, norms) of a backend, into arrays that held rubbish."""
    n = -(-words.shape[1] // group)
    packed = np.full((words.shape[0] * n, group * bits // 8), 0xA5, np.uint8)
    norms = np.full((words.shape[0], n), -1, np.float32)
    backend.encode(words, dtype, bits, group, packed, norms, scale, code)
    return packed, norms


def decode(
    backend: Backend,
    packed: Any,
    norms: Any,
    bits: int,
    group: int,
    cols: int,
    dtype: str,
    code: str = "scalar",
) -> NDArray[Any]:
    """Words of a backend, into an array that held rubbish."""
    words: NDArray[Any] = np.full((len(norms), cols), 0xA5A5, WORD_TYPE[dtype])
    backend.decode(packed, norms, bits, group, words, dtype, code)
    return words


def assert_same_words(found: NDArray[Any], expected: NDArray[Any], dtype: str) -> None:
    """Bit for bit, but any NaN equals any other."""
    found_nan, expected_nan = (np.isnan(quiet_float32(w, dtype)) for w in (found, expected))
    np.testing.assert_array_equal(found_nan, expected_nan)
    np.testing.assert_array_equal(found[~found_nan], expected[~found_nan])


def quiet_float32(words: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Values; numpy warns of a signalling NaN when it widens F16."""
    with np.errstate(invalid="ignore"):
        return reference.to_float32(words, dtype)
