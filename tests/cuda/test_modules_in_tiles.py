"""Packed modules whose codes lie in tiles compute what the others do, and are saved alike."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from support.runtime.layers import BITS, activations, assert_same, layer
from support.runtime.modules import filled, tiled
from torch import nn

from tq3.format.layout import GroupLayout
from tq3.runtime import reference
from tq3.runtime.cuda import layout
from tq3.runtime.held import describes, hold_decoded
from tq3.runtime.modules import (
    PackedExperts,
    PackedLinear,
    PackedRows,
    PackedWeight,
    look_up_packed,
)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(64, 256), (37, 300)])
def test_a_layer_multiplies_as_the_reference_does(gpu, bits, shape):
    linear = PackedLinear(filled(PackedWeight(GroupLayout(shape, bits, 128))))
    x = activations(6, shape[1]).view(2, 3, -1)
    stored = linear.weight.stored()
    expected = reference.linear(x.flatten(0, 1), *stored, bits, 128).view(2, 3, -1)
    assert_same(tiled(linear)(x), expected)


def test_activations_may_be_strided(gpu):
    linear = tiled(PackedLinear(filled(PackedWeight(GroupLayout((40, 300), 3, 128)))))
    x = activations(12, 300).view(3, 4, 300)
    for part in (x[:, -1:], x[:, ::2], x.transpose(0, 1), activations(300, 6).T):
        assert_same(linear(part), linear(part.contiguous()))


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("pairs", [1, 5, 6, 23])
def test_experts_multiply_as_the_reference_does(gpu, stacked, pairs):
    """Five pairs are the most that are not sorted."""
    layout = GroupLayout((5, 40, 200), 3, 64, transposed=not stacked)
    weight = filled(PackedExperts(layout, stacked=stacked))
    before = {name: part.clone() for name, part in weight.state_dict().items()}
    codes = weight.tq_packed.view(5, 40 * 4, -1).clone()
    norms = weight.tq_norms.view(5, 40, 4).clone()
    x, experts = activations(pairs, 200), torch.randint(0, 4, (pairs,))
    expected = [
        reference.linear(x[i : i + 1], codes[e], norms[e], 3, 64) for i, e in enumerate(experts)
    ]
    assert_same(tiled(weight)(x, experts), torch.cat(expected))
    strided = x.T.contiguous().T
    assert_same(weight(strided, weight.route(experts)), torch.cat(expected))
    assert all(torch.equal(part, before[name]) for name, part in weight.state_dict().items())


@pytest.mark.parametrize("pairs", [4, 9])
def test_numbers_beyond_the_experts_are_taken_modulo(gpu, pairs):
    weight = tiled(filled(PackedExperts(GroupLayout((5, 40, 200), 3, 64))))
    x, experts = activations(pairs, 200), torch.arange(pairs) % 5
    beyond = experts + 5 * torch.tensor([0, -1, 2**40, 1])[torch.arange(pairs) % 4]
    assert_same(weight(x, beyond), weight(x, experts))


def test_a_routing_for_other_experts_is_refused(gpu):
    weight = tiled(filled(PackedExperts(GroupLayout((5, 40, 200), 3, 64))))
    routing = torch.ops.tq3.route(torch.zeros(9, dtype=torch.int64), 12, 64)
    with pytest.raises(ValueError, match=r"order and jobs.*expected \(9,\).*\(7, 4\).*tq3::route"):
        torch.ops.tq3.experts_tiled(
            activations(9, 200), weight.tq_packed, weight.tq_norms, *routing, 40, 64
        )
    with pytest.raises(ValueError, match=r"experts: found \(3,\) of torch.int32 below 5"):
        weight.route(torch.zeros(3, dtype=torch.int32))


def test_no_pairs_and_no_tokens_are_no_work(gpu):
    weight = tiled(filled(PackedExperts(GroupLayout((2, 40, 128), 3, 128))))
    assert weight(torch.ones(0, 128), torch.zeros(0, dtype=torch.int64)).shape == (0, 40)
    linear = tiled(filled(PackedWeight(GroupLayout((40, 128), 3, 128))))
    assert linear(torch.ones(0, 128)).shape == (0, 40)


@pytest.mark.parametrize("bits", BITS)
def test_rows_are_looked_up_as_before(gpu, bits):
    weight = filled(PackedRows(GroupLayout((70, 200), bits, 64), dtype=torch.bfloat16))
    ids = torch.tensor([[0, 69, 33], [1, 8, 8]])
    expected = weight(ids)
    assert_same(tiled(weight)(ids), expected)


def test_state_dicts_are_those_of_the_checkpoint_and_can_be_loaded(gpu):
    linear = PackedLinear(filled(PackedWeight(GroupLayout((37, 300), 3, 128))))
    expected = {name: value.clone() for name, value in linear.state_dict().items()}
    found = tiled(linear).state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    other = tiled(PackedLinear(filled(PackedWeight(GroupLayout((37, 300), 3, 128)), seed=1)))
    other.load_state_dict(found)
    assert other.weight.is_tiled
    x = activations(2, 300)
    assert_same(other(x), linear(x))


def test_a_copy_a_cast_and_a_move_keep_the_values(gpu):
    linear = tiled(PackedLinear(filled(PackedWeight(GroupLayout((37, 300), 3, 128)))))
    x = activations(2, 300)
    expected = linear(x)
    assert_same(copy.deepcopy(linear)(x), expected)
    assert_same(linear.to(torch.bfloat16).cpu()(x), expected)
    assert linear.weight.is_tiled
    assert torch.equal(linear.weight.decoded(), copy.deepcopy(linear).weight.decoded())


def test_modules_that_share_a_weight_share_its_tiles(gpu):
    layout = GroupLayout((64, 128), 4, 128)
    rows, head = filled(PackedRows(layout)), PackedWeight(layout)
    head.tq_packed, head.tq_norms = rows.tq_packed, rows.tq_norms
    embedding = nn.Embedding(64, 128, device="meta")
    look_up_packed(embedding, rows)
    model = nn.ModuleDict({"embedding": embedding, "head": PackedLinear(head)})
    ids, x = torch.arange(5), activations(3, 128)
    expected = embedding(ids), model["head"](x)
    tiled(model)
    assert rows.tq_packed is head.tq_packed
    model.to(torch.bfloat16)
    assert rows.tq_packed is head.tq_packed
    assert rows.is_tiled
    assert_same(embedding(ids).float(), expected[0].bfloat16().float())
    assert_same(model["head"](x), expected[1])


def test_a_pickle_can_be_read_where_there_is_no_gpu(gpu, monkeypatch):
    linear = tiled(PackedLinear(filled(PackedWeight(GroupLayout((37, 300), 3, 128)))))
    expected, pickled = linear.state_dict(), pickle.dumps(linear)
    assert pickle.loads(pickled).weight.is_tiled
    monkeypatch.undo()
    found = pickle.loads(pickled)
    assert not found.weight.is_tiled
    assert all(torch.equal(each, expected[name]) for name, each in found.state_dict().items())


def test_a_weight_that_is_held_decoded_has_its_codes_from_the_tiles(gpu):
    owner: Any = nn.Module()
    owner.weight = filled(PackedWeight(GroupLayout((40, 128), 3, 128)))
    before = [part.clone() for part in owner.weight.stored()]
    tiled(owner)
    codes = hold_decoded(owner, "weight")
    assert describes(codes, owner.weight)
    assert all(torch.equal(*pair) for pair in zip(codes.stored(), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_return_what_is_traced_for_them(gpu, dtype):
    """Shapes, dtypes, and how the results lie in memory: who compiles relies on it."""
    words, norms = layout.repack(*layer(40, 2), 3, 128)
    ops, x = torch.ops.tq3, activations(3, 200, dtype)
    torch.library.opcheck(ops.linear_tiled.default, (x, words, norms, 40, 128))
    ids = torch.tensor([[0, 39, 7]])
    torch.library.opcheck(ops.embedding_tiled.default, (ids, words, norms, 128, 200, dtype))
    stacks = words[None].repeat(2, 1, 1, 1, 1, 1), norms[None].repeat(2, 1, 1, 1, 1)
    for experts, pairs in ((torch.tensor([1, 0, 1]), x), (torch.tensor([1, 0]), x[:2])):
        torch.library.opcheck(ops.route.default, (experts, 2, 128))
        routing = ops.route(experts, 2, 128)
        torch.library.opcheck(ops.experts_tiled.default, (pairs, *stacks, *routing, 40, 128))


def test_a_layer_in_tiles_can_be_traced(gpu):
    linear = tiled(PackedLinear(filled(PackedWeight(GroupLayout((40, 128), 3, 128)))))
    x = activations(3, 128)
    exported = torch.export.export(linear, (x,))
    assert_same(exported.module()(x), linear(x))


WORDS, NORMS = layout.repack(*layer(40, 2), 3, 128)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "words of experts": ({"words": WORDS[None]}, r"words.shape: .*expected \(tiles, units, bits,"),
    "words of bytes": ({"words": WORDS.to(torch.uint8)}, "of torch.uint8, expected .*torch.int32"),
    "norms of halves": ({"norms": NORMS.half()}, r"expected \(2, 2, 8, 4\) of torch.float32"),
    "words with gaps": ({"words": WORDS.transpose(0, 1)}, "words and norms: found strided memory"),
    "too many rows": ({"rows": 65}, "rows: found 65, expected those of 2 tiles of 32"),
    "too few rows": ({"rows": 32}, "rows: found 32"),
    "too few columns": ({"x": torch.zeros(3, 128)}, "x.shape: found 128 columns"),
    "float64": ({"x": torch.zeros(3, 200).double()}, "x.dtype: found torch.float64"),
    "another device": ({"x": torch.zeros(3, 200, device="meta")}, "devices: found meta, cpu"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_layer_in_tiles_is_refused_with_what_was_expected(gpu, wrong):
    change, message = WRONG[wrong]
    given = {"x": torch.zeros(3, 200), "words": WORDS, "norms": NORMS, "rows": 40, "group": 128}
    with pytest.raises(ValueError, match=message):
        torch.ops.tq3.linear_tiled(**{**given, **change})


def test_a_layer_is_no_stack_of_experts(gpu):
    routing = torch.ops.tq3.route(torch.zeros(1, dtype=torch.int64), 1, 128)
    with pytest.raises(ValueError, match=r"words.shape: .*expected \(experts, tiles, units, bits,"):
        torch.ops.tq3.experts_tiled(torch.zeros(1, 200), WORDS, NORMS, *routing, 40, 128)
