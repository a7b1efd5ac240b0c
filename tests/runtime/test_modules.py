"""Packed layers as modules: keys, dtypes, values, what a compiler sees."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from support.runtime.modules import packed_weight, restored
from torch import nn

from tq3.errors import UsageError
from tq3.runtime import generic, ops
from tq3.runtime.modules import (
    PackedEmbedding,
    PackedExperts,
    PackedLinear,
    PackedRows,
    _packed_class,
    look_up_packed,
)

# Integer kernels round their 3-bit levels, 0.1 % of a product; the generic path is exact.
BOUND = 3e-3
# 4-bit levels are rounded more, 0.33 %.
BOUND_4_BITS = 7e-3


def assert_close(found: torch.Tensor, wanted: torch.Tensor, bound: float = BOUND) -> None:
    assert found.shape == wanted.shape
    assert (found - wanted).norm() <= bound * wanted.norm()


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("columns, group", [(256, 128), (200, 128), (60, 64)])
def test_a_packed_linear_computes_what_the_restored_one_does(bits, columns, group):
    weight = packed_weight((24, columns), bits, group)
    layer = PackedLinear(weight, nn.Parameter(torch.randn(24)))
    x = torch.randn(2, 5, columns)
    wanted = nn.functional.linear(x, restored(weight), layer.bias)
    bound = BOUND_4_BITS if bits == 4 else BOUND
    assert_close(layer(x).detach(), wanted.detach(), bound)


WAYS = {
    "eager": lambda layer, x: layer(x),
    "many tokens": lambda layer, x: layer(x.repeat(600, 1)),
    "a gradient": lambda layer, x: layer(x.requires_grad_()),
    "compiled": lambda layer, x: torch.compile(layer, backend="eager")(x),
    "on meta": lambda layer, x: layer.to("meta")(x.to("meta")),
    "a number": lambda layer, x: layer(x[0, 0]),
}


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, id=name, marks=pytest.mark.slow if name == "compiled" else ())
        for name, way in WAYS.items()
    ],
)
@pytest.mark.parametrize("path", [ops.path_for, lambda _: generic], ids=["kernels", "generic"])
def test_an_input_of_another_width_is_refused(way, path, monkeypatch):
    """Up to the end of the last group, whose padding is nobody else's."""
    monkeypatch.setattr(ops, "path_for", path)
    layer = PackedLinear(packed_weight((24, 200), tensor="model.q_proj.weight"))
    assert layer(torch.ones(2, 200)).shape == (2, 24)
    for columns in (129, 199, 256):
        with pytest.raises(ValueError, match=r"q_proj.weight: x.shape: found .*\(..., 200\)"):
            way(layer, torch.ones(2, columns))


def test_an_input_of_another_width_is_refused_by_experts():
    weight = packed_weight((4, 24, 200), kind=PackedExperts)
    with pytest.raises(ValueError, match=r"x.shape: found \(2, 256\), expected \(..., 200\)"):
        weight(torch.ones(2, 256), torch.tensor([0, 3]))


@pytest.mark.parametrize("stacked", [False, True])
def test_packed_experts_compute_what_the_restored_ones_do(stacked):
    weight = packed_weight((4, 24, 200), kind=PackedExperts, stacked=stacked)
    x, experts = torch.randn(6, 200), torch.tensor([3, 0, 0, 2, 3, 3])
    wanted = torch.einsum("prc,pc->pr", restored(weight)[experts], x)
    assert_close(weight(x, experts), wanted)


