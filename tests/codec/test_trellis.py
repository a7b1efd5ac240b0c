"""The trellis code: its reference by hand and by theory, and every backend against it."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from support.codec.float_mode import flushing_denormals
from support.codec.matrices import (
    DTYPES,
    GROUPS,
    ROW_KINDS,
    assert_same_words,
    decode,
    encode,
    matrix,
    to_words,
)

from tq3.codec import tables, trellis
from tq3.codec.backend import available_backends, get_backend
from tq3.codec.expected import expected_error
from tq3.format.recipe import SCALES, TRELLIS_WIDTHS

BITS = TRELLIS_WIDTHS
every_bits = pytest.mark.parametrize("bits", BITS)
every_native_backend = pytest.mark.parametrize(
    "backend",
    [get_backend(name) for name in available_backends()[:-1]],
    ids=available_backends()[:-1],
)


@pytest.mark.parametrize(
    ("bits", "planes"), [(3, ["c8", "d9", "e2"]), (4, ["40", "51", "62", "73"])]
)
def test_codes_0_to_7_pack_to_a_known_byte_in_each_plane(bits, planes):
    codes = np.tile(np.arange(8, dtype=np.uint8), 4)[None]
    assert trellis.pack(codes, bits).tobytes().hex() == "".join(byte * 4 for byte in planes)


@every_bits
@pytest.mark.parametrize("group", GROUPS)
def test_unpack_gives_back_what_was_packed(bits, group):
    codes = np.random.default_rng(0).integers(0, 1 << bits, (5, group), np.uint8)
    packed = trellis.pack(codes, bits)
    assert packed.shape == (5, group * bits // 8)
    np.testing.assert_array_equal(trellis.unpack(packed, bits), codes)


@every_bits
@pytest.mark.parametrize("group", GROUPS)
def test_a_value_depends_on_the_ring_of_its_cycle(bits, group):
    code = tables.trellis(bits)
    codes = np.random.default_rng(1).integers(0, 1 << bits, (2, group), np.uint8)
    found = trellis.values(codes, code)
    cycle = min(group, 128)
    for row, i in np.ndindex(2, group):
        start, at = i // cycle * cycle, i % cycle
        before, before_that = (codes[row, start + (at - k) % cycle] for k in (1, 2))
        expected = code.first[codes[row, i] ^ before_that] + code.second[before]
        assert found[row, i] == expected


@every_bits
def test_values_are_bytes_whose_sums_fit_kernels(bits):
    """Levels counted from the lowest, times the largest integers: docs/kernels.md, section 2."""
    code = tables.trellis(bits)
    value = code.first[:, None] + code.second
    assert -128 <= value.min() <= value.max() <= 127
    assert (value.max() - value.min()) * 32512 * 256 < 2**31


def test_values_of_four_bits_have_the_signs_that_a_byte_permutation_asks_for():
    """Codes that differ in their highest bit alone are worth numbers of one sign."""
    code = tables.trellis(4)
    for table in (code.first, code.second):
        np.testing.assert_array_equal(table[:8] < 0, table[8:] < 0)


@every_bits
def test_parts_of_a_level_fit_sixteen_bits(bits):
    code = tables.trellis(bits)
    smallest = float(code.from_peak) * (1 - sum(trellis.SEARCH_STEPS))
    assert trellis.FRACTION * code.rms / smallest < 32767


@every_bits
def test_no_other_code_between_those_that_are_held_makes_a_smaller_error(bits):
    code = tables.trellis(bits)
    levels = np.random.default_rng(2).normal(0, 40, (3, 32)).round().astype(np.int32)
    codes = trellis._best_ring(levels, code)

    def costs(codes):
        return ((levels - trellis.values(codes, code)) ** 2).sum(axis=1)

    for i in range(30):
        for other in range(1 << bits):
            changed = codes.copy()
            changed[:, i] = other
            assert np.all(costs(changed) >= costs(codes))


# (bits, group, scale) -> the most that the relative squared error of Gaussian weights may be.
MOST = {
    (3, 128, "norm"): 0.0201,
    (3, 128, "search"): 0.0195,
    (3, 64, "search"): 0.0188,
    (4, 128, "norm"): 0.0050,
    (4, 128, "search"): 0.0048,
}


@pytest.mark.parametrize(("bits", "group", "scale"), MOST)
def test_the_error_of_gaussian_weights(bits, group, scale):
    weights = np.random.default_rng(3).standard_normal((128, 512), np.float32)
    packed, norms = encode(
        get_backend(), weights.view(np.uint32), "F32", bits, group, scale, "trellis"
    )
    restored = trellis.decode(packed, norms, bits, group, 512)
    groups, difference = (x.reshape(-1, group) for x in (weights, weights - restored))
    error = np.mean((difference**2).sum(1) / (groups**2).sum(1))
    assert error <= MOST[bits, group, scale]
    assert error == pytest.approx(expected_error(scale, bits, group, "trellis"), rel=0.03)


@every_bits
def test_a_norm_is_the_best_one_for_its_codes(bits):
    weights = np.random.default_rng(4).standard_normal((9, 128), np.float32)
    packed, norms = trellis.encode(weights.view(np.uint32), "F32", bits, 128)
    direction = trellis.decode(packed, np.ones_like(norms), bits, 128, 128).astype(np.float64)
    best = (weights * direction).sum(axis=1) / (direction * direction).sum(axis=1)
    np.testing.assert_allclose(norms[:, 0], best, rtol=1e-4)


@pytest.mark.parametrize("draw", ["standard_normal", "standard_cauchy", "standard_exponential"])
def test_the_search_worsens_no_group(draw):
    weights = getattr(np.random.default_rng(7), draw)((100, 128)).astype(np.float32)
    words, errors = weights.view(np.uint32), []
    for scale in SCALES:
        packed, norms = encode(get_backend(), words, "F32", 3, 128, scale, "trellis")
        restored = trellis.decode(packed, norms, 3, 128, 128)
        errors.append(((weights - restored) ** 2).sum(1) / (weights**2).sum(1))
    assert np.all(errors[1] <= errors[0] + 1e-4)  # errors are compared in parts of a level


@pytest.mark.parametrize("scale", SCALES)
def test_zeros_stay_zeros(scale):
    weights = np.zeros((1, 128), np.float32)
    packed, norms = trellis.encode(weights.view(np.uint32), "F32", 3, 128, scale)
    assert norms.tobytes() == bytes(4)
    assert not trellis.decode(packed, norms, 3, 128, 128).any()


# Bytes of the format, which no change may alter: (bits, group, scale) -> SHA-256 of codes, norms.
GOLDEN = {
    (3, 32, "norm"): "66aff03d53a0c41e1d6692c8e6a6e7d8",
    (3, 32, "search"): "49ed2c2a88f265e56e0cb2fdbf9d039b",
    (3, 64, "norm"): "745214de1d49432e32aeaacaeb1ea821",
    (3, 128, "norm"): "57547f8e7bb5921a831847cf4915f3da",
    (3, 128, "search"): "bde9bb1423647b16b789c1bb1438be76",
    (3, 256, "norm"): "93e7e5f0f7df91c41809baed8de75d79",
    (4, 32, "norm"): "d378016e98fcc0e5a75a9f17cfbdf63d",
    (4, 32, "search"): "8497189b62c2bc53718cf98100d20be7",
    (4, 64, "norm"): "c8bd46f0ed8456df39e05d5718369d43",
    (4, 128, "norm"): "0d40f662d4f8c48863e5134c6daef31f",
    (4, 128, "search"): "15538d5a3bcb2c9af9d1e90576e75de1",
    (4, 256, "norm"): "d06cd5b45f1b2b6b6349d782610b6b0e",
}


@pytest.mark.parametrize(("bits", "group", "scale"), GOLDEN)
def test_bytes_stay_what_they_are(bits, group, scale):
    packed, norms = trellis.encode(golden_weights(group), "F32", bits, group, scale)
    found = hashlib.sha256(packed.tobytes() + norms.astype("<f4").tobytes()).hexdigest()
    assert found[:32] == GOLDEN[bits, group, scale]


def golden_weights(group: int):
    """Three rows of a group and a half: sums of four bytes of a simple generator, about Gaussian.

    A tenth of them is four times as large.
    """
    state = np.arange(3 * group * 3 // 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state ^= state >> np.uint64(29)
    mixed = state * np.uint64(0xBF58476D1CE4E5B9)
    parts = [(mixed >> np.uint64(s) & np.uint64(255)).astype(np.int64) for s in (32, 40, 48, 56)]
    values = (sum(parts) - 510).astype(np.float32) / np.float32(4096)
    values[::10] *= 4
    return values.reshape(3, -1).view(np.uint32)


CASES = [
    (bits, group, scale, DTYPES[number % 3])
    for number, (bits, group, scale) in enumerate(
        (bits, group, scale) for bits in BITS for group in GROUPS for scale in SCALES
    )
]
_expected: dict[Any, Any] = {}


def expected_of(bits, group, scale, dtype):
    """Weights of every kind, and what the reference makes of them, once for all backends."""
    case = bits, group, scale, dtype
    if case not in _expected:
        cols = group + 9 if group < 128 else group - 9
        words = matrix(sorted(ROW_KINDS), cols, dtype, seed=group + bits)
        with np.errstate(invalid="ignore"):
            _expected[case] = words, *trellis.encode(words, dtype, bits, group, scale)
    return _expected[case]


@every_native_backend
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_backend_encodes_like_the_reference(backend, case):
    bits, group, scale, dtype = case
    words, packed, norms = expected_of(*case)
    with flushing_denormals():
        found = encode(backend, words, dtype, bits, group, scale, "trellis")
    np.testing.assert_array_equal(found[0], packed)
    assert_same_words(found[1].view(np.uint32), norms.view(np.uint32), "F32")


@every_native_backend
@every_bits
@pytest.mark.parametrize("rows", [1, 3, 8, 17, 33])
def test_any_number_of_rows_is_encoded(backend, bits, rows):
    words = matrix(["gaussian"] * rows, 41, "BF16", seed=rows)
    packed, norms = trellis.encode(words, "BF16", bits, 32)
    found = encode(backend, words, "BF16", bits, 32, "norm", "trellis")
    np.testing.assert_array_equal(found[0], packed)
    np.testing.assert_array_equal(found[1], norms)


@pytest.mark.parametrize(
    "backend", [get_backend(name) for name in available_backends()], ids=available_backends()
)
@every_bits
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", GROUPS)
def test_decoding_any_bytes_equals_the_reference(backend, bits, dtype, group):
    rng = np.random.default_rng(group)
    packed = rng.integers(0, 256, (34, group * bits // 8), np.uint8)
    norms = rng.lognormal(0, 3, (17, 2)).astype(np.float32)
    norms[3, 1], norms[5, 0] = np.inf, np.nan
    words = decode(backend, packed, norms, bits, group, 2 * group - 3, dtype, "trellis")
    expected = to_words(trellis.decode(packed, norms, bits, group, 2 * group - 3), dtype)
    assert_same_words(words, expected, dtype)


@pytest.mark.parametrize("name", available_backends())
@pytest.mark.parametrize(
    ("bits", "code", "message"),
    [
        (2, "trellis", "bits: found 2, expected 3 or 4"),
        (3, "hash", "code: found 'hash'.*'scalar' or 'trellis'"),
    ],
)
def test_what_the_format_does_not_have_is_refused(name, bits, code, message):
    words, packed = np.zeros((2, 128), np.uint16), np.zeros((2, 16 * bits), np.uint8)
    norms, backend = np.zeros((2, 1), np.float32), get_backend(name)
    with pytest.raises(ValueError, match=message):
        backend.encode(words, "BF16", bits, 128, packed, norms, code=code)
    with pytest.raises(ValueError, match=message):
        backend.decode(packed, norms, bits, 128, words, "BF16", code)
