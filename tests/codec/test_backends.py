"""Every backend of this machine equals the reference bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.codec.float_mode import flushing_denormals, is_flushing_denormals
from support.codec.matrices import (
    BITS,
    DTYPES,
    GROUPS,
    ROW_KINDS,
    ROWS,
    assert_same_words,
    decode,
    encode,
    matrices,
    matrix,
    quiet_float32,
    to_words,
)

from tq3.codec import backend as backend_module
from tq3.codec import reference, tables
from tq3.codec.backend import available_backends, get_backend
from tq3.codec.reference import WORD_TYPE
from tq3.errors import UsageError
from tq3.format.recipe import SCALES

every_backend = pytest.mark.parametrize(
    "backend", [get_backend(name) for name in available_backends()], ids=available_backends()
)
every_native_backend = pytest.mark.parametrize(
    "backend",
    [get_backend(name) for name in available_backends()[:-1]],
    ids=available_backends()[:-1],
)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_bits = pytest.mark.parametrize("bits", BITS)
every_group = pytest.mark.parametrize("group", GROUPS)
every_scale = pytest.mark.parametrize("scale", SCALES)


def assert_encodes_like_the_reference(backend, words, dtype, bits, group, scale):
    packed, norms = encode(backend, words, dtype, bits, group, scale)
    with np.errstate(invalid="ignore"):
        expected_packed, expected_norms = reference.encode(words, dtype, bits, group, scale)
    np.testing.assert_array_equal(packed, expected_packed)
    assert_same_words(norms.view(np.uint32), expected_norms.view(np.uint32), "F32")


def assert_decodes_like_the_reference(backend, packed, norms, bits, group, cols, dtype):
    words = decode(backend, packed, norms, bits, group, cols, dtype)
    expected = to_words(reference.decode(packed, norms, bits, group, cols), dtype)
    assert_same_words(words, expected, dtype)


@every_backend
@every_dtype
@every_bits
@every_group
@every_scale
@settings(max_examples=20)
@given(data=st.data())
def test_encoding_any_matrix_equals_the_reference(backend, dtype, bits, group, scale, data):
    words = data.draw(matrices(dtype, group))
    assert_encodes_like_the_reference(backend, words, dtype, bits, group, scale)


@every_backend
@every_dtype
@every_scale
@pytest.mark.parametrize("kind", ROW_KINDS)
def test_encoding_each_kind_of_row_equals_the_reference(backend, dtype, scale, kind):
    for seed, bits in enumerate(BITS):
        words = matrix([kind] * 17, 300, dtype, seed)
        assert_encodes_like_the_reference(backend, words, dtype, bits, 128, scale)


@every_backend
@every_scale
@pytest.mark.parametrize("rows", ROWS)
def test_any_number_of_rows_and_columns_around_the_lanes_is_encoded(backend, scale, rows):
    for cols in (1, 31, 32, 33, 63, 64, 65, 127, 129, 200):
        words = matrix(["gaussian"] * rows, cols, "BF16", seed=cols)
        assert_encodes_like_the_reference(backend, words, "BF16", 3, 64, scale)


@every_backend
@every_dtype
@every_bits
@every_group
@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.sampled_from(ROWS),
    missing=st.sampled_from([0, 1, 8, 13]),
    special=st.sampled_from([0.0, 1e-45, 1e-39, 1e38, 3e38, np.inf, -np.inf, np.nan]),
)
def test_decoding_any_bytes_equals_the_reference(
    backend, dtype, bits, group, seed, rows, missing, special
):
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 256, (rows * 2, group * bits // 8), np.uint8)
    norms = rng.lognormal(0, 3, (rows, 2)).astype(np.float32)
    norms[rng.integers(rows), rng.integers(2)] = special
    cols = 2 * group - missing
    assert_decodes_like_the_reference(backend, packed, norms, bits, group, cols, dtype)


@every_backend
@every_dtype
def test_decoding_a_nan_norm_gives_nan_whatever_its_bits(backend, dtype):
    nans = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000], np.uint32)
    norms = nans.view(np.float32).reshape(4, 1)
    words = decode(backend, np.zeros((4, 48), np.uint8), norms, 3, 128, 100, dtype)
    assert np.all(np.isnan(quiet_float32(words, dtype)))


@every_backend
@every_bits
def test_a_value_exactly_on_a_boundary_takes_the_lower_code(backend, bits, monkeypatch):
    """All |y| of a one-hot group are its norm: thresholds norm * 8 * b are hit exactly at b = 1/8.

    A boundary one step smaller lies below it.
    """
    on = np.full((1 << (bits - 1)) - 1, 0.125, np.float32)
    weights = np.zeros((9, 64), np.float32)
    weights[:, 5] = np.arange(1, 10)
    words, half = weights.view(np.uint32), 1 << (bits - 1)
    for boundaries, magnitude in ((on, 0), (np.nextafter(on, np.float32(0)), half - 1)):
        monkeypatch.setattr(tables, "boundaries", lambda *_, b=boundaries: b)
        backend_module._native_tables.cache_clear()
        packed, _ = encode(backend, words, "F32", bits, 64)
        codes = reference.unpack(packed, bits)
        assert set(codes.flat) == {half + magnitude, half - 1 - magnitude}
    backend_module._native_tables.cache_clear()


@every_backend
@every_dtype
@pytest.mark.parametrize("source", ["BF16", "F16"])
def test_every_16_bit_word_is_cast_like_the_reference(backend, source, dtype):
    words = np.arange(1 << 16, dtype=np.uint16)
    assert_casts_like_the_reference(backend, words, source, dtype)


@every_backend
@every_dtype
def test_float32_is_cast_like_the_reference_around_every_rounding_point(backend, dtype):
    """Each upper half with lower halves around the middle between two BF16, likewise for F16."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x3000, 0x7FFF, 0x8000, 0x8001], np.uint32)
    assert_casts_like_the_reference(backend, (upper[:, None] | lower).ravel(), "F32", dtype)


