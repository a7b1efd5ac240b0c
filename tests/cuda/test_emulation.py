"""The emulated device does what the CUDA and PTX manuals say, in every order of its threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.cuda.emulated import ORDERS, call, compiled

every_order = pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    return compiled("primitives_host.cpp", tmp_path_factory.mktemp("primitives"))


def words(*shape, seed=0, dtype=torch.int32):
    rng = np.random.default_rng(seed)
    values = rng.integers(-(2**31), 2**31, shape, np.int64).astype(np.int32)
    return torch.from_numpy(values).view(dtype)


def turned(device, order, all_barriers):
    values = torch.arange(96, dtype=torch.int32)
    assert call(device.turned_around, 96, order, values, 5, all_barriers) == ""
    return values


def expected_turned():
    values = torch.arange(96, dtype=torch.int32)
    for round_ in range(5):
        values = (values + round_).flip(0)
    return values


@every_order
def test_threads_meet_at_barriers(device, order):
    assert torch.equal(turned(device, order, 1), expected_turned())


def test_a_missing_barrier_is_seen_in_some_order(device):
    results = [turned(device, order, 0) for order in ORDERS.values()]
    assert not all(torch.equal(result, expected_turned()) for result in results)


@every_order
def test_a_barrier_that_some_never_reach_is_an_error(device, order):
    assert "never come" in call(device.barrier_of_some, 64, order, 63)
    assert call(device.barrier_of_some, 64, order, 64) == ""


@every_order
def test_lanes_take_the_words_of_others(device, order):
    source = words(96) & 31
    values = words(96, seed=1)
    lanes = values.clone().reshape(3, 32)
    lanes = lanes.gather(1, source.reshape(3, 32).long())
    expected = lanes[:, torch.arange(32) ^ 5]
    assert call(device.shuffled, 96, order, source, values, 5) == ""
    assert torch.equal(values, expected.reshape(-1))


@every_order
def test_a_shuffle_that_some_lanes_miss_is_an_error(device, order):
    assert "never come" in call(device.shuffle_of_some, 32, order, 31)
    assert "while other lanes" in call(device.shuffle_beside_maximum, 32, order)


@every_order
def test_copies_come_as_late_as_they_may_or_at_once(device, order):
    source = words(2, 64 * 4)
    for may_lack, late in ((2, torch.full((256,), -1, dtype=torch.int32)), (1, source[0])):
        found = torch.zeros(256, dtype=torch.int32)
        assert call(device.copied, 64, order, source, found, may_lack, 1) == ""
        assert torch.equal(found, source[1] if order == ORDERS["early"] else late)
    assert call(device.copied, 64, order, source, found, 0, 0) == ""
    assert torch.equal(found, source[1])


def test_a_thread_that_ends_before_its_copies_is_an_error(device):
    source, found = words(2, 64 * 4), torch.zeros(256, dtype=torch.int32)
    assert "before its copies have come" in call(device.copied, 64, 0, source, found, 1, 0)


@every_order
def test_lanes_meet_at_the_same_operation(device, order):
    assert "while other lanes" in call(device.left_beside_a_shuffle, 32, order)


@every_order
def test_the_next_kernel_may_start_behind_the_wait_for_the_previous_one(device, order):
    assert call(device.started, order, 1) == ""
    assert "before it has waited" in call(device.started, order, 0)


@every_order
def test_the_largest_of_a_warp_reaches_all_its_lanes(device, order):
    values = words(64)
    largest = (values.long() & 0xFFFFFFFF).reshape(2, 32).amax(1)
    assert call(device.maxima, 64, order, values) == ""
    assert torch.equal(values.long() & 0xFFFFFFFF, largest.repeat_interleave(32))


def fragments_of_a(a):
    """Words of the lanes, by the PTX manual: byte i of word j is row r, column k.  (32, 4)"""
    fragments = np.empty((32, 4, 4), np.int8)
    for lane, j, i in np.ndindex(32, 4, 4):
        row = lane // 4 + (8 if j in (1, 3) else 0)
        column = lane % 4 * 4 + i + (16 if j >= 2 else 0)
        fragments[lane, j, i] = a[row, column]
    return torch.from_numpy(fragments.view(np.int32)[..., 0].copy())


def fragments_of_b(b):
    """As above: byte i of word j is row k, column n.  (32, 2)"""
    fragments = np.empty((32, 2, 4), np.int8)
    for lane, j, i in np.ndindex(32, 2, 4):
        fragments[lane, j, i] = b[lane % 4 * 4 + i + 16 * j, lane // 4]
    return torch.from_numpy(fragments.view(np.int32)[..., 0].copy())


def sums_of_fragments(fragments):
    """(32, 4) to the matrix.  (16, 8)"""
    sums = np.empty((16, 8), np.int32)
    for lane, j in np.ndindex(32, 4):
        sums[lane // 4 + (8 if j >= 2 else 0), lane % 4 * 2 + j % 2] = fragments[lane, j]
    return sums


@every_order
@pytest.mark.parametrize("extreme", [False, True])
def test_a_warp_multiplies_matrices_of_bytes(device, order, extreme):
    rng = np.random.default_rng(2)
    a, b = (rng.integers(-128, 128, shape).astype(np.int8) for shape in ((16, 32), (32, 8)))
    if extreme:
        a[:], b[:, ::2], b[:, 1::2] = -128, -128, 127
    before = words(32, 4, seed=3) // 4
    sums = before.clone()
    assert call(device.multiplied, order, sums, fragments_of_a(a), fragments_of_b(b)) == ""
    expected = sums_of_fragments(before) + a.astype(np.int32) @ b.astype(np.int32)
    np.testing.assert_array_equal(sums_of_fragments(sums), expected)


def test_bytes_or_their_signs_are_chosen_by_selectors(device):
    low, high, selectors = words(200), words(200, seed=1), words(200, seed=2)
    both = np.stack([low.numpy(), high.numpy()], 1).view(np.int8)
    places = np.stack([selectors.numpy() >> 4 * i & 15 for i in range(4)], 1)
    chosen = np.take_along_axis(both, places & 7, 1)
    expected = np.where(places & 8, chosen >> 7, chosen).view(np.int32)[:, 0]
    assert call(device.permuted, 200, low, high, selectors) == ""
    np.testing.assert_array_equal(selectors.numpy(), expected)


def test_four_products_of_bytes_are_added(device):
    a, b, sums = words(200), words(200, seed=1), words(200, seed=2) // 2
    bytes_of = [v.view(torch.int8).reshape(200, 4).int() for v in (a, b)]
    expected = sums + (bytes_of[0] * bytes_of[1]).sum(1, dtype=torch.int32)
    assert call(device.dot_products, 200, a, b, sums) == ""
    assert torch.equal(sums, expected)


def test_floats_are_rounded_half_to_even(device):
    values = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 0.49999997, 32511.5, -32511.5, 7.0])
    whole = torch.empty(len(values), dtype=torch.int32)
    assert call(device.rounded, len(values), values, whole) == ""
    assert torch.equal(whole, values.round().int())


def test_products_are_rounded_before_they_are_subtracted(device):
    a, b = torch.rand(200) + 1, torch.rand(200) + 1
    left = torch.full((200,), 7.0)
    assert call(device.products_less_themselves, 200, a, b, left) == ""
    assert not left.any()
