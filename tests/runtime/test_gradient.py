"""Gradients of packed layers with respect to their input: those of the decoded dense layer.

Both multiply the same weights in the same precision and add up in another order, so that they are
equal within a few roundings; the decoded levels themselves are exact.
"""

from __future__ import annotations

import pytest
import torch
from support.runtime.layers import BITS, DTYPES, activations, assert_same, decoded, error, layer
from torch.utils.checkpoint import checkpoint

from tq3.runtime import generic, ops

linear, experts = torch.ops.tq3.linear, torch.ops.tq3.experts
ROWS, N = 70, 3
# Of the result as a whole: sums of float32, rounded once to the dtype of the activations.
BOUNDS = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}


def given(
    bits=3, group=128, columns=N * 128 - 5, dtype=torch.float32, tokens=7, lead=()
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """An input that wants a gradient, a layer for it, and a gradient of its output."""
    x = activations(tokens, columns, dtype).requires_grad_()
    g = activations(tokens, ROWS, dtype, seed=5)
    return x, layer(ROWS, -(-columns // group), bits, group, lead=lead), g


@pytest.mark.parametrize(
    "path, dtype", [*(("compiled", dtype) for dtype in DTYPES), ("generic", torch.float32)]
)
@pytest.mark.parametrize("bits, group", [*((b, 128) for b in BITS), (3, 32), (3, 64), (3, 256)])
def test_it_is_that_of_the_decoded_layer(bits, group, dtype, path, monkeypatch):
    if path == "generic":
        monkeypatch.setattr(ops, "path_for", lambda _: generic)
    x, weight, g = given(bits, group, 3 * group - 5, dtype)
    (found,) = torch.autograd.grad(linear(x, *weight, bits, group), x, g)
    assert found.dtype == dtype
    assert error(found, g.double() @ decoded(*weight, bits, group, x.shape[1])) < BOUNDS[dtype]


@pytest.mark.parametrize("rotation", [32, 64])
def test_small_rotation_blocks_are_undone(rotation):
    """The layer is linear, but for its roundings: its gradient is its matrix, transposed."""
    x, weight, g = given()
    (found,) = torch.autograd.grad(linear(x, *weight, 3, 128, rotation), x, g)
    columns = linear(torch.eye(x.shape[1]), *weight, 3, 128, rotation).T
    assert error(found, (g @ columns).double()) < 2e-3


def test_many_tiles_of_rows_and_of_tokens_add_up(monkeypatch):
    x, weight, g = given(tokens=50)
    expected = torch.autograd.grad(linear(x, *weight, 3, 128), x, g)[0].double()
    monkeypatch.setattr(generic, "TILE_WEIGHTS", 32 * N * 128)
    (found,) = torch.autograd.grad(linear(x, *weight, 3, 128), x, g)
    assert error(found, expected) < 1e-6


def test_any_dimensions_and_strides():
    x, weight, g = given(tokens=12)
    (flat,) = torch.autograd.grad(linear(x, *weight, 3, 128), x, g)
    deep = x.detach().view(3, 4, -1).requires_grad_()
    across = g.view(3, 4, -1).transpose(0, 1).contiguous().transpose(0, 1)
    (found,) = torch.autograd.grad(linear(deep, *weight, 3, 128), deep, across)
    assert_same(found, flat.view(3, 4, -1))
    (of_sum,) = torch.autograd.grad(linear(x, *weight, 3, 128).sum(), x)
    assert error(of_sum, torch.ones(12, ROWS).double() @ decoded(*weight, 3, 128, 379)) < 1e-6
    none = x.detach()[:0].requires_grad_()
    assert torch.autograd.grad(linear(none, *weight, 3, 128).sum(), none)[0].shape == (0, 379)


@pytest.mark.parametrize("bits", BITS)
def test_experts_have_those_of_their_layers(bits):
    x, (packed, norms), g = given(bits, lead=(4,))
    chosen = torch.tensor([3, 0, 0, 2, 3, 3, 0])
    flat = packed.view(-1, packed.shape[-1])
    (found,) = torch.autograd.grad(experts(x, flat, norms, chosen, bits, 128), x, g)
    for expert in (0, 2, 3):
        of, one = chosen == expert, x.detach()[chosen == expert].requires_grad_()
        y = linear(one, packed[expert], norms[expert], bits, 128)
        assert_same(found[of], torch.autograd.grad(y, one, g[of])[0])


def test_the_gradient_of_a_gradient_is_the_layer():
    x, weight, _ = given()
    g = activations(7, ROWS, seed=5).requires_grad_()
    (dx,) = torch.autograd.grad(linear(x, *weight, 3, 128), x, g, create_graph=True)
    v = activations(7, x.shape[1], seed=9)
    assert_same(torch.autograd.grad(dx, g, v)[0], linear(v, *weight, 3, 128))


def test_a_compiled_training_step_has_the_same_gradients():
    x, weight, _ = given()
    y = layer(9, 3, lead=(2,))
    chosen = torch.tensor([1, 0, 1, 1, 0, 0, 1])

    def loss(x):
        hidden = linear(x, *weight, 3, 128).relu()
        return hidden.square().sum() + experts(x, *y, chosen, 3, 128).square().sum()

    (expected,) = torch.autograd.grad(loss(x), x)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_same(torch.autograd.grad(compiled(x), x)[0], expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_has_the_same_gradients(use_reentrant):
    x, weight, g = given()
    (expected,) = torch.autograd.grad(linear(x, *weight, 3, 128), x, g)
    checkpoint(lambda x: linear(x, *weight, 3, 128), x, use_reentrant=use_reentrant).backward(g)
    assert x.grad is not None
    assert_same(x.grad, expected)


def test_nothing_is_kept_for_it_but_codes_and_norms():
    x, weight, _ = given()
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        linear(x, *weight, 3, 128)
    assert [tensor.data_ptr() for tensor in kept] == [part.data_ptr() for part in weight]


def test_codes_and_norms_have_none():
    x, (packed, norms), _ = given()
    y = linear(x, packed, norms.requires_grad_(), 3, 128)
    with pytest.raises(NotImplementedError, match="constants.*tq3 restore"):
        y.sum().backward()


def test_opcheck_finds_nothing_in_the_operators_of_gradients():
    _, weight, g = given()
    arguments = g.requires_grad_(), *weight, 3, 128, 379, None
    torch.library.opcheck(torch.ops.tq3.linear_gradient, arguments)
    packed, norms = layer(ROWS, N, lead=(3,))
    two = g.detach()[:2].requires_grad_()
    of_experts = two, packed, norms, torch.tensor([2, 0]), 3, 128, 379, None
    torch.library.opcheck(torch.ops.tq3.experts_gradient, of_experts)
    with pytest.raises(ValueError, match=r"g.shape: found \(7, 60\), expected \(..., 70\)"):
        torch.ops.tq3.linear_gradient(g[:, :60], *weight, 3, 128, 379, None)