class Doubled(nn.Embedding):
    """Does something with the rows that nn.Embedding finds."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.factor = nn.Buffer(torch.tensor(2.0), persistent=False)

    def forward(self, ids):
        return super().forward(ids) * self.factor.to(self.weight.dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", [nn.Embedding, Doubled])
def test_an_embedding_finds_the_restored_rows_and_keeps_its_class(kind, dtype):
    weight = packed_weight((24, 200), kind=PackedRows)
    embedding = kind(24, 200)
    look_up_packed(embedding, weight)
    assert isinstance(embedding, kind)
    assert isinstance(embedding, PackedEmbedding)
    assert set(embedding.state_dict()) == {"weight.tq_packed", "weight.tq_norms"}
    ids = torch.tensor([[23, 0, 5], [5, 5, 1]])
    rows = restored(weight)[ids].to(dtype)
    assert torch.equal(embedding.to(dtype)(ids), rows * 2 if kind is Doubled else rows)
    assert embedding.to("meta")(ids.to("meta")).shape == (2, 3, 200)


def test_a_shared_weight_stays_shared_and_exact_where_a_model_is_cast():
    first, second = packed_weight((24, 200), kind=PackedRows), packed_weight((24, 200))
    second.tq_packed, second.tq_norms = first.tq_packed, first.tq_norms
    before = first.tq_norms.clone()
    nn.Sequential(first, second).to(torch.bfloat16)
    assert first.tq_norms is second.tq_norms
    assert torch.equal(first.tq_norms, before)


@pytest.mark.parametrize("kind", [nn.Embedding, Doubled])
@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copied_or_pickled_embedding_is_the_same(kind, again):
    embedding = kind(24, 200)
    look_up_packed(embedding, packed_weight((24, 200), kind=PackedRows))
    found, ids = again(embedding), torch.tensor([23, 0, 5])
    assert type(found) is type(embedding)
    assert torch.equal(found(ids), embedding(ids))


def test_an_embedding_of_a_class_that_is_made_here_can_be_unpickled_by_another_process():
    embedding = Doubled(24, 200)
    look_up_packed(embedding, packed_weight((24, 200), kind=PackedRows))
    pickled, rows = pickle.dumps(embedding), embedding(torch.arange(3))
    _packed_class.cache_clear()
    found = pickle.loads(pickled)
    assert isinstance(found, Doubled)
    assert torch.equal(found(torch.arange(3)), rows)


KEEPING = {
    "a cast": lambda model: model.to(torch.bfloat16),
    "a move": lambda model: model.to("meta"),
    "a copy": copy.deepcopy,
    "a pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "its state dict": lambda model: (model.load_state_dict(model.state_dict(), assign=True), model)[
        1
    ],
}


@pytest.mark.parametrize("keeping", KEEPING.values(), ids=KEEPING)
def test_norms_are_no_dtype_of_a_model(keeping):
    """Hosts take the first parameter that is floating point for it."""
    model = keeping(PackedLinear(packed_weight((24, 200)), nn.Parameter(torch.zeros(24))))
    assert [p is model.bias for p in model.parameters() if p.is_floating_point()] == [True]
    assert model.weight.tq_norms.dtype == torch.float32


def test_keys_of_a_state_dict_are_the_names_of_the_checkpoint():
    model = nn.Sequential(PackedLinear(packed_weight((24, 200)), nn.Parameter(torch.zeros(24))))
    assert set(model.state_dict()) == {"0.bias", "0.weight.tq_packed", "0.weight.tq_norms"}
    assert model.state_dict()["0.weight.tq_packed"].shape == (48, 48)


def test_norms_stay_float32_to_the_bit_where_a_model_is_cast():
    layer = PackedLinear(packed_weight((24, 200)), nn.Parameter(torch.zeros(24)))
    before = copy.deepcopy(layer.state_dict())
    layer.to(torch.bfloat16).half()
    assert layer.bias.dtype == layer.weight.dtype == torch.float16
    assert layer.float().weight.dtype == layer.bias.dtype == torch.float32
    assert torch.equal(layer.weight.tq_norms, before["weight.tq_norms"])
    assert torch.equal(layer.weight.tq_packed, before["weight.tq_packed"])
    assert layer.to("meta").weight.tq_norms.is_meta


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_result_has_the_dtype_of_the_activations(dtype):
    layer = PackedLinear(packed_weight((24, 200)), nn.Parameter(torch.zeros(24))).to(dtype)
    assert layer(torch.randn(3, 200, dtype=dtype)).dtype == dtype
    assert layer.to("meta")(torch.randn(3, 200, dtype=dtype, device="meta")).shape == (3, 24)


def test_a_compiler_sees_one_graph():
    layer = PackedLinear(packed_weight((24, 200)), nn.Parameter(torch.randn(24)))
    experts = packed_weight((4, 24, 200), kind=PackedExperts)
    x, chosen = torch.randn(5, 200), torch.tensor([1, 0, 3, 3, 1])
    embedding = Doubled(7, 200)
    look_up_packed(embedding, packed_weight((7, 200), kind=PackedRows))

    def run(x):
        return layer(x + embedding(chosen)) + experts(x, chosen)

    with torch.no_grad():
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), run(x))


def test_printing_tells_shape_and_width():
    text = str(PackedLinear(packed_weight((24, 200))))
    assert "in_features=200, out_features=24, bias=False" in text
    assert "(24, 200), bits=3, group=128" in text


def test_a_packed_linear_is_an_nn_linear_that_can_not_be_initialised():
    layer = PackedLinear(packed_weight((24, 200)))
    assert isinstance(layer, nn.Linear)
    with pytest.raises(UsageError, match="can't be read or changed"):
        layer.reset_parameters()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_who_asks_for_it_gets_the_decoded_weight(dtype):
    weight = packed_weight((24, 200), dtype=dtype)
    assert torch.equal(weight.dequantize(), restored(weight).to(dtype))


def test_a_parameter_in_the_place_of_a_packed_weight_makes_an_ordinary_layer():
    layer: Any = PackedLinear(packed_weight((24, 200)), nn.Parameter(torch.ones(24)))
    x = torch.ones(200)
    for value in (torch.ones(24, 200), None):
        with pytest.raises(TypeError, match=r"as 'weight' \(torch.nn.Parameter expected"):
            layer.weight = value
    found = layer(x)
    layer.weight = nn.Parameter(layer.weight.dequantize())
    assert type(layer) is nn.Linear
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert_close(layer(x), found)


def test_a_packed_weight_can_be_deleted_as_a_parameter_can():
    embedding: Any = Doubled(24, 200)
    look_up_packed(embedding, packed_weight((24, 200), kind=PackedRows))
    rows, ids = restored(embedding.weight), torch.tensor([3, 5])
    del embedding.weight
    assert type(embedding) is Doubled
    with pytest.raises(AttributeError, match="'Doubled' object has no attribute 'weight'"):
        embedding(ids)
    embedding.weight = nn.Parameter(rows)
    assert torch.equal(embedding(ids), rows[ids] * 2)


def test_what_kernels_do_not_take_a_model_is_not_cast_to():
    layer = PackedLinear(packed_weight((24, 200), dtype=torch.bfloat16))
    for cast in (nn.Sequential(layer).double, lambda: layer.to(torch.float64)):
        with pytest.raises(UsageError, match="found torch.float64, expected torch.bfloat16"):
            cast()
    assert layer.weight.dtype == torch.bfloat16


def test_codes_and_norms_can_not_be_trained():
    layer = PackedLinear(packed_weight((24, 200)))
    norms = nn.Parameter(layer.weight.tq_norms.detach().clone())  # as a host puts it in the place
    layer.weight.tq_norms = norms
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    with pytest.raises(UsageError, match="constants that can't be trained.*train an adapter"):
        layer.requires_grad_(True)
    assert layer.requires_grad_(False) is layer
