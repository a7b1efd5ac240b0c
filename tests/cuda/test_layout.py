"""A repacked layer holds every code and norm of the checkpoint, where the kernel reads them."""

from __future__ import annotations

import pytest
import torch
from support.runtime.layers import BITS, GROUPS, layer

from tq3.runtime import reference
from tq3.runtime.cuda import layout

every_width = pytest.mark.parametrize(
    ("bits", "group"), [(bits, group) for bits in BITS for group in GROUPS]
)


@every_width
@pytest.mark.parametrize(("rows", "n"), [(32, 4), (1, 1), (33, 3), (70, 9)])
def test_what_is_repacked_can_be_had_back(rows, n, bits, group):
    packed, norms = layer(rows, n, bits, group)
    words, in_tiles = layout.repack(packed, norms, bits, group)
    some = torch.randperm(rows)
    codes = layout.rows_of(words, some)
    expected = reference.unpack(packed, bits).reshape(rows, n * group).int()
    assert torch.equal(codes[:, : n * group], expected[some])
    assert torch.equal(layout.norms_of(in_tiles, some)[:, :n], norms[some])


@every_width
def test_padding_has_no_norm(bits, group):
    packed, norms = layer(33, 3, bits, group)
    _, in_tiles = layout.repack(packed, norms, bits, group)
    assert int(in_tiles.count_nonzero()) == int(norms.count_nonzero())


@every_width
def test_whole_tiles_and_units_need_the_bytes_of_the_checkpoint(bits, group):
    packed, norms = layer(64, 8, bits, group)
    words, in_tiles = layout.repack(packed, norms, bits, group)
    assert words.nbytes == packed.nbytes
    assert in_tiles.nbytes == norms.nbytes
    assert words.is_contiguous()
    assert in_tiles.is_contiguous()


@pytest.mark.parametrize("bits", BITS)
def test_the_word_of_one_weight_is_that_of_its_lane(bits):
    rows, columns = 64, 256
    codes = torch.zeros(rows, columns, dtype=torch.int32)
    codes[32 + 8 * 3 + 5, 128 + 32 * 2 + 8 * 1 + 6] = 1
    words = layout._words(codes, bits)
    (place,) = words.nonzero().tolist()
    tile, unit, chunk, lane, word = place
    assert (tile, unit, lane) == (1, 1, 4 * 5 + 1)
    # The third stretch of 32 has a word of its own, but at 2 bits, where it shares the second.
    assert 4 * chunk + word == bits * 3 + {2: 1, 3: 2, 4: 2}[bits]
    assert int(words[tuple(place)]) == 1 << 4 * 6


def test_a_layer_of_many_pieces_is_repacked_as_one_of_few(monkeypatch):
    packed, norms = layer(200, 3)
    expected = layout.repack(packed, norms, 3, 128)
    monkeypatch.setattr(layout, "PIECE_WEIGHTS", 3 * 128 * 70)
    found = layout.repack(packed, norms, 3, 128)
    assert all(map(torch.equal, found, expected))


def test_a_unit_of_activations_holds_each_input_once():
    places = torch.zeros(layout.UNIT, 1, 2, layout.UNIT, dtype=torch.int8)
    places[torch.arange(layout.UNIT), 0, 1, torch.arange(layout.UNIT)] = 1
    found = layout.integers(places).reshape(layout.UNIT, layout.UNIT)
    assert torch.equal(found.sum(0), torch.ones(layout.UNIT, dtype=found.dtype))
    assert torch.equal(found.sum(1), torch.ones(layout.UNIT, dtype=found.dtype))


@every_width
@pytest.mark.parametrize(("rows", "n"), [(33, 3), (64, 8)])
def test_layers_are_restored_as_they_were(monkeypatch, rows, n, bits, group):
    monkeypatch.setattr(layout, "PIECE_WEIGHTS", 20 * n * group)
    parts = [layer(rows, n, bits, group, seed) for seed in range(2)]
    packed, norms = (torch.stack(part) for part in zip(*parts, strict=True))
    tiles = layout.repack(packed, norms, bits, group)
    back = layout.restore(tiles, rows, n)
    assert all(map(torch.equal, back, (packed, norms)))
    for i, part in enumerate(parts):
        assert torch.equal(tiles.words[i], layout.repack(*part, bits, group).words)


def test_weights_on_a_gpu_are_there_when_they_are_repacked(monkeypatch):
    waited = []

    class Stream:
        def __init__(self, device):
            self.device = device

        def synchronize(self):
            waited.append(self.device)

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    gpu = torch.device("cuda", 1)
    layout.settle(torch.device("cpu"))
    layout.settle(gpu)
    assert waited == [gpu]
    asked: list[torch.device] = []
    monkeypatch.setattr(layout, "settle", asked.append)
    tiles = layout.repack(*layer(33, 2), 3, 128)
    assert asked == [tiles.words.device]
