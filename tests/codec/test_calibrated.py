"""Codes under second moments: every backend equals the reference, which beats rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.codec.float_mode import flushing_denormals
from support.codec.matrices import BITS, DTYPES, GROUPS, ROW_KINDS, matrix, to_words
from support.codec.moments import correlated, feedback_of

from tq3.codec import calibrated, reference, tables
from tq3.codec.backend import available_backends, get_backend
from tq3.codec.norms import fits_float16


def encode(backend, words, dtype, bits, group, feedback, norms="F32", first=0):
    """(packed, norms) of a backend, into arrays that held rubbish."""
    n = -(-words.shape[1] // group)
    packed = np.full((len(words) * n, group * bits // 8), 0xA5, np.uint8)
    found = np.full((len(words), n), -1, np.float32)
    backend.encode_calibrated(words, dtype, bits, group, packed, found, first, feedback, norms)
    return packed, found


def decode(packed, norms, bits, group, cols):
    words = np.empty((len(norms), cols), np.uint32)
    get_backend().decode(packed, norms, bits, group, words, "F32")
    return words.view(np.float32)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", GROUPS)
def test_every_backend_equals_the_reference_bit_for_bit(bits, group):
    cols = 2 * group - 13 * (bits == 3)
    feedback = feedback_of(correlated(cols), group)
    kinds = [*ROW_KINDS, *["gaussian"] * 24]
    dtype, norms = DTYPES[bits - 2], ("F16", "F32")[group > 64]
    words = matrix(kinds, cols, dtype, seed=group)
    packed, found = calibrated.encode(words, dtype, bits, group, feedback, norms)
    for name in available_backends():
        both = encode(get_backend(name), words, dtype, bits, group, feedback, norms)
        np.testing.assert_array_equal(both[0].reshape(packed.shape), packed, name)
        np.testing.assert_array_equal(both[1], found, name)


@pytest.mark.parametrize("name", available_backends()[:-1])
def test_any_number_of_rows_is_encoded_and_denormals_are_numbers(name):
    feedback = feedback_of(correlated(64), 32)
    kinds = ["gaussian", "denormal", "squares underflow"] * 12
    words = matrix(kinds, 64, "F32", seed=3)
    packed, norms = encode(get_backend("numpy"), words, "F32", 3, 32, feedback)
    for rows in (1, 7, 16, 31, 33):
        with flushing_denormals():
            found = encode(get_backend(name), words[:rows], "F32", 3, 32, feedback)
        np.testing.assert_array_equal(found[0], packed[: 2 * rows])
        np.testing.assert_array_equal(found[1], norms[:rows])


@pytest.mark.parametrize("name", available_backends())
def test_a_block_in_the_middle_of_a_row_is_coded_as_if_it_were_alone(name):
    words = matrix(["gaussian"] * 5, 5 * 32, "BF16", seed=1)
    feedback = feedback_of(correlated(64), 32)
    packed, norms = encode(get_backend(name), words, "BF16", 2, 32, feedback, first=2)
    alone = calibrated.encode(words[:, 64:128], "BF16", 2, 32, feedback, "F32")
    np.testing.assert_array_equal(packed.reshape(5, 5, 8)[:, 2:4], alone[0])
    np.testing.assert_array_equal(norms[:, 2:4], alone[1])
    assert np.all(packed.reshape(5, 5, 8)[:, [0, 1, 4]] == 0xA5)
    assert np.all(norms[:, [0, 1, 4]] == -1)


def test_the_matrix_is_the_product_of_what_it_is_decomposed_to():
    _, matrix = calibrated.rotated_moments(correlated(96), 1.0, 32, 0.01)
    for name in available_backends():
        made = matrix.copy()
        get_backend(name).decompose(made)
        upper = np.triu(made, 1) + np.eye(96)
        np.testing.assert_allclose(upper * np.diag(made) @ upper.T, matrix, atol=1e-9)
        if name == available_backends()[0]:
            first = np.triu(made)
        np.testing.assert_array_equal(np.triu(made), first)  # bit for bit


def test_moments_are_rotated_as_weights_are_and_damped_by_their_mean():
    moments, group = correlated(64), 32
    order, matrix = calibrated.rotated_moments(moments, 2.0, group, 0.5)
    d1, d2 = tables.signs(group)
    hadamard = reference.hadamard(np.eye(group, dtype=np.float32)) / np.sqrt(group)
    rotation = np.kron(np.eye(2), d1[:, None] * hadamard * d2)
    expected = rotation.T @ moments @ rotation / 2 + 0.5 * np.eye(64)
    columns = (order[:, None] * group + np.arange(group)).ravel()
    np.testing.assert_allclose(matrix, expected[np.ix_(columns, columns)], atol=1e-6)
    sizes = matrix.diagonal().reshape(2, group).sum(1)
    assert sizes[0] >= sizes[1]


@pytest.mark.parametrize("bits", BITS)
def test_less_of_the_output_is_lost_than_by_the_search_and_more_of_the_weights(bits):
    moments = correlated(256)
    words = matrix(["gaussian"] * 40, 256, "F32", seed=2)
    weights = words.view(np.float32).astype(float)
    packed, norms = encode(get_backend(), words, "F32", bits, 64, feedback_of(moments, 64))
    plain, plain_norms = np.empty_like(packed), np.empty_like(norms)
    get_backend().encode(words, "F32", bits, 64, plain, plain_norms, "search")
    errors = [
        decode(*each, bits, 64, 256) - weights for each in ((packed, norms), (plain, plain_norms))
    ]
    lost, lost_plainly = (float((error @ moments * error).sum()) for error in errors)
    assert lost < 0.5 * lost_plainly
    assert (errors[1] ** 2).sum() < (errors[0] ** 2).sum() < 2 * (errors[1] ** 2).sum()


def test_inputs_that_are_alike_and_independent_change_next_to_nothing():
    words = matrix(["gaussian"] * 40, 128, "F32", seed=2)
    feedback = feedback_of(np.eye(128), 128)
    packed, norms = encode(get_backend(), words, "F32", 3, 128, feedback)
    plain, plain_norms = np.empty_like(packed), np.empty_like(norms)
    get_backend().encode(words, "F32", 3, 128, plain, plain_norms, "search")
    weights = words.view(np.float32)
    lost = np.square(decode(packed, norms, 3, 128, 128) - weights).sum()
    assert lost <= np.square(decode(plain, plain_norms, 3, 128, 128) - weights).sum() * 1.001


def test_inputs_that_are_always_zero_leave_plain_rounding():
    order, matrix = calibrated.rotated_moments(np.zeros((64, 64)), 0.0, 32, 0.3)
    np.testing.assert_array_equal(order, [0, 1])
    np.testing.assert_array_equal(matrix, np.eye(64))


def test_norms_are_rounded_before_codes_are_chosen_and_kept_where_f16_loses_them():
    weights = np.random.default_rng(0).standard_normal((9, 64)).astype(np.float32)
    weights[3] *= 1e-6
    feedback = feedback_of(correlated(64), 64)
    _, norms = encode(get_backend(), weights.view(np.uint32), "F32", 3, 64, feedback, "F16")
    rounded = norms.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(norms == rounded, np.arange(9)[:, None] != 3)
    np.testing.assert_array_equal(fits_float16(norms), np.arange(9)[:, None] != 3)


def test_a_group_that_is_not_finite_has_an_infinite_norm_and_spoils_no_other():
    weights = np.random.default_rng(0).standard_normal((3, 128)).astype(np.float32)
    feedback = feedback_of(correlated(128), 64)
    at = int(feedback.order[0]) * 64 + 5
    good = encode(get_backend(), weights.view(np.uint32), "F32", 3, 64, feedback)[1]
    weights[1, at] = np.nan
    packed, norms = encode(get_backend(), weights.view(np.uint32), "F32", 3, 64, feedback)
    assert np.isinf(norms[1, feedback.order[0]])
    assert np.isfinite(norms[1, feedback.order[1]])
    np.testing.assert_array_equal(norms[[0, 2]], good[[0, 2]])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no group": ({"order": np.zeros(0, np.int64)}, "order.shape"),
    "a group outside": ({"order": np.array([0, 2])}, "order: found 2"),
    "numbers of another type": ({"order": np.array([0, 1], np.int32)}, "order.dtype.*int64"),
    "a spread of another shape": ({"spread": np.zeros((8, 64, 4), np.float32)}, "spread.shape"),
    "weights of another type": ({"weight": np.zeros(64)}, "weight.dtype"),
    "a block beyond the row": ({"first": 1}, "first_group: found 1"),
}


@pytest.mark.parametrize("name", available_backends())
@pytest.mark.parametrize("wrong", WRONG)
def test_feedback_that_does_not_fit_is_refused_with_what_was_expected(name, wrong):
    right = feedback_of(correlated(64), 32)
    change, message = WRONG[wrong]
    parts: dict[str, Any] = {
        "order": right.order,
        "spread": right.spread,
        "weight": right.weight,
    } | change
    first = parts.pop("first", 0)
    words = to_words(np.zeros((2, 64)), "BF16")
    with pytest.raises(ValueError, match=message):
        encode(get_backend(name), words, "BF16", 3, 32, calibrated.Feedback(**parts), first=first)


@pytest.mark.parametrize("name", available_backends())
def test_a_matrix_that_is_larger_than_a_block_is_not_decomposed(name):
    with pytest.raises(ValueError, match="at most 512 rows"):
        get_backend(name).decompose(np.eye(520))
