"""Gradients of layers in tiles, which a device decodes: those of the same layers without tiles."""

from __future__ import annotations

import pytest
import torch
from support.runtime.layers import activations, error
from support.runtime.modules import filled, tiled

from tq3.format.layout import GroupLayout
from tq3.runtime.modules import PackedExperts, PackedLinear, PackedWeight

# Weights and products are rounded to the dtype of the activations.
BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 8e-3}


def gradient(module, x, *others):
    x = x.detach().requires_grad_()
    y = module(x, *others)
    g = activations(y.numel() // y.shape[-1], y.shape[-1], y.dtype, seed=5).view(y.shape)
    return torch.autograd.grad(y, x, g)[0]


@pytest.mark.parametrize("dtype", BOUNDS)
def test_a_linear_layer(gpu, dtype):
    linear = PackedLinear(filled(PackedWeight(GroupLayout((70, 300), 3, 128))))
    x = activations(6, 300, dtype).view(2, 3, -1)
    expected = gradient(linear, x).double()
    assert error(gradient(tiled(linear), x), expected) < BOUNDS[dtype]
    gpu.crossing = gpu.crossing._replace(piece_weights=1)  # a tile at a time
    assert error(gradient(linear, x), expected) < BOUNDS[dtype]


@pytest.mark.parametrize("chosen", [[3, 0, 3], [3, 0, 0, 2, 3, 3]], ids=["as they lie", "sorted"])
def test_experts_in_tiles_have_the_same_gradient(gpu, chosen):
    experts = filled(PackedExperts(GroupLayout((4, 40, 200), 3, 128)))
    x, chosen = activations(len(chosen), 200), torch.tensor(chosen)
    expected = gradient(experts, x, chosen).double()
    assert error(gradient(tiled(experts), x, chosen), expected) < BOUNDS[x.dtype]
