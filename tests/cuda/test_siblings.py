"""Layers that read one input have it rotated and quantised once on a GPU, and only where it is one.

The device here computes next to nothing: what it quantises an input to is the input's first value,
and so are all products with that.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from support.cuda.emulated import SHARED_BYTES
from support.runtime.layers import calls_of
from torch import nn
from transformers import LlamaConfig, Qwen3_5TextConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer

from tq3.format.layout import GroupLayout
from tq3.runtime.cuda import support
from tq3.runtime.cuda.crossings import OTHERS, crossing_of
from tq3.runtime.modules import PackedLinear, PackedWeight, note_siblings


class FirstValues:
    """kernels: those that were launched."""

    processors, shared_bytes, crossing = 1, SHARED_BYTES, crossing_of(OTHERS)

    def __init__(self):
        self.kernels, self.turn = [], 0

    def load(self, kernel, instance):
        """Nothing."""

    def launch(self, call):
        self.kernels.append(call.kernel)
        tensors = [each for each in call.arguments if isinstance(each, torch.Tensor)]
        if call.kernel == "rotate_quantise":
            x, *_, worths = tensors
            worths.fill_(x.flatten()[0])
        else:
            _, _, _, worths, y, *_ = tensors
            y.fill_(worths.flatten()[0])

    def sequence(self):
        return self.turn

    def took(self):
        """Kernels since this was asked last."""
        kernels, self.kernels = self.kernels, []
        return sorted(kernels)


@pytest.fixture
def gpu(monkeypatch):
    device = FirstValues()
    monkeypatch.setattr(support, "launcher", lambda _: device)
    return device


def packed(module, bits=3):
    """Its linear layers are packed, without values, and lie in tiles."""
    for owner in list(module.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, nn.Linear):
                layout = GroupLayout(tuple(child.weight.shape), bits, 128)
                setattr(owner, name, PackedLinear(PackedWeight(layout)))
    note_siblings(module)
    for each in module.modules():
        if isinstance(each, PackedWeight):
            each.arrange()
    return module


def three():
    return packed(nn.ModuleList(nn.Linear(200, rows, bias=False) for rows in (64, 40, 40)))


ONCE = ["multiply"] * 3 + ["rotate_quantise"]
EACH = ["multiply"] * 3 + ["rotate_quantise"] * 3


@torch.no_grad()
def all_of(layers, x):
    """The first value of each product."""
    return [float(layer(x).flatten()[0]) for layer in layers]


def test_one_input_is_quantised_once(gpu):
    layers = three()
    for x in (torch.full((2, 200), 3.0), torch.full((1, 2, 200), 4.0), torch.full((200,), 5.0)):
        assert all_of(layers, x) == [float(x.flatten()[0])] * 3
        assert gpu.took() == ONCE


def test_the_same_input_is_quantised_anew_for_a_second_turn(gpu):
    """A graph's replay may have written into it, which torch doesn't know."""
    layers, x = three(), torch.full((2, 200), 3.0)
    all_of(layers, x)
    x.numpy()[:] = 4
    assert all_of(layers, x) == [4.0] * 3
    assert gpu.took() == sorted(2 * ONCE)


def test_an_input_that_changes_in_between_is_quantised_anew(gpu):
    layers, x = three(), torch.full((2, 200), 3.0)
    found = []
    for layer in layers:
        found += all_of([layer], x)
        x += 1
    assert found == [3.0, 4.0, 5.0]
    assert gpu.took() == EACH


def test_another_tensor_is_another_input(gpu):
    layers, memory = three(), torch.full((2, 200), 3.0)
    assert all_of(layers[:1], memory) + all_of(layers[1:2], memory.clone()) == [3.0] * 2
    assert all_of(layers[2:], memory.view(2, 200)) == [3.0]
    assert gpu.took() == EACH


def test_no_order_of_launches_no_sharing(gpu):
    """Such as another stream, or a graph that is captured."""
    layers, x = three(), torch.full((2, 200), 3.0)
    for layer in layers:
        gpu.turn += 1
        all_of([layer], x)
    assert gpu.took() == EACH


def test_tensors_of_inference_mode_tell_of_no_change(gpu):
    layers = three()
    with torch.inference_mode():
        x = torch.full((2, 200), 3.0)
        all_of(layers, x)
    assert gpu.took() == EACH


def test_what_was_quantised_goes_with_its_input(gpu):
    layers, x = three(), torch.full((2, 200), 3.0)
    all_of(layers[:1], x)
    siblings = layers[0].weight.siblings
    assert siblings._last is not None
    del x
    assert siblings._last is None


@pytest.mark.parametrize("again", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_copy_has_siblings_of_its_own(gpu, again):
    layers, x = three(), torch.full((2, 200), 3.0)
    all_of(layers[:1], x)
    other = again(layers)
    assert other[0].weight.siblings is other[2].weight.siblings is not layers[0].weight.siblings
    gpu.took()
    all_of(other, x)
    assert gpu.took() == ONCE


def test_layers_of_other_widths_are_no_siblings(gpu):
    layers = nn.ModuleList([*three()[:2], packed(nn.ModuleList([nn.Linear(200, 40)]), bits=4)[0]])
    note_siblings(layers)
    all_of(layers, torch.full((2, 200), 3.0))
    assert gpu.took() == ["multiply"] * 3 + ["rotate_quantise"] * 2
    weight: Any = layers[2].weight
    assert weight.siblings is None


SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
LLAMA = LlamaConfig(**SIZES, num_key_value_heads=2, num_hidden_layers=1, attn_implementation="sdpa")
QWEN = Qwen3_5TextConfig(
    **SIZES,
    num_key_value_heads=2,
    head_dim=64,
    num_hidden_layers=4,
    linear_num_value_heads=4,
    linear_num_key_heads=2,
    linear_key_head_dim=64,
    linear_value_head_dim=64,
)
# Kind of layer -> its packed layers, and the inputs of these: of attention, of o, gate and up,
# down; Gated DeltaNet has four layers that read one input.
LAYERS = {
    "attention": (lambda: LlamaDecoderLayer(LLAMA, 0), 7, 4),
    "gated deltanet": (lambda: Qwen3_5DecoderLayer(QWEN, 0), 8, 4),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_decoder_layer_launches_a_rotation_for_each_input(gpu, kind):
    make, n_layers, n_inputs = LAYERS[kind]
    layer, x = packed(make().eval()), torch.ones(1, 1, 256)
    turns = torch.ones(1, 1, 64), torch.zeros(1, 1, 64)
    gpu.took()
    with torch.no_grad():
        layer(x, position_embeddings=turns)
    assert gpu.took() == ["multiply"] * n_layers + ["rotate_quantise"] * n_inputs


def test_layers_that_read_one_input_take_few_calls(gpu):
    """223 with Python 3.11 and torch 2.13, a third of them of the device above."""
    layers, x = three(), torch.full((2, 200), 3.0)
    with torch.no_grad():
        assert calls_of(lambda: [layer(x) for layer in layers]) <= 250


def test_a_decoder_layer_on_the_processor_takes_few_calls_more_than_a_dense_one():
    """168 with Python 3.11 and torch 2.13: 24 for each packed layer."""
    layer, x = LlamaDecoderLayer(LLAMA, 0).eval(), torch.ones(1, 1, 256)
    turns = torch.ones(1, 1, 64), torch.zeros(1, 1, 64)
    with torch.no_grad():
        dense = calls_of(lambda: layer(x, position_embeddings=turns))
        packed(layer)
        assert calls_of(lambda: layer(x, position_embeddings=turns)) - dense <= 7 * 30
