"""How much a layer of experts launches for one token, by its host's code."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from support.cuda.emulated import SHARED_BYTES
from support.runtime.modules import filled, tiled
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tq3.format.layout import GroupLayout
from tq3.integrations.transformers import experts as of_transformers
from tq3.runtime import tiled as operators
from tq3.runtime.cuda import support
from tq3.runtime.cuda.crossings import OTHERS, crossing_of
from tq3.runtime.modules import PackedExperts

# They allocate, or look at what is there in another way.
NO_KERNELS = {
    *("view", "slice", "select", "expand", "unsqueeze", "permute", "detach", "split", "as_strided"),
    *("empty", "new_empty", "empty_like", "_unsafe_view", "lift_fresh"),
}


class Kernels(TorchDispatchMode):
    """Counts kernels: operators of torch, also those that ours consist of, and launches of ours."""

    processors, shared_bytes, crossing = 132, SHARED_BYTES, crossing_of(OTHERS)

    def __init__(self):
        super().__init__()
        self.ours: Counter[str] = Counter()
        self.within_ours: Counter[str] = Counter()
        self.others: Counter[str] = Counter()
        self._counted = self.others

    def load(self, kernel, instance):
        pass

    def launch(self, call_):
        self.ours[call_.kernel] += 1

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.partition(".")[0]
        if function.namespace == "tq3":
            of_outside, self._counted = self._counted, self.within_ours
            with self:
                found = getattr(operators, name.removesuffix("_tiled"))(*args, **kwargs or {})
            self._counted = of_outside
            return found
        self._counted[name] += name not in NO_KERNELS
        return function(*args, **kwargs or {})


class Experts(nn.Module):
    """As Transformers has them: 128 experts, of which 8 are for a token."""

    has_gate, has_bias = True, False

    def __init__(self, count=128):
        super().__init__()
        for name, shape in (("gate_up_proj", (64, 128)), ("down_proj", (128, 32))):
            weight = PackedExperts(GroupLayout((count, *shape), 3, 128), dtype=torch.bfloat16)
            setattr(self, name, filled(weight))

    def _apply_gate(self, x):
        gate, up = x.chunk(2, dim=-1)
        return nn.functional.silu(gate) * up


def launched(monkeypatch, tokens):
    kernels = Kernels()
    monkeypatch.setattr(support, "launcher", lambda _: kernels)
    module = tiled(Experts())
    x, weights = torch.ones(tokens, 128, dtype=torch.bfloat16), torch.ones(tokens, 8)
    chosen = torch.arange(8 * tokens).view(tokens, 8) % 128
    with kernels, torch.no_grad():
        of_transformers.forward(module, x, chosen, weights)
    return kernels


@pytest.mark.parametrize("tokens", [1, 4, 16])
def test_few_pairs_take_six_kernels_for_both_projections(monkeypatch, tokens):
    found = launched(monkeypatch, tokens)
    assert found.ours == {"rotate_quantise": 2, "multiply": 2}
    assert found.within_ours.total() <= 2
    # Of the host: tokens repeated, the gate, the weighted sum.
    assert found.others.total() <= 6


def test_many_pairs_are_sorted_once_for_both_projections(monkeypatch):
    found = launched(monkeypatch, tokens=17)
    assert found.ours == {"rotate_quantise": 2, "multiply": 2}
    assert found.within_ours["sort"] + found.within_ours["argsort"] == 1
    assert found.within_ours.total() <= 32
