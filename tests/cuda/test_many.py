"""The path for many tokens: its kernels, run on the processor, equal the torch code bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cuda.emulated import ORDERS, Device
from support.runtime.layers import (
    BITS,
    DTYPES,
    GROUPS,
    ROTATIONS,
    SPECIAL,
    activations,
    assert_same,
    layer,
    spoil,
)

from tq3.runtime import generic
from tq3.runtime.cuda import layout, many, source
from tq3.runtime.cuda.crossings import OTHERS, crossing_of

DECODE, ROTATE = source.kernel("decode"), source.kernel("rotate")

# Each makes a kernel wrong, and the check below must see it: what it does, and what it becomes.
DECODE_FAULTS = {
    "negative levels for positive ones": ("levels[count + i]", "levels[i]"),
    "magnitudes that always rise": ("codes ^ negative * kLargest", "codes"),
    "a sign in the wrong byte": ("permute(0x8000U", "permute(0x0080U"),
    "cut, not rounded": (
        "rounded<dtype>(__fmul_rn(levels[i], norm))",
        "(__float_as_uint(__fmul_rn(levels[i], norm)) >> (kBytes<dtype> == 2 ? 16 : 0))",
    ),
    "the norm of the unit's first group": ("* kUnit + first * 32) / group", "* kUnit) / group"),
    "the norms of other rows": ("norms + g * 8 + lane / 4", "norms + g * 8 + lane % 4"),
    "the codes of other rows": ("spread(packed, i, codes)", "spread(packed, 3 - i, codes)"),
    "two of four weights exchanged": ("kFirstTwo = 0x5140U", "kFirstTwo = 0x4051U"),
    "four of eight weights exchanged": ("eight >> t % 2 * 16", "eight >> (1 - t % 2) * 16"),
    "codes of another lane": ("2 * half + t / 2", "2 * half + t % 2"),
    "halves of 32 inputs exchanged": ("line[4 * half + t]", "line[4 * (1 - half) + t]"),
    "rows beyond the last": ("row < rows)", "true)"),
    "columns beyond the last": ("if (column >= columns) continue;", ""),
    "lanes without a row leave": ("column >= columns)", "column >= columns || row >= rows)"),
}
ROTATE_FAULTS = {
    "the columns of the next group": ("g = job % groups", "g = (job + 1) % groups"),
    "the next lane's place": ("i * kLanes + lane, values[i]", "i * kLanes + (lane ^ 1), values[i]"),
    "tokens beyond the last": ("if (token >= tokens)", "if (token > tokens)"),
}


def assert_decoded(text, packed, norms, bits, group, dtype, order="forward", tiles=slice(None)):
    """Those tiles of the layer are what the torch code says."""
    words, in_tiles = layout.repack(packed, norms, bits, group)
    rows = slice((tiles.start or 0) * layout.TILE, tiles.stop and tiles.stop * layout.TILE)
    expected = generic.decode(packed, norms, bits, group)[rows].to(dtype)
    found = torch.empty_like(expected)
    device = Device(order, decode=text)
    many.decode(device, layout.Tiles(words[tiles], in_tiles[tiles]), group, found)
    assert_same(found, expected)


def assert_rotated(text, x, n, group, rotation, order="forward"):
    found = many.rotate(Device(order, rotate=text), x, n, group, rotation)
    assert_same(found, generic.rotate(x, n, group, rotation).to(x.dtype))


@settings(max_examples=30)
@given(
    bits=st.sampled_from(BITS),
    group=st.sampled_from(GROUPS),
    rows=st.integers(1, 70),
    n=st.sampled_from([1, 2, 3, 5, 9]),
    order=st.sampled_from(list(ORDERS)),
    special=st.lists(
        st.sampled_from([0.0, -0.0, -1.5, 1e-44, 3e-39, 6e-8, 65504.0, 3e38, torch.inf, torch.nan])
    ),
    seed=st.integers(0, 2**31),
)
def test_any_layer_is_decoded_as_the_torch_code_does(bits, group, rows, n, order, special, seed):
    # One for each instance, so that few are compiled.
    dtype = DTYPES[(bits + GROUPS.index(group)) % 3]
    packed, norms = layer(rows, n, bits, group, seed)
    few = norms.view(-1)[: len(special)]
    few.copy_(torch.tensor(special[: len(few)]))
    assert_decoded(DECODE, packed, norms, bits, group, dtype, order)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tiles", [slice(0, 1), slice(1, 3), slice(2, 4), slice(3, 4)], ids=str)
def test_some_tiles_are_decoded_to_their_rows(tiles, dtype):
    assert_decoded(DECODE, *layer(107, 3, 3, 64), 3, 64, dtype, tiles=tiles)


@settings(max_examples=30)
@given(
    width=st.sampled_from(ROTATIONS),
    n=st.sampled_from([1, 2, 3, 5, 9]),
    missing=st.sampled_from([0, 1, 8, 31]),
    tokens=st.integers(1, 9),
    kinds=st.lists(st.tuples(st.sampled_from(SPECIAL), st.integers(0, 8)), max_size=3),
    order=st.sampled_from(list(ORDERS)),
    seed=st.integers(0, 2**31),
)
def test_any_activations_are_rotated_as_the_torch_code_does(
    width, n, missing, tokens, kinds, order, seed
):
    x = activations(tokens, n * width[0] - missing, DTYPES[ROTATIONS.index(width) % 3], seed)
    for kind, row in kinds:
        spoil(x, kind, row % tokens)
    assert_rotated(ROTATE, x, n, width[0], width[1], order)


class Recorder(Device):
    """Keeps what is decoded to: how large it was and where it began."""

    def __init__(self, piece_weights):
        super().__init__()
        self.crossing = self.crossing._replace(piece_weights=piece_weights)
        self.decoded = []

    def launch(self, call_):
        if call_.kernel == "decode":
            weights = call_.arguments[3]
            self.decoded.append((tuple(weights.shape), weights.data_ptr()))
        super().launch(call_)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("bits", "rotation"), [(2, 64), (3, 32)])
def test_a_product_is_that_of_what_was_rotated_and_decoded(bits, rotation, dtype):
    packed, norms = layer(139, 5, bits, 64)
    x = activations(40, 5 * 64 - 7, dtype)
    device = Recorder(2 * layout.TILE * 5 * 64 + 1)
    tiled = layout.repack(packed, norms, bits, 64)
    found = many.multiply_decoded(device, tiled, x, 139, 5, 64, rotation).double()
    left = generic.rotate(x, 5, 64, rotation).to(dtype).double()
    right = generic.decode(packed, norms, bits, 64).to(dtype).double().T
    # Sums of 320 products in float32, and the result's rounding.
    bound = 2.0**-16 * (left.abs() @ right.abs()) + torch.finfo(dtype).eps * (left @ right).abs()
    assert bool(((found - left @ right).abs() <= bound).all())
    shapes, places = zip(*device.decoded, strict=True)
    assert shapes == ((64, 320), (64, 320), (11, 320))
    assert len(set(places)) == 1


def test_pieces_are_as_even_as_tiles_allow():
    device = Recorder(4 * layout.TILE * 128)
    tiled = layout.repack(*layer(5 * 32, 1), 3, 128)
    many.multiply_decoded(device, tiled, activations(2, 128), 5 * 32, 1, 128, 128)
    assert [shape[0] for shape, _ in device.decoded] == [96, 64]


def test_nothing_is_read_from_the_device():
    class Nowhere:
        crossing = crossing_of(OTHERS)

        def launch(self, call_):
            pass

    packed, norms = layer(70, 3)
    tiled = layout.Tiles(*(each.to("meta") for each in layout.repack(packed, norms, 3, 128)))
    x = activations(9, 380, torch.bfloat16).to("meta")
    nowhere: Any = Nowhere()
    y = many.multiply_decoded(nowhere, tiled, x, 70, 3, 128, 128)
    assert (y.shape, y.dtype) == ((9, 70), torch.bfloat16)


def faulty(text, fault):
    right, wrong = fault
    assert text.count(right) == 1
    return text.replace(right, wrong)


@pytest.mark.parametrize("fault", DECODE_FAULTS)
def test_a_fault_of_the_decoding_is_seen(fault):
    text = faulty(DECODE, DECODE_FAULTS[fault])
    with pytest.raises(AssertionError):
        # First the one where nothing is written beyond the guards.
        for rows, n in ((63, 1), (41, 5)):
            for dtype in (torch.bfloat16, torch.float32):
                assert_decoded(text, *layer(rows, n, 3, 32), 3, 32, dtype)


@pytest.mark.parametrize("fault", ROTATE_FAULTS)
def test_a_fault_of_the_rotation_is_seen(fault):
    text = faulty(ROTATE, ROTATE_FAULTS[fault])
    with pytest.raises(AssertionError):
        assert_rotated(text, activations(3, 5 * 64 - 3), 5, 64, 32)
