"""The reference against bytes a person can check, an existing writer's files, and theory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors
from scipy.integrate import quad
from scipy.stats import norm as gaussian
from support.factories import Tensor

from tq3.codec import reference, tables
from tq3.format.recipe import SCALES

GOLDEN = {
    name: Tensor(found["dtype"], tuple(found["shape"]), bytes(found["data"]))
    for name, found in safetensors.deserialize(
        (Path(__file__).parents[1] / "golden" / "tq3_native.safetensors").read_bytes()
    )
}
GOLDEN_INPUTS = sorted(name.removesuffix(".input") for name in GOLDEN if name.endswith(".input"))
GOLDEN_GROUP = 128


def golden_bytes(name: str, bits: int) -> np.ndarray:
    packed = GOLDEN[f"{name}.b{bits}.tq_packed"]
    return np.frombuffer(packed.data, np.uint8).reshape(packed.shape)


def test_codes_0_to_7_pack_to_three_known_bytes():
    codes = np.arange(8, dtype=np.uint8)[None]
    assert reference.pack(codes, bits=3).tobytes() == bytes.fromhex("88c6fa")


@pytest.mark.parametrize(
    ("bits", "codes", "packed"), [(2, [0, 1, 2, 3], "e4"), (4, [1, 2, 15, 0], "210f")]
)
def test_the_first_code_lies_in_the_lowest_bits(bits, codes, packed):
    assert reference.pack(np.array([codes], np.uint8), bits).tobytes() == bytes.fromhex(packed)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_unpack_gives_back_what_was_packed(bits):
    codes = np.random.default_rng(0).integers(0, 1 << bits, (5, 128), np.uint8)
    np.testing.assert_array_equal(reference.unpack(reference.pack(codes, bits), bits), codes)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_codes_differ_from_an_existing_writer_in_at_most_one_of_100000(bits):
    differing = total = 0
    for name in GOLDEN_INPUTS:
        packed, _ = reference.encode(
            GOLDEN[f"{name}.input"].words, GOLDEN[f"{name}.input"].dtype, bits, GOLDEN_GROUP
        )
        codes, theirs = (reference.unpack(p, bits) for p in (packed, golden_bytes(name, bits)))
        differing += np.count_nonzero(codes != theirs)
        total += codes.size
    assert total == 18_688
    assert differing <= total / 100_000


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("name", GOLDEN_INPUTS)
def test_norms_equal_an_existing_writers_within_two_millionths(name, bits):
    words, dtype = GOLDEN[f"{name}.input"].words, GOLDEN[f"{name}.input"].dtype
    _, norms = reference.encode(words, dtype, bits, GOLDEN_GROUP)
    np.testing.assert_allclose(norms, GOLDEN[f"{name}.b{bits}.tq_norms"].values, rtol=2e-6)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("name", GOLDEN_INPUTS)
def test_decoding_an_existing_writers_bytes_gives_its_readers_weights(name, bits):
    """Within 1e-6 of each group's largest weight: the transforms add in different orders."""
    norms = GOLDEN[f"{name}.b{bits}.tq_norms"].values
    theirs = GOLDEN[f"{name}.b{bits}.decoded"].values
    ours = reference.decode(
        golden_bytes(name, bits), norms, bits, GOLDEN_GROUP, cols=theirs.shape[1]
    )
    largest = np.repeat(np.abs(norms), GOLDEN_GROUP, axis=1)[:, : theirs.shape[1]]
    assert np.all(np.abs(ours - theirs) <= 1e-6 * largest)


def relative_squared_error(bits: int, group: int, scale: str = "norm") -> float:
    weights = np.random.default_rng(5).standard_normal((2048, 256), np.float32)
    packed, norms = reference.encode(weights.view(np.uint32), "F32", bits, group, scale)
    decoded = reference.decode(packed, norms, bits, group, weights.shape[1])
    return float(np.square(decoded - weights).sum() / np.square(weights).sum())


def group_errors(weights: np.ndarray, bits: int, group: int, scale: str) -> np.ndarray:
    """Relative squared error of each group of rows that are one group long."""
    packed, norms = reference.encode(weights.view(np.uint32), "F32", bits, group, scale)
    decoded = reference.decode(packed, norms, bits, group, group).astype(np.float64)
    return np.square(decoded - weights).sum(axis=1) / np.square(weights.astype(float)).sum(axis=1)


