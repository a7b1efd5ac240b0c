"""Tokens one after the other through a stack of random layers, of a 27B model's shapes.

Eagerly, where the host launches each kernel, and by a CUDA graph; and what moving the stack to the
device needs of its memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from gpu.machine import MIB, Machine
from gpu.section import Row, Section
from torch import nn

from tq3.format.layout import GroupLayout
from tq3.runtime.modules import PackedExperts, PackedLinear, PackedWeight

GROUP = 128
DTYPE = torch.bfloat16
MakeLinear = Callable[[int, int], nn.Module]


class Sizes(NamedTuple):
    """Of the stack. model_layers: how many layers the whole model has."""

    hidden: int = 5120
    attention: int = 12288
    mlp: int = 17408
    layers: int = 8
    model_layers: int = 64
    experts: tuple[int, int, int] = (128, 768, 2048)


class Block(nn.Module):
    """The matrices of a decoder's layer; what attention itself does is left out."""

    def __init__(self, sizes: Sizes, make: MakeLinear) -> None:
        super().__init__()
        self.into = make(sizes.attention, sizes.hidden)
        self.out = make(sizes.hidden, sizes.attention)
        self.gate, self.up = make(sizes.mlp, sizes.hidden), make(sizes.mlp, sizes.hidden)
        self.down = make(sizes.hidden, sizes.mlp)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (tokens, hidden) -> the same"""
        x = x + self.out(self.into(F.rms_norm(x, x.shape[-1:])))
        between = F.rms_norm(x, x.shape[-1:])
        return x + self.down(F.silu(self.gate(between)) * self.up(between))


def stack(sizes: Sizes, make: MakeLinear) -> nn.Module:
    """The layers of a model, or some of them."""
    return nn.Sequential(*(Block(sizes, make) for _ in range(sizes.layers)))


def packed_linear(bits: int, rows: int, columns: int) -> PackedLinear:
    """On the processor, as a host loads it: any codes, norms of usual weights."""
    return PackedLinear(_filled(PackedWeight(GroupLayout((rows, columns), bits, GROUP))))


def _filled(weight: PackedWeight) -> PackedWeight:
    weight.tq_packed.data.random_(0, 256)
    weight.tq_norms.data.fill_((GROUP / weight.layout.cols) ** 0.5)
    return weight


def measure(gpu: Machine, sizes: Sizes) -> tuple[Section, Section]:
    """What decoding takes, and what loading takes."""
    speeds: list[Row] = []
    memory: list[Row] = []
    faults: list[str] = []
    dense = stack(sizes, partial(nn.Linear, bias=False, device=gpu.device, dtype=DTYPE))
    weights = sum(parameter.numel() for parameter in dense.parameters())
    speeds.append({"weights": "bf16", **_speed(gpu, dense, sizes, faults)})
    del dense
    for bits in (3, 4):
        model = stack(sizes, partial(packed_linear, bits))
        memory.append({"what": f"stack, {bits} bits", **_moved(gpu, model)})
        speeds.append({"weights": f"{bits} bits", **_speed(gpu, model, sizes, faults)})
        del model
        experts = _filled(PackedExperts(GroupLayout(sizes.experts, bits, GROUP)))
        memory.append({"what": f"experts, {bits} bits", **_moved(gpu, experts)})
    share = sizes.layers / sizes.model_layers
    notes = [
        f"{sizes.layers} layers of {weights / sizes.layers / 1e6:,.0f} M weights; tokens/s: of "
        f"{sizes.model_layers} such layers, so {share:.3g} of what these do"
    ]
    title = "One token after the other through a random model's linear layers"
    beyond = "Memory of the device as layers are moved to it, beyond their size"
    return Section(title, speeds, notes, faults), Section(beyond, memory, [], [])


def _speed(gpu: Machine, model: nn.Module, sizes: Sizes, faults: list[str]) -> Row:
    x, other = torch.randn(2, 1, sizes.hidden, device=gpu.device).to(DTYPE)
    share = sizes.layers / sizes.model_layers
    with torch.inference_mode():
        eager = gpu.seconds(lambda: model(x))
        captured = gpu.capture(lambda: model(x))
        by_graph = gpu.seconds(captured.replay)
        # Of another token than the captured one.
        x.copy_(other)
        captured.replay()
        is_equal = torch.equal(captured.result, model(other))
    if not is_equal:
        faults.append(f"a replayed graph gives other bits than {model[0].into}")
    return {
        "eager ms": eager * 1e3,
        "eager tokens/s": share / eager,
        "graph ms": by_graph * 1e3,
        "graph tokens/s": share / by_graph,
        "replay": "bit-equal" if is_equal else "different",
    }


def _moved(gpu: Machine, model: nn.Module) -> Row:
    packed = sum(part.n_bytes for part in model.modules() if isinstance(part, PackedWeight))
    stays, peak = gpu.allocated(lambda: model.to(gpu.device))
    return {
        "packed MiB": packed / MIB,
        "stays MiB": (stays - packed) / MIB,
        "peak MiB": (peak - packed) / MIB,
    }