@every_backend
@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33])
def test_any_number_of_values_is_cast(backend, size):
    words = to_words(np.linspace(-70_000, 70_000, size), "F32")
    assert_casts_like_the_reference(backend, words, "F32", "F16")


@every_backend
def test_a_cast_takes_any_shape(backend):
    words = to_words(np.full((3, 5, 7), 1e6), "BF16")
    out = np.empty_like(words)
    assert backend.cast(words, "BF16", out, "F16") == 105
    assert np.all(out == 0x7C00)


def assert_casts_like_the_reference(backend, words, source, target):
    out = np.full(words.shape, 0xA5A5, WORD_TYPE[target])
    overflowed = backend.cast(words, source, out, target)
    values = quiet_float32(words, source)
    expected = to_words(values, target)
    assert_same_words(out, expected, target)
    now_infinite = np.isfinite(values) & np.isinf(quiet_float32(expected, target))
    assert overflowed == np.count_nonzero(now_infinite)


@every_native_backend
@every_dtype
def test_a_caller_that_flushes_denormals_changes_nothing(backend, dtype):
    words = matrix(["denormal", "squares underflow", "gaussian"] * 7, 128, dtype, seed=1)
    packed, norms = reference.encode(words, dtype, 3, 128)
    tiny_norms = np.full_like(norms, 1e-38)
    decoded = to_words(reference.decode(packed, tiny_norms, 3, 128, 128), dtype)
    as_float32 = reference.to_float32(words, dtype).view(np.uint32)

    out = np.empty(words.shape, np.uint32)
    with flushing_denormals():
        found = encode(backend, words, dtype, 3, 128)
        found_words = decode(backend, packed, tiny_norms, 3, 128, 128, dtype)
        backend.cast(words, dtype, out, "F32")
        assert is_flushing_denormals()

    np.testing.assert_array_equal(found[0], packed)
    np.testing.assert_array_equal(found[1], norms)
    np.testing.assert_array_equal(found_words, decoded)
    np.testing.assert_array_equal(out, as_float32)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "words of another type": ({"words": np.zeros((4, 128), np.uint32)}, "words.dtype.*uint16"),
    "words in one dimension": ({"words": np.zeros(128, np.uint16)}, "two dimensions"),
    "words with gaps": ({"words": np.zeros((4, 256), np.uint16)[:, ::2]}, "words.*contiguous"),
    "an unknown dtype": ({"dtype": "F64"}, "'F64'.*'BF16', 'F16' or 'F32'"),
    "too few packed groups": ({"packed": np.zeros((3, 48), np.uint8)}, r"packed.*\(4, 48\)"),
    "packed of other bits": ({"packed": np.zeros((4, 64), np.uint8)}, r"packed.*\(4, 48\)"),
    "packed of another type": ({"packed": np.zeros((4, 48), np.int8)}, "packed.dtype.*uint8"),
    "packed with gaps": ({"packed": np.zeros((4, 96), np.uint8)[:, ::2]}, "packed.*contiguous"),
    "too many norms": ({"norms": np.zeros((4, 2), np.float32)}, r"norms.*\(4, 1\)"),
    "norms of another type": ({"norms": np.zeros((4, 1), np.float64)}, "norms.dtype.*float32"),
    "five bits": ({"bits": 5}, "5.*2, 3 or 4"),
    "a scale of another kind": ({"scale": "best"}, "scale.*'best'.*'norm' or 'search'"),
    "a group of 48": ({"group": 48}, "48.*32, 64, 128 or 256"),
}