@pytest.mark.parametrize(("bits", "published"), [(2, 0.1175), (3, 0.0345), (4, 0.0095)])
def test_error_of_gaussian_weights_is_close_to_the_published_figure(bits, published):
    """The figures are those of the codebook alone. A corrected norm adds up to 3 %, a group of
    128, whose norm is known, takes up to 4 % away."""
    assert relative_squared_error(bits, 128) == pytest.approx(published, rel=0.04)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_error_of_gaussian_weights_tends_to_that_of_the_corrected_codebook(bits):
    """E|x - g c(x)|^2 with g such that g c(x) has the norm of x: 2 - 2 E[x c] / sqrt(E[c^2]).

    What a finite group gains falls as 1 / group, so two sizes give the limit.
    """
    levels = np.array(tables.LEVELS[bits])
    edges = np.concatenate([[0], (levels[:-1] + levels[1:]) / 2, [12]])
    cells = list(zip(levels, edges, edges[1:], strict=False))
    x_c = sum(2 * c * quad(lambda x: x * gaussian.pdf(x), a, b)[0] for c, a, b in cells)
    c_c = sum(2 * c * c * (gaussian.cdf(b) - gaussian.cdf(a)) for c, a, b in cells)

    limit = 2 * relative_squared_error(bits, 256) - relative_squared_error(bits, 128)
    assert limit == pytest.approx(2 - 2 * x_c / np.sqrt(c_c), rel=0.01)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_decoded_group_has_the_norm_of_the_source(bits):
    weights = np.random.default_rng(1).standard_normal((50, 128), np.float32)
    packed, norms = reference.encode(weights.view(np.uint32), "F32", bits, 128)
    decoded = reference.decode(packed, norms, bits, 128, 128)
    norm_of = np.linalg.norm(weights, axis=1)
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), norm_of, rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_zero_group_takes_the_lower_middle_code_and_norm_zero(bits):
    packed, norms = reference.encode(np.zeros((1, 128), np.uint16), "BF16", bits, 128)
    assert np.all(reference.unpack(packed, bits) == (1 << (bits - 1)) - 1)
    assert norms.tobytes() == bytes(4)
    assert not reference.decode(packed, norms, bits, 128, 128).any()


# What the search is worth: (bits, group) -> the most that the relative squared error may be.
SEARCHED = {(2, 128): 0.1150, (3, 128): 0.0318, (4, 128): 0.0080, (3, 32): 0.0262, (4, 32): 0.0062}


@pytest.mark.parametrize(("bits", "group"), SEARCHED)
def test_the_search_makes_the_error_of_gaussian_weights_smaller(bits, group):
    assert relative_squared_error(bits, group, "search") <= SEARCHED[bits, group]


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("draw", ["standard_normal", "standard_cauchy", "standard_exponential"])
def test_the_search_worsens_no_group(bits, draw):
    weights = getattr(np.random.default_rng(7), draw)((1000, 128)).astype(np.float32)
    errors = {scale: group_errors(weights, bits, 128, scale) for scale in SCALES}
    assert np.all(errors["search"] <= errors["norm"] + 1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_searched_norm_is_the_best_one_for_its_codes(bits):
    weights = np.random.default_rng(1).standard_normal((50, 128), np.float32)
    packed, norms = reference.encode(weights.view(np.uint32), "F32", bits, 128, "search")
    direction = reference.decode(packed, np.ones_like(norms), bits, 128, 128).astype(np.float64)
    best = (weights * direction).sum(axis=1) / (direction * direction).sum(axis=1)
    np.testing.assert_allclose(norms[:, 0], best, rtol=2e-6)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_searched_zero_group_is_the_one_of_the_corrected_norm(bits):
    zeros = np.zeros((1, 128), np.uint16)
    norm, search = (reference.encode(zeros, "BF16", bits, 128, scale) for scale in SCALES)
    assert [part.tobytes() for part in search] == [part.tobytes() for part in norm]


def test_a_searched_group_whose_squares_underflow_keeps_its_signs_and_size():
    weights = np.random.default_rng(8).standard_normal((20, 128), np.float32)
    assert np.all(group_errors(weights * np.float32(1e-24), 3, 128, "search") < 0.5)


def test_padding_a_row_with_zeros_changes_nothing():
    rng = np.random.default_rng(2)
    short = rng.standard_normal((3, 200), np.float32).view(np.uint32)
    long = np.zeros((3, 256), np.uint32)
    long[:, :200] = short
    for ours, padded in zip(
        reference.encode(short, "F32", 3, 128), reference.encode(long, "F32", 3, 128), strict=True
    ):
        np.testing.assert_array_equal(ours, padded)


@pytest.mark.parametrize("scale", SCALES)
def test_a_sum_of_squares_that_overflows_gives_a_norm_that_is_not_finite(scale):
    weights = np.full((1, 128), 1e19, np.float32)
    _, norms = reference.encode(weights.view(np.uint32), "F32", 3, 128, scale)
    assert np.isinf(norms[0, 0])


def test_the_transform_is_its_own_inverse_up_to_the_group_size():
    values = np.random.default_rng(3).integers(-8, 8, (4, 64)).astype(np.float32)
    np.testing.assert_array_equal(reference.hadamard(reference.hadamard(values)), 64 * values)


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (1.00390625, 0x3F80),  # half-way between 1 and the next BF16: to the even one
        (1.01171875, 0x3F82),
        (3.3961776e38, 0x7F80),  # half-way beyond the largest
        (3.396177e38, 0x7F7F),
        (-0.0, 0x8000),
    ],
)
def test_bf16_is_rounded_to_the_nearest_with_ties_to_even(value, word):
    assert reference.from_float32(np.array([value], np.float32), "BF16")[0] == word


def test_a_nan_stays_a_nan_in_bf16_whatever_its_payload():
    nans = np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    words = reference.from_float32(nans, "BF16")
    assert np.all(np.isnan(reference.to_float32(words, "BF16")))
