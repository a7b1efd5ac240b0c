"""Weights that a source stores quantised: the reference beside the types that ml_dtypes and the
packer that compressed-tensors define, and every backend beside the reference."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from support.codec.float_mode import flushing_denormals
from support.codec.matrices import assert_same_words
from support.codec.quantised import ENCODINGS, dequantize, pack_to_int32, stretch

from tq3.codec import quantised, reference
from tq3.codec.backend import available_backends, get_backend
from tq3.format.quantised import Encoding

every_backend = pytest.mark.parametrize(
    "backend", [get_backend(name) for name in available_backends()], ids=available_backends()
)
every_native_backend = pytest.mark.parametrize(
    "backend",
    [get_backend(name) for name in available_backends()[:-1]],
    ids=available_backends()[:-1],
)
every_encoding = pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS)
BYTES = np.arange(256, dtype=np.uint8)


def assert_same(found, expected):
    assert found.dtype == expected.dtype == np.float32
    assert_same_words(found.view(np.uint32), expected.view(np.uint32), "F32")


def test_every_code_of_e4m3_is_the_float_of_ml_dtypes():
    expected = BYTES.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert_same(quantised.e4m3_values(BYTES), expected)
    assert np.isnan(expected[[0x7F, 0xFF]]).all()


def test_every_exponent_of_e8m0_is_the_float_of_ml_dtypes():
    expected = BYTES.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    for dtype in ("F8_E8M0", "U8"):
        assert_same(quantised.scale_values(BYTES, dtype), expected)
    assert expected[0] == 2.0**-127


def test_every_code_of_e2m1_is_the_float_of_ml_dtypes():
    expected = BYTES[:16].view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert_same(quantised.E2M1, expected)


def test_two_codes_of_four_bits_are_a_byte_with_the_first_one_low():
    encoding = Encoding("e2m1", 4, (1, 32), "F8_E8M0")
    scales = np.array([[128]], np.uint8)  # 2
    weights = quantised.decode(encoding, np.array([[0x72, 0x0F]], np.uint8), scales, 3)
    assert weights.tolist() == [[2.0, 12.0, -12.0]]


@pytest.mark.parametrize("bits", range(3, 9))
@pytest.mark.parametrize("columns", [1, 32, 37, 130])
def test_integers_are_unpacked_as_compressed_tensors_packs_them(bits, columns):
    half = 1 << (bits - 1)
    integers = np.random.default_rng(bits).integers(-half, half, (3, columns), np.int8)
    encoding = Encoding("packed_int", bits, (1, columns), "F32")
    codes = pack_to_int32(integers, bits).view(np.uint8)
    assert codes.shape[1] == encoding.row_bytes(columns)
    ones = np.ones((3, 1), np.float32).view(np.uint32)
    assert_same(quantised.decode(encoding, codes, ones, columns), integers.astype(np.float32))


def test_a_zero_point_is_taken_away_before_the_scale_multiplies():
    encoding = Encoding("packed_int", 4, (1, 2), "F32", has_zero_points=True)
    scales = np.array([[2, 0.5]], np.float32).view(np.uint32)
    codes, zeros = np.array([[0x5F, 0x90, 0, 0]], np.uint8), np.array([[3, 10]], np.uint8)
    weights = quantised.decode(encoding, codes, scales, 4, zero_points=zeros)
    assert weights.tolist() == [[24.0, 4.0, -5.0, -0.5]]


def test_a_float32_scale_rounds_once():
    encoding = Encoding("e4m3", 8, (1, 4), "F32")
    scale = np.float32(1) + np.float32(2**-23)
    codes = np.array([0.5625, 1.75, 448, 2**-9], ml_dtypes.float8_e4m3fn)
    weights = quantised.decode(
        encoding, codes.view(np.uint8)[None], scale.reshape(1, 1).view("u4"), 4
    )
    exact = codes.astype(np.float64) * np.float64(scale)
    assert weights.tolist() == [exact.astype(np.float32).tolist()]


@pytest.mark.parametrize("is_divided", [False, True])
def test_nvfp4_rounds_once_by_its_global_scale(is_divided):
    encoding = Encoding("nvfp4", 4, (1, 16), "F8_E4M3", is_divided)
    rng = np.random.default_rng(0)
    codes, scales = (
        rng.integers(0, 256, (64, 16), np.uint8),
        rng.integers(0, 127, (64, 2), np.uint8),
    )
    factor = rng.lognormal(0, 1, 64).astype(np.float32)
    weights = quantised.decode(encoding, codes, scales, 32, global_scale=factor)
    codes_as_floats = quantised.E2M1[reference.unpack(codes, 4)].astype(np.float64)
    product = codes_as_floats * quantised.e4m3_values(scales).repeat(16, axis=1)
    wide = factor.astype(np.float64)[:, None]
    exact = product / wide if is_divided else product * wide
    assert_same(weights, exact.astype(np.float32))


@pytest.mark.parametrize("is_divided", [False, True])
def test_nvfp4_is_an_ulp_at_most_from_scales_that_are_joined_first(is_divided):
    """As ModelOpt and compressed-tensors decode: ours is the nearest, theirs rounds twice."""
    rng = np.random.default_rng(1)
    rows = 4096
    codes = np.tile(np.array([0x10, 0x32, 0x54, 0x76, 0, 0, 0, 0], np.uint8), (rows, 1))
    scales = rng.integers(40, 120, (rows, 1)).astype(np.uint8)
    factor = rng.lognormal(0, 3, rows).astype(np.float32)
    encoding = Encoding("nvfp4", 4, (1, 16), "F8_E4M3", is_divided=is_divided)
    ours = quantised.decode(encoding, codes, scales, 16, global_scale=factor)[:, :8]
    wide = quantised.e4m3_values(scales)
    joined = wide / factor[:, None] if is_divided else wide * factor[:, None]
    ulps = (quantised.E2M1[:8] * joined).view(np.int32) - ours.view(np.int32)
    assert np.abs(ulps).max() == 1
    assert not ulps[:, [0, 1, 2, 4, 6]].any()  # zero and powers of two
    assert 0.1 < np.mean(ulps[:, [3, 5, 7]] != 0) < 0.4


@every_backend
@every_encoding
@pytest.mark.parametrize("columns", [1, 15, 33, 128, 1100])
def test_any_stretch_is_dequantized_like_the_reference(backend, encoding, columns):
    """Blocks that end in mid-row, rows that begin in mid-block, every code and scale, NaN too."""
    for seed, rows in enumerate((1, 5, 40)):
        codes, scales, others = stretch(encoding, rows, columns, seed)
        expected = quantised.decode(encoding, codes, scales, columns, **others)
        assert_same(dequantize(backend, encoding, codes, scales, columns, **others), expected)


@every_native_backend
def test_every_scale_of_16_bits_is_widened_like_the_reference(backend):
    scales = np.arange(1 << 16, dtype=np.uint16).reshape(-1, 1)
    codes = np.full((1 << 16, 2), 0x38, np.uint8)  # 1
    for dtype in ("BF16", "F16"):
        encoding = Encoding("e4m3", 8, (1, 2), dtype)
        expected = quantised.decode(encoding, codes, scales, 2)
        assert_same(dequantize(backend, encoding, codes, scales, 2), expected)


@every_native_backend
@pytest.mark.parametrize("scale_dtype", ["F8_E8M0", "F8_E4M3"])
def test_every_code_of_e4m3_times_every_scale_of_a_byte_equals_the_reference(backend, scale_dtype):
    encoding = Encoding("e4m3", 8, (1, 256), scale_dtype)
    codes, scales = np.tile(BYTES, (256, 1)), BYTES[:, None].copy()
    expected = quantised.decode(encoding, codes, scales, 256)
    found = dequantize(backend, encoding, codes, scales, 256)
    assert_same(found, expected)
    assert np.isnan(found[:, [0x7F, 0xFF]]).all()


@every_native_backend
def test_a_caller_that_flushes_denormals_changes_no_weight(backend):
    encoding = Encoding("e4m3", 8, (1, 256), "F8_E8M0")
    codes, scales = np.tile(BYTES, (4, 1)), np.arange(4, dtype=np.uint8)[:, None]
    expected = quantised.decode(encoding, codes, scales, 256)
    with flushing_denormals():
        found = dequantize(backend, encoding, codes, scales, 256)
    assert_same(found, expected)


@every_backend
def test_nothing_is_dequantized_to_nothing(backend):
    for rows, columns in ((0, 40), (3, 0)):
        codes, scales, others = stretch(ENCODINGS["e4m3 rows"], rows, columns, 0)
        found = dequantize(backend, ENCODINGS["e4m3 rows"], codes, scales, columns, **others)
        assert found.shape == (rows, columns)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "codes of another width": ({"codes": np.zeros((4, 31), np.uint8)}, r"codes.shape.*\(4, 32\)"),
    "codes of another type": ({"codes": np.zeros((4, 32), np.int8)}, "codes.dtype.*uint8"),
    "codes with gaps": ({"codes": np.zeros((4, 64), np.uint8)[:, ::2]}, "codes.*contiguous"),
    "scales of another type": ({"scales": np.zeros((4, 4), np.uint16)}, "scales.dtype.*uint8"),
    "too few scales": ({"scales": np.zeros((4, 3), np.uint8)}, r"scales.shape.*\(4, 4\)"),
    "a line too far": ({"lines": np.array([0, 1, 2, 4])}, "lines.*4.*a row of scales"),
    "a line below zero": ({"lines": np.array([0, 1, -1, 2])}, "lines.*-1.*a row of scales"),
    "too few lines": ({"lines": np.arange(3)}, r"lines.shape.*\(4,?\)"),
    "zero points of floats": ({"zero_points": np.zeros((4, 4), np.uint8)}, "zero_points.*none"),
    "no global scale": ({"global_scale": None}, "global_scale.*none.*nvfp4"),
    "too few global scales": ({"global_scale": np.ones(3, np.float32)}, r"global_scale.*\(4,?\)"),
    "floats of another type": ({"out": np.zeros((4, 64), np.float64)}, "out.dtype.*float32"),
    "floats in one dimension": ({"out": np.zeros(256, np.float32)}, "out.shape.*two dimensions"),
    "five bits": ({"encoding": Encoding("nvfp4", 5, (1, 16), "F8_E4M3")}, "bits.*5.*'nvfp4'"),
    "a scale of 64 bits": ({"encoding": Encoding("nvfp4", 4, (1, 16), "F64")}, "'F64'.*'BF16'"),
}


@every_backend
@pytest.mark.parametrize("wrong", WRONG)
def test_arrays_that_do_not_fit_are_refused_with_what_was_expected(backend, wrong):
    change, message = WRONG[wrong]
    arguments: dict[str, Any] = {
        "encoding": Encoding("nvfp4", 4, (1, 16), "F8_E4M3"),
        "codes": np.zeros((4, 32), np.uint8),
        "scales": np.zeros((4, 4), np.uint8),
        "out": np.zeros((4, 64), np.float32),
        "global_scale": np.ones(4, np.float32),
    }
    with pytest.raises(ValueError, match=message):
        backend.dequantize(**arguments | change)