@every_backend
@pytest.mark.parametrize("wrong", WRONG)
def test_arrays_that_do_not_fit_are_refused_with_what_was_expected(backend, wrong):
    change, message = WRONG[wrong]
    arguments: dict[str, Any] = {
        "words": np.zeros((4, 128), np.uint16),
        "dtype": "BF16",
        "bits": 3,
        "group": 128,
        "packed": np.zeros((4, 48), np.uint8),
        "norms": np.zeros((4, 1), np.float32),
        "scale": "norm",
    }
    arguments |= change
    with pytest.raises(ValueError, match=message):
        backend.encode(**arguments)
    if arguments.pop("scale") == "norm":
        with pytest.raises(ValueError, match=message):
            backend.decode(**arguments)


@every_backend
def test_a_cast_into_another_shape_or_type_is_refused(backend):
    words = np.zeros((2, 3), np.uint16)
    with pytest.raises(ValueError, match=r"out.shape.*\(3, 2\).*\(2, 3\)"):
        backend.cast(words, "BF16", np.zeros((3, 2), np.uint16), "F16")
    with pytest.raises(ValueError, match="out.dtype.*uint16.*uint32"):
        backend.cast(words, "BF16", np.zeros((2, 3), np.uint16), "F32")


@every_backend
def test_an_array_that_cannot_be_written_is_refused(backend):
    out = np.zeros((2, 3), np.uint16)
    out.setflags(write=False)
    with pytest.raises((TypeError, ValueError)):
        backend.cast(np.zeros((2, 3), np.uint16), "BF16", out, "F16")


@every_backend
def test_a_matrix_without_rows_is_encoded_to_nothing(backend):
    packed, norms = encode(backend, np.zeros((0, 128), np.uint16), "BF16", 3, 128)
    assert packed.size == norms.size == 0


def test_the_last_backend_is_numpy_and_the_first_is_the_default():
    assert available_backends()[-1] == "numpy"
    assert get_backend().name == available_backends()[0]


def test_an_unknown_backend_is_an_error_that_lists_the_known_ones():
    with pytest.raises(UsageError, match="'abacus'.*numpy"):
        get_backend("abacus")
